"""Our stand-ins for programs, under a real shell."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kwdb_build.build import shims
from kwdb_build.build.recipe import SHIMS, THIRD_PARTY

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def date(tmp_path: Path) -> Callable[..., str]:
    shim = tmp_path / "date"
    shim.write_text(shims.DATE_SHIM)
    shim.chmod(0o755)

    def call(*arguments: str) -> str:
        environment = {"SOURCE_DATE_EPOCH": "1700000000", "TZ": "UTC", "PATH": os.environ["PATH"], "LC_ALL": "C"}
        done = subprocess.run([shim, *arguments], env=environment, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    return call


def test_the_date_of_a_build_is_the_commits(date: Callable[..., str]) -> None:
    assert date("-u", "+%Y/%m/%d %H:%M:%S") == "2023/11/14 22:13:20"
    assert date("+%s") == "1700000000"
    assert date("-u", "--rfc-3339=seconds").startswith("2023-11-14")
    assert date() == "Tue Nov 14 22:13:20 UTC 2023"


def test_the_day_that_a_configure_script_is_made_of_is_no_commits(tmp_path: Path) -> None:
    """libedit's asks for it by autoconf, in the source: a trace of one commit, and no other one could use the rest."""
    shim = tmp_path / "date"
    shim.write_text(shims.DATE_SHIM.replace("/kwdb/", f"{tmp_path}/kwdb/"))
    shim.chmod(0o755)
    seen = {}
    for place in ("kwbase/c-deps/libedit", "kwdbts2/third_party/x", "kwbase", "kwbase/c-deps-not", "kwdbts2"):
        cwd = tmp_path / "kwdb/src/gitee.com/kwbasedb" / place
        cwd.mkdir(parents=True, exist_ok=True)
        environment = {"SOURCE_DATE_EPOCH": "1700000000", "TZ": "UTC", "PATH": os.environ["PATH"]}
        done = subprocess.run(["sh", "-c", f"{shim} +%Y%m%d"], env=environment, cwd=cwd, check=True, capture_output=True)
        seen[place] = done.stdout.decode().strip()
    assert seen == {
        "kwbase/c-deps/libedit": "19800101", "kwdbts2/third_party/x": "19800101", "kwbase": "20231114",
        "kwbase/c-deps-not": "20231114", "kwdbts2": "20231114",
    }


@pytest.mark.parametrize("directory", [
    "/kwdb/native/x86_64-linux-gnu/rocksdb", str(THIRD_PARTY / "brpc-1.9.0"),
    "/kwdb/src/gitee.com/kwbasedb/kwbase/c-deps/libedit",
])
def test_what_is_made_for_dependencies_has_a_time_that_is_no_commits(tools: Tools, directory: str) -> None:
    assert tools("g++", "-c", "a.cc", "-o", f"{directory}/a.o")[0] == "1980"
    assert tools("cc", "-o", f"{directory}/a.o", "-c", "a.c")[0] == "1980"
    assert tools("cc", "-c", "a.c", f"-o{directory}/a.o")[0] == "1980"
    assert tools("g++", "-c", "a.cc", "-o", "/kwdb/src/a.o", f"-I{directory}", f"{directory}/b.a")[0] == "2023"
    assert tools("g++", "-c", "a.cc", "-o", "/kwdb/native-not/a.o")[0] == "2023"


def test_compilers_are_found_by_every_name_and_go_through_ccache(tools: Tools) -> None:
    awkward = ('-DX="a b"', "-c", "a b.cc", "*", "")
    for name in ("g++", "gcc-12", "x86_64-linux-gnu-g++-12", "clang", "c99"):
        assert tools(name, *awkward) == ("2023", "ccache", f"{tools.compilers}/{name}", *awkward)
        assert tools(name, *awkward, ccache=False) == ("2023", f"{tools.compilers}/{name}", *awkward)
    trial = tools.place / "build/CMakeFiles/CMakeScratch/TryCompile-x"
    trial.mkdir(parents=True)
    assert tools("g++", "-c", "x.cc", cwd=trial) == ("2023", f"{tools.compilers}/g++", "-c", "x.cc")
    assert tools("cmake", "-S", ".") == ("2023", f"{tools.compilers}/cmake", "-S", ".")
    assert tools("g++", "-o", "x", code=3)[-2:] == ("-o", "x")
    assert sorted(path.name for path in tools.links.iterdir()) == [
        "c99", "cc", "clang", "cmake", "g++", "gcc-12", "x86_64-linux-gnu-g++-12",
    ], "and neither gcc-ar nor what another program is named"


