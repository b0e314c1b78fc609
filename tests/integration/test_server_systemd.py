"""Servers that systemd runs: a real systemd in a container, the tool inside of it, units of the miniature."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from kwdb_build.engine.docker import DockerEngine
from kwdb_build.errors import ExitCode
from kwdb_build.model import Artifact
from kwdb_build.server.logs import DRAINED
from kwdb_build.server.systemd import DROP_IN, HOLD
from tests.conftest import missing
from tests.integration.certs import certificates
from tests.integration.systemdbox import Machine, UnitServer, machine, make_image
from tests.integration.test_server_life import UNUSUAL
from tests.integration.tool import share_builds
from tests.minikwdb.instance import ORDERS, READINGS
from tests.minikwdb.repositories import MiniRepositories

pytestmark = [pytest.mark.engine, pytest.mark.systemd]
ROWS = str((ORDERS, READINGS))
OWN = {"Type": "notify", "ExecStop": "", "EnvironmentFile": ""}
MakeUnit = Callable[..., UnitServer]


@pytest.fixture(scope="module")
def box(
    engine: DockerEngine, mini_build: Callable[[str], Artifact], repositories: MiniRepositories,
    shared: Any, tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Machine]:
    """One container for all tests of this file; its image is made once for all workers."""
    import shutil

    if shutil.which("mmdebstrap") is None:
        missing("mmdebstrap to make an image with systemd")
    with FileLock(shared / "systemd.lock"):
        tag = make_image(engine, tmp_path_factory.mktemp("image"))
    place = tmp_path_factory.mktemp("systemd")
    share_builds(place / "home", [mini_build(ref) for ref in ("V1.0.0", "V1.1.0", "V1.2.0", "V1.3.0")])
    with machine(engine, tag, place, repositories) as booted:
        yield booted


@pytest.fixture
def make_unit(box: Machine, mini_build: Callable[[str], Artifact]) -> Iterator[MakeUnit]:
    """Install V1.0.0 as a unit, start it and fill it; removed at the end of the test."""
    with contextlib.ExitStack() as ends:

        def make(name: str = "kaiwudb", *, start: bool = True, **options: Any) -> UnitServer:
            server = UnitServer(machine=box, name=name, **options)
            ends.callback(server.remove)
            server.install(mini_build("V1.0.0").path)
            if start:
                server.begin()
            return server

        yield make


def upgrade(server: UnitServer, ref: str, *words: str, **environment: str) -> Any:
    return server.machine.tool("upgrade", ref, "--store", f"{server.root}/store", "-y", *words, **environment)


@pytest.mark.parametrize("how", ["secure", "stores", "paths"])
def test_the_installers_own_unit_is_restarted_by_one_sigterm(make_unit: MakeUnit, tmp_path: Path, how: str) -> None:
    """EnvironmentFile=, ExecStop=/bin/kill, a user of its own; and what a site changes in it."""
    if how == "secure":
        certificates(tmp_path / "certs")
        server = make_unit(user="nobody", certs=tmp_path / "certs")
    elif how == "stores":
        more = ("--store=path=/srv/more/second,attrs=ssd", "--ts-store=/srv/more/series", "--log-dir=/srv/kaiwudb/log files")
        server = make_unit(user="nobody", words=more, service={"ExecStartPre": "+/bin/install -d -o nobody /srv/more /srv/more/series"})
    else:
        server = make_unit(user="nobody", directory="an odd 100% $place of ä 数据", words=("--log-dir=../log dir é",))
    before, text = server.surroundings(), server.machine.ok("systemctl", "cat", server.unit)
    answer = server.restart("--json")
    assert answer.code == 0, answer.err
    assert server.logged().count(DRAINED) == 1
    assert answer.json["restart"]["pid"] == server.pid()
    assert server.surroundings() == before
    assert server.counts() == ROWS
    assert server.left_behind() == []
    assert server.machine.ok("systemctl", "cat", server.unit) == text
    assert server.machine.show(server.unit, "NeedDaemonReload") == "no"
    assert server.machine.show(server.unit, "TimeoutStopUSec") == "1min 30s"


@pytest.mark.parametrize("service", [
    {"Type": "notify", "ExecStop": "", "Restart": "always", "RestartSec": "100ms"},
    {"Type": "forking", "ExecStop": "/bin/sh -c 'kill -TERM $MAINPID'"},
    {"Type": "exec", "ExecStop": "/bin/true", "KillMode": "mixed", "KillSignal": "SIGINT", "NoSuchDirective": "7", "Nice": "3", "UMask": "0077"},
], ids=lambda service: service["Type"])
def test_kinds_of_units(make_unit: MakeUnit, service: dict[str, str]) -> None:
    server = make_unit("kw@1", service=service, background=service["Type"] == "forking")
    before = server.surroundings()
    answer = server.restart()
    assert answer.code == 0, answer.err
    assert server.logged().count(DRAINED) == 1
    assert server.surroundings() == before
    assert server.machine.show(server.unit, "NRestarts") == "0"
    assert server.left_behind() == []


def test_an_upgrade_whose_drain_outlasts_the_units_stop_timeout(make_unit: MakeUnit) -> None:
    server = make_unit(service={"TimeoutStopSec": "1", "Restart": "always"}, environment={"MINIKWDB_FAULT": "slow-drain:3"})
    before = server.surroundings()
    answer = upgrade(server, "V1.1.0")
    assert answer.code == 0, answer.err
    assert server.version() == "V1.1.0"
    assert server.counts() == ROWS
    assert server.surroundings() == before
    assert server.logged().count(DRAINED) == 1
    assert server.left_behind() == []
    assert server.machine.show(server.unit, "TimeoutStopUSec") == "1s"
    assert server.machine.show(server.unit, "Restart") == "always"


@pytest.mark.parametrize(("ref", "words"), [("V1.2.0", "metadata of this release is incomplete"), ("V1.3.0", "rows are missing")])
def test_an_upgrade_that_fails_is_rolled_back(make_unit: MakeUnit, ref: str, words: str) -> None:
    server = make_unit(service={"Restart": "always", "RestartSec": "50ms"})
    before = server.surroundings()
    answer = upgrade(server, ref, "--no-trial")
    assert answer.code == ExitCode.ROLLED_BACK, answer.err
    assert words in answer.err
    assert server.version() == "V1.0.0"
    assert server.counts() == ROWS
    assert server.surroundings() == before
    assert server.left_behind() == []


SELDOM = [
    ("stop:before", "resume"), ("stop:after", "rollback"), ("switch:before", "rollback"), ("switch:after", "rollback"),
    ("start:before", "resume"), ("start:before", "rollback"), ("start:after", "resume"), ("verify:after", "rollback"),
]


@pytest.mark.parametrize(("point", "verb"), [
    ("switch:after", "resume"), ("start:after", "rollback"), *(pytest.param(*one, marks=pytest.mark.slow) for one in SELDOM),
])
def test_killed_and_finished_by_another_process(make_unit: MakeUnit, point: str, verb: str) -> None:
    server = make_unit(service={"Restart": "always"})
    assert upgrade(server, "V1.1.0", KWDB_BUILD_FAILPOINT=point).code == 128 + 9
    stopped = server.pid() == 0
    held = f"/run/systemd/system/{server.unit}.d/{DROP_IN}" in server.left_behind()
    assert held is (point != "stop:before")
    if stopped:
        # Configuration management wants its service: not in the middle of a switch.
        refused = server.machine.run("systemctl", "start", server.unit)
        assert refused.code != 0
        assert server.pid() == 0
    answer = server.machine.tool(verb, *(["-y"] if verb == "rollback" else []))
    assert answer.code == 0, answer.err
    assert server.version() == ("V1.1.0" if verb == "resume" else "V1.0.0")
    assert server.counts() == ROWS
    assert server.left_behind() == []
    assert server.machine.show(server.unit, "Restart") == "always"


@pytest.mark.slow
def test_a_stop_that_systemd_has_begun_is_finished_on_the_way_back(make_unit: MakeUnit) -> None:
    """The tool was killed before it sent the SIGTERM that the unit's own command does not: the server serves on."""
    server = make_unit(service={"ExecStop": "/bin/sleep 1", "Restart": "always"})
    hold = f"/run/systemd/system/{server.unit}.d/{HOLD}"
    tool = f"$(grep -o '\"pid\": [0-9]*' {server.machine.home}/upgrade.lock.json | grep -o '[0-9]*')"
    server.machine.shell(f"(until test -e {hold}; do sleep 0.02; done; sleep 0.5; kill -9 {tool}) >/dev/null 2>&1 &")
    assert upgrade(server, "V1.1.0").code == 128 + 9
    assert server.machine.show(server.unit, "ActiveState") == "deactivating"
    answer = server.machine.tool("rollback", "-y")
    assert answer.code == 0, answer.err
    assert (server.version(), server.counts()) == ("V1.0.0", ROWS)
    assert server.logged().count(DRAINED) == 1
    assert server.left_behind() == []


