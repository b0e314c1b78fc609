"""Bad input: each has its own words and exit code, and the server runs on untouched."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from kwdb_build.errors import ExitCode
from tests.integration.tool import Answer, Tool, clean_environment
from tests.minikwdb.instance import ORDERS, READINGS, Instance

ROWS = (ORDERS, READINGS)
MakeServer = Callable[..., Instance]

pytestmark = pytest.mark.engine


@pytest.fixture
def refused(tool: Tool, make_server: MakeServer) -> Iterator[Callable[..., Answer]]:
    """Run an upgrade of a good server; afterwards the same process must serve the same rows."""
    server = make_server("V1.0.0")
    pid = server.pid()

    def run(ref: str, *words: str, **environment: str) -> Answer:
        return tool.upgrade(server, ref, *words, **environment)

    yield run
    assert server.pid() == pid
    assert server.counts() == ROWS


def test_unknown_reference(refused: Callable[..., Answer]) -> None:
    answer = refused("V1.1.9")
    assert answer.code == ExitCode.SOURCE
    assert "V1.1" in answer.err


def test_wrong_case_names_candidates(refused: Callable[..., Answer]) -> None:
    answer = refused("v1.0.0")
    assert answer.code == ExitCode.SOURCE
    assert "V1.0.0" in answer.err


def test_no_repository(refused: Callable[..., Answer], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert refused("V1.1.0", "--url", str(tmp_path / "empty")).code == ExitCode.SOURCE
    assert refused("V1.1.0", "--url", str(tmp_path / "absent")).code == ExitCode.SOURCE
    assert refused("V1.1.0", "--url", "ext::sh -c true").code in {ExitCode.SOURCE, ExitCode.USAGE}


def test_unreachable_host(refused: Callable[..., Answer]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        answer = refused("V1.1.0", "--url", f"http://127.0.0.1:{closed.getsockname()[1]}/kwdb.git")
    assert answer.code == ExitCode.SOURCE
    assert "127.0.0.1" in answer.err


def test_missing_submodule_commit(refused: Callable[..., Answer]) -> None:
    answer = refused("V1.1.3")
    assert answer.code == ExitCode.SOURCE
    assert "submodule" in answer.err


@pytest.mark.parametrize(
    ("ref", "words"), [("V1.1.1", "error:"), pytest.param("V1.1.2", ".go:", marks=pytest.mark.slow)]
)
def test_compile_error_shows_the_first_error_and_the_log(refused: Callable[..., Answer], ref: str, words: str) -> None:
    answer = refused(ref)
    assert answer.code == ExitCode.BUILD
    assert words in answer.err
    log = next(line.split("full log: ")[1] for line in answer.err.splitlines() if "full log: " in line)
    assert Path(log).stat().st_size > 0


@pytest.mark.slow
def test_missing_result_file(refused: Callable[..., Answer]) -> None:
    answer = refused("V1.1.4")
    assert answer.code == ExitCode.BUILD
    assert "libcommon.so" in answer.err


def test_same_lower_and_major(refused: Callable[..., Answer]) -> None:
    same = refused("V1.0.0")
    assert same.code == ExitCode.REFUSED
    assert "not higher" in same.err
    major = refused("V2.0.0")
    assert major.code == ExitCode.REFUSED
    assert "EXPORT" in major.err
    assert "IMPORT" in major.err


def test_no_engine(refused: Callable[..., Answer], tool: Tool, tmp_path: Path) -> None:
    shutil.rmtree(tool.home / "artifacts")
    answer = refused("V1.1.0", "--docker-host", f"unix://{tmp_path}/no.sock")
    assert answer.code == ExitCode.ENGINE
    assert "no.sock" in answer.err
    assert "what to do" in answer.err


def test_changed_artifact(refused: Callable[..., Answer], tool: Tool) -> None:
    for binary in tool.home.glob("artifacts/*/bin/kwbase"):
        content = bytearray(binary.read_bytes())
        content[-1] ^= 1
        binary.unlink()
        binary.write_bytes(content)
        binary.chmod(0o555)
    answer = refused("V1.1.0")
    assert answer.code == ExitCode.ARTIFACT
    assert "bin/kwbase" in answer.err


def test_two_servers_need_a_choice(tool: Tool, make_server: MakeServer) -> None:
    one, two = make_server("V1.0.0", name="one"), make_server("V1.0.0", name="two", rows=False)
    answer = tool("upgrade", "V1.1.0", "-y")
    assert answer.code == ExitCode.SERVER_NOT_FOUND
    assert str(one.store) in answer.err
    assert str(two.store) in answer.err
    assert "--pid" in answer.err
    assert one.counts() == ROWS


def test_no_server(tool: Tool, tmp_path: Path) -> None:
    answer = tool("upgrade", "V1.1.0", "-y", "--store", str(tmp_path / "nowhere"))
    assert answer.code == ExitCode.SERVER_NOT_FOUND
    assert "demo" in answer.err


def test_two_upgrades_at_once(tool: Tool, make_server: MakeServer) -> None:
    server = make_server("V1.0.0")
    first = tool.begin("upgrade", "V1.1.0", "--store", str(server.store), "-y", KWDB_BUILD_FAILPOINT="baseline:hold")
    tool.await_intent("baseline")
    second = tool.upgrade(server, "V1.1.0")
    assert second.code == ExitCode.LOCKED
    assert f"pid {first.pid}" in second.err
    status = tool("status", "--json").json["status"]
    assert status["outcome"] == "running"
    assert f"pid {first.pid}" in status["sentence"]
    other_home = Tool(home=tool.home.with_name("home2"), repositories=tool.repositories, docker_host=tool.docker_host)
    third = other_home.upgrade(server, "V1.1.0")
    assert third.code == ExitCode.LOCKED, "another home works on the same store"
    first.communicate(timeout=120)
    assert first.returncode == ExitCode.OK
    assert server.counts() == ROWS


def test_full_file_system(tool: Tool, make_server: MakeServer, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root mounts a small file system")
    server = make_server("V1.0.0")
    pid = server.pid()
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", small], check=True)
    try:
        answer = Tool(home=small / "home", repositories=tool.repositories, docker_host=tool.docker_host).upgrade(
            server, "V1.1.0"
        )
    finally:
        subprocess.run(["umount", small], check=True)
    assert answer.code == ExitCode.SPACE, answer.err
    assert "free" in answer.err
    assert server.pid() == pid


def test_store_on_a_full_file_system(tool: Tool, make_server: MakeServer, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root mounts a small file system")
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", small], check=True)
    try:
        server = make_server("V1.0.0", root=small)
        pid = server.pid()
        free = shutil.disk_usage(small).free
        (small / "ballast").write_bytes(bytes(free - (8 << 20)))
        answer = tool.upgrade(server, "V1.1.0")
        assert answer.code == ExitCode.SPACE, answer.err
        assert "almost full" in answer.err
        assert server.pid() == pid
        assert server.counts() == ROWS
        server.stop()
    finally:
        subprocess.run(["umount", small], check=True)


def test_wrong_user(tool: Tool, make_server: MakeServer, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    server = make_server("V1.0.0")
    shared = Path("/tmp") / f"kwdb-build-nobody-{os.getpid()}"
    shared.mkdir()
    shared.chmod(0o777)
    argv = Tool(home=shared / "home", repositories=tool.repositories, docker_host=tool.docker_host).argv(
        "upgrade", "V1.1.0", "--pid", str(server.pid()), "-y"
    )
    # The interpreter of the tests may lie where nobody may look: then the question cannot be asked.
    try:
        subprocess.run([sys.executable, "-c", "import kwdb_build"], user=65534, check=True, capture_output=True, cwd="/")
    except (PermissionError, subprocess.CalledProcessError):
        shutil.rmtree(shared)
        pytest.skip("the interpreter of the tests is not readable for other users")
    done = subprocess.run(argv, user=65534, group=65534, extra_groups=[], check=False, capture_output=True, text=True,
                          cwd="/", env=clean_environment({"HOME": str(shared)}), stdin=subprocess.DEVNULL)
    shutil.rmtree(shared)
    assert done.returncode == ExitCode.PERMISSION, done.stderr
    assert server.counts() == ROWS


def test_a_server_that_drains_too_long_is_left_alone_then_resumed(tool: Tool, make_server: MakeServer) -> None:
    server = make_server("V1.0.0", environment={"MINIKWDB_FAULT_V1_0_0": "slow-drain:12"})
    pid = server.pid()
    assert pid is not None
    answer = tool.upgrade(server, "V1.1.0", "--stop-timeout", "2")
    assert answer.code == ExitCode.NOT_STOPPED, answer.err
    assert psutil.pid_exists(pid), "it was not killed"
    assert "resume" in answer.err
    resumed = tool("resume")
    while resumed.code == ExitCode.NOT_STOPPED:
        resumed = tool("resume")
    assert resumed.code == ExitCode.OK, resumed.err
    log = (server.store / "logs" / "kwbase.log").resolve().parent
    assert any("server drained and shutdown completed" in p.read_text(errors="replace")
               for p in [*log.glob("*.log"), server.root / "output"]), "no second SIGTERM cut its drain short"
    assert server.counts() == ROWS


def test_consent_to_kill(tool: Tool, make_server: MakeServer) -> None:
    server = make_server("V1.0.0", environment={"MINIKWDB_FAULT_V1_0_0": "ignore-sigterm"})
    answer = tool.upgrade(server, "V1.1.0", "--force-stop-after", "2")
    assert answer.code == ExitCode.OK, answer.err
    assert "killing" in answer.err
    assert server.counts() == ROWS


def test_port_taken_while_the_server_is_down(tool: Tool, make_server: MakeServer) -> None:
    server = make_server("V1.0.0")
    running = tool.begin("upgrade", "V1.1.0", "--store", str(server.store), "-y", KWDB_BUILD_FAILPOINT="switch:hold")
    tool.await_intent("switch")
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(("127.0.0.1", server.sql_port))
        thief.listen()
        _, err = running.communicate(timeout=120)
    assert running.returncode == ExitCode.ROLLBACK_FAILED, err
    assert f"{server.sql_port}" in err
    assert f"{os.getpid()}" in err, "it names who took the port"
    assert "rollback" in err
    answer = tool("rollback", "-y")
    assert answer.code == ExitCode.OK, answer.err
    assert server.counts() == ROWS


@pytest.mark.parametrize("fault", [
    "hang-before-ready", "die-after:0", pytest.param("die-after:2", marks=pytest.mark.slow), "lose-row",
    pytest.param("lose-ts-row", marks=pytest.mark.slow), pytest.param("wrong-answer", marks=pytest.mark.slow),
    "refuse-start",
])
def test_whatever_the_new_version_does_wrong_it_goes_back(tool: Tool, make_server: MakeServer, fault: str) -> None:
    server = make_server("V1.0.0", environment={"MINIKWDB_FAULT_V1_1_0": fault})
    answer = tool.upgrade(server, "V1.1.0", "--start-timeout", "8", "--no-trial", KWDB_BUILD_SETTLE_S="5")
    assert answer.code == ExitCode.ROLLED_BACK, answer.err
    assert "V1.0.0" in server.value("SELECT version()")
    assert server.counts() == ROWS


def test_a_server_started_by_hand_after_a_cut_is_not_overwritten(tool: Tool, make_server: MakeServer) -> None:
    server = make_server("V1.0.0")
    assert tool.upgrade(server, "V1.1.0", KWDB_BUILD_FAILPOINT="backup:after").code == -9
    server.start()
    with server.connect() as connection:
        connection.execute("INSERT INTO shop.orders VALUES (100000, 'by hand', 1)")
    for verb in (("resume",), ("rollback", "-y")):
        answer = tool(*verb)
        assert answer.code == ExitCode.REFUSED, answer.err
        assert "abandon" in answer.err
    assert tool("abandon").code == ExitCode.OK
    assert server.counts() == (ORDERS + 1, READINGS)
    deadline = time.monotonic() + 5
    while tool.upgrade(server, "V1.1.0").code != ExitCode.OK:
        assert time.monotonic() < deadline
    assert server.counts() == (ORDERS + 1, READINGS)
