"""A compiler cache that machines share, for builds that have no network.

A directory (file:/…, such as an NFS mount) is mounted. A Redis is reached through a socket in a mounted directory,
behind which this process logs in, chooses the database, and passes on what ccache asks for and nothing else: the source
of a build is not trusted with a Redis. Who may write to a shared cache decides what all its users' builds consist of:
ccache does not sign what it stores.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from kwdb_build.build import recipe as recipes
from kwdb_build.engine.base import Mount
from kwdb_build.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from kwdb_build.console import Progress

_SOCKET = "redis.sock"
_CHUNK = 1 << 16
_TIMEOUT_S = 5.0
_AGAIN_S = 0.1
_REDIS_PORT = 6379
_ALLOWED = {b"EXISTS": 2, b"GET": 2, b"SET": 3, b"DEL": 2}
"""What ccache asks of a Redis: each command and the number of its words. (AUTH and SELECT are ours.)"""
_KEY = re.compile(rb"ccache:[0-9a-z]{1,64}")
_LENGTH = re.compile(rb"[*$](\d{1,9})\r\n")
_LONGEST_LINE = 16
_LONGEST_WORD = 80
_END = b"\r\n"


@dataclass(frozen=True, kw_only=True)
class Remote:
    """What the build's container gets for the shared cache."""

    mounts: tuple[Mount, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def shared(url: str, password_file: Path | None, *, scratch: Path, progress: Progress) -> Iterator[Remote]:
    """Reach the cache at url ('': none) for the time of a build; UsageError for a URL that cannot be used.

    A cache that does not answer is no error: the build goes without it, and progress says so.
    """
    if not url:
        yield Remote()
        return
    parts = urlsplit(url)
    if parts.scheme == "file":
        yield _directory(Path(parts.path), url)
        return
    if parts.scheme != "redis" or not parts.hostname or parts.username or parts.password:
        raise UsageError(
            f"cache_remote is no address of a shared cache: {parts.scheme}://{parts.hostname or ''}",
            hint="redis://HOST:PORT or redis://HOST:PORT/DB (the password in the file of cache_remote_password_file), "
            "or file:/DIRECTORY",
        )
    database = parts.path.strip("/")
    if database and not database.isdigit():
        raise UsageError(f"not the number of a Redis database: {database!r}", hint="redis://HOST:PORT/DB")
    directory = scratch / "remote"
    directory.mkdir(mode=0o755)
    directory.chmod(0o755)  # whatever the umask: the build's user looks for the socket in it
    password = password_file.read_text(encoding="utf-8").strip() if password_file else ""
    first = [(word, value) for word, value in (("AUTH", password), ("SELECT", database)) if value]
    with _Passage(directory / _SOCKET, (parts.hostname, parts.port or _REDIS_PORT), first, progress):
        yield Remote(
            mounts=(Mount(source=directory, target=str(recipes.REMOTE), read_only=False),),
            environment={"CCACHE_REMOTE_STORAGE": f"redis+unix:{recipes.REMOTE}/{_SOCKET}"},
        )


def _directory(path: Path, url: str) -> Remote:
    if not path.is_absolute() or not path.is_dir():
        raise UsageError(f"cache_remote names no directory of this machine: {url}", hint="file:/DIRECTORY")
    return Remote(
        mounts=(Mount(source=path, target=str(recipes.REMOTE), read_only=False),),
        environment={"CCACHE_REMOTE_STORAGE": f"file:{recipes.REMOTE}"},
    )


class _Passage:
    """Listens on a socket file, and passes the commands of a compiler cache on to a Redis, each connection on its own.

    first: what is said to the Redis before.
    """

    def __init__(
        self, path: Path, target: tuple[str, int], first: list[tuple[str, str]], progress: Progress
    ) -> None:
        self._path = path
        self._target = target
        self._first = first
        self._progress = progress
        self._told: set[str] = set()
        self._without = False
        self._closing = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def __enter__(self) -> None:
        directory = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY)
        try:  # through the directory: the path of a socket has at most 107 bytes, that of a home may have more
            self._listener.bind(f"/proc/self/fd/{directory}/{self._path.name}")
        finally:
            os.close(directory)
        self._path.chmod(0o666)
        self._listener.listen(64)
        threading.Thread(target=self._serve, daemon=True).start()

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
            threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        where = f"the shared cache at {self._target[0]}:{self._target[1]}"
        with client, contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            if self._without:
                return
            try:
                server = stack.enter_context(socket.create_connection(self._target, _TIMEOUT_S))
                refused = [_WORDS[command[0]] for command in self._first if not _said(server, command)]
            except OSError as error:
                # Too many open files here say nothing about the cache: this one compiler goes without it.
                if error.errno not in {errno.EMFILE, errno.ENFILE}:
                    self._do_without(f"{where} does not answer ({error})")
                return
            if refused:
                self._do_without(f"{where} does not take {refused[0]}")
                return
            server.settimeout(None)
            with client.makefile("rb") as commands:
                back = threading.Thread(target=_pump, args=(server, client), daemon=True)
                back.start()
                try:
                    _filter(commands, server)
                except ValueError as error:
                    self._tell("filter", f"the build asked {where} for what ccache does not ask for: refused ({error})")
                server.shutdown(socket.SHUT_WR)
                back.join()

    def _do_without(self, why: str) -> None:
        """No connection is tried again in this build: each of thousands of compilers would wait for it in vain."""
        self._without = True
        self._tell("without", f"{why}: building without it")

    def _tell(self, kind: str, what: str) -> None:
        """Say something once of each kind, however many connections it happens to."""
        if kind not in self._told:
            self._told.add(kind)
            self._progress.note(what)


