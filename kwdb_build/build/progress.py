"""What a build's own output says about how far it is, and about why it failed. Pure: lines in, values out."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, kw_only=True)
class Step:
    """How far the build is; done of total is 0 of 0 where it cannot be known.

    phase: 'configure', 'compile', 'link', 'go' or 'install'.
    """

    phase: str
    text: str
    done: int = 0
    total: int = 0


_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_PERCENT = re.compile(r"^\[\s*(?P<done>\d+)%\]\s+(?P<what>.+)$")
_NINJA = re.compile(r"^\[(?P<done>\d+)/(?P<total>\d+)\]\s+(?P<what>.+)$")
_ENTERING = re.compile(r"^(?:\S*make)(?:\[\d+\])?: Entering directory .(?P<path>/.+?).$")
_OBJECT = re.compile(r"^(?:Building|Compiling)\s+\S+\s+object\s+(?P<path>\S+)")
_GO_PACKAGE = re.compile(r"^(?:[\w.-]+\.[a-z]{2,}/[\w./~+-]+|_?/\S+/src/\S+)$")
_GO_STANDARD = re.compile(
    r"^(?:archive|bufio|bytes|cmd|compress|container|context|crypto|database|debug|embed|encoding|errors|expvar|flag|fmt"
    r"|go|hash|html|image|index|internal|io|log|math|mime|net|os|path|plugin|reflect|regexp|runtime|sort|strconv"
    r"|strings|sync|syscall|testing|text|time|unicode|unsafe|vendor)(?:/[\w./-]+)?$"
)
_GO_DIRECTORY = "/src/gitee.com/kwbasedb/kwbase"
_INSTALL_BEGINS = "========== install"
"""KWDB's root Makefile announces its targets so."""
_GO_COMMAND = re.compile(r"^(?:\S*/)?go (?:build|install|test) ")
_INSTALL = re.compile(
    r"^-- (?:Installing|Up-to-date|Set (?:non-toolchain portion of )?runtime path of \"?):?\s*(?P<path>.+)$"
)
_CMAKE_END = re.compile(r"^-- (?P<what>Configuring done|Generating done|Build files have been written to)")
_COMPILER_CALL = re.compile(
    r"^(?:\S*/)?(?:cc|c\+\+|gcc|g\+\+|clang|clang\+\+)\s.*\s-c\s.*?(?P<path>[\w./+-]+\.(?:cc|cpp|cxx|c|S))(?:\s|$)"
)


class Tracker:
    """Follows one build line by line.

    A build of KWDB runs other builds inside (cryptopp, rocksdb, protobuf …) with percentages of their own: only those
    of the first directory that printed one count for done and total, and they never go backwards. They count CMake's
    own objects; the Go server, which takes most of the time, is one of them. So a share is given while C++ is
    compiled, none while Go is, and none for the second pass over the finished targets that `make install` makes.
    """

    def __init__(self) -> None:
        self.phase = "configure"
        self._directory = ""
        self._counted: str | None = None
        self._percent = 0
        self.packages = 0

    def feed(self, line: str) -> Step | None:
        """The state after this line, None when it says nothing about progress."""
        text = _ANSI.sub("", line).strip()
        if match := _ENTERING.match(text):
            return self._entered(match["path"].rstrip("/"))
        if text.startswith(_INSTALL_BEGINS):
            self.phase = "install"
            return Step(phase=self.phase, text="installing")
        if match := _PERCENT.match(text):
            return self._compiled(int(match["done"]), 100, match["what"])
        if match := _NINJA.match(text):
            return self._compiled(int(match["done"]), int(match["total"]), match["what"])
        if match := _INSTALL.match(text):
            self.phase = "install"
            return Step(phase=self.phase, text=f"installing {_base(match['path'])}")
        if _GO_PACKAGE.match(text) or _GO_STANDARD.match(text):
            self.phase = "go"
            self.packages += 1
            return Step(phase=self.phase, text=f"Go package {self.packages}: {text}")
        return self._other(text)

    def _entered(self, directory: str) -> Step | None:
        """The make of the Go server says nothing of its own for a long time: entering its directory is its sign."""
        self._directory = directory
        if not directory.endswith(_GO_DIRECTORY) or self.phase != "compile":
            return None
        self.phase = "go"
        return Step(phase=self.phase, text="compiling the Go server")

    def _compiled(self, done: int, total: int, what: str) -> Step | None:
        if self.phase == "install" or (self.phase == "go" and what.startswith("Built target")):
            return None
        self.phase = "compile"
        share = 100 * done // max(total, 1)
        if self._counted is None:
            self._counted = self._directory
        if self._directory == self._counted:
            self._percent = max(self._percent, share)
        linking = what.startswith("Linking")
        return Step(phase="link" if linking else self.phase, text=_short(what), done=self._percent, total=100)

    def _other(self, text: str) -> Step | None:
        if match := _CMAKE_END.match(text):
            return Step(phase="configure", text=match["what"].lower())
        if text.startswith("-- ") and self.phase == "configure":
            return Step(phase="configure", text=text[3:])
        if _GO_COMMAND.match(text):
            self.phase = "go"
            return Step(phase="go", text="Go build")
        if match := _COMPILER_CALL.match(text):
            return Step(phase=self.phase, text=f"compiling {_base(match['path'])}")
        return None


def _base(path: str) -> str:
    return path.strip("\"' ").partition('" to')[0].rsplit("/", 1)[-1]


def _short(what: str) -> str:
    match = _OBJECT.match(what)
    return f"compiling {_base(match['path']).removesuffix('.o')}" if match else what


_CONTEXT_BEFORE = 3
_CONTEXT_AFTER = 8
_MAX_WIDTH = 400

