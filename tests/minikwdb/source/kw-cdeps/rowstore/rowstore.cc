#include "rowstore.h"

#include <cstring>
#include <memory>

#include "internal.h"

// As rocksdb does: when it was compiled is in the library.
extern const char rowstore_build_date[] __attribute__((used)) = "rowstore_build_date:" __DATE__ " " __TIME__;

namespace {

void AppendCell(std::string* row, int type, const void* bytes, uint32_t size) {
  row->push_back(static_cast<char>(type));
  row->append(reinterpret_cast<const char*>(&size), sizeof size);
  row->append(static_cast<const char*>(bytes), size);
}

}  // namespace

extern "C" {

int row_open(const char* path, RowConn** out) {
  auto conn = std::make_unique<RowConn>();
  int code = sqlite3_open_v2(path, &conn->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_FULLMUTEX, nullptr);
  if (code == SQLITE_OK) {
    sqlite3_extended_result_codes(conn->db, 1);
    sqlite3_busy_timeout(conn->db, 5000);
    // FULL: a statement that was answered survives a crash of the process and of the machine.
    code = sqlite3_exec(conn->db, "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON",
                        nullptr, nullptr, nullptr);
  }
  // A word in double quotes is a name and never silently a text.
  if (code == SQLITE_OK) code = sqlite3_db_config(conn->db, SQLITE_DBCONFIG_DQS_DML, 0, static_cast<int*>(nullptr));
  if (code == SQLITE_OK) code = rowstore::AddFunctions(conn.get());
  if (code == SQLITE_OK) code = rowstore::AddAggregates(conn.get());
  *out = conn.release();
  return code;
}

void row_close(RowConn* conn) {
  if (conn == nullptr) return;
  sqlite3_close_v2(conn->db);
  delete conn;
}

sqlite3* row_handle(RowConn* conn) { return conn->db; }

void row_interrupt(RowConn* conn) {
  conn->interrupted = true;
  sqlite3_interrupt(conn->db);
}

void row_resume(RowConn* conn) { conn->interrupted = false; }

void row_set_extra_float_digits(RowConn* conn, int digits) { conn->extra_float_digits = digits; }

const uint8_t* row_encode(RowConn* conn, sqlite3_stmt* stmt, uint64_t* size) {
  std::string& row = conn->row;
  row.clear();
  const int columns = sqlite3_column_count(stmt);
  for (int i = 0; i < columns; ++i) {
    const int type = sqlite3_column_type(stmt, i);
    if (type == SQLITE_INTEGER) {
      const sqlite3_int64 value = sqlite3_column_int64(stmt, i);
      AppendCell(&row, type, &value, sizeof value);
    } else if (type == SQLITE_FLOAT) {
      const double value = sqlite3_column_double(stmt, i);
      AppendCell(&row, type, &value, sizeof value);
    } else if (type == SQLITE_NULL) {
      AppendCell(&row, type, "", 0);
    } else {
      const void* bytes = type == SQLITE_TEXT ? static_cast<const void*>(sqlite3_column_text(stmt, i)) : sqlite3_column_blob(stmt, i);
      const auto length = static_cast<uint32_t>(sqlite3_column_bytes(stmt, i));
      AppendCell(&row, type, length == 0 ? "" : bytes, length);
    }
  }
  *size = row.size();
  return reinterpret_cast<const uint8_t*>(row.data());
}

int row_parse_time(const char* text, uint64_t size, int64_t* micros) {
  return rowstore::ParseTime(std::string(text, size), micros) ? 1 : 0;
}

int row_format_time(int64_t micros, char* out, int capacity) {
  const std::string text = rowstore::FormatTime(micros);
  if (static_cast<int>(text.size()) >= capacity) return 0;
  std::memcpy(out, text.c_str(), text.size() + 1);
  return static_cast<int>(text.size());
}

}  // extern "C"
