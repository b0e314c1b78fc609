"""Results as tables for people, or JSON for machines."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from kwdb_build.console import OutputError
from kwdb_build.files import human_bytes

if TYPE_CHECKING:
    from kwdb_build.config import Settings
    from kwdb_build.console import Console
    from kwdb_build.upgrade.result import RunResult


def result(console: Console, run: RunResult) -> None:
    """The summary of a finished run.

    A full or closed standard output is told on the other one: the exit code stays that of the run.
    """
    if console.as_json:
        try:
            console.data({"result": run})
        except OutputError as error:
            console.error(error)
        return
    words, style = _VERDICTS.get(run.outcome, (run.outcome, "red"))
    console.facts(f"{words}  (run {run.run})", _rows(run), style=style)


_SHOWN_FAILURES = 10
_PARTS_WIDTH = 62
_VERDICTS = {
    "upgraded": ("Upgraded", "green"),
    "rolled-back": ("Not upgraded: rolled back, the old version runs", "yellow"),
    "rollback-failed": ("Not in a verified state: a person is needed", "red"),
    "open": ("Cut off half-way: resume or roll back", "red"),
    "failed": ("Not upgraded, nothing was changed", "yellow"),
    "abandoned": ("Closed by hand", "yellow"),
}


def _rows(run: RunResult) -> list[tuple[str, str]]:
    from kwdb_build.upgrade.result import command_for

    passed = sum(check["verdict"] == "ok" for check in run.checks)
    rows = [
        ("old version", run.old_version or "?"),
        ("new version", f"{run.new_version or run.ref}  (commit {run.commit[:12]})" if run.commit else run.ref),
        *([("source", "\n".join(run.source[:_SHOWN_FAILURES]))] if run.source else []),
        ("downtime", _downtime(run)),
        ("checks", f"{passed} of {len(run.checks)} passed" if run.checks else "not reached"),
    ]
    if run.rejected_checks:
        rows[-1] = ("checks", f"{passed} of {len(run.checks)} passed by the old version")
        failed = [check["name"] for check in run.rejected_checks if check["verdict"] in {"fail", "unknown"}]
        if failed:
            rows.append(("failed", "\n".join(failed[:_SHOWN_FAILURES])))
    if run.backup:
        rows.append(("backup", f"{run.backup}\n{run.backup_files} files, {human_bytes(run.backup_bytes)}, verified"))
    rows.append(("report", run.report))
    if run.outcome == "upgraded" and run.backup:
        rows.append(("way back", f"{command_for(run, 'rollback')}\n(gives up what is written from now on)"))
    if run.outcome in {"open", "rollback-failed"}:
        rows.append(("go back", command_for(run, "rollback")))
    if run.outcome == "open":
        rows.append(("go on", command_for(run, "resume")))
    return rows


def _downtime(run: RunResult) -> str:
    if run.downtime_s < 0:
        return "none" if run.outcome in {"failed", "abandoned"} else "not over: no server answers, as far as is known"
    parts = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in run.downtime_parts.items())
    folded = "\n".join(textwrap.wrap(parts, _PARTS_WIDTH))
    return f"{run.downtime_s:.2f} s from SIGTERM to the first answer\n{folded}"


def ended(console: Console, settings: Settings, name: str | None = None) -> None:
    """The summary of the newest (or named) run, when it got as far as touching the server."""
    from kwdb_build.upgrade.result import load_result
    from kwdb_build.upgrade.rundir import RunDirectory

    runs = RunDirectory.all(settings.home)
    if not runs:
        return
    found = load_result(RunDirectory.find(settings.home, name))
    if found is not None and found.outcome != "failed" and not console.as_json:
        result(console, found)
