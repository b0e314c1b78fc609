"""What in a build's own output says why it failed. Pure: lines in, text out."""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_BEFORE = 10
_CONTEXT_BEFORE = 6
_CONTEXT_AFTER = 8
_TEST_AFTER = 16
_MAX_WIDTH = 400
_NEAR_LINES = 200
"""What only may be an error counts when make's own word for the failure is not farther away than this."""

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")

_HARD = (
    re.compile(r"^(?:[^\s:][^:]*|\{standard input\}):\d+(?::\d+)?: (?:fatal |internal compiler )?[Ee]rror: "),
    re.compile(
        r"^(?:cc1|cc1plus|g\+\+|gcc|cc|c\+\+|clang|clang\+\+|as|lto1|collect2): (?:fatal |internal compiler )?error: "
    ),
    re.compile(r"^(?:cc1|cc1plus|as|lto1): out of memory allocating "),
    re.compile(r"\bundefined reference to\b|\bmultiple definition of\b"),
    re.compile(r"\bld(?:\.\w+)?: (?:cannot find |error: |final link failed|\S+: (?:file not recognized|undefined))"),
    re.compile(r"\bld(?:\.\w+)?: .*(?:relocation \S+ against|file in wrong format|is incompatible with)"),
    re.compile(r"^CMake Error\b"),
    re.compile(r"^[^\s:]+\.(?:go|s|y):\d+(?::\d+)?: "),
    re.compile(r"^package \S+ is not in (?:GOROOT|std)|^can(?:not find|'t load) package|^go: .*(?:cannot|error)"),
    re.compile(r"^\S+\.proto:(?:\d+:\d+: |\s)"),
    re.compile(r"^(?:signal: killed|Killed)$|(?:^|/|: )\w+: signal: killed$|^virtual memory exhausted"),
    re.compile(r"^panic: |^fatal error: "),
)
"""What only a failing build prints."""

_SOFT = (
    re.compile(r"^(?:/(?:usr/)?bin/)?(?:sh|bash|dash|env): .*(?:not found|No such file|denied|cannot)", re.IGNORECASE),
    re.compile(r"^make(?:\[\d+\])?: (?:execvp: )?[^\s:]+: (?:No such file or|Permission denied|Command not found)"),
    re.compile(r"error while loading shared libraries"),
    re.compile(r"No space left on device|Disk quota exceeded|Cannot allocate memory", re.IGNORECASE),
    re.compile(r"^(?:Segmentation fault|Illegal instruction|Bus error|Aborted)(?: \(core dumped\))?$"),
    re.compile(r"^terminate called after throwing an instance of |^Traceback \(most recent call last\):"),
    re.compile(r"^configure: error: |^(?:autoconf|automake|aclocal|autoreconf)\S*: (?:error|\S+: error)"),
    re.compile(r"^fatal: treating warnings from \S+ as errors"),  # kwbase/build/werror.sh
    re.compile(r"^make(?:\[\d+\])?: \*\*\* No rule to make target"),
    re.compile(r"^(?:\S*/)?[Mm]akefile\S*:\d+: \*\*\* "),
)
"""What a failing build prints, but a configure script that only asks can print too."""

_TEST = (
    re.compile(r"^\s*--- FAIL: "),  # go test
    re.compile(r"^\S+:\d+: Failure$"),  # googletest
    re.compile(r"\*\*\*(?:Failed|Exception|Timeout|Not Run)\b|^\[  FAILED  \] "),  # CTest
    re.compile(r"^FAIL\t\S+(?!.*\[(?:build|setup) failed\])"),  # that is a compiler's error
)
"""What a failing test prints, the most telling first."""
_TEST_ENDS = re.compile(r"^(?:(?:=== |ok  |FAIL\b|--- )|\[ {2}FAILED {2}\]|make(?:\[\d+\])?: |\s*\d+/\d+ Test\b)")

_LAST = re.compile(r"^make(?:\[\d+\])?: \*\*\* ")
_NOISE = re.compile(
    r"^make(?:\[\d+\])?: (?:Entering|Leaving|warning: |Nothing |'|`|\*\*\* (?:Waiting|wait:))"
    r"|^\[\s*\d+%\] (?:Building|Linking|Built target) |^-- |^make -C "
)
_GO_HEADER = re.compile(r"^# \S+")
_INCLUDED = re.compile(
    r"^(?:In file included from |\s+from )\S+|: (?:In (?:\S+ )?(?:member )?function|In instantiation|In constructor"
    r"|In destructor|In substitution|At global scope|Assembler messages)|:   required (?:from|by)|^during \w+ pass: "
    r"|^(?:\S*/)?[Mm]akefile\S*:\d+: \S+: No such file"
    r"|running \S+ failed: exit status \d+$|\bld(?:\.\w+)?: .*in function `"
)
_FOLLOW_STOP = re.compile(r"^(?:make(?:\[\d+\])?: |\[\s*\d+%\]|-- |ccache: )")
_WARNING_MARK = re.compile(r": [Ww]arning: |^CMake (?:Deprecation )?Warning")


