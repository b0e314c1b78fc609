#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace kwdb {

/// An I/O failure, with the system's reason and the path in its text.
class IoError : public std::runtime_error {
 public:
  IoError(const std::string& what, const std::string& path);
};

/// Owns a file descriptor.
class File {
 public:
  File() = default;
  File(const std::string& path, int flags);
  ~File();
  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  int fd() const { return fd_; }
  bool is_open() const { return fd_ >= 0; }
  void Append(const std::string& bytes) const;
  void Sync() const;
  void Truncate(uint64_t size) const;
  uint64_t Size() const;

 private:
  int fd_ = -1;
  std::string path_;
};

bool Exists(const std::string& path);
void MakeDirs(const std::string& path);
std::string ReadAll(const std::string& path);
/// Writes under a temporary name and renames: a reader sees the old or the new text, never half.
void WriteAtomic(const std::string& path, const std::string& bytes);

}  // namespace kwdb
