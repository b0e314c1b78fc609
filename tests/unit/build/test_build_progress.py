from __future__ import annotations

import pytest

from kwdb_build.build.progress import Step, Tracker


def steps(text: str) -> list[Step]:
    tracker = Tracker()
    return [step for line in text.splitlines() if (step := tracker.feed(line))]


SMALL = """\
========== build ==========
GOPATH=/kwdb cmake -B /kwdb/src/gitee.com/kwbasedb/build -S /kwdb/src/gitee.com/kwbasedb -DCMAKE_BUILD_TYPE=Release
-- The C compiler identification is GNU 12.2.0
-- Detecting C compiler ABI info - done
-- Configuring done
-- Generating done
-- Build files have been written to: /kwdb/src/gitee.com/kwbasedb/build
make -C /kwdb/src/gitee.com/kwbasedb/build
make[1]: Entering directory '/kwdb/src/gitee.com/kwbasedb/build'
[ 10%] Building CXX object common/CMakeFiles/common.dir/src/log.cpp.o
[ 45%] Building CXX object kwdbts2/CMakeFiles/kwdbts2.dir/src/engine.cpp.o
[ 60%] Linking CXX shared library ../lib/libkwdbts2.so
[ 60%] Built target kwdbts2
go build -v  -tags 'make x86_64_linux_gnu' -ldflags '-X "a.b/c.tag=V3.1.0"' -o kwbase ./pkg/cmd/kwbase
internal/goarch
gitee.com/kwbasedb/kwbase/pkg/build
github.com/lib/pq
[100%] Built target kwbase
make[1]: Leaving directory '/kwdb/src/gitee.com/kwbasedb/build'
Install the project...
-- Install configuration: "Release"
-- Installing: /kwdb/install/bin/kwbase
-- Set non-toolchain portion of runtime path of "/kwdb/install/lib/libkwdbts2.so" to ""
"""


def test_a_build_from_its_first_to_its_last_line() -> None:
    seen = steps(SMALL)
    assert seen[0] == Step(phase="configure", text="The C compiler identification is GNU 12.2.0")
    assert Step(phase="compile", text="compiling engine.cpp (kwdbts2)", done=45, total=100) in seen
    assert Step(phase="link", text="Linking CXX shared library ../lib/libkwdbts2.so", done=60, total=100) in seen
    assert Step(phase="go", text="Go package 3: github.com/lib/pq") in seen
    assert Step(phase="install", text="installing kwbase") in seen
    assert [step.phase for step in seen if step.phase != "link"] == sorted(
        (step.phase for step in seen if step.phase != "link"),
        key=["configure", "compile", "go", "install"].index,
    ) or seen[-1].phase == "install"


NESTED = """\
make[1]: Entering directory '/kwdb/src/gitee.com/kwbasedb/build'
[  3%] Building CXX object common/CMakeFiles/common.dir/a.cpp.o
make[4]: Entering directory '/kwdb/native/rocksdb'
[ 90%] Building CXX object CMakeFiles/rocksdb.dir/db/db_impl.cc.o
[100%] Linking CXX static library librocksdb.a
make[4]: Leaving directory '/kwdb/native/rocksdb'
make[1]: Entering directory '/kwdb/src/gitee.com/kwbasedb/build'
[  7%] Building CXX object common/CMakeFiles/common.dir/b.cpp.o
[  5%] Building CXX object common/CMakeFiles/common.dir/c.cpp.o
"""


def test_builds_inside_the_build_do_not_move_the_bar_and_it_never_goes_back() -> None:
    assert [step.done for step in steps(NESTED)] == [3, 3, 3, 7, 7]
    assert steps(NESTED)[1].text == "compiling db_impl.cc (rocksdb)"


def test_the_bar_never_goes_back_whatever_comes() -> None:
    from hypothesis import given
    from hypothesis import strategies as st

    @given(st.lists(st.integers(0, 100)))
    def shown(percents: list[int]) -> None:
        done = [step.done for step in steps("\n".join(f"[{p:3d}%] Building C object x.c.o" for p in percents))]
        assert done == sorted(done)

    shown()


