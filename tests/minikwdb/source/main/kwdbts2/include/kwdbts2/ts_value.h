#ifndef KWDBTS2_TS_VALUE_H_
#define KWDBTS2_TS_VALUE_H_

#include <stdint.h>

enum TsValueType { TS_NULL = 0, TS_INT = 1, TS_FLOAT = 2, TS_TEXT = 3, TS_BYTES = 4 };

enum TsPlanKind { TS_PLAN_SCAN = 1, TS_PLAN_INSERT = 2, TS_PLAN_DELETE = 3, TS_PLAN_UPDATE_TAGS = 4 };

// One cell. `bytes` is borrowed: an argument lives until the call returns, a result until the
// cursor moves on.
typedef struct TsValue {
  int32_t type;
  int64_t number;
  double real;
  const char* bytes;
  uint64_t size;
} TsValue;

#endif  // KWDBTS2_TS_VALUE_H_
