"""Entry points: a new upgrade, and going on with (or back from) one that exists."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from kwdb_build.config import Settings
from kwdb_build.errors import KwdbBuildError, NeedsResumeError, RefusedError, UsageError
from kwdb_build.server import trial
from kwdb_build.upgrade import service
from kwdb_build.upgrade.context import Context
from kwdb_build.upgrade.interrupts import Interrupts
from kwdb_build.upgrade.journal import Event, Journal, Phase
from kwdb_build.upgrade.lock import hold_home, hold_stores
from kwdb_build.upgrade.result import RunResult, load_result, write_result
from kwdb_build.upgrade.rundir import RunDirectory, UpgradeRequest
from kwdb_build.upgrade.runner import Runner
from kwdb_build.upgrade.steps import prepare, rehearse, switchover

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kwdb_build.console import Console
    from kwdb_build.upgrade.steps.base import Step

STEPS: tuple[Step, ...] = (
    prepare.Capture(),
    prepare.Fetch(),
    prepare.Gate(),
    prepare.Check(),
    prepare.Build(),
    rehearse.Validate(),
    rehearse.Trial(),
    switchover.Stage(),
    prepare.RecordBaseline(),
    switchover.Precopy(),
    switchover.Stop(),
    switchover.Backup(),
    switchover.Switch(),
    switchover.Start(),
    switchover.Verify(),
    switchover.Keep(),
)

_CLOSED = {"upgraded", "failed", "rolled-back", "abandoned"}


def upgrade(request: UpgradeRequest, settings: Settings, console: Console, *, assume_yes: bool) -> RunResult:
    """A new run from the first step to the last, or back."""
    with hold_home(settings.home, f"upgrade to {request.ref}"):
        require_no_open_run(settings)
        _tidy(settings, console)
        run = RunDirectory.create(settings.home)
        run.save(run.request, request)
        with _session(run, request, settings, console, assume_yes=assume_yes) as context:
            return Runner(STEPS, context, context.journal).run()


def resume(
    name: str | None, settings: Settings, console: Console, *, overrides: Mapping[str, Any] | None = None
) -> RunResult:
    """Go on with a run that was cut off: forwards, or back when a way back was begun.

    overrides: settings that differ from those the run was begun with (how long to wait, when to kill).
    """
    with _reopened(name, settings, console, what="resume", overrides=overrides) as context:
        runner = Runner(STEPS, context, context.journal)
        if context.journal.rolling_back:
            raise runner.roll_back(reason=None, failed=None)
        return runner.run()


def roll_back(
    name: str | None, settings: Settings, console: Console, *, assume_yes: bool,
    overrides: Mapping[str, Any] | None = None,
) -> None:
    """Take a run back: one that was cut off, or one that was kept (then everything written since is lost).

    Always ends by raising: RolledBackError (the wished end), RollbackFailedError or NeedsResumeError.
    """
    with _reopened(name, settings, console, what="rollback", closed_too=True, overrides=overrides) as context:
        kept = context.journal.done("keep")
        if not context.journal.started("stop"):
            raise RefusedError(
                f"run {context.run.id} never touched the server: there is nothing to roll back",
                hint="`kwdb-build resume` goes on with it",
            )
        if kept and context.request.no_backup:
            raise RefusedError("this run was made with --no-backup: there is no data to go back to")
        question = (
            f"Go back from {context.artifact.version} to {context.deployment.version}?\n"
            "  The server is restarted; everything written since the upgrade is moved out of the store "
            f"(kept in {context.run.set_aside}) and no longer served."
        )
        if kept and not assume_yes and not console.confirm(question):
            raise RefusedError("not confirmed: nothing was changed", hint="answer y, or pass -y")
        raise Runner(STEPS, context, context.journal).roll_back(reason=None, failed=None)


def abandon(name: str | None, settings: Settings, console: Console) -> RunResult:
    """Close an open run without doing anything: a person has set things right."""
    run = RunDirectory.find(settings.home, name)
    with hold_home(settings.home, f"abandon {run.id}"):
        if not is_open(run):
            raise UsageError(f"run {run.id} is not open")
        request = run.load(UpgradeRequest, run.request)
        with Interrupts(console) as interrupts:
            context = Context(
                settings=settings, request=request, run=run, console=console, interrupts=interrupts,
                journal=Journal(run.journal),
            )
            if context.journal.started("stop"):
                context.supervisor.release()
            context.journal.append("run", Phase.APPLY, Event.DONE, abandoned=True)
            service.discard_staged(run)
            return write_result(context, context.journal, outcome="abandoned", error=None)


def is_open(run: RunDirectory) -> bool:
    """Whether a run was cut off, or ended in a state that waits for a person."""
    journal = Journal(run.journal) if run.journal.exists() else None
    result = load_result(run)
    if result is None:
        return journal is not None and journal.started("stop")
    if result.outcome == "upgraded":
        # Kept at first, taken back later, and cut off in that.
        return journal is not None and journal.rolling_back
    return result.outcome not in _CLOSED


def require_no_open_run(settings: Settings) -> None:
    """NeedsResumeError while an earlier run left the server in between."""
    for run in RunDirectory.all(settings.home):
        if is_open(run):
            raise NeedsResumeError(
                f"run {run.id} was not finished",
                hint=f"`kwdb-build resume {run.id}` goes on, `kwdb-build rollback {run.id}` goes back; if you have set "
                f"things right by hand, `kwdb-build abandon {run.id}` closes it",
                log=run.path,
            )


def _tidy(settings: Settings, console: Console) -> None:
    """Remove what runs that were killed before their stop had put beside the installed files, and end their trials."""
    for run in RunDirectory.all(settings.home):
        trial.sweep([run.trial] if run.trial.exists() else [], console)
        if not run.result.exists():
            with contextlib.suppress(KwdbBuildError):  # of an old run: no reason to refuse a new one
                service.discard_staged(run)


@contextlib.contextmanager
def _reopened(
    name: str | None, settings: Settings, console: Console, *, what: str, closed_too: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> Iterator[Context]:
    run = RunDirectory.find(settings.home, name)
    with hold_home(settings.home, f"{what} of run {run.id}"):
        result = load_result(run)
        closed = result is not None and not is_open(run)
        if result is not None and closed and not (closed_too and result.outcome == "upgraded"):
            raise RefusedError(
                f"run {run.id} is finished ({result.outcome})", hint="see `kwdb-build history` for the others"
            )
        request = run.load(UpgradeRequest, run.request)
        # A password that was typed for the run is gone with its process.
        password = {"sql_password_file": settings.sql_password_file} if settings.sql_password_file else {}
        merged = Settings.model_validate(request.settings | {"home": settings.home} | password | dict(overrides or {}))
        with _session(run, request, merged, console, assume_yes=True) as context:
            if context.journal.started("stop"):
                _require_own_server(context, kept=context.journal.done("keep"))
            yield context


@contextlib.contextmanager
def _session(
    run: RunDirectory, request: UpgradeRequest, settings: Settings, console: Console, *, assume_yes: bool
) -> Iterator[Context]:
    with Interrupts(console) as interrupts, contextlib.ExitStack() as stack:
        context = Context(
            settings=settings, request=request, run=run, console=console, interrupts=interrupts,
            journal=Journal(run.journal), assume_yes=assume_yes,
        )
        if run.deployment.exists():
            stack.enter_context(hold_stores(context.store_paths))
        context.held["exit_stack"] = stack
        yield context


def _require_own_server(context: Context, *, kept: bool) -> None:
    """RefusedError when a server runs on the store that neither the old start nor ours brought up.

    Its data is newer than our backup: going on (either way) would lose what it wrote. After a finished upgrade any
    restart is the user's own business, and the person was asked about lost data.
    """
    from kwdb_build.files import read_json

    pid = service.running_pid(context)
    if pid is None or kept:
        return
    ours = {context.deployment.pid}
    if context.run.started.exists():
        ours.add(int(read_json(context.run.started)["pid"]))
    if pid not in ours and not service.started_by_run(context, pid):
        raise RefusedError(
            f"pid {pid} was started on {context.store_paths[0]} after this run was cut off",
            hint="its data is newer than the backup; stop it and go on, or, if it is as it should be, close this run "
            f"with `kwdb-build abandon {context.run.id}`",
        )
