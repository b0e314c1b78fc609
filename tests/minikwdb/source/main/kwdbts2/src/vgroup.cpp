#include "vgroup.h"

#include <fcntl.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>

#include "checksum/checksum.h"
#include "common/log.h"
#include "ts_format.h"
#include "ts_version.h"

namespace kwdbts {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kPartitionSeconds = 10 * 24 * 3600;
constexpr size_t kCheckpointChanges = 20000;

std::string GroupName(int number) {
  char name[16];
  std::snprintf(name, sizeof name, "vg_%03d", number);
  return name;
}

std::string Encode(const Change& change) {
  Writer body;
  body.Put(change.database_id);
  body.Put(change.table_id);
  body.Put(change.entity);
  body.Put(change.timestamp_ms);
  body.Put<uint8_t>(change.deleted ? 1 : 0);
  body.PutRow(change.values);
  Writer frame;
  frame.Put(checksum::Crc32c(body.str().data(), body.str().size()));
  frame.PutText(body.str());
  return frame.str();
}

/// Decodes records up to the end or to the first broken one (a write that a crash cut off).
/// Returns the number of good bytes.
size_t Decode(const std::string& bytes, const std::function<void(Change&&)>& apply) {
  Reader in(bytes.data(), bytes.size());
  size_t good = 0;
  try {
    while (!in.done()) {
      const auto crc = in.Get<uint32_t>();
      const std::string body = in.GetText();
      if (checksum::Crc32c(body.data(), body.size()) != crc) break;
      Reader fields(body.data(), body.size());
      Change change;
      change.database_id = fields.Get<uint64_t>();
      change.table_id = fields.Get<uint64_t>();
      change.entity = fields.Get<uint32_t>();
      change.timestamp_ms = fields.Get<int64_t>();
      change.deleted = fields.Get<uint8_t>() != 0;
      change.values = fields.GetRow();
      apply(std::move(change));
      good = bytes.size() - in.left();
    }
  } catch (const Corruption& error) {
    kwdb::Log('W', "vgroup.cpp", std::string("log ends in a broken record: ") + error.what());
  }
  return good;
}

}  // namespace

VGroup::VGroup(const std::string& tsdb, int number) : dir_(tsdb + "/" + GroupName(number)) {
  kwdb::MakeDirs(dir_);
  RecoverVersion(dir_);
  const std::string wal_dir = tsdb + "/wal/" + GroupName(number);
  kwdb::MakeDirs(wal_dir);
  const std::string path = wal_dir + "/kwdb_wal.log";
  wal_ = kwdb::File(path, O_RDWR | O_CREAT | O_APPEND);
  const size_t good = Decode(kwdb::ReadAll(path), [this](Change&& change) { pending_.push_back(std::move(change)); });
  wal_.Truncate(good);
  Checkpoint();
}

void VGroup::Add(const Change& change) {
  wal_.Append(Encode(change));
  pending_.push_back(change);
  dirty_ = true;
}

void VGroup::Sync() {
  if (dirty_) wal_.Sync();
  dirty_ = false;
  if (pending_.size() >= kCheckpointChanges) Checkpoint();
}

void VGroup::Checkpoint() {
  std::map<std::string, std::string> blocks;
  for (const Change& change : pending_) blocks[BlockPath(change)] += Encode(change);
  for (const auto& [path, bytes] : blocks) {
    kwdb::MakeDirs(fs::path(path).parent_path());
    kwdb::File block(path, O_WRONLY | O_CREAT | O_APPEND);
    block.Append(bytes);
    block.Sync();
  }
  // A crash before this line repeats the changes, which does no harm: they are keyed by time.
  wal_.Truncate(0);
  pending_.clear();
}

void VGroup::Replay(uint64_t table_id, const std::function<void(const Change&)>& apply) const {
  const std::string wanted = "t" + std::to_string(table_id) + kBlockSuffix;
  std::vector<std::string> paths;
  for (const auto& entry : fs::directory_iterator(dir_)) {
    const fs::path path = entry.path() / wanted;
    if (entry.is_directory() && fs::exists(path)) paths.push_back(path);
  }
  std::sort(paths.begin(), paths.end());
  for (const std::string& path : paths) Decode(kwdb::ReadAll(path), [&](Change&& change) { apply(change); });
  for (const Change& change : pending_) {
    if (change.table_id == table_id) apply(change);
  }
}

void VGroup::Drop(uint64_t table_id) {
  Checkpoint();
  for (const auto& entry : fs::directory_iterator(dir_)) {
    if (entry.is_directory()) fs::remove(entry.path() / ("t" + std::to_string(table_id) + kBlockSuffix));
  }
}

std::string VGroup::BlockPath(const Change& change) const {
  const int64_t seconds = change.timestamp_ms / 1000;
  int64_t start = seconds / kPartitionSeconds * kPartitionSeconds;
  if (start > seconds) start -= kPartitionSeconds;
  char partition[64];
  std::snprintf(partition, sizeof partition, "db%05llu_%+011lld", static_cast<unsigned long long>(change.database_id),
                static_cast<long long>(start));
  return dir_ + "/" + partition + "/t" + std::to_string(change.table_id) + kBlockSuffix;
}

}  // namespace kwdbts
