"""What a result says of the downtime, from real journals and run files."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from kwdb_build.upgrade import result
from kwdb_build.upgrade.journal import Event, Journal, Phase
from kwdb_build.upgrade.rundir import RunDirectory

FORWARD = ("stop", "backup", "switch", "start", "verify")


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "home")


def went(journal: Journal, phase: Phase, steps: dict[str, float]) -> None:
    for step, seconds in steps.items():
        journal.append(step, phase, Event.INTENT)
        journal.append(step, phase, Event.DONE, elapsed_s=seconds)


def server(run: RunDirectory, *, began: float, answered: float, label: str) -> None:
    run.save(run.stopped, {"began": began, "ended": began + 1})
    run.save(run.started, {"pid": 1, "started_at": 1.0, "label": label, "answered": answered})


def test_an_upgrade_counts_from_the_stop_to_the_answer(run: RunDirectory) -> None:
    journal = Journal(run.journal)
    went(journal, Phase.APPLY, {"build": 50.0, **dict.fromkeys(FORWARD, 0.5), "keep": 0.1})
    server(run, began=1000.0, answered=1002.25, label="new")
    assert result._downtime(run, journal) == {
        "downtime_s": 2.25, "downtime_parts": {"stop": 0.5, "backup": 0.5, "switch": 0.5, "start": 0.5},
    }


def test_the_first_answer_to_the_outside_client_is_a_part_of_its_own(run: RunDirectory) -> None:
    journal = Journal(run.journal)
    went(journal, Phase.APPLY, {**dict.fromkeys(FORWARD, 0.5), "stop": 0.8, "keep": 0.1})  # it prepares the unit first
    run.save(run.stopped, {"began": 1000.0, "ended": 1000.5})
    run.save(run.started, {"pid": 1, "label": "new", "answered": 1002.0, "began": 1001.5, "ready_s": 0.25})
    assert result._downtime(run, journal) == {
        "downtime_s": 2.0,
        "downtime_parts": {"stop": 0.5, "backup": 0.5, "switch": 0.5, "start": 0.25, "first answer": 0.25},
    }


def test_a_rollback_counts_the_verification_and_the_way_back_in_order(run: RunDirectory) -> None:
    journal = Journal(run.journal)
    went(journal, Phase.APPLY, dict.fromkeys(FORWARD, 0.5))
    went(journal, Phase.UNDO, {"verify": 0.0, "start": 0.6, "switch": 0.1, "backup": 0.0, "stop": 0.2})
    server(run, began=1000.0, answered=1004.0, label="old")
    found = result._downtime(run, journal)
    assert found["downtime_s"] == 4.0
    assert list(found["downtime_parts"]) == [
        "stop", "backup", "switch", "start", "verify", "take back start", "take back switch", "take back stop",
    ]


def test_the_answer_of_a_server_that_was_ended_since_is_no_end_of_the_downtime(run: RunDirectory) -> None:
    journal = Journal(run.journal)
    went(journal, Phase.APPLY, dict.fromkeys(FORWARD, 0.5))
    journal.append("start", Phase.UNDO, Event.INTENT)
    journal.append("start", Phase.UNDO, Event.FAILED, error="disk full")
    server(run, began=1000.0, answered=1002.0, label="new")
    assert "downtime_s" not in result._downtime(run, journal)


def test_taking_back_a_kept_version_counts_from_the_way_back(run: RunDirectory) -> None:
    journal = Journal(run.journal)
    went(journal, Phase.APPLY, {**dict.fromkeys(FORWARD, 0.5), "keep": 0.1})
    went(journal, Phase.UNDO, {"start": 0.6, "stop": 0.2})
    server(run, began=time.time() - 14 * 86_400, answered=time.time() + 1.0, label="old")
    found = result._downtime(run, journal)
    assert 0.5 < found["downtime_s"] < 60.0
    assert found["downtime_parts"] == {"take back start": 0.6, "take back stop": 0.2}
