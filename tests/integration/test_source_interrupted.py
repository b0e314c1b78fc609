"""Fetches that are stopped, killed, crowded or starved of disk: the next one goes on from there."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from kwdb_build.errors import LockedError, SourceError, SpaceError
from kwdb_build.source import checkout as checkout_module
from kwdb_build.source import mirror as mirror_module
from kwdb_build.source.reference import Redirect
from tests.unit.source.gitserver import http_server
from tests.unit.source.sourcebox import HOST, Machine, Upstream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.unit.source.gitserver import Behaviour

WAIT_S = 30

CHILD = """
import sys
from pathlib import Path
from kwdb_build.console import Progress
from kwdb_build.source.fetch import SourceRequest, fetch
from kwdb_build.source.reference import parse_redirect
url, ref, redirect, home = sys.argv[1:]
tree = fetch(
    SourceRequest(url=url, ref=ref, redirects=(parse_redirect(redirect),)), home=Path(home), progress=Progress(),
    log=Path(home) / "child.log",
)
print(tree.commit)
"""


@pytest.fixture
def served(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Behaviour]]:
    for name in ("http_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with http_server(upstream.root / "mirror") as (base, behaviour):
        yield f"{base}kwdb/", behaviour


def start_child(machine: Machine, base: str, ref: str = "V1.0.0") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, f"{HOST}kwdb.git", ref, f"{HOST}={base}", str(machine.home)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )


def gits_at(home: Path) -> list[psutil.Process]:
    return [
        process for process in psutil.process_iter(["name", "cwd"])
        if (process.info["cwd"] or "").startswith(str(home)) and process.info["name"].startswith("git")
    ]


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_fetch_that_is_stopped_in_the_middle_is_done_by_the_next_one(
    machine: Machine, upstream: Upstream, served: tuple[str, Behaviour], signum: signal.Signals
) -> None:
    base, behaviour = served
    behaviour.silent.set()
    child = start_child(machine, base)
    try:
        assert behaviour.busy.wait(WAIT_S)
        wait_for(lambda: gits_at(machine.home))
        os.kill(child.pid, signum)
        _, stderr = child.communicate(timeout=WAIT_S)
    finally:
        child.kill()
        child.wait()
    assert child.returncode != 0
    if signum == signal.SIGINT:
        assert "KeyboardInterrupt" in stderr
        assert not gits_at(machine.home), "git went on after Ctrl-C"
        assert not list(machine.home.rglob("tmp_*"))
    behaviour.silent.clear()
    assert machine.fetch("V1.0.0", redirects=(Redirect(prefix=HOST, replacement=base),)).commit == (
        upstream.commits["V1.0.0"]
    )
    assert not list((machine.home / "cache").rglob("tmp_*"))


def test_what_a_killed_git_leaves_is_cleared(machine: Machine, upstream: Upstream) -> None:
    machine.fetch("V1.0.0")
    for cache in machine.caches:
        for name in ("packed-refs.lock", "HEAD.lock", "config.lock", "refs/heads/master.lock"):
            (cache / name).parent.mkdir(parents=True, exist_ok=True)
            (cache / name).write_text("")
        (cache / "objects" / "pack" / "tmp_pack_Ab12Cd").write_bytes(b"PACK half")
    moved = upstream.main.commit("moved", {"a": "b"})
    upstream.push()
    assert machine.fetch("master").commit == moved
    assert not list(machine.caches[0].rglob("tmp_pack_*"))


def test_two_fetches_at_once_both_get_it(machine: Machine, upstream: Upstream) -> None:
    first, second = start_child(machine, upstream.mirror), start_child(machine, upstream.mirror, "master")
    outputs = [child.communicate(timeout=2 * WAIT_S) for child in (first, second)]
    assert [out.strip() for out, _ in outputs] == [upstream.commits["V1.0.0"], upstream.commits["master"]], outputs


def test_a_lock_that_stays_names_its_holder(
    machine: Machine, upstream: Upstream, served: tuple[str, Behaviour]
) -> None:
    base, behaviour = served
    behaviour.silent.set()
    child = start_child(machine, base)
    try:
        assert behaviour.busy.wait(WAIT_S)
        with pytest.raises(LockedError) as caught:
            machine.fetch("V1.0.0", redirects=(Redirect(prefix=HOST, replacement=base),), lock_timeout_s=0.2)
        assert f"pid {child.pid}" in caught.value.context
        assert f"fetching {HOST}kwdb.git" in caught.value.context
        # While it waited, the person was told for whom.
        assert any(f"waiting for pid {child.pid}" in text for text, _, _ in machine.said.updates)
        behaviour.silent.clear()
        assert child.communicate(timeout=WAIT_S)[0].strip() == upstream.commits["V1.0.0"]
    finally:
        child.kill()
        child.wait()


def test_a_waiting_fetch_goes_on_when_the_lock_is_free(machine: Machine, served: tuple[str, Behaviour]) -> None:
    base, behaviour = served
    behaviour.silent.set()
    child = start_child(machine, base)
    timer = threading.Timer(0.5, behaviour.silent.clear)
    try:
        assert behaviour.busy.wait(WAIT_S)
        timer.start()
        tree = machine.fetch("V1.0.0", redirects=(Redirect(prefix=HOST, replacement=base),))
        assert child.communicate(timeout=WAIT_S)[0].strip() == tree.commit
    finally:
        timer.cancel()
        child.kill()
        child.wait()


# --------------------------------------------------------------------------- space


@contextlib.contextmanager
def small_disk(place: Path, size: str) -> Iterator[Callable[[str], None]]:
    """A real file system of this size at place; call what it gives to make it larger."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr}")

    def resize(new: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={new}", str(place)], check=True)

    try:
        yield resize
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_disk_that_is_too_small_is_seen_before_anything_is_fetched(machine: Machine) -> None:
    with small_disk(machine.home, "20m"):
        with pytest.raises(SpaceError, match="not enough disk space for the source") as caught:
            machine.fetch("V1.0.0")
        assert str(machine.home) in caught.value.message
        assert "$ git fetch" not in machine.log.read_text()


def test_an_unknown_host_gets_a_larger_margin(machine: Machine, served: tuple[str, Behaviour]) -> None:
    with small_disk(machine.home, "200m"):
        with pytest.raises(SpaceError, match="not enough disk space"):
            machine.fetch("V1.0.0", redirects=(Redirect(prefix=HOST, replacement=served[0]),))
        assert machine.fetch("V1.0.0").commit


def test_a_disk_that_becomes_full_while_fetching(
    machine: Machine, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_module, "require_space", lambda *_: None)
    upstream.main.commit("big", {"big.bin": os.urandom(6_000_000)})
    upstream.push()
    with small_disk(machine.home, "3m") as resize:
        with pytest.raises(SpaceError, match="became full"):
            machine.fetch("master")
        assert not list((machine.home / "cache").rglob("tmp_*"))
        resize("300m")
        assert machine.fetch("master").commit == upstream.main.head


def test_a_disk_that_becomes_full_while_checking_out(
    machine: Machine, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.main.commit("packs well", {"text.txt": b"it packs well\n" * 1_500_000})
    upstream.push()
    with small_disk(machine.home, "10m") as resize:
        # First the precise check, that knows the size of the checkout; then without it, as a disk that others fill.
        monkeypatch.setattr(mirror_module, "MARGIN_BYTES", 0)
        monkeypatch.setattr(checkout_module, "MARGIN_BYTES", 0)
        with pytest.raises(SpaceError, match="not enough disk space for the checkout"):
            machine.fetch("master")
        monkeypatch.setattr(checkout_module, "require_space", lambda *_: None)
        with pytest.raises((SpaceError, SourceError)) as caught:
            machine.fetch("master")
        assert isinstance(caught.value, SpaceError), machine.log.read_text()
        assert machine.checkouts == []
        resize("300m")
        assert machine.fetch("master").commit == upstream.main.head
