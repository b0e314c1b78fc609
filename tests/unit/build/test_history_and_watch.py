from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

import pytest

from kwdb_build.build.history import BUILT, TYPICAL, BuildHistory, BuildRecord, CacheUse, Pace, mark_of
from kwdb_build.build.progress import Step
from kwdb_build.build.watch import Watch, parse_stats
from kwdb_build.console import Progress
from tests.unit.build.disks import remount

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.build.disks import Mount

RECORD = BuildRecord(
    when="2026-01-01T00:00:00Z", key="k", version="V3.1.0", recipe="kwdb-3.0", toolchain="t", build_type="Release",
    jobs=2, outcome="built", seconds=100.0, warm=False, marks={"compile:5": 40.0, "go:0": 60.0},
    cache=CacheUse(hits=1, misses=2, files=("a", "b")),
)

# As ccache 4.7 writes it.
STATS = """\
# /kwdb/src/gitee.com/kwbasedb/common/src/log.cpp
cache_miss
direct_cache_miss
local_storage_miss
local_storage_write
# /kwdb/src/gitee.com/kwbasedb/common/src/file_util.cpp
direct_cache_hit
local_storage_hit
# x.cc
local_storage_miss
preprocessed_cache_hit
remote_storage_hit
# CMakeCCompilerId.c
autoconf_test
"""


def test_what_ccache_says_of_a_build() -> None:
    use = parse_stats(STATS.splitlines())
    assert use == CacheUse(
        hits=2, misses=1, shared=1, files=("/kwdb/src/gitee.com/kwbasedb/common/src/log.cpp",)
    )
    assert str(use) == "2 of 3 C/C++ files from the cache"
    assert str(parse_stats([])) == ""


def test_builds_are_kept_and_read_back(tmp_path: Path) -> None:
    history = BuildHistory(tmp_path / "deep" / "builds.jsonl")
    assert history.all() == ()
    history.add(RECORD)
    with (tmp_path / "deep" / "builds.jsonl").open("a") as file:
        file.write('{"when": "cut o\n[]\n{}\n')
    later = dataclasses.replace(RECORD, outcome="failed")
    history.add(later)
    assert history.all() == (RECORD, later)


def test_a_line_that_a_full_disk_cut_off_takes_no_other_along(tmp_path: Path, mount: Mount) -> None:
    place = mount("size=8k")
    history = BuildHistory(place / "builds.jsonl")
    history.add(RECORD)
    while len((place / "builds.jsonl").read_bytes()) < 8192:
        history.add(RECORD)
    assert not (place / "builds.jsonl").read_bytes().endswith(b"\n")
    before = history.all()
    assert before[-1] == RECORD
    remount(place, "size=1m")
    later = dataclasses.replace(RECORD, outcome="failed")
    history.add(later)
    assert history.all() == (*before, later)


def test_the_file_of_builds_does_not_grow_without_end(tmp_path: Path) -> None:
    history = BuildHistory(tmp_path / "builds.jsonl")
    for number in range(410):
        history.add(dataclasses.replace(RECORD, key=str(number)))
    kept = history.all()
    assert 200 <= len(kept) <= 210
    assert kept[-1].key == "409"


def test_a_disk_that_is_full_does_not_spoil_a_build(tmp_path: Path) -> None:
    (tmp_path / "builds.jsonl").mkdir()
    BuildHistory(tmp_path / "builds.jsonl").add(RECORD)
    assert BuildHistory(tmp_path / "builds.jsonl").all() == ()


def test_the_build_most_alike_tells_the_time(tmp_path: Path) -> None:
    history = BuildHistory(tmp_path / "builds.jsonl")
    assert history.alike(RECORD) == ()
    warm = dataclasses.replace(RECORD, warm=True, seconds=10.0)
    other_jobs = dataclasses.replace(RECORD, jobs=8)
    failed = dataclasses.replace(RECORD, outcome="failed", seconds=1.0)
    newest = dataclasses.replace(RECORD, seconds=90.0)
    for record in (warm, RECORD, newest, other_jobs, failed):
        history.add(record)
    assert history.alike(RECORD) == (newest, RECORD, other_jobs, warm)
    assert history.alike(dataclasses.replace(RECORD, warm=True, version="V3.2.0"))[0] == warm


