"""Servers that are stopped and started by commands of the user: the way out for every other supervisor.

The commands are argument lists, run without a shell, with their words in a log file. A stop counts when the process is
gone and its locks are free, a start when the server is ready, whatever the commands themselves say of it.
"""

from __future__ import annotations

import contextlib
import shlex
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kwdb_build import command
from kwdb_build.errors import ExitCode, KwdbBuildError, StartError, UsageError
from kwdb_build.server import capture, drain, locks, logs, proc, startflags
from kwdb_build.server import start as starting
from kwdb_build.server import stop as stopping

if TYPE_CHECKING:
    from collections.abc import Callable

    from kwdb_build.console import Progress
    from kwdb_build.model import Deployment
    from kwdb_build.server.stop import StopResult

_STOP_LOG = "stop-cmd.log"
_START_LOG = "start-cmd.log"
_KEEP_DOWN_S = 60.0


class StopCommandError(KwdbBuildError):
    """The user's own stop command failed."""

    exit_code = ExitCode.NOT_STOPPED
    reference = "stop-command"


def parse(text: str, option: str) -> tuple[str, ...]:
    """The words of a command as a shell would split them; nothing is expanded. Errors: UsageError."""
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"cannot read {option} {text!r}: {error}", hint="quote it as for a shell") from error
    if text and not words:
        raise UsageError(f"{option} names no command")
    return words


@dataclass(frozen=True, kw_only=True)
class Commands:
    """What the user gave; () where nothing was. log_dir: where their words are kept; start_timeout_s: for the start."""

    stop: tuple[str, ...] = ()
    start: tuple[str, ...] = ()
    log_dir: Path = Path()
    start_timeout_s: float = 300

    def __bool__(self) -> bool:
        return bool(self.stop or self.start)


@dataclass(kw_only=True)
class Script:
    """Stops and starts by the user's commands; where only one was given, the other half is as for a bare server."""

    deployment: Deployment
    commands: Commands
    stdio: starting.StdioHold | None = None

    def describe(self) -> str:
        """In words."""
        return " and ".join(
            f"`{shlex.join(words)}`" for words in (self.commands.stop, self.commands.start) if words
        )

    def prepare(self) -> None:
        """Hold the outputs open when the start will be ours."""
        if not self.commands.start and self.stdio is None and proc.is_alive(
            self.deployment.pid, self.deployment.started_at
        ):
            self.stdio = starting.hold_stdio(self.deployment)

    def stop(
        self, server: Deployment, *, timeout_s: float, force_after_s: float = 0, progress: Progress,
        ask: Callable[[], bool] | None = None, told_already: bool = False,
    ) -> StopResult:
        """Run the command to its end, then wait for process and locks as always."""
        failures: list[StopCommandError] = []

        def tell(_: proc.Watch) -> None:
            progress.update(f"running {shlex.join(self.commands.stop)}")
            try:
                if why := self._run_stop(timeout_s):
                    progress.note(f"  the stop command has no log: {why}")
            except StopCommandError as error:
                if server.pid == self.deployment.pid:
                    raise
                failures.append(error)  # a start that failed must be ended, whatever its supervisor makes of it

        # The command may have sent SIGTERM before it failed.
        failed = drain.AfterOthers(
            ended=lambda: bool(failures), server=server, moment=logs.mark(capture.log_directory(server))
        )
        return stopping.stop(
            server, timeout_s=timeout_s, force_after_s=force_after_s, progress=progress, ask=ask,
            told_already=told_already, tell=tell if self.commands.stop else None, nudge=failed,
        )

    def keep_down(self) -> None:
        """Run the stop command: a supervisor may be about to start a server again that ended by itself."""
        if self.commands.stop:
            with contextlib.suppress(StopCommandError):  # there may be nothing to stop
                self._run_stop(_KEEP_DOWN_S)

    def _run_stop(self, timeout_s: float) -> str:
        log = self.commands.log_dir / _STOP_LOG
        try:
            return command.run_logged(self.commands.stop, log=log, timeout_s=timeout_s)
        except command.CommandError as error:
            raise StopCommandError(
                f"the stop command failed: {error.message}", context=error.context, log=log,
                hint="it must end with exit code 0 when the server was told to stop",
            ) from error

    def start(
        self, server: Deployment, *, log_dir: Path, on_launch: Callable[[int], None] | None = None
    ) -> starting.Started:
        """Run the command to its end; the server is whoever then holds the store."""
        if not self.commands.start:
            return starting.start(
                server.start, log_dir=log_dir, stdio=self.stdio, notify=True, on_launch=on_launch
            )
        start = server.start
        directory = startflags.parse(start.argv, cwd=str(start.cwd), environ=start.environ).log_dir
        log = self.commands.log_dir / _START_LOG
        regular = [Path(name) for name in dict.fromkeys((start.stdout, start.stderr)) if name.startswith("/")]
        mark = logs.mark(Path(directory) if directory else None, [*regular, log])
        if on_launch is not None:
            on_launch(0)
        began_at, began = time.time(), time.monotonic()
        try:
            why = command.run_logged(self.commands.start, log=log, timeout_s=self.commands.start_timeout_s)
        except command.CommandError as error:
            raise StartError(
                f"the start command failed: {error.message}", context=error.context, log=log,
                hint="it must begin the start and end (exit code 0) while the server runs on",
            ) from error
        return ScriptStarted(
            launched=0, background=False, began_at=began_at, began=began, stdout_log=None, stderr_log=None, mark=mark,
            stores=tuple(store.path for store in self.deployment.stores),
            notes=(f"the start command has no log: {why}",) if why else (),
        )

    def release(self) -> None:
        """Let go of the outputs."""
        if self.stdio is not None:
            self.stdio.close()
            self.stdio = None


@dataclass(frozen=True, kw_only=True)
class ScriptStarted(starting.Started):
    """A server that a command of the user has started, or is about to: it is known by the lock on its store."""

    stores: tuple[Path, ...]
    seen: dict[str, tuple[int, float]] = field(default_factory=dict)

    def processes(self) -> tuple[int, ...]:
        """The holders of the stores."""
        return tuple(sorted(set(locks.holders(self.stores).values())))

    def server_pid(self) -> int | None:
        """Who holds the stores; once seen it stays the server, so that its end is noticed."""
        if "server" not in self.seen:
            with contextlib.suppress(KwdbBuildError, OSError):
                if held := self.processes():
                    self.seen["server"] = (held[0], proc.start_time(held[0]))
        return self.seen["server"][0] if "server" in self.seen else None

    def exit_code(self) -> int | None:
        """None while it lives or has not come up yet; nobody here learns the exit code of somebody else's child."""
        if self.server_pid() is None or proc.is_alive(*self.seen["server"]):
            return None
        return 0
