"""`kwdb-build restart` as a user runs it: its own measure, its second look, and servers that are down."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from kwdb_build import sql
from kwdb_build.errors import ExitCode
from kwdb_build.model import Address
from kwdb_build.server import logs, proc, watch
from tests.integration.serverbox import PATIENCE_S, surroundings
from tests.integration.tool import Answer, Tool
from tests.minikwdb.instance import ORDERS, READINGS, Instance

MakeServer = Callable[..., Instance]
ROWS = (ORDERS, READINGS)
SETTLE = {"KWDB_BUILD_SETTLE_S": "0.3"}
pytestmark = pytest.mark.engine


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_outside_client_sees_the_silence_and_its_end(make_server: MakeServer) -> None:
    server = make_server("V1.0.0", rows=False)
    login = sql.Login(address=Address(host="127.0.0.1", port=server.sql_port))
    with watch.begin(login) as client:
        assert client.answered_after(0.0, wait_s=PATIENCE_S) is not None
        server.stop()
        down = time.time()
        assert client.answered_after(down, wait_s=0.5) is None
        server.start()
        up = time.time()
        again = client.answered_after(down, wait_s=PATIENCE_S)
        assert again is not None
        assert down < again < up + PATIENCE_S
        assert [change.answers for change in client.changes] == [True, False, True]
        pid = client.pid
    assert not psutil.pid_exists(pid)


def test_the_client_ends_with_who_began_it(make_server: MakeServer) -> None:
    server = make_server("V1.0.0", rows=False)
    client = watch.begin(sql.Login(address=Address(host="127.0.0.1", port=server.sql_port)))
    assert client.answered_after(0.0, wait_s=PATIENCE_S) is not None
    os.close(client.to_client)  # as the kernel does when we are killed
    until(lambda: psutil.Process(client.pid).status() == psutil.STATUS_ZOMBIE)
    client.to_client = -1
    client.close()


def test_a_restart_tells_its_downtime_with_its_parts(tool: Tool, make_server: MakeServer) -> None:
    server = make_server("V1.0.0")
    pid = server.pid()
    assert pid is not None
    before = surroundings(pid)
    answer = tool("restart", "--store", str(server.store), "-y", "--json", **SETTLE)
    assert answer.code == ExitCode.OK, answer.err
    found = answer.json["restart"]
    assert surroundings(found["pid"]) == before
    assert found["pid"] != pid
    assert list(found["parts"]) == ["stop", "start", "first answer"]
    assert 0 < sum(found["parts"].values()) <= found["downtime_s"] + 0.01
    assert "look again" in answer.err
    assert server.counts() == ROWS


@pytest.mark.parametrize("fault", ["die-after:1", "lose-ts-row"])
def test_a_server_that_is_not_well_some_seconds_later_is_no_success(
    tool: Tool, make_server: MakeServer, tmp_path: Path, fault: str
) -> None:
    """The environment of the running process cannot be changed: a capture in a file can."""
    server = make_server("V1.0.0")
    kept = tmp_path / "capture.json"
    assert tool("capture", "--store", str(server.store), "-o", str(kept)).code == ExitCode.OK
    server.stop()
    data = json.loads(kept.read_text())
    data["deployment"]["start"]["environ"]["MINIKWDB_FAULT"] = fault
    kept.write_text(json.dumps(data))
    answer = tool("restart", "--capture", str(kept), "-y", KWDB_BUILD_SETTLE_S="3")
    if fault.startswith("die"):
        assert answer.code == ExitCode.START, answer.err
        assert "died after it had answered" in answer.err or "ended before it was ready" in answer.err
    else:
        assert answer.code == ExitCode.OK, answer.err  # one row less is for the verification of an upgrade


def test_a_server_that_is_down_comes_up_from_a_capture(tool: Tool, make_server: MakeServer, tmp_path: Path) -> None:
    server = make_server("V1.0.0", background=False, environment={"KW_SECRET": "hunter2"})
    pid = server.pid()
    assert pid is not None
    before = surroundings(pid)
    kept = tmp_path / "capture.json"
    assert tool("capture", "--store", str(server.store), "-o", str(kept)).code == ExitCode.OK
    running = tool("restart", "--capture", str(kept), "--pid", "1")
    assert running.code == ExitCode.USAGE
    server.stop()
    answer = tool("restart", "--capture", str(kept), "-y", "--json", **SETTLE)
    assert answer.code == ExitCode.OK, answer.err
    assert "hunter2" not in answer.out + answer.err
    assert answer.json["restart"]["downtime_s"] == -1
    assert surroundings(answer.json["restart"]["pid"]) == before
    assert server.counts() == ROWS
    again = tool("restart", "--capture", str(kept), "-y", **SETTLE)
    assert again.code == ExitCode.REFUSED
    assert "is in use" in again.err


def test_a_server_that_is_down_is_described_by_hand(tool: Tool, make_server: MakeServer, tmp_path: Path) -> None:
    server = make_server("V1.0.0", background=False)
    server.stop()
    description = tmp_path / "server.toml"
    words = ", ".join(json.dumps(word) for word in server.argv())
    description.write_text(
        f'command = [{words}]\ndirectory = "{server.root / "bin"}"\numask = "022"\nstdout = "{server.root / "output"}"\n'
        '[environment]\nLD_LIBRARY_PATH = "../lib"\nKW_VGROUP_NUM = "2"\n[limits]\nnofile = 4000\n'
    )
    answer = tool("restart", "--capture", str(description), "-y", "--json", **SETTLE)
    assert answer.code == ExitCode.OK, answer.err
    pid = answer.json["restart"]["pid"]
    assert proc.parse_limits(proc.read_text(pid, "limits"))["nofile"] == (4000, 4000)
    assert proc.read_link(pid, "fd/1") == str(server.root / "output")
    assert server.counts() == ROWS


@pytest.mark.parametrize(("text", "words"), [
    ("command = [", "cannot read"), ("comand = []", "did you mean command"), ('command = ["a"]', "KeyError"),
    ('command = ["./none", "start"]\ndirectory = "/"', "lead to kwbase"),
])
def test_a_wrong_description(tool: Tool, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "server.toml").write_text(text)
    answer = tool("restart", "--capture", str(tmp_path / "server.toml"), "-y")
    assert answer.code == ExitCode.USAGE
    assert words in answer.err


def test_a_store_that_is_not_mounted_is_no_success(tool: Tool, make_server: MakeServer, tmp_path: Path) -> None:
    server = make_server("V1.0.0")
    kept = tmp_path / "capture.json"
    assert tool("capture", "--store", str(server.store), "-o", str(kept)).code == ExitCode.OK
    server.stop()
    server.store.rename(tmp_path / "elsewhere")
    gone = tool("restart", "--capture", str(kept), "-y", **SETTLE)
    assert gone.code == ExitCode.REFUSED
    assert "is a file system not mounted?" in gone.err
    server.store.mkdir()
    empty = tool("restart", "--capture", str(kept), "-y", **SETTLE)
    assert empty.code == ExitCode.START, empty.err
    assert "not on its old store" in empty.err
    server.kill()
    (tmp_path / "elsewhere").rename(tmp_path / "back")


def hinted(answer: Answer) -> list[str]:
    """The words after `kwdb-build` of the command that a failed restart names."""
    found = re.search(r"`kwdb-build (restart --capture .+?)`", answer.err)
    assert found, answer.err
    return shlex.split(found[1])


def log_has(server: Instance, pid: int, words: str) -> bool:
    """Whether one process has written this into its own log."""
    return any(words in path.read_text() for path in (server.store / "logs").glob(f"kwbase.*.{pid:06}.log"))


def test_a_restart_that_fails_names_the_command_that_works(tool: Tool, make_server: MakeServer) -> None:
    server = make_server("V1.0.0", environment={"MINIKWDB_FAULT": "slow-drain:1"}, name="it's \"odd\" 目录")
    pid = server.pid()
    assert pid is not None
    running = tool.begin("restart", "--store", str(server.store), "-y", **SETTLE)
    until(lambda: log_has(server, pid, logs.DRAINING))
    with socket.create_server(("127.0.0.1", server.sql_port)):
        _, err = running.communicate(timeout=120)
    assert running.returncode == ExitCode.START, err
    assert f"pid {os.getpid()}" in err, "it names who took the port"
    assert "the server is down" in err
    assert "rollback" not in err
    verb, *words = hinted(Answer(code=0, out="", err=err))
    assert tool(verb, *words, "-y", **SETTLE).code == ExitCode.OK
    assert server.counts() == ROWS


def test_a_restart_that_gave_up_waiting_is_finished_without_a_second_signal(
    tool: Tool, make_server: MakeServer
) -> None:
    server = make_server("V1.0.0", environment={"MINIKWDB_FAULT": "slow-drain:5"})
    pid = server.pid()
    assert pid is not None
    answer = tool("restart", "--store", str(server.store), "-y", "--stop-timeout", "1")
    assert answer.code == ExitCode.NOT_STOPPED, answer.err
    assert proc.read_stat(pid) is not None
    verb, *words = hinted(answer)
    again = tool(verb, *words, "-y", **SETTLE)
    assert again.code == ExitCode.OK, again.err
    assert "wait for the end of its drain" in again.err
    assert log_has(server, pid, logs.DRAINED), "a second SIGTERM ends it at once"
    assert server.pid() not in {pid, None}
    assert server.counts() == ROWS


@pytest.mark.parametrize("times", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_ctrl_c_in_the_middle_of_a_restart(tool: Tool, make_server: MakeServer, times: int) -> None:
    server = make_server("V1.0.0", environment={"MINIKWDB_FAULT": "slow-drain:2"})
    pid = server.pid()
    assert pid is not None
    running = tool.begin("restart", "--store", str(server.store), "-y", **SETTLE)
    until(lambda: log_has(server, pid, logs.DRAINING))
    for _ in range(times):
        os.killpg(running.pid, signal.SIGINT)
        time.sleep(0.3)
    _, err = running.communicate(timeout=120)
    if times == 1:
        assert running.returncode == ExitCode.OK, err
        assert "finishing the restart" in err
    else:
        assert running.returncode == ExitCode.INTERRUPTED, err
        verb, *words = hinted(Answer(code=0, out="", err=err))
        assert tool(verb, *words, "-y", **SETTLE).code == ExitCode.OK
    assert log_has(server, pid, logs.DRAINED)
    assert server.counts() == ROWS


@pytest.mark.slow
def test_ctrl_c_while_the_end_of_a_drain_is_waited_for(tool: Tool, make_server: MakeServer) -> None:
    server = make_server("V1.0.0", environment={"MINIKWDB_FAULT": "slow-drain:15"})
    pid = server.pid()
    assert pid is not None
    answer = tool("restart", "--store", str(server.store), "-y", "--stop-timeout", "1")
    assert answer.code == ExitCode.NOT_STOPPED, answer.err
    verb, *words = hinted(answer)
    running = tool.begin(verb, *words, "-y", **SETTLE)
    assert running.stderr is not None
    for line in running.stderr:
        if "wait for the end of its drain" in line:
            break
    for _ in range(2):
        os.killpg(running.pid, signal.SIGINT)
        time.sleep(0.3)
    _, err = running.communicate(timeout=120)
    assert running.returncode == ExitCode.INTERRUPTED, err
    assert f"pid {pid} (kwbase) has the store open" in err
    verb, *words = hinted(Answer(code=0, out="", err=err))
    assert tool(verb, *words, "-y", **SETTLE).code == ExitCode.OK
    assert log_has(server, pid, logs.DRAINED)
    assert server.counts() == ROWS


def test_a_port_that_somebody_else_took(tool: Tool, make_server: MakeServer, tmp_path: Path) -> None:
    server = make_server("V1.0.0")
    kept = tmp_path / "capture.json"
    assert tool("capture", "--store", str(server.store), "-o", str(kept)).code == ExitCode.OK
    server.stop()
    with socket.create_server(("127.0.0.1", server.sql_port)):
        answer = tool("restart", "--capture", str(kept), "-y", **SETTLE)
    assert answer.code == ExitCode.START
    assert f"pid {os.getpid()}" in answer.err
    assert "the server is down" in answer.err
    assert hinted(answer) == ["restart", "--capture", str(kept)]
