from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kwdb_build.build.progress import Step, Tracker, explains, first_error, out_of_memory

if TYPE_CHECKING:
    from collections.abc import Iterator



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
    assert Step(phase="compile", text="compiling engine.cpp", done=45, total=100) in seen
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
    assert steps(NESTED)[1].text == "compiling db_impl.cc"


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
    assert step == Step(phase="compile", text="compiling adler32.c", done=12, total=100)
    assert tracker.feed("gcc -std=gnu11 -Wall -O3 -c -Iinclude -o src/arena.o src/arena.c").text == "compiling arena.c"
    assert tracker.feed("[3/20] Building CXX object a.dir/b.cc.o").done == 15


CPP = """\
[ 41%] Building CXX object kwdbts2/CMakeFiles/kwdbts2.dir/src/table.cpp.o
[ 44%] Building CXX object kwdbts2/CMakeFiles/kwdbts2.dir/src/vgroup.cpp.o
/kwdb/src/gitee.com/kwbasedb/kwdbts2/src/log.cpp:3:9: warning: unused variable 'error: x' [-Wunused-variable]
In file included from /kwdb/src/gitee.com/kwbasedb/kwdbts2/src/table.cpp:5:
/kwdb/src/gitee.com/kwbasedb/kwdbts2/src/table.h: In member function 'int Table::Rows() const':
/kwdb/src/gitee.com/kwbasedb/kwdbts2/src/table.h:42:12: error: 'rows' was not declared in this scope
   42 |     return rows;
      |            ^~~~
make[3]: *** [kwdbts2/CMakeFiles/kwdbts2.dir/build.make:90: kwdbts2/CMakeFiles/kwdbts2.dir/src/table.cpp.o] Error 1
make[3]: *** Waiting for unfinished jobs....
/kwdb/src/gitee.com/kwbasedb/kwdbts2/src/vgroup.cpp:9:1: error: later one
make[2]: *** [CMakeFiles/Makefile2:150: kwdbts2/CMakeFiles/kwdbts2.dir/all] Error 2
make: *** [Makefile:60: build] Error 2
"""

GO = """\
go build -v -o kwbase ./pkg/cmd/kwbase
gitee.com/kwbasedb/kwbase/pkg/util
# gitee.com/kwbasedb/kwbase/pkg/sql
pkg/sql/exec.go:31:2: undefined: missingThing
pkg/sql/exec.go:40:9: cannot use x (variable of type int) as string value in return statement
make[3]: *** [Makefile:44: kwbase] Error 1
make: *** [Makefile:30: build] Error 2
"""

LINK = """\
[ 99%] Linking CXX shared library ../lib/libkwdbts2.so
/usr/bin/ld: CMakeFiles/kwdbts2.dir/src/api.cpp.o: in function `TsOpen':
api.cpp:(.text+0x1c): undefined reference to `kwdb::Engine::Open(char const*)'
collect2: error: ld returned 1 exit status
make[2]: *** [kwdbts2/CMakeFiles/kwdbts2.dir/build.make:120: lib/libkwdbts2.so] Error 1
"""

CMAKE = """\
-- Detecting CXX compile features - done
CMake Warning at CMakeLists.txt:55 (message):
  GNU C/C++ compiler version should less and equal than 13.2


CMake Error at kwdbts2/CMakeLists.txt:101 (message):
  Protobuf include directory not found : /opt/none/include


-- Configuring incomplete, errors occurred!
make: *** [Makefile:50: build] Error 1
"""

MISSING_TOOL = """\
cd /kwdb/src/gitee.com/kwbasedb/kwbase/c-deps/jemalloc && autoconf
/bin/sh: 1: autoconf: not found
make[2]: *** [Makefile:613: configure] Error 127
make: *** [Makefile:60: build] Error 2
"""

ONLY_MAKE = """\
doing this
doing that
make[1]: *** [Makefile:12: thing] Error 3
make: *** [Makefile:60: build] Error 2
"""


@pytest.mark.parametrize(
    ("log", "begins", "holds", "lacks"),
    [
        (CPP, "In file included from", "'rows' was not declared", "later one"),
        (GO, "# gitee.com/kwbasedb/kwbase/pkg/sql", "undefined: missingThing", "make"),
        (LINK, "api.cpp:(.text+0x1c): undefined reference", "collect2", "make"),
        (CMAKE, "CMake Error at kwdbts2/CMakeLists.txt:101", "Protobuf include directory not found", "13.2"),
        (MISSING_TOOL, "/bin/sh: 1: autoconf: not found", "autoconf", "Makefile:60"),
        (ONLY_MAKE, "doing this", "Makefile:12", "Makefile:60"),
        ("make: *** No rule to make target 'instal'.  Stop.\n", "make: ***", "instal", "xx"),
        ("pkg/x.proto:3:1: Expected top-level statement\n", "pkg/x.proto:3:1", "Expected", "xx"),
        ("/usr/bin/ld: cannot find -ltinfo: No such file or directory\n", "/usr/bin/ld: cannot find -ltinfo", "", "xx"),
    ],
)
def test_the_first_real_error_with_its_context(log: str, begins: str, holds: str, lacks: str) -> None:
    error = first_error(log.splitlines())
    assert error.startswith(begins)
    assert holds in error
    assert lacks not in error


def test_the_lines_under_a_compiler_error_are_kept() -> None:
    assert "      |            ^~~~" in first_error(CPP.splitlines())
    assert "In member function" in first_error(CPP.splitlines())


def test_a_later_compiler_error_beats_an_earlier_make_line() -> None:
    log = "make[2]: *** [Makefile:1: a] Error 1\nsrc/a.cc:1:1: error: boom\n"
    assert first_error(log.splitlines()) == "src/a.cc:1:1: error: boom"


@pytest.mark.parametrize(("log", "expected"), [(CPP, True), (MISSING_TOOL, True), (ONLY_MAKE, False), (SMALL, False)])
def test_makes_own_line_alone_explains_nothing(log: str, expected: bool) -> None:
    assert explains(first_error(log.splitlines())) is expected


def test_a_good_log_has_no_error() -> None:
    assert first_error(SMALL.splitlines()) == ""


def test_an_endless_log_is_not_read_on_after_the_error() -> None:
    def lines() -> Iterator[str]:
        yield from CPP.splitlines()
        for _ in range(20):
            yield "more"
        raise AssertionError

    assert "'rows'" in first_error(lines())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("g++: fatal error: Killed signal terminated program cc1plus\ncompilation terminated.", True),
        ("/usr/lib/go/pkg/tool/linux_amd64/link: signal: killed", True),
        ("go build x: /opt/go/pkg/tool/linux_amd64/compile: signal: killed", True),
        ("cc1plus: out of memory allocating 65536 bytes after a total of 1 bytes", True),
        ("a.cpp:1:1: error: no", False),
        ("", False),
    ],
)
def test_memory(text: str, expected: bool) -> None:
    assert out_of_memory(text) is expected


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
        ("go", "compiling the Go server"), ("install", "installing"), ("install", "installing kwbase"),
    ]
    assert all(step.total == 0 for step in seen if step.phase in {"go", "install"}), "no share that means C++ alone"
