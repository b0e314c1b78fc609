"""Servers that are not as they should be: each is told in its own words, and runs (again) at the end."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable

import pytest

from kwdb_build.errors import ExitCode
from kwdb_build.server import proc
from tests.integration.tool import Tool, clean_environment
from tests.minikwdb.instance import ORDERS, READINGS, Instance

MakeServer = Callable[..., Instance]
ROWS = (ORDERS, READINGS)
SETTLE = {"KWDB_BUILD_SETTLE_S": "0"}
pytestmark = pytest.mark.engine


@pytest.mark.slow
def test_a_server_that_is_gone_when_it_is_to_be_stopped(tool: Tool, make_server: MakeServer) -> None:
    server = make_server("V1.0.0")
    running = tool.begin("upgrade", "V1.1.0", "--store", str(server.store), "-y", KWDB_BUILD_FAILPOINT="stop:hold")
    tool.await_intent("stop")
    server.kill()
    _, err = running.communicate(timeout=120)
    assert running.returncode == ExitCode.OK, err
    assert "V1.1.0" in server.value("SELECT version()")
    assert server.counts() == ROWS


@pytest.mark.parametrize("what", ["bin/kwbase", "bin"])
def test_a_program_or_a_directory_that_is_gone(tool: Tool, make_server: MakeServer, what: str) -> None:
    server = make_server("V1.0.0")
    pid = server.pid()
    path = server.root / what
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    answer = tool("restart", "--store", str(server.store), "-y")
    assert answer.code == ExitCode.START, answer.err
    assert "was removed" in answer.err or "was replaced or removed" in answer.err
    assert server.pid() == pid
    assert server.counts() == ROWS


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="takes a right away from root, with setpriv"
)
def test_limits_that_cannot_be_given_again(tool: Tool, make_server: MakeServer) -> None:
    without = ("setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource")
    server = make_server("V1.0.0", prefix=("prlimit", "--nofile=2000:2000", *without), background=False)
    pid = server.pid()
    done = subprocess.run(
        ["prlimit", "--nofile=500:500", *without, *tool.argv("restart", "--store", str(server.store), "-y")],
        capture_output=True, text=True, check=False, env=clean_environment({}), timeout=120,
    )
    assert done.returncode == ExitCode.START, done.stderr
    assert "limit nofile was soft 2000, hard 2000, but this user may only go up to 500" in done.stderr
    assert server.pid() == pid
    assert server.counts() == ROWS


def test_a_recovery_that_the_environment_forces_is_left_out_of_a_restart(tool: Tool, make_server: MakeServer) -> None:
    server = make_server("V1.0.0", environment={"KW_FORCE_RECOVER": "true"})
    answer = tool("restart", "--store", str(server.store), "-y", **SETTLE)
    assert answer.code == ExitCode.OK, answer.err
    assert "KW_FORCE_RECOVER: the server was started with it; it is left out" in answer.err
    pid = server.pid()
    assert pid is not None
    assert "KW_FORCE_RECOVER" not in proc.parse_environ(proc.read_bytes(pid, "environ")).variables
    assert server.counts() == ROWS
