"""The server's own words: what its log files gained since a moment, and the start banner in them.

kwbase writes a new file `kwbase.<host>.<user>.<time>.<pid>.log` for each process and points the link kwbase.log to
the newest. A mark remembers how long each file was, so that "since" needs no clock.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

DRAINING = "initiating graceful shutdown of server"
DRAINED = "server drained and shutdown completed"
COMPLETED = "node startup completed:"
BANNER_START = "KWDB node starting at"
RESTARTED = "restarted pre-existing node"
NEW_CLUSTER = "initialized new cluster"
NEW_NODE = "initialized new node, joined pre-existing cluster"
TAIL_LINES = 30
_READ_LIMIT = 4 << 20
_FIELD = re.compile(r"^(?P<name>[A-Za-z][\w/ \[\]-]*?):\s+(?P<value>.*?)\s*$")


@dataclass(frozen=True, kw_only=True)
class Banner:
    """What a server prints when it is up; empty strings for what it did not say."""

    build: str
    status: str
    cluster_id: str
    node_id: str


@dataclass(frozen=True, kw_only=True)
class Mark:
    """How long the log files were at a moment: path -> bytes. logs is None when the server logs to no file."""

    logs: Path | None
    files: tuple[Path, ...]
    sizes: dict[Path, int]


def mark(logs: Path | None, files: Iterable[Path] = ()) -> Mark:
    """Remember the present end of all of a server's log files and of further files (its stdout)."""
    extra = tuple(files)
    return Mark(logs=logs, files=extra, sizes={path: _size(path) for path in _all(logs, extra)})


def since(moment: Mark) -> str:
    """Everything that the files gained since the mark, oldest file first; unreadable files are left out.

    At most the last 4 MiB of each.
    """
    parts = []
    for path in _all(moment.logs, moment.files):
        begin = moment.sizes.get(path, 0)
        with contextlib.suppress(OSError), path.open("rb") as stream:
            size = path.stat().st_size
            begin = begin if begin <= size else 0
            stream.seek(max(begin, size - _READ_LIMIT))
            parts.append(stream.read(_READ_LIMIT).decode("utf-8", "replace"))
    return "".join(part if part.endswith("\n") or not part else part + "\n" for part in parts)


def tail(text: str, lines: int = TAIL_LINES) -> str:
    """The last lines of a text, blank ones left out."""
    return "\n".join([line.rstrip() for line in text.splitlines() if line.strip()][-lines:])


def parse_banner(text: str) -> Banner | None:
    """The last complete banner in a log or on stdout, None when there is none.

    In the log it stands below a line that ends in `node startup completed:`; complete means that nodeID was written.
    """
    for begin in reversed([match.start() for match in re.finditer(re.escape(BANNER_START), text)]):
        fields: dict[str, str] = {}
        for line in text[begin:].splitlines()[1:]:
            match = _FIELD.match(line)
            if match is None or match["name"] in fields:
                break
            fields[match["name"]] = match["value"]
        if fields.get("nodeID"):
            return Banner(
                build=fields.get("build", ""), status=fields.get("status", ""),
                cluster_id=fields.get("clusterID", ""), node_id=fields["nodeID"],
            )
    return None


def _all(logs: Path | None, files: tuple[Path, ...]) -> list[Path]:
    found: list[Path] = []
    if logs is not None:
        with contextlib.suppress(OSError):
            found = [path for path in logs.glob("kwbase*.log") if path.is_file() and not path.is_symlink()]
    found = [path for path in found if not path.name.startswith("kwbase-")]
    return sorted(found, key=_changed) + [path for path in files if path.is_file()]


def _changed(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0
