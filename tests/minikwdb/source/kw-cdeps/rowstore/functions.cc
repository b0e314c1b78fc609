// Scalar functions and collations that KWDB has and SQLite lacks.
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <random>

#include "internal.h"

namespace rowstore {

std::string TextOf(sqlite3_value* value, const RowConn* conn) {
  if (sqlite3_value_type(value) == SQLITE_FLOAT) return FormatFloat(sqlite3_value_double(value), conn->extra_float_digits);
  const auto* text = reinterpret_cast<const char*>(sqlite3_value_text(value));
  return text == nullptr ? std::string() : std::string(text, static_cast<size_t>(sqlite3_value_bytes(value)));
}

namespace {

using Args = sqlite3_value**;

RowConn* ConnOf(sqlite3_context* ctx) { return static_cast<RowConn*>(sqlite3_user_data(ctx)); }

void Result(sqlite3_context* ctx, const std::string& text) {
  sqlite3_result_text(ctx, text.data(), static_cast<int>(text.size()), SQLITE_TRANSIENT);
}

bool AnyNull(sqlite3_context* ctx, int count, Args args) {
  for (int i = 0; i < count; ++i) {
    if (sqlite3_value_type(args[i]) == SQLITE_NULL) {
      sqlite3_result_null(ctx);
      return true;
    }
  }
  return false;
}

/// A failed cast; Go reads the SQLSTATE before the first '|'.
void BadValue(sqlite3_context* ctx, const std::string& text, const char* type) {
  sqlite3_result_error(ctx, ("22P02|could not parse \"" + text + "\" as type " + type).c_str(), -1);
}

std::string Bytes(sqlite3_value* value) {
  const void* data = sqlite3_value_blob(value);
  return data == nullptr ? std::string() : std::string(static_cast<const char*>(data), static_cast<size_t>(sqlite3_value_bytes(value)));
}

void CastString(sqlite3_context* ctx, int count, Args args) {
  if (!AnyNull(ctx, count, args)) Result(ctx, TextOf(args[0], ConnOf(ctx)));
}

void CastInt(sqlite3_context* ctx, int count, Args args) {
  if (AnyNull(ctx, count, args)) return;
  if (sqlite3_value_type(args[0]) == SQLITE_FLOAT) return sqlite3_result_int64(ctx, std::llround(sqlite3_value_double(args[0])));
  if (sqlite3_value_type(args[0]) == SQLITE_INTEGER) return sqlite3_result_int64(ctx, sqlite3_value_int64(args[0]));
  const std::string text = TextOf(args[0], ConnOf(ctx));
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0') return BadValue(ctx, text, "int");
  const bool whole = text.find_first_of(".eE") == std::string::npos;
  sqlite3_result_int64(ctx, whole ? std::strtoll(text.c_str(), nullptr, 10) : std::llround(value));
}

void CastFloat(sqlite3_context* ctx, int count, Args args) {
  if (AnyNull(ctx, count, args)) return;
  const std::string text = TextOf(args[0], ConnOf(ctx));
  if (sqlite3_value_type(args[0]) == SQLITE_FLOAT) return sqlite3_result_double(ctx, sqlite3_value_double(args[0]));
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0') return BadValue(ctx, text, "float");
  sqlite3_result_double(ctx, value);
}

void CastDecimal(sqlite3_context* ctx, int count, Args args) {
  if (AnyNull(ctx, count, args)) return;
  const std::string text = sqlite3_value_type(args[0]) == SQLITE_FLOAT ? FormatFloat(sqlite3_value_double(args[0]), 3)
                                                                      : TextOf(args[0], ConnOf(ctx));
  char* end = nullptr;
  std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0') return BadValue(ctx, text, "decimal");
  Result(ctx, text);
}

void CastBool(sqlite3_context* ctx, int count, Args args) {
  if (AnyNull(ctx, count, args)) return;
  if (sqlite3_value_numeric_type(args[0]) == SQLITE_INTEGER) return sqlite3_result_int(ctx, sqlite3_value_int64(args[0]) != 0);
  const std::string text = TextOf(args[0], ConnOf(ctx));
  const char first = text.empty() ? '?' : static_cast<char>(text[0] | 0x20);
  if (std::strchr("tfyn", first) == nullptr) return BadValue(ctx, text, "bool");
  sqlite3_result_int(ctx, first == 't' || first == 'y');
}

void CastBytes(sqlite3_context* ctx, int count, Args args) {
  if (AnyNull(ctx, count, args)) return;
  const std::string bytes = Bytes(args[0]);
  sqlite3_result_blob(ctx, bytes.data(), static_cast<int>(bytes.size()), SQLITE_TRANSIENT);
}

void CastTimestamp(sqlite3_context* ctx, int count, Args args) {
  if (AnyNull(ctx, count, args)) return;
  const std::string text = TextOf(args[0], ConnOf(ctx));
  int64_t micros = 0;
  if (sqlite3_value_type(args[0]) == SQLITE_INTEGER) micros = sqlite3_value_int64(args[0]) * 1000;
  else if (!ParseTime(text, &micros)) return BadValue(ctx, text, "timestamp");
  Result(ctx, FormatTime(micros));
}

void CastDate(sqlite3_context* ctx, int count, Args args) {
  if (AnyNull(ctx, count, args)) return;
  const std::string text = TextOf(args[0], ConnOf(ctx));
  int64_t micros = 0;
  if (!ParseTime(text, &micros)) return BadValue(ctx, text, "date");
  Result(ctx, FormatTime(micros).substr(0, 10));
}

template <typename Word, Word kOffset, Word kPrime, bool kXorFirst>
void Fnv(sqlite3_context* ctx, int count, Args args) {
  if (AnyNull(ctx, count, args)) return;
  Word hash = kOffset;
  for (int i = 0; i < count; ++i) {
    for (const unsigned char byte : Bytes(args[i])) {
      if (kXorFirst) hash ^= byte;
      hash *= kPrime;
      if (!kXorFirst) hash ^= byte;
    }
  }
  sqlite3_result_int64(ctx, static_cast<sqlite3_int64>(hash));
}

void Md5(sqlite3_context* ctx, int count, Args args) {
  if (!AnyNull(ctx, count, args)) Result(ctx, Md5Hex(Bytes(args[0])));
}

void Sha256(sqlite3_context* ctx, int count, Args args) {
  if (!AnyNull(ctx, count, args)) Result(ctx, Sha256Hex(Bytes(args[0])));
}

void Encode(sqlite3_context* ctx, int count, Args args) {
  if (AnyNull(ctx, count, args)) return;
  if (TextOf(args[1], ConnOf(ctx)) != "hex") return sqlite3_result_error(ctx, "22023|only 'hex' is supported", -1);
  static const char* digits = "0123456789abcdef";
  std::string out;
  for (const unsigned char byte : Bytes(args[0])) {
    out += digits[byte >> 4];
    out += digits[byte & 15];
  }
  Result(ctx, out);
}

void Decode(sqlite3_context* ctx, int count, Args args) {
  if (AnyNull(ctx, count, args)) return;
  const std::string text = TextOf(args[0], ConnOf(ctx));
  std::string out;
  for (size_t i = 0; i + 1 < text.size(); i += 2) out += static_cast<char>(std::stoi(text.substr(i, 2), nullptr, 16));
  sqlite3_result_blob(ctx, out.data(), static_cast<int>(out.size()), SQLITE_TRANSIENT);
}

void Now(sqlite3_context* ctx, int, Args) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  Result(ctx, FormatTime(std::chrono::duration_cast<std::chrono::microseconds>(now).count()));
}

void Sleep(sqlite3_context* ctx, int, Args args) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(sqlite3_value_double(args[0]));
  while (std::chrono::steady_clock::now() < end) {
    if (ConnOf(ctx)->interrupted) return sqlite3_result_error_code(ctx, SQLITE_INTERRUPT);
    ::usleep(5000);
  }
  sqlite3_result_int(ctx, 1);
}

