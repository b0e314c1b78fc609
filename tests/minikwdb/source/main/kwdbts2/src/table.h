#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "tag_file.h"
#include "vgroup.h"

namespace kwdbts {

struct Column {
  std::string name;
  std::string type;
  char kind = '-';  // '-' metric (the first is the timestamp), 't' tag, 'p' primary tag
};

std::vector<Column> ParseSchema(const std::string& text);

/// A time-series table in memory: devices, and for each its rows by time. A second row with the
/// same device and time replaces the first.
class Table {
 public:
  Table(uint64_t database_id, uint64_t id, std::vector<Column> columns, const std::string& tag_path,
        std::vector<std::unique_ptr<VGroup>>* groups);

  void Insert(const Row& row);
  void Delete(uint64_t row_id);
  void UpdateTags(uint64_t row_id, const Row& row);
  void Sync() const { tags_.Sync(); }
  size_t column_count() const { return columns_.size(); }

  /// All rows, each with its id, in the order of the declared columns.
  std::vector<std::pair<uint64_t, Row>> Scan() const;

 private:
  struct Stored {
    uint64_t row_id = 0;
    Row metrics;
  };
  struct Device {
    Entity entity;
    std::map<int64_t, Stored> rows;
  };

  Row TagsOf(const Row& row) const;
  std::string KeyOf(const Row& tags) const;
  uint32_t DeviceFor(const Row& row);
  void Apply(const Change& change);
  std::pair<uint32_t, int64_t> Locate(uint64_t row_id) const;

  uint64_t database_id_;
  uint64_t id_;
  std::vector<Column> columns_;
  TagFile tags_;
  std::vector<std::unique_ptr<VGroup>>* groups_;
  std::vector<Device> devices_;
  std::unordered_map<std::string, uint32_t> by_key_;
  std::unordered_map<uint64_t, std::pair<uint32_t, int64_t>> by_row_id_;
  uint64_t next_row_id_ = 1;
};

}  // namespace kwdbts
