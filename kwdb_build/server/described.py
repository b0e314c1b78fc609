"""A server that is down, described by hand in a TOML file: what a capture would have found out from its process."""

from __future__ import annotations

import difflib
import os
import pwd
import shlex
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kwdb_build.errors import UsageError
from kwdb_build.model import Address, Deployment, StartCommand
from kwdb_build.server import address, capture, startflags

if TYPE_CHECKING:
    from kwdb_build.server.startflags import HostPort

_KEYS = ("command", "directory", "user", "environment", "limits", "umask", "stdout", "stderr")


def load(path: Path) -> Deployment:
    """Read a description. UsageError names what is missing or wrong.

    command: a list of words (or one line as for a shell). directory: where it is started. user: login name (default:
    the directory's owner). environment and limits: tables. umask: as a string of octal digits. pid is 0: it is down.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}", context=str(error)) from error
    for key in data:
        if key not in _KEYS:
            close = difflib.get_close_matches(key, _KEYS, n=1)
            raise UsageError(f"unknown key {key!r} in {path}", hint=f"did you mean {close[0]}?" if close else
                             "known: " + ", ".join(_KEYS))
    try:
        start = _start(data)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{path} does not describe a start command", context=f"{type(error).__name__}: {error}",
            hint='it needs: command = ["./kwbase", "start-single-node", …] and directory = "/…"',
        ) from error
    return _deployment(start)


def _start(data: dict[str, Any]) -> StartCommand:
    words = data["command"]
    argv = tuple(shlex.split(words)) if isinstance(words, str) else tuple(map(str, words))
    cwd = Path(data["directory"])
    executable = cwd / argv[0]
    if not cwd.is_absolute() or "/" not in argv[0] or not executable.exists():
        raise ValueError(f"directory must be absolute, and the first word of the command lead to kwbase: {executable}")
    account = pwd.getpwnam(data["user"]) if "user" in data else pwd.getpwuid(cwd.stat().st_uid)
    given = data.get("limits", {})
    limits = {name: (_limit(value), _limit(value)) for name, value in given.items()}
    flags = startflags.parse(argv, cwd=str(cwd), environ=data.get("environment", {}))
    return StartCommand(
        argv=argv, background=flags.background, cwd=cwd, executable=executable.resolve(),
        environ={str(name): str(value) for name, value in data.get("environment", {}).items()}, dropped={},
        uid=account.pw_uid, gid=account.pw_gid, groups=tuple(os.getgrouplist(account.pw_name, account.pw_gid)),
        limits=limits, oom_score_adj=0, nice=0, stdout=str(data.get("stdout", os.devnull)),
        stderr=str(data.get("stderr", os.devnull)), umask=int(str(data["umask"]), 8) if "umask" in data else -1,
    )


def _limit(value: object) -> int:
    return -1 if value in {"unlimited", "infinity"} else int(str(value))


def _deployment(start: StartCommand) -> Deployment:
    flags = startflags.parse(start.argv, cwd=str(start.cwd), environ=start.environ)
    stores = capture.stores_of(flags)
    certs_dir = None if flags.insecure else Path(flags.certs_dir)
    return Deployment(
        pid=0, started_at=0.0, start=start, stores=stores, sql=_dial(flags.sql), http=_dial(flags.http),
        secure=not flags.insecure, certs_dir=certs_dir, libraries={},
        version=capture.version_of(start, start.executable),
    )


def _dial(wanted: HostPort) -> Address:
    host = address.dialable(wanted.host, ["::"]) if wanted.wildcard else wanted.host
    return Address(host=host, port=wanted.port)
