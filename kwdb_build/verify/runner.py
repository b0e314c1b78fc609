"""Runs the shipped suite in a child process and reads what it found.

A child of its own, because the suite must not share pytest's state, plugins, settings or environment with whoever
calls us, and because a hanging or crashing suite must become a failed result and never a hang.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kwdb_build
from kwdb_build import command
from kwdb_build.console import Progress
from kwdb_build.errors import VerifyError
from kwdb_build.files import private_directory
from kwdb_build.model import CheckResult, Verdict
from kwdb_build.sql import Session, SqlError, identifier
from kwdb_build.verify import baseline as baselines
from kwdb_build.verify import plugin
from kwdb_build.verify import request as requests

if TYPE_CHECKING:
    from kwdb_build.verify.request import VerifyRequest

SUITE = Path(__file__).with_name("suite")
SCRATCH_PREFIX = "kwdb_build_verify_"
_ITSELF = "verification suite"
_PASSED_ON = ("PATH", "TMPDIR", "LANG", "LC_ALL", "SSL_CERT_FILE", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "HOME")
_PER_TEST_MARGIN_S = 120.0
_EXITS = {
    1: "checks failed", 2: "it was interrupted or could not be read", 3: "pytest itself failed",
    4: "it was called wrongly", 5: "it had nothing to run",
}


@dataclass(frozen=True, kw_only=True)
class VerifyResult:
    """What the suite found. exit_code is pytest's (negative: the signal that ended it; None: it ran out of time).

    ok only when the suite came to its end, found something to check, and nothing failed or stayed unknown.
    """

    checks: tuple[CheckResult, ...]
    passed: int
    failed: int
    exit_code: int | None
    log: Path

    @property
    def ok(self) -> bool:
        """Whether the server may be kept."""
        return self.exit_code == 0 and self.passed > 0 and self.failed == 0

    @property
    def warnings(self) -> tuple[CheckResult, ...]:
        """Checks that passed and that a person should look at."""
        return tuple(check for check in self.checks if check.verdict is Verdict.WARN)

    @property
    def failures(self) -> tuple[CheckResult, ...]:
        """Checks that failed or stayed unknown."""
        return tuple(check for check in self.checks if check.verdict in {Verdict.FAIL, Verdict.UNKNOWN})


def run_suite(
    request: VerifyRequest, *, run_dir: Path, progress: Progress | None = None, timeout_s: float = 3600.0,
    suite: Path = SUITE,
) -> VerifyResult:
    """Verify a started server. A failed suite is a result; VerifyError only for a call that cannot work.

    run_dir gets verify-<mode>.log (all output), .request.json and .jsonl (one line a check). Databases that a killed
    suite left behind are removed.
    """
    if not suite.is_dir():
        raise VerifyError(f"there is no suite at {suite}", hint="the installation of kwdb-build is incomplete")
    baselines.load(request.baseline)
    private_directory(run_dir)
    request = dataclasses.replace(request, scratch=request.scratch or SCRATCH_PREFIX + secrets.token_hex(5))
    stem = f"verify-{request.mode}"
    asked, results, log = (run_dir / f"{stem}{suffix}" for suffix in (".request.json", ".jsonl", ".log"))
    for path in (results, log):
        path.unlink(missing_ok=True)
    requests.save(request, asked)
    follower = _Follower(results, progress or Progress())
    try:
        exit_code = _run_child(request, asked, results, log, suite, timeout_s, follower)
    finally:
        _remove_scratch(request)
    follower.look()
    return _result(follower, exit_code, timeout_s, log)


def _run_child(
    request: VerifyRequest, asked: Path, results: Path, log: Path, suite: Path, timeout_s: float, follower: _Follower
) -> int | None:
    per_test_s = request.statement_timeout_s + request.settle_s + request.retry_s + _PER_TEST_MARGIN_S
    argv = [
        sys.executable, "-m", "pytest", "-c", str(suite / "pytest.ini"), "--rootdir", str(suite),
        "--confcutdir", str(suite), "-p", "no:cacheprovider", "-p", "kwdb_build.verify.plugin", "-p", "pytest_timeout",
        f"--timeout={per_test_s:g}", f"{plugin.REQUEST}={asked}", f"{plugin.RESULTS}={results}", str(suite),
    ]
    try:
        done = command.run(
            argv, check=False, cwd=suite, env=child_environment(), timeout_s=timeout_s, log=log,
            on_line=lambda _: follower.look(),
        )
    except command.CommandError as error:
        if error.completed is None and not log.exists():
            raise VerifyError("the verification suite could not be started", context=str(error)) from error
        return None
    return done.returncode


def child_environment() -> dict[str, str]:
    """An environment from nothing: no KWBASE_*, PG*, PYTEST_* or proxies that could misdirect a check."""
    found = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    root = str(Path(kwdb_build.__file__).resolve().parent.parent)
    return {"PATH": os.defpath, "LANG": "C.UTF-8"} | found | {
        "PYTHONPATH": root, "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "TZ": "UTC",
    }


class _Follower:
    """Reads result lines as they appear and tells the person."""

    def __init__(self, path: Path, progress: Progress) -> None:
        self._path = path
        self._progress = progress
        self._read = 0
        self.checks: list[CheckResult] = []
        self.expected = 0
        self.finished = False

    def look(self) -> None:
        """Take in whole new lines."""
        try:
            with self._path.open("rb") as stream:
                stream.seek(self._read)
                data = stream.read()
        except OSError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            with contextlib.suppress(ValueError, KeyError):
                self._take(json.loads(line))

    def _take(self, event: dict[str, Any]) -> None:
        if event["event"] == "collected":
            self.expected = int(event["count"])
        elif event["event"] == "finished":
            self.finished = True
        else:
            check = CheckResult(
                name=event["name"], verdict=Verdict(event["verdict"]), required=event["required"],
                found=event["found"], where=event["where"], fix=event["fix"],
            )
            self.checks.append(check)
            self._progress.update(
                f"{len(self.checks)} of {self.expected} checks: {check.name}", done=len(self.checks),
                total=max(self.expected, len(self.checks)),
            )
            if check.verdict in {Verdict.FAIL, Verdict.UNKNOWN}:
                self._progress.note(f"  {check.verdict.value}: {check.name}: {check.found.splitlines()[0][:200]}"
                                    if check.found else f"  {check.verdict.value}: {check.name}")


def _result(follower: _Follower, exit_code: int | None, timeout_s: float, log: Path) -> VerifyResult:
    checks = list(follower.checks)
    problem = _problem(follower, exit_code, timeout_s)
    if problem:
        checks.append(CheckResult(
            name=_ITSELF, verdict=Verdict.FAIL, required=f"{follower.expected or 'some'} checks, all run",
            found=problem, fix=f"look at {log}",
        ))
    bad = sum(check.verdict in {Verdict.FAIL, Verdict.UNKNOWN} for check in checks)
    good = sum(check.verdict in {Verdict.OK, Verdict.WARN} for check in checks)
    return VerifyResult(checks=tuple(checks), passed=good, failed=bad, exit_code=exit_code, log=log)


def _problem(follower: _Follower, exit_code: int | None, timeout_s: float) -> str:
    """Why the run as a whole cannot be trusted; '' when it came to its end and its results are all there."""
    if exit_code is None:
        return f"it did not finish within {timeout_s:g} s"
    if exit_code < 0:
        return f"it was ended by signal {-exit_code}"
    if not follower.checks:
        return f"no check was run ({_EXITS.get(exit_code, f'exit code {exit_code}')})"
    if not follower.finished or len(follower.checks) < follower.expected:
        return f"it was cut off after {len(follower.checks)} of {follower.expected} checks"
    has_failed = any(check.verdict is Verdict.FAIL for check in follower.checks)
    if exit_code == 1 and has_failed:
        return ""
    return "" if exit_code == 0 else _EXITS.get(exit_code, f"exit code {exit_code}")


def _remove_scratch(request: VerifyRequest) -> None:
    """Whatever happened to the child: its databases, and only they, are gone. A dead server keeps them, harmlessly."""
    with contextlib.suppress(SqlError), Session(request.login, statement_timeout_s=60) as session:
        left = [
            str(row["database_name"]) for row in session.records("SHOW DATABASES")
            if str(row["database_name"]).startswith(request.scratch + "_")
        ]
        for name in left:
            with contextlib.suppress(SqlError):
                session.execute(f"DROP DATABASE IF EXISTS {identifier(name)} CASCADE")
