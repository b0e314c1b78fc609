"""Git over real sockets on loopback: a smart HTTP server that can misbehave, and `git daemon`."""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import ssl
import subprocess
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

from kwdb_build.command import run
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class Behaviour:
    """What the server does beside serving: set by a test, also in the middle."""

    root: Path
    status: int = 0
    page: bytes = b""
    login: str = ""
    cut_after_bytes: int = -1
    partial: bool = False
    """Whether it sends part of a repository when asked to (git's uploadpack.allowFilter)."""
    protocol: str = ""
    """The protocol it insists on: '0' gives branches and tags, but nothing by its hash."""
    refuse_after_packs: int = -1
    """How many answers with a pack it gives before it cuts every further one."""
    packs: int = 0
    sent_bytes: int = 0
    silent: threading.Event = field(default_factory=threading.Event)
    busy: threading.Event = field(default_factory=threading.Event)
    requests: list[str] = field(default_factory=list)
    authorizations: list[str] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    behaviour: Behaviour

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing on the test's output."""

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        behaviour = self.behaviour
        behaviour.requests.append(f"{self.command} {self.path}")
        self.close_connection = True
        body = self._body()
        if behaviour.status:
            self._plain(behaviour.status, behaviour.page)
        elif behaviour.login and self.headers.get("Authorization") != self._expected():
            self._plain(401, b"login", ("WWW-Authenticate", 'Basic realm="git"'))
        else:
            behaviour.authorizations.append(self.headers.get("Authorization", ""))
            self._serve(body)

    def _expected(self) -> str:
        return "Basic " + base64.b64encode(self.behaviour.login.encode()).decode()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _plain(self, status: int, page: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (*headers, ("Content-Type", "text/html"), ("Content-Length", str(len(page)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(page)

    def _serve(self, body: bytes) -> None:
        path, _, query = self.path.partition("?")
        environment = {
            "PATH": os.environ["PATH"], "GIT_PROJECT_ROOT": str(self.behaviour.root), "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path, "QUERY_STRING": query, "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""), "REMOTE_ADDR": "127.0.0.1",
            "GIT_PROTOCOL": self._protocol(), "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""), "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "uploadpack.allowFilter",
            "GIT_CONFIG_VALUE_0": str(self.behaviour.partial).lower(),
        }
        done = subprocess.run(["git", "http-backend"], input=body, env=environment, capture_output=True, check=False)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line)
        self.send_response(int(headers.pop("Status", "200 OK").split()[0]))
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        # Only the answer with the pack misbehaves: the one that a fetch is long in.
        packed = self.command == "POST" and (b"command=fetch" in body or b"want " in body)
        self._send(content, slow=packed)

    def _protocol(self) -> str:
        given = self.headers.get("Git-Protocol", "")
        return given if not self.behaviour.protocol else f"version={self.behaviour.protocol}"

    def _send(self, content: bytes, *, slow: bool) -> None:
        behaviour = self.behaviour
        behaviour.sent_bytes += len(content)
        behaviour.packs += slow
        refused = 0 <= behaviour.refuse_after_packs < behaviour.packs
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            if slow and (behaviour.cut_after_bytes >= 0 or refused):
                self.wfile.write(content[: max(behaviour.cut_after_bytes, 0)])
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            if slow and behaviour.silent.is_set():
                self.wfile.write(content[:200])
                self.wfile.flush()
                behaviour.busy.set()
                while behaviour.silent.is_set():
                    time.sleep(0.05)
                content = content[200:]
            self.wfile.write(content)


@contextlib.contextmanager
def http_server(root: Path, *, certificate: tuple[Path, Path] | None = None) -> Iterator[tuple[str, Behaviour]]:
    """Serve the repositories below root; yields the base URL (ends in /) and the knobs."""
    behaviour = Behaviour(root=root)
    handler = type("Handler", (_Handler,), {"behaviour": behaviour})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign,assignment]  # cut on purpose
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        scheme = "http" if certificate is None else "https"
        yield f"{scheme}://127.0.0.1:{server.server_port}/", behaviour
    finally:
        behaviour.silent.clear()
        server.shutdown()
        server.server_close()
        thread.join()


def self_signed(directory: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that nobody trusts yet, and its key."""
    certificate, key = directory / "cert.pem", directory / "key.pem"
    run([
        "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
        "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate),
    ])
    return certificate, key


@contextlib.contextmanager
def git_daemon(root: Path) -> Iterator[str]:
    """`git daemon` for everything below root; yields the base URL (ends in /)."""
    port = free_port()
    daemon = subprocess.Popen(
        ["git", "daemon", "--reuseaddr", "--export-all", "--listen=127.0.0.1", f"--port={port}",
         f"--base-path={root}", str(root)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )
    try:
        for _ in range(200):
            with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.05)
        yield f"git://127.0.0.1:{port}/"
    finally:
        os.killpg(daemon.pid, 15)
        daemon.wait()


@contextlib.contextmanager
def silent_port() -> Iterator[int]:
    """A port that accepts and then says nothing, for ever."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])
