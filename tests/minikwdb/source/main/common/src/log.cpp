#include "common/log.h"

#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <ctime>
#include <filesystem>
#include <memory>
#include <mutex>

#include "common/file_util.h"

namespace kwdb {
namespace {

std::mutex g_mutex;
std::unique_ptr<File> g_file;

std::string UtcTime(const char* format) {
  const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  std::tm parts{};
  ::gmtime_r(&now, &parts);
  char text[64];
  return std::string(text, std::strftime(text, sizeof text, format, &parts));
}

}  // namespace

void OpenLog(const std::string& dir) {
  std::lock_guard<std::mutex> hold(g_mutex);
  MakeDirs(dir);
  const std::string name = "TsEngine." + UtcTime("%Y-%m-%dT%H_%M_%SZ") + "." + std::to_string(::getpid()) + ".log";
  g_file = std::make_unique<File>(dir + "/" + name, O_WRONLY | O_CREAT | O_APPEND);
  const std::string link = dir + "/TsEngine.log";
  std::filesystem::remove(link);
  std::filesystem::create_symlink(name, link);
}

void Log(char level, const char* file, const std::string& text) {
  std::lock_guard<std::mutex> hold(g_mutex);
  if (!g_file) return;
  g_file->Append(std::string(1, level) + UtcTime("%y%m%d %H:%M:%S") + " " + file + " " + text + "\n");
}

}  // namespace kwdb
