"""What a fetched tree asks for, read out of the tree itself.

Two sources: the dependency tables of its READMEs (KWDB keeps them alike from V2.0.3 to V3.2.1, in Chinese and English),
and its own CMakeLists.txt and Makefiles, which say what is needed in truth. Reading only; the verdicts are check.py's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from kwdb_build.toolchain.catalog import key_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

README_FILES = ("README.md", "README.en.md")
BUILD_FILES = ("CMakeLists.txt", "Makefile", "common/CMakeLists.txt", "kwdbts2/CMakeLists.txt", "kwbase/Makefile")
C_DEPS = "kwbase/c-deps"


class Phase(StrEnum):
    """When something is needed: to compile, or on the machine the server runs on."""

    COMPILE = "compile"
    RUN = "run"


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """One thing a tree asks for.

    minimum and maximum are version numbers ('' for any). floor, where set, is the version below which the build
    really refuses, though the table asks for more. waived: why it is not needed in truth, '' when it is. advisory: its
    lack is a warning only. readable: False when the table's version cell made no sense (it is then in note). differs:
    what the table in the other language says instead, '' when both say the same or there is only one.
    """

    name: str
    where: str
    phase: Phase = Phase.COMPILE
    minimum: str = ""
    maximum: str = ""
    floor: str = ""
    note: str = ""
    waived: str = ""
    advisory: bool = False
    readable: bool = True
    differs: str = ""

    @property
    def wanted(self) -> str:
        """The version for people: '3.6.1 or newer', '7.3 to 13.2', 'any'."""
        if self.minimum and self.maximum:
            return f"{self.minimum} to {self.maximum}"
        if self.minimum:
            return f"{self.minimum} or newer"
        return f"up to {self.maximum}" if self.maximum else "any"


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """All rows of a tree, those of the tables first."""

    rows: tuple[Requirement, ...]

    def only(self, phase: Phase) -> Requirements:
        """The rows of one phase."""
        return Requirements(rows=tuple(row for row in self.rows if row.phase is phase))


def read_requirements(tree_path: Path) -> Requirements:
    """Read all that a tree says about what it needs.

    A tree without a dependency table gets one unreadable row, so that its check ends unknown and not ok.
    """
    texts = {name: text for name in (*README_FILES, *BUILD_FILES) if (text := _text(tree_path / name)) is not None}
    tables = merge(parse_tables(texts[name], name) for name in README_FILES if name in texts)
    if not tables:
        tables = (
            Requirement(
                name="dependency table", where=", ".join(README_FILES), readable=False, note="no such table was found"
            ),
        )
    builds = {name: text for name, text in texts.items() if name in BUILD_FILES} | dict(_c_deps(tree_path))
    brought = {_INNER_HEADER: "c-deps brings it along"}
    if not (tree_path / C_DEPS / "libroach/include" / _INNER_HEADER).is_file():
        brought = {}
    rows = (replace(row, waived=brought.get(row.name, row.waived)) for row in refine(tables, builds))
    return Requirements(rows=tuple(rows))


_NAME_HEAD = re.compile(r"^(?:依赖|dependency|dependencies)", re.IGNORECASE)
_VERSION_HEAD = re.compile(r"^(?:版本|version)", re.IGNORECASE)
_NOTE_HEAD = re.compile(r"^(?:说明|备注|description|note|remark)", re.IGNORECASE)
_RULE = re.compile(r"^\s*\|?\s*:?-{2,}:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$")
_RUN_TITLE = re.compile(r"运行|running|run-?time", re.IGNORECASE)
_COMPILE_TITLE = re.compile(r"编译|构建|compil|build", re.IGNORECASE)
_ANY = re.compile(r"^(?:any|all|-|—|任意|不限|无要求)?$", re.IGNORECASE)
_RANGE = re.compile(r"^[vV]?(?P<low>\d+(?:\.\d+)*)\s*(?:-|~|至|to)\s*[vV]?(?P<high>\d+(?:\.\d+)*)(?P<rest>\D.*)?$")
_AT_LEAST = re.compile(
    r"^(?:>=|≥)?\s*[vV]?(?P<low>\d+(?:\.\d+)*)\s*(?:\+|及?以上|or (?:newer|later|higher|above))?"
    r"(?P<rest>(?:[^\w.+-].*)?)$"
)
_MARKUP = re.compile(r"<br\s*/?>|\*\*")


def parse_tables(text: str, file: str) -> tuple[Requirement, ...]:
    """Rows of all dependency tables in a README; pure.

    A table counts when its first row has a cell that begins with 依赖 or Dependency and another 版本 or Version. The
    last line of text before it tells compiling from running. A version without '+' (`v3.23`) is taken as the least.
    """
    rows: list[Requirement] = []
    lines = text.splitlines()
    title = ""
    index = 0
    while index < len(lines):
        line = lines[index]
        columns = _columns(_cells(line)) if index + 1 < len(lines) and _RULE.match(lines[index + 1]) else None
        if columns is None:
            title = line if line.strip() and not line.lstrip().startswith("|") else title
            index += 1
            continue
        phase = Phase.RUN if _RUN_TITLE.search(title) and not _COMPILE_TITLE.search(title) else Phase.COMPILE
        index += 2
        while index < len(lines) and "|" in lines[index]:
            if row := _row(_cells(lines[index]), columns, f"{file}:{index + 1}", phase):
                rows.append(row)
            index += 1
    return tuple(rows)


def _cells(line: str) -> list[str]:
    stripped = line.strip().removeprefix("|")
    stripped = stripped[:-1] if stripped.endswith("|") and not stripped.endswith("\\|") else stripped
    return [cell.replace("\\|", "|").strip() for cell in re.split(r"(?<!\\)\|", stripped)]


def _columns(cells: list[str]) -> tuple[int, int, int] | None:
    """Positions of name, version and note (-1: there is none); None when it is no dependency table."""
    found = [
        next((position for position, cell in enumerate(cells) if pattern.match(cell)), -1)
        for pattern in (_NAME_HEAD, _VERSION_HEAD, _NOTE_HEAD)
    ]
    return (found[0], found[1], found[2]) if min(found[:2]) >= 0 else None


def _row(cells: list[str], columns: tuple[int, int, int], where: str, phase: Phase) -> Requirement | None:
    def cell(column: int) -> str:
        return cells[column] if 0 <= column < len(cells) else ""

    name = cell(columns[0]).strip("`* ")
    version, note = cell(columns[1]), _plain(cell(columns[2]))
    if not name and not version:
        return None
    if not name:
        return Requirement(name=version, where=where, phase=phase, readable=False, note="a row without a name")
    if columns[1] >= len(cells):
        return Requirement(name=name, where=where, phase=phase, readable=False, note="a row without a version")
    if _ANY.match(version):
        return Requirement(name=name, where=where, phase=phase, note=note)
    if match := _RANGE.match(version):
        return Requirement(
            name=name, where=where, phase=phase, minimum=match["low"], maximum=match["high"], note=note
        )
    if match := _AT_LEAST.match(version):
        notes = " ".join(part for part in (note, _plain(match["rest"])) if part)
        return Requirement(name=name, where=where, phase=phase, minimum=match["low"], note=notes)
    return Requirement(
        name=name, where=where, phase=phase, readable=False, note=f"version {version!r} cannot be read"
    )


def _plain(text: str) -> str:
    return " ".join(_MARKUP.sub(" ", text).split())


def merge(tables: Iterable[tuple[Requirement, ...]]) -> tuple[Requirement, ...]:
    """One list out of the languages' tables; pure.

    A row in either counts; where versions differ, the higher one; `differs` says what the other language has.
    """
    given = [table for table in tables if table]
    merged: dict[tuple[Phase, str], Requirement] = {}
    for table in given:
        for row in table:
            key = (row.phase, key_of(row.name))
            merged[key] = _joined(merged[key], row) if key in merged else row
    languages = {_file(row): {(one.phase, key_of(one.name)) for one in table} for table in given for row in table[:1]}
    for key, row in merged.items():
        lacking = [file for file, keys in languages.items() if key not in keys]
        if lacking and not row.differs:
            merged[key] = replace(row, differs=f"{', '.join(lacking)} has no such row")
    return tuple(merged.values())


def _joined(known: Requirement, row: Requirement) -> Requirement:
    if not row.readable or not known.readable:
        unread = known if not known.readable else row
        other = row if unread is known else known
        return replace(unread, differs=f"{other.where} says {other.wanted}" if other.readable else "")
    if (row.minimum, row.maximum) != (known.minimum, known.maximum):
        newer, older = (row, known) if numbers(row.minimum) > numbers(known.minimum) else (known, row)
        return replace(newer, differs=f"{older.where} says {older.wanted}")
    if (said := _condition(row.note)) != _condition(known.note):
        ours, theirs = (_condition(known.note) or "without a condition"), said or "without a condition"
        return replace(known, differs=f"{known.where} says it is needed {ours}; {row.where}: {theirs}")
    return known


_FOR_GCC = re.compile(
    r"(?P<version>\d+(?:\.\d+)+)\s*(?:版本)?\s*(?P<more>\+|及?以上|and above|or (?:above|later|newer))?"
)


def _condition(note: str) -> str:
    """For which compilers a row's note says it counts, in words; '' when it names none."""
    if not re.search(r"\bgcc\b", note, re.IGNORECASE) or not (match := _FOR_GCC.search(note)):
        return ""
    return f"for gcc {match['version']}" + (" and newer" if match["more"] else " only")


