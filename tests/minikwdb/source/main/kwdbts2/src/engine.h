#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "table.h"

namespace kwdbts {

/// All of tsdb/ of one store. Thread-safe: one lock, because this is a miniature.
class Engine {
 public:
  Engine(const std::string& store, int vgroups);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  void OpenTable(uint64_t database_id, uint64_t table_id, const std::string& schema);
  void DropTable(uint64_t table_id);
  void Insert(uint64_t table_id, const Row& row);
  void Delete(uint64_t table_id, uint64_t row_id);
  void UpdateTags(uint64_t table_id, uint64_t row_id, const Row& row);
  std::vector<std::pair<uint64_t, Row>> Scan(uint64_t table_id);
  void Sync();

 private:
  Table& Find(uint64_t table_id);
  std::string SchemaDir(uint64_t table_id) const;

  std::mutex mutex_;
  std::string tsdb_;
  std::vector<std::unique_ptr<VGroup>> groups_;
  std::map<uint64_t, std::unique_ptr<Table>> tables_;
};

}  // namespace kwdbts
