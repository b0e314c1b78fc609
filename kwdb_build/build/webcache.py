"""A compiler cache behind a web server, laid out as ccache itself lays it out: URL/AB/CDEF… for the key ABCDEF….

So machines that compile with a ccache of their own, pointed at the same URL, share it. GET, HEAD, PUT and DELETE are
all that is asked of the server; no redirect is followed and no proxy asked, as a password goes along.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import ssl
from base64 import b64encode
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kwdb_build.build.passage import CHUNK, END, TIMEOUT_S, Command, Passage, read_command, read_value

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

    from kwdb_build.console import Progress

_METHODS = {b"EXISTS": "HEAD", b"GET": "GET", b"SET": "PUT", b"DEL": "DELETE"}
_ABSENT = frozenset({404, 410})
_REFUSED = frozenset({401, 403})
_BUCKET = 2
_LARGEST_BYTES = 256 << 20
"""Of an answer that does not say its length before."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """A web server and the path on it below which the entries are; headers are those that log in."""

    secure: bool
    host: str
    port: int
    path: str = ""
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    authorities: Path | None = None


def login(user: str, password: str) -> dict[str, str]:
    """The header that logs in: a name and its password, or a password alone as a token (ccache's bearer-token)."""
    if not password:
        return {}
    if not user:
        return {"Authorization": f"Bearer {password.encode().decode('latin-1')}"}
    return {"Authorization": f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"}


class _AwayError(Exception):
    """The server does not answer, or not as a cache would."""


class WebPassage(Passage):
    """Answers ccache's Redis commands by requests to a web server."""

    def __init__(self, path: Path, site: Site, progress: Progress) -> None:
        super().__init__(path, f"the shared cache at {site.host}:{site.port}", progress)
        self._site = site
        self._context = None
        if site.secure:  # once: it reads all certificates of the machine
            self._context = ssl.create_default_context(cafile=str(site.authorities) if site.authorities else None)

    def _connection(self) -> http.client.HTTPConnection:
        """A connection that is opened by its first request."""
        host, port = self._site.host, self._site.port
        if self._context is None:
            return http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
        return http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=self._context)

    def pass_on(self, client: socket.socket) -> None:
        """One connection of ccache is one connection to the server, opened when it is needed."""
        with client.makefile("rb") as commands, contextlib.closing(self._connection()) as server:
            try:
                while command := read_command(commands):
                    self._answer(command, commands, server, client)
            except _AwayError as error:
                self.do_without(str(error))
            except EOFError:
                return  # the compiler was stopped: the server gets half a body and drops it

    def _answer(
        self, command: Command, commands: BinaryIO, server: http.client.HTTPConnection, client: socket.socket
    ) -> None:
        response = self._ask(command, commands, server)
        if response is None:
            return
        if command.name == b"GET" and response.status == http.client.OK:
            self._give(response, client)
            return
        found = response.status not in _ABSENT
        with _server_of_cache():
            response.read(CHUNK)
        if not response.isclosed():
            server.close()  # what is left of a long error page; the next request opens it again
        if command.name == b"SET":
            client.sendall(b"+OK\r\n" if response.status < http.client.MULTIPLE_CHOICES else b"-ERR not kept\r\n")
        elif command.name == b"GET":
            client.sendall(b"$-1\r\n")
        else:
            client.sendall(b":1\r\n" if found else b":0\r\n")

    def _ask(
        self, command: Command, commands: BinaryIO, server: http.client.HTTPConnection
    ) -> http.client.HTTPResponse | None:
        """Send a request and judge its status; None when this one client is to go without an answer."""
        key = command.key.partition(b":")[2].decode()
        url = f"{self._site.path}/{key[:_BUCKET]}/{key[_BUCKET:]}"
        headers, body = dict(self._site.headers), None
        if command.name == b"SET":
            headers |= {"Content-Length": str(command.value_bytes), "Content-Type": "application/octet-stream"}
            body = read_value(commands, command.value_bytes)
        try:
            with _server_of_cache():
                server.request(_METHODS[command.name], url, body=body, headers=headers)
                response = server.getresponse()
        except _AwayError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in {errno.EMFILE, errno.ENFILE}:
                return None  # too many open files here say nothing about the cache
            raise
        if command.name == b"SET" and commands.read(len(END)) != END:
            raise EOFError
        self._judge(command, response.status)
        return response

    def _judge(self, command: Command, status: int) -> None:
        if status in _ABSENT or http.client.OK <= status < http.client.MULTIPLE_CHOICES:
            return
        if command.name in {b"SET", b"DEL"} and http.client.BAD_REQUEST <= status < http.client.INTERNAL_SERVER_ERROR:
            self.tell("keep", f"{self._where} keeps nothing of this build (HTTP {status}): it is only read")
            return
        if status in _REFUSED:
            raise _AwayError(f"does not take the password of cache_remote_password_file (HTTP {status})")
        raise _AwayError(f"does not answer as a cache does (HTTP {status})")

    def _give(self, response: http.client.HTTPResponse, client: socket.socket) -> None:
        """Pass an entry on; a half one is no answer: the connection ends before its last byte."""
        with _server_of_cache():
            first = b"" if response.length is not None else response.read(_LARGEST_BYTES)
        left = response.length if response.length is not None else 0
        client.sendall(b"$%d\r\n" % (len(first) + left) + first)
        while left:
            with _server_of_cache():
                chunk = response.read(min(left, CHUNK))
            if not chunk:
                raise _AwayError("does not answer to the end")
            client.sendall(chunk)
            left -= len(chunk)
        client.sendall(END)


@contextlib.contextmanager
def _server_of_cache() -> Iterator[None]:
    """What the server's side of the passage fails with, apart from what the compiler's side does."""
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise _AwayError(f"does not answer ({error or type(error).__name__})") from error