def _file(row: Requirement) -> str:
    return row.where.rpartition(":")[0]


def numbers(version: str) -> tuple[int, ...]:
    """'3.23' -> (3, 23, 0, 0), so that 6.2 and 6.2.0 are the same; '' -> all zero."""
    parts = tuple(int(part) for part in re.findall(r"\d+", version))
    return parts + (0,) * (4 - len(parts))


@dataclass(frozen=True, kw_only=True)
class _Evidence:
    """A line in a build file that shows a need beyond the table."""

    name: str
    file: str
    pattern: re.Pattern[str]
    note: str
    advisory: bool = False


def _seen(name: str, file: str, pattern: str, note: str, *, advisory: bool = False) -> _Evidence:
    return _Evidence(name=name, file=file, pattern=re.compile(pattern, re.IGNORECASE), note=note, advisory=advisory)


_INNER_HEADER = "google/protobuf/stubs/stringprintf.h"
"""libroach includes it; protobuf installs it with no version that was looked at (3.12.4, 3.21.12). The kw-cdeps of 3.2
has a copy where libroach looks."""
_ROOT, _MAKE, _TS, _KWBASE = "CMakeLists.txt", "Makefile", "kwdbts2/CMakeLists.txt", "kwbase/Makefile"
_EVIDENCE = (
    _seen("make", _MAKE, r"^[\w.-]+\s*:(?!=)", "the build is driven by make"),
    _seen("pkg-config", _TS, r"find_package\s*\(\s*PkgConfig\s+REQUIRED", "kwdbts2 looks for libraries by it"),
    _seen("libgomp", _TS, r"find_package\s*\(\s*OpenMP\s+REQUIRED", "kwdbts2 is compiled with OpenMP"),
    _seen("objcopy", _ROOT, r"\bobjcopy\b", "a Release build is stripped by it"),
    _seen("libssl.a", _TS, r"\blibssl\.a\b", "linked statically"),
    _seen("libcrypto.a", _TS, r"\blibcrypto\.a\b", "linked statically"),
    _seen("libz.a", _KWBASE, r"-Bstatic\s+-lz\b", "linked statically"),
    _seen("libtinfo.a", _KWBASE, r"-Bstatic\s+-ltinfo\b", "linked statically"),
    _seen("zlib", _TS, r"\bbrpc\b", "brpc and protobuf are compiled with it"),
    _seen("autoconf", _KWBASE, r"&&\s*autoconf\b", "configure scripts of c-deps are made by it"),
    _seen("automake", C_DEPS, r"AM_INIT_AUTOMAKE", "a library of c-deps uses it", advisory=True),
    _seen(
        _INNER_HEADER, C_DEPS, r"#\s*include\s*[<\"]google/protobuf/stubs/stringprintf\.h[>\"]",
        "take it from protobuf's sources: no package installs it; PROTOBUF_DIR= names another place", advisory=True,
    ),
    _seen("libtool", C_DEPS, r"LT_INIT|A[CM]_PROG_LIBTOOL", "a library of c-deps uses it", advisory=True),
)