def masked(server: UnitServer) -> None:
    server.machine.shell(f"mv {server.unit_file} /tmp/moved; ln -s /dev/null {server.unit_file}; systemctl daemon-reload")


def changed(server: UnitServer) -> None:
    server.machine.shell(f"sleep 0.01; echo '# changed' >>{server.unit_file}; touch {server.unit_file}")


def manual(server: UnitServer) -> None:
    server.machine.shell(f"sed -i 's/^.Service.$/RefuseManualStop=yes\\n[Service]/' {server.unit_file}; systemctl daemon-reload")


def other_environment(server: UnitServer) -> None:
    server.machine.shell(f"sed -i s/NUM=2/NUM=3/ {server.root}/env; touch -d '+1 minute' {server.root}/env")


@pytest.mark.parametrize(("spoil", "words"), [
    (masked, "masked"), (changed, "changed on disk"), (other_environment, "changed after the server had started"),
    pytest.param(manual, "RefuseManualStop", marks=pytest.mark.slow),
])
def test_units_that_would_not_come_back_are_refused(
    make_unit: MakeUnit, spoil: Callable[[UnitServer], None], words: str
) -> None:
    server = make_unit()
    pid = server.pid()
    spoil(server)
    answer = server.restart()
    assert answer.code == ExitCode.REFUSED, answer.err
    assert words in answer.err
    assert server.pid() == pid
    assert server.counts() == ROWS


