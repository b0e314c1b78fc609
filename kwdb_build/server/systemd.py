"""Servers that are the main process of a systemd unit: stopped and started through systemctl, never behind its back.

The unit's own text is not touched. While a run is under way a drop-in below the manager's runtime directory (gone with
a reboot, removed by release()) keeps systemd from doing three things that would hurt:

- killing a drain: TimeoutStopSec (90 s by default) ends with SIGKILL, while kwbase drains as long as it takes;
- signalling twice: KWDB's own unit has `ExecStop=/bin/kill $MAINPID`, after which systemd sends SIGTERM once more at
  once, and kwbase takes the second one as an order to stop hard, which can lose acknowledged rows. A plain kill is left
  out, as systemd does the same by itself; after any other command systemd sends a signal that means nothing to kwbase,
  and SIGTERM follows only when the server goes on serving;
- starting a server while files and data are being exchanged: Restart=, a timer, configuration management, a person.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kwdb_build import command, files
from kwdb_build.errors import AccessError, KwdbBuildError, NotStoppedError, RefusedError, StartError
from kwdb_build.server import capture, drain, logs, proc, startflags
from kwdb_build.server import start as starting
from kwdb_build.server import stop as stopping
from kwdb_build.server.unit import Facts, Unit

if TYPE_CHECKING:
    from collections.abc import Callable

    from kwdb_build.console import Progress
    from kwdb_build.model import Deployment
    from kwdb_build.server.stop import StopResult

DROP_IN = "zzzz-kwdb-build.conf"
"""Drop-ins of all directories count in the order of their names: ours after override.conf of `systemctl edit`."""
HOLD = "kwdb-build.hold"
_WAY_OUT = "your own commands with --stop-cmd and --start-cmd"
_REST_S = 60.0
"""For what else a unit runs: its ExecStopPost=, other processes in its group."""
_POLL_S = 0.05
_GENTLE_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})
_SIGNALLED = frozenset({"stop-sigterm", "final-sigterm", "dead", "failed"})
"""Sub-states in which the unit's own stop commands have ended."""
_JOURNAL_LINES = 30


def held() -> tuple[Path, ...]:
    """Drop-ins of ours on this machine, as far as this user may look. Only a run under way has one."""
    managers = [Path("/run/systemd/system"), *Path("/run/user").glob("*/systemd/user")]
    return tuple(sorted(path for place in managers for path in place.glob(f"*.d/{DROP_IN}")))


def require_supported(unit: Unit, pid: int) -> Facts:
    """RefusedError when the unit cannot be stopped and started so that the very same server comes back.

    pid: the server, 0 when it is down.
    Errors: AccessError when this user may not control the unit.
    """
    if unit.uid not in {None, os.geteuid()}:  # nor does root: a user's manager answers to its user only
        owner = proc.user_name(unit.uid)
        raise AccessError(
            f"the unit {unit.name}, which runs pid {pid}, belongs to the systemd of user {owner}",
            context="that answers to nobody else", hint=f"run kwdb-build as {owner}, or give {_WAY_OUT}",
        )
    try:
        facts = unit.facts()
    except KwdbBuildError as error:
        raise RefusedError(
            f"pid {pid} belongs to the unit {unit.name}, but systemd does not answer", context=error.message,
            hint=f"is systemd running (systemctl status)? Otherwise give {_WAY_OUT}",
        ) from error
    if problem := _problem(unit, facts, pid):
        words, hint = problem
        raise RefusedError(f"the unit {unit.name}, which runs pid {pid}, {words}", hint=hint)
    if not os.access(_existing(unit.runtime), os.W_OK):
        raise AccessError(
            f"this user may not control the unit {unit.name}", context=f"may not write to {unit.runtime}",
            hint="run kwdb-build as root, for example with sudo",
        )
    return facts


def _problem(unit: Unit, facts: Facts, pid: int) -> tuple[str, str] | None:
    if facts.load == "masked":
        return "is masked and could not be started again", f"systemctl unmask {unit.name}"
    if facts.load != "loaded":
        return f"is not loaded ({facts.load or 'unknown'} {facts.load_error})", f"see systemctl status {unit.name}"
    if facts.main_pid != pid:
        return (
            f"has another main process (pid {facts.main_pid}), such as a script around kwbase",
            "let the script end in `exec kwbase …`, so that systemd's signals reach kwbase once and only once, or give "
            + _WAY_OUT,
        )
    if facts.changed_on_disk:
        return (
            "was changed on disk since systemd read it: a start would not be the start that was captured",
            f"look at `systemctl cat {unit.name}`, then put the old text back, or reload and restart it once yourself",
        )
    if pid and (newer := [path for path in facts.environment_files if _changed_since_start(path, pid)]):
        return (
            f"reads its environment from {newer[0]}, which was changed after the server had started",
            "put the old content back with its time, or restart the unit once yourself",
        )
    if not facts.manual:
        return "refuses to be stopped or started by hand (RefuseManualStop=, RefuseManualStart=)", "change that first"
    return None


