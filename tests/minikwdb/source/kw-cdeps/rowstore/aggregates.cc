// Aggregates: an exact sum.
#include <cstdint>
#include <string>

#include "internal.h"

namespace rowstore {
namespace {

/// sum() that is exact for integers and decimals, so that a sum of 64-bit hashes cannot overflow.
struct Sum {
  bool any = false;
  bool real = false;
  long double real_total = 0;
  Decimal exact;
};

Sum* SumOf(sqlite3_context* ctx) { return static_cast<Sum*>(sqlite3_aggregate_context(ctx, sizeof(Sum))); }

void SumStep(sqlite3_context* ctx, int, sqlite3_value** args) {
  Sum* sum = SumOf(ctx);
  if (sum == nullptr || sqlite3_value_type(args[0]) == SQLITE_NULL) return;
  sum->any = true;
  Decimal value;
  if (sqlite3_value_type(args[0]) == SQLITE_FLOAT || !Decimal::Parse(TextOf(args[0], static_cast<RowConn*>(sqlite3_user_data(ctx))), &value)) {
    sum->real = true;
    sum->real_total += sqlite3_value_double(args[0]);
  } else {
    sum->exact.Add(value);
  }
}

void SumFinal(sqlite3_context* ctx) {
  const Sum* sum = SumOf(ctx);
  if (sum == nullptr || !sum->any) return sqlite3_result_null(ctx);
  const __int128 whole = sum->exact.digits;
  const std::string text = sum->exact.Text();
  if (sum->real) {
    sqlite3_result_double(ctx, static_cast<double>(sum->real_total + std::stold(text)));
  } else if (sum->exact.scale == 0 && whole <= INT64_MAX && whole >= INT64_MIN) {
    sqlite3_result_int64(ctx, static_cast<sqlite3_int64>(whole));
  } else {
    sqlite3_result_text(ctx, text.data(), static_cast<int>(text.size()), SQLITE_TRANSIENT);
  }
}

}  // namespace

int AddAggregates(RowConn* conn) {
  return sqlite3_create_function_v2(conn->db, "sum", 1, SQLITE_UTF8 | SQLITE_DETERMINISTIC, conn, nullptr, SumStep, SumFinal, nullptr);
}

}  // namespace rowstore
