#include "ts_version.h"

#include <fcntl.h>

#include "codec.h"
#include "common/file_util.h"
#include "common/log.h"
#include "ts_format.h"

namespace kwdbts {
namespace {

constexpr int kCreated = 1;
constexpr const char* kFile = "ts_version.cpp";

std::string UpdateRecord(int type) {
  Writer out;
  out.Put<uint8_t>(static_cast<uint8_t>(type));
  out.PutText("vgroup");
  return out.str();
}

int NewestType(const std::string& log) {
  Reader in(log.data(), log.size());
  int newest = 0;
  while (!in.done()) {
    const int type = in.Get<uint8_t>();
    if (type > kNewestUpdateType) {
      kwdb::Log('E', kFile, "Unknown version update type: " + std::to_string(type));
      throw Corruption("can not decode update log record");
    }
    in.GetText();
    if (type > newest) newest = type;
  }
  return newest;
}

}  // namespace

void RecoverVersion(const std::string& dir) {
  const std::string current = dir + "/CURRENT";
  if (!kwdb::Exists(current)) {
    kwdb::WriteAtomic(dir + "/TSVERSION-000001", UpdateRecord(kCreated));
    kwdb::WriteAtomic(current, "TSVERSION-000001\n");
  }
  std::string name = kwdb::ReadAll(current);
  while (!name.empty() && name.back() == '\n') name.pop_back();
  const std::string path = dir + "/" + name;
  try {
    if (NewestType(kwdb::ReadAll(path)) < kNewestUpdateType) {
      kwdb::File log(path, O_WRONLY | O_APPEND);
      log.Append(UpdateRecord(kNewestUpdateType));
      log.Sync();
    }
  } catch (const Corruption& error) {
    kwdb::Log('E', kFile, error.what());
    kwdb::Log('E', kFile, "recover vgroup version failed: " + dir);
    throw;
  }
}

}  // namespace kwdbts
