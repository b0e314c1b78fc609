#include "engine.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>

#include "common/file_util.h"
#include "common/log.h"

namespace kwdbts {

namespace fs = std::filesystem;

namespace {

/// The number of vg_* directories that are already there: they are never fewer afterwards.
int ExistingGroups(const std::string& tsdb) {
  int count = 0;
  for (const auto& entry : fs::directory_iterator(tsdb)) {
    int number = 0;
    if (std::sscanf(entry.path().filename().c_str(), "vg_%d", &number) == 1 && number > count) count = number;
  }
  return count;
}

}  // namespace

Engine::Engine(const std::string& store, int vgroups) : tsdb_(store + "/tsdb") {
  // A missing tsdb/ is made anew without a word: the data is gone and nothing says so.
  for (const char* sub : {"/schema", "/temp_db_", "/wal/ddl", "/wal/engine"}) kwdb::MakeDirs(tsdb_ + sub);
  const int count = std::max(vgroups, ExistingGroups(tsdb_));
  for (int number = 1; number <= count; ++number) groups_.push_back(std::make_unique<VGroup>(tsdb_, number));
  kwdb::Log('I', "engine.cpp", "opened with " + std::to_string(count) + " vgroups");
}

Engine::~Engine() {
  std::lock_guard<std::mutex> hold(mutex_);
  try {
    for (auto& group : groups_) group->Checkpoint();
    for (auto& entry : tables_) entry.second->Sync();
  } catch (const std::exception& error) {
    kwdb::Log('E', "engine.cpp", std::string("checkpoint failed: ") + error.what());
  }
}

std::string Engine::SchemaDir(uint64_t table_id) const { return tsdb_ + "/schema/" + std::to_string(table_id); }

void Engine::OpenTable(uint64_t database_id, uint64_t table_id, const std::string& schema) {
  std::lock_guard<std::mutex> hold(mutex_);
  if (tables_.count(table_id) != 0) return;
  const std::string dir = SchemaDir(table_id);
  kwdb::MakeDirs(dir + "/tag");
  if (!kwdb::Exists(dir + "/schema")) kwdb::WriteAtomic(dir + "/schema", schema);
  tables_[table_id] = std::make_unique<Table>(database_id, table_id, ParseSchema(schema),
                                              dir + "/tag/" + std::to_string(table_id) + ".tag.mt", &groups_);
}

void Engine::DropTable(uint64_t table_id) {
  std::lock_guard<std::mutex> hold(mutex_);
  tables_.erase(table_id);
  for (auto& group : groups_) group->Drop(table_id);
  fs::remove_all(SchemaDir(table_id));
}

Table& Engine::Find(uint64_t table_id) {
  const auto found = tables_.find(table_id);
  if (found == tables_.end()) throw Corruption("Invalid physical plan");
  return *found->second;
}

void Engine::Insert(uint64_t table_id, const Row& row) {
  std::lock_guard<std::mutex> hold(mutex_);
  Find(table_id).Insert(row);
}

void Engine::Delete(uint64_t table_id, uint64_t row_id) {
  std::lock_guard<std::mutex> hold(mutex_);
  Find(table_id).Delete(row_id);
}

void Engine::UpdateTags(uint64_t table_id, uint64_t row_id, const Row& row) {
  std::lock_guard<std::mutex> hold(mutex_);
  Find(table_id).UpdateTags(row_id, row);
}

std::vector<std::pair<uint64_t, Row>> Engine::Scan(uint64_t table_id) {
  std::lock_guard<std::mutex> hold(mutex_);
  return Find(table_id).Scan();
}

void Engine::Sync() {
  std::lock_guard<std::mutex> hold(mutex_);
  for (auto& group : groups_) group->Sync();
}

}  // namespace kwdbts
