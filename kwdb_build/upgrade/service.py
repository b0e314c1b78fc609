"""What several steps do with the server and the installed files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kwdb_build.errors import KwdbBuildError, NotStoppedError, ServerNotFoundError, StartError
from kwdb_build.files import sha256_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kwdb_build.data.replace import Replacement, ReplaceRecord
    from kwdb_build.model import Artifact, Deployment
    from kwdb_build.server.watch import Watcher
    from kwdb_build.upgrade.context import Context
    from kwdb_build.upgrade.rundir import RunDirectory
    from kwdb_build.verify.request import Mode
    from kwdb_build.verify.runner import VerifyResult

_FAILED_SERVER_STOP_S = 30.0
_SOON_S = 60.0


def holders(stores: Iterable[Path]) -> dict[Path, int]:
    """Store -> pid of the process that holds its lock."""
    from kwdb_build.server.locks import holder

    found = {store: holder(store) for store in stores}
    return {store: pid for store, pid in found.items() if pid is not None}


def old_server_runs(context: Context) -> bool:
    """Whether the captured process itself (not another one with its pid) still exists."""
    from kwdb_build.server import proc

    return proc.is_alive(context.deployment.pid, context.deployment.started_at)


def running_pid(context: Context) -> int | None:
    """The process that holds the first store, whoever started it."""
    return next(iter(holders(context.store_paths).values()), None)


def backup_manifest(context: Context) -> Path:
    """Where the finished backup says what it holds."""
    from kwdb_build.data.manifest import FILE_NAME

    return context.backup_dir / FILE_NAME


def drop_stale_backup(context: Context) -> None:
    """Let a finished backup of an earlier, cut-off process be made again.

    Only before the new version was started: until then the stores hold the old version's data, possibly newer than the
    backup (somebody ran the old server in between). What is equal is not copied again.
    """
    if context.journal.started("start"):
        raise StartError("the new version was started: the backup must stay as it is")
    backup_manifest(context).unlink(missing_ok=True)


def server_log(context: Context) -> Path:
    """The server's own log."""
    from kwdb_build.server.capture import log_directory

    return (log_directory(context.deployment) or context.store_paths[0] / "logs") / "kwbase.log"


def require_free_stores(context: Context) -> None:
    """StartError when some process holds a store that must be at rest."""
    if held := holders(context.store_paths):
        store, pid = next(iter(held.items()))
        raise StartError(
            f"the store {store} is in use by pid {pid}", hint="end that server (SIGTERM, wait for it), then go on"
        )


def start_server(context: Context, *, label: str) -> Any:
    """Start the captured command, wait until it is ready, and note who runs and when it answered."""
    import time

    from kwdb_build.server import readiness
    from kwdb_build.server.address import clear_the_way
    from kwdb_build.server.validate import lower_limits
    from kwdb_build.verify import logs

    clear_the_way(context.deployment)
    deployment = context.renewed if label == "new" else context.deployment
    _note(context, context.run.log_mark, logs.mark_logs([server_log(context).parent]))
    started = context.supervisor.start(
        deployment, log_dir=context.run.logs, on_launch=lambda session: note_launch(context, session)
    )
    ready = readiness.wait_ready(
        deployment=deployment, started=started, login=context.login, expect=context.identity,
        timeout_s=context.settings.start_timeout_s, progress=context.console,
    )
    answered = time.time()
    if (seen := watcher(context)) is not None:
        answered = seen.answered_after(started.began_at) or answered
    _note(
        context, context.run.started,
        {"pid": ready.pid, "started_at": ready.started_at, "label": label, "answered": answered,
         "began": started.began_at, "ready_s": ready.ready_s},
    )
    _compare(context, deployment, ready.pid)
    try:
        lower = lower_limits(deployment.start.limits, ready.pid)
    except ServerNotFoundError as error:
        raise StartError(
            f"the server (pid {ready.pid}) died after it had answered", context=started.last_words(),
            log=server_log(context),
        ) from error
    for note in (*lower, *started.notes):
        context.console.note(f"  {note}", style="yellow")
    return ready


def hold_again(context: Context) -> None:
    """Before a way back: a run that was kept has given the server back, and a reboot forgets what held it."""
    try:
        context.supervisor.prepare()
    except (KwdbBuildError, OSError) as error:
        context.console.note(f"  nothing keeps others from starting the server meanwhile: {error}", style="yellow")


