"""kill -9 of the tool at every journal boundary, then resume or rollback; Ctrl-C and a closed terminal in each step."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import psutil
import pytest

from kwdb_build.errors import ExitCode
from kwdb_build.upgrade.session import STEPS
from tests.integration.tool import Tool
from tests.minikwdb.instance import ORDERS, READINGS, Instance

ROWS = (ORDERS, READINGS)
MakeServer = Callable[..., Instance]
SAFE = [step.name for step in STEPS if step.safe]
RISKY = [step.name for step in STEPS if not step.safe]
MOMENTS = ("before", "after")

pytestmark = pytest.mark.engine


def test_the_matrix_is_whole() -> None:
    assert SAFE + RISKY == [
        "capture", "fetch", "gate", "check", "build", "validate", "trial", "stage", "baseline", "precopy",
        "stop", "backup", "switch", "start", "verify", "keep",
    ]


def killed(tool: Tool, server: Instance, ref: str, point: str) -> None:
    answer = tool.upgrade(server, ref, KWDB_BUILD_FAILPOINT=point)
    assert answer.code == -signal.SIGKILL, answer.err


def leftovers(server: Instance) -> list[str]:
    """Staged files in the installation that no run will ever rename."""
    return [str(path) for path in server.root.glob("*/.*.kwdb-build-new")]


def test_killed_before_the_stop_nothing_happened(tool: Tool, make_server: MakeServer) -> None:
    server = make_server("V1.0.0")
    pid = server.pid()
    for step in SAFE:
        for moment in MOMENTS:
            killed(tool, server, "V1.1.0", f"{step}:{moment}")
            assert server.pid() == pid, step
    assert server.counts() == ROWS
    assert tool.upgrade(server, "V1.1.0").code == ExitCode.OK
    assert server.counts() == ROWS
    assert leftovers(server) == []


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("step", RISKY)
def test_killed_and_resumed(tool: Tool, make_server: MakeServer, step: str, moment: str) -> None:
    server = make_server("V1.0.0")
    killed(tool, server, "V1.1.0", f"{step}:{moment}")
    refused = tool.upgrade(server, "V1.1.0")
    assert refused.code == ExitCode.NEEDS_RESUME, "a new run must not start on top of a half one"
    assert "resume" in refused.err
    assert tool("status", "--json").json["status"]["open"]
    answer = tool("resume")
    assert answer.code == ExitCode.OK, answer.err
    assert "V1.1.0" in server.value("SELECT version()")
    assert server.counts() == ROWS
    assert leftovers(server) == []


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("step", RISKY)
def test_killed_and_rolled_back(tool: Tool, make_server: MakeServer, step: str, moment: str) -> None:
    server = make_server("V1.0.0")
    killed(tool, server, "V1.1.0", f"{step}:{moment}")
    answer = tool("rollback", "-y")
    assert answer.code == ExitCode.OK, answer.err
    assert "V1.0.0" in server.value("SELECT version()")
    assert server.counts() == ROWS
    assert not tool("status", "--json").json["status"]["open"]
    assert leftovers(server) == []


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("step", ["verify", "start", "switch", "backup", "stop"])
def test_killed_on_the_way_back(tool: Tool, make_server: MakeServer, step: str, moment: str) -> None:
    server = make_server("V1.0.0")
    killed(tool, server, "V1.3.0", f"undo-{step}:{moment}")
    answer = tool("resume")
    assert answer.code == ExitCode.ROLLED_BACK, answer.err
    assert "V1.0.0" in server.value("SELECT version()")
    assert server.counts() == ROWS


@pytest.mark.parametrize("step", SAFE)
def test_ctrl_c_before_the_stop_changes_nothing(tool: Tool, make_server: MakeServer, step: str) -> None:
    server = make_server("V1.0.0")
    pid = server.pid()
    running = tool.begin("upgrade", "V1.1.0", "--store", str(server.store), "-y", KWDB_BUILD_FAILPOINT=f"{step}:hold")
    tool.await_intent(step)
    os.killpg(running.pid, signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == ExitCode.INTERRUPTED, err
    assert server.pid() == pid
    assert server.counts() == ROWS
    assert not tool("status", "--json").json["status"]["open"]
    assert leftovers(server) == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("step", ["stop", "switch", "start", "verify"])
def test_one_signal_after_the_stop_goes_back(
    tool: Tool, make_server: MakeServer, step: str, signum: signal.Signals
) -> None:
    server = make_server("V1.0.0")
    running = tool.begin("upgrade", "V1.1.0", "--store", str(server.store), "-y", KWDB_BUILD_FAILPOINT=f"{step}:hold")
    tool.await_intent(step)
    os.killpg(running.pid, signum)
    _, err = running.communicate(timeout=120)
    assert running.returncode == ExitCode.ROLLED_BACK, err
    assert "V1.0.0" in server.value("SELECT version()")
    assert server.counts() == ROWS


def test_second_ctrl_c_leaves_a_run_to_resume(tool: Tool, make_server: MakeServer) -> None:
    server = make_server("V1.0.0")
    running = tool.begin("upgrade", "V1.1.0", "--store", str(server.store), "-y", KWDB_BUILD_FAILPOINT="switch:hold")
    tool.await_intent("switch")
    for _ in range(2):
        os.killpg(running.pid, signal.SIGINT)
        psutil.Process(running.pid).status()
        signal.sigtimedwait([], 0.5)
    _, err = running.communicate(timeout=60)
    assert running.returncode == ExitCode.NEEDS_RESUME, err
    assert tool("resume").code == ExitCode.OK
    assert server.counts() == ROWS


def test_the_server_outlives_the_session_of_the_tool(tool: Tool, make_server: MakeServer) -> None:
    server = make_server("V1.0.0")
    running = tool.begin("upgrade", "V1.1.0", "--store", str(server.store), "-y")
    _, err = running.communicate(timeout=120)
    assert running.returncode == ExitCode.OK, err
    pid = server.pid()
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.killpg(running.pid, signal.SIGKILL)
    assert server.pid() == pid
    assert server.counts() == ROWS
