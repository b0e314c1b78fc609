"""Which server is meant, and what stands around it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kwdb_build.errors import ExitCode, RefusedError, ServerNotFoundError, UsageError
from kwdb_build.server import discover
from kwdb_build.server.discover import Found, Selector


def server(pid: int = 7, **changes: object) -> Found:
    values: dict[str, object] = {
        "pid": pid, "command": "start-single-node", "user": "kw", "stores": (Path(f"/data/{pid}"),),
        "listen": f"127.0.0.1:{26000 + pid}", "executable": "/opt/kw/bin/kwbase", "container": False,
        "supervisor": "none",
    }
    return Found(**values | changes)  # type: ignore[arg-type]


def test_none_says_what_was_looked_for_and_names_the_demo() -> None:
    with pytest.raises(ServerNotFoundError) as caught:
        discover.choose((), Selector())
    error = caught.value
    assert error.exit_code is ExitCode.SERVER_NOT_FOUND
    assert "kwbase" in error.context
    assert "libkwdbts2.so" in error.context
    assert "start-single-node" in error.context
    assert "nox -s demo" in error.hint


def test_one_is_taken_without_a_word() -> None:
    assert discover.choose([server()], Selector()).pid == 7


def test_several_are_listed_with_the_ways_to_choose() -> None:
    with pytest.raises(ServerNotFoundError) as caught:
        discover.choose([server(7), server(8)], Selector())
    assert "pid 7" in caught.value.context
    assert "pid 8" in caught.value.context
    assert all(flag in caught.value.hint for flag in ("--pid", "--store", "--listen-addr"))


@pytest.mark.parametrize("selector", [
    Selector(pid=8), Selector(store=Path("/data/x/../8")), Selector(listen="127.0.0.1:26008"),
    Selector(listen=":26008"), Selector(listen="localhost:26008"), Selector(pid=8, store=Path("/data/8")),
])
def test_selecting(selector: Selector) -> None:
    assert discover.choose([server(7), server(8), server(9)], selector).pid == 8


def test_a_store_is_found_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    found = discover.choose([server(7), server(8, stores=(tmp_path / "real",))], Selector(store=tmp_path / "link"))
    assert found.pid == 8


@pytest.mark.parametrize("selector", [
    Selector(pid=99), Selector(store=Path("/data")), Selector(listen="10.0.0.1:26007"), Selector(pid=7, listen=":26008"),
])
def test_no_match_shows_what_runs(selector: Selector) -> None:
    with pytest.raises(ServerNotFoundError) as caught:
        discover.choose([server(7), server(8)], selector)
    assert selector.describe() in caught.value.message
    assert "pid 7" in caught.value.context


def test_a_wrong_listen_address_is_a_usage_error() -> None:
    with pytest.raises(UsageError):
        discover.choose([server()], Selector(listen="a:b:c"))


def test_a_container_is_refused() -> None:
    with pytest.raises(RefusedError) as caught:
        discover.choose([server(container=True)], Selector())
    assert "container" in caught.value.message
    assert "not supported yet" in caught.value.message


def test_a_server_without_readable_stores_is_described() -> None:
    text = server(stores=(), listen="", readable=False, supervisor="systemd:kaiwudb.service").describe()
    assert "not readable" in text
    assert "systemd:kaiwudb.service" in text


@pytest.mark.parametrize(("cgroup", "unit"), [
    ("/system.slice/kaiwudb.service", "kaiwudb.service"),
    ("/user.slice/user-1000.slice/user@1000.service/app.slice/kw.service", "kw.service"),
    ("/system.slice/system-kw.slice/kw@1.service", "kw@1.service"),
    ("/user.slice/user-1000.slice/session-3.scope", ""),
    ("/user.slice/user-1000.slice/user@1000.service/init.scope", ""),
    ("/system.slice/ssh.service", ""), ("/system.slice/cron.service", ""), ("/system.slice/docker.service", ""),
    ("/docker/3f2a", ""), ("/", ""),
])
def test_units(cgroup: str, unit: str) -> None:
    assert discover.unit_of(cgroup) == unit


@pytest.mark.parametrize(("text", "pid"), [
    ("MainPID=412\nLoadState=loaded\n", 412), ("LoadState=loaded\nMainPID=0\n", 0),
    ("MainPID=0\nLoadState=not-found\n", None), ("", None), ("MainPID=x\nLoadState=loaded\n", None),
])
def test_systemctl_show(text: str, pid: int | None) -> None:
    assert discover.parse_main_pid(text) == pid
