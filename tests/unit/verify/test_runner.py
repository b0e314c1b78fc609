"""The runner against suites made for the purpose: real children, really killed."""

from __future__ import annotations

import json
import socket
import textwrap
from typing import TYPE_CHECKING

import pytest

from kwdb_build.console import Progress
from kwdb_build.errors import VerifyError
from kwdb_build.model import Address, NodeIdentity, Verdict
from kwdb_build.sql import Login
from kwdb_build.verify import baseline, runner
from kwdb_build.verify import request as requests
from kwdb_build.verify.logs import LogMark
from kwdb_build.verify.request import VerifyRequest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def asked(tmp_path: Path) -> VerifyRequest:
    empty = baseline.Baseline(
        recorded_at=1.0, version="KaiwuDB V3.1.0 (x)", identity=NodeIdentity(cluster_id="c", node_id="1"), databases={},
        tables=(), users={}, settings={}, unfinished_jobs=(), unavailable_ranges=0, underreplicated_ranges=0, unread={},
    )
    baseline.save(empty, tmp_path / "baseline.json")
    secret = tmp_path / "secret"
    secret.write_text("hunter2\n")
    return VerifyRequest(
        login=Login(address=Address(host="127.0.0.1", port=closed_port()), password_file=secret),
        baseline=tmp_path / "baseline.json", expected_version="V3.2.1", settle_s=0, retry_s=0,
        libraries={"/x/libcommon.so": "00"}, log_mark=LogMark(sizes={}),
    )


@pytest.fixture
def make_suite(tmp_path: Path) -> Callable[[str], Path]:
    def make(body: str) -> Path:
        suite = tmp_path / "suite"
        suite.mkdir()
        (suite / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib -v\n")
        (suite / "test_it.py").write_text(textwrap.dedent(body))
        return suite

    return make


def run(asked: VerifyRequest, suite: Path, tmp_path: Path, timeout_s: float = 60) -> runner.VerifyResult:
    return runner.run_suite(asked, run_dir=tmp_path / "run", suite=suite, timeout_s=timeout_s)


def test_verdicts_travel(asked: VerifyRequest, make_suite: Callable[[str], Path], tmp_path: Path) -> None:
    class Seen(Progress):
        def __init__(self) -> None:
            self.lines: list[str] = []

        def update(self, text: str, *, done: float | None = None, total: float | None = None) -> None:
            self.lines.append(f"{text} {done}/{total}")

    suite = make_suite("""
        import pytest
        def test_good(check):
            '''A good one.'''
            check.required, check.found = "1", "1"
        def test_warned(check):
            check.found = "so so"
            check.warn("look")
        def test_failed(check):
            check.required = "2"
            assert 1 == 2, "one is not two"
        def test_unknown(check):
            check.unknown("who knows")
        def test_skipped(check):
            pytest.skip("not here")
        def test_error(check):
            raise ValueError("odd")
    """)
    seen = Seen()
    result = runner.run_suite(asked, run_dir=tmp_path / "run", suite=suite, progress=seen)
    found = {check.name: check for check in result.checks}
    assert found["A good one"].verdict is Verdict.OK
    assert (found["test_warned"].verdict, found["test_warned"].found) == (Verdict.WARN, "so so; look")
    assert (found["test_failed"].verdict, found["test_failed"].found) == (Verdict.FAIL, "one is not two")
    assert found["test_unknown"].verdict is Verdict.UNKNOWN
    assert found["test_skipped"].verdict is Verdict.SKIP
    assert "not here" in found["test_skipped"].found
    assert found["test_error"].found == "ValueError: odd"
    assert (result.exit_code, result.passed, result.failed, result.ok) == (1, 2, 3, False)
    assert seen.lines[-1].endswith("6/6")
    assert "one is not two" in result.log.read_text()


def test_all_good_is_ok(asked: VerifyRequest, make_suite: Callable[[str], Path], tmp_path: Path) -> None:
    result = run(asked, make_suite("def test_a(check):\n    pass\n"), tmp_path)
    assert result.ok
    assert (result.exit_code, result.passed, result.failed) == (0, 1, 0)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("x = 1\n", "no check was run (it had nothing to run)"),
        ("import nothing_of_that_name\n", "no check was run (it was interrupted or could not be read)"),
        ("import os, signal\ndef test_a(check):\n    pass\ndef test_b(check):\n    os.kill(os.getpid(), signal.SIGKILL)\n",
         "ended by signal 9"),
        ("import os\ndef test_a(check):\n    pass\ndef test_b(check):\n    os._exit(0)\n", "cut off after 1 of 2"),
        ("import pytest\ndef test_a(check):\n    pass\ndef test_b(check):\n    pytest.exit('enough', 0)\n",
         "cut off after 1 of 2"),
        ("import pytest\ndef test_a(check):\n    pytest.skip('all skipped')\n", ""),
    ],
)
def test_a_suite_that_did_not_really_check_is_never_ok(
    asked: VerifyRequest, make_suite: Callable[[str], Path], tmp_path: Path, body: str, words: str
) -> None:
    result = run(asked, make_suite(body), tmp_path)
    assert not result.ok
    if words:
        assert words in result.checks[-1].found
        assert result.checks[-1].verdict is Verdict.FAIL
        assert result.failed == 1
    else:
        assert result.passed == 0


