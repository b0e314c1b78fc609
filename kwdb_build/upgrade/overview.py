"""How the runs stand, read from their directories."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kwdb_build.upgrade.journal import Event, Journal, Record
from kwdb_build.upgrade.lock import at_work
from kwdb_build.upgrade.result import RunResult, load_result
from kwdb_build.upgrade.rundir import RunDirectory, UpgradeRequest

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Overview:
    """The newest run in a sentence. open: it waits for resume, rollback or abandon."""

    sentence: str
    run: str = ""
    outcome: str = ""
    open: bool = False


def all_results(home: Path) -> tuple[RunResult, ...]:
    """Results of all runs, oldest first; one that never ended is shown as open."""
    return tuple(load_result(run) or _unfinished(run) for run in RunDirectory.all(home))


def overview(home: Path) -> Overview:
    """State of the newest run."""
    from kwdb_build.upgrade.session import is_open

    runs = RunDirectory.all(home)
    if not runs:
        return Overview(sentence=f"no run yet under {home}")
    run = runs[-1]
    if (who := at_work(home)) is not None:
        last = _last(run)
        where = f"in {last.step} ({last.phase})" if last else "starting"
        return Overview(sentence=f"run {run.id} is under way, {where}: {who}", run=run.id, outcome="running")
    result = load_result(run)
    if is_open(run):
        last = _last(run)
        where = f"in {last.step} ({last.phase} {last.event})" if last else "at its very beginning"
        return Overview(
            sentence=f"run {run.id} is not finished: cut off {where}; `kwdb-build resume` or `kwdb-build rollback`",
            run=run.id, outcome=result.outcome if result else "open", open=True,
        )
    if result is None:
        return Overview(sentence=f"run {run.id} ended before it changed anything", run=run.id, outcome="failed")
    words = f"run {run.id}: {result.outcome}, {result.old_version} -> {result.new_version or result.ref}"
    return Overview(sentence=words, run=run.id, outcome=result.outcome)


def _last(run: RunDirectory) -> Record | None:
    records = Journal(run.journal).records if run.journal.exists() else ()
    return records[-1] if records else None


def _unfinished(run: RunDirectory) -> RunResult:
    records = Journal(run.journal).records if run.journal.exists() else ()
    touched = any(record.step == "stop" and record.event == Event.INTENT for record in records)
    ref = run.load(UpgradeRequest, run.request).ref if run.request.exists() else ""
    return RunResult(
        run=run.id, outcome="open" if touched else "failed", exit_code=22 if touched else 1, ref=ref,
        began=records[0].time if records else 0.0, run_dir=str(run.path),
    )
