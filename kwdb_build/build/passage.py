"""A socket for a build without network, behind which somebody answers what a compiler cache asks for.

ccache speaks the protocol of Redis through it. Nothing but its four commands about its own keys is understood: the
source of a build is not trusted with what lies behind.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO, Self

    from kwdb_build.console import Progress

CHUNK = 1 << 16
TIMEOUT_S = 5.0
END = b"\r\n"
_AGAIN_S = 0.1
_ALLOWED = {b"EXISTS": 2, b"GET": 2, b"SET": 3, b"DEL": 2}
"""What ccache asks of a Redis: each command and the number of its words. (AUTH and SELECT are ours.)"""
_KEY = re.compile(rb"ccache:[0-9a-z]{1,64}")
_LENGTH = re.compile(rb"[*$](\d{1,9})\r\n")
_LONGEST_LINE = 16
_LONGEST_WORD = 80


class Passage(ABC):
    """Listens on a socket file for the time of a build, and serves each connection in a thread of its own.

    where: what lies behind, for people.
    """

    def __init__(self, path: Path, where: str, progress: Progress) -> None:
        self._path = path
        self._where = where
        self._progress = progress
        self._told: set[str] = set()
        self._without = False
        self._closing = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def __enter__(self) -> Self:
        directory = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY)
        try:  # through the directory: the path of a socket has at most 107 bytes, that of a home may have more
            self._listener.bind(f"/proc/self/fd/{directory}/{self._path.name}")
        finally:
            os.close(directory)
        self._path.chmod(0o666)
        self._listener.listen(64)
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept(); close() alone would not
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                if self._closing.wait(_AGAIN_S):
                    return
                continue  # too many open files, or a client that was gone at once
            threading.Thread(target=self._take, args=(client,), daemon=True).start()

    def _take(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            if self._without:
                return
            try:
                self.pass_on(client)
            except ValueError as error:
                self.tell(
                    "filter", f"the build asked {self._where} for what ccache does not ask for: refused ({error})"
                )

    @abstractmethod
    def pass_on(self, client: socket.socket) -> None:
        """Answer one connection until it ends; ValueError for what is no command of ccache."""

    def do_without(self, why: str) -> None:
        """No connection is tried again in this build: each of thousands of compilers would wait for it in vain."""
        self._without = True
        self.tell("without", f"{self._where} {why}: building without it")

    def tell(self, kind: str, what: str) -> None:
        """Say something once of each kind, however many connections it happens to."""
        if kind not in self._told:
            self._told.add(kind)
            self._progress.note(what)


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command up to the value of a SET, which follows: value_bytes of it and a line end (-1: no value)."""

    name: bytes
    key: bytes
    value_bytes: int = -1

    def coded(self) -> bytes:
        """As Redis clients send it."""
        words = b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in (self.name, self.key))
        value = b"$%d\r\n" % self.value_bytes if self.value_bytes >= 0 else b""
        return b"*%d\r\n" % _ALLOWED[self.name] + words + value


def read_command(commands: BinaryIO) -> Command | None:
    """The next command, None at the end; ValueError for anything that ccache does not ask for.

    They come as Redis clients send them: `*COUNT`, then for each word `$LENGTH` and the word, all ended by CR LF.
    """
    line = commands.readline(_LONGEST_LINE)
    if not line:
        return None
    count = _number(line, b"*")
    name = _word(commands).upper()
    if _ALLOWED.get(name) != count:
        raise ValueError(f"{name[:_LONGEST_LINE]!r} of {count} words")
    key = _word(commands)
    if not _KEY.fullmatch(key):
        raise ValueError(f"the key {key!r}")
    if name != b"SET":
        return Command(name=name, key=key)
    return Command(name=name, key=key, value_bytes=_number(commands.readline(_LONGEST_LINE), b"$"))


def read_value(commands: BinaryIO, size: int) -> Iterator[bytes]:
    """The next size bytes in pieces; EOFError when they end before."""
    while size:
        try:
            chunk = commands.read(min(size, CHUNK))
        except OSError as error:  # told apart from what happens to the other side while this is sent there
            raise EOFError from error
        if not chunk:
            raise EOFError
        yield chunk
        size -= len(chunk)


def _word(commands: BinaryIO) -> bytes:
    """One short word of a command."""
    length = _number(commands.readline(_LONGEST_LINE), b"$")
    content = commands.read(min(length, _LONGEST_WORD) + len(END))
    if not content.endswith(END) or len(content) != length + len(END):
        raise ValueError(f"a word of {length} bytes")
    return content.removesuffix(END)


def _number(line: bytes, kind: bytes) -> int:
    match = _LENGTH.fullmatch(line)
    if match is None or not line.startswith(kind):
        raise ValueError(f"{line!r}")
    return int(match[1])
