"""The stand-in for compilers, in a real shell: what it notes of calls for KWDB's bundled libraries."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from kwdb_build.build import recipe as recipes
from kwdb_build.build.shims import TOOL_SHIM
from kwdb_build.build.sight import OUTSIDE, SEEN

SOURCE = "kwdb/src/gitee.com/kwbasedb"
NATIVE, DEPS, THIRD = "kwdb/native/x86_64/rocksdb", f"{SOURCE}/kwbase/c-deps/rocksdb", f"{SOURCE}/build/kwdbts2/third_party/lz4"


class Compiler:
    """One that only writes the name of its last argument, by way of the stand-in, in a tree of its own."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.scratch = place / "scratch"
        for name in ("scratch", "tools", "bin", NATIVE, f"{NATIVE}/a b/c", DEPS, f"{THIRD}/build", f"{SOURCE}/kwdbts2",
                     f"{SOURCE}/build", "elsewhere"):
            (place / name).mkdir(parents=True, exist_ok=True)
        shim = re.sub(r"(?<!\w)/kwdb\b(?!-)", f"{place}/kwdb", TOOL_SHIM)
        shim = shim.replace(f" {recipes.SCRATCH}/", f" {self.scratch}/")
        (place / "tools/tool").write_text(shim)
        (place / "bin/g++").write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n')
        (place / "bin/cmake").write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n')
        for name in ("tools/tool", "bin/g++", "bin/cmake"):
            (place / name).chmod(0o755)
        for name in ("g++", "cmake"):
            (place / "tools" / name).symlink_to("tool")

    def __call__(self, *arguments: str, cwd: str = NATIVE, name: str = "g++", **environment: str) -> None:
        """Call it with arguments in which % stands for the place of the tree."""
        argv = [argument.replace("%", str(self.place)) for argument in arguments]
        done = subprocess.run(
            [self.place / "tools" / name, *argv], cwd=self.place / cwd, capture_output=True, check=True, text=True,
            env={"PATH": os.environ["PATH"], "KWDB_PATH": str(self.place / "bin"), "SOURCE_DATE_EPOCH": "1",
                 "CPATH": "/kwdb-headers/0123", **{
                     key: value.replace("%", str(self.place)) for key, value in environment.items()
                 }},
        )
        assert (done.stdout.split("\0")[:-1], done.stderr) == (argv, ""), "called as it was asked for"

    def seen(self) -> list[str]:
        """Which files it noted, by their names in the tree."""
        path = self.scratch / SEEN
        start = len(str(self.place)) + 1
        return [line[start:] for line in path.read_text().splitlines()] if path.exists() else []

    def outside(self) -> bool:
        return (self.scratch / OUTSIDE).exists()


@pytest.fixture
def compiler(tmp_path: Path) -> Compiler:
    return Compiler(tmp_path)


