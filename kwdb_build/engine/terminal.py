"""The caller's terminal as that of a program in a container."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import sys
import termios
import tty
from typing import TYPE_CHECKING, Any, Protocol

from kwdb_build import command
from kwdb_build.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_CHUNK = 1 << 16


class Stream(Protocol):
    """The part of a socket that relay needs."""

    def fileno(self) -> int:
        """Its descriptor."""
        ...

    def recv(self, size: int, /) -> bytes:
        """Up to size bytes, b'' at the end."""
        ...

    def sendall(self, data: bytes, /) -> None:
        """Write all of data."""
        ...


def require_terminal() -> None:
    """UsageError when nobody could type."""
    if not (sys.stdin is not None and sys.stdin.isatty() and sys.stdout is not None and sys.stdout.isatty()):
        raise UsageError("a shell needs a terminal", hint="run it from a terminal, or leave --shell-on-failure out")


def relay(stream: Stream, resize: Callable[[int, int], Any]) -> bool:
    """Pass bytes between this terminal and stream until one ends; whether it was the stream.

    resize(rows, columns) is called in the beginning and whenever the window changes.
    """
    with _raw(sys.stdin.fileno()), _following_size(resize):
        watched = [sys.stdin.fileno(), stream.fileno()]
        while True:
            ready, _, _ = select.select(watched, [], [])
            if stream.fileno() in ready:
                data = stream.recv(_CHUNK)
                if not data:
                    return True
                os.write(sys.stdout.fileno(), data)
            if sys.stdin.fileno() in ready:
                typed = os.read(sys.stdin.fileno(), _CHUNK)
                if not typed:
                    return False
                stream.sendall(typed)


@contextlib.contextmanager
def _raw(fd: int) -> Iterator[None]:
    """Keys go through as they are, Ctrl-C too; the terminal is as before at the end."""
    before = termios.tcgetattr(fd)
    tty.setraw(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _following_size(resize: Callable[[int, int], Any]) -> Iterator[None]:
    def tell(*_: Any) -> None:
        size = os.get_terminal_size(sys.stdout.fileno())
        with contextlib.suppress(Exception):  # the program may have ended in this very moment
            resize(size.lines, size.columns)

    tell()
    before = signal.signal(signal.SIGWINCH, tell)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


class _Master:
    """The near end of a terminal of our own, as a socket looks."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def recv(self, size: int) -> bytes:
        with contextlib.suppress(OSError):  # EIO: nobody has the other end any more
            return os.read(self._fd, size)
        return b""

    def sendall(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._fd, data):]


def on_own_terminal(
    argv: Sequence[str], *, env: Mapping[str, str], fds: Sequence[int], started: Callable[[], None]
) -> int:
    """Run argv on a new terminal that the caller's is connected to: it can neither read nor write the caller's own."""
    master, slave = pty.openpty()
    try:
        with command.on_terminal(argv, env=env, fds=fds, terminal=slave) as process:
            os.close(slave)
            slave = -1
            started()
            if not relay(_Master(master), lambda rows, columns: termios.tcsetwinsize(master, (rows, columns))):
                process.kill()
        return int(process.returncode)
    finally:
        for fd in (master, slave):
            if fd >= 0:
                os.close(fd)