def test_a_script_around_kwbase_is_refused_and_has_a_way_out(make_unit: MakeUnit) -> None:
    server = make_unit(start=False, service={"ExecStart": "/bin/sh -c '/srv/kaiwudb/bin/kwbase $KAIWUDB_START_ARG; true'"})
    server.begin()
    words = ["--store", f"{server.root}/store", "-y"]
    answer = server.machine.tool("restart", *words)
    assert answer.code == ExitCode.REFUSED
    assert "exec kwbase" in answer.err
    half = server.machine.tool("restart", *words, "--stop-cmd", f"systemctl stop {server.unit}")
    assert half.code == ExitCode.REFUSED
    assert "--start-cmd" in half.err
    done = server.machine.tool(
        "restart", *words, "--stop-cmd", f"systemctl stop {server.unit}", "--start-cmd", f"systemctl start {server.unit}"
    )
    assert done.code == 0, done.err
    assert server.counts() == ROWS


def test_servers_are_listed_with_their_units(make_unit: MakeUnit) -> None:
    server = make_unit(user="nobody")
    listed = json.loads(server.machine.tool("servers", "--json").out)["servers"]
    assert [(one["pid"], one["supervisor"], one["user"]) for one in listed] == [
        (server.pid(), f"systemd:{server.unit}", "nobody")
    ]
    assert (listed[0]["version"], listed[0]["command"], listed[0]["secure"]) == ("V1.0.0", "start-single-node", False)
    assert listed[0]["uptime_s"] >= 0


def test_a_unit_whose_stop_command_never_ends(make_unit: MakeUnit) -> None:
    server = make_unit(service={"ExecStop": "/bin/sleep infinity"})
    pid = server.pid()
    answer = server.restart(KWDB_BUILD_STOP_TIMEOUT_S="2")
    assert answer.code == ExitCode.NOT_STOPPED, answer.err
    assert "did not stop within 2 s" in answer.err
    assert server.pid() == pid
    assert server.counts() == ROWS
    looked = json.loads(server.machine.tool("doctor", "--json").out)
    assert [DROP_IN in row["found"] for row in looked["checks"] if row["name"] == "units"] == [True]
    answer = server.restart(KWDB_BUILD_FORCE_STOP_AFTER_S="1")
    assert answer.code == 0, answer.err
    assert "killing it, as agreed" in answer.err
    assert server.counts() == ROWS
    assert server.left_behind() == []


