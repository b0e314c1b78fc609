"""A bare restart with the captured command: the `restart` verb, and the yardstick for downtime."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kwdb_build.errors import RefusedError
from kwdb_build.upgrade import gate
from kwdb_build.upgrade.lock import hold_home, hold_stores

if TYPE_CHECKING:
    from kwdb_build.config import Settings
    from kwdb_build.console import Console
    from kwdb_build.model import Deployment


@dataclass(frozen=True, kw_only=True)
class Restarted:
    """The new process, when SIGTERM was sent (unix seconds), and how long until the first answered SELECT."""

    pid: int
    began: float
    downtime_s: float


def restart(deployment: Deployment, settings: Settings, console: Console, *, assume_yes: bool) -> Restarted:
    """Stop and start; the capture is kept in a file first, so that a cut-off restart can be finished by hand."""
    import sys

    from kwdb_build.files import private_directory
    from kwdb_build.server import readiness, saved, start, stop
    from kwdb_build.sql import Login

    gate.require_supported_deployment(deployment)
    question = f"Restart pid {deployment.pid} ({deployment.version}, {deployment.sql})?"
    if not assume_yes and not (sys.stdin.isatty() and console.confirm(question)):
        raise RefusedError("not confirmed: nothing was changed", hint="answer y, or pass -y")
    stores = tuple(store.path for store in deployment.stores)
    logs = private_directory(settings.home / "logs")
    login = Login(
        address=deployment.sql, user=settings.sql_user, certs_dir=deployment.certs_dir,
        password_file=settings.sql_password_file,
    )
    with hold_home(settings.home, f"restart of pid {deployment.pid}"), hold_stores(stores):
        saved.save(deployment, settings.home / "last-restart.json")
        identity = readiness.identity(login)
        stdio = start.hold_stdio(deployment)
        began = time.time()
        with console.step(1, 2, "stop"):
            stop.stop(
                deployment, timeout_s=settings.stop_timeout_s, force_after_s=settings.force_stop_after_s,
                progress=console,
            )
        with console.step(2, 2, "start"):
            started = start.start(deployment.start, log_dir=logs, stdio=stdio, notify=True)
            ready = readiness.wait_ready(
                deployment=deployment, started=started, login=login, expect=identity,
                timeout_s=settings.start_timeout_s, progress=console,
            )
    return Restarted(pid=ready.pid, began=began, downtime_s=round(time.time() - began, 3))
