// Time-series tables as SQLite virtual tables: SQLite plans, joins and aggregates, libkwdbts2 stores.
#include "vtab.h"

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <vector>

#include "kwdbts2/ts_engine.h"

namespace {

std::mutex g_mutex;
std::condition_variable g_opened;
TsEngine* g_engine = nullptr;

/// The engine opens after SQL is already served, so an early statement waits a while.
TsEngine* WaitForEngine() {
  std::unique_lock<std::mutex> hold(g_mutex);
  g_opened.wait_for(hold, std::chrono::seconds(30), [] { return g_engine != nullptr; });
  return g_engine;
}

struct Column {
  std::string name;
  std::string type;
  char kind;
  bool is_time() const { return type.rfind("TIMESTAMP", 0) == 0; }
  bool is_int() const { return type.rfind("INT", 0) == 0 || type == "BOOL"; }
  bool is_float() const { return type.rfind("FLOAT", 0) == 0; }
  bool is_bytes() const { return type.find("BYTES") != std::string::npos; }
};

struct TsTable : sqlite3_vtab {
  uint64_t database_id = 0;
  uint64_t table_id = 0;
  std::string schema;
  std::vector<Column> columns;
};

struct Cursor : sqlite3_vtab_cursor {
  TsCursor* rows = nullptr;
};

int Fail(sqlite3_vtab* vtab, const std::string& message) {
  sqlite3_free(vtab->zErrMsg);
  vtab->zErrMsg = sqlite3_mprintf("%s", message.c_str());
  return SQLITE_ERROR;
}

int FailFrom(sqlite3_vtab* vtab, char* message) {
  const std::string text = std::string("XX000|") + message;
  ts_free_error(message);
  return Fail(vtab, text);
}

/// Opens the table in the engine: only a statement that touches it does so.
TsEngine* Ready(TsTable* table, int* code) {
  TsEngine* engine = WaitForEngine();
  *code = SQLITE_OK;
  if (engine == nullptr) {
    *code = Fail(table, "XX000|the time-series engine is not open");
    return nullptr;
  }
  if (char* error = ts_open_table(engine, table->database_id, table->table_id, table->schema.c_str())) {
    *code = FailFrom(table, error);
    return nullptr;
  }
  return engine;
}

std::string Unquote(const char* argument) {
  std::string text(argument);
  if (text.size() >= 2 && text.front() == '\'') text = text.substr(1, text.size() - 2);
  return text;
}

/// Arguments: database id, table id, columns for the engine ("name type kind;..."), columns for SQLite.
int Connect(sqlite3* db, void*, int count, const char* const* args, sqlite3_vtab** out, char** error) {
  if (count != 7) {
    *error = sqlite3_mprintf("kwts needs four arguments");
    return SQLITE_ERROR;
  }
  const std::string declared = "CREATE TABLE x(" + Unquote(args[6]) + ")";
  const int code = sqlite3_declare_vtab(db, declared.c_str());
  if (code != SQLITE_OK) {
    *error = sqlite3_mprintf("%s", sqlite3_errmsg(db));
    return code;
  }
  auto table = std::make_unique<TsTable>();
  table->pModule = nullptr;
  table->nRef = 0;
  table->zErrMsg = nullptr;
  table->database_id = std::strtoull(args[3], nullptr, 10);
  table->table_id = std::strtoull(args[4], nullptr, 10);
  table->schema = Unquote(args[5]);
  for (char& c : table->schema) {
    if (c == ';') c = '\n';
  }
  std::istringstream lines(table->schema);
  Column column;
  while (lines >> column.name >> column.type >> column.kind) table->columns.push_back(column);
  *out = table.release();
  return SQLITE_OK;
}

int Disconnect(sqlite3_vtab* vtab) {
  delete static_cast<TsTable*>(vtab);
  return SQLITE_OK;
}

int Destroy(sqlite3_vtab* vtab) {
  auto* table = static_cast<TsTable*>(vtab);
  if (TsEngine* engine = WaitForEngine()) {
    if (char* error = ts_drop_table(engine, table->table_id)) return FailFrom(vtab, error);
  }
  return Disconnect(vtab);
}

int BestIndex(sqlite3_vtab*, sqlite3_index_info* info) {
  info->estimatedCost = 1e6;
  return SQLITE_OK;
}

int Open(sqlite3_vtab*, sqlite3_vtab_cursor** out) {
  *out = new Cursor();
  return SQLITE_OK;
}

int Close(sqlite3_vtab_cursor* base) {
  auto* cursor = static_cast<Cursor*>(base);
  if (cursor->rows != nullptr) ts_cursor_close(cursor->rows);
  delete cursor;
  return SQLITE_OK;
}

int Filter(sqlite3_vtab_cursor* base, int, const char*, int, sqlite3_value**) {
  auto* cursor = static_cast<Cursor*>(base);
  auto* table = static_cast<TsTable*>(base->pVtab);
  if (cursor->rows != nullptr) ts_cursor_close(cursor->rows);
  cursor->rows = nullptr;
  int code = SQLITE_OK;
  TsEngine* engine = Ready(table, &code);
  if (engine == nullptr) return code;
  TsPlan plan{};
  plan.abi = TS_PLAN_ABI;
  plan.kind = TS_PLAN_SCAN;
  plan.table_id = table->table_id;
  plan.cursor = &cursor->rows;
  if (char* error = ts_execute(engine, &plan)) return FailFrom(table, error);
  return SQLITE_OK;
}

int Next(sqlite3_vtab_cursor* base) {
  ts_cursor_next(static_cast<Cursor*>(base)->rows);
  return SQLITE_OK;
}

int Eof(sqlite3_vtab_cursor* base) { return ts_cursor_valid(static_cast<Cursor*>(base)->rows) == 0 ? 1 : 0; }

int RowId(sqlite3_vtab_cursor* base, sqlite3_int64* out) {
  *out = static_cast<sqlite3_int64>(ts_cursor_row_id(static_cast<Cursor*>(base)->rows));
  return SQLITE_OK;
}

int ColumnValue(sqlite3_vtab_cursor* base, sqlite3_context* ctx, int index) {
  const auto* table = static_cast<TsTable*>(base->pVtab);
  TsValue value{};
  ts_cursor_value(static_cast<Cursor*>(base)->rows, static_cast<uint64_t>(index), &value);
  switch (value.type) {
    case TS_INT:
      if (table->columns[static_cast<size_t>(index)].is_time()) {
        char text[64];
        sqlite3_result_text(ctx, text, row_format_time(value.number * 1000, text, sizeof text), SQLITE_TRANSIENT);
      } else {
        sqlite3_result_int64(ctx, value.number);
      }
      break;
    case TS_FLOAT: sqlite3_result_double(ctx, value.real); break;
    case TS_TEXT: sqlite3_result_text(ctx, value.bytes, static_cast<int>(value.size), SQLITE_TRANSIENT); break;
    case TS_BYTES: sqlite3_result_blob(ctx, value.bytes, static_cast<int>(value.size), SQLITE_TRANSIENT); break;
    default: sqlite3_result_null(ctx);
  }
  return SQLITE_OK;
}

TsValue Borrow(int32_t type, sqlite3_value* value) {
  TsValue out{};
  out.type = type;
  out.bytes = static_cast<const char*>(type == TS_TEXT ? static_cast<const void*>(sqlite3_value_text(value)) : sqlite3_value_blob(value));
  out.size = static_cast<uint64_t>(sqlite3_value_bytes(value));
  if (out.size == 0) out.bytes = "";
  return out;
}

/// One cell in the column's own type; false with a message where it does not fit.
bool Convert(const Column& column, sqlite3_value* value, TsValue* out, std::string* error) {
  *out = TsValue{};
  const int type = sqlite3_value_type(value);
  if (type == SQLITE_NULL) {
    *error = "23502|null value in column \"" + column.name + "\" violates not-null constraint";
    return column.kind != 'p';
  }
  const std::string text = type == SQLITE_BLOB ? "" : reinterpret_cast<const char*>(sqlite3_value_text(value));
  *error = "22P02|could not parse \"" + text + "\" as type " + column.type;
  const int numeric = sqlite3_value_numeric_type(value);
  if (column.is_time()) {
    int64_t micros = 0;
    out->type = TS_INT;
    out->number = sqlite3_value_int64(value);
    if (numeric == SQLITE_INTEGER) return true;
    if (row_parse_time(text.data(), text.size(), &micros) == 0) return false;
    out->number = micros / 1000 - (micros % 1000 < 0 ? 1 : 0);
    return true;
  }
  if (column.is_int()) {
    out->type = TS_INT;
    out->number = sqlite3_value_int64(value);
    return numeric == SQLITE_INTEGER;
  }
  if (column.is_float()) {
    out->type = TS_FLOAT;
    out->real = sqlite3_value_double(value);
    return numeric == SQLITE_INTEGER || numeric == SQLITE_FLOAT;
  }
  *out = Borrow(column.is_bytes() ? TS_BYTES : TS_TEXT, value);
  return true;
}

int Update(sqlite3_vtab* vtab, int count, sqlite3_value** args, sqlite3_int64*) {
  auto* table = static_cast<TsTable*>(vtab);
  int code = SQLITE_OK;
  std::vector<TsValue> values(count > 1 ? static_cast<size_t>(count - 2) : 0);
  for (size_t i = 0; i < values.size(); ++i) {
    std::string error;
    if (!Convert(table->columns[i], args[i + 2], &values[i], &error)) return Fail(vtab, error);
    if (i == 0 && values[0].type == TS_NULL) return Fail(vtab, error);
  }
  TsEngine* engine = Ready(table, &code);
  if (engine == nullptr) return code;
  TsPlan plan{};
  plan.abi = TS_PLAN_ABI;
  plan.table_id = table->table_id;
  plan.values = values.data();
  plan.value_count = values.size();
  if (count == 1) {
    plan.kind = TS_PLAN_DELETE;
    plan.row_id = static_cast<uint64_t>(sqlite3_value_int64(args[0]));
  } else if (sqlite3_value_type(args[0]) == SQLITE_NULL) {
    plan.kind = TS_PLAN_INSERT;
  } else {
    plan.kind = TS_PLAN_UPDATE_TAGS;
    plan.row_id = static_cast<uint64_t>(sqlite3_value_int64(args[0]));
  }
  if (char* error = ts_execute(engine, &plan)) return FailFrom(vtab, error);
  return SQLITE_OK;
}

int Begin(sqlite3_vtab*) { return SQLITE_OK; }

int Sync(sqlite3_vtab* vtab) {
  TsEngine* engine = WaitForEngine();
  if (engine == nullptr) return SQLITE_OK;
  if (char* error = ts_sync(engine)) return FailFrom(vtab, error);
  return SQLITE_OK;
}

/// Time-series rows do not take part in transactions: what was inserted stays.
int Ignore(sqlite3_vtab*) { return SQLITE_OK; }

int Rename(sqlite3_vtab*, const char*) { return SQLITE_OK; }

sqlite3_module MakeModule() {
  sqlite3_module m{};
  m.iVersion = 1;
  m.xCreate = Connect;
  m.xConnect = Connect;
  m.xBestIndex = BestIndex;
  m.xDisconnect = Disconnect;
  m.xDestroy = Destroy;
  m.xOpen = Open;
  m.xClose = Close;
  m.xFilter = Filter;
  m.xNext = Next;
  m.xEof = Eof;
  m.xColumn = ColumnValue;
  m.xRowid = RowId;
  m.xUpdate = Update;
  m.xBegin = Begin;
  m.xSync = Sync;
  m.xCommit = Ignore;
  m.xRollback = Ignore;
  m.xRename = Rename;
  return m;
}

}  // namespace

extern "C" {

int vtab_register(RowConn* conn) {
  static const sqlite3_module module = MakeModule();
  return sqlite3_create_module_v2(row_handle(conn), "kwts", &module, nullptr, nullptr);
}

char* vtab_open_engine(const char* store, const char* log_dir, int vgroups) {
  TsEngine* engine = nullptr;
  if (char* error = ts_engine_open(store, log_dir, vgroups, &engine)) return error;
  std::lock_guard<std::mutex> hold(g_mutex);
  g_engine = engine;
  g_opened.notify_all();
  return nullptr;
}

void vtab_close_engine(void) {
  std::lock_guard<std::mutex> hold(g_mutex);
  ts_engine_close(g_engine);
  g_engine = nullptr;
}

}  // extern "C"