def _changed_since_start(path: Path, pid: int) -> bool:
    """Whether a file was written after the process began, as far as a second tells."""
    with contextlib.suppress(OSError):
        return path.stat().st_mtime > time.time() - (proc.now() - proc.start_time(pid)) + 1
    return False


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def drop_in_text(unit: Unit, facts: Facts) -> str:
    """What holds for the unit as long as a run is under way."""
    hold = str(unit.drop_in_directory / HOLD).replace("%", "%%")
    lines = [
        "# Written by kwdb-build, which is about to stop and start this unit, and removed by it when that is done.",
        "# Left behind by a run that was cut off? `kwdb-build status` tells how to finish it; do a restart again.",
        "# To go on alone, remove the kwdb-build files of this directory, then systemctl daemon-reload.",
        "[Unit]", f"AssertPathExists=!{hold}", "[Service]", "Restart=no", "TimeoutStopSec=infinity",
        "TimeoutStartSec=infinity",
    ]
    if facts.kill_mode == "none":
        lines.append("KillMode=process")
    if facts.only_kills:
        lines.append("ExecStop=")
    if facts.stops_by_itself:
        lines.append("KillSignal=SIGCONT")
    elif facts.kill_signal not in _GENTLE_SIGNALS:
        lines.append("KillSignal=SIGTERM")
    return "\n".join(lines) + "\n"


@dataclass(kw_only=True)
class SystemdUnit:
    """A server that systemd runs."""

    deployment: Deployment
    unit: Unit

    def describe(self) -> str:
        """In words."""
        return f"systemctl ({self.unit.name})"

    def prepare(self) -> None:
        """Put the drop-in in place, and let systemd read it."""
        directory = self.unit.drop_in_directory
        if not (directory / DROP_IN).exists():  # else of an earlier process of this run
            text = drop_in_text(self.unit, self.unit.facts())
            directory.mkdir(parents=True, exist_ok=True, mode=0o755)
            files.write_atomic(directory / DROP_IN, text)
        self.unit.call("daemon-reload")
        self._require_in_force()

    def _require_in_force(self) -> None:
        """RefusedError when something takes the settings of our drop-in back, or was changed since it was written."""
        facts = self.unit.facts()
        once = facts.kill_signal == signal.SIGCONT or not facts.stops_by_itself
        if facts.stop_timeout != "infinity" or facts.only_kills or not once:
            raise RefusedError(
                f"{DROP_IN} of {self.unit.name} is not in force: a drain could be cut short",
                hint=f"see `systemctl cat {self.unit.name}`: rename the drop-in that comes after {DROP_IN}",
            )

    def stop(
        self, server: Deployment, *, timeout_s: float, force_after_s: float = 0, progress: Progress,
        ask: Callable[[], bool] | None = None, told_already: bool = False,
    ) -> StopResult:
        """`systemctl stop`, and wait for the process and its locks as always."""
        self._hold()
        facts = self.unit.facts()
        if facts.main_pid != server.pid and proc.is_alive(server.pid, server.started_at):
            # Not the unit's (any more): somebody started it by hand.
            return stopping.stop(
                server, timeout_s=timeout_s, force_after_s=force_after_s, progress=progress, ask=ask,
                told_already=told_already,
            )
        if facts.sub == "auto-restart":
            self._stop_unit()
        commands = drain.AfterOthers(
            ended=lambda: self.unit.facts().sub in _SIGNALLED, server=server,
            moment=logs.mark(capture.log_directory(server)),
        )

        def tell(_: proc.Watch) -> None:
            self._stop_unit()

        result = stopping.stop(
            server, timeout_s=timeout_s, force_after_s=force_after_s, progress=progress, ask=ask,
            told_already=told_already, tell=tell, nudge=commands if facts.stops_by_itself else None,
        )
        # After a clean end the rest has its own time: what was agreed on was to kill a server that does not stop.
        wait_s = min(force_after_s or timeout_s, _REST_S) if result.forced else max(timeout_s, _REST_S)
        self._await_rest(wait_s, kill=result.forced or force_after_s > 0)
        return result

    def keep_down(self) -> None:
        """Let nobody start the unit, and end what may be on its way up."""
        self._hold()
        self._stop_unit()
        self._await_rest(_REST_S, kill=True)

    def _hold(self) -> None:
        if (self.unit.drop_in_directory / DROP_IN).exists():
            (self.unit.drop_in_directory / HOLD).touch()

    def _stop_unit(self) -> None:
        """Queue the stop; a unit that is being stopped already is not signalled again by systemd."""
        self.unit.call("stop", "--no-block", "--", self.unit.name)

    def _signal_rest(self, signum: signal.Signals) -> None:
        self.unit.call("kill", f"--signal={signum.name}", "--", self.unit.name)

    def _await_rest(self, timeout_s: float, *, kill: bool) -> None:
        """Let systemd notice the end, and all else that the unit has (ExecStopPost=, helper processes) come to its own.

        Our drop-in has taken away the time limit at which systemd kills that: only where `kill` says so it is killed
        here; NotStoppedError else.
        """
        deadline, told = time.monotonic() + timeout_s, False
        while (facts := self.unit.facts()).active == "deactivating":
            if facts.sub == "final-sigterm" and facts.kill_signal == signal.SIGCONT and not told:
                self._signal_rest(signal.SIGTERM)  # which our drop-in has replaced
                told = True
            if time.monotonic() >= deadline:
                if not kill:
                    raise NotStoppedError(
                        f"the server has ended, but another process of {self.unit.name} has not ({facts.sub})",
                        context=f"the unit cannot be started meanwhile; `systemctl status {self.unit.name}` shows it",
                        hint=f"end it, for example by `systemctl kill --signal=SIGKILL {self.unit.name}`",
                    )
                self._signal_rest(signal.SIGKILL)
                deadline, kill = deadline + _REST_S, False
            time.sleep(_POLL_S)

    def start(
        self, server: Deployment, *, log_dir: Path, on_launch: Callable[[int], None] | None = None
    ) -> starting.Started:
        """`systemctl start`: the unit's own command, user, limits and environment."""
        del log_dir
        self._await_rest(_REST_S, kill=False)
        (self.unit.drop_in_directory / HOLD).unlink(missing_ok=True)
        with contextlib.suppress(command.CommandError):  # there may be nothing to reset
            self.unit.call("reset-failed", "--", self.unit.name)
        start = server.start
        directory = startflags.parse(start.argv, cwd=str(start.cwd), environ=start.environ).log_dir
        regular = [Path(name) for name in dict.fromkeys((start.stdout, start.stderr)) if name.startswith("/")]
        mark = logs.mark(Path(directory) if directory else None, regular)
        if on_launch is not None:
            on_launch(0)
        began_at, began = time.time(), time.monotonic()
        try:
            self.unit.call("start", "--no-block", "--", self.unit.name)
        except command.CommandError as error:
            raise StartError(
                f"systemd does not start {self.unit.name}", context=error.context or error.message,
                hint=f"see systemctl status {self.unit.name}",
            ) from error
        return UnitStarted(
            launched=0, background=False, began_at=began_at, began=began, stdout_log=None, stderr_log=None, mark=mark,
            unit=self.unit,
        )

    def release(self) -> None:
        """Remove drop-in and hold, and let systemd forget them.

        Not while the unit is being stopped: systemd would count its old time limit from the beginning of the stop, and
        kill the drain. NotStoppedError then.
        """
        if self.unit.facts().active == "deactivating":
            raise NotStoppedError(
                f"{self.unit.name} is still stopping: without {DROP_IN} systemd would kill it at its old time limit",
                hint="wait for its end, then the same again",
            )
        directory = self.unit.drop_in_directory
        for path in (directory / HOLD, directory / DROP_IN):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # other drop-ins stay
            directory.rmdir()
        self.unit.call("daemon-reload")


