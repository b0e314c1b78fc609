"""The way back of an upgrade without a backup: what the new version has served stays, so it is never cut short."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil
import pytest

from kwdb_build.errors import ExitCode
from kwdb_build.files import read_json, write_json
from kwdb_build.model import Artifact
from kwdb_build.server import logs, proc
from tests.integration.serverbox import PATIENCE_S
from tests.integration.tool import Tool
from tests.minikwdb.instance import ORDERS, READINGS, Instance

MakeServer = Callable[..., Instance]
ROWS = (ORDERS, READINGS)
pytestmark = pytest.mark.engine


@pytest.fixture
def faults(mini_build: Callable[[str], Artifact]) -> str:
    """The variable for faults of `patched`, which has the data format of V1.1.0: there is a way back without data."""
    return "MINIKWDB_FAULT_" + str(mini_build("patched").version).replace(".", "_")


def log_of(server: Instance, pid: int) -> str:
    """What one process wrote into its own log."""
    found = [path for path in (server.store / "logs").glob("kwbase.*.log") if f".{pid:06}." in path.name]
    assert len(found) == 1, list((server.store / "logs").iterdir())
    return found[0].read_text(errors="replace")


@pytest.mark.parametrize(
    ("how", "again"), [pytest.param("in time", "resume", marks=pytest.mark.slow), ("killed", "rollback")]
)
def test_a_new_version_that_drains_long_is_told_once_and_waited_for(
    tool: Tool, make_server: MakeServer, faults: str, how: str, again: str
) -> None:
    server = make_server("V1.1.0", environment={faults: "wrong-answer,slow-drain:6"})
    words = ["patched", "--allow-same", "--store", str(server.store), "-y", "--no-backup", "--no-trial"]
    if how == "in time":
        answer = tool("upgrade", *words, "--stop-timeout", "2")
        assert answer.code == ExitCode.NOT_STOPPED, answer.err
        assert f"{again} {tool.newest_run().name}" in answer.err
    else:
        running = tool.begin("upgrade", *words)
        tool.await_intent("start", "undo")
        deadline = time.monotonic() + PATIENCE_S
        while not (tool.newest_run() / "told.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(1)
        running.kill()
        running.communicate()
    new = read_json(tool.newest_run() / "told.json")["pid"]
    assert psutil.pid_exists(new), "it was not killed"
    answer = tool(again, *(["-y"] if again == "rollback" else []), "--stop-timeout", "60")
    assert answer.code == (ExitCode.OK if again == "rollback" else ExitCode.ROLLED_BACK), answer.err
    said = log_of(server, new)
    assert said.count(logs.DRAINING) == 1
    assert logs.DRAINED in said, "no second SIGTERM cut its drain short"
    assert "V1.1.0 " in server.value("SELECT version()")
    assert server.counts() == ROWS


def test_a_new_version_that_ignores_sigterm_is_killed_with_consent_only(
    tool: Tool, make_server: MakeServer, faults: str
) -> None:
    server = make_server("V1.1.0", environment={faults: "wrong-answer,ignore-sigterm"})
    answer = tool.upgrade(server, "patched", "--allow-same", "--no-backup", "--no-trial", "--stop-timeout", "1")
    assert answer.code == ExitCode.NOT_STOPPED, answer.err
    assert "--force-stop-after" in answer.err
    new = server.pid()
    assert new is not None
    agreed = tool("rollback", "-y", "--force-stop-after", "1")
    assert agreed.code == ExitCode.OK, agreed.err
    assert "killing it, as agreed" in agreed.err
    assert not psutil.pid_exists(new)
    assert "V1.1.0 " in server.value("SELECT version()")


def test_a_hanging_new_version_that_was_only_about_to_be_told(
    tool: Tool, make_server: MakeServer, faults: str
) -> None:
    """The tool was killed between its note and the signal."""
    server = make_server("V1.1.0", environment={faults: "hang-before-ready"})
    answer = tool.upgrade(
        server, "patched", "--allow-same", "--no-backup", "--no-trial", "--start-timeout", "3",
        KWDB_BUILD_FAILPOINT="undo-start:before",
    )
    assert answer.code == -9, answer.err
    new = server.pid()
    assert new is not None
    write_json(tool.newest_run() / "told.json", {"pid": new, "started_at": proc.start_time(new)})
    back = tool("rollback", "-y", "--stop-timeout", "60")
    assert back.code == ExitCode.OK, back.err
    assert log_of(server, new).count(logs.DRAINING) == 1
    assert server.counts() == ROWS


@pytest.mark.slow
def test_an_old_version_that_cannot_read_the_data_is_told_with_the_way_out(tool: Tool, make_server: MakeServer) -> None:
    server = make_server("V1.0.0", environment={"MINIKWDB_FAULT_V1_1_0": "wrong-answer"})
    answer = tool.upgrade(server, "V1.1.0", "--no-backup", "--no-trial")
    assert answer.code == ExitCode.ROLLBACK_FAILED, answer.err
    assert "died" in answer.err
    assert "there is no backup" in answer.err
    assert "the data of before" not in answer.err


def test_a_rollback_waits_for_the_old_server_that_still_drains(tool: Tool, make_server: MakeServer) -> None:
    server = make_server("V1.0.0", environment={"MINIKWDB_FAULT_V1_0_0": "slow-drain:6"})
    old = server.pid()
    assert old is not None
    answer = tool.upgrade(server, "V1.1.0", "--stop-timeout", "2")
    assert answer.code == ExitCode.NOT_STOPPED, answer.err
    back = tool("rollback", "-y", "--stop-timeout", "60")
    assert back.code == ExitCode.OK, back.err
    assert logs.DRAINED in log_of(server, old)
    assert server.pid() not in {old, None}
    assert server.counts() == ROWS
