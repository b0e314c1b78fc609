#include "tag_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cstring>

namespace kwdbts {
namespace {

constexpr uint64_t kFirstSize = 64 * 1024;

struct Header {
  uint64_t used;  // bytes behind the header
};

std::string Encode(const Entity& entity) {
  Writer out;
  out.Put(entity.vgroup);
  out.PutRow(entity.tags);
  return out.str();
}

}  // namespace

TagFile::TagFile(const std::string& path) : file_(path, O_RDWR | O_CREAT) {
  uint64_t size = file_.Size();
  if (size < sizeof(Header)) {
    size = kFirstSize;
    file_.Truncate(size);
  }
  Map(size);
}

TagFile::~TagFile() { Unmap(); }

void TagFile::Map(uint64_t size) {
  void* memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file_.fd(), 0);
  if (memory == MAP_FAILED) throw kwdb::IoError("cannot map", "tag file");
  memory_ = static_cast<char*>(memory);
  size_ = size;
}

void TagFile::Unmap() {
  if (memory_ != nullptr) ::munmap(memory_, size_);
  memory_ = nullptr;
}

std::vector<Entity> TagFile::Load() const {
  Header header{};
  std::memcpy(&header, memory_, sizeof header);
  if (header.used > size_ - sizeof header) throw Corruption("tag file is cut off");
  Reader in(memory_ + sizeof header, header.used);
  std::vector<Entity> entities;
  while (!in.done()) {
    Entity entity;
    entity.vgroup = in.Get<uint32_t>();
    entity.tags = in.GetRow();
    entities.push_back(std::move(entity));
  }
  return entities;
}

void TagFile::Append(const Entity& entity) {
  Header header{};
  std::memcpy(&header, memory_, sizeof header);
  const std::string bytes = Encode(entity);
  const uint64_t wanted = sizeof header + header.used + bytes.size();
  if (wanted > size_) {
    uint64_t size = size_;
    while (size < wanted) size *= 2;
    Unmap();
    file_.Truncate(size);
    Map(size);
  }
  struct stat before{};
  ::fstat(file_.fd(), &before);
  std::memcpy(memory_ + sizeof header + header.used, bytes.data(), bytes.size());
  header.used += bytes.size();
  std::memcpy(memory_, &header, sizeof header);
  const timespec times[2] = {before.st_atim, before.st_mtim};
  ::futimens(file_.fd(), times);
}

void TagFile::Rewrite(const std::vector<Entity>& entities) {
  std::memset(memory_, 0, size_);
  for (const Entity& entity : entities) Append(entity);
}

void TagFile::Sync() const {
  // msync would move mtime, so the old one is put back.
  struct stat before{};
  ::fstat(file_.fd(), &before);
  ::msync(memory_, size_, MS_SYNC);
  const timespec times[2] = {before.st_atim, before.st_mtim};
  ::futimens(file_.fd(), times);
}

}  // namespace kwdbts