@pytest.mark.parametrize(
    "line", ["", "warning: x", "make[1]: Nothing to be done for 'all'.", "hello world", "[x%] Building", "a/b c/d"]
)
def test_other_lines_say_nothing(line: str) -> None:
    assert Tracker().feed(line) is None


def test_colours_and_compiler_calls() -> None:
    tracker = Tracker()
    step = tracker.feed("\x1b[32m[ 12%] Building C object lib/CMakeFiles/z.dir/adler32.c.o\x1b[0m")
    assert step == Step(phase="compile", text="compiling adler32.c (z)", done=12, total=100)
    assert tracker.feed("gcc -std=gnu11 -Wall -O3 -c -Iinclude -o src/arena.o src/arena.c").text == "compiling arena.c"
    assert tracker.feed("[3/20] Building CXX object a.dir/b.cc.o").done == 15


SILENT_GO = """\
========== build ==========
make[1]: Entering directory '/kwdb/src/gitee.com/kwbasedb/build'
[ 91%] Building CXX object kwdbts2/CMakeFiles/kwdbts2.dir/src/vgroup.cpp.o
[100%] Linking CXX shared library ../lib/libkwdbts2.so
[100%] Built target kwdbts2
make[4]: Entering directory '/kwdb/src/gitee.com/kwbasedb/kwbase'
make[4]: Leaving directory '/kwdb/src/gitee.com/kwbasedb/kwbase'
[100%] Built target kwbase
========== install ==========
make[3]: Entering directory '/kwdb/src/gitee.com/kwbasedb/build'
[ 16%] Built target checksum
make[4]: Entering directory '/kwdb/src/gitee.com/kwbasedb/kwbase'
[100%] Built target kwbase
-- Installing: /kwdb/install/bin/kwbase
"""


def test_a_go_build_that_prints_nothing_is_not_shown_as_finished_cplusplus() -> None:
    seen = steps(SILENT_GO)
    assert [(step.phase, step.text) for step in seen][-3:] == [
        ("go", "building the Go server"), ("install", "installing"), ("install", "installing kwbase"),
    ]
    assert all(step.total == 0 for step in seen if step.phase in {"go", "install"}), "no share that means C++ alone"


