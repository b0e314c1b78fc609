"""Networks as users have them, on loopback: web servers with their own authority and passwords, and a proxy."""

from __future__ import annotations

import base64
import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from tests.ports import free_port


@dataclass
class Seen:
    """What a server was asked: paths, or hosts of a proxy; and what it refused."""

    asked: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    url: str = ""


def _basic(secret: str) -> str:
    return f"Basic {base64.b64encode(secret.encode()).decode()}"


class _Files(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *args: Any, seen: Seen, secret: str, **kwargs: Any) -> None:
        self.seen, self.secret = seen, secret
        super().__init__(*args, **kwargs)

    def do_GET(self) -> None:
        if self.secret and self.headers.get("Authorization") != _basic(self.secret):
            self.seen.refused.append(self.path)
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="test"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.seen.asked.append(self.path)
        super().do_GET()

    def log_message(self, *_: Any) -> None:
        pass


class _Proxy(BaseHTTPRequestHandler):
    def __init__(self, *args: Any, seen: Seen, secret: str, **kwargs: Any) -> None:
        self.seen, self.secret = seen, secret
        super().__init__(*args, **kwargs)

    def _allowed(self, what: str) -> bool:
        if self.headers.get("Proxy-Authorization") != _basic(self.secret):
            self.seen.refused.append(what)
            self.send_response(407)
            self.send_header("Proxy-Authenticate", 'Basic realm="proxy"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return False
        self.seen.asked.append(what)
        return True

    def do_CONNECT(self) -> None:
        if not self._allowed(self.path):
            return
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=30) as upstream:
            self.send_response(200)
            self.end_headers()
            ends = {self.connection: upstream, upstream: self.connection}
            while True:
                ready, _, _ = select.select(list(ends), [], [], 30)
                for end in ready:
                    try:
                        data = end.recv(65536)
                        ends[end].sendall(data)
                    except OSError:  # one side hung up
                        return
                    if not data:
                        return
                if not ready:
                    return

    def do_GET(self) -> None:
        if not self._allowed(urlsplit(self.path).netloc):
            return
        headers = {name: value for name, value in self.headers.items() if name.lower() in {"authorization", "accept"}}
        wanted = Request(self.path, headers=headers)  # noqa: S310 - of a test's own server
        with build_opener(ProxyHandler({})).open(wanted, timeout=30) as answer:
            content = answer.read()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def _serving(handler: Any, certificate: tuple[Path, Path] | None = None) -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", free_port()), handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign,assignment]  # clients hang up
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


@contextlib.contextmanager
def web(root: Path, *, secret: str = "", certificate: tuple[Path, Path] | None = None) -> Iterator[Seen]:
    """The files of a directory; with a secret (user:password) for those who know it."""
    seen = Seen()
    with _serving(partial(_Files, directory=str(root), seen=seen, secret=secret), certificate) as port:
        scheme, at = "https" if certificate else "http", f"{secret}@" if secret else ""
        seen.url = f"{scheme}://{at}127.0.0.1:{port}"
        yield seen


@contextlib.contextmanager
def proxy(secret: str) -> Iterator[Seen]:
    """A proxy for http and https that wants a password."""
    seen = Seen()
    with _serving(partial(_Proxy, seen=seen, secret=secret)) as port:
        seen.url = f"http://{secret}@127.0.0.1:{port}"
        yield seen
