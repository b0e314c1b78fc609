"""Verdicts on a machine from facts, and the facts themselves where the kernel of this one can be asked."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from kwdb_build.host import checks, machine
from kwdb_build.host.machine import Clock, MachineFacts
from kwdb_build.model import Verdict
from tests.ports import free_port

GIB = 1 << 30


def facts(**changes: object) -> MachineFacts:
    given: dict[str, object] = {
        "cores": 8, "memory_bytes": 16 * GIB, "available_bytes": 12 * GIB, "free_bytes": 100 * GIB,
        "architecture": "x86_64", "cpu_flags": frozenset({"pni", "sse4_2"}), "max_map_count": 10_000_000,
        "nofile": (1_048_576, 1_048_576), "memlock": (-1, -1), "clock": Clock(synchronised=True, max_error_s=0.01),
    }
    return MachineFacts(**{**given, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [({}, Verdict.OK), ({"memory_bytes": 6 * GIB}, Verdict.WARN), ({"available_bytes": 4 * GIB}, Verdict.WARN),
     ({"memory_bytes": 2 * GIB}, Verdict.FAIL)],
)
def test_memory(changes: dict[str, object], verdict: Verdict) -> None:
    row = checks.check_memory(facts(**changes), 3)
    assert (row.verdict, "-j3" in row.found) == (verdict, True)
    assert bool(row.fix) is (verdict is not Verdict.OK)


def test_disk(tmp_path: Path) -> None:
    assert checks.check_disk(facts(), 10 * GIB, tmp_path).verdict is Verdict.OK
    row = checks.check_disk(facts(free_bytes=GIB), 10 * GIB, tmp_path)
    assert (row.verdict, row.where) == (Verdict.FAIL, str(tmp_path))


def test_cpu_features_are_read_out_of_the_build_files() -> None:
    wanted = checks.wanted_cpu_flags({
        "kwbase/Makefile": "# -mavx512f in a comment\nsse := -msse3\n", "CMakeLists.txt": "add_compile_options(-msse4.2 -mcpu-x)\n"
    })
    assert wanted == {"sse3": "kwbase/Makefile:2", "sse4.2": "CMakeLists.txt:1"}
    assert checks.check_cpu(facts(), wanted).verdict is Verdict.OK
    row = checks.check_cpu(facts(cpu_flags=frozenset({"pni"})), wanted)
    assert (row.verdict, row.found) == (Verdict.FAIL, "missing: sse4.2")
    assert checks.check_cpu(facts(cpu_flags=None), wanted).verdict is Verdict.UNKNOWN
    assert checks.check_cpu(facts(architecture="aarch64"), wanted).verdict is Verdict.SKIP


def test_the_compiler_and_the_kernel_name_features_differently() -> None:
    """What KWDB's crypto++ and RocksDB are compiled with (V2.1.0 to V3.2.1), on a processor that has all of it."""
    wanted = checks.wanted_cpu_flags({"kwbase/Makefile": "aes := -maes -mpclmul -mssse3\nsse := -msse3 -mbmi\n"})
    flags = frozenset({"aes", "pclmulqdq", "ssse3", "pni", "bmi1"})
    assert checks.check_cpu(facts(cpu_flags=flags), wanted).verdict is Verdict.OK
    assert checks.check_cpu(facts(cpu_flags=flags - {"pclmulqdq"}), wanted).found == "missing: pclmul"


def test_kernel_limits() -> None:
    assert {row.verdict for row in checks.check_kernel(facts())} == {Verdict.OK}
    low = checks.check_kernel(facts(max_map_count=65530), nofile=(1024, 4096), memlock=(65536, 65536))
    assert [row.verdict for row in low] == [Verdict.WARN] * 3
    assert all(row.fix for row in low)
    assert "running server" in low[1].name
    assert checks.check_kernel(facts(max_map_count=None))[0].verdict is Verdict.UNKNOWN


@pytest.mark.parametrize(
    ("found", "verdict"),
    [(Clock(synchronised=True, max_error_s=0.1), Verdict.OK), (Clock(synchronised=True, max_error_s=2), Verdict.WARN),
     (Clock(synchronised=False, max_error_s=16), Verdict.WARN), (None, Verdict.UNKNOWN)],
)
def test_clock(found: Clock | None, verdict: Verdict) -> None:
    assert checks.check_clock(found).verdict is verdict


@pytest.mark.parametrize(
    ("kind", "verdict"),
    [("ext4", Verdict.OK), ("xfs", Verdict.OK), ("nfs4", Verdict.WARN), ("cifs", Verdict.WARN), ("smb3", Verdict.WARN),
     ("tmpfs", Verdict.WARN), ("overlay", Verdict.WARN), ("", Verdict.UNKNOWN), ("newfs", Verdict.UNKNOWN)],
)
def test_file_system_of_a_store(kind: str, verdict: Verdict) -> None:
    row = checks.check_file_system(Path("/data"), kind)
    assert row.verdict is verdict
    assert "/data" in row.name


MOUNTS = r"""
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:40 / /data\040two rw - nfs4 server:/x rw
31 22 0:41 / /data\040two/inner rw - xfs /dev/vdb rw
32 22 0:42 / /data\040two/inner rw - btrfs /dev/vdc rw
33 22 0:43 / /dat rw - tmpfs tmpfs rw
broken line
"""


@pytest.mark.parametrize(
    ("place", "kind"),
    [("/data two/store", "nfs4"), ("/data two/inner/store", "btrfs"), ("/data two", "nfs4"), ("/data", "ext4"),
     ("/dat/x", "tmpfs"), ("/", "ext4")],
)
def test_file_system_by_the_mount_that_is_seen(place: str, kind: str) -> None:
    assert machine.file_system(Path(place), MOUNTS) == kind


def test_ports() -> None:
    port, free = free_port(), free_port()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))
        listener.listen()
        in_use = machine.ports_in_use((port, free))
    assert set(in_use) == {port}
    taken, available = checks.check_ports(in_use, {port: "SQL", free: "HTTP"})
    assert (taken.verdict, available.verdict) == (Verdict.WARN, Verdict.OK)
    assert str(os.getpid()) in taken.found or "another user" in taken.found


def test_this_machine(tmp_path: Path) -> None:
    found = machine.machine_facts(home=tmp_path / "not" / "yet")
    assert found.memory_bytes >= found.available_bytes > 0
    assert found.cores >= 1
    assert machine.file_system(tmp_path)
    if found.clock is not None:  # a container may not be allowed to ask
        assert 0 <= found.clock.max_error_s < 1000
    assert found.max_map_count is None or found.max_map_count > 0
