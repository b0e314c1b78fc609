#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "codec.h"
#include "common/file_util.h"

namespace kwdbts {

/// A device: its tags and the vgroup that holds its rows. Its id is its place in the file.
struct Entity {
  uint32_t vgroup = 0;
  Row tags;
};

/// The tags of one table, in a mapped file of fixed size that is edited in place.
/// As with KWDB's own tag files, neither size nor mtime tells that the content changed: whoever
/// copies by those two misses new devices, and their rows are gone in the copy.
class TagFile {
 public:
  explicit TagFile(const std::string& path);
  ~TagFile();
  TagFile(const TagFile&) = delete;
  TagFile& operator=(const TagFile&) = delete;

  std::vector<Entity> Load() const;
  void Append(const Entity& entity);
  void Rewrite(const std::vector<Entity>& entities);
  void Sync() const;

 private:
  void Map(uint64_t size);
  void Unmap();

  kwdb::File file_;
  char* memory_ = nullptr;
  uint64_t size_ = 0;
};

}  // namespace kwdbts