OWN = f"%/{SOURCE}/kwdbts2"
LOOKS_OUT = [
    ("-I", OWN), (f"-I{OWN}",), ("-isystem", OWN), (f"-isystem{OWN}",), ("-iquote", OWN), (f"-iquote{OWN}",),
    ("-idirafter", OWN), (f"-idirafter{OWN}",), ("-include", f"{OWN}/a.h"), (f"-include{OWN}/a.h",),
    ("-imacros", f"{OWN}/a.h"), (f"-imacros{OWN}/a.h",), (f"--include={OWN}/a.h",), (f"--include-directory={OWN}",),
    (f"-Wp,-I{OWN}",), ("-Wp,-Iinclude",), ("-Xpreprocessor", "-I", "-Xpreprocessor", OWN), (f"-Wa,-I{OWN}",),
    (f"--sysroot={OWN}",), ("--sysroot", OWN), ("-isysroot", OWN), (f"-isysroot{OWN}",), ("-B", OWN), (f"-B{OWN}",),
    ("-iprefix", "x", "-iwithprefix", "y"), ("-specs=a.specs",), ("@arguments",), (f"{OWN}/a.cc",),
    ("../../../src/gitee.com/kwbasedb/kwdbts2/a.cc",), ("-I../../../src/gitee.com/kwbasedb/common/include",),
    ("-I", "../../../src/gitee.com/kwbasedb/common/include"), (f"-I%/{NATIVE}/../../../src/gitee.com/kwbasedb/common",),
    ("-isystem", f"%/{DEPS}/../../../common"), (f"-I={OWN}",), ("-I../..",), ("-I../../../../kwdb",), ("-I/",),
    ("-I", f"%/{SOURCE}/kwbase/c-deps"), ("-I%/kwdb",), ("-I%/kwdb/src/./gitee.com/",), (f"-I{OWN}/with blanks",),
    (f'-DHEADER="{OWN}/a.h"',), ("-D", f'HEADER="{OWN}/a.h"'), ('-DHEADER="../../../src/a.h"',), ("-I%/kwdb/install",),
    ("-I", f"%/{SOURCE}/build/kwdbts2/third_party"), (f"-I%/{SOURCE}/build/kwdbts2",), (f"-fplugin={OWN}/p.so",),
    ("-I", f"%/{SOURCE}/kwbase/c-deps/"), ("-I", f"%/{SOURCE}/kwbase/c-deps/."), ("-I%/kwdb/native/./",),
    (f"-I%/{DEPS}-not/../../../common",), (f"-I%/{NATIVE}//..///.././../src",), (f"-cxx-isystem{OWN}",),
]


@pytest.mark.parametrize("arguments", LOOKS_OUT, ids=" ".join)
def test_a_call_that_could_look_at_kwdbs_own_files_is_noted(compiler: Compiler, arguments: tuple[str, ...]) -> None:
    compiler("-c", *arguments, "a.cc", "-o", "a.o")
    assert compiler.outside()
    assert compiler.seen() == [], "and what it wrote is none that can be trusted"


STAYS_IN = [
    ("-I", f"%/{DEPS}/include"), (f"-I%/{DEPS}/include",), ("-isystem", "%/kwdb/native/kwdbts2/third_party/include"),
    (f"-I%/{THIRD}/build",), ("-I..",), ("-I", "."), ("-Iinclude",), ("-I../other/include",), ("-I../rocksdb/../b",),
    ("-I/usr/include",), ("-I", "/usr/include/x/../y"), (f"%/{DEPS}/util/a b.cc",), ("-I%/kwdb-headers/0123",),
    (f"-L{OWN}",), ("-L", OWN), (f"-L{OWN}/../build/lib",), (f"-Wl,--as-needed,-rpath,{OWN}",), ("-lkwdbts2",),
    ("-Xlinker", OWN), ("-MD", "-MT", OWN, "-MF", "a.d", "-MQ", "../../../x"), ('-DVERSION="1..2"', "-D", "X=1"),
    ("-std=c++17", "-x", "c++", "-", "-Wp,-MD,.deps/a.d", '-DA="a b"', "*"), ("-I%/kwdbs/own", "-include", "a.h"),
    (f"-I%/{SOURCE}/kwdbts2/third_party/lz4",), (f"-I{OWN}/../kwbase/c-deps/snappy",),
]


@pytest.mark.parametrize("arguments", STAYS_IN, ids=" ".join)
@pytest.mark.parametrize("cwd", [NATIVE, f"{NATIVE}/a b/c", f"{THIRD}/build"])
def test_a_call_that_stays_with_dependencies_is_seen(
    compiler: Compiler, arguments: tuple[str, ...], cwd: str
) -> None:
    compiler("-c", *arguments, "a.cc", "-o", "dir/../a.o", cwd=cwd)
    assert not compiler.outside()
    assert compiler.seen() == [f"{cwd}/a.o"]


