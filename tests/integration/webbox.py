"""A web server that keeps what is put to it, as the ones that people use for ccache do (nginx with WebDAV)."""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Web:
    """Its address, what it holds by path, what it was asked, and how it is to behave.

    status: answered to everything, when not 0. read_only: refuses PUT and DELETE. cut: sends half of what it holds.
    chunked: does not say how long it is.
    """

    url: str = ""
    held: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    logins: set[str] = field(default_factory=set)
    status: int = 0
    read_only: bool = False
    cut: bool = False
    chunked: bool = False


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, web: Web) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.web = web


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    @property
    def web(self) -> Web:
        return self.server.web

    def _begin(self) -> int:
        self.web.asked.append(f"{self.command} {self.path}")
        self.web.logins.add(self.headers.get("Authorization", ""))
        if self.web.status:
            return self.web.status
        if self.command in {"PUT", "DELETE"} and self.web.read_only:
            return 405
        return 200 if self.path in self.web.held or self.command == "PUT" else 404

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        if status in {301, 302}:
            self.send_header("Location", "http://127.0.0.1:1/")
        if self.web.chunked and body:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
            return
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.web.cut else body)
        self.close_connection = self.close_connection or self.web.cut

    def do_HEAD(self) -> None:
        self._answer(self._begin())

    def do_GET(self) -> None:
        status = self._begin()
        self._answer(status, self.web.held[self.path] if status == 200 else b"an error page")

    def do_PUT(self) -> None:
        status = self._begin()
        wanted = int(self.headers["Content-Length"])
        body = self.rfile.read(wanted)
        if status == 200 and len(body) == wanted:
            self.web.held[self.path] = body
        self._answer(201 if status == 200 else status)

    def do_DELETE(self) -> None:
        status = self._begin()
        self.web.held.pop(self.path, None)
        self._answer(204 if status == 200 else status)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def running_web(certificates: Path | None = None) -> Iterator[Web]:
    """A server on loopback; with certificates (see certs.py) it speaks TLS under the name localhost."""
    web = Web()
    server = _Server(web)
    web.url = f"http://127.0.0.1:{server.server_port}"
    if certificates is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates / "node.crt", certificates / "node.key")
        server.socket = context.wrap_socket(server.socket, server_side=True)
        web.url = f"https://localhost:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
