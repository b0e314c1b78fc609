"""Where and why two builds of one thing differ. Reads files, changes nothing."""

from __future__ import annotations

import re
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kwdb_build.build.elf import sections_of, symbols_of
from kwdb_build.command import CommandError, run
from kwdb_build.files import manifest_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

_SHOWN_BYTES = 24
_DAY_S = 86_400
_DERIVED = {".note.gnu.build-id", ".note.go.buildid", ".gnu_debuglink"}
"""Sections that are computed from the others."""
_TEXT_RUN = re.compile(rb"[\x09\x20-\x7e]{4,}")
_PATH = re.compile(rb"/[\w.+-]+(?:/[\w.+-]+)+")
_EPOCH = re.compile(rb"(?<!\d)(\d{10})(?!\d)")
_DATES = ("%Y-%m-%d", "%Y/%m/%d", "%Y%m%d", "%b %e %Y", "%d %b %Y", "%b %d %Y", "%a %b %e")
_DIFFOSCOPE_S = 600.0
_DIFFOSCOPE_LINES = 60


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One file that is not the same. offset is that of the first differing byte in its first differing section."""

    path: str
    what: str
    sections: tuple[str, ...] = ()
    offset: int = 0
    first: str = ""
    second: str = ""
    causes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.what}"]
        if self.sections:
            lines.append(f"  sections: {', '.join(self.sections)}")
        if self.first or self.second:
            where = f"at {self.offset:#x}" + (f" of {self.sections[0]}" if self.sections else "")
            lines += [f"  {where}: {self.first}", f"  {'':{len(where)}}  {self.second}"]
        lines += [f"  likely cause: {cause}" for cause in self.causes]
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Marks:
    """What each of two builds could have left in a file: (of the first, of the second).

    words: what it is (such as 'host name'), and how it reads in either. clock: unix seconds as the programs of the
    build saw them at its begin.
    """

    words: tuple[tuple[str, str, str], ...] = ()
    clock: tuple[float, float] = (0.0, 0.0)


def compare(
    first: Path, second: Path, marks: Marks, *, ignore: frozenset[str] = frozenset()
) -> tuple[Difference, ...]:
    """Every file below two directories that is not the same in both: content, or whether it may be executed.

    ignore: names in the first that are no part of the comparison.
    """
    one = {record.path: record for record in manifest_of(first) if record.path not in ignore}
    other = {record.path: record for record in manifest_of(second)}
    found = [Difference(path=name, what="only in the first build") for name in sorted(one.keys() - other.keys())]
    found += [Difference(path=name, what="only in the second build") for name in sorted(other.keys() - one.keys())]
    for name in sorted(one.keys() & other.keys()):
        here, there = one[name], other[name]
        if here.sha256 != there.sha256:
            found.append(_explain(name, (first / name).read_bytes(), (second / name).read_bytes(), marks))
        elif (here.mode ^ there.mode) & 0o111:
            found.append(Difference(path=name, what=f"mode {here.mode:o} and {there.mode:o}"))
    return tuple(found)


def _explain(name: str, one: bytes, other: bytes, marks: Marks) -> Difference:
    """Look into the sections of two ELF files, or at the bytes of others."""
    parts, others = sections_of(one), sections_of(other)
    differing = [part for part in parts if part in others and parts[part] != others[part]]
    differing += sorted(parts.keys() ^ others.keys())
    telling = [part for part in differing if part not in _DERIVED] or differing
    left, right = (parts.get(telling[0], b""), others.get(telling[0], b"")) if telling else (one, other)
    offset = first_difference(left, right)
    size = f"{len(one)} bytes" if len(one) == len(other) else f"{len(one)} and {len(other)} bytes"
    return Difference(
        path=name, what=f"the content differs ({size})",
        sections=tuple(dict.fromkeys([*telling, *differing])),
        offset=offset, first=_shown(left, offset), second=_shown(right, offset),
        causes=tuple(_causes(one, other, telling, marks)) or ("not found out: look at the bytes above",),
    )


def first_difference(one: bytes, other: bytes) -> int:
    """Offset of the first byte that is not the same; the length of the shorter one when it begins the longer."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # halves are compared by the machine, not byte by byte here
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _shown(data: bytes, offset: int) -> str:
    """The bytes there, in hexadecimal and as text from the begin of the text that they stand in."""
    piece = data[offset:offset + _SHOWN_BYTES]
    if not piece:
        return "(nothing: it ends before)"
    begin = offset
    while begin > max(0, offset - _SHOWN_BYTES) and 0x20 <= data[begin - 1] < 0x7F:  # noqa: PLR2004 printable
        begin -= 1
    text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in data[begin:offset + _SHOWN_BYTES])  # noqa: PLR2004
    return f"{piece.hex(' ')}  {text!r}"