void UniqueRowId(sqlite3_context* ctx, int, Args) {
  static std::atomic<int64_t> last{0};
  int64_t id = std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::system_clock::now().time_since_epoch()).count() << 8;
  int64_t before = last.load();
  while (!last.compare_exchange_weak(before, id = (id > before ? id : before + 1))) {}
  sqlite3_result_int64(ctx, id);
}

void RandomUuid(sqlite3_context* ctx, int, Args) {
  std::random_device random;
  char text[40];
  std::snprintf(text, sizeof text, "%08x-%04x-4%03x-%04x-%08x%04x", random(), random() & 0xFFFFu, random() & 0xFFFu,
                0x8000u | (random() & 0x3FFFu), random(), random() & 0xFFFFu);
  Result(ctx, text);
}

/// time_bucket(timestamp, '60s'): the start of the interval that holds the timestamp.
void TimeBucket(sqlite3_context* ctx, int count, Args args) {
  if (AnyNull(ctx, count, args)) return;
  int64_t micros = 0;
  const std::string width = TextOf(args[1], ConnOf(ctx));
  char* unit = nullptr;
  const double amount = std::strtod(width.c_str(), &unit);
  const double factor = *unit == 'd' ? 86400e6 : *unit == 'h' ? 3600e6 : *unit == 'm' && unit[1] == 's' ? 1e3 : *unit == 'm' ? 60e6 : 1e6;
  const auto step = static_cast<int64_t>(amount * factor);
  if (step <= 0 || !ParseTime(TextOf(args[0], ConnOf(ctx)), &micros)) return BadValue(ctx, width, "interval");
  Result(ctx, FormatTime(micros - ((micros % step) + step) % step));
}

