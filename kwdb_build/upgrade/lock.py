"""One upgrade at a time: by home (with the holder's name), and by store whoever's home it is."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from kwdb_build.errors import AccessError, LockedError
from kwdb_build.files import private_directory, read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def hold_home(home: Path, what: str) -> Iterator[None]:
    """Hold the home's upgrade lock; LockedError names who has it and what they do."""
    try:
        private_directory(home)
    except OSError as error:
        raise AccessError(
            f"cannot use {home}: {error.strerror}", hint="choose another place with --home or KWDB_BUILD_HOME"
        ) from error
    lock = FileLock(home / "upgrade.lock")
    holder = home / "upgrade.lock.json"
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise LockedError(
            "another kwdb-build is at work here", context=_describe(holder), hint="wait for it: `kwdb-build status`"
        ) from error
    try:
        write_json(holder, {"pid": os.getpid(), "what": what, "since": time.strftime("%Y-%m-%d %H:%M:%S %z")})
        yield
    finally:
        with contextlib.suppress(OSError):  # a lost disk must not hide how it ended
            holder.unlink(missing_ok=True)
        lock.release()


def at_work(home: Path) -> str | None:
    """Who holds the home's lock at this moment, in words; None when nobody does. Writes nothing."""
    try:
        fd = os.open(home / "upgrade.lock", os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _describe(home / "upgrade.lock.json")
    finally:
        os.close(fd)
    return None


def _describe(holder: Path) -> str:
    try:
        values = read_json(holder)
        return f"pid {values['pid']}, since {values['since']}: {values['what']}"
    except (OSError, ValueError, KeyError):
        return "its holder did not write who it is"


@contextlib.contextmanager
def hold_stores(stores: tuple[Path, ...]) -> Iterator[None]:
    """Hold each store against other upgrades, also those with another home.

    flock(2) on the store directory itself: it writes nothing, ends with the process, and does not touch the fcntl lock
    that kwbase keeps on the file LOCK.
    """
    fds: list[int] = []
    try:
        for store in stores:
            fd = os.open(store, os.O_RDONLY | os.O_DIRECTORY)
            fds.append(fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise LockedError(
                    f"another upgrade works on the store {store}", context=flock_holder(fd),
                    hint="wait until it has ended",
                ) from error
        yield
    finally:
        for fd in fds:
            os.close(fd)


def flock_holder(fd: int) -> str:
    """Name the process that holds a flock, from /proc/locks (its third-last columns are pid, device:inode)."""
    info = os.fstat(fd)
    wanted = f"{os.major(info.st_dev):02x}:{os.minor(info.st_dev):02x}:{info.st_ino}"
    with contextlib.suppress(OSError), open("/proc/locks", encoding="ascii") as locks:  # noqa: PTH123
        for line in locks:
            fields = line.split()
            if len(fields) > 5 and fields[1] == "FLOCK" and fields[5] == wanted:  # noqa: PLR2004
                return f"held by pid {fields[4]}"
    return "its holder is not visible from here"
