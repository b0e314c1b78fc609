// The C interface: turns exceptions into messages, and checks the plan's layout.
#include <cstdlib>
#include <cstring>
#include <memory>

#include "common/log.h"
#include "engine.h"
#include "kwdbts2/ts_engine.h"

using kwdbts::Bytes;
using kwdbts::Row;
using kwdbts::Value;

struct TsEngine {
  std::unique_ptr<kwdbts::Engine> impl;
};

struct TsCursor {
  std::vector<std::pair<uint64_t, Row>> rows;
  size_t at = 0;
};

namespace {

char* Message(const char* text) {
  const size_t size = std::strlen(text) + 1;
  auto* copy = static_cast<char*>(std::malloc(size));
  if (copy != nullptr) std::memcpy(copy, text, size);
  return copy;
}

template <typename Action>
char* Guard(Action&& action) {
  try {
    action();
    return nullptr;
  } catch (const std::exception& error) {
    kwdb::Log('E', "ts_api.cpp", error.what());
    return Message(error.what());
  }
}

Value FromC(const TsValue& value) {
  switch (value.type) {
    case TS_INT: return value.number;
    case TS_FLOAT: return value.real;
    case TS_TEXT: return std::string(value.bytes, value.size);
    case TS_BYTES: return Bytes{std::string(value.bytes, value.size)};
    default: return std::monostate{};
  }
}

Row RowOf(const TsPlan& plan) {
  Row row;
  for (uint64_t i = 0; i < plan.value_count; ++i) row.push_back(FromC(plan.values[i]));
  return row;
}

}  // namespace

extern "C" {

char* ts_engine_open(const char* store, const char* log_dir, int vgroups, TsEngine** out) {
  *out = nullptr;
  return Guard([&] {
    kwdb::OpenLog(log_dir);
    auto engine = std::make_unique<TsEngine>();
    engine->impl = std::make_unique<kwdbts::Engine>(store, vgroups);
    *out = engine.release();
  });
}

void ts_engine_close(TsEngine* engine) { delete engine; }

char* ts_open_table(TsEngine* engine, uint64_t database_id, uint64_t table_id, const char* schema) {
  return Guard([&] { engine->impl->OpenTable(database_id, table_id, schema); });
}

char* ts_drop_table(TsEngine* engine, uint64_t table_id) {
  return Guard([&] { engine->impl->DropTable(table_id); });
}

char* ts_execute(TsEngine* engine, const TsPlan* plan) {
  return Guard([&] {
#if TS_PLAN_ABI > 1
    if (plan->abi != TS_PLAN_ABI) throw kwdbts::Corruption("Invalid physical plan");
#endif
    switch (plan->kind) {
      case TS_PLAN_SCAN: {
        *plan->cursor = nullptr;
        auto cursor = std::make_unique<TsCursor>();
        cursor->rows = engine->impl->Scan(plan->table_id);
        *plan->cursor = cursor.release();
        return;
      }
      case TS_PLAN_INSERT: return engine->impl->Insert(plan->table_id, RowOf(*plan));
      case TS_PLAN_DELETE: return engine->impl->Delete(plan->table_id, plan->row_id);
      case TS_PLAN_UPDATE_TAGS: return engine->impl->UpdateTags(plan->table_id, plan->row_id, RowOf(*plan));
      default: throw kwdbts::Corruption("Invalid physical plan");
    }
  });
}

char* ts_sync(TsEngine* engine) {
  return Guard([&] { engine->impl->Sync(); });
}

int ts_cursor_valid(const TsCursor* cursor) { return cursor->at < cursor->rows.size() ? 1 : 0; }

void ts_cursor_next(TsCursor* cursor) { ++cursor->at; }

uint64_t ts_cursor_row_id(const TsCursor* cursor) { return cursor->rows[cursor->at].first; }

void ts_cursor_value(const TsCursor* cursor, uint64_t column, TsValue* out) {
  *out = TsValue{};
  const Value& value = cursor->rows[cursor->at].second.at(column);
  if (const auto* i = std::get_if<int64_t>(&value)) {
    out->type = TS_INT;
    out->number = *i;
  } else if (const auto* d = std::get_if<double>(&value)) {
    out->type = TS_FLOAT;
    out->real = *d;
  } else if (const auto* s = std::get_if<std::string>(&value)) {
    out->type = TS_TEXT;
    out->bytes = s->data();
    out->size = s->size();
  } else if (const auto* b = std::get_if<Bytes>(&value)) {
    out->type = TS_BYTES;
    out->bytes = b->data.data();
    out->size = b->data.size();
  }
}

void ts_cursor_close(TsCursor* cursor) { delete cursor; }

void ts_free_error(char* message) { std::free(message); }

}  // extern "C"
