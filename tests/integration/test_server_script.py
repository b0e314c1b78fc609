"""Servers under a supervisor that kwdb-build does not know how to ask: the user's own commands are the way out."""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kwdb_build.errors import ExitCode
from kwdb_build.server import capture, script
from tests.integration.serverbox import PATIENCE_S, QUIET
from tests.integration.tool import Answer, Tool
from tests.minikwdb.instance import ORDERS, READINGS, Instance

pytestmark = pytest.mark.engine
ROWS = (ORDERS, READINGS)
# It starts its child again whenever that ends, unless told otherwise: what a supervisor is for.
SUPERVISOR = """#!/bin/sh
cd {root}/bin || exit 1
export LD_LIBRARY_PATH=../lib KW_VGROUP_NUM=2
while :; do
    if [ ! -e ../down ]; then
        {command} & echo $! >../pid.new; mv ../pid.new ../pid; wait $!
    fi
    sleep 0.05
done
"""
STOP = """#!/bin/sh
echo "stopping what $0 is for"
[ ! -e {root}/stop-fails ] || exit 7
touch {root}/down; kill "$(cat {root}/pid)"; exit 0
"""
START = """#!/bin/sh
echo "starting what $0 is for"
if [ -e {root}/start-fails ]; then rm {root}/start-fails; echo "out of luck" >&2; exit 8; fi
rm -f {root}/down
"""


@dataclass(frozen=True, kw_only=True)
class Supervised:
    """A server below a supervisor, and its commands."""

    instance: Instance
    tool: Tool
    stop: str
    start: str

    def run(self, verb: str, *words: str, commands: bool = True) -> Answer:
        both = ["--stop-cmd", self.stop, "--start-cmd", self.start] if commands else []
        return self.tool(verb, *words, "--store", str(self.instance.store), "-y", *both)


@pytest.fixture
def supervised(install_server: Callable[..., Instance], tool: Tool) -> Iterator[Supervised]:
    """A running one with rows."""
    instance = install_server(name="a place", background=False)
    for name, text in (("supervisord", SUPERVISOR), ("stop it", STOP), ("start it", START)):
        path = instance.root / name
        path.write_text(text.format(root=shlex.quote(str(instance.root)), command=shlex.join(instance.argv())))
        path.chmod(0o755)
    with subprocess.Popen([instance.root / "supervisord"], start_new_session=True, stderr=subprocess.DEVNULL) as parent:
        try:
            instance.connect().close()
            instance.write_rows()
            yield Supervised(
                instance=instance, tool=tool, stop=shlex.join([str(instance.root / "stop it")]),
                start=shlex.join([str(instance.root / "start it")]),
            )
        finally:
            os.kill(parent.pid, signal.SIGKILL)


def test_without_commands_and_with_one_of_them_it_is_refused(supervised: Supervised) -> None:
    server = supervised.instance
    pid = server.pid()
    plain = supervised.run("restart", commands=False)
    assert plain.code == ExitCode.REFUSED
    assert "run by supervisord" in plain.err
    assert "--stop-cmd" in plain.err
    half = supervised.run("restart", "--start-cmd", supervised.start, commands=False)
    assert half.code == ExitCode.REFUSED
    assert "only --start-cmd was given" in half.err
    unknown = supervised.run("restart", "--start-cmd", "/no/such start", "--stop-cmd", supervised.stop, commands=False)
    assert unknown.code == ExitCode.REFUSED
    assert "/no/such" in unknown.err
    quoted = supervised.run("restart", "--start-cmd", "it's", "--stop-cmd", supervised.stop, commands=False)
    assert quoted.code == ExitCode.USAGE
    assert server.pid() == pid