def _compare(context: Context, deployment: Deployment, pid: int) -> None:
    """What a unit or a command started must be what was captured. On the way back it is only said."""
    from kwdb_build.server.compare import of_started

    found = of_started(deployment.start, pid)
    for difference in found:
        context.console.note(f"  not as before: {difference.text}", style="yellow")
    decisive = [difference.text for difference in found if difference.decisive]
    if decisive and not context.journal.rolling_back:
        raise StartError(
            f"{context.supervisor.describe()} started another server than the captured one",
            context="\n".join(decisive),
            hint="what starts it has changed since (a unit, its EnvironmentFile=, a script): make it as it was",
        )


def watcher(context: Context) -> Watcher | None:
    """The outside client of this run, begun when it is first asked for; None when there can be none."""
    from kwdb_build.server import watch

    if "watcher" not in context.held:
        context.held["watcher"] = None
        try:
            context.held["watcher"] = context.held["exit_stack"].enter_context(watch.begin(context.login))
        except (KwdbBuildError, OSError) as error:  # a measure is no reason to keep a database down
            context.console.note(f"  no outside client measures the downtime: {error}", style="yellow")
    found: Watcher | None = context.held["watcher"]
    return found


def replacement_plan(deployment: Deployment, artifact: Artifact) -> tuple[Replacement, ...]:
    """Which installed file is replaced by which file of the artifact, binary and libraries as one unit.

    The libraries go to where the old ones were really mapped from, and to ../lib beside the binary too when the
    installation has that directory: a RUNPATH may find them there first.
    """
    from kwdb_build.data.replace import Replacement

    targets = dict(deployment.replaceable)
    wanted = {target: artifact.path / name for name, target in targets.items()}
    beside = deployment.start.executable.parent.parent / "lib"
    for name in deployment.libraries:
        target = beside / name
        if beside.is_dir() and not any(_same_place(target, known) for known in wanted):
            wanted[target] = artifact.path / "lib" / name
    if deployment.libraries:
        # A library that only the new version has goes to where the others are found.
        place = next(iter(deployment.libraries.values())).parent
        for entry in artifact.files:
            name = entry.path.removeprefix("lib/")
            if entry.path == f"lib/{name}" and "/" not in name and name not in deployment.libraries:
                wanted.setdefault(place / name, artifact.path / entry.path)
    return tuple(
        Replacement(target=target, source=source, existed=target.exists() or target.is_symlink())
        for target, source in wanted.items()
    )


def switch_record(context: Context) -> ReplaceRecord | None:
    """The record of this run's switch, None when it was never prepared."""
    from kwdb_build.data import replace

    if not (context.run.replaced / replace.RECORD).exists():
        return None
    return replace.load(context.run.replaced)


def discard_staged(run: RunDirectory) -> None:
    """Remove the new files that a run put beside the installed ones and never renamed."""
    from kwdb_build.data import replace

    if (run.replaced / replace.STAGED).exists() or (run.replaced / replace.RECORD).exists():
        replace.discard(replace.load(run.replaced))


def _same_place(one: Path, other: Path) -> bool:
    return one.name == other.name and one.parent.resolve() == other.parent.resolve()


def wrong_libraries(context: Context, pid: int) -> tuple[str, ...]:
    """What a process has mapped that is not the artifact's; empty when all is as it should be."""
    from kwdb_build.server.readiness import loaded_libraries

    loaded: dict[str, Path] = dict(loaded_libraries(pid)) | {"kwbase": Path(f"/proc/{pid}/exe")}
    problems = []
    for name in context.deployment.replaceable:
        digest = sha256_of(context.artifact.path / name)
        path = loaded.get(name.split("/", 1)[1])
        if path is None:
            problems.append(f"{name}: not loaded")
        elif not path.exists() or sha256_of(path) != digest:
            problems.append(f"{name}: loaded from {path}, which is not the new file")
    return tuple(problems)