@dataclass(frozen=True, kw_only=True)
class UnitStarted(starting.Started):
    """A start by systemd that is under way."""

    unit: Unit
    seen: dict[str, tuple[int, float]] = field(default_factory=dict)

    def processes(self) -> tuple[int, ...]:
        """The main process, when there is one."""
        pid = self.server_pid()
        return () if pid is None else (pid,)

    def server_pid(self) -> int | None:
        """The unit's main process; systemd is only asked when the one known has ended."""
        if "main" in self.seen and proc.is_alive(*self.seen["main"]):
            return self.seen["main"][0]
        pid = self.unit.facts().main_pid
        stat = proc.read_stat(pid) if pid else None
        if stat is None:
            return None
        self.seen["main"] = (pid, proc.started_at(stat))
        return pid

    def exit_code(self) -> int | None:
        """How the main process ended; None while the unit runs or is on its way up."""
        if self.server_pid() is not None:
            return None
        facts = self.unit.facts()
        return facts.exit_code if facts.active in {"inactive", "failed"} and not facts.busy else None

    def last_words(self) -> str:
        """Its own log, and what it and systemd wrote to the journal."""
        said = [super().last_words()]
        with contextlib.suppress(KwdbBuildError):
            said.append(self.unit.call(
                "--no-pager", "--output=cat", f"--lines={_JOURNAL_LINES}", f"--since=@{int(self.began_at)}",
                f"--{'user-' if self.unit.uid is not None else ''}unit={self.unit.name}", program="journalctl",
            ).stdout.strip())
        return "\n".join(filter(None, said))
