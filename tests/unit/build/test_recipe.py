from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwdb_build.build import recipe as recipes
from kwdb_build.build.includes import Includes
from kwdb_build.build.inputs import Headers
from kwdb_build.errors import UsageError
from kwdb_build.model import BuildOptions, SourceTree, Version

if TYPE_CHECKING:
    from collections.abc import Callable


def tree(version: str) -> SourceTree:
    return SourceTree(
        path=Path("/x/src/gitee.com/kwbasedb"), url="", ref="", commit="a" * 40, version=Version.parse(version),
        commit_time=86_400, submodules=(),
    )


@pytest.mark.parametrize(
    ("version", "name"),
    [
        ("V2.0.3.2_RC3-3-gfe5eeb853e", "kwdb-2"), ("V2.2.2", "kwdb-2"), ("V3.0.0", "kwdb-3.0"), ("V3.1.0", "kwdb-3.0"),
        ("V3.2.0", "kwdb-3.2"), ("V3.2.1", "kwdb-3.2"), ("V4.0", "kwdb-3.2"), ("V1.0.0", "kwdb-2"),
    ],
)
def test_generation_of_a_version(version: str, name: str) -> None:
    assert recipes.recipe_for(Version.parse(version)).name == name


def test_the_command_line_is_whole_and_stable() -> None:
    options = BuildOptions(build_type="Release", make_variables=(("WITH_ASAN", "OFF"), ("KWBASE_OSS", "ON")))
    argv = recipes.make_argv(recipes.recipe_for(Version.parse("V3.1.0")), tree("V3.1.0"), options, 3)
    assert argv == (
        "/kwdb-shims/enter", "022", "make", "-j3", "BUILD_TYPE=Release", "INSTALL_PATH=/kwdb/install",
        "BUILDINFO_TAG=V3.1.0", "GOFLAGS=-trimpath -v", "NCPUS=3", "KWBASE_OSS=ON", "WITH_ASAN=OFF", "install",
    )


@pytest.mark.parametrize(
    "options",
    [
        BuildOptions(build_type="release"),
        BuildOptions(build_type="Release;id"),
        BuildOptions(make_variables=(("GOPATH", "/x"),)),
        BuildOptions(make_variables=(("BUILDINFO_TAG", "V9.9.9"),)),
        BuildOptions(make_variables=(("lower", "x"),)),
        BuildOptions(make_variables=(("-C", "x"),)),
        BuildOptions(make_variables=(("PROTOBUF_DIR", "/a b"),)),
        BuildOptions(make_variables=(("PROTOBUF_DIR", "$(shell id)"),)),
        BuildOptions(make_variables=(("PROTOBUF_DIR", "/a;id"),)),
        BuildOptions(make_variables=(("PROTOBUF_DIR", "/a\n"),)),
        BuildOptions(make_variables=(("CMAKE_CONFIG_OPTIONS", "-DX=1"),)),
        BuildOptions(make_variables=(("GOFLAGS", "-race"),)),
        BuildOptions(cmake_variables=(("CMAKE_BUILD_TYPE", "Debug"),)),
        BuildOptions(cmake_variables=(("A:STRING", "x"),)),
        BuildOptions(cmake_variables=(("A", "x y"),)),
        BuildOptions(cmake_variables=(("A", "$(id)"),)),
    ],
)
def test_options_that_a_shell_could_act_on_are_refused(options: BuildOptions) -> None:
    with pytest.raises(UsageError):
        recipes.make_argv(recipes.RECIPES[0], tree("V3.2.0"), options, 1)


def test_the_environment_is_offline_and_has_the_commits_time() -> None:
    headers = Headers(contents="0a" * 32, names="")
    includes = Includes(order="0b" * 32, reads_commit=False, embeds=False, libraries_embed=True)
    environment = recipes.environment(
        tree("V3.1.0"), {"PATH": "/opt/go/bin:/usr/bin", "CC": "gcc-12"}, headers, includes
    )
    assert environment["CGO_CPPFLAGS"] == f"-DKWDB_BUILD_HEADERS_{'0a' * 16}"
    assert environment["CPATH"] == f"/kwdb-includes/{'0b' * 16}"
    assert environment["KWDB_DEPEND"] == "own"
    assert environment["CCACHE_IGNOREOPTIONS"] == "-DGIT_COMMIT_ID=*"
    reading = recipes.environment(tree("V3.1.0"), {}, headers, replace(includes, reads_commit=True))
    assert reading["CCACHE_IGNOREOPTIONS"] == ""
    assert environment["PATH"] == "/kwdb-shims:/scratch/tools:/opt/go/bin:/usr/bin"
    assert (environment["KWDB_PATH"], environment["KWDB_CCACHE"]) == ("/opt/go/bin:/usr/bin", "/usr/bin/ccache")
    other = recipes.environment(tree("V3.1.0"), {"PATH": "/usr/lib/ccache:/usr/lib64/ccache/bin:/usr/bin",
                                                 "CPATH": "/opt/include"}, headers, includes)
    assert other["KWDB_PATH"] == "/usr/bin", "what leads back to ccache would be called without end"
    assert other["CPATH"].endswith(":/opt/include")
    without = recipes.environment(tree("V3.1.0"), {}, headers, None)
    assert without["KWDB_CCACHE"] == ""
    assert "CPATH" not in without
    assert environment["CC"] == "gcc-12"
    assert environment["SOURCE_DATE_EPOCH"] == "86400"
    assert environment["GOPROXY"] == "off"
    assert environment["GO111MODULE"] == "off"
    assert environment["GOPATH"] == "/kwdb"
    # All that the build writes to lies beside the working copy, whose file system was checked for space.
    assert environment["HOME"].startswith("/kwdb/")
    assert environment["TMPDIR"].startswith("/scratch")
    assert all(environment[name].startswith("/kwdb-cache/") for name in ("GOCACHE", "CCACHE_DIR"))
    assert not environment["TMPDIR"].startswith(environment["GOPATH"])
    assert "CCACHE_SLOPPINESS" not in environment