def _causes(one: bytes, other: bytes, sections: Sequence[str], marks: Marks) -> list[str]:
    """What the contents of the differing sections (or the whole files) give away."""
    parts, others = sections_of(one), sections_of(other)
    left = b"\0".join(parts.get(name, b"") for name in sections) or one
    right = b"\0".join(others.get(name, b"") for name in sections) or other
    found = [
        f"the {what} of the build machine is in it ({mine!r} and {theirs!r})"
        for what, mine, theirs in marks.words if right.count(theirs.encode()) > left.count(theirs.encode())
    ]
    texts, other_texts = set(_TEXT_RUN.findall(left)), set(_TEXT_RUN.findall(right))
    mine, theirs = sorted(texts - other_texts), sorted(other_texts - texts)
    if text := _time_in(theirs, marks.clock[1]) or _time_in(mine, marks.clock[0]):
        found.append(f"the time of the build is in it ({text})")
    paths = [path for path in (_path_in(mine), _path_in(theirs)) if path]
    if not found and len(paths) == 2:  # noqa: PLR2004 one of each
        found.append(f"a path is in it that is not the same each time ({paths[0]} and {paths[1]})")
    if not found and _reordered(one, other):
        found.append("order: the same parts follow each other in another order (of files in a directory, most likely)")
    if not found and sections and set(sections) <= _DERIVED:
        found.append("only identifiers that are computed from other files differ: mend those first")
    return found


def _time_in(texts: Iterable[bytes], clock: float) -> str:
    """The first of the texts that reads like the time at which it was built; '' for none."""
    if not clock:
        return ""
    days = [time.gmtime(clock + shift) for shift in (-_DAY_S, 0, _DAY_S)]
    dates = {time.strftime(form, day).encode() for day in days for form in _DATES}
    known = re.compile(b"|".join(map(re.escape, sorted(dates))))
    for text in texts:
        places = [match.start() for match in known.finditer(text)]
        places += [match.start() for match in _EPOCH.finditer(text) if abs(int(match[1]) - clock) < _DAY_S]
        if places:
            return repr(text[max(0, places[0] - _SHOWN_BYTES):places[0] + _SHOWN_BYTES].decode("ascii"))
    return ""


def _path_in(texts: Iterable[bytes]) -> str:
    match = next((match for text in texts if (match := _PATH.search(text))), None)
    return match[0].decode("ascii") if match else ""


def _reordered(one: bytes, other: bytes) -> bool:
    """Whether both have the same symbols, of the same sizes, at other places; or the same lines or words of text."""
    symbols, others = symbols_of(one), symbols_of(other)
    if symbols or others:
        return sorted((name, size) for name, size, _ in symbols) == sorted((name, size) for name, size, _ in others)
    words = sorted(_TEXT_RUN.findall(one))
    return bool(words) and words == sorted(_TEXT_RUN.findall(other))


def diffoscope(first: Path, second: Path, log: Path) -> str:
    """The first lines of diffoscope's own answer (all of it in log); '' where it is not installed."""
    if shutil.which("diffoscope") is None:
        return ""
    try:
        done = run(
            ["diffoscope", "--no-progress", "--text", str(log), "--max-text-report-size", "2000000", str(first),
             str(second)],
            check=False, timeout_s=_DIFFOSCOPE_S,
        )
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except (CommandError, OSError) as error:
        return f"diffoscope did not answer: {error}"
    if not lines:
        return f"diffoscope ended with exit code {done.returncode}: {done.stderr.strip()[:200]}"
    return "\n".join(lines[:_DIFFOSCOPE_LINES])
