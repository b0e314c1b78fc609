"""One server of minikwdb, as the tests of minikwdb drive it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from tests.ports import free_port

READY_S = 15.0


def lock_owner(path: Path) -> int:
    """The pid that holds the fcntl lock on a file, or 0: what F_GETLK says."""
    with path.open("r+b") as file:
        layout = "hhqqi4x"
        asked = struct.pack(layout, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = struct.unpack(layout, fcntl.fcntl(file, fcntl.F_GETLK, asked))
    return 0 if kind == fcntl.F_UNLCK else int(pid)


@dataclass(kw_only=True)
class Node:
    """A store, its ports, and the process that serves it."""

    install: Path
    store: Path
    library: Path | None = None  # libraries of another release, for the mixed trap
    environment: Mapping[str, str] = field(default_factory=dict)
    arguments: Sequence[str] = ("--insecure",)
    process: subprocess.Popen[str] | None = None

    def __post_init__(self) -> None:
        self.sql_port, self.http_port = free_port(), free_port()

    @property
    def env(self) -> dict[str, str]:
        library = self.library or self.install / "lib"
        return os.environ | {"LD_LIBRARY_PATH": str(library), "KW_VGROUP_NUM": "2"} | dict(self.environment)

    def argv(self, *extra: str) -> list[str]:
        return [
            "./kwbase",
            "start-single-node",
            *self.arguments,
            f"--listen-addr=127.0.0.1:{self.sql_port}",
            f"--http-addr=127.0.0.1:{self.http_port}",
            f"--store={self.store}",
            *extra,
        ]

    def start(self, *, wait: bool = True) -> None:
        self.process = subprocess.Popen(
            self.argv(),
            cwd=self.install / "bin",
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if wait:
            self.wait_ready()

    def health(self, query: str = "?ready=1") -> int:
        """The HTTP status, or 0 where nothing answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/health{query}", timeout=2) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return 0

    def wait_ready(self) -> None:
        deadline = time.monotonic() + READY_S
        while self.health() != 200:
            if self.process is not None and self.process.poll() is not None:
                raise AssertionError(self.process.communicate()[1])
            assert time.monotonic() < deadline, "not ready in time"
            time.sleep(0.02)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
        """Signal, wait, and give exit code, stdout and stderr."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=20)
        code = self.process.returncode
        self.process = None
        return code, out, err

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        with self.connect() as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def connect(self, **options: Any) -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(
            host="127.0.0.1",
            port=self.sql_port,
            user="root",
            dbname="defaultdb",
            autocommit=True,
            gssencmode="disable",
            **options,
        )

    def kwbase(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["./kwbase", *arguments],
            cwd=self.install / "bin",
            env=self.env,
            text=True,
            capture_output=True,
            check=False,
        )

    def client(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.kwbase(*arguments, "--insecure", f"--host=127.0.0.1:{self.sql_port}")


@contextlib.contextmanager
def running(node: Node) -> Iterator[Node]:
    """Start the node, and end its process whatever happens."""
    try:
        node.start()
        yield node
    finally:
        if node.process is not None:
            node.process.kill()
            node.process.communicate()


def wait_gone(pid: int, seconds: float = 10.0) -> None:
    """Wait for a process that is not our child; one that nobody reaps counts as gone."""
    deadline = time.monotonic() + seconds
    stat = Path(f"/proc/{pid}/stat")
    while True:
        try:
            if stat.read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.02)
