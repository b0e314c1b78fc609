"""Children: what they say, how they end, what is left of them."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from kwdb_build import command


def python(code: str, **options: object) -> command.Completed:
    return command.run([sys.executable, "-c", code], **options)  # type: ignore[arg-type]


def test_output_and_exit_code_and_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    lines: list[str] = []
    done = python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)", check=False, log=log,
                  on_line=lines.append)
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
    assert sorted(lines) == ["err", "out"]
    assert sorted(log.read_text(encoding="utf-8").split()) == ["err", "out"]


def test_failure_carries_the_tail() -> None:
    with pytest.raises(command.CommandError, match="failed with exit code 4") as caught:
        python("import sys; [print(n, file=sys.stderr) for n in range(100)]; sys.exit(4)")
    assert caught.value.context.splitlines()[-1] == "99"
    assert len(caught.value.context.splitlines()) == command.TAIL_LINES


def test_a_signal_is_named() -> None:
    with pytest.raises(command.CommandError, match="SIGKILL"):
        python("import os; os.kill(os.getpid(), 9)")


def test_missing_program() -> None:
    with pytest.raises(command.CommandError, match="cannot run no-such-program"):
        command.run(["no-such-program"])


def test_timeout_ends_grandchildren_too(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = (
        "import subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        f"open({str(pid_file)!r}, 'w').write(str(child.pid)); time.sleep(60)"
    )
    with pytest.raises(command.CommandError, match="did not finish within"):
        python(code, timeout_s=2)
    pid = int(pid_file.read_text(encoding="utf-8"))
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the grandchild lives on"
        time.sleep(0.05)


def test_stdin_is_closed_and_environment_is_exact() -> None:
    code = "import os, sys; print(sys.stdin.read() == '', sorted(os.environ) == ['LC_CTYPE', 'ONLY'] or sorted(os.environ))"
    assert python(code, env={"ONLY": "1"}).stdout.split()[0] == "True"
    assert "ONLY" not in os.environ


def test_a_log_that_cannot_be_written_keeps_no_command_from_running(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert command.run_logged(["echo", "said"], log=log, timeout_s=60) == ""
    assert log.read_text(encoding="utf-8") == "$ echo said\nsaid\n"
    for lost in (log / "below a file", Path("/dev/full")):
        done = tmp_path / lost.name
        assert str(lost) in command.run_logged(["sh", "-ec", 'echo said; touch "$0"', str(done)], log=lost, timeout_s=60)
        assert done.exists()
    with pytest.raises(command.CommandError, match="exit code 3") as caught:
        command.run_logged(["sh", "-c", "exit 3"], log=log / "below a file", timeout_s=60)
    assert "lost" in caught.value.context
