#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "codec.h"
#include "common/file_util.h"

namespace kwdbts {

/// One change of one row: `values` are the metrics, empty when `deleted`.
struct Change {
  uint64_t database_id = 0;
  uint64_t table_id = 0;
  uint32_t entity = 0;
  int64_t timestamp_ms = 0;
  bool deleted = false;
  Row values;
};

/// A directory vg_00N with block files, and its write-ahead log. A change goes to the log first;
/// a checkpoint moves it to the block file of its table and partition.
class VGroup {
 public:
  VGroup(const std::string& tsdb, int number);

  void Add(const Change& change);
  void Sync();
  void Checkpoint();
  /// Calls `apply` for every change of the table, oldest first.
  void Replay(uint64_t table_id, const std::function<void(const Change&)>& apply) const;
  void Drop(uint64_t table_id);

 private:
  std::string BlockPath(const Change& change) const;

  std::string dir_;
  kwdb::File wal_;
  std::vector<Change> pending_;  // in the log, not yet in a block file
  bool dirty_ = false;
};

}  // namespace kwdbts
