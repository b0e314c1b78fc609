"""Our pytest plugin for the shipped suite: options, and one JSON line a check, written as soon as it is known.

So a suite that is killed still leaves what it found, and the runner can tell a finished run from a cut-off one.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kwdb_build.model import Verdict, to_json

if TYPE_CHECKING:
    from collections.abc import Generator

REQUEST = "--kwdb-request"
RESULTS = "--kwdb-results"
_MESSAGE_LIMIT = 4000
_PROPERTY = "kwdb-check"


@dataclass(kw_only=True)
class Check:
    """What a test says about itself: fixture `check`. A test that fails by an assertion is a failed check."""

    title: str
    verdict: Verdict = Verdict.OK
    required: str = ""
    found: str = ""
    fix: str = ""
    notes: list[str] = field(default_factory=list)

    def warn(self, text: str) -> None:
        """Something a person should look at; not a failure."""
        self.notes.append(text)
        if self.verdict is Verdict.OK:
            self.verdict = Verdict.WARN

    def unknown(self, text: str) -> None:
        """It could not be found out; the runner counts it as not passed."""
        self.notes.append(text)
        self.verdict = Verdict.UNKNOWN


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where the request is and where results go."""
    parser.addoption(REQUEST, type=Path, required=True, help="verification request (JSON)")
    parser.addoption(RESULTS, type=Path, required=True, help="file for results (JSON lines)")


@pytest.fixture
def check(request: pytest.FixtureRequest) -> Check:
    """What this test reports."""
    made = Check(title=_title(request.node))
    request.node.user_properties.append((_PROPERTY, made))
    return made


def _title(item: pytest.Item) -> str:
    """First line of the test's docstring, and which table or user it is about."""
    words = getattr(getattr(item, "function", None), "__doc__", None) or item.name
    title = str(words).strip().splitlines()[0].rstrip(".")
    about = getattr(getattr(item, "callspec", None), "id", "")
    return f"{title}: {about}" if about else title


def pytest_collection_finish(session: pytest.Session) -> None:
    """How many checks there will be."""
    _write(session.config, {"event": "collected", "count": len(session.items)})


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, None]:
    """One line for a test that ran, could not be set up, or failed in cleaning up."""
    outcome = yield
    report: pytest.TestReport = outcome.get_result()
    # Objects of ours do not travel in reports.
    own = next((value for key, value in item.user_properties if key == _PROPERTY), None)
    report.user_properties = []
    if report.when == "call" or report.outcome != "passed":
        _write(item.config, _line(item, report, own if isinstance(own, Check) else Check(title=_title(item)), call))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """The last line: without it the run was cut off."""
    _write(session.config, {"event": "finished", "exit_code": int(exitstatus), "failed": session.testsfailed})


def _line(item: pytest.Item, report: pytest.TestReport, own: Check, call: pytest.CallInfo[None]) -> dict[str, Any]:
    verdict, found = own.verdict, own.found
    if report.outcome == "skipped":
        verdict = Verdict.SKIP
        found = str(call.excinfo.value) if call.excinfo else ""
    elif report.outcome == "failed":
        verdict = Verdict.FAIL
        found = _reason(call) or report.longreprtext
    text = "; ".join(part for part in (found, *own.notes) if part)
    return {
        "event": "check", "name": own.title, "verdict": verdict, "required": own.required,
        "found": text[:_MESSAGE_LIMIT], "fix": own.fix, "where": item.nodeid, "duration_s": round(report.duration, 3),
    }


def _reason(call: pytest.CallInfo[None]) -> str:
    """What went wrong, in the words of the error; an assertion's own explanation without pytest's comparison."""
    if call.excinfo is None:
        return ""
    error = call.excinfo.value
    message = str(error).strip()
    context = getattr(error, "context", "")
    if isinstance(error, AssertionError | pytest.fail.Exception):
        return message.split("\nassert ", 1)[0].strip() or "an assertion failed"
    return f"{type(error).__name__}: {message}" + (f" ({context.strip()})" if context else "")


def _write(config: pytest.Config, value: dict[str, Any]) -> None:
    data = (json.dumps(to_json(value), ensure_ascii=True) + "\n").encode()
    path: Path = config.getoption(RESULTS)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
