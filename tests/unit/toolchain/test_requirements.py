# ruff: noqa: RUF001 - the READMEs are in Chinese
from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwdb_build.toolchain.requirements import (
    C_DEPS,
    Phase,
    Requirement,
    Requirements,
    merge,
    numbers,
    parse_tables,
    read_requirements,
    refine,
)

if TYPE_CHECKING:
    from pathlib import Path

# The shape of KWDB's own tables (V2.0.3 to V3.2.1): names and versions are its facts, the notes are ours.
CHINESE = """\
# 标题

下表列出依赖。

**编译依赖：**

| 依赖              | 版本    | 说明                     |
| :---------------- | :------ | ------------------------ |
| ca-certificates   | any     |                          |
| Go                | v1.15+  |                          |
| CMake             | v3.23   |                          |
| goyacc            | v0.8.0+ |                          |
| dpkg-dev          | any     | 仅 Ubuntu                |
| libssl            | v1.1.1+ | - 一。<br/>- **二**。    |
| libz4             | V1.9.2  |                          |

**运行依赖：**

| 依赖           | 版本    |
| :-------------| :------ |
| openssl        | v1.1.1+ |
| libprotobuf    | v3.6.1+  <br>**注意**：旧的不行（推荐 3.12.4）。|
| geos           | v3.3.8+ |

### 其他

| 目录 | 用途 |
| ---- | ---- |
| bin  | v1.0 |
"""

ENGLISH = """\
### OS and Software Dependencies

The table lists what is required for compiling and running.

**Compilation Dependencies:**

| Dependency          | Version | Description    |
| :------------------ | :------ | :------------- |
| Go                   | v1.16+  |              |
| CMake               | v3.23   |                |
| gflags              | V2.2.2  | a note         |

**Running Dependencies:**

| Dependency       | Version   |
| :--------------- | :-------- |
| openssl          | v1.1.1+   |
"""


def test_a_chinese_readme() -> None:
    rows = parse_tables(CHINESE, "README.md")
    assert [(row.name, row.minimum, row.phase) for row in rows] == [
        ("ca-certificates", "", Phase.COMPILE), ("Go", "1.15", Phase.COMPILE), ("CMake", "3.23", Phase.COMPILE),
        ("goyacc", "0.8.0", Phase.COMPILE), ("dpkg-dev", "", Phase.COMPILE), ("libssl", "1.1.1", Phase.COMPILE),
        ("libz4", "1.9.2", Phase.COMPILE), ("openssl", "1.1.1", Phase.RUN), ("libprotobuf", "3.6.1", Phase.RUN),
        ("geos", "3.3.8", Phase.RUN),
    ]
    assert all(row.readable for row in rows)
    assert rows[1].where == "README.md:10"
    assert rows[5].note == "- 一。 - 二 。"
    assert rows[8].note.startswith("注意")


def test_an_english_readme() -> None:
    rows = parse_tables(ENGLISH, "README.en.md")
    assert [(row.name, row.minimum, row.phase.value) for row in rows] == [
        ("Go", "1.16", "compile"), ("CMake", "3.23", "compile"), ("gflags", "2.2.2", "compile"),
        ("openssl", "1.1.1", "run"),
    ]


def test_both_languages_together_and_the_stricter_one_counts() -> None:
    rows = merge([parse_tables(CHINESE, "README.md"), parse_tables(ENGLISH, "README.en.md")])
    by_name = {(row.phase, row.name): row for row in rows}
    go = by_name[Phase.COMPILE, "Go"]
    assert (go.minimum, go.where) == ("1.16", "README.en.md:9")
    assert go.differs == "README.md:10 says 1.15 or newer"
    assert by_name[Phase.COMPILE, "CMake"].where == "README.md:11"
    assert by_name[Phase.COMPILE, "gflags"].where == "README.en.md:11"
    assert len(rows) == 11


