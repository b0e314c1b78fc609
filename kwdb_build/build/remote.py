"""A compiler cache that machines share, for builds that have no network.

A directory (file:/…, such as an NFS mount) is mounted. A Redis or a web server is reached through a socket in a mounted
directory, behind which this process logs in and passes on what ccache asks for and nothing else: the source of a build
is not trusted with a password. Who may write to a shared cache decides what all its users' builds consist of:
ccache does not sign what it stores.
"""

from __future__ import annotations

import contextlib
import errno
import re
import socket
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from kwdb_build.build import recipe as recipes
from kwdb_build.build.passage import CHUNK, END, TIMEOUT_S, Passage, read_command, read_value
from kwdb_build.build.webcache import Site, WebPassage, login
from kwdb_build.engine.base import Mount
from kwdb_build.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO
    from urllib.parse import SplitResult

    from kwdb_build.console import Progress

_SOCKET = "redis.sock"
_PORTS = {"redis": 6379, "http": 80, "https": 443}
_PATH = re.compile(r"[A-Za-z0-9/._~%+@:=-]*")


@dataclass(frozen=True, kw_only=True)
class Remote:
    """What the build's container gets for the shared cache."""

    mounts: tuple[Mount, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def shared(
    url: str, password_file: Path | None, *, scratch: Path, progress: Progress, authorities: Path | None = None
) -> Iterator[Remote]:
    """Reach the cache at url ('': none) for the time of a build; UsageError for a URL or a file that cannot be used.

    A cache that does not answer is no error: the build goes without it, and progress says so. authorities: the
    certificates that count for https, None for those of this machine.
    """
    if not url:
        yield Remote()
        return
    parts = urlsplit(url)
    if parts.scheme == "file":
        yield _directory(Path(parts.path), url)
        return
    directory = scratch / "remote"
    passage = _passage(parts, _password(password_file), authorities, directory / _SOCKET, progress)
    directory.mkdir(mode=0o755)
    directory.chmod(0o755)  # whatever the umask: the build's user looks for the socket in it
    with passage:
        yield Remote(
            mounts=(Mount(source=directory, target=str(recipes.REMOTE), read_only=False),),
            environment={"CCACHE_REMOTE_STORAGE": f"redis+unix:{recipes.REMOTE}/{_SOCKET}"},
        )


def _passage(
    parts: SplitResult, password: str, authorities: Path | None, path: Path, progress: Progress
) -> Passage:
    """Who answers behind the socket at path; nothing is asked of the cache yet."""
    user = parts.username or ""
    try:
        port = parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError:
        port = 0
    if not port or not parts.hostname or parts.password or (user and parts.scheme == "redis"):
        raise UsageError(
            f"cache_remote is no address of a shared cache: {parts.scheme}://{parts.hostname or ''}",
            hint="redis://HOST:PORT or redis://HOST:PORT/DB, http(s)://[USER@]HOST[:PORT]/PATH (the password in the "
            "file of cache_remote_password_file), or file:/DIRECTORY",
        )
    if parts.scheme == "redis":
        database = parts.path.strip("/")
        if database and not database.isdigit():
            raise UsageError(f"not the number of a Redis database: {database!r}", hint="redis://HOST:PORT/DB")
        first = [(word, value) for word, value in (("AUTH", password), ("SELECT", database)) if value]
        return _RedisPassage(path, (parts.hostname, port), first, progress)
    if parts.query or parts.fragment or not _PATH.fullmatch(parts.path):
        raise UsageError(f"cache_remote has a strange path: {parts.path!r}", hint="http(s)://HOST[:PORT]/PATH")
    return WebPassage(path, Site(
        secure=parts.scheme == "https", host=parts.hostname, port=port, path=parts.path.rstrip("/"),
        headers=login(user, password), authorities=authorities,
    ), progress)


def _password(file: Path | None) -> str:
    """What is in the password file, '' without one; UsageError when there is no such file, or it holds no one line."""
    if file is None:
        return ""
    hint = "a file with the password alone, in one line, that this user may read"
    try:
        password = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cache_remote_password_file cannot be read: {file}", context=str(error), hint=hint) from error
    if not password.isprintable():
        raise UsageError(f"cache_remote_password_file holds more than a password: {file}", hint=hint)
    return password


def _directory(path: Path, url: str) -> Remote:
    if not path.is_absolute() or not path.is_dir():
        raise UsageError(f"cache_remote names no directory of this machine: {url}", hint="file:/DIRECTORY")
    return Remote(
        mounts=(Mount(source=path, target=str(recipes.REMOTE), read_only=False),),
        environment={"CCACHE_REMOTE_STORAGE": f"file:{recipes.REMOTE}"},
    )


class _RedisPassage(Passage):
    """Passes the commands of a compiler cache on to a Redis. first: what is said to the Redis before."""

    def __init__(
        self, path: Path, target: tuple[str, int], first: list[tuple[str, str]], progress: Progress
    ) -> None:
        super().__init__(path, f"the shared cache at {target[0]}:{target[1]}", progress)
        self._target = target
        self._first = first

    def pass_on(self, client: socket.socket) -> None:
        """One connection of ccache is one connection to the Redis."""
        with contextlib.ExitStack() as stack:
            try:
                server = stack.enter_context(socket.create_connection(self._target, TIMEOUT_S))
                refused = [_WORDS[command[0]] for command in self._first if not _said(server, command)]
            except OSError as error:
                # Too many open files here say nothing about the cache: this one compiler goes without it.
                if error.errno not in {errno.EMFILE, errno.ENFILE}:
                    self.do_without(f"does not answer ({error})")
                return
            if refused:
                self.do_without(f"does not take {refused[0]}")
                return
            server.settimeout(None)
            commands = stack.enter_context(client.makefile("rb"))
            back = threading.Thread(target=_pump, args=(server, client), daemon=True)
            back.start()
            try:
                _filter(commands, server)
            finally:
                with contextlib.suppress(OSError):
                    server.shutdown(socket.SHUT_WR)
                back.join()


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
    """Pass commands on until there is no more, each only when all before its value is known to be harmless.

    ValueError for anything else; none of it reaches the Redis.
    """
    while command := read_command(commands):
        server.sendall(command.coded())
        if command.value_bytes >= 0:
            with contextlib.suppress(EOFError):  # half a value is none to a Redis
                for chunk in read_value(commands, command.value_bytes + len(END)):
                    server.sendall(chunk)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(CHUNK):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)
