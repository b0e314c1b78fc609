"""A compiler cache that machines share, for builds that have no network.

A directory (file:/…, such as an NFS mount) is mounted. A Redis is reached through a socket in a mounted directory,
behind which this process passes bytes on; it also logs in, so that no password is seen by the build. Who may write to
a shared cache decides what all its users' builds consist of: ccache does not sign what it stores.
"""

from __future__ import annotations

import contextlib
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

    from kwdb_build.console import Progress

_SOCKET = "redis.sock"
_CHUNK = 1 << 16
_TIMEOUT_S = 5.0
_REDIS_PORT = 6379


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
    with _Passage(directory / _SOCKET, (parts.hostname, parts.port or _REDIS_PORT), password, progress):
        choice = f"?db={database}" if database else ""
        yield Remote(
            mounts=(Mount(source=directory, target=str(recipes.REMOTE), read_only=False),),
            environment={"CCACHE_REMOTE_STORAGE": f"redis+unix:{recipes.REMOTE}/{_SOCKET}{choice}"},
        )


def _directory(path: Path, url: str) -> Remote:
    if not path.is_absolute() or not path.is_dir():
        raise UsageError(f"cache_remote names no directory of this machine: {url}", hint="file:/DIRECTORY")
    return Remote(
        mounts=(Mount(source=path, target=str(recipes.REMOTE), read_only=False),),
        environment={"CCACHE_REMOTE_STORAGE": f"file:{recipes.REMOTE}"},
    )


class _Passage:
    """Listens on a socket file and passes each connection on to a Redis, logged in."""

    def __init__(self, path: Path, target: tuple[str, int], password: str, progress: Progress) -> None:
        self._path = path
        self._target = target
        self._password = password
        self._progress = progress
        self._told = False
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def __enter__(self) -> None:
        self._listener.bind(str(self._path))
        self._path.chmod(0o666)
        self._listener.listen(64)
        threading.Thread(target=self._serve, daemon=True).start()

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept(); close() alone would not
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        with client:
            try:
                server = socket.create_connection(self._target, _TIMEOUT_S)
            except OSError as error:
                self._tell(f"the shared cache at {self._target[0]}:{self._target[1]} does not answer ({error})")
                return
            with server, contextlib.suppress(OSError):
                if self._password and not self._log_in(server):
                    return
                server.settimeout(None)
                back = threading.Thread(target=_pump, args=(server, client), daemon=True)
                back.start()
                _pump(client, server)
                back.join()

    def _log_in(self, server: socket.socket) -> bool:
        secret = self._password.encode()
        server.sendall(b"*2\r\n$4\r\nAUTH\r\n$%d\r\n%s\r\n" % (len(secret), secret))
        answer = b""
        while not answer.endswith(b"\r\n"):
            more = server.recv(1)  # not a byte of what follows
            if not more:
                break
            answer += more
        if not answer.startswith(b"+OK"):
            self._tell("the shared cache does not take the password of cache_remote_password_file")
            return False
        return True

    def _tell(self, what: str) -> None:
        if not self._told:
            self._told = True
            self._progress.note(f"{what}: building without it")


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
