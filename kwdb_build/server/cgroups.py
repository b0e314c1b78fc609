"""Control groups of a captured server: told, and joined again where a person (not systemd) made them."""

from __future__ import annotations

import re
from pathlib import Path

from kwdb_build.server import proc

ROOT = Path("/sys/fs/cgroup")
_OF_A_LOGIN = re.compile(r"/(session-[^/]+\.scope|user@\d+\.service|[^/]+\.service|init\.scope)(/|$)")
"""systemd's own: it alone puts processes there, and takes a login's away with the login."""


def lines(pid: int) -> tuple[str, ...]:
    """/proc/PID/cgroup as it is: 'number:controllers:path'. Errors as proc.read_text."""
    return tuple(filter(None, proc.read_text(pid, "cgroup").splitlines()))


def join(pid: int, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Put a process of ours into the groups that the captured server was in; a sentence for each that cannot be joined.

    Limits of a group that cannot be joined are not in force: no reason to keep a database down, but to be said.
    """
    notes = []
    ours = set(lines(pid))
    for line in wanted:
        parts = line.split(":", 2)
        if line in ours or len(parts) != 3 or _OF_A_LOGIN.search(parts[2]):  # noqa: PLR2004
            continue
        place = directory(parts[1], parts[2])
        try:
            (place / "cgroup.procs").write_text(str(pid), encoding="ascii")
        except OSError as error:
            notes.append(f"the server ran in the control group {place}, which cannot be joined again: {error.strerror}")
    return tuple(notes)


def directory(controllers: str, path: str) -> Path:
    """Where a group is mounted: version 2 (no controllers), or the hierarchy of its controllers."""
    name = controllers.removeprefix("name=")
    if not name:
        unified = ROOT / "unified"
        return (unified if unified.is_dir() else ROOT) / path.lstrip("/")
    return ROOT / name / path.lstrip("/")
