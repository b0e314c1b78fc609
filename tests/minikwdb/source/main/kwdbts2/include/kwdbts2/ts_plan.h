#ifndef KWDBTS2_TS_PLAN_H_
#define KWDBTS2_TS_PLAN_H_

#include <stdint.h>

#include "kwdbts2/ts_value.h"

#ifdef __cplusplus
extern "C" {
#endif

// Raised whenever the layout below changes. kwbase and libkwdbts2.so of one release agree on it;
// files of two releases do not, and nothing notices before the first time-series statement.
#define TS_PLAN_ABI 2

typedef struct TsCursor TsCursor;

typedef struct TsPlan {
  uint32_t abi;
  uint32_t kind;  // TsPlanKind
  uint64_t table_id;
  uint64_t row_id;   // delete and tag update: which row
  TsCursor** cursor;  // scan: receives the cursor
  const TsValue* values;
  uint64_t value_count;
} TsPlan;

#ifdef __cplusplus
}
#endif

#endif  // KWDBTS2_TS_PLAN_H_
