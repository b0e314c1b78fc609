from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwdb_build.build import recipe as recipes
from kwdb_build.build.includes import Includes
from kwdb_build.errors import UsageError
from kwdb_build.model import BuildOptions, SourceTree, Version


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
    headers = "0a" * 32
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
