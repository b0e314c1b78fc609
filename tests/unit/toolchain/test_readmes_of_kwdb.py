# ruff: noqa: RUF001 - half of the READMEs are in Chinese
"""The tables of KWDB's READMEs, release by release: names and versions are facts of KWDB, all other words are ours.

Read from the originals of V2.1.0, V2.2.2, V3.0.0, V3.1.0, V3.2.0, V3.2.1 and master (of July 2026).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from kwdb_build.toolchain.requirements import Phase, Requirement, read_requirements

ANY = "any"
COMPILE_2 = (
    ("ca-certificates", ANY), ("Go", "v1.15+"), ("CMake", "v3.23"), ("Autoconf", "v2.68+"), ("goyacc", "v0.8.0+"),
    ("dpkg-dev", ANY), ("devscripts", ANY), ("build-essential", ANY), ("checkinstall", ANY), ("libssl", "v1.1.1+"),
    ("libprotobuf", "v3.6.1+"), ("liblzma", "v5.2.0+"), ("libncurses", "v6.2.0+"), ("libatomic", "v7.3.0+"),
    ("libstdc++-static", "v7.3.0+"), ("protobuf-compiler", ANY), ("git", ANY),
)
COMPILE_3 = (*COMPILE_2, ("libprotoc-dev", "v3.6.1+"), ("gflags", "V2.2.2"), ("libz4", "V1.9.2"))
RUN_REST = (
    ("geos", "v3.3.8+"), ("xz-libs", "v5.2.0+"), ("squashfs-tools", ANY), ("libgcc", "v7.3.0+"), ("mount", ANY),
    ("squashfuse", ANY),
)
RUN_21 = (("openssl", "v1.1.1+"), ("protobuf", "v3.5.0+"), *RUN_REST)
RUN_22 = (("openssl", "v1.1.1+"), ("libprotobuf", "v3.6.1+  <br>**N**：18.04（3.6.1、3.12.4）`make X=<y>`。"), *RUN_REST)

COMPILERS = """\
cmake_minimum_required(VERSION 3.6)
if (CMAKE_CXX_COMPILER_VERSION VERSION_LESS 7.3 OR CMAKE_CXX_COMPILER_VERSION VERSION_GREATER 13.2)
"""
OPENMP, BRPC = "find_package(OpenMP REQUIRED)\n", "# for brpc\n"
STATIC = "find_package(PkgConfig REQUIRED)\nset(S libssl.a libcrypto.a)\n"
BUNDLED = "".join(f"add(../third_party/{name})\n" for name in ("protobuf", "gflags", "lz4"))
KWBASE = "Y := ./vendor/golang.org/x/tools/cmd/goyacc\nLIBROCKSDB := x\n\tcd $(X) && autoconf\n"


@dataclass(frozen=True)
class Release:
    """compile and run are the README's tables; the texts are what its build files say that matters."""

    compile: tuple[tuple[str, str], ...]
    run: tuple[tuple[str, str], ...]
    root: str
    series: str
    kwbase: str


OLD = Release(COMPILE_2, RUN_21, COMPILERS, OPENMP, KWBASE + "LIBUNWIND := x\n")
OLD_22 = Release(COMPILE_2, RUN_22, COMPILERS, OPENMP, KWBASE + "LIBUNWIND := x\n")
NEW_30 = Release(COMPILE_3, RUN_22, COMPILERS, OPENMP + BRPC, KWBASE + "LIBUNWIND := x\n")
NEW_32 = Release(
    COMPILE_3, RUN_22, COMPILERS + "add_custom_command(COMMAND objcopy --strip-debug)\n", OPENMP + STATIC + BRPC + BUNDLED,
    KWBASE + "-Wl,-Bstatic -lz\n-Wl,-Bstatic -ltinfo\n",
)
RELEASES = {
    "V2.1.0": OLD, "V2.2.2": OLD_22, "V3.0.0": NEW_30, "V3.1.0": NEW_30, "V3.2.0": NEW_32, "V3.2.1": NEW_32,
    "master": NEW_32,
}