_UNUSED = "no step of the build uses it"
_WAIVERS = {
    "ca-certificates": "the build has no network",
    "dpkg-dev": _UNUSED,
    "devscripts": _UNUSED,
    "checkinstall": _UNUSED,
    "geos": "kwbase is not linked to it",
    "squashfs-tools": "only KWDB's own packages use it",
    "squashfuse": "only KWDB's own packages use it",
    "mount": "only KWDB's own packages use it",
}
"""In the table but not needed in truth (tried on V3.1.0), whatever the tree."""

_TREE_WAIVERS: tuple[tuple[str, str, str, str], ...] = (
    ("goyacc", _KWBASE, r"vendor/golang\.org/x/tools/cmd/goyacc", "built from the vendor directory"),
    ("libprotobuf", _TS, r"third_party/protobuf", "built from third_party when the system has none"),
    ("libprotoc-dev", _TS, r"third_party/protobuf", "built from third_party when the system has none"),
    ("protobuf-compiler", _TS, r"third_party/protobuf", "built from third_party when the system has none"),
    ("gflags", _TS, r"third_party/gflags", "built from third_party when the system has none"),
    ("lz4", _TS, r"third_party/lz4", "built from third_party when the system has none"),
)
"""(row, file, what the file says, why the row is then not needed)."""

