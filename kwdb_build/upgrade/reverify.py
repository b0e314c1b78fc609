"""Verify a running server once more against the baseline of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kwdb_build.errors import UsageError, VerifyError
from kwdb_build.upgrade import service
from kwdb_build.upgrade.context import Context
from kwdb_build.upgrade.interrupts import Interrupts
from kwdb_build.upgrade.journal import Journal
from kwdb_build.upgrade.result import load_result
from kwdb_build.upgrade.rundir import RunDirectory, UpgradeRequest

if TYPE_CHECKING:
    from kwdb_build.config import Settings
    from kwdb_build.console import Console
    from kwdb_build.verify.runner import VerifyResult


def reverify(name: str | None, settings: Settings, console: Console) -> VerifyResult:
    """Run the suite; VerifyError when a check fails. Tables that clients write to are told as warnings."""
    run = RunDirectory.find(settings.home, name)
    result = load_result(run)
    if result is None or result.outcome not in {"upgraded", "rolled-back"}:
        raise UsageError(f"run {run.id} has no server to verify ({result.outcome if result else 'unfinished'})")
    with Interrupts(console) as interrupts:
        context = Context(
            settings=settings, request=run.load(UpgradeRequest, run.request), run=run, console=console,
            interrupts=interrupts, journal=Journal(run.journal),
        )
        with console.step(1, 1, f"verify against run {run.id}"):
            found = service.verify(context, mode="upgraded" if result.outcome == "upgraded" else "rolled-back")
            console.update(f"{found.passed} checks passed")
    if not found.ok:
        raise VerifyError(
            f"verification failed: {len(found.failures)} of {len(found.checks)} checks",
            context="\n".join(f"{check.name}: {check.found}" for check in found.failures[:10]), log=found.log,
        )
    return found
