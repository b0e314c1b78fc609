"""Control groups: where they are, which are joined again, and what is said of those that cannot be."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kwdb_build.server import cgroups


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree that looks like version 2; the kernel's own is not ours to change."""
    monkeypatch.setattr(cgroups, "ROOT", tmp_path)
    return tmp_path


def test_where_a_group_is(mounted: Path) -> None:
    assert cgroups.directory("", "/kw") == mounted / "kw"
    assert cgroups.directory("memory", "/kw") == mounted / "memory/kw"
    assert cgroups.directory("cpu,cpuacct", "/a/b") == mounted / "cpu,cpuacct/a/b"
    assert cgroups.directory("name=systemd", "/kw") == mounted / "systemd/kw"
    (mounted / "unified").mkdir()
    assert cgroups.directory("", "/kw") == mounted / "unified/kw"


def test_a_group_made_by_hand_is_joined_and_a_lost_one_is_told(mounted: Path) -> None:
    (mounted / "kw").mkdir()
    with subprocess.Popen(["sleep", "60"]) as child:
        try:
            assert cgroups.join(child.pid, ("0::/kw", *cgroups.lines(child.pid))) == ()
            assert (mounted / "kw/cgroup.procs").read_text() == str(child.pid)
            (note,) = cgroups.join(child.pid, ("0::/lost",))
        finally:
            child.kill()
    assert "/lost" in note
    assert "No such file" in note


@pytest.mark.parametrize("path", [
    "/user.slice/user-0.slice/session-3.scope", "/user.slice/user-1.slice/user@1.service/app.slice/x.scope",
    "/system.slice/kaiwudb.service", "/system.slice/cron.service/child", "/init.scope",
])
def test_groups_of_systemd_are_left_to_it(mounted: Path, path: str) -> None:
    place = mounted / path.lstrip("/")
    place.mkdir(parents=True)
    with subprocess.Popen(["sleep", "60"]) as child:
        try:
            assert cgroups.join(child.pid, (f"0::{path}",)) == ()
        finally:
            child.kill()
    assert not (place / "cgroup.procs").exists()