def test_a_hanging_suite_is_ended_and_what_it_found_is_kept(
    asked: VerifyRequest, make_suite: Callable[[str], Path], tmp_path: Path
) -> None:
    suite = make_suite("import time\ndef test_a(check):\n    pass\ndef test_b(check):\n    time.sleep(600)\n")
    result = run(asked, suite, tmp_path, timeout_s=3)
    assert not result.ok
    assert [check.verdict for check in result.checks] == [Verdict.OK, Verdict.FAIL]
    assert "did not finish within 3 s" in result.checks[-1].found
    assert result.exit_code is None


def test_nothing_of_the_callers_surroundings_reaches_the_suite(
    asked: VerifyRequest, make_suite: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("KWBASE_HOST", "KWBASE_URL", "PGHOST", "PGPASSWORD", "PYTEST_ADDOPTS", "KW_FORCE_RECOVER", "PYTHONPATH"):
        monkeypatch.setenv(name, "--no-such-option")
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    (tmp_path / "conftest.py").write_text("raise RuntimeError('a conftest of the user')\n")
    monkeypatch.chdir(tmp_path)
    suite = make_suite("""
        import json, os, sys
        def test_a(check):
            check.found = json.dumps([sorted(os.environ), sys.argv, open(sys.argv[-2].partition("=")[2]).read()])
        def test_plugins(check, pytestconfig):
            check.found = " ".join(sorted(str(name) for name, _ in pytestconfig.pluginmanager.list_name_plugin()))
    """)
    result = run(asked, suite, tmp_path)
    assert result.ok, result.log.read_text()
    names = json.loads(result.checks[0].found)[0]
    assert not [name for name in names if name.startswith(("KWBASE_", "PG", "KW_")) or name == "PYTEST_ADDOPTS"]
    assert "hunter2" not in result.checks[0].found
    assert "randomly" not in result.checks[1].found
    assert sorted(path.name for path in suite.iterdir()) == ["pytest.ini", "test_it.py"], "no cache is left there"


def test_the_request_is_private_and_names_no_password(
    asked: VerifyRequest, make_suite: Callable[[str], Path], tmp_path: Path
) -> None:
    run(asked, make_suite("def test_a(check):\n    pass\n"), tmp_path)
    path = tmp_path / "run" / "verify-upgraded.request.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "run" / "verify-upgraded.jsonl").stat().st_mode & 0o777 == 0o600
    assert "hunter2" not in path.read_text()
    again = requests.load(path)
    assert again.scratch.startswith("kwdb_build_verify_")
    assert (again.login, again.baseline, again.libraries, again.log_mark) == (
        asked.login, asked.baseline, asked.libraries, asked.log_mark,
    )


def test_broken_calls_are_errors(asked: VerifyRequest, tmp_path: Path) -> None:
    with pytest.raises(VerifyError, match="no suite"):
        run(asked, tmp_path / "nowhere", tmp_path)
    asked.baseline.write_text("{}")
    with pytest.raises(VerifyError, match="no usable baseline"):
        runner.run_suite(asked, run_dir=tmp_path / "run")
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(VerifyError, match="no verification request"):
        requests.load(tmp_path / "x.json")


def test_the_shipped_suite_on_a_dead_server_fails_and_comes_to_its_end(asked: VerifyRequest, tmp_path: Path) -> None:
    result = runner.run_suite(asked, run_dir=tmp_path / "run", timeout_s=120)
    assert not result.ok
    assert result.exit_code == 1
    assert any(check.name == "Version" and check.verdict is Verdict.FAIL for check in result.checks)
    assert not list(runner.SUITE.rglob("*.pyc"))
