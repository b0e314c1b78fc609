"""A second look: servers were seen to answer SQL for a moment and then die, and to log what they did not say."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from kwdb_build.model import Verdict
from kwdb_build.server import proc
from kwdb_build.sql import Session
from kwdb_build.verify import logs, probe

if TYPE_CHECKING:
    from kwdb_build.verify.baseline import Baseline
    from kwdb_build.verify.plugin import Check
    from kwdb_build.verify.request import VerifyRequest

_SHOWN = 5


def test_a_second_look(wanted: VerifyRequest, before: Baseline, check: Check) -> None:
    """Still well after a pause."""
    check.required = f"alive and readable {wanted.settle_s:g} s later"
    time.sleep(wanted.settle_s)
    if wanted.pid:
        assert proc.is_alive(wanted.pid, wanted.started_at), f"process {wanted.pid} died after it had answered"
    with Session(wanted.login, statement_timeout_s=wanted.statement_timeout_s) as session:
        assert probe.identity(session) == before.identity, "another server answers now"
        for table in before.time_series:
            if table.rows:
                assert probe.one_row(session, table), f"{table.name} has no row any more"
                check.found = f"alive; a row of {table.name} was read"
                return
    check.found = "alive"


def test_logs(wanted: VerifyRequest, check: Check) -> None:
    """The server's log since its start."""
    check.required = "no panic, no fatal line, no unread time-series data"
    if wanted.log_mark is None:
        pytest.skip("no log files were named")
    findings, read = logs.scan_logs(wanted.log_mark)
    check.found = f"{len(read)} files read"
    if not read:
        check.warn("no log file was found")
    bad = [item for item in findings if item.verdict is Verdict.FAIL]
    if bad:
        shown = "\n".join(f"{item.path}:{item.line}:\n{item.text}" for item in bad[:_SHOWN])
        pytest.fail(f"{len(bad)} such places:\n{shown}", pytrace=False)
    for item in findings[:_SHOWN]:
        check.warn(f"{item.path}: {item.text.strip()}")


def test_the_end(wanted: VerifyRequest, check: Check) -> None:
    """The same process at the end."""
    if not wanted.pid:
        pytest.skip("the process is not visible from here")
    check.required = f"pid {wanted.pid}"
    assert proc.is_alive(wanted.pid, wanted.started_at), f"process {wanted.pid} ended during the checks (a crash loop?)"
    check.found = "running"
