"""Compares a server that somebody else has started (a unit, a script) with the one that was captured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kwdb_build.errors import KwdbBuildError
from kwdb_build.server import capture, proc, startflags

if TYPE_CHECKING:
    from kwdb_build.model import StartCommand

_DECISIVE = ("KW", "LD_")
"""Beginnings of variables that decide how kwbase lays out its data, or which libraries it loads."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One thing that is not as it was. decisive: the server must not go on like this. Values are never told."""

    text: str
    decisive: bool = False


def differences(wanted: StartCommand, pid: int) -> tuple[Difference, ...]:
    """What a running process was given that the captured one was not, or the other way round.

    Errors: ServerNotFoundError, AccessError.
    """
    found: list[Difference] = []
    status = proc.read_status(pid)
    argv = proc.parse_cmdline(proc.read_bytes(pid, "cmdline"))
    if _plain(argv) != _plain(wanted.argv):
        found.append(Difference(
            text=f"its command line is another one: {' '.join(startflags.redact(argv))}", decisive=True
        ))
    if (cwd := proc.read_link(pid, "cwd")) != str(wanted.cwd):
        found.append(Difference(text=f"it runs in {cwd} instead of {wanted.cwd}", decisive=True))
    if (status.uid, status.gid) != (wanted.uid, wanted.gid):
        found.append(Difference(text=f"it runs as user {proc.user_name(status.uid)}", decisive=True))
    environ, _ = capture.filter_environment(proc.parse_environ(proc.read_bytes(pid, "environ")))
    for name in sorted(wanted.environ.keys() | environ.keys()):
        if wanted.environ.get(name) != environ.get(name):
            how = "gone" if name not in environ else "new" if name not in wanted.environ else "another"
            found.append(Difference(text=f"the variable {name} is {how}", decisive=name.startswith(_DECISIVE)))
    return tuple(found)


def _plain(argv: tuple[str, ...]) -> tuple[str, ...]:
    return startflags.without_background(argv)


def of_started(wanted: StartCommand, pid: int) -> tuple[Difference, ...]:
    """As differences(), for a process that may not be read or has gone: readiness has judged that by itself."""
    try:
        return differences(wanted, pid)
    except (KwdbBuildError, OSError):
        return ()
