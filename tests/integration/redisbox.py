"""A real Redis with a password, what is said to it, and what a build says through the socket that it gets."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.conftest import missing
from tests.ports import free_port

KEY = "ccache:0123456789abcdefghijklmnopqrstuv"


@contextlib.contextmanager
def running_redis(tmp_path: Path) -> Iterator[tuple[int, str]]:
    """A real Redis on loopback with a password: port and password."""
    if shutil.which("redis-server") is None:
        missing("redis-server")
    port, password = free_port(), "a secret: word"
    with (tmp_path / "redis.log").open("wb") as log:
        server = subprocess.Popen(
            ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--requirepass", password,
             "--dir", str(tmp_path)], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )
    try:
        deadline = time.monotonic() + 30
        while b"Ready to accept connections" not in (tmp_path / "redis.log").read_bytes():
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield port, password
    finally:
        server.terminate()
        server.wait(30)


@contextlib.contextmanager
def redis_client(port: int, password: str) -> Iterator[Callable[..., bytes]]:
    """Says commands to the Redis itself, with all rights."""
    with socket.create_connection(("127.0.0.1", port), 30) as connection:

        def say(*words: str) -> bytes:
            connection.sendall(resp(*words))
            return connection.recv(1 << 16)

        assert say("AUTH", password) == b"+OK\r\n"
        yield say


def resp(*words: str) -> bytes:
    """A command as Redis clients send it."""
    return b"".join([b"*%d\r\n" % len(words), *(b"$%d\r\n%s\r\n" % (len(word), word.encode()) for word in words)])


def through(directory: Path, data: bytes) -> bytes:
    """What a build gets that sends these bytes into the socket it was given, and ends."""
    answer = b""
    with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(ConnectionResetError, BrokenPipeError):
        client.settimeout(30)
        client.connect(str(directory / "remote" / "redis.sock"))
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        while more := client.recv(1 << 16):
            answer += more
    return answer
