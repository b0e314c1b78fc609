"""A bare restart with the captured command: the `restart` verb, and the yardstick for downtime."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kwdb_build.command import quote
from kwdb_build.errors import InterruptedByUserError, KwdbBuildError, RefusedError, StartError
from kwdb_build.model import Verdict
from kwdb_build.sql import Login, Session, SqlError, identifier
from kwdb_build.upgrade import gate
from kwdb_build.upgrade.context import commands_of
from kwdb_build.upgrade.interrupts import Interrupts, SecondInterruptError
from kwdb_build.upgrade.lock import hold_home, hold_stores
from kwdb_build.upgrade.session import require_no_open_run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kwdb_build.config import Settings
    from kwdb_build.console import Console
    from kwdb_build.model import Deployment
    from kwdb_build.server.readiness import Ready
    from kwdb_build.server.stop import StopResult
    from kwdb_build.server.supervisor import Supervisor
    from kwdb_build.server.watch import Watcher

_FIRST_ANSWER_S = 5.0
_TO_THE_END = "finishing the restart, as the server would stay down (once more: stop at once)"
_WELL = "same process, node, addresses and libraries"


@dataclass(frozen=True, kw_only=True)
class Restarted:
    """The new process, when SIGTERM was sent (unix seconds), and how long until an outside client's first answer.

    parts: what the downtime went to. downtime_s is -1 for a server that was down already.
    """

    pid: int
    began: float
    downtime_s: float
    parts: dict[str, float] = field(default_factory=dict)


def restart(deployment: Deployment, settings: Settings, console: Console, *, assume_yes: bool) -> Restarted:
    """Stop and start; the capture is kept in a file first, so that a cut-off restart can be finished by hand."""
    from kwdb_build.files import private_directory
    from kwdb_build.server import proc, readiness, saved, supervisor, watch
    from kwdb_build.server.address import clear_the_way

    commands = commands_of(settings, settings.home / "logs")
    gate.require_supported_deployment(deployment, commands)
    _validate(deployment, settings, console, running=True)
    who = f"pid {deployment.pid}"
    _confirm(f"Restart {who} ({deployment.version}, {deployment.sql})?", console, assume_yes=assume_yes)
    stores = tuple(store.path for store in deployment.stores)
    logs = private_directory(settings.home / "logs")
    login = login_of(deployment, settings)
    kept = settings.home / "last-restart.json"
    with (
        Interrupts(console, meanwhile=_TO_THE_END) as interrupts, hold_home(settings.home, f"restart of {who}"),
        hold_stores(stores), _way_out(kept, deployment, interrupts), watch.begin(login) as seen,
    ):
        require_no_open_run(settings)
        if not proc.is_alive(deployment.pid, deployment.started_at):  # another restart had the lock until now
            raise proc.gone(deployment.pid, ProcessLookupError("it has ended since it was captured"))
        saved.save(deployment, kept)
        identity = readiness.identity(login)
        series = _a_series(login)
        keeper = supervisor.of(deployment, commands)
        try:
            keeper.prepare()
            seen.answered_after(0.0, wait_s=_FIRST_ANSWER_S)
            interrupts.immediate = False
            began = time.time()
            stopped = _stop(1, 3, keeper, deployment, settings, console)
            with console.step(2, 3, "start"):
                clear_the_way(deployment)
                started = keeper.start(deployment, log_dir=logs)
                ready = readiness.wait_ready(
                    deployment=deployment, started=started, login=login, expect=identity,
                    timeout_s=settings.start_timeout_s, progress=console,
                )
                console.update(f"pid {ready.pid} answers SQL after {ready.sql_s:.1f} s")
            result = _account(began, stopped.seconds, started.began_at, ready, seen)
            with console.step(3, 3, "look again"):
                _look_again(deployment, ready, login, settings, series=series)
                console.update(_WELL)
        finally:
            supervisor.give_back(keeper, console)
        for note in started.notes:
            console.note(f"  {note}", style="yellow")
    return result


def _stop(
    number: int, total: int, keeper: Supervisor, deployment: Deployment, settings: Settings, console: Console, *,
    told_already: bool = False,
) -> StopResult:
    with console.step(number, total, "wait for the end of its drain" if told_already else "stop"):
        stopped = keeper.stop(
            deployment, timeout_s=settings.stop_timeout_s, force_after_s=settings.force_stop_after_s,
            progress=console, told_already=told_already,
        )
        console.update(f"{'drained' if stopped.drained else 'ended'} in {stopped.seconds:.1f} s")
    return stopped


@contextlib.contextmanager
def _way_out(capture: Path, deployment: Deployment, interrupts: Interrupts) -> Iterator[None]:
    """Whatever goes wrong once the server was told to stop ends with the command that brings it up."""
    try:
        yield
    except (Exception, SecondInterruptError) as error:
        if interrupts.immediate:
            raise
        if isinstance(error, KwdbBuildError):
            told = error
        elif isinstance(error, SecondInterruptError):
            told = InterruptedByUserError(f"stopped at once by a second {error}, in the middle of a restart")
        else:
            told = KwdbBuildError(f"the restart failed: {type(error).__name__}: {error}")
        again = quote(["kwdb-build", "restart", "--capture", str(capture)])
        told.hint = "; ".join(filter(None, [
            told.hint,
            f"{_how_it_stands(deployment)}: `{again}`, with the other options of this call, starts the server again",
        ]))
        raise told from error


def _how_it_stands(deployment: Deployment) -> str:
    """What must be so before the server can be started again."""
    from kwdb_build.server import locks

    try:
        pid = next(iter(locks.holders(store.path for store in deployment.stores).values()), None)
    except (KwdbBuildError, OSError) as error:  # a lost disk must not hide what went wrong
        return f"it cannot be told who has the store open ({error}); when nobody has"
    if pid is None:
        return "the server is down"
    asks = "" if pid in {deployment.pid, locks.HIDDEN_HOLDER} else f" (`kill -TERM {pid}`, once, asks it to)"
    return f"{locks.describe(pid)} has the store open; when it has ended{asks}"


def start_stopped(
    deployment: Deployment, settings: Settings, console: Console, *, capture: Path, assume_yes: bool,
    draining: bool = False,
) -> Restarted:
    """Start a server that is down from an earlier capture, and make sure that it came up on its old store.

    capture: the file it was read from. draining: it was told to stop and is about to be down.
    """
    from kwdb_build.files import private_directory
    from kwdb_build.server import locks, logs, readiness, supervisor
    from kwdb_build.server.address import clear_the_way

    stores = tuple(store.path for store in deployment.stores)
    held = {store: pid for store, pid in locks.holders(stores).items() if not draining or pid != deployment.pid}
    if held:
        store, pid = next(iter(held.items()))
        raise RefusedError(
            f"the store {store} is in use by {locks.describe(pid)}", hint="it runs already: leave out --capture"
        )
    commands = commands_of(settings, settings.home / "logs")
    gate.require_supported_deployment(deployment, commands, running=draining)
    _validate(deployment, settings, console, running=False)
    _confirm(f"Start {deployment.version} on {stores[0]} ({deployment.sql})?", console, assume_yes=assume_yes)
    login = login_of(deployment, settings)
    total = 3 if draining else 2
    with (
        Interrupts(console, meanwhile=_TO_THE_END) as interrupts, hold_home(settings.home, f"start on {stores[0]}"),
        hold_stores(stores), _way_out(capture.absolute(), deployment, interrupts), contextlib.ExitStack() as stack,
    ):
        require_no_open_run(settings)
        interrupts.immediate = False
        keeper = supervisor.of(deployment, commands)
        stack.callback(supervisor.give_back, keeper, console)
        if draining:
            keeper.prepare()
            _stop(1, 3, keeper, deployment, settings, console, told_already=True)
        clear_the_way(deployment, wait_s=0)
        with console.step(total - 1, total, "start"):
            started = keeper.start(deployment, log_dir=private_directory(settings.home / "logs"))
            ready = readiness.wait_ready(
                deployment=deployment, started=started, login=login, expect=None,
                timeout_s=settings.start_timeout_s, progress=console,
            )
            if ready.banner is not None and ready.banner.status != logs.RESTARTED:
                raise StartError(
                    f"the server came up with '{ready.banner.status}': not on its old store",
                    hint="is a file system not mounted? It runs on; stop it before it is taken for the real one",
                )
            console.update(f"pid {ready.pid} answers SQL after {ready.sql_s:.1f} s")
        with console.step(total, total, "look again"):
            series = ""
            with contextlib.suppress(SqlError):  # it may have died already: the second look says so in better words
                series = _a_series(login)
            _look_again(deployment, ready, login, settings, series=series)
            console.update(_WELL)
    return Restarted(pid=ready.pid, began=started.began_at, downtime_s=-1.0, parts={"start": round(ready.sql_s, 3)})


def login_of(deployment: Deployment, settings: Settings) -> Login:
    """How our own checks reach SQL."""
    return Login(
        address=deployment.sql, user=settings.sql_user, certs_dir=deployment.certs_dir,
        password_file=settings.sql_password_file,
    )


def _confirm(question: str, console: Console, *, assume_yes: bool) -> None:
    import sys

    if not assume_yes and not (sys.stdin.isatty() and console.confirm(question)):
        raise RefusedError("not confirmed: nothing was changed", hint="answer y, or pass -y")


def _validate(deployment: Deployment, settings: Settings, console: Console, *, running: bool) -> None:
    """The command against the very binary that it starts: what has changed on the disk since."""
    from kwdb_build.server import capture, validate

    known = capture.flags_known(deployment)
    rows = validate.check(deployment, known=known, known_before=known, user=settings.sql_user, running=running)
    validate.require(rows)
    for row in rows:
        if row.verdict is Verdict.WARN:
            console.note(f"  look at: {row.name}: {row.found}. {row.fix}", style="yellow")


def _account(began: float, stopped_s: float, launched: float, ready: Ready, seen: Watcher) -> Restarted:
    answered = seen.answered_after(launched) or time.time()
    until_answer = max(0.0, answered - launched)
    start_s = min(ready.ready_s, until_answer)  # a client may be served before we see that it is ready
    return Restarted(
        pid=ready.pid, began=began, downtime_s=round(answered - began, 3),
        parts={
            "stop": round(stopped_s, 3), "start": round(start_s, 3),
            "first answer": max(0.0, round(until_answer - start_s, 3)),
        },
    )


def _a_series(login: Login) -> str:
    """Quoted name of a time-series table that has a row; '' when there is none."""
    from kwdb_build.verify import probe

    with Session(login) as session:
        for database, engine in probe.databases(session).items():
            if engine != "TIME SERIES":
                continue
            for schema, table, _ in probe.tables(session, database):
                name = identifier(database, schema, table)
                if session.rows(f"SELECT 1 FROM {name} LIMIT 1"):  # noqa: S608 a quoted name
                    return name
    return ""


def _look_again(deployment: Deployment, ready: Ready, login: Login, settings: Settings, *, series: str) -> None:
    """Some seconds later: servers were seen to answer SQL for a moment and die, or to have lost their time series."""
    from kwdb_build.server import readiness

    time.sleep(settings.settle_s)
    readiness.require_still_well(deployment, ready, login)
    if not series:
        return
    try:
        with Session(login) as session:
            rows = session.rows(f"SELECT 1 FROM {series} LIMIT 1")  # noqa: S608 a quoted name
    except SqlError as error:
        raise StartError(f"{series} could be read before and cannot be now", context=error.context) from error
    if not rows:
        raise StartError(
            f"{series} had a row before and has none now",
            hint="is the time-series directory (tsdb, --ts-store) where it was? Look into TsEngine.log",
        )