def test_the_first_build_of_a_machine_goes_by_one_of_another_machine(tmp_path: Path) -> None:
    history = BuildHistory(tmp_path / "builds.jsonl")
    first = dataclasses.replace(RECORD, recipe="kwdb-3.2", version="V3.2.1")
    [known] = history.alike(first)
    assert (known.outcome, known.recipe, known.warm) == (TYPICAL, "kwdb-3.2", False)
    times = list(known.marks.values())
    assert times == sorted(times)
    assert times[-1] < known.seconds
    assert {"configure:0", "compile:9", "go:0", "install:0"} < known.marks.keys()
    gaps = [later - earlier for earlier, later in zip([0.0, *times], [*times, known.seconds], strict=True)]
    assert max(gaps) < known.seconds / 5, "no long time without a mark"
    assert history.alike(dataclasses.replace(first, recipe="kwdb-2")) == (), "no other recipe tells anything"
    assert history.alike(first, "kwbase-test passed") == ()
    history.add(dataclasses.replace(first, outcome="failed"))
    assert history.alike(first) == (known,), "a failed one does not tell how long it takes"
    history.add(first)
    assert history.alike(first) == (first, known)
    texts = Texts()
    for past in (known, dataclasses.replace(known, outcome=BUILT)):
        watch = Watch(tmp_path, texts, [past])
        watch.line("-- Configuring done")
        watch.finish()
    assert [text.partition(" ")[0] for text in texts.texts] == ["perhaps", "about"]


def left(past: BuildRecord | None, reached: dict[str, float], elapsed: float) -> float | None:
    pace = Pace(*([past] if past else []))
    for mark, seconds in reached.items():
        pace.reach(mark, seconds)
    known = pace.left(elapsed)
    return None if known is None else known[1]


@pytest.mark.parametrize(
    ("mark", "elapsed", "expected"),
    [("compile:5", 40.0, 60.0), ("compile:5", 80.0, 120.0), ("go:0", 30.0, 20.0), ("compile:7", 50.0, None)],
)
def test_time_left_goes_by_the_last_build_and_by_the_speed_of_this_one(
    mark: str, elapsed: float, expected: float | None
) -> None:
    assert left(RECORD, {mark: elapsed}, elapsed) == expected


def test_time_left_never_grows_while_a_long_phase_goes_on() -> None:
    """A C++ dependency or Go's link can take minutes without another mark."""
    seen = [left(RECORD, {"compile:5": 40.0}, elapsed) for elapsed in (40.0, 45.0, 55.0, 60.0, 90.0, 900.0)]
    assert seen == [60.0, 55.0, 45.0, 40.0, 40.0, 40.0], "as the last build went on, but not beyond its next mark"
    assert left(RECORD, {"compile:5": 40.0, "go:0": 60.0}, 95.0) == 5.0
    assert left(RECORD, {"compile:5": 40.0, "go:0": 60.0}, 500.0) == 0.0


def test_a_mark_that_only_one_of_two_builds_met_does_not_hide_the_time_left() -> None:
    assert left(RECORD, {"compile:5": 40.0, "native:9": 41.0}, 42.0) == 58.0
    assert left(RECORD, {"go:0": 60.0, "compile:5": 61.0}, 62.0) == 38.0, "builds at the same time: the farthest counts"