def end_failed_server(context: Context, pid: int, *, ask: Callable[[], bool] | None) -> None:
    """End the server that failed; only once, and for all processes of a run, is it told to.

    With a backup it is given a short time to drain, then killed: its data is replaced afterwards (what it wrote is set
    aside first), so that waiting for a server that hangs would only lengthen the downtime. Without one its data stays,
    and a SIGKILL or a second SIGTERM can lose acknowledged rows: it is stopped as the old server was. Errors:
    NotStoppedError.
    """
    import dataclasses

    from kwdb_build.files import read_json
    from kwdb_build.server import drain, proc, readiness

    began = proc.start_time(pid)
    failed = dataclasses.replace(context.deployment, pid=pid, started_at=began)
    note, known = {"pid": pid, "started_at": began}, context.run.told
    sent = note | {"sent": True}
    written = read_json(known) if known.exists() else None
    told = written == sent
    if written == note:  # it was about to be told when the tool was killed
        begun = drain.begun(failed)  # where no log can be read, only one that serves on was not told for certain
        told = not readiness.serves(failed, context.login) if begun is None else begun
    _note(context, known, sent if told else note)
    settings, stays = context.settings, context.request.no_backup
    try:
        context.supervisor.stop(
            failed, timeout_s=settings.stop_timeout_s if stays else _FAILED_SERVER_STOP_S,
            force_after_s=settings.force_stop_after_s if stays else _FAILED_SERVER_STOP_S,
            progress=context.console, told_already=told, ask=ask if stays else None,
        )
    except NotStoppedError:
        _note(context, known, sent)
        raise
    except KwdbBuildError:  # it was not told: the next one must
        if not told:
            known.unlink(missing_ok=True)
        raise


def draining(context: Context) -> bool:
    """Whether the captured server was told to stop: a run killed just before SIGTERM left one that serves on."""
    from kwdb_build.server.readiness import serves

    return context.run.stopped.exists() and not serves(context.deployment, context.login)


def started_by_run(context: Context, pid: int) -> bool:
    """Whether a process came from one of this run's own launches.

    Those of ours are session leaders, noted before the exec. What a unit or a command of the user started is known by
    its time: it began within a minute of such a launch, and only the run itself lets the unit be started meanwhile.
    """
    import os

    from kwdb_build.files import read_json
    from kwdb_build.server import proc

    if not context.run.launched.exists():
        return False
    launched = read_json(context.run.launched)
    try:
        if os.getsid(pid) in launched["sessions"]:
            return True
        began = proc.start_time(pid)
    except (ProcessLookupError, ServerNotFoundError):
        return False
    return any(-1 <= began - moment <= _SOON_S for moment in launched.get("moments", ()))


def note_launch(context: Context, session: int) -> None:
    """Write down a server that is about to be started, so that a later process knows it as ours.

    session: the session that we gave it, 0 when somebody else starts it for us.
    """
    from kwdb_build.files import read_json
    from kwdb_build.server import proc

    known = read_json(context.run.launched) if context.run.launched.exists() else {"sessions": [], "moments": []}
    known["moments" if session == 0 else "sessions"].append(proc.now() if session == 0 else session)
    _note(context, context.run.launched, known)


def _note(context: Context, path: Path, value: Any) -> None:
    """Write a file of the run. On the way back a full or lost disk must not keep the old server down."""
    try:
        context.run.save(path, value)
    except OSError as error:
        if not context.journal.rolling_back:
            raise
        context.console.note(f"  cannot write {path}: {error.strerror}; going on without it", style="yellow")


def verify(context: Context, *, mode: Mode) -> VerifyResult:
    """Run the shipped suite on whatever runs on the stores now, and keep its result in the run."""
    from kwdb_build.files import read_json
    from kwdb_build.server import proc, readiness
    from kwdb_build.verify import logs
    from kwdb_build.verify.request import VerifyRequest
    from kwdb_build.verify.runner import run_suite

    deployment, settings = context.deployment, context.settings
    pid = running_pid(context)
    if pid is None:
        raise StartError("no server runs on the store", context=str(context.store_paths[0]), log=server_log(context))
    upgraded = mode == "upgraded"
    request = VerifyRequest(
        login=context.login, baseline=context.run.baseline, mode=mode,
        expected_version=str(context.artifact.version if upgraded else deployment.version),
        pid=pid, started_at=proc.start_time(pid),
        libraries={
            str(path): sha256_of(context.artifact.path / "lib" / name if upgraded else path)
            for name, path in deployment.libraries.items()
        },
        log_mark=logs.from_json(read_json(context.run.log_mark)) if context.run.log_mark.exists() else None,
        http=deployment.http, page_certificates=readiness.page_certificates(deployment),
        statement_timeout_s=settings.statement_timeout_s, settle_s=settings.settle_s,
    )
    result = run_suite(
        request, run_dir=context.run.verified, progress=context.console, timeout_s=settings.verify_timeout_s
    )
    # The newest under its own name too: after a way back the report still shows why the new version was not kept.
    for name in ("result.json", f"result-{mode}.json"):
        context.run.save(
            context.run.verified / name, {"mode": mode, "checks": result.checks, "passed": result.passed}
        )
    return result
