// Numbers and times as text, the way KWDB writes them.
#include <cctype>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>

#include "internal.h"

namespace rowstore {

std::string FormatFloat(double value, int extra_digits) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "+Inf" : "-Inf";
  char text[64];
  if (extra_digits <= 0) {
    std::snprintf(text, sizeof text, "%.*g", 15 + extra_digits, value);
    return text;
  }
  for (int digits = 1; digits <= 17; ++digits) {
    std::snprintf(text, sizeof text, "%.*g", digits, value);
    if (std::strtod(text, nullptr) == value) break;
  }
  return text;
}

bool ParseTime(const std::string& text, int64_t* micros) {
  int year = 0, month = 0, day = 0, hour = 0, minute = 0, used = 0;
  double second = 0;
  const char* at = text.c_str();
  if (std::sscanf(at, "%4d-%2d-%2d%n", &year, &month, &day, &used) != 3 || used < 8) return false;
  at += used;
  if (*at == 'T' || *at == ' ') {
    ++at;
    if (std::sscanf(at, "%2d:%2d%n", &hour, &minute, &used) != 2) return false;
    at += used;
    if (*at == ':') {
      char* end = nullptr;
      second = std::strtod(at + 1, &end);
      at = end;
    }
  }
  int offset = 0;
  while (*at == ' ') ++at;
  if (*at == '+' || *at == '-') {
    const int sign = *at == '-' ? -1 : 1;
    int hours = 0, minutes = 0;
    if (std::sscanf(at + 1, "%2d:%2d%n", &hours, &minutes, &used) == 2 || std::sscanf(at + 1, "%2d%n", &hours, &used) == 1) {
      offset = sign * (hours * 60 + minutes);
      at += 1 + used;
    }
  } else if (*at == 'Z') {
    ++at;
  }
  if (*at != '\0') return false;
  std::tm parts{};
  parts.tm_year = year - 1900;
  parts.tm_mon = month - 1;
  parts.tm_mday = day;
  parts.tm_hour = hour;
  parts.tm_min = minute - offset;
  *micros = static_cast<int64_t>(::timegm(&parts)) * 1000000 + std::llround(second * 1e6);
  return true;
}

std::string FormatTime(int64_t micros) {
  int64_t seconds = micros / 1000000;
  int64_t rest = micros % 1000000;
  if (rest < 0) {
    rest += 1000000;
    --seconds;
  }
  const std::time_t time = seconds;
  std::tm parts{};
  ::gmtime_r(&time, &parts);
  char text[64];
  std::string out(text, std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &parts));
  if (rest != 0) {
    std::snprintf(text, sizeof text, ".%06d", static_cast<int>(rest));
    out += text;
    while (out.back() == '0') out.pop_back();
  }
  return out + "+00:00";
}

bool Decimal::Parse(const std::string& text, Decimal* out) {
  *out = Decimal{};
  size_t i = 0;
  const bool negative = !text.empty() && text[0] == '-';
  if (!text.empty() && (text[0] == '-' || text[0] == '+')) ++i;
  bool any = false, point = false;
  for (; i < text.size(); ++i) {
    if (std::isdigit(static_cast<unsigned char>(text[i])) != 0) {
      if (out->scale >= 18) continue;  // finer digits than this are cut
      out->digits = out->digits * 10 + (text[i] - '0');
      if (point) ++out->scale;
      any = true;
    } else if (text[i] == '.' && !point) {
      point = true;
    } else {
      return false;
    }
  }
  if (negative) out->digits = -out->digits;
  return any;
}

namespace {

__int128 Scaled(const Decimal& value, int scale) {
  __int128 digits = value.digits;
  for (int i = value.scale; i < scale; ++i) digits *= 10;
  return digits;
}

}  // namespace

void Decimal::Add(const Decimal& other) {
  const int wide = scale > other.scale ? scale : other.scale;
  digits = Scaled(*this, wide) + Scaled(other, wide);
  scale = wide;
}

int Decimal::Compare(const Decimal& other) const {
  const int wide = scale > other.scale ? scale : other.scale;
  const __int128 left = Scaled(*this, wide), right = Scaled(other, wide);
  return left < right ? -1 : (left > right ? 1 : 0);
}

std::string Decimal::Text() const {
  __int128 rest = digits < 0 ? -digits : digits;
  std::string out;
  for (int i = 0; rest != 0 || i <= scale; ++i) {
    if (i == scale && scale > 0) out.insert(out.begin(), '.');
    out.insert(out.begin(), static_cast<char>('0' + static_cast<int>(rest % 10)));
    rest /= 10;
  }
  return digits < 0 ? "-" + out : out;
}

}  // namespace rowstore
