"""Where control groups can be made, in both generations, and what is said when they cannot."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kwdb_build.engine import limits


def first_generation(root: Path) -> str:
    for place in ("memory/mine", "cpu,cpuacct/mine", "pids"):
        (root / place).mkdir(parents=True)
    return "4:memory:/mine\n3:cpu,cpuacct:/mine\n2:pids:/of/the/host\n1:name=systemd:/mine\n0::/\n"


def test_first_generation(tmp_path: Path) -> None:
    found = limits.controllers(tmp_path, first_generation(tmp_path))
    assert found["memory"] == tmp_path / "memory/mine"
    assert found["cpu"] == tmp_path / "cpu,cpuacct/mine"
    assert found["pids"] == tmp_path / "pids", "a container sees its own group as the top"


def test_second_generation_goes_up_to_who_hands_controllers_down(tmp_path: Path) -> None:
    leaf = tmp_path / "user.slice" / "session.scope"
    leaf.mkdir(parents=True)
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    for place, down in ((tmp_path, "cpu memory pids"), (tmp_path / "user.slice", "memory pids"), (leaf, "")):
        (place / "cgroup.subtree_control").write_text(down)
        (place / "cgroup.procs").write_text("")
    found = limits.controllers(tmp_path, "0::/user.slice/session.scope\n")
    assert found == {"memory": tmp_path / "user.slice", "pids": tmp_path / "user.slice", "cpu": tmp_path}


def test_group_files_of_both_generations(tmp_path: Path) -> None:
    root = tmp_path / "one"
    text = first_generation(root)
    limits._write(root / "memory/mine", "memory", 1 << 30, 0)
    limits._write(root / "cpu,cpuacct/mine", "cpu", 0, 1.5)
    assert "mine" in text
    assert (root / "memory/mine/memory.limit_in_bytes").read_text() == str(1 << 30)
    assert (root / "cpu,cpuacct/mine/cpu.cfs_quota_us").read_text() == "150000"
    second = tmp_path / "two"
    second.mkdir()
    (second / "cgroup.controllers").write_text("")
    limits._write(second, "memory", 1 << 30, 0)
    limits._write(second, "cpu", 0, 1.5)
    assert (second / "memory.max").read_text() == str(1 << 30)
    assert (second / "memory.swap.max").read_text() == "0"
    assert (second / "cpu.max").read_text() == "150000 100000"


def test_without_groups_each_process_is_held_and_it_is_said(tmp_path: Path) -> None:
    with limits.limited(1 << 30, 0.5, root=tmp_path) as found:
        assert found.groups == []
        assert found.prefix[:2] == ["prlimit", f"--data={1 << 30}"]
        first = min(os.sched_getaffinity(0))
        assert found.prefix[-3:] == ["taskset", "--cpu-list", str(first)]
        assert "for each process, not for all together" in found.lacking[0]
        assert "whole cores only: 1 instead of 0.5" in found.lacking[1]
        assert not found.out_of_memory()


def test_neither_groups_nor_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with limits.limited(1 << 30, 1, root=tmp_path) as found:
        assert found.prefix == []
        assert [line.split(" (")[0] for line in found.lacking] == [
            "the memory limit is not enforced", "the limit of cores is not enforced",
        ]


@pytest.mark.parametrize(
    ("name", "text", "killed"),
    [
        ("memory.events", "low 0\nmax 12\noom 1\noom_kill 1\n", True),
        ("memory.events", "low 0\noom_kill 0\n", False),
        ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", True),
    ],
)
def test_out_of_memory(tmp_path: Path, name: str, text: str, killed: bool) -> None:
    (tmp_path / name).write_text(text)
    assert limits.Limits(groups=[tmp_path]).out_of_memory() is killed


def test_groups_of_dead_makers_are_removed_others_stay(tmp_path: Path) -> None:
    dead, living = f"{limits._PREFIX}{limits._coded('elsewhere:1:2')}.aa", f"{limits._PREFIX}zz.bb"
    mine = f"{limits._PREFIX}{limits._coded(limits.owner())}.cc"
    place, _, _ = limits.owner().rpartition(":")
    gone = f"{limits._PREFIX}{limits._coded(place + ':0')}.dd"
    for name in (dead, living, mine, gone, "others"):
        (tmp_path / name).mkdir()
    limits._remove_dead(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([dead, mine, "others"])
