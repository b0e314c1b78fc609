"""One installed and running miniature, as a user would have it: bin/, lib/, a store, and rows of both kinds."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg

from kwdb_build.files import record_lock_holder
from tests.ports import free_port

ORDERS = 1000
READINGS = 2000


@dataclass(kw_only=True)
class Instance:
    """A server below `root` that listens on loopback only, unless host says otherwise.

    program: argv[0], as seen from bin/. prefix: words before it, such as a program that makes namespaces. host: as a
    listen flag has it: "" is every address, IPv6 is in brackets.
    """

    root: Path
    store_name: str = "store"
    program: str = "./kwbase"
    verb: str = "start-single-node"
    prefix: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    sql_port: int = field(default_factory=free_port)
    http_port: int = field(default_factory=free_port)
    environment: dict[str, str] = field(default_factory=dict)
    background: bool = True
    certs: Path | None = None
    uid: int | None = None
    flags: list[str] = field(default_factory=list)
    children: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def store(self) -> Path:
        """The store directory."""
        return self.root / self.store_name

    def install(self, artifact: Path) -> None:
        """Copy a build's bin and lib as `make install` would."""
        for part in ("bin", "lib"):
            shutil.rmtree(self.root / part, ignore_errors=True)
            shutil.copytree(artifact / part, self.root / part)
            for path in (self.root / part, *(self.root / part).rglob("*")):
                path.chmod(0o755)

    def argv(self) -> list[str]:
        """The start command, run from bin/."""
        flags = [
            *self.prefix,
            self.program,
            self.verb,
            f"--certs-dir={self.certs}" if self.certs else "--insecure",
            f"--listen-addr={self.host}:{self.sql_port}",
            f"--http-addr={self.host}:{self.http_port}",
            f"--store={self.store}",
            *self.flags,
        ]
        return [*flags, "--background"] if self.background else flags

    def start(self, *, stdout: int | None = None, stderr: int | None = None) -> int:
        """Start it the way people do, with relative libraries; wait until SQL answers; return the pid.

        stdout, stderr: descriptors for its outputs, which else go to the file `output` below root.
        """
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("KWDB_BUILD_")},
            "LD_LIBRARY_PATH": "../lib",
            "KW_VGROUP_NUM": "2",
            **self.environment,
        }
        with (self.root / "output").open("ab") as output:
            process = subprocess.Popen(
                self.argv(),
                cwd=self.root / "bin",
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output if stdout is None else stdout,
                stderr=output if stderr is None else stderr,
                start_new_session=True,
                umask=0o022,
                user=self.uid,
                group=self.uid,
                extra_groups=None if self.uid is None else [],
            )
        self.children.append(process)
        if self.background and process.wait(60) != 0:
            raise RuntimeError((self.root / "output").read_text(encoding="utf-8", errors="replace"))
        self.connect().close()
        pid = self.pid()
        if pid is None:
            message = f"no server on {self.store}"
            raise RuntimeError(message)
        return pid

    def pid(self) -> int | None:
        """The process that runs on this store now."""
        return next((int(one.pid) for one in self.processes() if "--background" not in one.info["cmdline"]), None)

    def processes(self) -> list[psutil.Process]:
        """All live processes whose command line names this store: the server, and what starts or wraps it."""
        return [
            process
            for process in psutil.process_iter(["cmdline", "status"])
            if process.info["status"] != psutil.STATUS_ZOMBIE
            and f"--store={self.store}" in (process.info["cmdline"] or [])
        ]

    def connect(self, timeout_s: float = 30) -> psycopg.Connection[Any]:
        """Connect as a client of KWDB does; the port opens a moment before SQL answers."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return psycopg.connect(
                    **self._security(),
                    port=self.sql_port,
                    user="root",
                    dbname="defaultdb",
                    autocommit=True,
                    prepare_threshold=None,
                    cursor_factory=psycopg.ClientCursor,
                    connect_timeout=5,
                )
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def _security(self) -> dict[str, str]:
        if self.certs is None:
            return {"host": self.host.strip("[]") or "127.0.0.1", "sslmode": "disable"}
        return {
            "host": "localhost",
            "sslmode": "verify-full",
            "sslrootcert": str(self.certs / "ca.crt"),
            "sslcert": str(self.certs / "client.root.crt"),
            "sslkey": str(self.certs / "client.root.key"),
        }

    def value(self, statement: str) -> Any:
        """First column of the first row."""
        with self.connect() as connection:
            row = connection.execute(statement).fetchone()
        return row[0] if row else None

    def write_rows(self) -> None:
        """1,000 relational and 2,000 time-series rows."""
        with self.connect() as connection:
            connection.execute("CREATE DATABASE shop")
            connection.execute("CREATE TABLE shop.orders (id INT8 PRIMARY KEY, customer STRING, amount DECIMAL)")
            orders = ", ".join(f"({n}, 'customer {n % 97}', {n}.25)" for n in range(ORDERS))
            connection.execute(f"INSERT INTO shop.orders VALUES {orders}")
            connection.execute("CREATE TS DATABASE plant")
            connection.execute(
                "CREATE TABLE plant.sensor (k_timestamp TIMESTAMPTZ NOT NULL, temp FLOAT8, state INT4) "
                "TAGS (id INT4 NOT NULL, site VARCHAR(16)) PRIMARY TAGS (id)"
            )
            devices = 4
            for device in range(devices):
                readings = ", ".join(
                    f"('2026-11-01 00:{n // 60:02}:{n % 60:02}+00:00', {20 + n / 100}, {n % 3}, {device}, "
                    f"'hall {device}')"
                    for n in range(READINGS // devices)
                )
                connection.execute(f"INSERT INTO plant.sensor VALUES {readings}")

    def counts(self) -> tuple[int, int]:
        """Relational and time-series rows as a client counts them."""
        return self.value("SELECT count(*) FROM shop.orders"), self.value("SELECT count(*) FROM plant.sensor")

    def stop(self, timeout_s: float = 60) -> None:
        """SIGTERM and wait; a server that hangs on purpose is killed. Only ever its own process."""
        pid = self.pid()
        with contextlib.suppress(psutil.NoSuchProcess):
            if pid is not None:
                process = psutil.Process(pid)
                process.send_signal(signal.SIGTERM)
                if not _ended(process, timeout_s):
                    process.kill()
                    _ended(process, 10)
        # The first thread of a dead process is a zombie while others still let go of its files, the lock among them.
        deadline = time.monotonic() + 10
        while pid is not None and record_lock_holder(self.store / "LOCK") == pid and time.monotonic() < deadline:
            time.sleep(0.01)
        for child in self.children:
            child.wait(10)

    def kill(self) -> None:
        """SIGKILL all that runs on this store, whoever started it, and collect what was started from here."""
        while running := self.processes():  # again, as a parent may just have started its background child
            for process in running:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            if not all(_ended(process, 10) for process in running):
                message = f"cannot end {running}"
                raise RuntimeError(message)
        for child in self.children:
            child.wait(10)


def _ended(process: psutil.Process, timeout_s: float) -> bool:
    """Wait for its end. A zombie has ended: ours are collected, others wait for their parent, who may take seconds."""
    deadline = time.monotonic() + timeout_s
    with contextlib.suppress(psutil.NoSuchProcess):
        while process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process.pid, 0)  # waits for the last of its threads, too
    return True
