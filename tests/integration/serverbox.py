"""What tests of a server's life do all the time: start a captured server again and wait for it."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING

from kwdb_build import sql
from kwdb_build.console import Progress
from kwdb_build.server import capture, cgroups, proc, readiness, scheduling
from kwdb_build.server.stop import stop

if TYPE_CHECKING:
    from kwdb_build.model import Deployment, NodeIdentity
    from kwdb_build.server.start import Started
    from tests.minikwdb.instance import Instance

QUIET = Progress()
PATIENCE_S = 60.0


def login(deployment: Deployment) -> sql.Login:
    """Root's login to a captured server."""
    return sql.Login(address=deployment.sql, certs_dir=deployment.certs_dir)


def identity(deployment: Deployment) -> NodeIdentity:
    """The node that answers there now."""
    return readiness.identity(login(deployment))


def wait(
    deployment: Deployment, started: Started, expect: NodeIdentity | None = None, timeout_s: float = PATIENCE_S
) -> readiness.Ready:
    """Wait until a started server is ready."""
    return readiness.wait_ready(
        deployment=deployment, started=started, login=login(deployment), expect=expect, timeout_s=timeout_s,
        progress=QUIET,
    )


def settled_health(deployment: Deployment) -> readiness.Health:
    """What the health page of a server that was just started says once it is ready, or after a while.

    SQL answers first, and for a moment the page says that the node is shutting down: KWDB's does, too.
    """
    deadline = time.monotonic() + PATIENCE_S
    while (health := readiness.health(deployment)).status != readiness.OK and time.monotonic() < deadline:
        time.sleep(0.05)
    return health


def stopped(instance: Instance) -> tuple[Deployment, NodeIdentity]:
    """Start a server, capture it and stop it."""
    deployment = capture.capture(instance.start())
    expect = identity(deployment)
    assert stop(deployment, timeout_s=PATIENCE_S, progress=QUIET).drained
    return deployment, expect


def with_fault(deployment: Deployment, fault: str) -> Deployment:
    """The same server, whose next start misbehaves (faults: tests/minikwdb/README.md)."""
    environ = deployment.start.environ | {"MINIKWDB_FAULT": fault}
    return dataclasses.replace(deployment, start=dataclasses.replace(deployment.start, environ=environ))


def in_background(deployment: Deployment) -> Deployment:
    """The same server, whose next start is one with --background."""
    start = deployment.start
    return dataclasses.replace(
        deployment, start=dataclasses.replace(start, argv=(*start.argv, "--background"), background=True)
    )


def surroundings(pid: int) -> dict[str, object]:
    """All of /proc that a restart must bring back."""
    status = proc.read_status(pid)
    environment = proc.parse_environ(proc.read_bytes(pid, "environ")).variables
    return {
        "argv": proc.parse_cmdline(proc.read_bytes(pid, "cmdline")),
        "environment": {name: value for name, value in environment.items() if name != "NOTIFY_SOCKET"},
        "order": [name for name in environment if name != "NOTIFY_SOCKET"],
        "links": [proc.read_link(pid, name) for name in ("cwd", "exe", "root", "fd/0", "fd/1")],
        "ids": (status.uid, status.gid, status.groups, status.umask),
        "rights": (status.capabilities, status.no_new_privileges),
        "share": scheduling.read(pid),
        "cgroup": groups(pid),
        "limits": proc.parse_limits(proc.read_text(pid, "limits")),
        "oom_score_adj": proc.read_text(pid, "oom_score_adj"),
        "nice": proc.read_stat(pid).nice,  # type: ignore[union-attr]
        "signals": signals(pid),
        "libraries": readiness.loaded_libraries(pid),
    }


def groups(pid: int) -> dict[str, str]:
    """Control groups by controllers, without the roots: whoever mounts a hierarchy (a container does) adds one."""
    parts = (line.split(":", 2) for line in cgroups.lines(pid))
    return {controllers: path for _, controllers, path in parts if path != "/"}


def signals(pid: int) -> tuple[int, int]:
    """Ignored ones, and those that every thread blocks: Go has a thread for signals, at times the first one."""
    ignored, blocked = 0, -1
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # threads come and go
            fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines())
            ignored, blocked = int(fields["SigIgn"], 16), blocked & int(fields["SigBlk"], 16)
    return ignored, blocked