def test_a_release_after_a_patch_is_not_taken_for_a_patch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have caches; what these spare shows only while the build runs (times of V3.2.0 after a patch of V3.2.1)."""
    patch = dataclasses.replace(
        RECORD, seconds=51.0, warm=True, marks={"configure:0": 0.9, "compile:3": 2.3, "compile:5": 3.8, "go:0": 8.6}
    )
    whole = dataclasses.replace(
        RECORD, seconds=1077.0, marks={"configure:0": 0.3, "compile:3": 275.9, "compile:5": 361.5, "go:0": 580.6}
    )
    now = [1000.0]
    monkeypatch.setattr("kwdb_build.build.watch.time.monotonic", lambda: now[0])
    began, texts = now[0], Texts()
    watch = Watch(tmp_path, texts, [patch, whole])
    compiling = "[ {}%] Building CXX object kwdbts2/CMakeFiles/kwdbts2.dir/src/engine.cpp.o"
    for second, line in {
        1.0: "-- Configuring done", 90.0: compiling.format(34), 150.0: compiling.format(50), 380.0: "go build kwbase",
    }.items():
        now[0] = began + second
        watch.line(line)
    watch.finish()
    assert [text.partition("  ")[0] for text in texts.texts] == [
        "about 0:50 left", "about 4:21 left", "about 4:57 left", "about 5:25 left"
    ]
    assert texts.shares == [2, 26, 34, 54]


def test_no_time_left_is_made_up() -> None:
    assert left(None, {"compile:5": 10.0}, 10.0) is None
    assert left(RECORD, {}, 10.0) is None


def test_marks_are_coarse() -> None:
    assert mark_of(Step(phase="compile", text="x", done=57, total=100), packages=0, inner=0) == "compile:5"
    assert mark_of(Step(phase="go", text="x"), packages=120, inner=80) == "go:2"
    assert mark_of(Step(phase="native", text="x", done=3, total=100), packages=120, inner=80) == "native:3"
    assert mark_of(Step(phase="configure", text="x"), packages=0, inner=0) == "configure:0"


class Texts(Progress):
    def __init__(self) -> None:
        self.texts: list[str] = []
        self.shares: list[int | None] = []

    def update(self, text: str, *, done: float | None = None, total: float | None = None) -> None:
        self.texts.append(text)
        self.shares.append(None if done is None or total is None else round(100 * done / total))


def test_a_person_sees_target_time_left_cache_and_memory(tmp_path: Path) -> None:
    (tmp_path / "ccache.log").write_text(STATS)
    (tmp_path / "memory").write_text("262144 524288\n")
    past = dataclasses.replace(RECORD, marks={"compile:5": 10.0})
    texts = Texts()
    watch = Watch(tmp_path, texts, [past])
    watch.line("[ 57%] Building CXX object kwdbts2/CMakeFiles/kwdbts2.dir/src/engine.cpp.o")
    assert texts.texts == ["about 1:30 left  compiling engine.cpp (kwdbts2)  cache 2/3  1.0 GiB"]
    assert watch.memory_bytes == 2 << 30
    assert watch.marks.keys() == {"compile:5"}
    watch.line("gitee.com/kwbasedb/kwbase/pkg/sql")
    assert watch.cache_use().go_packages == 1
    (tmp_path / "memory").write_text("half a li")
    watch.finish()
    assert watch.memory_bytes == 2 << 30


def test_the_share_is_one_of_time_where_an_earlier_build_tells_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CMake's stands while a library is built inside, and knows nothing of Go."""
    now = [1000.0]
    monkeypatch.setattr("kwdb_build.build.watch.time.monotonic", lambda: now[0])
    compiling = "[ 57%] Building CXX object kwdbts2/CMakeFiles/kwdbts2.dir/src/engine.cpp.o"
    lines = {40.0: compiling, 50.0: compiling, 60.0: "gitee.com/kwbasedb/kwbase/pkg/sql", 90.0: "go build kwbase",
             300.0: "go build kwbase"}
    shares: dict[str, list[int | None]] = {}
    for past in (RECORD, None):
        texts, began = Texts(), now[0]
        watch = Watch(tmp_path, texts, [past] if past else [])
        for second, line in lines.items():
            now[0] = began + second
            watch.line(line)
        watch.finish()
        shares["known" if past else "unknown"] = texts.shares
    assert shares == {"known": [40, 50, 60, 90, 99], "unknown": [57, 57, None, None, None]}
    slower = Texts()
    watch, began = Watch(tmp_path, slower, [RECORD]), now[0]
    for second, line in {40.0: compiling, 45.0: compiling, 120.0: "gitee.com/kwbasedb/kwbase/pkg/sql"}.items():
        now[0] = began + second
        watch.line(line)
    watch.finish()
    assert slower.shares == [40, 45, 60], "twice as slow"
    assert "about 1:20 left" in slower.texts[-1]


def test_a_build_that_says_nothing_for_long_is_still_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kwdb_build.build.watch._LOOK_ALONE_S", 0.02)
    texts = Texts()
    watch = Watch(tmp_path, texts, [])
    watch.line("go build -v -o kwbase ./pkg/cmd/kwbase")
    (tmp_path / "memory").write_text("262144 524288\n")
    deadline = time.monotonic() + 20
    while texts.texts[-1] != "go build kwbase  1.0 GiB":
        assert time.monotonic() < deadline, texts.texts
        time.sleep(0.01)
    watch.finish()
    count = len(texts.texts)
    time.sleep(0.1)
    assert len(texts.texts) == count, "and no more when it is over"
