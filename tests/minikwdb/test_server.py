"""The server of minikwdb behaves as the recordings of the real one say."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from kwdb_build.model import Artifact
from tests.ports import free_port

from .host_build import checkout, make, missing_tools
from .node import Node, lock_owner, running, wait_gone
from .repositories import MiniRepositories

pytestmark = pytest.mark.engine
Install = Callable[[str], Path]


@pytest.fixture
def install(mini_build: Callable[[str], Artifact]) -> Install:
    """Install directory of a release."""
    return lambda ref: mini_build(ref).path


@pytest.fixture
def node(install: Install, tmp_path: Path) -> Node:
    return Node(install=install("V1.0.0"), store=tmp_path / "store")


def fill(node: Node) -> None:
    for statement in (
        "CREATE DATABASE shop",
        "CREATE TABLE shop.orders (id INT PRIMARY KEY, note VARCHAR(20), price DECIMAL(10,2))",
        "INSERT INTO shop.orders VALUES (1, 'one', 1.50), (2, NULL, 2), (3, '', 3)",
        "CREATE TS DATABASE plant",
        "CREATE TABLE plant.m (k_timestamp TIMESTAMPTZ(3) NOT NULL, v FLOAT8) TAGS (dev INT4 NOT NULL) PRIMARY TAGS (dev)",
        "INSERT INTO plant.m VALUES ('2026-11-22 10:00:00', 1.5, 1), ('2026-11-22 10:00:01', 2.5, 2)",
    ):
        node.sql(statement)


def counts(node: Node) -> tuple[int, int]:
    return node.sql("SELECT count(*) FROM shop.orders")[0][0], node.sql("SELECT count(*) FROM plant.m")[0][0]


def test_version_and_errors_of_the_command_line(node: Node) -> None:
    lines = node.kwbase("version").stdout.splitlines()
    assert lines[0] == "KaiwuDB Version:  V1.0.0"
    assert [line.partition(":")[0] for line in lines[1:]] == [
        "Build Time", "Distribution", "Platform", "Go Version", "C Compiler", "Build SHA-1",
    ]  # fmt: skip
    unknown = node.kwbase("start-single-node", "--no-such-flag")
    assert unknown.returncode == 1
    assert unknown.stderr.endswith('ERROR: unknown flag: --no-such-flag\nFailed running "start-single-node"\n')
    assert "--store strings" in node.kwbase("start-single-node", "--help").stdout


def test_start_stop_and_restart(node: Node) -> None:
    with running(node):
        fill(node)
        assert lock_owner(node.store / "LOCK") == node.process.pid  # type: ignore[union-attr]
        code, out, err = node.stop()
    assert (code, "RUNNING IN INSECURE MODE" in err) == (0, True)
    assert "status:              initialized new cluster" in out
    assert out.endswith("initiating graceful shutdown of server\nserver drained and shutdown completed\n")
    cluster = next(line for line in out.splitlines() if line.startswith("clusterID:"))
    with running(node):
        assert counts(node) == (3, 2)
        _, out, _ = node.stop()
    assert "restarted pre-existing node" in out
    assert cluster in out
    assert (node.store / "kwbase.sql-addr").read_text() == f"127.0.0.1:{node.sql_port}"
    assert (node.store / "KWBASEDB_VERSION").read_text() == '{"Version":1}'


@pytest.mark.slow
@pytest.mark.skipif(bool(missing_tools()), reason=f"minikwdb cannot be built here, missing: {missing_tools()}")
def test_the_tools_of_this_host_build_it_as_well(repositories: MiniRepositories, tmp_path: Path) -> None:
    """Without container and engine: as a developer of minikwdb does."""
    tree = checkout(repositories, "V1.0.0", tmp_path / "go")
    result = make(tree, "BUILD_TYPE=Release", "-j2", "install", cache_dir=tmp_path / "cache")
    assert result.returncode == 0, result.stdout[-3000:]
    node = Node(install=tree / "install", store=tmp_path / "store")
    for expected in ("initialized new cluster", "restarted pre-existing node"):
        with running(node):
            if expected.startswith("initialized"):
                fill(node)
            assert counts(node) == (3, 2)
            assert expected in node.stop()[1]


def test_kill_9_loses_no_acknowledged_row(node: Node) -> None:
    with running(node):
        fill(node)
        with node.connect() as connection:
            for i in range(200):
                connection.execute("INSERT INTO shop.orders (id) VALUES (%s)", (1000 + i,))
                connection.execute(
                    "INSERT INTO plant.m VALUES (%s, 1, 1)", (f"2026-11-23 00:{i // 60:02}:{i % 60:02}",)
                )
        node.stop(signal.SIGKILL)
    assert list(node.store.glob("kwbase-temp*")), "a killed server leaves its temporary directory"
    with running(node):
        assert counts(node) == (203, 202)
        assert len(list(node.store.glob("kwbase-temp*"))) == 1


def test_background_keeps_stdout_and_group_and_drops_its_flag(node: Node, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    read, write = os.pipe()
    parent = subprocess.run(
        node.argv("--background", f"--pid-file={pid_file}"),
        cwd=node.install / "bin", env=node.env, stdin=subprocess.DEVNULL, stdout=write, stderr=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    os.close(write)
    node.wait_ready()
    for _ in range(50):
        if pid_file.exists() and pid_file.read_text():
            break
        time.sleep(0.02)
    pid = int(pid_file.read_text())
    try:
        assert "WARNING" in parent.stderr
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        assert command[0] == b"./kwbase"
        assert b"--background" not in command
        environment = Path(f"/proc/{pid}/environ").read_bytes().decode()
        assert "KWBASE_BACKGROUND_RESTART=1" in environment
        notify = environment.partition("NOTIFY_SOCKET=")[2].partition("\0")[0]
        assert not Path(notify).parent.exists()
        assert os.getpgid(pid) == os.getpgid(0)
        assert os.getsid(pid) == os.getsid(0)
        links = [str(Path(f"/proc/{pid}/fd/{fd}").readlink()) for fd in range(3)]
        assert links[0] == "/dev/null"
        assert links[1].startswith("pipe:")
        assert links[2].startswith(f"{node.store}/logs/kwbase.")
        assert "node startup completed:" in (node.store / "logs/kwbase.log").read_text()
        assert Path(f"/proc/{pid}/maps").read_text().count("libkwdbts2.so") > 0
    finally:
        os.kill(pid, signal.SIGTERM)
        wait_gone(pid)
    with os.fdopen(read) as stdout:
        assert stdout.read() == ""


def test_the_lock_outlives_quit(node: Node) -> None:
    with running(node):
        pid = node.process.pid  # type: ignore[union-attr]
        assert node.client("quit").stdout == "ok\n"
        assert lock_owner(node.store / "LOCK") == pid
        again = node.kwbase(*node.argv()[1:])
        assert again.returncode == 1
        assert "Resource temporarily unavailable" in again.stderr
        assert node.process is not None
        assert node.process.wait(10) == 0


@pytest.mark.parametrize(
    ("number", "code", "text"), [(signal.SIGINT, 1, "ERROR: interrupted"), (signal.SIGQUIT, 0, "goroutine")]
)
def test_other_signals(node: Node, number: signal.Signals, code: int, text: str) -> None:
    with running(node):
        assert node.process is not None
        node.process.send_signal(signal.SIGHUP)
        got, out, err = node.stop(number)
    assert (got, text in err) == (code, True)
    assert "server drained and shutdown completed" in out


def test_a_second_sigterm_is_a_hard_stop(node: Node) -> None:
    node.environment = {"MINIKWDB_FAULT": "slow-drain:20"}
    with running(node):
        assert node.process is not None
        node.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        assert node.health() in {503, 0}
        assert node.stop()[0] == -signal.SIGTERM


def test_refusals_to_start(node: Node) -> None:
    with running(node):
        in_use = node.kwbase(*node.argv()[1:])
        assert "may still be in use" in in_use.stderr
        other = Node(install=node.install, store=node.store.with_name("other"))
        other.sql_port = node.sql_port
        taken = other.kwbase(*other.argv("--background")[1:])
        assert "consider changing the port via --listen-addr: listen tcp" in taken.stderr
        assert taken.stderr.endswith("ERROR: exit status 1\n")
        assert taken.returncode == 1
        node.stop()
    for name, content, code, message in (
        ("auxiliary/_CRITICAL_ALERT.txt", "disk broken", 255, "disk broken"),
        ("KWBASEDB_VERSION", '{"Version":9}', 1, "incompatible rocksdb data version, current:2, on disk:9"),
        ("CURRENT", "", 1, "CURRENT file does not end with newline"),
        ("kwbase.start_mode", None, 1, "cluster start mode file does not exist"),
    ):
        path = node.store / name
        before = path.read_text() if path.exists() else None
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_text(content)
        refused = node.kwbase(*node.argv()[1:])
        assert (refused.returncode, message in refused.stderr) == (code, True), refused.stderr
        path.unlink(missing_ok=True)
        if before is not None:
            path.write_text(before)


def test_upgrade_way_back_and_restore(install: Install, node: Node, tmp_path: Path) -> None:
    with running(node):
        fill(node)
        assert node.sql("SHOW CLUSTER SETTING ts.raft_log.sync_period") == [("10s",)]
        node.stop()
    shutil.copytree(node.store, tmp_path / "copy", symlinks=True)
    node.install = install("V1.1.0")
    with running(node):
        assert counts(node) == (3, 2)
        assert node.sql("SHOW CLUSTER SETTING ts.raft_log.sync_period") == [("0s",)]
        assert node.sql("SELECT count(*) FROM kwdb_internal.jobs WHERE job_type = 'RESTART HISTORY'") == [(2,)]
        node.stop()
    node.install = install("V1.0.0")
    with running(node):
        assert node.sql("SELECT 1") == [(1,)]
        assert node.process is not None
        _, err = node.process.communicate(timeout=10)
        assert "panic: failed create tsEngine, err: open TSEngineImpl Error!" in err
    assert "Unknown version update type: 11" in (node.store / "logs/TsEngine.log").read_text()
    node.store = tmp_path / "copy"
    with running(node):
        assert counts(node) == (3, 2)


def test_libraries_of_another_release_fail_at_the_first_time_series_query(
    install: Install, node: Node, tmp_path: Path
) -> None:
    old, new = install("V1.0.0"), install("V1.1.0")
    with running(node):
        fill(node)
        node.stop()
    shutil.copytree(node.store, tmp_path / "copy", symlinks=True)
    node.library = new / "lib"
    with running(node):
        assert node.sql("SELECT count(*) FROM shop.orders") == [(3,)]
        with pytest.raises(psycopg.Error, match="Invalid physical plan"):
            node.sql("SELECT count(*) FROM plant.m")
    node = Node(install=new, library=old / "lib", store=tmp_path / "copy")
    with running(node):
        assert node.sql("SELECT count(*) FROM shop.orders") == [(3,)]
        with pytest.raises(psycopg.OperationalError):
            node.sql("SELECT count(*) FROM plant.m")
        assert "SIGSEGV" in node.stop()[2]


def test_broken_releases(install: Install, node: Node) -> None:
    with running(node):
        fill(node)
        node.stop()
    node.install = install("V1.2.0")
    refused = node.kwbase(*node.argv()[1:])
    assert (refused.returncode, refused.stderr.count("ERROR: failed to start server")) == (1, 1)
    node.install = install("V1.3.0")
    with running(node):
        assert counts(node) == (3, 0)


def test_lost_time_series_directory_is_silent(node: Node) -> None:
    with running(node):
        fill(node)
        node.stop()
    shutil.rmtree(node.store / "tsdb")
    with running(node):
        assert counts(node) == (3, 0)


def test_vgroups_only_grow(node: Node) -> None:
    with running(node):
        fill(node)
        node.stop()
    node.environment = {"KW_VGROUP_NUM": ""}
    with running(node):
        assert counts(node) == (3, 2)
    assert sorted(path.name for path in (node.store / "tsdb").glob("vg_*")) == ["vg_001", "vg_002", "vg_003", "vg_004"]


def test_tag_file_changes_without_a_new_size_or_time(node: Node) -> None:
    with running(node):
        fill(node)
        [tags] = (node.store / "tsdb/schema").glob("*/tag/*.tag.mt")
        before, content = tags.stat(), tags.read_bytes()
        node.sql("INSERT INTO plant.m VALUES (now(), 1, 77)")
        assert (tags.stat().st_size, tags.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        assert tags.read_bytes() != content


@pytest.mark.parametrize("fault", ["lose-row", "lose-ts-row", "wrong-answer"])
def test_faults_that_change_answers(node: Node, fault: str) -> None:
    with running(node):
        fill(node)
        node.stop()
    node.environment = {"MINIKWDB_FAULT_V1_0_0": fault, "MINIKWDB_FAULT_V1_1_0": "refuse-start"}
    expected = {"lose-row": (2, 2), "lose-ts-row": (3, 1), "wrong-answer": (2, 1)}[fault]
    with running(node):
        time.sleep(0.8)
        assert counts(node) == expected


def test_faults_of_start_and_stop(node: Node) -> None:
    node.environment = {"MINIKWDB_FAULT": "refuse-start"}
    assert node.kwbase(*node.argv()[1:]).returncode == 1
    node.environment = {"MINIKWDB_FAULT": "die-after:0.3"}
    with running(node):
        assert node.process is not None
        assert node.process.wait(5) == 2
    node.environment = {"MINIKWDB_FAULT": "hang-before-ready"}
    try:
        node.start(wait=False)
        time.sleep(1)
        assert (node.health(), node.health("")) == (503, 200)
    finally:
        assert node.stop()[0] == 0
    node.environment = {"MINIKWDB_FAULT": "ignore-sigterm"}
    with running(node):
        assert node.process is not None
        node.process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            node.process.wait(1.5)


def test_wire_protocol_with_psql_and_psycopg(node: Node) -> None:
    with running(node):
        fill(node)
        for factory in (psycopg.ClientCursor, psycopg.Cursor):
            with node.connect(cursor_factory=factory) as connection:
                assert connection.info.parameter_status("server_version") == "9.5.0"
                row = connection.execute("SELECT id, note FROM shop.orders WHERE id = %s", (1,)).fetchone()
                assert row == (1, "one")
                with pytest.raises(psycopg.errors.SyntaxError):
                    connection.execute("selec 1")
                connection.execute("SET statement_timeout = 100")
                with pytest.raises(psycopg.errors.QueryCanceled):
                    connection.execute("SELECT pg_sleep(5)")
                connection.execute("BEGIN")
                connection.execute("INSERT INTO shop.orders (id) VALUES (50)")
                connection.execute("INSERT INTO plant.m VALUES ('2026-12-01', 9, 9)")
                with pytest.raises(psycopg.errors.UndefinedColumn):
                    connection.execute("SELECT no_such_column")
                connection.execute("COMMIT")  # of a failed transaction: a rollback
                assert connection.execute("SELECT count(*) FROM shop.orders").fetchone() == (3,)
        assert node.sql("SELECT count(*) FROM plant.m") == [(3,)], "time series are not rolled back"
        if psql := shutil.which("psql"):
            command = [psql, "-XAt", "-h", "127.0.0.1", "-p", str(node.sql_port), "-U", "root", "-c"]
            out = subprocess.run([*command, "SHOW DATABASES"], text=True, capture_output=True, check=True).stdout
            assert "plant|TIME SERIES" in out.splitlines()
        status = node.client("node", "status", "--format=csv").stdout.splitlines()
        assert (
            status[0] == "id,address,sql_address,build,started_at,updated_at,locality,start_mode,is_available,is_live"
        )
        assert status[1].endswith("region=NODE1,start-single-node,true,true")


def test_drain_leaves_the_process_alive(node: Node) -> None:
    with running(node):
        assert node.client("node", "drain").stdout == "ok\n"
        assert (node.health(), node.health("")) == (503, 200)
        assert node.process is not None
        assert node.process.poll() is None


def test_secure_node(node: Node, tmp_path: Path) -> None:
    certs = tmp_path / "certs"
    subprocess.run([str(node.install / "bin/setup_cert_file.sh"), str(certs)], env=node.env, check=True)
    node.arguments = (f"--certs-dir={certs}",)
    with running(node):
        assert node.health() == 200, "plain http is answered as well"
        client = {"sslmode": "verify-full", "sslrootcert": str(certs / "ca.crt")}
        root = client | {"sslcert": str(certs / "client.root.crt"), "sslkey": str(certs / "client.root.key")}
        with node.connect(**root) as connection:
            assert connection.execute("SELECT current_user()").fetchone() == ("root",)
        with pytest.raises(psycopg.OperationalError):
            node.connect(**client, sslcert="/nonexistent", sslkey="/nonexistent", password="x")
        with pytest.raises(psycopg.OperationalError):
            node.connect(sslmode="disable")
        ok = node.kwbase(
            "sql", "-e", "SELECT 1 AS one", "--format=csv", f"--certs-dir={certs}", f"--host=127.0.0.1:{node.sql_port}"
        )
        assert ok.stdout == "one\n1\n", ok.stderr


def test_a_unix_socket_beside_the_port_is_left_behind_by_a_kill_only(node: Node) -> None:
    with tempfile.TemporaryDirectory(prefix="kw-") as short:  # a socket's path has room for 107 bytes
        place = Path(short) / f".s.PGSQL.{node.sql_port}"
        node.arguments = ("--insecure", f"--socket-dir={short}")
        with running(node):
            with psycopg.connect(host=short, port=node.sql_port, user="root", dbname="defaultdb") as connection:
                assert connection.execute("SELECT 1").fetchone() == (1,)
            node.stop()
            assert not place.exists()
        with running(node):
            node.stop(signal.SIGKILL)
        assert place.is_socket()
        node.start(wait=False)
        assert node.process is not None
        _, err = node.process.communicate(timeout=20)
        assert "address already in use" in err


def test_start_waits_for_init(node: Node) -> None:
    brpc = free_port()
    argv = node.argv(f"--brpc-addr=127.0.0.1:{brpc}", f"--join=127.0.0.1:{node.sql_port}")
    argv[1] = "start"
    process = subprocess.Popen(
        argv, cwd=node.install / "bin", env=node.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        for _ in range(100):
            if node.health("") == 200:
                break
            time.sleep(0.02)
        assert node.health() == 503
        assert node.client("init").stdout == "Cluster successfully initialized\n"
        node.wait_ready()
        again = node.client("init")
        assert (again.returncode, "cluster has already been initialized" in again.stderr) == (1, True)
        with socket.create_connection(("127.0.0.1", brpc)):
            pass
    finally:
        process.terminate()
        out, _ = process.communicate(timeout=10)
    assert out.startswith("INFO: initial startup completed.\nNode will now attempt to join")