def written(root: Path, release: Release) -> Path:
    """A tree with the READMEs and build files of a release."""
    for file, heads, notes, titles in (
        ("README.md", ("依赖", "版本", "说明"), ("仅 GCC 7.3.0 版本要。", "只有 Ubuntu。"), ("编译依赖：", "运行依赖：")),
        ("README.en.md", ("Dependency", "Version", "Description"), ("Only for GCC 7.3.0 and above.", "Ubuntu only."),
         ("Compilation Dependencies:", "Running Dependencies:")),
    ):
        special = {"libatomic": notes[0], "libstdc++-static": notes[0], "dpkg-dev": notes[1], "devscripts": notes[1]}
        lines = [f"**{titles[0]}**", "", f"| {' | '.join(heads)} |", "| :---- | :---- | ---- |"]
        lines += [f"| {name:<20}| {version} | {special.get(name, '')} |" for name, version in release.compile]
        lines += ["", f"**{titles[1]}**", "", f"| {heads[0]} | {heads[1]} |", "| :--- | :---- |"]
        lines += [f"| {name} | {version} |" for name, version in release.run]
        root.joinpath(file).write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name, text in (
        ("CMakeLists.txt", release.root), ("kwdbts2/CMakeLists.txt", release.series), ("kwbase/Makefile", release.kwbase),
        ("Makefile", "build: all\n"),
    ):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def rows(tmp_path: Path, name: str) -> dict[tuple[Phase, str], Requirement]:
    return {(row.phase, row.name): row for row in read_requirements(written(tmp_path, RELEASES[name])).rows}


@pytest.mark.parametrize("name", RELEASES)
def test_every_row_of_both_languages_is_read(tmp_path: Path, name: str) -> None:
    found = rows(tmp_path, name)
    assert all(row.readable for row in found.values())
    for phase, table in ((Phase.COMPILE, RELEASES[name].compile), (Phase.RUN, RELEASES[name].run)):
        for dependency, version in table:
            least = version.split()[0].strip("vV+") if version != ANY else ""
            assert found[phase, dependency].minimum == least
    assert len(found) == {"V2.1.0": 29, "V2.2.2": 29, "V3.0.0": 33, "V3.1.0": 33}.get(name, 39), "as in the originals"


@pytest.mark.parametrize("name", RELEASES)
def test_what_the_languages_say_differently(tmp_path: Path, name: str) -> None:
    """The Chinese one: for gcc 7.3.0. The English one: for gcc 7.3.0 and all above, which is another thing."""
    different = {row.name: row.differs for row in rows(tmp_path, name).values() if row.differs}
    assert set(different) == {"libatomic", "libstdc++-static"}
    assert "for gcc 7.3.0 only; README.en.md" in different["libatomic"]
    assert different["libatomic"].endswith("for gcc 7.3.0 and newer")


@pytest.mark.parametrize("name", RELEASES)
def test_what_the_build_files_add_and_take_away(tmp_path: Path, name: str) -> None:
    found = rows(tmp_path, name)
    names = {row for phase, row in found if phase is Phase.COMPILE}
    assert {"gcc", "g++", "make", "libgomp"} <= names
    assert (found[Phase.COMPILE, "gcc"].minimum, found[Phase.COMPILE, "gcc"].maximum) == ("7.3", "13.2")
    assert found[Phase.COMPILE, "CMake"].floor == "3.6", "README's 3.23 is not what CMake itself refuses"
    static = {"libssl.a", "libcrypto.a", "libz.a", "libtinfo.a", "objcopy", "pkg-config"}
    assert names & static == (static if RELEASES[name] is NEW_32 else set()), "silently, from 3.2.0 on"
    assert ("zlib" in names) == (RELEASES[name] in {NEW_30, NEW_32})
    waived = {row.name for row in found.values() if row.waived and row.phase is Phase.COMPILE}
    own = {"libprotobuf", "libprotoc-dev", "protobuf-compiler", "gflags", "libz4", "liblzma"}
    assert waived - own == {"ca-certificates", "goyacc", "dpkg-dev", "devscripts", "checkinstall"}
    assert waived & own == (own if RELEASES[name] is NEW_32 else set())


def test_a_row_in_one_language_only_and_another_version(tmp_path: Path) -> None:
    tree = written(tmp_path, NEW_32)
    english = tree / "README.en.md"
    text = english.read_text().replace("| gflags              | V2.2.2 |  |\n", "").replace("v1.15+", "v1.16+")
    text = text.replace("v2.68+", "recent")
    english.write_text(text)
    found = {row.name: row for row in read_requirements(tree).rows}
    assert found["gflags"].differs == "README.en.md has no such row"
    assert (found["Go"].minimum, found["Go"].differs) == ("1.16", "README.md:6 says 1.15 or newer")
    assert not found["Autoconf"].readable
    assert found["Autoconf"].differs == "README.md:8 says 2.68 or newer"
