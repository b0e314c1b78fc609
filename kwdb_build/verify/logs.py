"""The server's own log files since a moment, and the lines in them that no healthy start prints."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kwdb_build.model import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_READ_LIMIT = 64 << 20
_CONTEXT_LINES = 2
_LINE_LIMIT = 400
_SKIPPED = ("kwbase-rocksdb", "kwbase-sql-audit", "kwbase-slow")

PATTERNS: tuple[tuple[Verdict, re.Pattern[str]], ...] = (
    (Verdict.FAIL, re.compile(r"^F\d{6} ")),
    (Verdict.FAIL, re.compile(r"^(?:[A-Z]\d{6} [^\]]*\] *)?(?:panic:|fatal error:|\[signal SIG)")),
    (Verdict.FAIL, re.compile(r"\bSIGSEGV\b|\bSIGABRT\b|segmentation violation")),
    (Verdict.FAIL, re.compile(r"Unknown version update type|can not decode update log|recover vgroup version failed")),
    (Verdict.FAIL, re.compile(r"failed create tsEngine|open TSEngineImpl Error|Invalid physical plan")),
    (Verdict.FAIL, re.compile(r"\bFATAL\b|log: exiting because of error")),
    (Verdict.WARN, re.compile(r"Unexpected|Corruption:", re.IGNORECASE)),
)
"""What the recordings show of servers that died or could not read their data."""


@dataclass(frozen=True, kw_only=True)
class LogMark:
    """How long the log files were: directories looked into, single files, and bytes by path."""

    directories: tuple[Path, ...] = ()
    files: tuple[Path, ...] = ()
    sizes: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A line that should not be there, with its neighbours."""

    verdict: Verdict
    path: Path
    line: int
    text: str


def mark_logs(directories: Iterable[Path], files: Iterable[Path] = ()) -> LogMark:
    """Remember the present ends; taken after the stop and before the start of the server that will be verified.

    A new process opens files of new names (the links kwbase.log and TsEngine.log follow): a name that is not in the
    mark is new and read whole.
    """
    mark = LogMark(directories=tuple(directories), files=tuple(files), sizes={})
    return LogMark(
        directories=mark.directories, files=mark.files,
        sizes={str(path): path.stat().st_size for path in _log_files(mark) if path.exists()},
    )


def scan_logs(mark: LogMark) -> tuple[list[Finding], list[Path]]:
    """Findings since the mark, and the files that were read."""
    findings: list[Finding] = []
    read: list[Path] = []
    for path in _log_files(mark):
        with contextlib.suppress(OSError), path.open("rb") as stream:
            size = path.stat().st_size
            begin = mark.sizes.get(str(path), 0)
            begin = begin if begin <= size else 0  # truncated since
            stream.seek(max(begin, size - _READ_LIMIT))
            findings += find(stream.read(_READ_LIMIT).decode("utf-8", "replace"), path)
            read.append(path)
    return findings, read


def find(text: str, path: Path) -> list[Finding]:
    """Suspicious lines of a text; a run of neighbours (a stack) gives one finding."""
    lines = text.splitlines()
    found: list[Finding] = []
    quiet_until = -1
    for number, line in enumerate(lines):
        verdict = next((kind for kind, pattern in PATTERNS if pattern.search(line)), None)
        if verdict is None or number <= quiet_until:
            continue
        shown = lines[max(0, number - _CONTEXT_LINES) : number + _CONTEXT_LINES + 1]
        found.append(Finding(
            verdict=verdict, path=path, line=number + 1, text="\n".join(part[:_LINE_LIMIT] for part in shown),
        ))
        quiet_until = number + _CONTEXT_LINES
    return found


def _log_files(mark: LogMark) -> Iterator[Path]:
    for directory in mark.directories:
        with contextlib.suppress(OSError):
            for path in sorted(directory.glob("*.log")):
                if path.is_file() and not path.is_symlink() and not path.name.startswith(_SKIPPED):
                    yield path
    for path in mark.files:
        if path.is_file():
            yield path


def from_json(value: dict[str, object]) -> LogMark:
    """The opposite of model.to_json."""
    directories, files, sizes = value["directories"], value["files"], value["sizes"]
    if not (isinstance(directories, list) and isinstance(files, list) and isinstance(sizes, dict)):
        msg = "not a log mark"
        raise TypeError(msg)
    return LogMark(directories=tuple(map(Path, directories)), files=tuple(map(Path, files)), sizes=dict(sizes))