@given(cores=st.integers(1, 512), memory=st.integers(0, 1 << 44))
def test_jobs_fit_into_cores_and_memory(cores: int, memory: int) -> None:
    jobs = recipes.jobs_for(cores, memory)
    assert 1 <= jobs <= cores
    assert jobs == 1 or jobs * 900_000_000 + 2_000_000_000 <= memory


def test_jobs_for_known_machines() -> None:
    assert recipes.jobs_for(8, 8 << 30) == 7
    assert recipes.jobs_for(16, 8 << 30) == 7
    assert recipes.jobs_for(4, 2 << 30) == 1


@pytest.mark.parametrize(
    ("text", "size"), [("", 0), ("8g", 8 << 30), ("512m", 512 << 20), ("64K", 64 << 10), ("10", 10), ("2GiB", 2 << 30)]
)
def test_sizes(text: str, size: int) -> None:
    assert recipes.parse_size(text) == size


@pytest.mark.parametrize("text", ["eight", "8x", "-1g", "1.5g"])
def test_wrong_sizes(text: str) -> None:
    with pytest.raises(UsageError):
        recipes.parse_size(text)


@pytest.fixture
def date(tmp_path: Path) -> Callable[..., str]:
    shim = tmp_path / "date"
    shim.write_text(recipes.DATE_SHIM)
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


@pytest.mark.parametrize("directory", ["/kwdb/native/x86_64-linux-gnu/rocksdb", str(recipes.THIRD_PARTY / "brpc-1.9.0")])
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
                          ("-MMD", "-c", "a.cc", "-o", "a.o"), ("-c", "a.cc", "-o", "a.o"))
        ]
        for depth in ("all", "own", "")
    }
    assert answers == {
        "all": [True, True, True, False, False], "own": [True, False, True, False, False], "": [False] * 5,
    }, "-MMD leaves out what lies in a directory of system headers, which some of the bundled ones do"


def test_an_option_that_an_object_shows_is_not_ignored(tools: Tools) -> None:
    seen = {
        flag: "ignore" in tools("g++", "-g", flag, "-O3", '-DGIT_COMMIT_ID="1"', "-c", "a.cc", ignore="-DGIT_COMMIT_ID=*")
        for flag in ("-g", "-O3", "-gno-record-gcc-switches", "-g3", "-ggdb3", "-frecord-gcc-switches",
                     "-grecord-command-line", "-frecord-command-line")
    }
    assert list(seen.values()) == [True, True, True, False, False, False, False, False]


class Tools:
    """What `enter` lays out of a directory of compilers that only say how they were called."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.compilers, self.links = place / "compilers", place / "scratch/tools"
        self.compilers.mkdir()
        (place / "scratch").mkdir()
        (place / "tool").write_text(recipes.TOOL_SHIM)
        (place / "enter").write_text(recipes.ENTER.replace(f"{recipes.SHIMS}/tool", f"{place}/tool"))
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


def test_variables_as_a_person_gives_them() -> None:
    assert recipes.parse_variables(("A=1", "B=x=y", "C="), option="--make-var") == (("A", "1"), ("B", "x=y"), ("C", ""))
    with pytest.raises(UsageError, match="has no value"):
        recipes.parse_variables(("A",), option="--make-var")
    with pytest.raises(UsageError, match="twice"):
        recipes.parse_variables(("A=1", "A=2"), option="--cmake-var")


def test_cmake_variables_keep_what_the_makefile_would_pass_on() -> None:
    assert recipes.cmake_environment(BuildOptions()) == {}
    given = recipes.cmake_environment(
        BuildOptions(cmake_variables=recipes.asan((("ENABLE_STATS", "ON"),)), make_variables=(("KWBASE_OSS", "OFF"),))
    )
    assert given["CMAKE_CONFIG_OPTIONS"] == (
        "-DCMAKE_BUILD_TYPE=$(BUILD_TYPE) -DCMAKE_INSTALL_PREFIX=$(INSTALL_PATH) -DPROTOBUF_DIR=$(PROTOBUF_DIR) "
        "-DKWBASE_OSS=OFF -DENABLE_STATS=ON -DWITH_ASAN=ON"
    )
    assert recipes.asan((("WITH_ASAN", "OFF"),)) == (("WITH_ASAN", "ON"),)
    assert "verify_asan_link_order=0" in recipes.asan_environment([["WITH_ASAN", "ON"]])["ASAN_OPTIONS"]
    assert recipes.asan_environment([["WITH_ASAN", "OFF"]]) == {}


def test_the_wrapper_of_a_build_sets_the_umask_and_passes_the_exit_code_on(tmp_path: Path) -> None:
    enter = tmp_path / "enter"
    enter.write_text(recipes.ENTER)
    enter.chmod(0o755)
    done = subprocess.run(
        [enter, "027", "sh", "-c", "umask; while ! test -s memory; do :; done; exit 7"], cwd=tmp_path, check=False,
        env={"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)}, capture_output=True, text=True, timeout=60,
    )
    assert (done.returncode, done.stdout.strip()) == (7, "0027")
    now, most = (int(word) for word in (tmp_path / "memory").read_text().split())
    assert 0 < now <= most