def test_a_restart_that_gave_up_waiting_is_finished_without_a_second_signal(make_unit: MakeUnit) -> None:
    server = make_unit(environment={"MINIKWDB_FAULT": "slow-drain:6"})
    answer = server.restart(KWDB_BUILD_STOP_TIMEOUT_S="1")
    assert answer.code == ExitCode.NOT_STOPPED, answer.err
    again = server.machine.tool("restart", "--capture", str(server.machine.home / "last-restart.json"), "-y")
    assert again.code == 0, again.err
    assert "wait for the end of its drain" in again.err
    assert server.logged().count(DRAINED) == 1
    assert server.counts() == ROWS
    assert server.left_behind() == []


def test_consent_to_kill_the_server_is_none_to_kill_what_follows_it(make_unit: MakeUnit) -> None:
    server = make_unit(service={"ExecStopPost": "/bin/sh -c 'sleep 4; touch /srv/kaiwudb/rotated'"})
    answer = server.restart(KWDB_BUILD_FORCE_STOP_AFTER_S="2")
    assert answer.code == 0, answer.err
    server.machine.ok("test", "-e", f"{server.root}/rotated")
    assert server.logged().count(DRAINED) == 1
    assert server.counts() == ROWS
    assert server.left_behind() == []


def test_a_drain_that_cannot_be_seen_gets_no_second_sigterm(make_unit: MakeUnit) -> None:
    """By systemd after the unit's own command, or by us when its log is gone as well as its health page."""
    stop = "/bin/sh -c 'kill $MAINPID; sleep 0.3'"
    server = make_unit(service={"ExecStop": stop}, environment={"MINIKWDB_FAULT": "slow-drain:7"})
    server.machine.shell(f"rm -r {server.root}/store/logs; mkdir {server.root}/store/logs")
    answer = server.restart()
    assert answer.code == 0, answer.err
    assert DRAINED in server.machine.ok("journalctl", "--output=cat", f"--unit={server.unit}")
    assert server.counts() == ROWS


@pytest.mark.slow
@pytest.mark.parametrize("stop", ["/bin/kill $MAINPID", "/bin/sh -c 'kill $MAINPID; true'"], ids=["kill", "own"])
def test_another_process_of_the_unit_that_does_not_end(make_unit: MakeUnit, stop: str) -> None:
    """Our drop-in has taken the time limit from systemd that would kill it."""
    command = "trap '' TERM; sleep infinity & exec /srv/kaiwudb/bin/kwbase $KAIWUDB_START_ARG"
    server = make_unit(service={"ExecStart": f'/bin/sh -c "{command}"', "ExecStop": stop})
    answer = server.restart(KWDB_BUILD_STOP_TIMEOUT_S="4")
    assert answer.code == ExitCode.NOT_STOPPED, answer.err
    assert "another process of kaiwudb.service has not" in answer.err
    assert "systemctl kill --signal=SIGKILL kaiwudb.service" in answer.err
    assert server.pid() == 0
    assert server.logged().count(DRAINED) == 1
    server.machine.ok("systemctl", "kill", "--signal=SIGKILL", server.unit)
    again = server.machine.tool("restart", "--capture", str(server.machine.home / "last-restart.json"), "-y")
    assert again.code == 0, again.err
    assert server.counts() == ROWS
    assert server.left_behind() == []


@pytest.mark.slow
def test_a_server_that_dies_after_it_was_ready_is_no_crash_loop(make_unit: MakeUnit) -> None:
    server = make_unit(
        service={"Restart": "always", "RestartSec": "50ms"}, environment={"MINIKWDB_FAULT_V1_1_0": "die-after:0.5"}
    )
    before = server.surroundings()
    answer = upgrade(server, "V1.1.0", "--no-trial")
    assert answer.code == ExitCode.ROLLED_BACK, answer.err
    assert server.version() == "V1.0.0"
    assert server.counts() == ROWS
    assert server.surroundings() == before
    assert server.machine.show(server.unit, "NRestarts") == "0"
    assert server.machine.show(server.unit, "Restart") == "always"
    assert server.left_behind() == []


@pytest.mark.slow
def test_a_systemd_that_does_not_answer(make_unit: MakeUnit) -> None:
    server = make_unit()
    pid = server.pid()
    api = server.machine.engine._api
    api.kill(server.machine.container, signal="STOP")
    try:
        answer = server.restart()
    finally:
        api.kill(server.machine.container, signal="CONT")
    assert answer.code == ExitCode.REFUSED, answer.err
    assert "systemd does not answer" in answer.err
    assert server.pid() == pid
    assert server.counts() == ROWS