def test_a_compiler_that_lists_what_it_reads_is_not_preceded_by_its_preprocessor(tools: Tools) -> None:
    library = "/kwdb/native/lz4"
    listing = ("-O2", "-MD", "-MF", "a.d", "-c", "a.cc", "-o")
    answers = {
        depth: [
            tools.depends(depth, "g++", *words)
            for words in ((*listing, "a.o"), (*listing, f"{library}/a.o"), ("-MD", "-o", "a.o"),
                          ("-MMD", "-c", "a.cc", "-o", "a.o"), ("-MD", "-MMD", "-c", "a.cc", "-o", "a.o"),
                          ("-c", "a.cc", "-o", "a.o"))
        ]
        for depth in ("all", "own", "")
    }
    assert answers == {
        "all": [True, True, True, False, False, False], "own": [True, False, True, False, False, False],
        "": [False] * 6,
    }, "-MMD leaves out what lies in a directory of system headers, which some of the bundled ones do"


def test_an_option_that_an_object_shows_is_not_ignored(tools: Tools) -> None:
    seen = {
        flag: "ignore" in tools("g++", "-g", flag, "-O3", '-DGIT_COMMIT_ID="1"', "-c", "a.cc", ignore="-DGIT_COMMIT_ID=*")
        for flag in ("-g", "-O3", "-gno-record-gcc-switches", "-g3", "-ggdb3", "-frecord-gcc-switches",
                     "-grecord-command-line", "-frecord-command-line", "-fdebug-macro", "@options")
    }
    assert list(seen.values()) == [True] * 3 + [False] * 7


def test_only_kwdbs_own_configuration_is_put_in_order(tools: Tools) -> None:
    include = "-DCMAKE_PROJECT_INCLUDE=/kwdb-shims/order.cmake"
    source = "/kwdb/src/gitee.com/kwbasedb"
    assert tools("cmake", "-B", f"{source}/build", "-S", source, "-DX=a b")[-6:] == (
        "-B", f"{source}/build", "-S", source, "-DX=a b", include
    )
    for words in (("--build", source), ("-S", f"{source}/kwdbts2/third_party/brpc-1.9.0", "-B", "x"), ("-E", "true")):
        assert include not in tools("cmake", *words)
    assert include not in tools("g++", "-S", source, "a.cc")


class Tools:
    """What `enter` lays out of a directory of compilers that only say how they were called."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.compilers, self.links = place / "compilers", place / "scratch/tools"
        self.compilers.mkdir()
        (place / "scratch").mkdir()
        (place / "tool").write_text(shims.TOOL_SHIM)
        (place / "enter").write_text(shims.ENTER.replace(f"{SHIMS}/tool", f"{place}/tool"))
        names = ("cc", "g++", "gcc-12", "gcc-ar", "gcc-ar-12", "x86_64-linux-gnu-g++-12", "clang", "c99", "cmake", "ld")
        for name in names:
            (self.compilers / name).write_text(
                '#!/bin/sh\nYEAR=$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y)\n'
                'printf "%s\\0" "$YEAR" $CACHED ${CCACHE_DEPEND:+depend} ${CCACHE_IGNOREOPTIONS:+ignore} "$0" "$@"\n'
                "exit ${CODE:-0}\n"
            )
        (place / "ccache").write_text('#!/bin/sh\nCACHED=ccache exec "$@"\n')
        for path in (place / "tool", place / "enter", place / "ccache", *self.compilers.iterdir()):
            path.chmod(0o755)

    def depends(self, depth: str, name: str, *arguments: str) -> bool:
        """Whether ccache is told to go by what the compiler lists."""
        return "depend" in self(name, *arguments, depth=depth)

    def __call__(
        self, name: str, *arguments: str, ccache: bool = True, code: int = 0, depth: str = "", ignore: str = "",
        cwd: Path | None = None,
    ) -> tuple[str, ...]:
        environment = {
            "PATH": f"{self.links}:{os.environ['PATH']}", "KWDB_PATH": f"/no/such/place:{self.compilers}:{self.place}",
            "KWDB_CCACHE": f"{self.place}/ccache" if ccache else "", "TMPDIR": f"{self.place}/scratch",
            "SOURCE_DATE_EPOCH": "1700000000", "CODE": str(code), "KWDB_DEPEND": depth,
            "CCACHE_IGNOREOPTIONS": ignore,
        }
        done = subprocess.run(
            [self.place / "enter", "022", name, *arguments], env=environment, check=False, capture_output=True,
            text=True, timeout=60, cwd=cwd,
        )
        assert (done.returncode, done.stderr) == (code, "")
        return tuple(done.stdout.split("\0")[:-1])


@pytest.fixture
def tools(tmp_path: Path) -> Tools:
    return Tools(tmp_path)


def test_a_date_that_was_asked_for_is_the_real_one(date: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    os.utime(file, (86_400, 86_400))
    assert date("-u", "-d", "@0", "+%Y") == "1970"
    assert date("-u", "--date=@0", "+%Y") == "1970"
    assert date("-u", "-r", str(file), "+%d") == "02"


def test_the_wrapper_of_a_build_sets_the_umask_and_passes_the_exit_code_on(tmp_path: Path) -> None:
    enter = tmp_path / "enter"
    enter.write_text(shims.ENTER)
    enter.chmod(0o755)
    done = subprocess.run(
        [enter, "027", "sh", "-c", "umask; while ! test -s memory; do :; done; exit 7"], cwd=tmp_path, check=False,
        env={"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)}, capture_output=True, text=True, timeout=60,
    )
    assert (done.returncode, done.stdout.strip()) == (7, "0027")
    now, most = (int(word) for word in (tmp_path / "memory").read_text().split())
    assert 0 < now <= most


class Asks:
    """A place with a program named kwbase, which `enter` asks for its version after a build."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.gopath = place / "gopath"
        (self.gopath / "install/bin").mkdir(parents=True)
        for built in ("src/gitee.com", "native"):
            (self.gopath / built).mkdir(parents=True)
        self.enter = place / "enter"
        self.enter.write_text(shims.ENTER)
        self.enter.chmod(0o755)

    def __call__(self, text: str, *command: str, asked: bool = True) -> tuple[int, list[str]]:
        kwbase, answer = self.gopath / "install/bin/kwbase", self.place / "version"
        kwbase.write_text(f"#!/bin/sh\n{text}\n")
        kwbase.chmod(0o755)
        answer.unlink(missing_ok=True)
        shutil.rmtree(self.place / "asked", ignore_errors=True)
        self.done = subprocess.run(
            [self.enter, "022", *(command or ("true",))], cwd=self.gopath / "src", check=False, capture_output=True,
            text=True, timeout=60, env={
                "PATH": os.environ["PATH"], "KWDB_PATH": os.environ["PATH"], "TMPDIR": str(self.place), "KWDB_CCACHE": "",
                "GOPATH": str(self.gopath), "SECRET": "x", "KWDB_ASAN_OPTIONS": "of=asan",
                **({"KWDB_ASKED": str(self.gopath / "install/bin")} if asked else {}),
            },
        )
        return self.done.returncode, answer.read_text().splitlines() if answer.exists() else []

    @property
    def left(self) -> list[str]:
        """All that is in the working copy."""
        return sorted(str(path.relative_to(self.gopath)) for path in self.gopath.rglob("*"))


