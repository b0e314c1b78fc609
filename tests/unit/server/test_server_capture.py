"""What is replayed, what is not, and what a capture understands of a server's own words."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from kwdb_build.errors import RefusedError, StartError
from kwdb_build.server import capture, proc, startflags

if TYPE_CHECKING:
    from pathlib import Path

VERSION_TEXT = """KaiwuDB Version:  V3.1.0
Build Time:       2026/11/22 08:30:25
Distribution:
Platform:         linux amd64 (x86_64-linux-gnu)
Go Version:       go1.22.10
C Compiler:       gcc 12.2.0
Build SHA-1:      06c16a1d5cb15cda64acd4dba063e65da894d1e0
"""


@pytest.mark.parametrize(("text", "version"), [
    (VERSION_TEXT, "V3.1.0"),
    ("KWDB Version:     V3.2.1-3-gfe5eeb853e-dirty\nBuild Time: x\n", "V3.2.1-3-gfe5eeb853e-dirty"),
    ("a warning first\nKaiwuDB Version: V2.0.3.2_RC3\n", "V2.0.3.2_RC3"),
])
def test_versions(text: str, version: str) -> None:
    assert capture.parse_version(text).text == version


@pytest.mark.parametrize(("text", "seen"), [
    ("KaiwuDB Version:  v3.1.0_old\n", "v3.1.0_old"), ("KaiwuDB Version:\n", "''"), ("psql (PostgreSQL) 15\n", "psql"),
    ("KaiwuDB Version:  fe5eeb8\n", "fe5eeb8"), ("KaiwuDB Version:  unknown\n", "unknown"),  # built without tags
])
def test_a_version_that_cannot_be_compared_is_a_clear_error(text: str, seen: str) -> None:
    with pytest.raises(StartError) as caught:
        capture.parse_version(text)
    assert seen in caught.value.message + caught.value.context


def test_the_environment_keeps_what_the_server_needs_and_says_why_it_drops_the_rest() -> None:
    data = (
        b"KW_VGROUP_NUM=2\0LD_LIBRARY_PATH=../lib\0KWBASE_BACKGROUND_RESTART=1\0NOTIFY_SOCKET=/tmp/x\0"
        b"INVOCATION_ID=1\0JOURNAL_STREAM=8:1\0LISTEN_FDS=1\0LISTEN_PID=2\0KW_FORCE_RECOVER=true\0"
        b"KWBASE_TESTING_VERSION_TAG=V9\0KWBASE_HOST=db\0KWBASE_CERTS_DIR=/c\0KWBASE_SOCKET_DIR=/s\0"
    )
    kept, dropped = capture.filter_environment(proc.parse_environ(data))
    assert list(kept) == ["KW_VGROUP_NUM", "LD_LIBRARY_PATH", "KWBASE_HOST", "KWBASE_CERTS_DIR", "KWBASE_SOCKET_DIR"]
    assert set(dropped) == {
        "KWBASE_BACKGROUND_RESTART", "NOTIFY_SOCKET", "INVOCATION_ID", "JOURNAL_STREAM", "LISTEN_FDS", "LISTEN_PID",
        "KW_FORCE_RECOVER", "KWBASE_TESTING_VERSION_TAG",
    }
    assert all(dropped.values())
    assert "KWBASE_HOST" not in capture.own_call_environment(kept)
    assert "KW_VGROUP_NUM" in capture.own_call_environment(kept)


def test_directories_outside_the_store(tmp_path: Path) -> None:
    store, fast, faster, logs = (tmp_path / name for name in ("store", "fast disk", "faster", "logs"))
    for path in (store / "tsdb/vg_001", fast / "sub", faster, logs):
        path.mkdir(parents=True)
    (store / "tsdb/vg_002").symlink_to(fast)
    (fast / "sub/deeper").symlink_to(faster)
    (faster / "back").symlink_to(store)  # a circle must not run for ever
    (store / "tsdb/vg_003").symlink_to("vg_001")
    (store / "tsdb/broken").symlink_to("nowhere")
    (store / "logs").symlink_to(logs)
    (store / "a file").symlink_to(tmp_path / "x")
    assert capture.outside_targets(store) == tuple(sorted((fast, faster)))


def test_stores(tmp_path: Path) -> None:
    flags = startflags.parse(
        ("kwbase", "start", "--store=a", f"--store={tmp_path}/b", "--ts-store=ts", "--store=path=./a"),
        cwd=str(tmp_path), environ={},
    )
    assert [(store.path.name, store.kind) for store in capture.stores_of(flags)] == [
        ("a", "store"), ("b", "store"), ("ts", "ts-store")
    ]


def test_a_store_in_memory_is_refused() -> None:
    flags = startflags.parse(("kwbase", "start", "--store=type=mem,size=1GiB"), cwd="/", environ={})
    with pytest.raises(RefusedError, match="type=mem"):
        capture.stores_of(flags)


def test_reading_a_process_that_is_gone() -> None:
    with subprocess.Popen(["true"]) as child:
        pid = child.pid
    with pytest.raises(Exception, match="is gone"):
        capture.capture(pid)
