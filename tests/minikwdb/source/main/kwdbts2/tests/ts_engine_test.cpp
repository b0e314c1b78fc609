// A store's life: rows, a repeated key, a delete, tags, a crash and a reopening.
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "common/file_util.h"
#include "engine.h"
#include "ts_format.h"
#include "ts_version.h"

namespace {

namespace fs = std::filesystem;

void Check(bool ok, const char* what, int line) {
  if (ok) return;
  std::fprintf(stderr, "line %d: %s\n", line, what);
  std::exit(1);
}
#define CHECK(condition) Check((condition), #condition, __LINE__)

constexpr const char* kSchema = "ts TIMESTAMPTZ -\nv FLOAT8 -\ndev INT4 p\nsite VARCHAR t\n";

kwdbts::Row MakeRow(int64_t ts, double v, int64_t dev, const std::string& site) {
  return {ts, v, dev, site};
}

void RowsSurvive(const std::string& store) {
  {
    kwdbts::Engine engine(store, 2);
    engine.OpenTable(80, 1, kSchema);
    engine.Insert(1, MakeRow(1000, 1.5, 1, "a"));
    engine.Insert(1, MakeRow(1000, 2.5, 1, "a"));  // the same key replaces
    engine.Insert(1, MakeRow(-1, 3.5, 2, "b"));
    CHECK(engine.Scan(1).size() == 2);
    engine.Delete(1, engine.Scan(1).back().first);
    engine.Insert(1, MakeRow(2000, 4.5, 3, "c"));
    engine.Sync();
    fs::remove_all(store + ".crash");
    fs::copy(store, store + ".crash", fs::copy_options::recursive);  // as after kill -9
  }
  for (const std::string& path : {store, store + ".crash"}) {
    kwdbts::Engine engine(path, 4);  // more groups than before
    engine.OpenTable(80, 1, kSchema);
    const auto rows = engine.Scan(1);
    CHECK(rows.size() == 2);
    CHECK(std::get<double>(rows[0].second[1]) == 2.5);
    CHECK(fs::exists(path + "/tsdb/vg_004"));
  }
}

void NewerStoreIsRefused(const std::string& store) {
  kwdb::File log(store + "/tsdb/vg_001/TSVERSION-000001", 01 | 02000);  // O_WRONLY | O_APPEND
  kwdbts::Writer record;
  record.Put<uint8_t>(kwdbts::kNewestUpdateType + 1);
  record.PutText("vgroup");
  log.Append(record.str());
  bool refused = false;
  try {
    kwdbts::Engine engine(store, 2);
  } catch (const kwdbts::Corruption&) {
    refused = true;
  }
  CHECK(refused);
}

void LostDirectoryIsSilent(const std::string& store) {
  fs::remove_all(store + "/tsdb");
  kwdbts::Engine engine(store, 2);
  engine.OpenTable(80, 1, kSchema);
  CHECK(engine.Scan(1).empty());
}

}  // namespace

int main() {
  std::string dir = (fs::temp_directory_path() / "ts_engine_test.XXXXXX").string();
  CHECK(::mkdtemp(dir.data()) != nullptr);
  const std::string store = dir + "/store";
  RowsSurvive(store);
  NewerStoreIsRefused(store);
  LostDirectoryIsSilent(store);
  fs::remove_all(dir);
  std::puts("ok");
  return 0;
}