_WORDS = {"AUTH": "the password of cache_remote_password_file", "SELECT": "the database of cache_remote"}


def _said(server: socket.socket, words: tuple[str, str]) -> bool:
    """Say one command to a Redis; whether it agreed."""
    coded = [word.encode() for word in words]
    server.sendall(b"*%d\r\n" % len(coded) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in coded))
    answer = b""
    while not answer.endswith(b"\r\n"):
        more = server.recv(1)  # not a byte of what follows
        if not more:
            break
        answer += more
    return answer.startswith(b"+OK")


def _filter(commands: BinaryIO, server: socket.socket) -> None:
    """Pass commands on until there is no more, each only when all before its last word is known to be harmless.

    They come as Redis clients send them: `*COUNT`, then for each word `$LENGTH` and the word, all ended by CR LF.
    ValueError for anything else; none of it reaches the Redis.
    """
    while line := commands.readline(_LONGEST_LINE):
        count = _number(line, b"*")
        name = _word(commands).upper()
        if _ALLOWED.get(name) != count:
            raise ValueError(f"{name[:_LONGEST_LINE]!r} of {count} words")
        key = _word(commands)
        if not _KEY.fullmatch(key):
            raise ValueError(f"the key {key!r}")
        server.sendall(b"*%d\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" % (count, len(name), name, len(key), key))
        if name == b"SET":
            line = commands.readline(_LONGEST_LINE)
            left = _number(line, b"$") + len(_END)
            server.sendall(line)
            while left:
                chunk = commands.read(min(left, _CHUNK))
                if not chunk:
                    return
                server.sendall(chunk)
                left -= len(chunk)


def _word(commands: BinaryIO) -> bytes:
    """One short word of a command."""
    length = _number(commands.readline(_LONGEST_LINE), b"$")
    content = commands.read(min(length, _LONGEST_WORD) + len(_END))
    if not content.endswith(_END) or len(content) != length + len(_END):
        raise ValueError(f"a word of {length} bytes")
    return content.removesuffix(_END)


def _number(line: bytes, kind: bytes) -> int:
    match = _LENGTH.fullmatch(line)
    if match is None or not line.startswith(kind):
        raise ValueError(f"{line!r}")
    return int(match[1])


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)
