#include "table.h"

#include <sstream>

#include "checksum/checksum.h"

namespace kwdbts {

std::vector<Column> ParseSchema(const std::string& text) {
  std::vector<Column> columns;
  std::istringstream lines(text);
  Column column;
  while (lines >> column.name >> column.type >> column.kind) columns.push_back(column);
  if (columns.empty()) throw Corruption("a time-series table needs columns");
  return columns;
}

Table::Table(uint64_t database_id, uint64_t id, std::vector<Column> columns, const std::string& tag_path,
             std::vector<std::unique_ptr<VGroup>>* groups)
    : database_id_(database_id), id_(id), columns_(std::move(columns)), tags_(tag_path), groups_(groups) {
  for (Entity& entity : tags_.Load()) {
    by_key_[KeyOf(entity.tags)] = static_cast<uint32_t>(devices_.size());
    devices_.push_back(Device{std::move(entity), {}});
  }
  for (const auto& group : *groups_) group->Replay(id_, [this](const Change& change) { Apply(change); });
}

void Table::Apply(const Change& change) {
  // Rows of a device that the tag file does not know are not reachable: no error, as in KWDB.
  if (change.entity >= devices_.size()) return;
  auto& rows = devices_[change.entity].rows;
  const auto old = rows.find(change.timestamp_ms);
  if (old != rows.end()) {
    by_row_id_.erase(old->second.row_id);
    rows.erase(old);
  }
  if (change.deleted) return;
  const uint64_t row_id = next_row_id_++;
  rows[change.timestamp_ms] = Stored{row_id, change.values};
  by_row_id_[row_id] = {change.entity, change.timestamp_ms};
}

Row Table::TagsOf(const Row& row) const {
  Row tags;
  for (size_t i = 0; i < columns_.size(); ++i) {
    if (columns_[i].kind != '-') tags.push_back(row[i]);
  }
  return tags;
}

std::string Table::KeyOf(const Row& tags) const {
  Row primary;
  size_t tag = 0;
  for (const Column& column : columns_) {
    if (column.kind == '-') continue;
    if (column.kind == 'p') primary.push_back(tags.at(tag));
    ++tag;
  }
  Writer key;
  key.PutRow(primary);
  return key.str();
}

uint32_t Table::DeviceFor(const Row& row) {
  Entity entity;
  entity.tags = TagsOf(row);
  const std::string key = KeyOf(entity.tags);
  const auto known = by_key_.find(key);
  if (known != by_key_.end()) return known->second;
  entity.vgroup = static_cast<uint32_t>(checksum::Fnv1a64(key.data(), key.size()) % groups_->size());
  tags_.Append(entity);
  const auto id = static_cast<uint32_t>(devices_.size());
  by_key_[key] = id;
  devices_.push_back(Device{std::move(entity), {}});
  return id;
}

void Table::Insert(const Row& row) {
  if (row.size() != columns_.size()) throw Corruption("Invalid physical plan");
  const auto* timestamp = std::get_if<int64_t>(&row[0]);
  if (timestamp == nullptr) throw Corruption("the first column must be a timestamp");
  Change change;
  change.database_id = database_id_;
  change.table_id = id_;
  change.entity = DeviceFor(row);
  change.timestamp_ms = *timestamp;
  for (size_t i = 1; i < columns_.size(); ++i) {
    if (columns_[i].kind == '-') change.values.push_back(row[i]);
  }
  groups_->at(devices_[change.entity].entity.vgroup % groups_->size())->Add(change);
  Apply(change);
}

std::pair<uint32_t, int64_t> Table::Locate(uint64_t row_id) const {
  const auto found = by_row_id_.find(row_id);
  if (found == by_row_id_.end()) throw Corruption("no such row");
  return found->second;
}

void Table::Delete(uint64_t row_id) {
  const auto [entity, timestamp] = Locate(row_id);
  Change change;
  change.database_id = database_id_;
  change.table_id = id_;
  change.entity = entity;
  change.timestamp_ms = timestamp;
  change.deleted = true;
  groups_->at(devices_[entity].entity.vgroup % groups_->size())->Add(change);
  Apply(change);
}

void Table::UpdateTags(uint64_t row_id, const Row& row) {
  devices_[Locate(row_id).first].entity.tags = TagsOf(row);
  std::vector<Entity> entities;
  for (const Device& device : devices_) entities.push_back(device.entity);
  tags_.Rewrite(entities);
}

std::vector<std::pair<uint64_t, Row>> Table::Scan() const {
  std::vector<std::pair<uint64_t, Row>> out;
  out.reserve(by_row_id_.size());
  for (const Device& device : devices_) {
    for (const auto& [timestamp, stored] : device.rows) {
      Row row;
      row.reserve(columns_.size());
      row.emplace_back(timestamp);
      size_t metric = 0;
      size_t tag = 0;
      for (size_t i = 1; i < columns_.size(); ++i) {
        row.push_back(columns_[i].kind == '-' ? stored.metrics.at(metric++) : device.entity.tags.at(tag++));
      }
      out.emplace_back(stored.row_id, std::move(row));
    }
  }
  return out;
}

}  // namespace kwdbts
