from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kwdb_build.build.diagnosis import explains, first_error, first_failed_test, out_of_memory

if TYPE_CHECKING:
    from collections.abc import Iterator


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

GOOD = """\
-- Configuring done
[ 10%] Building CXX object common/CMakeFiles/common.dir/src/log.cpp.o
gitee.com/kwbasedb/kwbase/pkg/build
-- Installing: /kwdb/install/bin/kwbase
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
        (LINK, "/usr/bin/ld: CMakeFiles/kwdbts2.dir/src/api.cpp.o: in function `TsOpen'", "collect2", "make"),
        (CMAKE, "CMake Error at kwdbts2/CMakeLists.txt:101", "Protobuf include directory not found", "13.2"),
        (MISSING_TOOL, "/bin/sh: 1: autoconf: not found", "autoconf", "Makefile:60"),
        (ONLY_MAKE, "doing this", "Makefile:12", "Makefile:60"),
        ("Makefile:49: no.mk: No such file or directory\nmake: *** No rule to make target 'no.mk'.  Stop.\n",
         "Makefile:49: no.mk", "No rule", "xx"),
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


@pytest.mark.parametrize(("log", "expected"), [(CPP, True), (MISSING_TOOL, True), (ONLY_MAKE, False), (GOOD, False)])
def test_makes_own_line_alone_explains_nothing(log: str, expected: bool) -> None:
    assert explains(first_error(log.splitlines())) is expected


def test_a_good_log_has_no_error() -> None:
    assert first_error(GOOD.splitlines()) == ""


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




ICE = """\
[ 41%] Building CXX object kwdbts2/CMakeFiles/kwdbts2.dir/exec/src/ee_pg_error.cpp.o
during RTL pass: expand
/kwdb/src/gitee.com/kwbasedb/kwdbts2/exec/src/ee_pg_error.cpp: In function 'int f(int)':
/kwdb/src/gitee.com/kwbasedb/kwdbts2/exec/src/ee_pg_error.cpp:12:5: internal compiler error: Segmentation fault
   12 | int f(int a) {
0x7f2d0c4ddfcf ???
Please submit a full bug report, with preprocessed source (by using -freport-bug).
make[3]: *** [kwdbts2/CMakeFiles/kwdbts2.dir/build.make:90: kwdbts2/CMakeFiles/kwdbts2.dir/exec/src/ee_pg_error.cpp.o] Error 1
"""

TEMPLATE = """\
In file included from /usr/include/c++/12/map:60,
                 from /kwdb/src/gitee.com/kwbasedb/kwdbts2/mmap/src/ts_object_error.cpp:3:
/usr/include/c++/12/bits/stl_tree.h: In instantiation of 'void std::_Rb_tree<K, V>::f(const K&) [with K = Key; V = int]':
/usr/include/c++/12/bits/stl_map.h:511:24:   required from 'int& std::map<K, V>::operator[](K&&) [with K = Key; V = int]'
/kwdb/src/gitee.com/kwbasedb/kwdbts2/mmap/src/ts_object_error.cpp:9:3:   required from here
/usr/include/c++/12/bits/stl_function.h:408:20: error: no match for 'operator<' (operand types are 'const Key' and 'const Key')
"""

# Two compilers at once: what follows the error is the other one's.
MIXED = """\
/kwdb/src/gitee.com/kwbasedb/kwdbts2/src/table.cpp:42:12: error: 'rows' was not declared in this scope
   42 |     return rows;
In file included from /kwdb/src/gitee.com/kwbasedb/kwdbts2/src/log.cpp:3:
/kwdb/src/gitee.com/kwbasedb/kwdbts2/src/log.h: In function 'void Log()':
/kwdb/src/gitee.com/kwbasedb/kwdbts2/src/log.h:3:9: warning: unused variable 'other' [-Wunused-variable]
    3 |     int other;
"""

RELOCATION = """\
[ 99%] Linking CXX shared library ../lib/libkwdbts2.so
/usr/bin/ld: /kwdb/native/lib/liblz4.a(lz4.c.o): relocation R_X86_64_32 against `.rodata' can not be used when making a shared object; recompile with -fPIC
collect2: error: ld returned 1 exit status
make[2]: *** [kwdbts2/CMakeFiles/kwdbts2.dir/build.make:120: lib/libkwdbts2.so] Error 1
"""

GO_LINK = """\
go build -v -o kwbase ./pkg/cmd/kwbase
gitee.com/kwbasedb/kwbase/pkg/cmd/kwbase
# gitee.com/kwbasedb/kwbase/pkg/cmd/kwbase
/usr/local/go/pkg/tool/linux_amd64/link: running g++ failed: exit status 1
/usr/bin/ld: /kwdb/native/libroach/libroach.a(db.cc.o): in function `DBOpen':
db.cc:(.text+0x1c): undefined reference to `google::protobuf::StringPrintf(char const*, ...)'
collect2: error: ld returned 1 exit status

make[4]: *** [Makefile:877: /kwdb/src/gitee.com/kwbasedb/build/bin/kwbase] Error 2
"""

WERROR_SH = """\
make[4]: Entering directory '/kwdb/src/gitee.com/kwbasedb/kwbase'
roachpb/errors.proto:22:1: warning: Import util/hlc/timestamp.proto is unused.
make[4]: warning: jobserver unavailable: using -j1.  Add '+' to parent make rule.
fatal: treating warnings from protoc as errors
make[4]: *** [Makefile:1043: bin/.go_protobuf_sources] Error 1
"""

GENERATOR = """\
[ 53%] Built target kwdbts2
make[4]: Entering directory '/kwdb/src/gitee.com/kwbasedb/kwbase'
make[4]: warning: -j2 forced in submake: resetting jobserver mode.
EXECGEN pkg/sql/colexec/and_or_projection.eg.go
awk: replace_help_rules.awk: line 12: unexpected end of input
awk: near line 12
make[4]: Nothing to be done for 'x'.
make[4]: *** [Makefile:1107: pkg/sql/parser/gen/sql-gen.y] Error 2
make[4]: *** Waiting for unfinished jobs....
make[3]: *** [CMakeFiles/kwbase.dir/build.make:70: CMakeFiles/kwbase] Error 2
"""

ASSEMBLER = """\
/tmp/ccQ1.s: Assembler messages:
/tmp/ccQ1.s:10: Warning: ignoring changed section attributes for .data
{standard input}: Assembler messages:
{standard input}:11: Error: no such instruction: `vpdpbusd %ymm1'
make[3]: *** [x.o] Error 1
"""

NO_PROGRAM = """\
make[4]: goimports: No such file or directory
make[4]: *** [Makefile:1101: pkg/sql/parser/sql.go] Error 127
"""

# What a good build says, too: none of it is why this one failed.
HARMLESS = """\
/bin/sh: 1: free: not found
fatal: not a git repository (or any of the parent directories): .git
-- Performing Test HAVE_WNO_ERROR - Failed
-- Looking for error.h - not found
[ 12%] Building CXX object kwdbts2/CMakeFiles/kwdbts2.dir/exec/src/ee_pg_error.cpp.o
gitee.com/kwbasedb/kwbase/pkg/sql/colexec/execerror
ccache: error: Failed to create temporary file for /kwdb-cache/ccache/tmp: Permission denied
checking whether sh: the shell cannot do it... no
[libprotobuf WARNING google/protobuf/compiler/parser.cc:648] No syntax specified for the proto file: x.proto.
make[4]: warning: jobserver unavailable: using -j1.  Add '+' to parent make rule.
/usr/bin/ld: warning: liblzma.so.5, needed by libx.so, may conflict with liblzma.so.6
# github.com/knz/go-libedit/unix
el.c:12:3: warning: 'strncpy' specified bound 7 equals destination size [-Wstringop-truncation]
"""
FAR = "".join(f"[ 20%] Building CXX object a/CMakeFiles/a.dir/f{number}.cc.o\n" for number in range(300))


@pytest.mark.parametrize(
    ("log", "begins", "holds", "lacks"),
    [
        (ICE, "during RTL pass: expand", "internal compiler error: Segmentation fault", "Building"),
        (TEMPLATE, "In file included from", "ts_object_error.cpp:9:3:   required from here", "xx"),
        (MIXED, "/kwdb/src/gitee.com/kwbasedb/kwdbts2/src/table.cpp:42:12: error", "return rows", "log"),
        (RELOCATION, "/usr/bin/ld: /kwdb/native/lib/liblz4.a", "recompile with -fPIC", "Linking"),
        (GO_LINK, "# gitee.com/kwbasedb/kwbase/pkg/cmd/kwbase", "in function `DBOpen'", "Makefile"),
        (WERROR_SH, "roachpb/errors.proto:22:1: warning: Import", "fatal: treating warnings from protoc", "jobserver"),
        (GENERATOR, "EXECGEN pkg", "line 12: unexpected end of input", "Waiting"),
        (ASSEMBLER, "{standard input}: Assembler", "no such instruction", "Warning"),
        ("-- Configuring done\nmake -C /kwdb\nSegmentation fault (core dumped)\nmake[3]: *** [a.o] Error 139\n",
         "Segmentation fault", "", "--"),
        ("-- Configuring done\nmake -C /kwdb\nodd words\nmake[3]: *** [a.o] Error 1\n", "odd words", "a.o", "--"),
        (NO_PROGRAM, "make[4]: goimports: No such file", "goimports", "xx"),
        (HARMLESS + FAR + CPP, "In file included from", "'rows' was not declared", "free"),
        (HARMLESS + FAR + GENERATOR, "/usr/bin/ld: warning", "line 12: unexpected end of input", "free"),
        (HARMLESS + FAR + MISSING_TOOL, "/bin/sh: 1: autoconf: not found", "autoconf", "free"),
    ],
)
def test_the_real_error_of_kwdbs_own_tools(log: str, begins: str, holds: str, lacks: str) -> None:
    error = first_error(log.splitlines())
    assert error.startswith(begins), error
    assert holds in error, error
    assert lacks not in error, error


def test_what_a_good_build_prints_too_is_no_error_of_a_compiler() -> None:
    assert not any(explains(line) for line in HARMLESS.splitlines()[1:])


GO_TEST = """\
ok  \tgitee.com/kwbasedb/kwbase/pkg/build\t0.012s
--- FAIL: TestUpsert (0.02s)
    upsert_test.go:150: before
    upsert_test.go:151: want 1, got 2
--- FAIL: TestOther (0.00s)
    other_test.go:9: later one
FAIL
FAIL\tgitee.com/kwbasedb/kwbase/pkg/sql\t0.123s
ok  \tgitee.com/kwbasedb/kwbase/pkg/util/errorutil\t0.002s
FAIL
make[1]: *** [Makefile:60: test] Error 1
"""

GO_VERBOSE = """\
=== RUN   TestGood
    good_test.go:1: fatal error: of a test that passes
--- PASS: TestGood (0.00s)
=== RUN   TestBad
    bad_test.go:7: want 1, got 2
--- FAIL: TestBad (0.00s)
panic: assignment to entry in nil map [recovered]
\tpanic: assignment to entry in nil map

goroutine 7 [running]:
FAIL\tgitee.com/kwbasedb/kwbase/pkg/sql\t0.1s
"""

CTEST = """\
    Start 1: log_test
1/3 Test #1: log_test .........................   Passed    0.00 sec
    Start 2: tag_test
2/3 Test #2: tag_test .........................***Failed    0.02 sec
[ RUN      ] TagTest.Rows
/kwdb/src/gitee.com/kwbasedb/kwdbts2/mmap/tests/tag_test.cpp:31: Failure
Expected equality of these values:
  table.rows()
    Which is: 8
  7
[  FAILED  ] TagTest.Rows (0 ms)
    Start 3: block_test
3/3 Test #3: block_test .......................   Passed    0.01 sec
The following tests FAILED:
\t  2 - tag_test (Failed)
Errors while running CTest
make[1]: *** [Makefile:71: test] Error 8
"""

CRASH = """\
1/2 Test #1: tag_test .........................***Exception: SegFault  0.11 sec
terminate called
2/2 Test #2: block_test .......................   Passed    0.01 sec
"""
CRASH_FIRST = "    Start 1: tag_test\n" + CRASH


@pytest.mark.parametrize(
    ("log", "begins", "holds", "lacks"),
    [
        (GO_TEST, "--- FAIL: TestUpsert", "upsert_test.go:151: want 1, got 2", "later one"),
        (GO_VERBOSE, "    bad_test.go:7: want 1, got 2", "panic: assignment to entry in nil map", "passes"),
        (CTEST, "/kwdb/src/gitee.com/kwbasedb/kwdbts2/mmap/tests/tag_test.cpp:31: Failure", "Which is: 8", "block_test"),
        (CRASH_FIRST, "1/2 Test #1: tag_test", "terminate called", "block_test"),
    ],
)
def test_the_first_test_that_failed_and_what_it_said(log: str, begins: str, holds: str, lacks: str) -> None:
    error = first_failed_test(log.splitlines())
    assert error.startswith(begins), error
    assert holds in error, error
    assert lacks not in error, error


def test_a_test_that_does_not_compile_is_a_compilers_error() -> None:
    log = "# gitee.com/kwbasedb/kwbase/pkg/sql\npkg/sql/x_test.go:3:1: undefined: y\nFAIL\tgitee.com/kwbasedb/kwbase/pkg/sql"
    log += " [build failed]\nFAIL\nmake[1]: *** [Makefile:60: test] Error 1\n"
    assert first_failed_test(log.splitlines()) == ""
    assert "undefined: y" in first_error(log.splitlines())


def test_tests_that_pass_have_no_failure() -> None:
    assert first_failed_test(GO_TEST.splitlines()[:1] + CTEST.splitlines()[:2]) == ""


@pytest.mark.parametrize("line", [
    "collect2: fatal error: ld terminated with signal 9 [Killed]", "make[3]: *** [Makefile:12: kwbase] Killed",
    "/usr/bin/ld: final link failed: memory exhausted", "g++: internal compiler error: Killed (program cc1plus)",
    "cc1plus: out of memory allocating 65536 bytes after a total of 1 bytes",
    "terminate called after throwing an instance of 'std::bad_alloc'",
    "fatal error: runtime: out of memory",
])
def test_every_way_to_say_that_memory_is_gone_is_found_and_known(line: str) -> None:
    log = f"doing this\n{line}\nmake[2]: *** [Makefile:1: x] Error 1\n"
    error = first_error(log.splitlines())
    assert line in error
    assert out_of_memory(error)
