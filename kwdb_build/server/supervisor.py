"""Whoever brings a server up and takes it down: the one seam between the steps of a run and the ways of doing it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from kwdb_build.errors import KwdbBuildError, RefusedError
from kwdb_build.server import proc, systemd
from kwdb_build.server import start as starting
from kwdb_build.server import stop as stopping
from kwdb_build.server.script import Commands, Script
from kwdb_build.server.systemd import SystemdUnit
from kwdb_build.server.unit import Unit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kwdb_build.console import Console, Progress
    from kwdb_build.model import Deployment
    from kwdb_build.server.start import Started, StdioHold
    from kwdb_build.server.stop import StopResult

NONE = "none"
FORCE_RECOVER = "KW_FORCE_RECOVER"


class Supervisor(Protocol):
    """Stops and starts the server of one deployment. Every method may be called again by a later process."""

    def describe(self) -> str:
        """Who does it, in words that fit behind 'stopped and started by'."""

    def prepare(self) -> None:
        """While the server still runs: make ready what a stop and the start after it need. No downtime yet."""

    def stop(
        self, server: Deployment, *, timeout_s: float, force_after_s: float = 0, progress: Progress,
        ask: Callable[[], bool] | None = None, told_already: bool = False,
    ) -> StopResult:
        """End a process of this deployment (the captured one, or a later start of it); bounds as in stop.stop."""

    def start(
        self, server: Deployment, *, log_dir: Path, on_launch: Callable[[int], None] | None = None
    ) -> Started:
        """Begin a start of the deployment (the captured one, or with other flags) by whatever files are installed.

        Readiness is judged by the caller. Errors: StartError.
        """

    def keep_down(self) -> None:
        """Make sure that nobody starts the server by itself now that it has ended. start() lifts that."""

    def release(self) -> None:
        """Take back what prepare() has changed in the world; harmless when there is nothing."""


@dataclass(kw_only=True)
class Bare:
    """Nobody: the server was started from a shell or a script, and is signalled and executed by us."""

    deployment: Deployment
    stdio: StdioHold | None = None

    def describe(self) -> str:
        """In words."""
        return "kwdb-build itself"

    def prepare(self) -> None:
        """Hold the server's outputs open, so that pipes and terminals survive its end."""
        if self.stdio is None and proc.is_alive(self.deployment.pid, self.deployment.started_at):
            self.stdio = starting.hold_stdio(self.deployment)

    def stop(
        self, server: Deployment, *, timeout_s: float, force_after_s: float = 0, progress: Progress,
        ask: Callable[[], bool] | None = None, told_already: bool = False,
    ) -> StopResult:
        """SIGTERM and patience."""
        return stopping.stop(
            server, timeout_s=timeout_s, force_after_s=force_after_s, progress=progress, ask=ask,
            told_already=told_already,
        )

    def start(
        self, server: Deployment, *, log_dir: Path, on_launch: Callable[[int], None] | None = None
    ) -> Started:
        """Execute its command."""
        return starting.start(
            server.start, log_dir=log_dir, stdio=self.stdio, notify=True, on_launch=on_launch
        )

    def keep_down(self) -> None:
        """Nobody would."""

    def release(self) -> None:
        """Let go of the outputs."""
        if self.stdio is not None:
            self.stdio.close()
            self.stdio = None


def give_back(supervisor: Supervisor, console: Console) -> None:
    """Release a server that runs, or whose own trouble must not be hidden: that this fails is said, and no more."""
    try:
        supervisor.release()
    except (KwdbBuildError, OSError) as error:
        console.note(f"  {error}: what holds the unit is still there, see systemctl cat", style="yellow")


def of(deployment: Deployment, commands: Commands) -> Supervisor:
    """The supervisor of a captured server; the user's own commands come before everything."""
    if commands:
        return Script(deployment=deployment, commands=commands)
    unit = Unit.parse(deployment.supervisor)
    if unit is not None:
        return SystemdUnit(deployment=deployment, unit=unit)
    return Bare(deployment=deployment)


def require_supported(deployment: Deployment, commands: Commands, *, running: bool = True) -> None:
    """RefusedError when the server cannot be stopped and started again in its own way.

    Errors: AccessError when this user may not.
    """
    name = deployment.supervisor
    if commands and name != NONE and not (commands.stop and commands.start):
        given, lacking = ("--stop-cmd", "--start-cmd") if commands.stop else ("--start-cmd", "--stop-cmd")
        raise RefusedError(
            f"only {given} was given for pid {deployment.pid}, which is run by {name}",
            context="the other half would be done behind its back", hint=f"give {lacking} as well, or neither",
        )
    if FORCE_RECOVER in deployment.start.dropped and (commands.start or name != NONE):
        raise RefusedError(
            f"{FORCE_RECOVER} is set by whatever starts pid {deployment.pid}: it would force a recovery at the start",
            hint="take it out of the unit or script, without restarting; then try again",
        )
    if commands or name == NONE:
        for words in filter(None, (commands.stop, commands.start)):
            if shutil.which(words[0]) is None:
                raise RefusedError(f"there is no program {words[0]!r}", hint="give the full path of the command")
        return
    unit = Unit.parse(name)
    if unit is None:
        raise RefusedError(
            f"pid {deployment.pid} is run by {name}, which would fight over the restart",
            context="kwdb-build knows how to ask systemd, and stops and starts servers that nobody supervises itself",
            hint="say how it is stopped and started, such as --stop-cmd 'supervisorctl stop kwdb' --start-cmd "
            "'supervisorctl start kwdb'",
        )
    systemd.require_supported(unit, deployment.pid if running else 0)
