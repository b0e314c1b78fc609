"""The result of a run: one JSON document, the table for the terminal and the report are made from it."""

from __future__ import annotations

import contextlib
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kwdb_build import config
from kwdb_build.errors import ExitCode, KwdbBuildError
from kwdb_build.files import load_json, read_json
from kwdb_build.model import to_json
from kwdb_build.source.difference import facts
from kwdb_build.upgrade import room
from kwdb_build.upgrade.journal import Event, Phase

if TYPE_CHECKING:
    from kwdb_build.upgrade.context import Context
    from kwdb_build.upgrade.journal import Journal
    from kwdb_build.upgrade.rundir import RunDirectory


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """How long one step took, forwards ('apply') or back ('undo'); event is its last word."""

    step: str
    phase: str
    event: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """Everything worth telling about a run. downtime_s: SIGTERM to the first answered SELECT; -1 when not known.

    source: what makes the source another one than a plain fetch of its commit (patches, archives, uncommitted changes).
    checks: the last verification; rejected_checks: that of the new version, when the last one was of the old.
    """

    run: str
    outcome: str
    exit_code: int
    old_version: str = ""
    new_version: str = ""
    ref: str = ""
    commit: str = ""
    submodules: dict[str, str] = field(default_factory=dict)
    source: tuple[str, ...] = ()
    build_key: str = ""
    engine: str = ""
    provenance: str = ""
    began: float = 0.0
    ended: float = 0.0
    downtime_s: float = -1.0
    downtime_parts: dict[str, float] = field(default_factory=dict)
    steps: tuple[StepTime, ...] = ()
    checks: tuple[dict[str, Any], ...] = ()
    rejected_checks: tuple[dict[str, Any], ...] = ()
    backup: str = ""
    backup_files: int = 0
    backup_bytes: int = 0
    report: str = ""
    run_dir: str = ""
    error: dict[str, Any] | None = None


_DOWNTIME_STEPS = ("stop", "backup", "switch", "start")
_WORTH_TELLING_S = 0.01


def write_result(context: Context, journal: Journal, *, outcome: str, error: BaseException | None) -> RunResult:
    """Gather the result from the run's files, write it and its report, and return it."""
    from kwdb_build.upgrade.report import write_report

    run = context.run
    result = RunResult(
        run=run.id, outcome=outcome, exit_code=_exit_code(error), run_dir=str(run.path), report=str(run.report),
        ref=context.request.ref, began=journal.records[0].time if journal.records else 0.0,
        ended=journal.records[-1].time if journal.records else 0.0, steps=_step_times(journal),
        error=_error(error), checks=_checks(run),
        rejected_checks=_rejected(run), provenance=_provenance(journal), **_versions(context),
        **_backup(context, journal), **_downtime(run, journal),
    )
    try:
        run.save(run.result, to_json(result))
        write_report(result, run.report)
    except OSError as failure:
        # What happened to the server is done and must be told, also when it cannot be written down.
        context.console.note(
            f"the result of run {run.id} could not be written to {run.path}: {failure.strerror}; `kwdb-build status` "
            "will call it unfinished (`kwdb-build abandon` closes it)", style="yellow",
        )
    room.release(run.path)
    return result


def load_result(run: RunDirectory) -> RunResult | None:
    """The result of an ended run."""
    return load_json(RunResult, run.result) if run.result.exists() else None


def command_for(result: RunResult, verb: str) -> str:
    """The command line that does `verb` with this run, from anywhere."""
    home = Path(result.run_dir).parent.parent
    words = ["kwdb-build", verb, str(int(result.run.split("-")[0]))]
    try:
        usual = config.load({}).home
    except KwdbBuildError:  # settings of this machine that the run did not use
        usual = None
    return shlex.join(words if usual == home else [*words, "--home", str(home)])


def _exit_code(error: BaseException | None) -> int:
    if error is None:
        return int(ExitCode.OK)
    return int(error.exit_code) if isinstance(error, KwdbBuildError) else int(ExitCode.INTERNAL)


def _error(error: BaseException | None) -> dict[str, Any] | None:
    if error is None:
        return None
    if isinstance(error, KwdbBuildError):
        return error.as_dict()
    return {"reference": "internal-error", "message": f"{type(error).__name__}: {error}", "exit_code": 1}