_GCC_LOW = re.compile(r"COMPILER_VERSION\s+VERSION_LESS\s+(\d+(?:\.\d+)*)")
_GCC_HIGH = re.compile(r"COMPILER_VERSION\s+VERSION_GREATER\s+(\d+(?:\.\d+)*)")
_CMAKE_LOW = re.compile(r"cmake_minimum_required\s*\(\s*VERSION\s+(\d+(?:\.\d+)*)", re.IGNORECASE)
def refine(tables: tuple[Requirement, ...], builds: Mapping[str, str]) -> tuple[Requirement, ...]:
    """Add what the build files show to be needed, and mark what they show not to be; pure.

    builds: name of a build file -> its text; C_DEPS stands for all that was read of c-deps.
    """
    rows = [_waive(row, builds) for row in tables]
    rows = [_limit(row, builds) for row in rows]
    present = {key_of(row.name) for row in rows if row.phase is Phase.COMPILE}
    rows += [row for row in (*_compilers(builds), *_shown(builds)) if key_of(row.name) not in present]
    if "cmake" not in present and (low := _first(_CMAKE_LOW, builds, _ROOT)):
        rows.append(Requirement(name="CMake", where=low[1], minimum=low[0], note="cmake_minimum_required"))
    return tuple(rows)


def _waive(row: Requirement, builds: Mapping[str, str]) -> Requirement:
    key = key_of(row.name)
    if reason := _WAIVERS.get(key):
        return replace(row, waived=reason)
    for name, file, pattern, reason in _TREE_WAIVERS:
        if key == name and row.phase is Phase.COMPILE and re.search(pattern, builds.get(file, "")):
            return replace(row, waived=reason)
    # liblzma is libunwind's: a tree whose kwbase/Makefile builds other C libraries but no libunwind has no use for it.
    kwbase = builds.get(_KWBASE, "")
    if key == "liblzma" and "LIBROCKSDB" in kwbase and "LIBUNWIND" not in kwbase:
        return replace(row, waived="libunwind, which used it, is no longer built")
    return row


def _limit(row: Requirement, builds: Mapping[str, str]) -> Requirement:
    key = key_of(row.name)
    if key == "cmake" and (low := _first(_CMAKE_LOW, builds, _ROOT)):
        return replace(row, floor=low[0])
    return row


def _compilers(builds: Mapping[str, str]) -> Iterator[Requirement]:
    if _ROOT not in builds:
        return
    low, high = _first(_GCC_LOW, builds, _ROOT), _first(_GCC_HIGH, builds, _ROOT)
    where = low[1] if low else _ROOT
    for name in ("gcc", "g++"):
        yield Requirement(
            name=name, where=where, minimum=low[0] if low else "", maximum=high[0] if high else "",
            note="C and C++ compiler",
        )


def _shown(builds: Mapping[str, str]) -> Iterator[Requirement]:
    for evidence in _EVIDENCE:
        for number, line in enumerate(builds.get(evidence.file, "").splitlines(), start=1):
            if evidence.pattern.search(line):
                where = f"{evidence.file}:{number}" if evidence.file != C_DEPS else C_DEPS
                yield Requirement(name=evidence.name, where=where, note=evidence.note, advisory=evidence.advisory)
                break


def _first(pattern: re.Pattern[str], builds: Mapping[str, str], file: str) -> tuple[str, str] | None:
    for number, line in enumerate(builds.get(file, "").splitlines(), start=1):
        if match := pattern.search(line):
            return match[1], f"{file}:{number}"
    return None


def _c_deps(tree_path: Path) -> Iterator[tuple[str, str]]:
    """The parts of the c-deps submodule that say something: configure.ac of each library, and libroach's includes."""
    root = tree_path / C_DEPS
    files = [*root.glob("*/configure.ac"), *root.glob("libroach/*.cc"), *root.glob("libroach/*.h")]
    parts = [text for path in sorted(files) if (text := _text(path)) is not None]
    if parts:
        yield C_DEPS, "\n".join(parts)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