int CompareBytes(int left_size, const void* left, int right_size, const void* right) {
  const int order = std::memcmp(left, right, static_cast<size_t>(left_size < right_size ? left_size : right_size));
  return order != 0 ? order : left_size - right_size;
}

int CompareTimes(void*, int left_size, const void* left, int right_size, const void* right) {
  int64_t a = 0, b = 0;
  if (!ParseTime(std::string(static_cast<const char*>(left), static_cast<size_t>(left_size)), &a) ||
      !ParseTime(std::string(static_cast<const char*>(right), static_cast<size_t>(right_size)), &b)) {
    return CompareBytes(left_size, left, right_size, right);
  }
  return a < b ? -1 : (a > b ? 1 : 0);
}

int CompareNumbers(void*, int left_size, const void* left, int right_size, const void* right) {
  Decimal a, b;
  if (!Decimal::Parse(std::string(static_cast<const char*>(left), static_cast<size_t>(left_size)), &a) ||
      !Decimal::Parse(std::string(static_cast<const char*>(right), static_cast<size_t>(right_size)), &b)) {
    return CompareBytes(left_size, left, right_size, right);
  }
  return a.Compare(b);
}

struct Scalar {
  const char* name;
  int arguments;
  void (*call)(sqlite3_context*, int, Args);
  bool pure;
};

constexpr Scalar kScalars[] = {
    {"kw_cast_string", 1, CastString, true},
    {"kw_cast_int", 1, CastInt, true},
    {"kw_cast_float", 1, CastFloat, true},
    {"kw_cast_decimal", 1, CastDecimal, true},
    {"kw_cast_bool", 1, CastBool, true},
    {"kw_cast_bytes", 1, CastBytes, true},
    {"kw_cast_timestamp", 1, CastTimestamp, true},
    {"kw_cast_date", 1, CastDate, true},
    {"fnv32", -1, Fnv<uint32_t, 2166136261u, 16777619u, false>, true},
    {"fnv32a", -1, Fnv<uint32_t, 2166136261u, 16777619u, true>, true},
    {"fnv64", -1, Fnv<uint64_t, 14695981039346656037ull, 1099511628211ull, false>, true},
    {"fnv64a", -1, Fnv<uint64_t, 14695981039346656037ull, 1099511628211ull, true>, true},
    {"md5", 1, Md5, true},
    {"sha256", 1, Sha256, true},
    {"encode", 2, Encode, true},
    {"decode", 2, Decode, true},
    {"time_bucket", 2, TimeBucket, true},
    {"now", 0, Now, false},
    {"clock_timestamp", 0, Now, false},
    {"pg_sleep", 1, Sleep, false},
    {"unique_rowid", 0, UniqueRowId, false},
    {"gen_random_uuid", 0, RandomUuid, false},
};

}  // namespace

int AddFunctions(RowConn* conn) {
  for (const Scalar& f : kScalars) {
    const int flags = SQLITE_UTF8 | (f.pure ? SQLITE_DETERMINISTIC : 0);
    const int code = sqlite3_create_function_v2(conn->db, f.name, f.arguments, flags, conn, f.call, nullptr, nullptr, nullptr);
    if (code != SQLITE_OK) return code;
  }
  const int code = sqlite3_create_collation_v2(conn->db, "KWTIME", SQLITE_UTF8, nullptr, CompareTimes, nullptr);
  return code != SQLITE_OK ? code : sqlite3_create_collation_v2(conn->db, "KWNUM", SQLITE_UTF8, nullptr, CompareNumbers, nullptr);
}

}  // namespace rowstore
