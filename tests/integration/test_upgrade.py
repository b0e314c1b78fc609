"""Whole upgrades on real parts: a running server, real builds, real signals to its process, real rows."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from kwdb_build.errors import ExitCode
from kwdb_build.model import Artifact
from tests.integration.certs import certificates
from tests.integration.tool import Tool
from tests.minikwdb.instance import ORDERS, READINGS, Instance

ROWS = (ORDERS, READINGS)
MakeServer = Callable[..., Instance]

pytestmark = pytest.mark.engine


def start_facts(pid: int) -> dict[str, object]:
    """What must be the same in the old and the new process."""
    process = psutil.Process(pid)
    environment = {k: v for k, v in process.environ().items() if k != "NOTIFY_SOCKET"}
    return {
        "argv": process.cmdline(), "cwd": process.cwd(), "environ": environment, "uids": process.uids(),
        "gids": process.gids(), "nice": process.nice(),
        "limits": Path(f"/proc/{pid}/limits").read_text(encoding="ascii"), "exe": process.exe(),
    }


def test_success(tool: Tool, make_server: MakeServer) -> None:
    server = make_server("V1.0.0")
    old = server.pid()
    assert old is not None
    before = start_facts(old)
    answer = tool.upgrade(server, "V1.1.0", "--json")
    assert answer.code == ExitCode.OK, answer.err
    result = answer.json["result"]
    assert (result["outcome"], result["old_version"], result["new_version"]) == ("upgraded", "V1.0.0", "V1.1.0")
    assert result["downtime_s"] > 0
    assert result["provenance"].startswith("SLSA v1, kwdb-build ")
    assert all(check["verdict"] == "ok" for check in result["checks"] if check["verdict"] != "warn")
    assert any("plant.public.sensor" in check["name"] for check in result["checks"])
    assert "V1.1.0" in server.value("SELECT version()")
    assert server.counts() == ROWS
    new = server.pid()
    assert new is not None
    assert new != old
    assert start_facts(new) == before
    assert os.getsid(new) not in {os.getsid(0), 0}, "it has a session of its own"
    maps = Path(f"/proc/{new}/maps").read_text(encoding="ascii", errors="replace")
    assert f"{server.root}/lib/libkwdbts2.so" in maps


def test_run_directory_and_verbs_that_read_it(tool: Tool, make_server: MakeServer) -> None:
    server = make_server("V1.0.0", environment={"SECRET_TOKEN": "tellnobody"})
    assert tool.upgrade(server, "V1.1.0").code == ExitCode.OK
    run = tool.newest_run()
    for name in ("journal.jsonl", "request.json", "deployment.json", "source.json", "artifact.json", "baseline.json",
                 "result.json", "report.html", "backup/manifest.json", "replaced/replace.json"):
        assert (run / name).is_file(), name
    assert stat.S_IMODE(run.stat().st_mode) == 0o700
    assert stat.S_IMODE((run / "deployment.json").stat().st_mode) == 0o600
    holders = [p for p in run.rglob("*") if p.is_file() and b"tellnobody" in p.read_bytes()]
    assert holders == [run / "deployment.json"], "the environment is in the capture and nowhere else"
    status = tool("status", "--json").json
    assert status["status"]["outcome"] == "upgraded"
    assert any(str(server.store) in entry["stores"] for entry in status["servers"])
    assert tool("history", "--json").json["runs"][0]["outcome"] == "upgraded"
    assert "verify" in tool("logs").out
    assert tool("report").code == ExitCode.OK
    capture = tool("capture", "--store", str(server.store))
    assert "tellnobody" not in capture.out + capture.err
    assert "SECRET_TOKEN" in capture.out
    verified = tool("verify")
    assert verified.code == ExitCode.OK, verified.err


def test_a_start_that_fails_rolls_back(tool: Tool, make_server: MakeServer) -> None:
    server = make_server("V1.0.0")
    answer = tool.upgrade(server, "V1.2.0", "--json", "--no-trial")
    assert answer.code == ExitCode.ROLLED_BACK, answer.err
    assert answer.json["error"]["reference"] == "rolled-back"
    assert "V1.0.0" in server.value("SELECT version()")
    assert server.counts() == ROWS
    assert "not upgraded" in answer.err


def test_lost_time_series_rows_roll_back(tool: Tool, make_server: MakeServer) -> None:
    server = make_server("V1.0.0")
    answer = tool.upgrade(server, "V1.3.0", "--json")
    assert answer.code == ExitCode.ROLLED_BACK, answer.err
    assert "plant.public.sensor" in answer.json["error"]["context"]
    assert "V1.0.0" in server.value("SELECT version()")
    assert server.counts() == ROWS
    result = json.loads((tool.newest_run() / "result.json").read_text(encoding="utf-8"))
    assert result["outcome"] == "rolled-back"
    # The old version can go on writing, and the next upgrade works.
    with server.connect() as connection:
        connection.execute("INSERT INTO shop.orders VALUES (100000, 'late', 1)")
    assert tool.upgrade(server, "V1.1.0").code == ExitCode.OK
    assert server.counts() == (ORDERS + 1, READINGS)


def test_rollback_of_a_kept_upgrade_restores_data_and_sets_the_new_aside(tool: Tool, make_server: MakeServer) -> None:
    server = make_server("V1.0.0")
    assert tool.upgrade(server, "V1.1.0").code == ExitCode.OK
    with server.connect() as connection:
        connection.execute("INSERT INTO shop.orders VALUES (100000, 'written by the new version', 1)")
    refused = tool("rollback")
    assert refused.code == ExitCode.REFUSED
    assert server.counts() == (ORDERS + 1, READINGS)
    answer = tool("rollback", "-y")
    assert answer.code == ExitCode.OK, answer.err
    assert "V1.0.0" in server.value("SELECT version()")
    assert server.counts() == ROWS
    assert any((tool.newest_run() / "set-aside").rglob("*"))
    again = tool("rollback", "-y")
    assert again.code == ExitCode.REFUSED


def test_foreground_server_keeps_its_output_file(tool: Tool, make_server: MakeServer) -> None:
    server = make_server("V1.0.0", background=False)
    output = server.root / "output"
    before = output.read_text(encoding="utf-8")
    assert tool.upgrade(server, "V1.1.0").code == ExitCode.OK
    text = output.read_text(encoding="utf-8")
    assert text.startswith(before)
    assert "restarted pre-existing node" in text[len(before):]
    assert server.counts() == ROWS


def test_patched_build_of_the_same_version(tool: Tool, make_server: MakeServer, mini_build: Callable[[str], Artifact]
                                           ) -> None:
    server = make_server("V1.1.0")
    refused = tool.upgrade(server, "patched")
    assert refused.code == ExitCode.REFUSED
    assert "--allow-same" in refused.err
    assert tool.upgrade(server, "patched", "--allow-same").code == ExitCode.OK
    assert "V1.1.0-1-g" in server.value("SELECT version()")
    assert server.counts() == ROWS


def test_no_backup_is_said_and_rolls_back_the_binary(tool: Tool, make_server: MakeServer) -> None:
    server = make_server("V1.0.0")
    answer = tool.upgrade(server, "V1.2.0", "--no-backup", "--no-trial")
    assert answer.code == ExitCode.ROLLED_BACK, answer.err
    assert "--no-backup" in answer.err
    assert server.counts() == ROWS


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes certificates with openssl")
def test_secure_server(tool: Tool, make_server: MakeServer, tmp_path: Path) -> None:
    certificates(tmp_path / "certs")
    server = make_server("V1.0.0", certs=tmp_path / "certs")
    lost = tool.upgrade(server, "V1.3.0")
    assert lost.code == ExitCode.ROLLED_BACK, lost.err
    answer = tool.upgrade(server, "V1.1.0")
    assert answer.code == ExitCode.OK, answer.err
    assert "V1.1.0" in server.value("SELECT version()")
    assert server.counts() == ROWS


@pytest.mark.skipif(os.geteuid() != 0, reason="only root upgrades another user's server")
def test_a_server_of_another_user_stays_that_users(tool: Tool, make_server: MakeServer) -> None:
    nobody = 65534
    root = Path(tempfile.mkdtemp(prefix="kwdb-build-user-"))
    try:
        os.chown(root, nobody, nobody)
        server = make_server("V1.0.0", root=root, uid=nobody)
        lost = tool.upgrade(server, "V1.3.0")
        assert lost.code == ExitCode.ROLLED_BACK, lost.err
        answer = tool.upgrade(server, "V1.1.0")
        assert answer.code == ExitCode.OK, answer.err
        pid = server.pid()
        assert pid is not None
        assert psutil.Process(pid).uids().real == nobody
        assert server.counts() == ROWS
        strangers = [path for path in server.store.rglob("*") if path.lstat().st_uid != nobody]
        assert strangers == [], "every file of the store is still its owner's, also after a restore"
        server.stop()
    finally:
        shutil.rmtree(root)


def test_dry_run_writes_nothing(tool: Tool, make_server: MakeServer) -> None:
    server = make_server("V1.0.0")

    def world() -> dict[str, tuple[int, int]]:
        roots = (tool.home, server.root / "bin", server.root / "lib", tool.repositories.root)
        found = [path for root in roots if root.exists() for path in (root, *root.rglob("*"))]
        return {str(p): (p.lstat().st_mtime_ns, p.lstat().st_size) for p in found}

    before, pid = world(), server.pid()
    answer = tool("plan", "V1.1.0", "--store", str(server.store), "--json")
    assert answer.code == ExitCode.OK, answer.err
    steps = [action["step"] for action in answer.json["plan"]["actions"]]
    assert steps == ["capture", "fetch", "gate", "check", "build", "validate", "trial", "stage", "baseline", "precopy",
                     "stop", "backup", "switch", "start", "verify", "keep"]
    assert tool.upgrade(server, "V1.1.0", "-n").code == ExitCode.OK
    assert world() == before
    assert server.pid() == pid
