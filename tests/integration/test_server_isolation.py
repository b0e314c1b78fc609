"""Nothing that happens to the tool reaches the database: Ctrl-C, a closing terminal, a killed group, its own end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pexpect
import pytest

from kwdb_build.server import proc, saved
from tests.integration.serverbox import PATIENCE_S, identity, stopped

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kwdb_build.model import Deployment
    from tests.minikwdb.instance import Instance

pytestmark = pytest.mark.engine
TOOL = """
import sys, time
from pathlib import Path
from kwdb_build import sql
from kwdb_build.console import Progress
from kwdb_build.server import readiness, saved
from kwdb_build.server.start import start
deployment = saved.load(Path(sys.argv[1]))
started = start(deployment.start, log_dir=Path(sys.argv[2]))
ready = readiness.wait_ready(
    deployment=deployment, started=started, login=sql.Login(address=deployment.sql), expect=None, timeout_s=60,
    progress=Progress(),
)
print("READY", started.launched, ready.pid, ready.started_at, "END", flush=True)
time.sleep(float(sys.argv[3]))
"""


@pytest.fixture(params=[False, True], ids=["foreground", "background"])
def server(
    request: pytest.FixtureRequest, install_server: Callable[..., Instance], tmp_path: Path
) -> tuple[Deployment, list[str]]:
    """A stopped server, and the command line of a tool that starts it again and stays for a while."""
    deployment, _ = stopped(install_server(background=request.param))
    assert deployment.start.background is request.param
    saved.save(deployment, tmp_path / "captured.json")
    return deployment, [sys.executable, "-c", TOOL, str(tmp_path / "captured.json"), str(tmp_path / "run")]


def read_ready(text: str) -> tuple[int, int, float]:
    words = text[text.index("READY"):].split()
    return int(words[1]), int(words[2]), float(words[3])


def serves(deployment: Deployment, pid: int, began: float) -> bool:
    time.sleep(0.5)  # long enough for a signal to have its effect
    return proc.is_alive(pid, began) and bool(identity(deployment).cluster_id)


@pytest.mark.parametrize("how", ["ctrl-c", "hang-up", "kill"])
def test_a_terminal(server: tuple[Deployment, list[str]], how: str) -> None:
    deployment, tool = server
    terminal = pexpect.spawn(tool[0], [*tool[1:], "600"], env=tool_environment(), timeout=PATIENCE_S, encoding="utf-8")
    terminal.expect(r"READY \d+ \d+ [\d.]+ END")
    launched, pid, began = read_ready(str(terminal.after))
    stat = proc.read_stat(pid)
    assert stat is not None
    assert stat.session == launched != proc.read_stat(terminal.pid).session  # type: ignore[union-attr]
    assert not any("pts" in proc.read_link(pid, f"fd/{number}") for number in (0, 1, 2))
    if how == "ctrl-c":
        terminal.sendintr()
        terminal.expect("KeyboardInterrupt")
    elif how == "kill":
        os.killpg(terminal.pid, signal.SIGKILL)
    terminal.close(force=True)
    assert serves(deployment, pid, began)


def test_a_caller_that_captures_the_tools_output_does_not_wait_for_the_server(
    server: tuple[Deployment, list[str]]
) -> None:
    deployment, tool = server
    answer = subprocess.run(
        [*tool, "0"], capture_output=True, text=True, timeout=PATIENCE_S, env=tool_environment(), check=True
    )
    _, pid, began = read_ready(answer.stdout)
    assert serves(deployment, pid, began)


def tool_environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