@pytest.mark.parametrize(
    ("cell", "minimum", "maximum", "readable"),
    [
        ("v1.15+", "1.15", "", True), ("1.15", "1.15", "", True), (">= 2.0", "2.0", "", True), ("≥3", "3", "", True),
        ("any", "", "", True), ("ANY", "", "", True), ("任意", "", "", True), ("", "", "", True), ("-", "", "", True),
        ("7.3 - 13.2", "7.3", "13.2", True), ("v7.3~v13.2", "7.3", "13.2", True), ("3.6 及以上", "3.6", "", True),
        ("3.6 or newer", "3.6", "", True), ("v3.6.1+ <br> **Note:** x", "3.6.1", "", True), ("v3.6.1+，注", "3.6.1", "", True),
        ("latest", "", "", False), ("v1.x", "", "", False), ("1.2rc1", "", "", False), ("see below", "", "", False),
        ("== 3.6", "", "", False), ("< 4", "", "", False), ("1.2.3-beta", "", "", False),
    ],
)
def test_version_cells(cell: str, minimum: str, maximum: str, readable: bool) -> None:
    (row,) = parse_tables(f"| 依赖 | 版本 |\n|--|--|\n| x | {cell} |\n", "R")
    assert (row.minimum, row.maximum, row.readable) == (minimum, maximum, readable)


@pytest.mark.parametrize(
    "line", ["| x |", "| x", "|  | v1.0 |"]
)
def test_a_row_that_cannot_be_read_stays_as_one_that_cannot_be_read(line: str) -> None:
    (row,) = parse_tables(f"| 依赖 | 版本 |\n|--|--|\n{line}\n", "R")
    assert not row.readable


def test_other_layouts_of_the_same_table() -> None:
    text = "Build:\n\nVersion | Note | Dependency\n--- | --- | ---\nv1.15+ | a \\| b | `Go`\n\nend"
    (row,) = parse_tables(text, "R")
    assert (row.name, row.minimum, row.note) == ("Go", "1.15", "a | b")


@given(st.text(alphabet="|- \n:v1.依赖版本any*", max_size=200))
def test_no_text_breaks_the_parser(text: str) -> None:
    for row in parse_tables(text, "R"):
        assert row.where.startswith("R:")


def test_a_name_that_is_the_same_thing_in_both_phases_stays_two_rows() -> None:
    rows = merge([(Requirement(name="a", where="x"), Requirement(name="a", where="y", phase=Phase.RUN))])
    assert len(rows) == 2


def test_an_unreadable_row_is_not_hidden_by_the_other_language() -> None:
    good, bad = Requirement(name="Go", where="a", minimum="1.0"), Requirement(name="go", where="b", readable=False)
    for tables in ([(good,), (bad,)], [(bad,), (good,)]):
        (row,) = merge(tables)
        assert not row.readable


KWBASE_MAKE = """\
LIBROCKSDB := x.a
bin/.bootstrap:
\t./vendor/golang.org/x/tools/cmd/goyacc
\tcd $(JEMALLOC_SRC_DIR) && autoconf
LDFLAGS += -Wl,-Bstatic -lz -Wl,-Bdynamic
"""
ROOT_CMAKE = """\
cmake_minimum_required(VERSION 3.6 FATAL_ERROR)
if(CMAKE_CXX_COMPILER_VERSION VERSION_LESS 7.3)
endif()
if(CMAKE_CXX_COMPILER_VERSION VERSION_GREATER 13.2)
endif()
"""
TS_CMAKE = """\
find_package(PkgConfig REQUIRED)
FIND_PACKAGE(OpenMP REQUIRED)
set(SOURCE third_party/protobuf-3.12.4)
target_link_libraries(x libssl.a)
"""


def named(rows: tuple[Requirement, ...]) -> dict[str, Requirement]:
    return {row.name: row for row in rows}


