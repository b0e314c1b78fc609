#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include "rowstore.h"

struct RowConn {
  sqlite3* db = nullptr;
  std::atomic<bool> interrupted{false};
  int extra_float_digits = 0;
  std::string row;
};

namespace rowstore {

/// Registers KWDB's functions, aggregates and collations on the connection.
int AddFunctions(RowConn* conn);
int AddAggregates(RowConn* conn);

std::string FormatFloat(double value, int extra_digits);
std::string Md5Hex(const std::string& text);
std::string Sha256Hex(const std::string& text);
/// The text of any value, as KWDB's `::STRING` gives it. NULL gives an empty text.
std::string TextOf(sqlite3_value* value, const RowConn* conn);

/// Microseconds since 1970 of a date or timestamp text; false where it is none.
bool ParseTime(const std::string& text, int64_t* micros);
std::string FormatTime(int64_t micros);

/// An exact decimal: digits * 10^-scale.
struct Decimal {
  __int128 digits = 0;
  int scale = 0;

  static bool Parse(const std::string& text, Decimal* out);
  void Add(const Decimal& other);
  int Compare(const Decimal& other) const;
  std::string Text() const;
};

}  // namespace rowstore
