#include "common/file_util.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

namespace kwdb {

namespace fs = std::filesystem;

IoError::IoError(const std::string& what, const std::string& path)
    : std::runtime_error("filesystem error: " + what + ": " + std::strerror(errno) + " [" + path + "]") {}

File::File(const std::string& path, int flags)
    : fd_(::open(path.c_str(), flags | O_CLOEXEC, 0640)), path_(path) {
  if (fd_ < 0) throw IoError("cannot open", path);
}

File::~File() {
  if (fd_ >= 0) ::close(fd_);
}

File::File(File&& other) noexcept : fd_(std::exchange(other.fd_, -1)), path_(std::move(other.path_)) {}

File& File::operator=(File&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(path_, other.path_);
  return *this;
}

void File::Append(const std::string& bytes) const {
  size_t done = 0;
  while (done < bytes.size()) {
    ssize_t n = ::write(fd_, bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw IoError("cannot write", path_);
    done += static_cast<size_t>(n);
  }
}

void File::Sync() const {
  if (::fdatasync(fd_) != 0) throw IoError("cannot sync", path_);
}

void File::Truncate(uint64_t size) const {
  if (::ftruncate(fd_, static_cast<off_t>(size)) != 0) throw IoError("cannot truncate", path_);
}

uint64_t File::Size() const {
  struct stat info{};
  if (::fstat(fd_, &info) != 0) throw IoError("cannot stat", path_);
  return static_cast<uint64_t>(info.st_size);
}

bool Exists(const std::string& path) { return fs::exists(path); }

void MakeDirs(const std::string& path) { fs::create_directories(path); }

std::string ReadAll(const std::string& path) {
  File file(path, O_RDONLY);
  std::string bytes;
  char buffer[65536];
  for (;;) {
    ssize_t n = ::read(file.fd(), buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw IoError("cannot read", path);
    if (n == 0) return bytes;
    bytes.append(buffer, static_cast<size_t>(n));
  }
}

void WriteAtomic(const std::string& path, const std::string& bytes) {
  const std::string temporary = path + ".tmp";
  {
    File file(temporary, O_WRONLY | O_CREAT | O_TRUNC);
    file.Append(bytes);
    file.Sync();
  }
  fs::rename(temporary, path);
}

}  // namespace kwdb
