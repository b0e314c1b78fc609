"""Control groups: where they are, which are joined again, and what is said of those that cannot be."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
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


LOGIN = "0::/user.slice/user-65534.slice/session-7.scope"


@pytest.fixture
def logind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """What busctl prints of systemd-logind's settings, and systemctl of any unit's KillMode=."""

    def say(kill: bool, only: str = "as 0", exempt: str = 'as 1 "root"', mode: str = "process") -> None:
        for program, text in (("busctl", f"b {str(kill).lower()}\n{only}\n{exempt}"), ("systemctl", mode)):
            (tmp_path / program).write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
            (tmp_path / program).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return say


@pytest.mark.usefixtures("mounted")
def test_a_login_that_takes_its_processes_along_is_told(logind: Callable[..., None]) -> None:
    logind(kill=False)
    assert cgroups.ends_with((LOGIN,), ("0::/",)) == ""
    logind(kill=True)
    told = cgroups.ends_with((LOGIN,), ("0::/",))
    assert "session-7.scope" in told
    assert "KillUserProcesses" in told
    assert cgroups.ends_with((LOGIN,), (LOGIN.replace("0::", "12::", 1),)) == "", "it was so before"
    assert cgroups.ends_with((LOGIN.replace("65534", "0"),), ()) == "", "root is exempt"
    logind(kill=True, only='as 2 "eve" "mallory"')
    assert cgroups.ends_with((LOGIN,), ()) == ""
    logind(kill=True, only='as 2 "eve" "nobody"')
    assert cgroups.ends_with((LOGIN,), ()) != ""


def test_who_joins_its_own_group_again_does_not_end_with_ours(
    logind: Callable[..., None], mounted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logind(kill=True)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for path in ("/kw", "/system.slice/kaiwudb.service"):
        (mounted / path.lstrip("/")).mkdir(parents=True)
        (mounted / path.lstrip("/") / "cgroup.procs").touch()
    assert cgroups.ends_with((LOGIN,), ("0::/kw",)) == ""
    assert cgroups.ends_with((LOGIN,), ("0::/system.slice/kaiwudb.service",)) != "", "systemd's: it is not joined"
    assert cgroups.ends_with((LOGIN,), ("0::/lost",)) != ""
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    assert cgroups.ends_with((LOGIN,), ("0::/kw",)) != ""


@pytest.mark.usefixtures("mounted")
def test_a_service_takes_its_processes_along(logind: Callable[..., None]) -> None:
    there = ("1:name=systemd:/system.slice/runner.service",)
    logind(kill=False)
    assert cgroups.ends_with(there, ("0::/",)) == ""
    logind(kill=False, mode="control-group")
    assert "runner.service" in cgroups.ends_with(there, ("0::/",))
    for path in ("/", "/system.slice/run-r1.scope", "/user.slice/user-1.slice/user@1.service/app.slice/x.scope"):
        assert cgroups.ends_with((f"0::{path}",), ()) == ""


def test_without_logind_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert not cgroups.kills_at_logout("nobody")
