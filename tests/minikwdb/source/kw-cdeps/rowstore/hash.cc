// MD5 and SHA-256, for checksums in SQL. Not for secrets.
#include <array>
#include <cmath>
#include <cstring>

#include "internal.h"

namespace rowstore {
namespace {

uint32_t Rotate(uint32_t value, unsigned bits) { return (value << bits) | (value >> (32 - bits)); }

/// The message with its 1 bit, zeros and length, as whole 64-byte blocks.
std::string Pad(const std::string& text, bool big_endian) {
  std::string out = text + '\x80';
  while (out.size() % 64 != 56) out += '\0';
  const uint64_t bits = static_cast<uint64_t>(text.size()) * 8;
  for (int i = 0; i < 8; ++i) out += static_cast<char>(bits >> (big_endian ? 56 - 8 * i : 8 * i));
  return out;
}

uint32_t Word(const char* at, bool big_endian) {
  const auto* b = reinterpret_cast<const unsigned char*>(at);
  return big_endian ? static_cast<uint32_t>(b[0]) << 24 | b[1] << 16 | b[2] << 8 | b[3]
                    : static_cast<uint32_t>(b[3]) << 24 | b[2] << 16 | b[1] << 8 | b[0];
}

template <size_t N>
std::string Hex(const std::array<uint32_t, N>& words, bool big_endian) {
  static const char* digits = "0123456789abcdef";
  std::string out;
  for (const uint32_t word : words) {
    for (int i = 0; i < 4; ++i) {
      const unsigned byte = (word >> (big_endian ? 24 - 8 * i : 8 * i)) & 0xFFu;
      out += digits[byte >> 4];
      out += digits[byte & 15u];
    }
  }
  return out;
}

/// The first 32 bits of the fractional part of a root of the n-th prime.
uint32_t RootBits(int n, bool cube) {
  int prime = 2;
  for (int found = 0;; ++prime) {
    bool is_prime = true;
    for (int d = 2; d * d <= prime; ++d) is_prime = is_prime && prime % d != 0;
    if (is_prime && found++ == n) break;
  }
  const long double root = cube ? std::cbrt(static_cast<long double>(prime)) : std::sqrt(static_cast<long double>(prime));
  return static_cast<uint32_t>((root - std::floor(root)) * 4294967296.0L);
}

}  // namespace

std::string Md5Hex(const std::string& text) {
  static const unsigned shifts[4][4] = {{7, 12, 17, 22}, {5, 9, 14, 20}, {4, 11, 16, 23}, {6, 10, 15, 21}};
  std::array<uint32_t, 4> state{0x67452301u, 0xefcdab89u, 0x98badcfeu, 0x10325476u};
  const std::string data = Pad(text, false);
  for (size_t block = 0; block < data.size(); block += 64) {
    auto [a, b, c, d] = state;
    for (unsigned i = 0; i < 64; ++i) {
      uint32_t f;
      unsigned g;
      switch (i / 16) {
        case 0: f = (b & c) | (~b & d); g = i; break;
        case 1: f = (d & b) | (~d & c); g = (5 * i + 1) % 16; break;
        case 2: f = b ^ c ^ d; g = (3 * i + 5) % 16; break;
        default: f = c ^ (b | ~d); g = (7 * i) % 16; break;
      }
      const auto k = static_cast<uint32_t>(std::floor(std::fabs(std::sin(static_cast<double>(i + 1))) * 4294967296.0));
      f += a + k + Word(data.data() + block + g * 4, false);
      a = d;
      d = c;
      c = b;
      b += Rotate(f, shifts[i / 16][i % 4]);
    }
    state = {state[0] + a, state[1] + b, state[2] + c, state[3] + d};
  }
  return Hex(state, false);
}

std::string Sha256Hex(const std::string& text) {
  static const auto constants = [] {
    std::array<uint32_t, 64> k{};
    for (int i = 0; i < 64; ++i) k[i] = RootBits(i, true);
    return k;
  }();
  std::array<uint32_t, 8> state{};
  for (int i = 0; i < 8; ++i) state[i] = RootBits(i, false);
  const std::string data = Pad(text, true);
  for (size_t block = 0; block < data.size(); block += 64) {
    std::array<uint32_t, 64> w{};
    for (int i = 0; i < 16; ++i) w[i] = Word(data.data() + block + i * 4, true);
    for (int i = 16; i < 64; ++i) {
      const uint32_t s0 = Rotate(w[i - 15], 25) ^ Rotate(w[i - 15], 14) ^ (w[i - 15] >> 3);
      const uint32_t s1 = Rotate(w[i - 2], 15) ^ Rotate(w[i - 2], 13) ^ (w[i - 2] >> 10);
      w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    auto [a, b, c, d, e, f, g, h] = state;
    for (int i = 0; i < 64; ++i) {
      const uint32_t t1 = h + (Rotate(e, 26) ^ Rotate(e, 21) ^ Rotate(e, 7)) + ((e & f) ^ (~e & g)) + constants[i] + w[i];
      const uint32_t t2 = (Rotate(a, 30) ^ Rotate(a, 19) ^ Rotate(a, 10)) + ((a & b) ^ (a & c) ^ (b & c));
      h = g; g = f; f = e; e = d + t1;
      d = c; c = b; b = a; a = t1 + t2;
    }
    const std::array<uint32_t, 8> add{a, b, c, d, e, f, g, h};
    for (int i = 0; i < 8; ++i) state[i] += add[i];
  }
  return Hex(state, true);
}

}  // namespace rowstore
