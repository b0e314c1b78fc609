"""What builds leave for the next one: objects that ccache keeps, and Go's packages.

<root>/<toolchain>-<lock>-r<recipe>.lock         shared while a build uses them, exclusive while they are looked after
<root>/<toolchain>-<lock>-r<recipe>/data/ccache  checks its entries' sums by itself
<root>/<toolchain>-<lock>-r<recipe>/data/go      does not: Go only looks at their size, so we check them before a build
                                                 (linked/, programs: their sum is looked at when one is used)
<root>/<toolchain>-<lock>-r<recipe>/kept         KWDB's bundled libraries, built (see kept)

A place of its own for each toolchain lock and recipe version: what another compiler made, or this one under another
recipe, is never asked for. Whoever may write here decides what later builds consist of, so a place is used only while
nobody but the build's user may.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kwdb_build.build import kept
from kwdb_build.build.recipe import LINKED, RECIPE_VERSION
from kwdb_build.files import tree_bytes
from kwdb_build.scratch import remove_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kwdb_build.console import Progress
    from kwdb_build.model import Toolchain

DIRECTORY = "build-cache"
"""Below home."""
PARTS = ("ccache", "go")
CCACHE_SHARE, GO_SHARE, KEPT_SHARE = 2, 4, 4
"""How much of the limit each may take: one of so many parts."""
_DIGEST_LENGTH = 64
_PRUNE_TO = 0.9
_LOOK_S = 0.05


@dataclass(frozen=True, kw_only=True)
class CacheFacts:
    """One toolchain's caches: sizes in bytes, and when a build used them last (unix seconds)."""

    name: str
    path: Path
    ccache_bytes: int
    go_bytes: int
    kept_bytes: int
    used_at: float


def place_of(root: Path, toolchain: Toolchain) -> Path:
    """Where the caches of a toolchain's lock and of our way to build are."""
    return root / f"{toolchain.name}-{toolchain.lock_digest[:16]}-r{RECIPE_VERSION}"


@contextlib.contextmanager
def opened(
    root: Path, toolchain: Toolchain, *, uid: int, gid: int, limit_bytes: int, progress: Progress,
    meanwhile: Callable[[], None] = lambda: None,
) -> Iterator[Path | None]:
    """The directory to mount for a build as uid:gid, checked before and kept within limit_bytes after.

    None when what is there may be somebody else's work; progress says so. meanwhile is called once, while the check
    goes on.
    """
    place = place_of(root, toolchain)
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = _lock_of(place)
    try:
        with ThreadPoolExecutor(1) as pool:
            checked = None
            if _alone_soon(fd) and not _prepare(place, uid, gid):
                checked = pool.submit(_check, place / "data" / "go", progress)
            meanwhile()
            if checked is not None:
                checked.result()
        fcntl.flock(fd, fcntl.LOCK_SH)
        # Again: an exclusive lock does not become a shared one at once, and remove() may have come between.
        if reason := _prepare(place, uid, gid):
            progress.note(f"the caches in {place} are not used: {reason}. Remove that directory to have new ones")
            yield None
            return
        os.utime(fd)
        yield place / "data"
        if _alone(fd):
            with contextlib.suppress(OSError):  # a cache that grows too large is no reason to lose a build
                prune_go(place / "data" / "go", limit_bytes // GO_SHARE)
                kept.prune(place / kept.DIRECTORY, limit_bytes // KEPT_SHARE)
    finally:
        os.close(fd)


def _lock_of(place: Path) -> int:
    """The lock of a place, open. It lies beside the place and stays when that is removed: one lock for all who come."""
    path = place.with_name(f"{place.name}.lock")
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _prepare(place: Path, uid: int, gid: int) -> str:
    """Make what is missing of a place; why it must not be used, '' when it may be."""
    place.mkdir(mode=0o700, exist_ok=True)
    data = place / "data"
    for directory in (data, *(data / part for part in PARTS)):
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700)
            os.chown(directory, uid, gid)
    return distrusted(place, uid)


def distrusted(place: Path, uid: int) -> str:
    """Why the caches may hold what another user wrote; '' when only uid, root and we can have."""
    for path in (place.parent, place, place / "data", *(place / "data" / part for part in PARTS)):
        info = path.lstat()
        if not stat.S_ISDIR(info.st_mode):
            return f"{path} is no directory"
        if info.st_uid not in {uid, os.geteuid(), 0}:
            return f"{path} belongs to user {info.st_uid}"
        if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return f"others may write to {path}"
    return ""


def damaged(go: Path) -> list[Path]:
    """Entries of Go's cache whose content is not what their name (its sha256) says, such as half-written ones."""

    def wrong(path: Path) -> bool:
        try:
            with path.open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest() != path.name.removesuffix("-d")
        except OSError:
            return True

    entries = [path for path in go.glob("??/*-d") if len(path.name) == _DIGEST_LENGTH + 2]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [path for path, bad in zip(entries, pool.map(wrong, entries), strict=True) if bad]


def prune_go(go: Path, limit_bytes: int) -> int:
    """Remove the entries that were not used for the longest time; how many. Only while no build runs."""
    entries = []
    for path in (*go.glob("??/*"), *go.glob(f"{LINKED.name}/*/*")):
        with contextlib.suppress(FileNotFoundError):
            info = path.lstat()
            entries.append((info.st_mtime, info.st_size, path))
    entries.sort()
    size = sum(entry[1] for entry in entries)
    if size <= limit_bytes:
        return 0
    removed = 0
    for _, entry_bytes, path in entries:
        if size <= limit_bytes * _PRUNE_TO:
            break
        path.unlink(missing_ok=True)
        size -= entry_bytes
        removed += 1
    return removed


def listed(root: Path) -> tuple[CacheFacts, ...]:
    """All caches below root, the last used first."""
    found = []
    for place in root.iterdir() if root.is_dir() else ():
        if (place / "data").is_dir():
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                found.append(CacheFacts(
                    name=place.name, path=place, ccache_bytes=tree_bytes(place / "data" / "ccache"),
                    go_bytes=tree_bytes(place / "data" / "go"), kept_bytes=tree_bytes(place / kept.DIRECTORY),
                    used_at=_used_at(place),
                ))
    return tuple(sorted(found, key=lambda facts: facts.used_at, reverse=True))


def in_use(place: Path) -> bool:
    """Whether a build uses one toolchain's caches now. Nothing is written: the lock's time tells the last use."""
    try:
        fd = os.open(place.with_name(f"{place.name}.lock"), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        return not _alone(fd)
    finally:
        os.close(fd)


def remove(place: Path) -> bool:
    """Remove one toolchain's caches; False while a build uses them, and when they are gone already."""
    fd = _lock_of(place)
    try:
        if not _alone(fd):
            return False
        remove_tree(place)
    except FileNotFoundError:  # another prune was first
        return False
    finally:
        os.close(fd)
    return True


def _check(go: Path, progress: Progress) -> None:
    bad = damaged(go)
    for path in bad:
        path.unlink(missing_ok=True)
    if bad:
        progress.note(f"{len(bad)} damaged entries of Go's build cache were removed; their packages are compiled anew")


def _used_at(place: Path) -> float:
    try:
        return place.with_name(f"{place.name}.lock").stat().st_mtime
    except FileNotFoundError:
        return place.stat().st_mtime


def _alone_soon(fd: int) -> bool:
    """As _alone(), but not deceived by who looks whether a build runs, which takes the lock for a moment."""
    if _alone(fd):
        return True
    time.sleep(_LOOK_S)
    return _alone(fd)


def _alone(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