# A tree with the Makefiles of V3.2.1 in small, at -j2: external projects at the same time as common, then the make of
# the Go server, which configures and builds C dependencies without naming a directory.
EXTERNAL = """\
========== build ==========
Parallel build with -j2
-- Configuring done
-- Generating done
make[1]: Entering directory '/kwdb/src/gitee.com/kwbasedb/build'
make[2]: Entering directory '/kwdb/src/gitee.com/kwbasedb/build'
make[3]: Entering directory '/kwdb/src/gitee.com/kwbasedb/build'
make[3]: Leaving directory '/kwdb/src/gitee.com/kwbasedb/build'
make[3]: Entering directory '/kwdb/src/gitee.com/kwbasedb/build'
[  1%] Creating directories for 'protobuf_src'
[  1%] No download step for 'protobuf_src'
[  2%] Performing configure step for 'protobuf_src'
-- The C compiler identification is GNU 12.2.0
-- Performing Test HAVE_PTHREAD - Failed
-- Configuring done
-- Build files have been written to: /kwdb/src/gitee.com/kwbasedb/build/kwdbts2/third_party/protobuf-3.12.4/build
[  2%] Performing build step for 'protobuf_src'
make[4]: warning: -j2 forced in submake: resetting jobserver mode.
make[4]: Entering directory '/kwdb/src/gitee.com/kwbasedb/build/kwdbts2/third_party/protobuf-3.12.4/build'
make[3]: Entering directory '/kwdb/src/gitee.com/kwbasedb/build'
[ 50%] Building CXX object CMakeFiles/libprotobuf-lite.dir/src/google/protobuf/arena.cc.o
[  3%] Building CXX object common/CMakeFiles/common.dir/src/er_error.cpp.o
[100%] Linking CXX static library libprotobuf.a
[100%] Built target libprotobuf
make[4]: Leaving directory '/kwdb/src/gitee.com/kwbasedb/build/kwdbts2/third_party/protobuf-3.12.4/build'
[  4%] Performing install step for 'protobuf_src'
Install the project...
-- Install configuration: "Release"
-- Installing: /kwdb/native/kwdbts2/third_party/lib/libprotobuf.a
[  5%] Completed 'protobuf_src'
make[3]: Leaving directory '/kwdb/src/gitee.com/kwbasedb/build'
[  5%] Built target protobuf_src
[ 40%] Building CXX object kwdbts2/CMakeFiles/kwdbts2.dir/mmap/src/ts_object_error.cpp.o
[ 97%] Linking CXX shared library ../lib/libkwdbts2.so
make[3]: Leaving directory '/kwdb/src/gitee.com/kwbasedb/build'
[ 97%] Built target kwdbts2
make[3]: Entering directory '/kwdb/src/gitee.com/kwbasedb/build'
[ 98%] ====== compile kwbase ======
make[4]: Entering directory '/kwdb/src/gitee.com/kwbasedb/kwbase'
make[4]: warning: jobserver unavailable: using -j1.  Add '+' to parent make rule.
go install -v protoc-gen-gogoroach
gitee.com/kwbasedb/kwbase/pkg/util/errorutil
checking for xsltproc... /usr/bin/xsltproc
checking whether compiler is cray... no
-- The C compiler identification is GNU 12.2.0
-- Build files have been written to: /kwdb/native/rocksdb
[  1%] Building CXX object CMakeFiles/rocksdb.dir/cache/clock_cache.cc.o
[100%] Linking CXX static library librocksdb.a
regenerating ./pkg/cli/zcgo_flags.go
EXECGEN pkg/sql/colexec/and_or_projection.eg.go
gitee.com/kwbasedb/kwbase/pkg/sql/pgwire/pgerror
make[4]: Leaving directory '/kwdb/src/gitee.com/kwbasedb/kwbase'
[100%] Built target kwbase
========== install ==========
[ 53%] Built target protobuf_src
-- Up-to-date: /kwdb/install/lib/libcommon.so
"""


def test_the_builds_inside_kwdb_are_named_and_do_not_end_or_fill_the_bar() -> None:
    seen = {step.text: step for step in steps(EXTERNAL)}
    for text in (
        "Performing configure step for 'protobuf_src'", "compiling arena.cc (libprotobuf-lite)", "installing libprotobuf.a",
        "compiling ts_object_error.cpp (kwdbts2)", "====== compile kwbase ======", "go install protoc-gen-gogoroach",
        "configure: checking whether compiler is cray", "compiling clock_cache.cc (rocksdb)", "generating zcgo_flags.go",
        "generating and_or_projection.eg.go", "Go package 2: gitee.com/kwbasedb/kwbase/pkg/sql/pgwire/pgerror",
    ):
        assert text in seen, text
    assert seen["compiling arena.cc (libprotobuf-lite)"].done == 2, "half of protobuf is not half of KWDB"
    assert seen["Completed 'protobuf_src'"].done == 5
    assert seen["compiling ts_object_error.cpp (kwdbts2)"] == Step(
        phase="compile", text="compiling ts_object_error.cpp (kwdbts2)", done=40, total=100
    ), "the install step of protobuf was not the end"
    assert seen["compiling clock_cache.cc (rocksdb)"].total == 0, "the server is not ready at 100 % of C++"


def test_phases_of_kwdb_come_in_their_order_and_inner_ones_are_told_apart() -> None:
    phases = [step.phase for step in steps(EXTERNAL)]
    assert [phase for number, phase in enumerate(phases) if phases[number - 1:number] != [phase]] == [
        "configure", "compile", "native", "compile", "native", "compile", "native", "compile", "link", "compile", "go",
        "native", "go", "install",
    ]
    tracker = Tracker()
    for line in EXTERNAL.splitlines():
        tracker.feed(line)
    assert (tracker.packages, tracker.inner) == (2, 3)
