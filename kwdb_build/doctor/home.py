"""The tool's own home: rights, room, caches, who holds which lock, runs that were cut off. Read only."""

from __future__ import annotations

import fcntl
import os
import pwd
import stat
from typing import TYPE_CHECKING

from kwdb_build.errors import KwdbBuildError
from kwdb_build.files import free_bytes, human_bytes
from kwdb_build.host.machine import file_system
from kwdb_build.model import CheckResult, Verdict
from kwdb_build.upgrade.lock import at_work, flock_holder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LEAST_BYTES = 10 << 30
_CACHES = ("sources", "images", "artifacts", "toolchains", "runs", "work", "logs", "sandbox")
_NETWORK = ("nfs", "cifs", "smb", "9p", "fuse.sshfs")


def directory(home: Path) -> Iterator[CheckResult]:
    """Whether the home can be used, by whom, how much room it has, and on what it lies."""
    yield _rights(home)
    free = free_bytes(home)
    yield CheckResult(
        name="room", verdict=Verdict.OK if free >= _LEAST_BYTES else Verdict.WARN, group="home",
        required=f"{human_bytes(_LEAST_BYTES)} for one build of KWDB, and the size of the data for a backup",
        found=f"{human_bytes(free)} free", where=str(home),
        fix="" if free >= _LEAST_BYTES else "free space there, or choose another place with --home",
    )
    kind = file_system(home)
    fix = ""
    if kind.startswith(_NETWORK):
        fix = "locks and renames are not safe on it: choose a local place with --home"
    elif kind in {"tmpfs", "ramfs"}:
        fix = "backups would vanish with a restart of the machine: choose a place on a disk with --home"
    yield CheckResult(
        name="file system", verdict=Verdict.WARN if fix else Verdict.OK if kind else Verdict.UNKNOWN, group="home",
        required="on a local disk", found=kind or "not found out", where=str(home), fix=fix,
    )


def _rights(home: Path) -> CheckResult:
    required = "a directory of this user, closed to others"
    if not home.exists():
        parent = next(place for place in home.parents if place.exists())
        usable = os.access(parent, os.W_OK | os.X_OK)
        return CheckResult(
            name="home", verdict=Verdict.OK if usable else Verdict.FAIL, required=required, where=str(home),
            group="home", found="not there yet" + ("" if usable else f", and this user may not write to {parent}"),
            fix="" if usable else "choose another place with --home or KWDB_BUILD_HOME",
        )
    info = home.stat()
    owner = _name(info.st_uid)
    if not home.is_dir() or not os.access(home, os.R_OK | os.W_OK | os.X_OK):
        return CheckResult(
            name="home", verdict=Verdict.FAIL, required=required, where=str(home), group="home",
            found=f"belongs to {owner}, mode {stat.S_IMODE(info.st_mode):04o}: this user cannot use it",
            fix=f"run as {owner}, or choose another place with --home",
        )
    others = bool(info.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
    return CheckResult(
        name="home", verdict=Verdict.WARN if others else Verdict.OK, required=required, where=str(home), group="home",
        found=f"belongs to {owner}, mode {stat.S_IMODE(info.st_mode):04o}",
        fix=f"others may write to it: chmod go-w {home}" if others else "",
    )


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def caches(home: Path) -> Iterator[CheckResult]:
    """Size of each part of the home."""
    sizes = {name: _size(home / name) for name in _CACHES if (home / name).is_dir()}
    words = ", ".join(f"{name} {human_bytes(size)}" for name, size in sizes.items())
    yield CheckResult(name="caches", verdict=Verdict.OK, found=words or "empty", where=str(home), group="home")


def _size(place: Path) -> int:
    """Bytes on disk below a place; hard links count once."""
    seen: dict[tuple[int, int], int] = {}
    for here, _, names in os.walk(place):
        for name in names:
            try:
                info = os.lstat(os.path.join(here, name))  # noqa: PTH118 - many files
            except OSError:
                continue
            seen[info.st_dev, info.st_ino] = info.st_blocks * 512
    return sum(seen.values())


def locks(home: Path) -> Iterator[CheckResult]:
    """Who holds the upgrade lock and the locks of images that are being made."""
    held = [f"upgrade: {who}"] if (who := at_work(home)) is not None else []
    images = {path.stem: _held(path) for path in sorted((home / "images").glob("*.lock"))}
    held += [f"image {name}: {holder}" for name, holder in images.items() if holder is not None]
    yield CheckResult(name="locks", verdict=Verdict.WARN if held else Verdict.OK, group="home",
                      found="; ".join(held) or "none is held", fix="wait for it: `kwdb-build status`" if held else "")


def _held(path: Path) -> str | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return flock_holder(fd)
    finally:
        os.close(fd)
    return None


def runs(home: Path) -> Iterator[CheckResult]:
    """Runs that were cut off, the newest one, and the servers of this machine."""
    from kwdb_build.server.discover import find_servers
    from kwdb_build.upgrade.overview import overview
    from kwdb_build.upgrade.rundir import RunDirectory
    from kwdb_build.upgrade.session import is_open

    try:
        view = overview(home)
        cut_off = [run.id for run in RunDirectory.all(home) if is_open(run)] if view.outcome != "running" else []
    except (KwdbBuildError, OSError, ValueError) as error:
        yield CheckResult(name="runs", verdict=Verdict.UNKNOWN, found=f"cannot be read: {error}", where=str(home),
                          group="runs")
    else:
        yield CheckResult(
            name="runs", verdict=Verdict.FAIL if cut_off else Verdict.OK, group="runs",
            found=f"cut off: {', '.join(cut_off)}" if cut_off else view.sentence,
            fix="`kwdb-build resume`, or `kwdb-build rollback`" if cut_off else "",
        )
    yield _units(home)
    servers = find_servers()
    yield CheckResult(name="servers", verdict=Verdict.OK, group="runs",
                      found="; ".join(server.describe() for server in servers) or "no running kwbase")


def _units(home: Path) -> CheckResult:
    """Whether a run or restart that was cut off still keeps systemd from starting a server.

    One that is under way with another home cannot be told from it: its lock is there.
    """
    from kwdb_build.server.systemd import held

    left = held() if at_work(home) is None else ()
    return CheckResult(
        name="units", verdict=Verdict.WARN if left else Verdict.OK, group="runs",
        found=f"held by {', '.join(map(str, left))}: of a run that was cut off, or one under way with another --home"
        if left else "none is held",
        fix="where no kwdb-build runs: finish the run (`kwdb-build status`) or do the restart again; the file tells "
        "the rest" if left else "",
    )