@pytest.mark.slow
def test_a_port_that_somebody_takes_for_a_while(make_unit: MakeUnit) -> None:
    server = make_unit(service={"Restart": "always"})
    thief = (
        "import socket, sys, time\n"
        "while True:\n"
        "    try:\n"
        f"        held = socket.create_server(('127.0.0.1', {server.port + 1}))\n"
        "        break\n"
        "    except OSError:\n"
        "        time.sleep(0.005)\n"
        "time.sleep(14)\n"
    )
    server.machine.shell(f"exec {sys.executable} -c {shlex.quote(thief)} >/dev/null 2>&1 &")
    answer = upgrade(server, "V1.1.0")
    assert answer.code == ExitCode.ROLLED_BACK, answer.err
    assert f"port {server.port + 1}" in answer.err
    assert server.version() == "V1.0.0"
    assert server.counts() == ROWS
    assert server.left_behind() == []


ADDED = {"HOME", "LOGNAME", "USER", "SHELL", "LANG", "PATH"}
"""Variables that systemd gives to every service, where the capture has none."""


def test_an_exported_unit_starts_the_same_process(make_unit: MakeUnit) -> None:
    """A bare server becomes a unit: what `capture --as systemd` writes, in a real systemd."""
    server = make_unit(start=False, directory="an odd 100% $place of ä")
    odd = {"KW_ODD": "'quote \" back \\ %h $HOME ä", "KW_TOKEN": "hunter2"}
    pid = int(server.ask("instance.start()", background=False, prefix=UNUSUAL, environment=odd))
    server.ask("instance.write_rows()")
    before = server.surroundings(pid)
    exported = server.machine.place / "exported.service"
    answer = server.machine.tool("capture", "--pid", str(pid), "--as", "systemd", "-o", str(exported))
    assert answer.code == 0, answer.err
    server.ask("instance.stop()")
    server.machine.shell(f"mv {exported} {server.unit_file}; systemctl daemon-reload; systemctl start {server.unit}")
    assert server.counts() == ROWS
    after = server.surroundings()
    environment = after.pop("environment")
    assert environment == {name: environment[name] for name in ADDED & environment.keys()} | before.pop("environment")
    for moved in ("order", "cgroup"):  # a service has a control group of its own
        after.pop(moved), before.pop(moved)
    assert after == before
    assert server.restart().code == 0
    assert server.counts() == ROWS


@pytest.mark.slow
def test_a_unit_of_a_users_own_manager(box: Machine, make_unit: MakeUnit) -> None:
    """Its owner needs no root for it, and root is not answered."""
    box.shell("id keeper 2>/dev/null || useradd -m keeper; loginctl enable-linger keeper; chmod a+x /root")
    uid = box.ok("id", "-u", "keeper").strip()
    box.ok("systemctl", "start", f"user@{uid}.service")
    none = dict.fromkeys(("User", "LimitMEMLOCK", "LimitNOFILE"), "")
    server = make_unit(start=False, user="keeper", service={"Restart": "always", **none})

    def keeper(*argv: str, **environment: str) -> str:
        answer = box.run(*argv, user="keeper", environment={"XDG_RUNTIME_DIR": f"/run/user/{uid}", **environment})
        assert answer.code == 0, answer.err
        return answer.out

    box.shell(f"mv {server.unit_file} /etc/systemd/user/")
    try:
        keeper("systemctl", "--user", "daemon-reload")
        keeper("systemctl", "--user", "start", server.unit)
        server.ask("instance.write_rows()")
        pid = int(keeper("systemctl", "--user", "show", "--value", "--property=MainPID", server.unit))
        before = server.surroundings(pid)
        refused = server.restart()
        assert refused.code == ExitCode.PERMISSION, refused.err
        assert "run kwdb-build as keeper" in refused.err
        words = ["restart", "--home", "/home/keeper/home", "--store", f"{server.root}/store", "-y", "--json"]
        told = keeper(sys.executable, "-m", "kwdb_build", *words, KWDB_BUILD_SETTLE_S="1")
        again = json.loads(told)["restart"]["pid"]
        assert int(keeper("systemctl", "--user", "show", "--value", "--property=MainPID", server.unit)) == again != pid
        assert server.surroundings(again) == before
        assert server.counts() == ROWS
        assert server.logged().count(DRAINED) == 1
        assert server.left_behind() == []
    finally:
        box.shell(f"rm /etc/systemd/user/{server.unit}")
        box.run("systemctl", "stop", f"user@{uid}.service")