def test_what_the_build_files_show_is_added_with_its_line() -> None:
    rows = named(refine((), {"CMakeLists.txt": ROOT_CMAKE, "kwdbts2/CMakeLists.txt": TS_CMAKE, "Makefile": "all: x\n",
                             "kwbase/Makefile": KWBASE_MAKE}))
    assert (rows["gcc"].minimum, rows["gcc"].maximum, rows["gcc"].where) == ("7.3", "13.2", "CMakeLists.txt:2")
    assert rows["g++"].wanted == "7.3 to 13.2"
    assert rows["CMake"].minimum == "3.6"
    assert {name: rows[name].where for name in ("pkg-config", "libgomp", "libssl.a", "libz.a", "autoconf", "make")} == {
        "pkg-config": "kwdbts2/CMakeLists.txt:1", "libgomp": "kwdbts2/CMakeLists.txt:2",
        "libssl.a": "kwdbts2/CMakeLists.txt:4", "libz.a": "kwbase/Makefile:5", "autoconf": "kwbase/Makefile:4",
        "make": "Makefile:1",
    }
    assert "libtinfo.a" not in rows


def test_a_tree_without_these_build_files_asks_for_nothing_more() -> None:
    assert refine((), {}) == ()


def test_what_is_in_the_table_is_not_added_twice() -> None:
    table = (Requirement(name="Autoconf", where="README.md:9", minimum="2.68"),)
    rows = refine(table, {"kwbase/Makefile": KWBASE_MAKE})
    assert [row.where for row in rows if row.name.lower() == "autoconf"] == ["README.md:9"]


@pytest.mark.parametrize(
    ("name", "builds", "waived"),
    [
        ("dpkg-dev", {}, True), ("checkinstall", {}, True), ("geos", {}, True),
        ("goyacc", {}, False), ("goyacc", {"kwbase/Makefile": KWBASE_MAKE}, True),
        ("libprotobuf", {}, False), ("libprotobuf", {"kwdbts2/CMakeLists.txt": TS_CMAKE}, True),
        ("gflags", {"kwdbts2/CMakeLists.txt": TS_CMAKE}, False),
        ("liblzma", {"kwbase/Makefile": KWBASE_MAKE}, True),
        ("liblzma", {"kwbase/Makefile": KWBASE_MAKE + "LIBUNWIND := y.a\n"}, False), ("liblzma", {}, False),
        ("Go", {"kwbase/Makefile": KWBASE_MAKE}, False),
    ],
)
def test_what_is_not_needed_in_truth_is_said_by_the_tree(name: str, builds: dict[str, str], waived: bool) -> None:
    assert bool(refine((Requirement(name=name, where="x"),), builds)[0].waived) is waived


def test_the_running_side_is_not_waived_by_what_is_compiled_in() -> None:
    row = Requirement(name="libprotobuf", where="x", phase=Phase.RUN)
    assert not refine((row,), {"kwdbts2/CMakeLists.txt": TS_CMAKE})[0].waived


def test_a_tree_on_disk(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CHINESE, encoding="utf-8")
    (tmp_path / "CMakeLists.txt").write_text(ROOT_CMAKE)
    for name, text in (("libedit/configure.ac", "AM_INIT_AUTOMAKE\nLT_INIT\n"),
                       ("libroach/db.cc", "#include <google/protobuf/stubs/stringprintf.h>\n")):
        file = tmp_path / C_DEPS / name
        file.parent.mkdir(parents=True)
        file.write_text(text)
    read = read_requirements(tmp_path)
    rows = named(read.only(Phase.COMPILE).rows)
    assert rows["CMake"].floor == "3.6"
    assert rows["automake"].advisory
    assert rows["libtool"].advisory
    assert len(read.only(Phase.RUN).rows) == 3
    header = rows["google/protobuf/stubs/stringprintf.h"]
    assert header.advisory
    assert header.where == C_DEPS
    assert not header.waived
    brought = tmp_path / C_DEPS / "libroach/include/google/protobuf/stubs/stringprintf.h"
    brought.parent.mkdir(parents=True)
    brought.touch()
    again = named(read_requirements(tmp_path).rows)
    assert again["google/protobuf/stubs/stringprintf.h"].waived == "c-deps brings it along"
    assert not again["automake"].waived


def test_a_tree_without_a_table_is_unknown_and_not_fine(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("nothing here")
    assert read_requirements(tmp_path) == Requirements(
        rows=(Requirement(name="dependency table", where="README.md, README.en.md", readable=False,
                          note="no such table was found"),)
    )


def test_numbers() -> None:
    assert numbers("6.2") == numbers("6.2.0") < numbers("6.10") < numbers("7")
