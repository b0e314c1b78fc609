"""What is found out before the old server stops: by the trial of the new version and by the check of the command."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from kwdb_build.errors import ExitCode
from kwdb_build.files import read_json
from kwdb_build.server import discover, proc
from tests.integration.certs import certificates
from tests.integration.tool import Tool
from tests.minikwdb.instance import ORDERS, READINGS, Instance
from tests.ports import free_port

MakeServer = Callable[..., Instance]
ROWS = (ORDERS, READINGS)
NOBODY = 65534
PATIENCE_S = 60.0
pytestmark = pytest.mark.engine


@pytest.fixture
def scratch_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where trials make their directories in this test; must be empty at its end."""
    with tempfile.TemporaryDirectory(prefix="kwdb-trials-", dir="/tmp") as place:
        Path(place).chmod(0o1777)
        monkeypatch.setenv("TMPDIR", place)
        yield Path(place)
        assert list(Path(place).glob("kwdb-build-trial-*")) == []


def untouched(server: Instance, pid: int | None) -> None:
    """The old server never noticed."""
    assert server.pid() == pid
    assert server.counts() == ROWS


@pytest.mark.usefixtures("scratch_place")
def test_a_version_that_does_not_start_costs_no_downtime(tool: Tool, make_server: MakeServer) -> None:
    server = make_server("V1.0.0")
    pid = server.pid()
    answer = tool.upgrade(server, "V1.2.0", "--json")
    assert answer.code == ExitCode.TRIAL, answer.err
    error = answer.json["error"]
    assert error["reference"] == "trial"
    assert "the metadata of this release is incomplete" in error["context"]
    assert "--no-trial" in error["hint"]
    assert Path(error["log"]).is_file()
    assert read_json(tool.newest_run() / "result.json")["outcome"] == "failed"
    untouched(server, pid)


@pytest.mark.usefixtures("scratch_place")
def test_one_that_dies_or_answers_wrongly_fails_its_trial(tool: Tool, make_server: MakeServer) -> None:
    server = make_server("V1.0.0", environment={"MINIKWDB_FAULT_V1_1_0": "hang-before-ready,ignore-sigterm"})
    pid = server.pid()
    answer = tool.upgrade(server, "V1.1.0", "--start-timeout", "3")
    assert answer.code == ExitCode.TRIAL, answer.err
    assert "gave up after 3 s" in answer.err
    untouched(server, pid)
    assert not trials()


@pytest.mark.skipif(shutil.which("openssl") is None or os.geteuid() != 0, reason="needs openssl, and root")
def test_everything_that_would_touch_the_real_server_is_replaced(
    tool: Tool, install_server: Callable[..., Instance], scratch_place: Path
) -> None:
    """A secure server of another user, with a directory named in its environment and its files in odd places."""
    real = scratch_place / "real ä"
    real.mkdir()
    certificates(real / "certs")
    server = install_server(root=real, name="unused", store_name="the store", background=False, uid=NOBODY)
    (real / "data root").mkdir()
    server.certs = real / "certs"
    server.environment = {"KWDB_DATA_ROOT": str(real / "data root")}
    server.flags = [f"--pid-file={real / 'server.pid'}", f"--listening-url-file={real / 'url'}", f"--log-dir={real / 'l'}"]
    for path in [real, *real.rglob("*")]:
        os.chown(path, NOBODY, NOBODY)
    pid = server.start()
    server.write_rows()
    before = {path: path.stat().st_mtime_ns for path in (real / "server.pid", real / "url", real / "data root")}
    logs = len(list((real / "l").iterdir()))
    # Held right after the trial's step was written down as begun: long enough to look at the process.
    answer = tool.upgrade(server, "V1.1.0", KWDB_BUILD_FAILPOINT="stage:before")
    assert answer.code == -signal.SIGKILL, answer.err
    assert "written and read, both kinds of table" in answer.err
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list((real / "l").iterdir())) == logs
    untouched(server, pid)
    server.stop()


def expire(path: Path) -> None:
    """Give a certificate file a last day that is over. Its signature is wrong then, which only a start would notice."""
    head, begins, rest = ssl.PEM_cert_to_DER_cert(path.read_text()).partition(b"\x17\x0d")
    first, ends, tail = rest.partition(b"\x17\x0d")
    path.write_text(ssl.DER_cert_to_PEM_cert(head + begins + first + ends + b"200102000000Z" + tail[13:]))


def trials() -> list[psutil.Process]:
    """Processes of trials, anybody's."""
    return [
        one for one in psutil.process_iter(["cmdline", "status"])
        if any("kwdb-build-trial-" in word for word in one.info["cmdline"] or ())
        and one.info["status"] != psutil.STATUS_ZOMBIE
    ]


@pytest.mark.usefixtures("scratch_place")
def test_a_trial_that_outlives_a_killed_run_is_no_server_and_is_ended(tool: Tool, make_server: MakeServer) -> None:
    server = make_server("V1.0.0", environment={"MINIKWDB_FAULT_V1_1_0": "hang-before-ready"})
    pid = server.pid()
    running = tool.begin("upgrade", "V1.1.0", "--store", str(server.store), "-y")
    record, trial = left_behind(tool)
    running.kill()
    running.communicate()
    assert proc.is_alive(trial["pid"], trial["started_at"])
    assert trial["pid"] not in [found.pid for found in discover.find_servers()]
    untouched(server, pid)
    # A stranger with the recorded pid is nobody's business.
    answer = tool.upgrade(server, "V1.1.0", "--no-trial", "--start-timeout", "1", "--sql-user", "nobody")
    assert answer.code != ExitCode.OK
    assert not proc.is_alive(trial["pid"], trial["started_at"]), answer.err
    assert "ending the trial of a run that was cut off" in answer.err
    assert not record.exists()