@pytest.fixture
def asks(tmp_path: Path) -> Asks:
    return Asks(tmp_path)


AS_BEFORE = ["install", "install/bin", "install/bin/kwbase", "native", "src", "src/gitee.com"]


def test_the_result_of_a_build_is_asked_by_itself(asks: Asks) -> None:
    code, said = asks(
        f'echo "$1 $LD_LIBRARY_PATH $ASAN_OPTIONS $TZ.$SECRET"; ls {asks.gopath}; echo oops >&2; mkdir logs; touch ../log'
    )
    assert (code, asks.done.stderr) == (0, "")
    assert [line for line in said if line] == [
        f"version {asks.gopath}/install/lib of=asan UTC.", "install", "oops", "0"
    ]
    assert asks.left == AS_BEFORE, "what it left where it was called would be stored"


def test_what_a_result_says_is_noted_with_its_exit_code_and_does_not_fail_make(asks: Asks) -> None:
    assert asks("printf half; exit 3") == (0, ["half", "3"])
    assert asks("kill -9 $$")[1][-1] == "137"
    assert asks("true", asked=False) == (0, [])
    assert asks("true", "sh", "-c", "exit 2") == (2, []), "nothing is asked after a make that failed"
    assert asks.left == AS_BEFORE
    assert asks("true", "rm", str(asks.gopath / "install/bin/kwbase"))[1][-1] == "127"


def test_a_result_that_talks_without_end_is_cut_off(asks: Asks) -> None:
    code, said = asks("yes")
    assert code == 0
    assert said[-1] not in {"0", ""}
    assert (asks.place / "version").stat().st_size < 2 << 20


def test_what_cannot_be_moved_out_of_the_way_or_back_is_no_success(asks: Asks) -> None:
    code, said = asks(f"mkdir {asks.gopath}/src; touch {asks.gopath}/src/x; echo V1")
    assert (code, said[-1]) == (1, "0")
    assert (asks.gopath / ".src/gitee.com").is_dir()
    assert "not empty" in asks.done.stderr
    shutil.rmtree(asks.gopath / "src")
    (asks.gopath / "src").mkdir()
    assert asks("echo V1")[1] == [], "what is in the way is not asked past"
