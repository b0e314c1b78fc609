"""Users, settings that an operator chose, jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kwdb_build.verify import probe

if TYPE_CHECKING:
    from kwdb_build.sql import Session
    from kwdb_build.verify.baseline import Baseline
    from kwdb_build.verify.plugin import Check


def test_user(session: Session, user: tuple[str, str], check: Check) -> None:
    """User."""
    name, options = user
    check.required = options
    found = probe.users(session)
    assert name in found, "the user is gone"
    check.found = found[name]
    if found[name] != options:
        check.warn("options or memberships are other ones")


def test_setting(session: Session, setting: tuple[str, str], check: Check) -> None:
    """Cluster setting."""
    name, value = setting
    check.required = value
    found = {str(row["variable"]): str(row["value"]) for row in session.records("SHOW CLUSTER SETTINGS")}
    if name not in found:
        check.warn("this version has no such setting; its stored value has no effect")
        return
    check.found = found[name]
    assert found[name] == value, f"it is {found[name]} now"


def test_jobs(session: Session, before: Baseline, check: Check) -> None:
    """Jobs."""
    if "jobs" in before.unread:
        pytest.skip(f"not recorded before: {before.unread['jobs']}")
    check.required = "none of the unfinished ones failed"
    now = {job.id: job for job in probe.jobs(session)}
    watched = [now[job] for job in before.unfinished_jobs if job in now]
    failed = [f"{job.id} {job.type}: {job.error}" for job in watched if job.status == "failed"]
    check.found = f"{len(watched)} of {len(before.unfinished_jobs)} unfinished ones still listed"
    if failed:
        check.warn(f"failed since: {'; '.join(failed)}")


def test_unread_parts(before: Baseline, check: Check) -> None:
    """Parts of the baseline."""
    check.required = "all recorded"
    for part, reason in before.unread.items():
        check.warn(f"{part} were not recorded and are not compared: {reason}")
