from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from kwdb_build.upgrade.report import downtime_bars, render, seconds_in_words, step_bars, write_report
from kwdb_build.upgrade.result import RunResult, StepTime, command_for

FAILED = {"name": "Table: <b>plant</b>", "verdict": "fail", "required": "2000 rows", "found": "0 rows", "where": "", "fix": "look"}
PASSED = {"name": "Version", "verdict": "ok", "required": "V1.0.0", "found": "V1.0.0", "where": "", "fix": "never shown"}


def result(**changes: object) -> RunResult:
    base = RunResult(
        run="0007-20261122T113658Z", outcome="upgraded", exit_code=0, old_version="V1.0.0", new_version="V1.1.0",
        ref="V1.1.0", commit="a" * 40, submodules={"kwbase/vendor": "b" * 40}, build_key="c" * 64, engine="sandbox 0.8.0", began=1.8e9,
        ended=1.8e9 + 60, downtime_s=0.79, downtime_parts={"stop": 0.5, "backup": 0.1, "switch": 0.0, "start": 0.19},
        steps=(
            StepTime(step="build", phase="apply", event="done", seconds=50.0),
            StepTime(step="stop", phase="apply", event="done", seconds=0.5),
            StepTime(step="verify", phase="apply", event="failed", seconds=2.0),
            StepTime(step="start", phase="undo", event="done", seconds=1.0),
        ),
        checks=(PASSED, FAILED), backup="/srv/runs/7/backup", backup_files=20, backup_bytes=1 << 20,
        report="/srv/home/runs/7/report.html", run_dir="/srv/home/runs/0007-20261122T113658Z",
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


class _Balance(HTMLParser):
    """Every opened element is closed, in order."""

    void = frozenset({"meta", "br", "rect"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in self.void or tag == "rect":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


OUTCOMES = ("upgraded", "failed", "rolled-back", "rollback-failed", "open", "abandoned")


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("bare", [False, True])
def test_every_outcome_is_a_whole_page_that_loads_nothing(outcome: str, bare: bool) -> None:
    emptied = {"checks": (), "steps": (), "downtime_parts": {}, "downtime_s": -1.0, "backup": "", "commit": "", "began": 0.0}
    html = render(result(outcome=outcome, **(emptied if bare else {})))
    page = _Balance()
    page.feed(html)
    assert page.open == []
    assert not re.search(r"<script|https?://|@import|url\(", html)


def test_failed_checks_come_first_and_names_are_escaped() -> None:
    html = render(result())
    assert html.index("Table: &lt;b&gt;plant") < html.index("<td>Version</td>")
    assert "<b>plant" not in html
    assert "never shown" not in html


def test_a_rolled_back_run_shows_why_the_new_version_was_not_kept() -> None:
    html = render(result(outcome="rolled-back", checks=(PASSED,), rejected_checks=(PASSED, PASSED, FAILED)))
    assert "Checks of V1.1.0, which was not kept" in html
    assert "2 more passed" in html
    assert html.index("Table: &lt;b&gt;plant") < html.index("Checks of the running version")


@pytest.mark.parametrize(("outcome", "verbs"), [
    ("upgraded", {"rollback"}), ("open", {"resume", "rollback", "abandon"}), ("rollback-failed", {"rollback", "abandon"}),
    ("failed", set()), ("rolled-back", set()),
])
def test_what_to_do_names_whole_commands(outcome: str, verbs: set[str]) -> None:
    html = render(result(outcome=outcome))
    assert set(re.findall(r"kwdb-build (\w+) 7 --home /srv/home<", html)) == verbs


def test_the_usual_home_needs_no_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KWDB_BUILD_HOME", "/srv/home")
    monkeypatch.delenv("TEST_BUILD_CACHE", raising=False)
    assert command_for(result(), "rollback") == "kwdb-build rollback 7"
    monkeypatch.setenv("KWDB_BUILD_HOME", "/srv/other")
    assert command_for(result(run_dir="/srv/my home/runs/0007-x"), "resume") == "kwdb-build resume 7 --home '/srv/my home'"


def test_bars() -> None:
    bars = step_bars(result().steps)
    assert [(bar.name, bar.share, bar.kind) for bar in bars] == [
        ("build", 100.0, "run"), ("stop", 1.0, "down"), ("verify", 4.0, "failed"), ("take back start", 2.0, "undo"),
    ]
    parts = downtime_bars({"stop": 1.0, "verify": 2.0, "take back stop": 1.0})
    assert [(bar.begin, bar.share, bar.kind) for bar in parts] == [(0.0, 25.0, "down"), (25.0, 50.0, "run"), (75.0, 25.0, "undo")]
    assert step_bars(()) == downtime_bars({}) == []


@pytest.mark.parametrize(("seconds", "words"), [
    (0.051, "0.05 s"), (12.34, "12.3 s"), (754, "12 min 34 s"), (7380, "2 h 3 min"),
])
def test_seconds_in_words(seconds: float, words: str) -> None:
    assert seconds_in_words(seconds) == words


def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    write_report(result(), tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_mode & 0o777 == 0o600
