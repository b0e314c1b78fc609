"""The shipped suite on real miniature servers: good ones pass, and each way of being bad fails by its name."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest

from kwdb_build.files import sha256_of
from kwdb_build.model import Address, Verdict
from kwdb_build.server import proc
from kwdb_build.sql import Login
from kwdb_build.verify import baseline, logs
from kwdb_build.verify.request import VerifyRequest
from kwdb_build.verify.runner import VerifyResult, run_suite

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kwdb_build.model import Artifact
    from tests.minikwdb.instance import Instance

pytestmark = pytest.mark.engine
NEW = "MINIKWDB_FAULT_V1_1_0"


def login(server: Instance) -> Login:
    return Login(address=Address(host="127.0.0.1", port=server.sql_port))


def databases(server: Instance) -> set[str]:
    with server.connect() as connection:
        return {row[0] for row in connection.execute("SHOW DATABASES").fetchall()}


@pytest.fixture
def upgrade(
    make_server: Callable[..., Instance], mini_build: Callable[[str], Artifact], tmp_path: Path
) -> Callable[..., tuple[Instance, VerifyRequest]]:
    """A filled V1.0.0, its baseline, then another release in its place; the request that fits."""

    def go(ref: str = "V1.1.0", *, fault: str = "", lib: str = "") -> tuple[Instance, VerifyRequest]:
        server = make_server("V1.0.0")
        with server.connect() as connection:
            connection.execute("CREATE USER alice")
            connection.execute("SET CLUSTER SETTING server.time_until_store_dead = '45m'")
        baseline.save(baseline.record_baseline(login(server)), tmp_path / "baseline.json")
        server.stop()
        mark = logs.mark_logs([server.store / "logs"])
        server.install(mini_build(ref).path)
        if lib:
            shutil.rmtree(server.root / "lib")
            shutil.copytree(mini_build(lib).path / "lib", server.root / "lib")
        if fault:
            server.environment["MINIKWDB_FAULT"] = fault
        pid = server.start()
        return server, VerifyRequest(
            login=login(server), baseline=tmp_path / "baseline.json", expected_version=ref, pid=pid,
            started_at=proc.start_time(pid), log_mark=mark, http=Address(host="127.0.0.1", port=server.http_port),
            libraries={str(path): sha256_of(path) for path in (server.root / "lib").glob("*.so")},
            settle_s=0.5, retry_s=10, statement_timeout_s=20,
        )

    return go


def verify(request: VerifyRequest, tmp_path: Path) -> VerifyResult:
    return run_suite(request, run_dir=tmp_path / "run", timeout_s=120)


def failed(result: VerifyResult) -> dict[str, str]:
    return {check.name: check.found for check in result.checks if check.verdict in {Verdict.FAIL, Verdict.UNKNOWN}}


def test_a_good_upgrade_passes_and_leaves_nothing_behind(
    upgrade: Callable[..., tuple[Instance, VerifyRequest]], tmp_path: Path
) -> None:
    server, request = upgrade()
    before = databases(server)
    result = verify(request, tmp_path)
    assert result.ok, result.log.read_text()
    names = {check.name for check in result.checks}
    assert {
        "Table: shop.public.orders", "Table: plant.public.sensor", "User: alice",
        "Cluster setting: server.time_until_store_dead",
    } <= names
    assert databases(server) == before
    assert server.counts() == (1000, 2000)


def test_after_a_rollback_the_old_version_is_the_right_one(
    upgrade: Callable[..., tuple[Instance, VerifyRequest]], tmp_path: Path
) -> None:
    _, request = upgrade("V1.0.0")
    assert verify(dataclasses.replace(request, mode="rolled-back"), tmp_path).ok
    wrong = verify(dataclasses.replace(request, expected_version="V1.1.0"), tmp_path)
    assert list(failed(wrong)) == ["Version"]


def test_time_series_rows_that_read_as_none_fail_and_name_the_table(
    upgrade: Callable[..., tuple[Instance, VerifyRequest]], tmp_path: Path
) -> None:
    """A ready server that has lost its time-series data (the real V2 to V3)."""
    _, request = upgrade("V1.3.0")
    bad = failed(verify(request, tmp_path))
    assert "2000 of 2000 rows are missing" in bad["Table: plant.public.sensor"]
    assert "Table: shop.public.orders" not in bad


@pytest.mark.parametrize(
    ("fault", "table"),
    [("lose-row", "Table: shop.public.orders"), ("lose-ts-row", "Table: plant.public.sensor")],
)
def test_one_lost_row_fails_and_names_its_table(
    upgrade: Callable[..., tuple[Instance, VerifyRequest]], tmp_path: Path, fault: str, table: str
) -> None:
    _, request = upgrade(fault=fault)
    bad = failed(verify(request, tmp_path))
    assert "missing" in bad[table]


def test_a_lost_row_behind_new_ones_is_found_by_its_device(
    upgrade: Callable[..., tuple[Instance, VerifyRequest]], tmp_path: Path
) -> None:
    server, request = upgrade()
    with server.connect() as connection:
        connection.execute("DELETE FROM plant.sensor WHERE id = 2")
        rows = ", ".join(f"('2026-11-05 00:{n // 60:02}:{n % 60:02}+00:00', 1, 1, 3, 'hall 3')" for n in range(700))
        connection.execute(f"INSERT INTO plant.sensor VALUES {rows}")
    assert server.counts()[1] > 2000
    bad = failed(verify(request, tmp_path))
    assert "2: 0 of 500" in bad["Table: plant.public.sensor"]


def test_a_changed_value_with_the_same_count_fails(
    upgrade: Callable[..., tuple[Instance, VerifyRequest]], tmp_path: Path
) -> None:
    server, request = upgrade()
    with server.connect() as connection:
        connection.execute("UPDATE shop.orders SET amount = 0 WHERE id = 7")
        connection.execute("SET CLUSTER SETTING server.time_until_store_dead = '30m'")
        connection.execute("DROP USER alice")
    bad = failed(verify(request, tmp_path))
    assert "other content" in bad["Table: shop.public.orders"]
    assert {"User: alice", "Cluster setting: server.time_until_store_dead"} <= bad.keys()


@pytest.mark.parametrize(("binary", "lib"), [("V1.1.0", "V1.0.0"), ("V1.0.0", "V1.1.0")])
def test_mixed_binary_and_libraries_fail_and_do_not_hang(
    upgrade: Callable[..., tuple[Instance, VerifyRequest]], tmp_path: Path, binary: str, lib: str
) -> None:
    _, request = upgrade(binary, lib=lib)
    bad = failed(verify(request, tmp_path))
    assert any("plant.public.sensor" in name for name in bad)


def test_a_server_that_dies_after_it_answered_fails(
    upgrade: Callable[..., tuple[Instance, VerifyRequest]], tmp_path: Path
) -> None:
    server, request = upgrade()
    pid = server.pid()
    assert pid is not None
    killer = threading.Timer(2.0, os.kill, (pid, signal.SIGKILL))
    killer.start()
    result = verify(dataclasses.replace(request, settle_s=4), tmp_path)
    killer.join()
    assert "The same process at the end" in failed(result)
    assert "Still well after a pause" in failed(result)


def test_libraries_from_elsewhere_fail(
    upgrade: Callable[..., tuple[Instance, VerifyRequest]], tmp_path: Path
) -> None:
    _, request = upgrade()
    moved = {path.replace("/lib/", "/elsewhere/"): digest for path, digest in request.libraries.items()}
    bad = failed(verify(dataclasses.replace(request, libraries=moved), tmp_path))
    assert "mapped from elsewhere" in bad["Libraries that the process really maps"]
    other = dict.fromkeys(request.libraries, "0" * 64)
    bad = failed(verify(dataclasses.replace(request, libraries=other), tmp_path))
    assert "not the file that was installed" in bad["Libraries that the process really maps"]


def test_a_killed_suite_fails_and_its_scratch_databases_are_gone(
    upgrade: Callable[..., tuple[Instance, VerifyRequest]], tmp_path: Path
) -> None:
    server, request = upgrade()
    before = databases(server)
    request = dataclasses.replace(request, scratch="kwdb_build_verify_killed", settle_s=60)
    with server.connect() as connection:  # what a child killed in the middle of its write check leaves
        connection.execute("CREATE DATABASE kwdb_build_verify_killed_r")
        connection.execute("CREATE TS DATABASE kwdb_build_verify_killed_t")
    result = run_suite(request, run_dir=tmp_path / "run", timeout_s=8)
    assert not result.ok
    assert result.exit_code is None
    assert "did not finish" in result.checks[-1].found
    assert databases(server) == before


def test_a_table_that_cannot_be_read_is_recorded_as_such_and_never_verified(
    upgrade: Callable[..., tuple[Instance, VerifyRequest]], tmp_path: Path
) -> None:
    """Invalid physical plan: relational tables answer, the time-series one does not."""
    _, request = upgrade("V1.0.0", lib="V1.1.0")
    found = baseline.record_baseline(request.login)
    assert [table.name for table in found.unreadable] == ["plant.public.sensor"]
    assert found.unreadable[0].unreadable
    baseline.save(found, request.baseline)
    verdicts = {check.name: check.verdict for check in verify(request, tmp_path).checks}
    assert verdicts["Table: plant.public.sensor"] in {Verdict.FAIL, Verdict.UNKNOWN}
    assert verdicts["Tables that could not be read before"] is Verdict.UNKNOWN


def test_tables_that_clients_write_to_are_marked(make_server: Callable[..., Instance]) -> None:
    server = make_server("V1.0.0")
    stop = threading.Event()

    def write() -> None:
        number = 10_000
        with server.connect() as connection:
            while not stop.is_set():
                number += 1
                connection.execute(f"INSERT INTO shop.orders VALUES ({number}, 'x', 1)")
                time.sleep(0.001)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        found = baseline.record_baseline(login(server))
    finally:
        stop.set()
        writer.join()
    changing = {table.name: table.changing for table in found.tables}
    assert changing == {"shop.public.orders": True, "plant.public.sensor": False}