@pytest.mark.parametrize(("cwd", "output", "arguments", "outside"), [
    (f"{SOURCE}/kwdbts2", f"%/{NATIVE}/a.o", ("-c", "a.cc"), True),
    (f"{SOURCE}/kwdbts2", f"%/{NATIVE}/a.o", ("-Iinclude", f"%/{DEPS}/a.cc"), True),
    (f"{SOURCE}/kwdbts2", f"%/{NATIVE}/a.o", ("-c", f"%/{DEPS}/a.cc"), False),
    (f"{SOURCE}/kwbase", f"%/{NATIVE}/a.o", ("-c", "c-deps/rocksdb/a.cc"), False),
    (f"{SOURCE}/build", "kwdbts2/third_party/lz4/a.o", ("-c", "../kwdbts2/third_party/lz4/a.c"), False),
    (f"{SOURCE}/build", "kwdbts2/third_party/lz4/a.o", ("-c", "../kwdbts2/a.c"), True),
    ("elsewhere", f"%/{NATIVE}/a.o", ("-c", "a.c", f"-I{OWN}"), True),
    ("elsewhere", f"%/{NATIVE}/a.o", ("-c", "a.c", "-I../kwdb"), True),
    ("elsewhere", f"%/{NATIVE}/a.o", ("-c", "a.c"), False),
    (DEPS, "%/elsewhere/a.o", ("-c", "a.c", f"-I{OWN}"), True),
    ("kwdb/native", f"%/{NATIVE}/a.o", ("-c", f"%/{DEPS}/a.c", "-I."), True),
    ("kwdb/native", f"%/{NATIVE}/a.o", ("-c", f"%/{DEPS}/a.c", "-Ix86_64"), False),
])
def test_calls_from_elsewhere_that_write_for_dependencies(
    compiler: Compiler, cwd: str, output: str, arguments: tuple[str, ...], *, outside: bool
) -> None:
    compiler(*arguments, "-o", output, cwd=cwd)
    assert compiler.outside() is outside
    assert len(compiler.seen()) == (not outside)
    compiler(*arguments, f"-o{output}", cwd=cwd)
    assert len(compiler.seen()) == 2 * (not outside), "also joined"


@pytest.mark.parametrize(("variable", "value", "outside"), [
    ("CPATH", OWN, True), ("C_INCLUDE_PATH", f"/usr/include:{OWN}", True), ("CPLUS_INCLUDE_PATH", "include", True),
    ("CPLUS_INCLUDE_PATH", "/usr/include:", True), ("CPATH", ":/usr/include", True), ("CPATH", "/a::/b", True),
    ("CPATH", "/usr/../kwdb", True), ("COMPILER_PATH", OWN, True), ("OBJC_INCLUDE_PATH", OWN, True),
    ("CPATH", "%/kwdb", True), ("CPATH", "/kwdb-headers/01:/opt/include", False), ("C_INCLUDE_PATH", "", False),
    ("CPATH", "", False), ("LIBRARY_PATH", OWN, False),
])
def test_variables_that_a_compiler_reads_count_too(
    compiler: Compiler, variable: str, value: str, *, outside: bool
) -> None:
    compiler("-c", "a.cc", **{variable: value})
    assert compiler.outside() is outside


def test_outputs_without_a_name_are_those_that_compilers_give(compiler: Compiler) -> None:
    compiler("-O2", "-c", "src/a.b.cc", f"%/{DEPS}/c.c")
    assert compiler.seen() == [f"{NATIVE}/a.b.o", f"{NATIVE}/c.o", f"{NATIVE}/a.out"]


def test_kwdbs_own_compilations_and_cmake_are_nobodys_business(compiler: Compiler) -> None:
    compiler("-c", "a.cc", "-I../common", "-o", "a.o", cwd=f"{SOURCE}/kwdbts2")
    compiler("-c", "a.cc", f"-I{OWN}", f"-I%/{NATIVE}/include", "-o", f"{OWN}/native.o", cwd=f"{SOURCE}/build")
    compiler("-S", OWN, "-B", ".", name="cmake")
    assert (compiler.outside(), compiler.seen()) == (False, [])
