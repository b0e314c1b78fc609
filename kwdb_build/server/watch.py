"""An outside client that asks a server the whole time, so that a downtime is what clients felt of it.

A process of its own, begun while the old server still answers: each question is a new connection with its own time
limit, closed at once, as one that stays open would be what a drain waits for. It ends with whoever began it.

    python -m kwdb_build.server.watch <login fd> <answers fd>
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from kwdb_build import command
from kwdb_build.model import Address, to_json
from kwdb_build.sql import Login, Session, SqlError

if TYPE_CHECKING:
    from collections.abc import Iterator

_CONNECT_S = 2
_STATEMENT_S = 2.0
_PAUSE_UP_S = 0.05
_PAUSE_DOWN_S = 0.015
_END_S = 5.0
_FIRST_FD = 20


@dataclass(frozen=True, kw_only=True)
class Change:
    """From when on (unix seconds, end of the question) the server answered, or did not."""

    moment: float
    answers: bool


@dataclass(kw_only=True)
class Watcher:
    """The client's process and what it has told so far. Use as a context manager; close() may be called again."""

    pid: int
    to_client: int
    from_client: int
    changes: list[Change] = field(default_factory=list)
    _rest: bytes = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def answered_after(self, moment: float, *, wait_s: float = 2.0) -> float | None:
        """When the server answered for the first time after a moment of silence that ended later than `moment`.

        None when nothing was told of it within wait_s: the caller's own time is as good then.
        """
        deadline = time.monotonic() + wait_s
        while True:
            for change in self.changes:
                if change.answers and change.moment > moment:
                    return change.moment
            if not self._read(max(0.0, deadline - time.monotonic())):
                return None

    def _read(self, timeout_s: float) -> bool:
        """Take in what was told; False when nothing more came in time."""
        if self.from_client < 0 or not select.select([self.from_client], [], [], timeout_s)[0]:
            return False
        data = os.read(self.from_client, 1 << 16)
        *lines, self._rest = (self._rest + data).split(b"\n")
        self.changes += [Change(**json.loads(line)) for line in lines]
        return bool(data)

    def close(self) -> None:
        """End it: it notices that its input is closed."""
        for fd in (self.to_client, self.from_client):
            if fd >= 0:
                os.close(fd)
        self.to_client = self.from_client = -1
        with contextlib.suppress(ChildProcessError):
            if command.reap(self.pid, _END_S) is None:
                command.kill_child(self.pid)


def begin(login: Login) -> Watcher:
    """Start asking; returns at once. Errors: CommandError."""
    with _pipe() as (login_fd, to_client), _pipe() as (from_client, answers_fd):
        environment = {"PATH": os.defpath, "LC_ALL": "C.UTF-8", "PYTHONPATH": str(Path(__file__).parents[2])}
        pid = command.spawn(
            [sys.executable, "-P", "-m", "kwdb_build.server.watch", str(login_fd), str(answers_fd)], env=environment,
            fds=[login_fd, answers_fd],
        )
        os.write(to_client, json.dumps(to_json(login)).encode() + b"\n")
        return Watcher(pid=pid, to_client=os.dup(to_client), from_client=os.dup(from_client))


@contextlib.contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe2(os.O_CLOEXEC)
    import fcntl

    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_FD) for fd in ends]
    for fd in ends:
        os.close(fd)
    try:
        yield moved[0], moved[1]
    finally:
        for fd in moved:
            os.close(fd)


def main(arguments: list[str]) -> int:
    """Ask until the input is closed; tell each change as a line of JSON."""
    login_fd, answers_fd = int(arguments[0]), int(arguments[1])
    told = os.read(login_fd, 1 << 16)
    login = _login(json.loads(told))
    last: bool | None = None
    while not select.select([login_fd], [], [], _PAUSE_UP_S if last else _PAUSE_DOWN_S)[0]:
        answers = _ask(login)
        if answers is not last:
            line = json.dumps({"moment": time.time(), "answers": answers}).encode() + b"\n"
            try:
                os.write(answers_fd, line)
            except BrokenPipeError:
                return 0
        last = answers
    return 0


def _login(told: dict[str, object]) -> Login:
    address, certs, password = told["address"], told["certs_dir"], told["password_file"]
    assert isinstance(address, dict)  # noqa: S101 our own words, for the type checker
    return Login(
        address=Address(**address), user=str(told["user"]), certs_dir=Path(str(certs)) if certs else None,
        password_file=Path(str(password)) if password else None, dial=str(told["dial"]),
    )


def _ask(login: Login) -> bool:
    try:
        with Session(login, connect_timeout_s=_CONNECT_S, statement_timeout_s=_STATEMENT_S) as session:
            return bool(session.value("SELECT 1") == 1)
    except (SqlError, OSError):
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