def test_an_upgrade_by_commands_and_the_way_back(supervised: Supervised) -> None:
    server = supervised.instance
    answer = supervised.run("upgrade", "V1.1.0")
    assert answer.code == ExitCode.OK, answer.err
    assert "V1.1.0" in server.value("SELECT version()")
    assert server.counts() == ROWS
    run = supervised.tool.newest_run()
    assert "stopping what" in (run / "logs" / "stop-cmd.log").read_text(encoding="utf-8")
    assert (run / "logs" / "start-cmd.log").stat().st_mode & 0o077 == 0
    assert supervised.tool("rollback", "-y").code == ExitCode.OK
    assert "V1.0.0" in server.value("SELECT version()")
    assert server.counts() == ROWS


@pytest.mark.parametrize(("ref", "fails", "words"), [
    ("V1.2.0", "", "start failed"),
    ("V1.1.0", "stop-fails", "failed with exit code 7"), ("V1.1.0", "start-fails", "out of luck"),
])
def test_what_fails_is_taken_back_with_the_same_commands(
    supervised: Supervised, ref: str, fails: str, words: str
) -> None:
    server = supervised.instance
    if fails:
        (server.root / fails).touch()
    answer = supervised.tool(
        "upgrade", ref, "--store", str(server.store), "-y", "--stop-cmd", supervised.stop, "--start-cmd",
        supervised.start, "--start-timeout", "4", *(["--no-trial"] if ref == "V1.2.0" else []),
    )
    assert answer.code == ExitCode.ROLLED_BACK, answer.err
    assert words in answer.err
    assert "V1.0.0" in server.value("SELECT version()")
    assert server.counts() == ROWS


def test_a_start_command_that_does_not_end_is_ended(supervised: Supervised, tmp_path: Path) -> None:
    server = supervised.instance
    endless = tmp_path / "endless"
    endless.write_text(f"if [ ! -e {tmp_path}/once ]; then touch {tmp_path}/once; sleep 600; fi\nexec {supervised.start}\n")
    answer = supervised.tool(
        "upgrade", "V1.1.0", "--store", str(server.store), "-y", "--stop-cmd", supervised.stop, "--start-cmd",
        f"sh {endless}", "--start-timeout", "4",
    )
    assert answer.code == ExitCode.ROLLED_BACK, answer.err
    assert "did not end within 4 s" in answer.err
    assert server.counts() == ROWS


@pytest.mark.parametrize("signals", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_failing_stop_command_of_a_failed_start(
    make_server: Callable[..., Instance], tmp_path: Path, *, signals: bool
) -> None:
    """It has told the server, whose drain a second SIGTERM would cut short; or it has not, and nobody else will."""
    server = make_server("V1.0.0", environment={"MINIKWDB_FAULT": "slow-drain:7"})
    failed = capture.capture(server.pid() or 0)
    words = ("sh", "-c", f"{f'kill {failed.pid}; ' if signals else ''}exit 9")
    keeper = script.Script(
        deployment=dataclasses.replace(failed, pid=1), commands=script.Commands(stop=words, log_dir=tmp_path)
    )
    assert keeper.stop(failed, timeout_s=PATIENCE_S, progress=QUIET).drained
    server.start()
    assert server.counts() == ROWS


def test_no_place_for_logs_while_the_server_is_down(supervised: Supervised) -> None:
    server, tool = supervised.instance, supervised.tool
    running = tool.begin(
        "upgrade", "V1.1.0", "--store", str(server.store), "-y", "--stop-cmd", supervised.stop, "--start-cmd",
        supervised.start, KWDB_BUILD_FAILPOINT="switch:hold",
    )
    tool.await_intent("switch")
    shutil.rmtree(tool.home)
    tool.home.touch()  # else the logs get a new one
    _, err = running.communicate(timeout=120)
    assert running.returncode == ExitCode.ROLLBACK_FAILED, err
    assert "Traceback" not in err
    assert err.count("the start command has no log") == 1
    assert "V1.0.0 was started again and runs" in err
    assert "V1.0.0" in server.value("SELECT version()")
    assert server.counts() == ROWS