class _Excerpt:
    """An error line, the lines before that belong to it, and those that follow until it is plainly over."""

    def __init__(self, before: Iterable[str], line: str, *, number: int = 0, room: int = _CONTEXT_AFTER) -> None:
        self.number = number
        self._lines = [*before, line]
        self._room = room
        self._blank = False

    @property
    def open(self) -> bool:
        """Whether more lines can still belong to it."""
        return self._room > 0

    def take(self, line: str) -> None:
        """Add a following line, unless the excerpt is complete.

        After a blank line only indented ones belong: so CMake sets its messages off. A warning is the word of another
        compiler that runs at the same time.
        """
        ends = _FOLLOW_STOP.match(line) or _WARNING_MARK.search(line) or (self._blank and line[:1] not in {"", " "})
        if self._room == 0 or ends:
            self._room = 0
            return
        self._room -= 1
        self._blank = not line
        if line:
            self._lines.append(line)

    def close(self) -> None:
        """No more lines belong to it."""
        self._room = 0

    def __str__(self) -> str:
        lines = list(self._lines)
        while len(lines) > 1 and _INCLUDED.search(lines[-1]):
            lines.pop()  # it introduces what is not shown any more
        return "\n".join(lines)


def first_error(lines: Iterable[str]) -> str:
    """The first thing that really went wrong, with the lines that belong to it; '' when nothing looks like an error.

    A compiler's, linker's, Go's or CMake's own message counts first, then a tool that is missing or a full disk near
    the place where make gave up, then make's own `***`, which only repeats that something above it failed. lines are
    read once and not kept: a log can have hundreds of megabytes.
    """
    found: dict[int, _Excerpt] = {}
    before: deque[str] = deque(maxlen=_BEFORE)
    for number, raw in enumerate(lines):
        line = _ANSI.sub("", raw).rstrip()[:_MAX_WIDTH]
        for excerpt in found.values():
            excerpt.take(line)
        rank = _rank(line)
        if rank is not None and _counts(rank, number, found):
            kept = list(before)[-_CONTEXT_BEFORE:] if rank == _RANK_LAST else _belonging(before, line)
            found[rank] = _Excerpt(kept, line, number=number)
        if _RANK_HARD in found and not found[_RANK_HARD].open:
            break
        if not _NOISE.match(line):
            before.append(line)
    soft, last = found.get(_RANK_SOFT), found.get(_RANK_LAST)
    if soft and last and abs(last.number - soft.number) > _NEAR_LINES:
        del found[_RANK_SOFT]
    return str(found[min(found)]) if found else ""


_RANK_HARD, _RANK_SOFT, _RANK_LAST = 0, 1, 2


def _counts(rank: int, number: int, found: dict[int, _Excerpt]) -> bool:
    """Whether a line of this rank is the first that matters: one that only asked, far above, is forgotten."""
    if rank not in found:
        return True
    return rank == _RANK_SOFT and _RANK_LAST not in found and number - found[rank].number > _NEAR_LINES


def _rank(line: str) -> int | None:
    if _WARNING_MARK.search(line):
        return None
    if any(pattern.search(line) for pattern in _HARD):
        return _RANK_HARD
    if any(pattern.search(line) for pattern in _SOFT):
        return _RANK_SOFT
    return _RANK_LAST if _LAST.match(line) and not _NOISE.match(line) else None


def explains(error: str) -> bool:
    """Whether an error text has more than make's own `***`, which only says that something went wrong."""
    return any(_rank(line) in {_RANK_HARD, _RANK_SOFT} for line in error.splitlines())


def _belonging(before: Iterable[str], line: str) -> list[str]:
    """The last of the lines before that introduce the error: a Go package, an including file, a function.

    werror.sh says last that what it printed before counts as an error.
    """
    if line.startswith("fatal: treating warnings"):
        return list(before)[-_CONTEXT_BEFORE:]
    kept: list[str] = []
    for earlier in reversed(list(before)):
        if not (_GO_HEADER.match(earlier) or _INCLUDED.search(earlier)):
            break
        kept.insert(0, earlier)
    return kept


def first_failed_test(lines: Iterable[str]) -> str:
    """What the first failing test of `go test`, googletest or CTest said; '' when none failed."""
    found: dict[int, _Excerpt] = {}
    before: deque[str] = deque(maxlen=_BEFORE)
    for raw in lines:
        line = _ANSI.sub("", raw).rstrip()[:_MAX_WIDTH]
        for excerpt in found.values():
            if _TEST_ENDS.match(line):
                excerpt.close()
            excerpt.take(line)
        rank = next((number for number, pattern in enumerate(_TEST) if pattern.search(line)), None)
        if rank is not None and rank not in found:
            found[rank] = _Excerpt(_said(before), line, room=_TEST_AFTER)
        if 0 in found and not found[0].open:
            break
        before.append(line)
    return str(found[min(found)]) if found else ""


def _said(before: Iterable[str]) -> list[str]:
    """What `go test -v` printed of a test before its verdict: indented lines."""
    kept: list[str] = []
    for line in reversed(list(before)):
        if not line.startswith("    ") or line.lstrip().startswith(("---", "Start ")):
            break
        kept.insert(0, line)
    return kept


_OUT_OF_MEMORY = re.compile(
    r"Killed signal terminated program|(?:^|/|: )(?:\w+: )?signal: killed|^Killed$|\bKilled \(program |\[Killed\]$"
    r"|^make(?:\[\d+\])?: \*\*\* \[.*\] Killed$|virtual memory exhausted|Cannot allocate memory|memory exhausted"
    r"|out of memory|std::bad_alloc",
    re.IGNORECASE,
)


def out_of_memory(text: str) -> bool:
    """Whether an error text reads like a compiler that the kernel killed for memory."""
    return any(_OUT_OF_MEMORY.search(line) for line in text.splitlines())