_HARD = (
    re.compile(r"^[^\s:][^:]*:\d+(?::\d+)?: (?:fatal )?error: "),
    re.compile(r"^(?:cc1|cc1plus|g\+\+|gcc|cc|c\+\+|clang|as|lto1): (?:fatal |internal compiler )?error: "),
    re.compile(r"\bundefined reference to\b|\bmultiple definition of\b"),
    re.compile(r"\bld(?:\.\w+)?: (?:cannot find |error: |\S+: (?:file not recognized|undefined))"),
    re.compile(r"^CMake Error\b"),
    re.compile(r"^[^\s:]+\.(?:go|s|y):\d+(?::\d+)?: "),
    re.compile(r"^package \S+ is not in (?:GOROOT|std)|^can(?:not find|'t load) package|^go: .*(?:cannot|error)"),
    re.compile(r"^\S+\.proto:(?:\d+:\d+: |\s)"),
    re.compile(r"^(?:signal: killed|Killed)$|(?:^|/|: )\w+: signal: killed$|^virtual memory exhausted"),
    re.compile(r"^panic: |^fatal error: "),
)
"""What only a failing build prints."""

_SOFT = (
    re.compile(r"^(?:/bin/)?(?:sh|bash|dash): (?:(?:line )?\d+: )?.*(?:not found|No such file|denied|cannot)"),
    re.compile(r"error while loading shared libraries"),
    re.compile(r"No space left on device|Disk quota exceeded|Cannot allocate memory", re.IGNORECASE),
    re.compile(r"^configure: error: |^(?:autoconf|automake|aclocal|autoreconf)\S*: (?:error|\S+: error)"),
    re.compile(r"^make(?:\[\d+\])?: \*\*\* No rule to make target"),
    re.compile(r"^(?:\S*/)?[Mm]akefile\S*:\d+: \*\*\* "),
)
"""What a failing build prints, but a configure script that only asks can print too."""

_LAST = re.compile(r"^make(?:\[\d+\])?: \*\*\* ")
_GO_HEADER = re.compile(r"^# \S+")
_INCLUDED = re.compile(
    r"^(?:In file included from |\s+from )\S+|: (?:In (?:member )?function|In instantiation|In constructor)"
)
_FOLLOW_STOP = re.compile(r"^(?:make(?:\[\d+\])?: |\[\s*\d+%\]|-- )")
_WARNING_MARK = re.compile(r": warning: |^CMake (?:Deprecation )?Warning")


class _Excerpt:
    """An error line, the lines before that belong to it, and those that follow until it is plainly over."""

    def __init__(self, before: Iterable[str], line: str) -> None:
        self.lines = [*before, line]
        self._room = _CONTEXT_AFTER
        self._blank = False

    @property
    def open(self) -> bool:
        """Whether more lines can still belong to it."""
        return self._room > 0

    def take(self, line: str) -> None:
        """Add a following line, unless the excerpt is complete.

        After a blank line only indented ones belong: so CMake sets its messages off.
        """
        if self._room == 0 or _FOLLOW_STOP.match(line) or (self._blank and line[:1] not in {"", " "}):
            self._room = 0
            return
        self._room -= 1
        self._blank = not line
        if line:
            self.lines.append(line)

    def __str__(self) -> str:
        return "\n".join(self.lines)


def first_error(lines: Iterable[str]) -> str:
    """The first thing that really went wrong, with the lines that belong to it; '' when nothing looks like an error.

    A compiler's, linker's, Go's or CMake's own message counts first, then a tool that is missing or a full disk, then
    make's own `***`, which only repeats that something above it failed. lines are read once and not kept: a log can
    have hundreds of megabytes.
    """
    best: dict[int, _Excerpt] = {}
    before: deque[str] = deque(maxlen=_CONTEXT_BEFORE)
    for raw in lines:
        line = _ANSI.sub("", raw).rstrip()[:_MAX_WIDTH]
        for excerpt in best.values():
            excerpt.take(line)
        rank = _rank(line)
        if rank is not None and rank not in best:
            best[rank] = _Excerpt(list(before) if rank == _RANK_LAST else _belonging(before), line)
        if _RANK_HARD in best and not best[_RANK_HARD].open:
            break
        before.append(line)
    return str(best[min(best)]) if best else ""


_RANK_HARD, _RANK_SOFT, _RANK_LAST = 0, 1, 2


def _rank(line: str) -> int | None:
    if any(pattern.search(line) for pattern in _HARD) and not _WARNING_MARK.search(line):
        return _RANK_HARD
    if any(pattern.search(line) for pattern in _SOFT):
        return _RANK_SOFT
    return _RANK_LAST if _LAST.match(line) else None


def explains(error: str) -> bool:
    """Whether an error text has more than make's own `***`, which only says that something went wrong."""
    return any(_rank(line) in {_RANK_HARD, _RANK_SOFT} for line in error.splitlines())


def _belonging(before: Iterable[str]) -> list[str]:
    """The last of the lines before that introduce the error: a Go package, an including file, a function."""
    kept: list[str] = []
    for line in reversed(list(before)):
        if not (_GO_HEADER.match(line) or _INCLUDED.search(line)):
            break
        kept.insert(0, line)
    return kept


_OUT_OF_MEMORY = re.compile(
    r"Killed signal terminated program|(?:^|/|: )(?:\w+: )?signal: killed|^Killed$"
    r"|virtual memory exhausted|Cannot allocate memory|out of memory",
    re.IGNORECASE,
)


def out_of_memory(text: str) -> bool:
    """Whether an error text reads like a compiler that the kernel killed for memory."""
    return any(_OUT_OF_MEMORY.search(line) for line in text.splitlines())
