"""Who holds a store. The LOCK file stays after a stop and proves nothing; the lock on it does.

RocksDB takes a POSIX record lock (fcntl) on <store>/LOCK; F_GETLK tells the holder's pid without taking anything.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from kwdb_build import files
from kwdb_build.errors import AccessError, NotStoppedError
from kwdb_build.server import proc

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from kwdb_build.console import Progress

LOCK_NAME = "LOCK"
HIDDEN_HOLDER = 0
"""Answer of holder() for a process that this one cannot see (another pid namespace, another machine by NFS)."""
_POLL_S = 0.05


def holder(store: Path) -> int | None:
    """Pid of the process that has the store open, None when nobody has; HIDDEN_HOLDER when it cannot be told who.

    Must not be called by a process that holds the lock itself (closing the file would drop it).
    Errors: AccessError.
    """
    path = store / LOCK_NAME
    try:
        return files.record_lock_holder(path)
    except PermissionError as error:
        raise AccessError(
            f"not allowed to read {path}", context=f"running as {proc.user_name(os.geteuid())}",
            hint="run kwdb-build as the server's user or as root",
        ) from error


def holders(stores: Iterable[Path]) -> dict[Path, int]:
    """The stores that somebody holds, with the holder's pid."""
    return {store: pid for store in stores if (pid := holder(store)) is not None}


def wait_free(stores: Iterable[Path], timeout_s: float, progress: Progress) -> None:
    """Wait until nobody holds any of the stores; NotStoppedError names store and holder after timeout_s."""
    paths = tuple(stores)
    deadline = time.monotonic() + timeout_s
    while held := holders(paths):
        if time.monotonic() >= deadline:
            lines = [f"{store}: held by {describe(pid)}" for store, pid in held.items()]
            raise NotStoppedError(
                f"a store is still in use after {timeout_s:g} s", context="\n".join(lines),
                hint="end that process",
            )
        progress.update(f"waiting for the lock on {next(iter(held))}")
        time.sleep(_POLL_S)


def describe(pid: int) -> str:
    """A holder in words."""
    if pid == HIDDEN_HOLDER:
        return "a process that is not visible from here"
    try:
        return f"pid {pid} ({proc.read_status(pid).name})"
    except OSError:
        return f"pid {pid}"