def left_behind(tool: Tool) -> tuple[Path, dict[str, object]]:
    """Wait until a trial runs, and give its record."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        for record in tool.home.glob("runs/*/trial.json"):
            found = read_json(record)
            scratch = f"--store={found['scratch']}/store"
            if found["pid"] and any(scratch in (one.info["cmdline"] or ()) for one in trials()):
                return record, found
        time.sleep(0.05)
    raise AssertionError("no trial was started")


def test_no_trial_is_said(tool: Tool, make_server: MakeServer) -> None:
    server = make_server("V1.0.0")
    answer = tool.upgrade(server, "V1.1.0", "--no-trial")
    assert answer.code == ExitCode.OK, answer.err
    assert "skipped: --no-trial" in answer.err
    assert not (tool.newest_run() / "logs" / "trial").exists()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes certificates with openssl")
@pytest.mark.parametrize("what", ["expired", "exposed"])
def test_certificates_that_a_restart_would_not_survive(
    tool: Tool, make_server: MakeServer, tmp_path: Path, what: str
) -> None:
    certificates(tmp_path / "certs")
    server = make_server("V1.0.0", certs=tmp_path / "certs")
    pid = server.pid()
    good = (tmp_path / "certs/node.crt").read_bytes()
    if what == "expired":
        expire(tmp_path / "certs/node.crt")
    else:
        (tmp_path / "certs/node.key").chmod(0o644)
    answer = tool.upgrade(server, "V1.1.0")
    assert answer.code == ExitCode.REFUSED, answer.err
    assert ("expired on 2020-01-02" if what == "expired" else "can be read by others") in answer.err
    (tmp_path / "certs/node.crt").write_bytes(good)
    untouched(server, pid)


def test_a_recovery_forced_by_the_environment_is_left_out_and_said(tool: Tool, make_server: MakeServer) -> None:
    server = make_server("V1.0.0", environment={"KW_FORCE_RECOVER": "true"})
    answer = tool.upgrade(server, "V1.1.0")
    assert answer.code == ExitCode.OK, answer.err
    assert "KW_FORCE_RECOVER: the server was started with it; it is left out" in answer.err
    pid = server.pid()
    assert pid is not None
    assert "KW_FORCE_RECOVER" not in proc.parse_environ(proc.read_bytes(pid, "environ")).variables


def test_a_path_that_is_gone_is_found_out_before_the_stop(tool: Tool, make_server: MakeServer, tmp_path: Path) -> None:
    (tmp_path / "pids").mkdir()
    server = make_server("V1.0.0", flags=[f"--pid-file={tmp_path / 'pids' / 'server'}"])
    pid = server.pid()
    shutil.rmtree(tmp_path / "pids")
    answer = tool.upgrade(server, "V1.1.0")
    assert answer.code == ExitCode.REFUSED, answer.err
    assert f"make the directory {tmp_path / 'pids'}" in answer.err
    untouched(server, pid)


def test_a_flag_is_changed_for_the_new_version_only(tool: Tool, make_server: MakeServer, tmp_path: Path) -> None:
    server = make_server("V1.0.0", flags=["--locality=region=a", "--upgrade-complete"], background=False)
    changes = ["--drop-flag", "locality", "--drop-flag", "upgrade-complete", "--add-flag", "--cache=64MiB"]
    planned = tool("plan", "V1.1.0", "--store", str(server.store), *changes)
    assert planned.code == ExitCode.OK, planned.err
    assert "--cache=64MiB" in planned.out
    assert "--locality" not in planned.out
    wrong = tool.upgrade(server, "V1.1.0", "--drop-flag", "attrs")
    assert wrong.code == ExitCode.USAGE
    assert tool.upgrade(server, "V1.1.0", "--add-flag", "--no-such=1").code == ExitCode.REFUSED
    answer = tool.upgrade(server, "V1.1.0", *changes)
    assert answer.code == ExitCode.OK, answer.err

    def flags() -> list[str]:
        pid = server.pid()
        assert pid is not None
        return list(proc.parse_cmdline(proc.read_bytes(pid, "cmdline")))[-3:]

    assert flags()[-1] == "--cache=64MiB"
    assert not any("locality" in word for word in flags())
    assert tool("rollback", "-y").code == ExitCode.OK
    assert flags()[1:] == ["--locality=region=a", "--upgrade-complete"]


@pytest.mark.parametrize("join", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_trouble_after_the_stop_ends_with_the_old_server(tool: Tool, make_server: MakeServer, join: bool) -> None:
    """A node that does not answer is a word only; a port that is taken meanwhile leads back to the old version."""
    server = make_server("V1.0.0")
    if join:
        server.stop()
        server.verb, server.flags = "start", ["--join=127.0.0.1:1", f"--brpc-addr=127.0.0.1:{free_port()}"]
        server.start()
        answer = tool.upgrade(server, "V1.1.0")
        assert answer.code == ExitCode.OK, answer.err
        assert "nobody answers at 127.0.0.1:1" in answer.err
        return
    running = tool.begin("upgrade", "V1.1.0", "--store", str(server.store), "-y", KWDB_BUILD_FAILPOINT="start:hold")
    tool.await_intent("start")
    with socket.create_server(("127.0.0.1", server.sql_port)) as thief:
        deadline = time.monotonic() + PATIENCE_S
        while not any(one["step"] == "start" and one["event"] == "failed" for one in tool.journal()):
            assert time.monotonic() < deadline, running.communicate()
            time.sleep(0.05)
        thief.close()
        _, err = running.communicate(timeout=120)
    assert running.returncode == ExitCode.ROLLED_BACK, err
    assert "is taken by someone else" in err
    assert server.counts() == ROWS