def _step_times(journal: Journal) -> tuple[StepTime, ...]:
    ended = [record for record in journal.records if record.event != Event.INTENT]
    intents = {(r.step, r.phase): r.time for r in journal.records if r.event == Event.INTENT}
    return tuple(
        StepTime(
            step=record.step, phase=str(record.phase), event=str(record.event),
            seconds=round(float(record.detail.get("elapsed_s", record.time - intents[record.step, record.phase])), 3),
        )
        for record in ended
        if (record.step, record.phase) in intents
    )


def _versions(context: Context) -> dict[str, Any]:
    found: dict[str, Any] = {}
    run = context.run
    if run.deployment.exists():
        found["old_version"] = str(context.deployment.version)
    if run.source.exists():
        tree = context.tree
        found |= {
            "new_version": str(tree.version), "commit": tree.commit,
            "submodules": {submodule.path: submodule.commit for submodule in tree.submodules},
            "source": facts(tree),
        }
    if run.artifact.exists():
        found["build_key"] = context.artifact.key.digest
        with contextlib.suppress(OSError):  # of a stored build that is gone since; the run tells what else it knows
            found["engine"] = str(context.workshop.store.details(context.artifact).get("engine", ""))
    return found


def _provenance(journal: Journal) -> str:
    """What the build that was staged says about its origin, in words."""
    record = journal.last("stage", Phase.APPLY)
    return str(record.detail.get("provenance", "")) if record is not None and record.event == Event.DONE else ""


def _checks(run: RunDirectory) -> tuple[dict[str, Any], ...]:
    newest = run.verified / "result.json"
    return tuple(read_json(newest)["checks"]) if newest.exists() else ()


def _rejected(run: RunDirectory) -> tuple[dict[str, Any], ...]:
    newest, upgraded = run.verified / "result.json", run.verified / "result-upgraded.json"
    if not (newest.exists() and upgraded.exists()) or read_json(newest)["mode"] == "upgraded":
        return ()
    return tuple(read_json(upgraded)["checks"])


def _backup(context: Context, journal: Journal) -> dict[str, Any]:
    record = journal.last("backup", Phase.APPLY)
    if record is None or record.event != Event.DONE or "files" not in record.detail:
        return {}
    return {
        "backup": str(context.backup_dir), "backup_files": record.detail["files"],
        "backup_bytes": record.detail["bytes"],
    }


def _downtime(run: RunDirectory, journal: Journal) -> dict[str, Any]:
    if not (run.stopped.exists() and run.started.exists()):
        return {}
    answered = float(read_json(run.started).get("answered", 0.0))
    began = float(read_json(run.stopped)["began"])
    times = _step_times(journal)
    undos = [record for record in journal.records if record.phase == Phase.UNDO]
    if undos and journal.was("keep", Phase.APPLY, Event.DONE):
        # Taken back long after it was kept: the upgrade's own downtime was over then.
        began = undos[0].time
        times = tuple(step for step in times if step.phase == Phase.UNDO)
    parts = _downtime_parts(times)
    if not undos and "ready_s" in (started := read_json(run.started)):
        # The step itself goes on after the first answer (it looks at what was loaded).
        until_answer = max(0.0, answered - started["began"])  # a client may be served before we see that it is ready
        parts["start"] = round(min(float(started["ready_s"]), until_answer), 3)
        parts["first answer"] = max(0.0, round(until_answer - parts["start"], 3))
        if "ended" in (stopped := read_json(run.stopped)):  # the step begins before SIGTERM is sent
            parts["stop"] = round(float(stopped["ended"]) - began, 3)
    gone_back = bool(undos) and read_json(run.started).get("label") != "old"
    if answered <= began or gone_back:  # the answer of a server that was ended since proves nothing
        return {"downtime_parts": parts}
    return {"downtime_s": round(answered - began, 3), "downtime_parts": parts}


def _downtime_parts(steps: tuple[StepTime, ...]) -> dict[str, float]:
    """What the time went to, in the order of time; a verification counts when its server was not kept."""
    went_back = any(step.phase == Phase.UNDO for step in steps)
    parts: dict[str, float] = {}
    for step in steps:
        undone = step.phase == Phase.UNDO
        if step.step in _DOWNTIME_STEPS or (step.step == "verify" and went_back):
            name = f"take back {step.step}" if undone else step.step
            if not undone or step.seconds >= _WORTH_TELLING_S:
                parts[name] = round(parts.get(name, 0.0) + step.seconds, 3)
    return parts
