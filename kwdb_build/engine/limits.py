"""Limits of a sandbox: a control group where this process may make one, else limits of each process.

Both generations of control groups. What could not be enforced is said in `lacking`, never passed over.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kwdb_build.engine.owner import owner, owner_lives

if TYPE_CHECKING:
    from collections.abc import Iterator

CGROUPS = Path("/sys/fs/cgroup")
_PREFIX = "kwdb-build."
_PIDS_LIMIT = 8192
_PERIOD_US = 100_000
_REMOVE_TRIES = 50


@dataclass(kw_only=True)
class Limits:
    """What one run is held to: directories of its control groups, a prefix for its command, and what is lacking."""

    groups: list[Path] = field(default_factory=list)
    prefix: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)

    def take(self, pid: int) -> None:
        """Put a process, and all it starts from now on, into the groups."""
        for group in self.groups:
            (group / "cgroup.procs").write_text(str(pid), encoding="ascii")

    def out_of_memory(self) -> bool:
        """Whether the kernel killed something of the groups for memory."""
        for group in self.groups:
            for name in ("memory.events", "memory.oom_control"):
                with contextlib.suppress(OSError):
                    for line in (group / name).read_text(encoding="ascii").splitlines():
                        word, _, count = line.partition(" ")
                        if word == "oom_kill" and count.strip() != "0":
                            return True
        return False


@contextlib.contextmanager
def limited(memory_bytes: int, cpus: float, *, root: Path = CGROUPS) -> Iterator[Limits]:
    """Limits for one run; the groups are removed at the end, and those of killed runs with them."""
    limits = Limits()
    try:
        wanted = {"memory": memory_bytes > 0, "cpu": cpus > 0, "pids": True}
        found = controllers(root, Path("/proc/self/cgroup").read_text(encoding="utf-8"))
        name = f"{_PREFIX}{_coded(owner())}.{uuid.uuid4().hex[:8]}"
        for kind in [kind for kind, needed in wanted.items() if needed]:
            parent = found.get(kind)
            try:
                if parent is None:
                    raise FileNotFoundError(f"no control group for {kind}")
                _remove_dead(parent)
                group = parent / name
                group.mkdir(exist_ok=True)
                if group not in limits.groups:
                    limits.groups.append(group)
                _write(group, kind, memory_bytes, cpus)
            except OSError as error:
                _fall_back(limits, kind, memory_bytes, cpus, error)
        yield limits
    finally:
        for group in limits.groups:
            _remove(group)


def controllers(root: Path, own: str) -> dict[str, Path]:
    """Controller -> directory below which a group can be made; own is the text of /proc/self/cgroup.

    In the first generation that is this process's own group of the controller. In the second, processes may only be in
    leaves: the nearest ancestor that hands the controller down, and that we may write to.
    """
    found: dict[str, Path] = {}
    for line in own.splitlines():
        _, names, path = line.split(":", 2)
        here = path.lstrip("/")
        if not names:
            for place in (root / here, *(root / here).parents):
                if place.is_relative_to(root) and os.access(place / "cgroup.procs", os.W_OK):
                    for name in _handed_down(place):
                        found.setdefault(name, place)
        for name in filter(None, names.split(",")):
            if mounted := next((place for place in (root / name, root / names) if place.is_dir()), None):
                # a container is told the name of its group on the host, and sees it as the top
                found.setdefault(name, mounted / here if (mounted / here).is_dir() else mounted)
    return found


def _handed_down(place: Path) -> list[str]:
    try:
        return (place / "cgroup.subtree_control").read_text(encoding="ascii").split()
    except OSError:
        return []


def _write(group: Path, kind: str, memory_bytes: int, cpus: float) -> None:
    second = (group / "cgroup.controllers").is_file()
    if kind == "memory":
        limit, total, total_value = (
            ("memory.max", "memory.swap.max", 0) if second
            else ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", memory_bytes)
        )
        (group / limit).write_text(str(memory_bytes), encoding="ascii")
        with contextlib.suppress(OSError):  # a kernel without swap accounting
            (group / total).write_text(str(total_value), encoding="ascii")
    elif kind == "cpu":
        quota = max(1000, int(cpus * _PERIOD_US))
        if second:
            (group / "cpu.max").write_text(f"{quota} {_PERIOD_US}", encoding="ascii")
        else:
            (group / "cpu.cfs_period_us").write_text(str(_PERIOD_US), encoding="ascii")
            (group / "cpu.cfs_quota_us").write_text(str(quota), encoding="ascii")
    else:
        (group / "pids.max").write_text(str(_PIDS_LIMIT), encoding="ascii")


def _fall_back(limits: Limits, kind: str, memory_bytes: int, cpus: float, error: OSError) -> None:
    """Hold each process to the limit, where the whole cannot be held to it."""
    why = f"no control group can be made here: {error.strerror or error}"
    if kind == "memory":
        if shutil.which("prlimit"):
            limits.prefix += ["prlimit", f"--data={memory_bytes}", "--"]
            limits.lacking.append(f"the memory limit holds for each process, not for all together ({why})")
        else:
            limits.lacking.append(f"the memory limit is not enforced ({why}, and there is no prlimit)")
    elif kind == "cpu":
        allowed = sorted(os.sched_getaffinity(0))[: math.ceil(cpus)]
        if shutil.which("taskset"):
            limits.prefix += ["taskset", "--cpu-list", ",".join(map(str, allowed))]
            if cpus != len(allowed):
                limits.lacking.append(f"whole cores only: {len(allowed)} instead of {cpus:g} ({why})")
        else:
            limits.lacking.append(f"the limit of cores is not enforced ({why}, and there is no taskset)")


def _remove_dead(parent: Path) -> None:
    """Remove what killed runs left: groups without processes whose maker is gone."""
    for group in parent.glob(f"{_PREFIX}*"):
        made_by = group.name.removeprefix(_PREFIX).rpartition(".")[0]
        if not owner_lives(_decoded(made_by)):
            with contextlib.suppress(OSError):
                group.rmdir()


def _remove(group: Path) -> None:
    for _ in range(_REMOVE_TRIES):  # the last process may be in the middle of its end
        try:
            group.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.02)
        else:
            return


def _coded(text: str) -> str:
    return text.encode().hex()


def _decoded(text: str) -> str:
    with contextlib.suppress(ValueError):
        return bytes.fromhex(text).decode("utf-8", "replace")
    return ""
