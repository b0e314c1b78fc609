"""Capture, stop and start of a real server: the compiled miniature, its processes, outputs, users and faults."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kwdb_build import command
from kwdb_build.errors import AccessError, NotStoppedError, ServerNotFoundError, StartError
from kwdb_build.model import Address
from kwdb_build.server import address, capture, discover, drain, locks, logs, proc, readiness, saved, scheduling
from kwdb_build.server.start import hold_stdio, start
from kwdb_build.server.stop import abandon, stop
from tests.integration.certs import certificates
from tests.integration.serverbox import (
    PATIENCE_S,
    QUIET,
    identity,
    in_background,
    settled_health,
    stopped,
    surroundings,
    wait,
    with_fault,
)
from tests.minikwdb.instance import ORDERS, READINGS, Instance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kwdb_build.model import Deployment

pytestmark = pytest.mark.engine
NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which needs root")
UNUSUAL = (
    "sh", "-c", ('ulimit -c 8; umask 077; echo 100 >/proc/self/oom_score_adj; exec nice -n 5 ionice -c 2 -n 6 '
    'chrt --batch 0 taskset -c 0 "$@"'), "sh",
)
both = pytest.mark.parametrize("background", [False, True], ids=["foreground", "background"])


@pytest.fixture
def site(install_server: Callable[..., Instance]) -> Instance:
    """An installation that is not running."""
    return install_server(name="an installation", store_name="the store ä", background=False)


def restart(deployment: Deployment, run: Path) -> readiness.Ready:
    """The whole way: hold the outputs, stop, start, wait, and be the same node."""
    expect = identity(deployment)
    with hold_stdio(deployment) as stdio:
        assert stop(deployment, timeout_s=PATIENCE_S, progress=QUIET).drained
        started = start(deployment.start, log_dir=run, stdio=stdio)
    return wait(deployment, started, expect)


@both
def test_a_restart_brings_everything_back(site: Instance, tmp_path: Path, background: bool) -> None:
    site.background = background
    site.prefix = UNUSUAL
    site.environment = {"KW_SECRET": "a=b c'ä\n$HOME", "KWBASE_HOST": "elsewhere.invalid"}
    with (tmp_path / "errors").open("ab") as errors:
        pid = site.start(stderr=errors.fileno())
    site.write_rows()
    before = surroundings(pid)
    assert (before["oom_score_adj"], before["nice"], before["ids"][3]) == ("100\n", 5, 0o077)  # type: ignore[index]
    assert before["share"] == scheduling.Share(ionice=(2, 6), scheduling=(os.SCHED_BATCH, 0), affinity=(0,))
    deployment = capture.capture(pid)
    assert deployment.start.background is background
    assert ("--background" in deployment.start.argv) is background
    ready = restart(deployment, tmp_path / "run")
    assert ready.pid != pid
    assert surroundings(ready.pid) == before
    assert before["environment"]["KW_SECRET"] == site.environment["KW_SECRET"]  # type: ignore[index]
    assert ready.banner is not None
    assert ready.banner.status == logs.RESTARTED
    assert 0 < ready.listening_s <= ready.ready_s <= ready.sql_s
    assert proc.read_stat(ready.pid).session != os.getsid(0)  # type: ignore[union-attr]
    assert site.counts() == (ORDERS, READINGS)
    again = capture.capture(ready.pid)
    changed = {"pid", "started_at", "start"}
    for field in dataclasses.fields(deployment):
        if field.name not in changed:
            assert getattr(again, field.name) == getattr(deployment, field.name), field.name
    assert again.start.argv == deployment.start.argv
    assert again.start.environ == deployment.start.environ
    if background:  # the server sends its stderr to its own log by itself; what it says before that is kept by us
        assert Path(again.start.stderr).parent == site.store / "logs"
        assert again.start.stderr != deployment.start.stderr
        kept = list((tmp_path / "run").iterdir())
        assert [path.name for path in kept] == ["server-stderr.log"]
        assert stat.S_IMODE(kept[0].stat().st_mode) == 0o600
    else:
        assert again.start.stderr == deployment.start.stderr == str(tmp_path / "errors")
        assert not (tmp_path / "run").exists()
    assert stop(again, timeout_s=PATIENCE_S, progress=QUIET).drained


def test_what_a_capture_knows(site: Instance, tmp_path: Path) -> None:
    site.environment = {"KWBASE_TESTING_VERSION_TAG": "V9.9.9"}
    pid = site.start()
    found = [server for server in discover.find_servers() if server.pid == pid]
    assert len(found) == 1
    assert found[0].stores == (site.store,)
    assert discover.choose(found, discover.Selector(store=site.store, listen=f":{site.sql_port}")).pid == pid
    deployment = capture.capture(pid)
    assert deployment.sql == Address(host="127.0.0.1", port=site.sql_port)
    assert deployment.http == Address(host="127.0.0.1", port=site.http_port)
    assert deployment.version.text == "V1.0.0"
    assert deployment.libraries == {name: site.root / "lib" / name for name in capture.LIBRARIES}
    assert deployment.start.executable == site.root / "bin" / "kwbase"
    assert "KWBASE_TESTING_VERSION_TAG" in deployment.start.dropped
    assert capture.log_directory(deployment) == site.store / "logs"
    assert locks.holder(site.store) == pid
    saved.save(deployment, tmp_path / "captured.json")
    assert saved.load(tmp_path / "captured.json") == deployment


@pytest.fixture
def public_place() -> Iterator[Path]:
    """A directory that every user may enter; pytest closes its own to others whenever another run of it begins."""
    with tempfile.TemporaryDirectory(prefix="kwdb-build-test-", dir="/tmp") as place:
        Path(place).chmod(0o755)
        yield Path(place)


@needs_root
def test_a_server_of_an_unprivileged_user(
    public_place: Path, install_server: Callable[..., Instance], tmp_path: Path
) -> None:
    site = install_server(root=public_place / "kwdb", background=False)
    for path in [site.root, *site.root.rglob("*")]:
        os.chown(path, NOBODY, NOBODY)
    site.uid = NOBODY
    pid = site.start()
    before = surroundings(pid)
    assert before["ids"] == (NOBODY, NOBODY, (), 0o027)
    ready = restart(capture.capture(pid), tmp_path / "run")
    assert surroundings(ready.pid) == before
    assert {path.stat().st_uid for path in site.store.rglob("*")} == {NOBODY}


@needs_root
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="restricts capabilities with setpriv")
def test_rights_that_a_unit_gave_are_given_again(
    public_place: Path, install_server: Callable[..., Instance], tmp_path: Path
) -> None:
    site = install_server(root=public_place / "kwdb", background=False)
    for path in [site.root, *site.root.rglob("*")]:
        os.chown(path, NOBODY, NOBODY)
    site.prefix = (
        "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--groups=7", "--bounding-set=-sys_time,-sys_module",
        "--inh-caps=+ipc_lock,+net_raw", "--ambient-caps=+ipc_lock", "--no-new-privs",
    )
    pid = site.start()
    before = surroundings(pid)
    ambient, inheritable, lacking = 1 << 14, 1 << 14 | 1 << 13, 1 << 25 | 1 << 16
    rights = proc.read_status(pid).capabilities
    assert rights is not None
    assert (rights.ambient, rights.inheritable, rights.bounding & lacking) == (ambient, inheritable, 0)
    ready = restart(capture.capture(pid), tmp_path / "run")
    assert surroundings(ready.pid) == before
    assert proc.read_status(ready.pid).no_new_privileges


@needs_root
def test_another_user_is_told_who_may(site: Instance) -> None:
    pid = site.start()
    script = (
        "import os, sys, psutil\nsys.path[:0] = sys.argv[2:]\n"
        "from kwdb_build.server import address, capture, discover, locks, proc, saved, spawn, startflags\n"
        "capture.capture(int(sys.argv[1]))  # root may; and all is imported now, which nobody may not be able to read\n"
        f"os.setgroups([]); os.setresgid({NOBODY}, {NOBODY}, {NOBODY}); os.setresuid({NOBODY}, {NOBODY}, {NOBODY})\n"
        "found = [one for one in discover.find_servers() if one.pid == int(sys.argv[1])]\n"
        "print([(one.readable, one.stores, one.user) for one in found])\n"
        "try:\n    capture.capture(int(sys.argv[1]))\n"
        "except Exception as error:\n    print(type(error).__name__, error.message, error.hint)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script, str(pid), *sys.path], capture_output=True, text=True, check=True
    )
    listed, refused = answer.stdout.splitlines()
    assert listed == repr([(False, (site.store,), "root")])
    assert refused.startswith(AccessError.__name__)
    assert "root" in refused


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes certificates with openssl")
def test_a_secure_server_is_dialled_by_a_name_in_its_certificate(site: Instance, tmp_path: Path) -> None:
    certificates(tmp_path / "certs")
    site.certs = tmp_path / "certs"
    deployment = capture.capture(site.start())
    assert deployment.secure
    assert deployment.certs_dir == tmp_path / "certs"
    assert deployment.sql.host == "localhost"  # the certificate has no 127.0.0.1
    assert settled_health(deployment).status == 200
    expect = identity(deployment)
    ready = restart(deployment, tmp_path / "run")
    assert ready.identity == expect


def test_a_pipe_gets_the_new_servers_words_too(site: Instance, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        pid = site.start(stdout=writer)
        os.close(writer)
        os.set_blocking(reader, False)
        restart(capture.capture(pid), tmp_path / "run")
        text = b""
        deadline = time.monotonic() + PATIENCE_S
        while text.count(b"restarted pre-existing node") < 1 and time.monotonic() < deadline:
            text += pipe.read(1 << 16) or b""  # the banner comes to the log first, then here
    assert text.count(b"KWDB node starting at") == 2
    assert b"restarted pre-existing node" in text


def test_a_broken_pipe_is_replaced_by_a_file(site: Instance, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    pid = site.start(stdout=writer)
    os.close(writer)
    deployment = capture.capture(pid)
    expect = identity(deployment)
    os.close(reader)
    with hold_stdio(deployment) as stdio:
        assert "stdout" in stdio.reasons
        os.kill(pid, signal.SIGKILL)
        stop(deployment, timeout_s=PATIENCE_S, progress=QUIET)
        started = start(deployment.start, log_dir=tmp_path / "run", stdio=stdio)
    wait(deployment, started, expect)
    assert any("stdout" in note for note in started.notes)
    stop(capture.capture(started.launched), timeout_s=PATIENCE_S, progress=QUIET)  # all has been written then
    assert logs.RESTARTED in (tmp_path / "run/server-stdout.log").read_text()


def test_a_slow_drain_is_waited_for(site: Instance) -> None:
    site.environment = {"MINIKWDB_FAULT": "slow-drain:1.5"}
    deployment = capture.capture(site.start())
    result = stop(deployment, timeout_s=PATIENCE_S, progress=QUIET)
    assert result.drained
    assert not result.forced
    assert result.seconds > 1.5
    assert locks.holder(site.store) is None


def test_a_drain_tells_whom_it_waits_for(site: Instance) -> None:
    site.environment = {"MINIKWDB_FAULT": "slow-drain:1.5"}
    deployment = capture.capture(site.start())
    said: list[str] = []

    class Listening(type(QUIET)):  # type: ignore[misc]
        def update(self, text: str, **_: object) -> None:
            said.append(text)

    with site.connect(), site.connect():
        assert drain.connections(deployment.pid, deployment.sql.port) == 2
        stop(deployment, timeout_s=PATIENCE_S, progress=Listening())
    drains = [text for text in said if text.startswith("draining")]
    assert any(" open" in text and "graceful shutdown" in text for text in drains), said
    assert all("at most 60 s" in text for text in drains)


def test_a_drain_beyond_the_limit_is_left_alone(site: Instance) -> None:
    site.environment = {"MINIKWDB_FAULT": "slow-drain:600"}
    deployment = capture.capture(site.start())
    asked = []
    with pytest.raises(NotStoppedError) as caught:
        stop(deployment, timeout_s=0.5, progress=QUIET, ask=lambda: bool(asked.append(1)))
    assert asked == [1]
    assert "not killed" in caught.value.context
    assert "--force-stop-after" in caught.value.hint
    assert proc.is_alive(deployment.pid, deployment.started_at)


@pytest.mark.parametrize("consent", ["asked", "agreed before"])
def test_a_server_that_ignores_sigterm_is_killed_with_consent_only(site: Instance, consent: str) -> None:
    site.environment = {"MINIKWDB_FAULT": "ignore-sigterm"}
    deployment = capture.capture(site.start())
    with pytest.raises(NotStoppedError):
        stop(deployment, timeout_s=0.3, progress=QUIET)
    assert proc.is_alive(deployment.pid, deployment.started_at)
    said: list[str] = []

    class Listening(type(QUIET)):  # type: ignore[misc]
        def note(self, text: str) -> None:
            said.append(text)

    if consent == "asked":
        result = stop(deployment, timeout_s=0.3, progress=Listening(), ask=lambda: True)
    else:
        result = stop(deployment, timeout_s=60, force_after_s=0.3, progress=Listening())
    assert result.forced
    assert not result.drained
    assert any("killing" in text for text in said)
    assert not proc.is_alive(deployment.pid, deployment.started_at)
    assert locks.holder(site.store) is None


def test_stopping_what_has_ended_touches_nobody(site: Instance) -> None:
    deployment = capture.capture(site.start())
    site.kill()
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as bystander:
        reused = dataclasses.replace(deployment, pid=bystander.pid, started_at=deployment.started_at - 1000)
        result = stop(reused, timeout_s=5, progress=QUIET)
        assert not result.drained
        assert not result.forced
        assert bystander.poll() is None
        bystander.kill()


def test_a_store_that_somebody_else_took_is_named(site: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = capture.capture(site.start())
    site.kill()
    other = Instance(root=site.root, store_name=site.store_name, background=False)  # on ports of its own
    try:
        taker = other.start()
        assert locks.holder(site.store) == taker
        monkeypatch.setattr("kwdb_build.server.stop._LOCK_GRACE_S", 0.2)
        with pytest.raises(NotStoppedError) as caught:
            stop(deployment, timeout_s=5, progress=QUIET)
        assert f"pid {taker}" in caught.value.context
        assert other.pid() == taker
    finally:
        other.kill()
    assert locks.holder(site.store) is None
    assert (site.store / "LOCK").exists()


@both
@pytest.mark.parametrize(("when", "words"), [("start", "refused by a fault"), ("bootstrap", "file is not a database")])
def test_a_server_that_dies_shows_its_last_words(
    site: Instance, tmp_path: Path, background: bool, when: str, words: str
) -> None:
    deployment, expect = stopped(site)
    deployment = in_background(deployment) if background else deployment
    data, good = site.store / "relational.db", site.store / "set aside"
    if when == "bootstrap":  # it listens already, and the health page answers, when it finds out
        data.rename(good)
        data.write_bytes(b"no SQLite" * 1000)
    started = start(with_fault(deployment, "refuse-start" * (when == "start")).start, log_dir=tmp_path / "run")
    with pytest.raises(StartError) as caught:
        wait(deployment, started)
    assert "ended before it was ready" in caught.value.message
    assert words in caught.value.context
    abandon(started, [site.store], progress=QUIET)
    if when == "bootstrap":
        good.replace(data)
    wait(deployment, start(deployment.start, log_dir=tmp_path / "run"), expect)


@both
def test_a_server_that_hangs_is_given_up_and_can_be_ended(site: Instance, tmp_path: Path, background: bool) -> None:
    deployment, expect = stopped(site)
    deployment = in_background(deployment) if background else deployment
    started = start(with_fault(deployment, "hang-before-ready,ignore-sigterm").start, log_dir=tmp_path / "run")
    with pytest.raises(StartError) as caught:
        wait(deployment, started, timeout_s=1.5)
    assert "gave up after 1.5 s" in caught.value.message
    assert "waiting for cluster initialization" in caught.value.context
    assert started.processes()
    abandon(started, [site.store], grace_s=0.3, progress=QUIET)
    assert not started.processes()
    assert locks.holder(site.store) is None
    wait(deployment, start(deployment.start, log_dir=tmp_path / "run"), expect)


def test_a_lost_store_is_noticed(site: Instance, tmp_path: Path) -> None:
    deployment, expect = stopped(site)
    site.store.rename(tmp_path / "elsewhere")
    with pytest.raises(StartError) as caught:
        wait(deployment, start(deployment.start, log_dir=tmp_path / "run"), expect)
    assert logs.NEW_CLUSTER in caught.value.message
    assert expect.cluster_id in caught.value.context


def test_a_taken_port(site: Instance, install_server: Callable[..., Instance], tmp_path: Path) -> None:
    deployment, _ = stopped(site)
    pid = install_server(name="other", background=False, sql_port=site.sql_port).start()
    with pytest.raises(StartError) as caught:
        address.require_ports_free([deployment.sql, deployment.http])
    assert f"pid {pid}" in caught.value.context
    with pytest.raises(StartError) as died:
        wait(deployment, start(deployment.start, log_dir=tmp_path / "run"))
    assert "address already in use" in died.value.context


def test_a_crash_after_the_first_answer_is_seen(site: Instance, tmp_path: Path) -> None:
    deployment, expect = stopped(site)
    started = start(with_fault(deployment, "die-after:1").start, log_dir=tmp_path / "run")
    ready = wait(deployment, started, expect)
    deadline = time.monotonic() + PATIENCE_S
    while proc.is_alive(ready.pid, ready.started_at) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not proc.is_alive(ready.pid, ready.started_at)
    assert command.reap(started.launched, PATIENCE_S) == 2  # a panic of Go
    assert "died on demand" in started.last_words()


@pytest.mark.parametrize("what", ["bin/kwbase", "lib/libkwdbts2.so"])
def test_files_replaced_under_a_running_server(site: Instance, what: str) -> None:
    pid = site.start()
    newer = site.root / "newer"
    shutil.copy(site.root / what, newer)
    newer.replace(site.root / what)
    with pytest.raises(StartError) as caught:
        capture.capture(pid)
    assert "replaced or removed" in caught.value.message


def test_a_version_without_tags(site: Instance) -> None:
    program = site.root / "bin" / "kwbase"
    # The words that the linker stamps in: what a build from a clone without tags has instead is a commit's.
    program.write_bytes(program.read_bytes().replace(b"V1.0.0", b"fe5eeb"))
    pid = site.start()
    with pytest.raises(StartError, match="fe5eeb"):
        capture.capture(pid)


def test_a_renamed_binary_is_found_by_its_engine_and_two_are_told_apart(
    site: Instance, install_server: Callable[..., Instance]
) -> None:
    (site.root / "bin" / "kwbase").rename(site.root / "bin" / "mydb")
    site.program = "./mydb"
    second = install_server(name="second", background=True)
    pids = {site.start(), second.start()}
    found = [server for server in discover.find_servers() if server.pid in pids]
    assert len(found) == 2
    assert len([server for server in discover.find_servers() if second.store in server.stores]) == 1
    with pytest.raises(ServerNotFoundError) as caught:
        discover.choose(found, discover.Selector())
    assert all(f"pid {pid}" in caught.value.context for pid in pids)
    assert discover.choose(found, discover.Selector(listen=f"localhost:{site.sql_port}")).stores == (site.store,)


@needs_root
@pytest.mark.skipif(shutil.which("unshare") is None, reason="makes namespaces with unshare")
def test_a_server_in_namespaces_of_its_own_is_recognised(site: Instance) -> None:
    site.prefix = ("unshare", "--pid", "--fork", "--mount-proc")
    site.start()
    members = {process.pid for process in site.processes()}
    found = [server for server in discover.find_servers() if server.pid in members]
    assert [server.container for server in found] == [True]


def test_a_background_start_whose_name_leads_elsewhere(site: Instance, tmp_path: Path) -> None:
    deployment, expect = stopped(site)
    program, real = site.root / "bin" / "kwbase", site.root / "bin" / "kwbase.real"
    program.rename(real)
    program.symlink_to("/bin/true")
    moved = dataclasses.replace(deployment, start=dataclasses.replace(deployment.start, executable=real))
    with pytest.raises(StartError, match="no longer leads"):
        start(in_background(moved).start, log_dir=tmp_path / "run")
    started = start(moved.start, log_dir=tmp_path / "run")
    wait(deployment, started, expect)  # in the foreground the executable itself is run, under its old name
    assert proc.parse_cmdline(proc.read_bytes(started.launched, "cmdline"))[0] == "./kwbase"
