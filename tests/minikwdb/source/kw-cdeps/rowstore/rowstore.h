#ifndef ROWSTORE_ROWSTORE_H_
#define ROWSTORE_ROWSTORE_H_

#include <sqlite3.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// A connection to the one SQLite file of a store, used by one session at a time.
// Only row_interrupt may be called from another thread.
typedef struct RowConn RowConn;

// Returns an SQLite result code. Also on failure *out may be set, so that the message can be read.
int row_open(const char* path, RowConn** out);
void row_close(RowConn* conn);
sqlite3* row_handle(RowConn* conn);

// Stops what runs now; pg_sleep and SQLite's own loops look at it. Cleared by row_resume.
void row_interrupt(RowConn* conn);
void row_resume(RowConn* conn);

// 0 means 15 digits, 3 the shortest text that reads back as the same number.
void row_set_extra_float_digits(RowConn* conn, int digits);

// Writes the current row into a buffer that lives until the next call on `conn`:
// for each column a type byte (SQLite's 1..5), a 32-bit size, and the bytes.
const uint8_t* row_encode(RowConn* conn, sqlite3_stmt* stmt, uint64_t* size);

// Microseconds since 1970 of a timestamp text; returns 0 where it is none.
int row_parse_time(const char* text, uint64_t size, int64_t* micros);
// Writes the canonical text, such as 2026-11-22 08:41:08.5+00:00, and returns its length.
int row_format_time(int64_t micros, char* out, int capacity);

#ifdef __cplusplus
}
#endif

#endif  // ROWSTORE_ROWSTORE_H_
