"""A captured deployment on disk (0600: its environment may hold secrets), and as a command for people."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kwdb_build import files
from kwdb_build.errors import UsageError
from kwdb_build.model import Address, Capabilities, Deployment, StartCommand, Store, Version, to_json
from kwdb_build.server import proc, startflags

if TYPE_CHECKING:
    from collections.abc import Sequence

FORMAT = 1
_SHELL_LIMITS = {"nofile": "n", "memlock": "l", "core": "c", "stack": "s", "nproc": "u", "as": "v"}
_KIBIBYTES = frozenset({"memlock", "core", "stack", "as"})


def save(deployment: Deployment, path: Path) -> None:
    """Write atomically, readable by the owner only. Bytes that are no UTF-8 survive as JSON escapes."""
    document = {"format": FORMAT, "deployment": to_json(deployment)}
    files.write_atomic(path, json.dumps(document, indent=2, ensure_ascii=True) + "\n", mode=files.PRIVATE)


def load(path: Path) -> Deployment:
    """Read what save() wrote. UsageError when it is something else."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise UsageError(f"{path} was written in format {document['format']}, this version reads {FORMAT}")
        return _deployment(document["deployment"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"cannot read the captured deployment {path}", context=repr(error)) from error


def _deployment(data: dict[str, Any]) -> Deployment:
    version = data["version"]
    return Deployment(**data | {
        "start": _start(data["start"]),
        "stores": tuple(
            Store(path=Path(one["path"]), kind=one["kind"], targets=tuple(map(Path, one["targets"])))
            for one in data["stores"]
        ),
        "sql": Address(**data["sql"]),
        "http": Address(**data["http"]) if data["http"] else None,
        "certs_dir": Path(data["certs_dir"]) if data["certs_dir"] else None,
        "libraries": {name: Path(path) for name, path in data["libraries"].items()},
        "version": Version(**version | {"release": tuple(version["release"])}),
    })


def _start(data: dict[str, Any]) -> StartCommand:
    newer: dict[str, Any] = {
        name: tuple(data[name]) for name in ("ionice", "scheduling", "affinity", "cgroup") if name in data
    }
    return StartCommand(**data | newer | {
        "argv": tuple(data["argv"]), "cwd": Path(data["cwd"]), "executable": Path(data["executable"]),
        "groups": tuple(data["groups"]),
        "limits": {name: (soft, hard) for name, (soft, hard) in data["limits"].items()},
        "capabilities": Capabilities(**data["capabilities"]) if data.get("capabilities") else None,
    })


def shell_text(start: StartCommand, *, redact: bool) -> str:
    """The start command for a person to read, or to paste into a POSIX shell.

    With redact, values of environment variables and of flags that hold secrets are replaced.
    """
    argv = startflags.redact(start.argv) if redact else start.argv
    environment = [
        f"{name}={startflags.REDACTED if redact else value}" for name, value in start.environ.items()
    ]
    lines = [
        f"# as user {proc.user_name(start.uid)} (uid {start.uid}, gid {start.gid})",
        f"# standard output went to {start.stdout}, errors to {start.stderr}",
        *(f"# not replayed: {name} ({reason})" for name, reason in start.dropped.items()),
        "(",
        f"  cd {shlex.quote(str(start.cwd))} &&",
        f"  umask {start.launcher_umask:04o} && {_limits(start)}",
        "  exec env -i \\",
        *(f"    {shlex.quote(word)} \\" for word in environment),
        f"    {' '.join(map(shlex.quote, _program(start, argv)))}",
        ")",
    ]
    return "\n".join(line for line in lines if line.strip()) + "\n"


def _limits(start: StartCommand) -> str:
    words = []
    for name, letter in _SHELL_LIMITS.items():
        if name in start.limits:
            soft = start.limits[name][0]
            amount = "unlimited" if soft == -1 else str(soft // 1024 if name in _KIBIBYTES else soft)
            words.append(f"ulimit -S{letter} {amount} &&")
    return " ".join(words)


def _program(start: StartCommand, argv: Sequence[str]) -> tuple[str, ...]:
    """A bare argv[0] was found on a PATH that may not lead there any more: the file itself is certain."""
    return (str(start.executable), *argv[1:]) if "/" not in argv[0] else tuple(argv)


def redacted(deployment: Deployment) -> dict[str, Any]:
    """The deployment as JSON values for a screen or a report: names of variables stay, their values do not."""
    shown: dict[str, Any] = to_json(deployment)
    shown["start"]["environ"] = dict.fromkeys(deployment.start.environ, startflags.REDACTED)
    shown["start"]["argv"] = list(startflags.redact(deployment.start.argv))
    return shown
