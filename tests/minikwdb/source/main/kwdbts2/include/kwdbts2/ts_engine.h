#ifndef KWDBTS2_TS_ENGINE_H_
#define KWDBTS2_TS_ENGINE_H_

#include <stdint.h>

#include "kwdbts2/ts_plan.h"
#include "kwdbts2/ts_value.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct TsEngine TsEngine;

// Every call returns NULL on success, or a message that the caller frees with ts_free_error.

// Opens (or silently creates) `store`/tsdb with `vgroups` groups; logs to `log_dir`/TsEngine.log.
char* ts_engine_open(const char* store, const char* log_dir, int vgroups, TsEngine** out);
// Flushes the logs into the block files and closes.
void ts_engine_close(TsEngine* engine);

// Makes the table known. `schema` has one "name type flags" line a column; the first column is the
// timestamp, flags are '-' (metric), 't' (tag) or 'p' (primary tag). Idempotent.
char* ts_open_table(TsEngine* engine, uint64_t database_id, uint64_t table_id, const char* schema);
char* ts_drop_table(TsEngine* engine, uint64_t table_id);

// Runs a time-series statement.
char* ts_execute(TsEngine* engine, const TsPlan* plan);
// Makes everything executed so far durable.
char* ts_sync(TsEngine* engine);

int ts_cursor_valid(const TsCursor* cursor);
void ts_cursor_next(TsCursor* cursor);
uint64_t ts_cursor_row_id(const TsCursor* cursor);
void ts_cursor_value(const TsCursor* cursor, uint64_t column, TsValue* out);
void ts_cursor_close(TsCursor* cursor);

void ts_free_error(char* message);

#ifdef __cplusplus
}
#endif

#endif  // KWDBTS2_TS_ENGINE_H_
