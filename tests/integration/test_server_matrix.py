"""Every kind of bare server, stopped and started again by the verb; all that /proc tells of the two is compared.

What may differ is listed here, each with its reason: whatever else a new kernel or a new version of the tool changes is
a find.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from kwdb_build.errors import ExitCode
from kwdb_build.server import proc, readiness
from tests.integration.certs import certificates
from tests.integration.serverbox import surroundings
from tests.integration.tool import Tool
from tests.minikwdb.instance import ORDERS, READINGS, Instance

pytestmark = pytest.mark.engine
NOBODY = 65534
OWN_LINES = frozenset({
    "Pid", "Tgid", "Ngid", "PPid", "NStgid", "NSpid", "NSpgid", "NSsid",  # it is another process, in our own session
    "State", "Threads", "SigQ", "SigPnd", "ShdPnd", "voluntary_ctxt_switches", "nonvoluntary_ctxt_switches",  # it lives
    "FDSize", "SigBlk",  # Go: as many as were ever open; one of its threads waits for signals
})
MEMORY = ("Vm", "Rss", "Hugetlb")
FILES = (
    "limits", "cpuset", "oom_score_adj", "coredump_filter", "personality", "loginuid", "setgroups", "uid_map",
    "timens_offsets", "attr/current", "timerslack_ns",
)
LINKS = (
    "cwd", "exe", "root", "fd/0", "fd/1", "fd/2", "ns/mnt", "ns/net", "ns/pid", "ns/ipc", "ns/user", "ns/uts",
    "ns/cgroup", "ns/time",
)


def everything(pid: int) -> dict[str, Any]:
    """All of /proc/PID that says how it was started and where it listens."""
    place = Path(f"/proc/{pid}")
    found: dict[str, Any] = dict(surroundings(pid))
    for line in (place / "status").read_text().splitlines():
        name, _, value = line.partition(":\t")
        if name not in OWN_LINES and not name.startswith(MEMORY):
            found[f"status {name}"] = value
    for name in FILES:
        with contextlib.suppress(OSError):  # some kernels have it not
            found[name] = (place / name).read_text()
    for name in LINKS:
        with contextlib.suppress(OSError):
            found[name] = str((place / name).readlink())
    stat = proc.read_stat(pid)
    assert stat is not None
    process = psutil.Process(pid)
    found["terminal"] = process.terminal()
    found["listens"] = sorted(
        str(one.laddr) for one in process.net_connections(kind="all") if one.status in {"LISTEN", "NONE"} and one.laddr
    )
    found["mapped"] = set(readiness.loaded_libraries(pid).values())
    return found


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kind of server. options: of the instance; make: more of them, made from a directory with a short path."""

    options: dict[str, Any] = field(default_factory=dict)
    make: Callable[[Path], dict[str, Any]] = lambda _: {}
    root: bool = False


def of_nobody(place: Path) -> dict[str, Any]:
    return {"root": place / "kwdb", "uid": NOBODY}


def secure(place: Path) -> dict[str, Any]:
    certificates(place / "certs")
    return {"certs": place / "certs"}


def odd(place: Path) -> dict[str, Any]:
    name = "an odd 'näme' \"of\" 目录 $HOME; `x`"
    return {"root": place / name, "store_name": "the store\\", "flags": ["--log-dir", str(place / name / "the logs")]}


def stores(place: Path) -> dict[str, Any]:
    return {"flags": [f"--store=path={place}/second,attrs=hdd", "--cache", "64MiB"]}


CASES = {
    "foreground": Case(options={"background": False}),
    "background": Case(),
    "odd paths, own log directory": Case(make=odd, options={"background": False}),
    "several stores": Case(make=stores),
    "secure": Case(make=secure),
    "own user": Case(make=of_nobody, options={"background": False}, root=True),
    "unix socket": Case(make=lambda place: {"flags": [f"--socket-dir={place}"]}),
    "unix socket by the environment, relative": Case(
        make=lambda place: {"root": place, "environment": {"KWBASE_SOCKET_DIR": ".."}}, options={"background": False}
    ),
    "every address": Case(options={"host": ""}),
    "IPv6": Case(options={"host": "[::1]", "background": False}),
}
SLOW = {"background", "every address", "unix socket by the environment, relative"}
"""Other tests restart such servers as well."""


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory with a short path, for sockets, that every user may enter."""
    with tempfile.TemporaryDirectory(prefix="kw-", dir="/tmp") as place:
        Path(place).chmod(0o755)
        yield Path(place)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CASES])
def test_what_comes_back_is_what_was_there(
    name: str, tool: Tool, install_server: Callable[..., Instance], short: Path
) -> None:
    case = CASES[name]
    if case.root and os.geteuid() != 0:
        pytest.skip("becomes another user, which needs root")
    if name == "secure" and shutil.which("openssl") is None:
        pytest.skip("makes certificates with openssl")
    server = install_server(**(case.options | case.make(short)))
    if server.uid is not None:
        for path in [server.root, *server.root.rglob("*")]:
            os.chown(path, server.uid, server.uid)
    pid = server.start()
    server.write_rows()
    before = everything(pid)
    assert before["status Uid"].split()[0] == str(server.uid or os.geteuid())
    answer = tool("restart", "--store", str(server.store), "-y", "--json", KWDB_BUILD_SETTLE_S="0")
    assert answer.code == ExitCode.OK, answer.err
    again = answer.json["restart"]["pid"]
    assert again == server.pid() != pid
    after = everything(again)
    own_log = server.background  # kwbase sends its errors there by itself, into a new file for each process
    for field_name in before.keys() | after.keys():
        if field_name == "fd/2" and own_log:
            assert Path(after["fd/2"]).parent == Path(before["fd/2"]).parent
        else:
            assert after.get(field_name) == before.get(field_name), field_name
    assert server.counts() == (ORDERS, READINGS)
    if "unix socket" in name:
        with psycopg.connect(host=str(short), port=server.sql_port, user="root", dbname="defaultdb") as local:
            assert local.execute("SELECT count(*) FROM shop.orders").fetchone() == (ORDERS,)


def test_the_unix_socket_of_a_killed_server_is_not_in_the_way(
    tool: Tool, make_server: Callable[..., Instance], short: Path
) -> None:
    server = make_server(flags=[f"--socket-dir={short}"], environment={"MINIKWDB_FAULT": "ignore-sigterm"})
    answer = tool("restart", "--store", str(server.store), "-y", "--force-stop-after", "1", KWDB_BUILD_SETTLE_S="0")
    assert answer.code == ExitCode.OK, answer.err
    assert "killing it, as agreed" in answer.err
    assert (short / f".s.PGSQL.{server.sql_port}").is_socket()
    assert server.counts() == (ORDERS, READINGS)
    server.kill()  # this one does not heed a SIGTERM either
