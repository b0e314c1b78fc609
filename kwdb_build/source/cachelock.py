"""Locks on parts of the cache, and what a killed git leaves in one."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

from kwdb_build.errors import LockedError, SourceError
from kwdb_build.files import read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kwdb_build.console import Progress

LOCK_TIMEOUT_S = 900.0
_ORPHAN_WAIT_S = 30.0


@contextlib.contextmanager
def hold(lock_path: Path, *, what: str, progress: Progress, timeout_s: float) -> Iterator[None]:
    """Hold a lock (flock) on part of the cache; wait up to timeout_s, then LockedError names the holder."""
    from filelock import FileLock, Timeout

    lock_path.parent.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(lock_path), lock_path.with_suffix(".holder")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress.update(f"waiting for {_holder(holder)}")
        try:
            lock.acquire(timeout=timeout_s)
        except Timeout:
            raise LockedError(
                f"another fetch holds {lock_path}", context=_holder(holder),
                hint=f"it was waited for {timeout_s:g} s; run this again when it has ended",
            ) from None
    try:
        with contextlib.suppress(OSError):  # a full disk must not hide the real error behind a courtesy
            write_json(holder, {"pid": os.getpid(), "what": what, "since": time.strftime("%Y-%m-%d %H:%M:%S %z")})
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _holder(path: Path) -> str:
    try:
        values = read_json(path)
        return f"pid {values['pid']}, since {values['since']}: {values['what']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another fetch that has not said who it is"


def set_aside(path: Path) -> Path | None:
    """Rename a damaged part of our own cache away; the new name, or None when there was nothing."""
    if not path.exists() and not path.is_symlink():
        return None
    for number in range(1, 1000):
        target = path.with_name(f"{path.name}.aside-{number}")
        if not target.exists():
            path.rename(target)
            return target
    raise SourceError(f"too many damaged copies beside {path}", hint="remove the ones that end in .aside-*")


def clear_leftovers(path: Path, progress: Progress) -> None:
    """Remove lock files and half packs that a killed git left in a cache whose lock we hold.

    A git that outlived its kwdb-build (kill -9) may still be writing: it is waited for, then left alone.
    """
    leftovers = [
        *path.glob("*.lock"), *path.glob("refs/**/*.lock"), *path.glob("objects/pack/tmp_*"),
        *path.glob("objects/pack/.tmp-*"), *path.glob("objects/info/*.lock"), *path.glob("objects/??/tmp_obj_*"),
    ]
    if not leftovers:
        return
    deadline = time.monotonic() + _ORPHAN_WAIT_S
    while _in_use(path):
        if time.monotonic() > deadline:
            raise LockedError(f"a git process of an earlier run still works in {path}", hint="wait until it has ended")
        progress.update("waiting for a git process of an earlier run")
        time.sleep(0.2)
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)


def _in_use(path: Path) -> bool:
    """Whether a process works in path (git starts in its repository)."""
    import psutil

    return any(
        (process.info["name"] or "").startswith("git") and process.info["cwd"] == str(path)
        for process in psutil.process_iter(["name", "cwd"])
    )
