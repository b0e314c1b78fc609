"""A large file that takes its name only when it is whole, wherever a person wants it.

Until then it lies beside as `.NAME.RANDOM.part`, locked by flock(2) while its writer lives: what a killed one left is
told from one that is being written, and goes when the next file of that name is made. Nothing else there is touched.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING

from kwdb_build.errors import AccessError, SpaceError, UsageError
from kwdb_build.files import NO_SPACE, free_bytes, fsync_directory, require_file

if TYPE_CHECKING:
    from collections.abc import Iterator

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
"""What a file of zstd begins with."""
_SUFFIX = ".part"
_RANDOM = r"[a-z0-9_]{8}"
"""What tempfile puts between."""


@contextlib.contextmanager
def whole_file(
    target: Path, *, begins: bytes, force: bool = True, others: tuple[Path, ...] = ()
) -> Iterator[IO[bytes]]:
    """A file to write to that has target's name, and is on disk, at the end; nothing is left of it on an error.

    begins: how every such file begins; what begins otherwise is none of ours. force: a file of that name is replaced.
    others: further places that are written to meanwhile. Errors, also of what is done meanwhile: SpaceError for a disk
    that becomes full, AccessError for everything else that the operating system refuses, UsageError without force.
    """
    require_free(target, force=force)
    with _explained(target, others):
        _remove_leftovers(target, begins)
        fd, temporary = _locked(target)
        try:
            with os.fdopen(fd, "wb") as stream:
                yield stream
                stream.flush()
                os.fchmod(stream.fileno(), 0o644)
                os.fsync(stream.fileno())
                require_free(target, force=force)  # another call may have been quicker
                temporary.replace(target)
            fsync_directory(target.parent)
        finally:
            temporary.unlink(missing_ok=True)


def require_free(target: Path, *, force: bool) -> None:
    """UsageError when a file would be replaced that nobody said may be, or there is no place for one."""
    if not target.parent.is_dir():
        raise UsageError(f"there is no directory {target.parent}", hint="make it, or choose another place")
    require_file(target)
    if target.exists() and not force:
        raise UsageError(f"{target} is there already", hint="choose another name, or --force to replace it")


@contextlib.contextmanager
def _explained(target: Path, others: tuple[Path, ...]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in {*NO_SPACE, errno.EFBIG}:
            raise AccessError(
                f"{target} could not be written: {error.strerror or error}",
                hint="choose another place, or run it as a user who may write there",
            ) from error
        fullest = min((target.parent, *others), key=free_bytes)
        if fullest != target.parent:
            raise SpaceError(
                f"the file system of {fullest} became full while {target} was made",
                hint="free space there (`df -h`), or choose another place with --home",
            ) from error
        raise SpaceError(
            f"{target} could not be written: {error.strerror}", hint="free space there, or choose another place"
        ) from error


def _locked(target: Path) -> tuple[int, Path]:
    while True:
        fd, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=_SUFFIX, dir=target.parent)
        path = Path(name)
        with contextlib.suppress(OSError):  # a file system without locks: what is left there stays
            fcntl.flock(fd, fcntl.LOCK_EX)
        # Another call may have taken it for a left-over before it was locked.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.lstat(), os.fstat(fd)):
                return fd, path
        os.close(fd)


def _remove_leftovers(target: Path, begins: bytes) -> None:
    ours = re.compile(rf"\.{re.escape(target.name)}\.{_RANDOM}{re.escape(_SUFFIX)}")
    with contextlib.suppress(OSError):  # a directory that may be written to, but not listed
        for path in list(target.parent.iterdir()):
            if ours.fullmatch(path.name):
                with contextlib.suppress(OSError):  # somebody else's, locked, or gone meanwhile
                    _remove_if_left(path, begins)


def _remove_if_left(path: Path, begins: bytes) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid():
            return
        if not begins.startswith(os.pread(fd, len(begins), 0)):  # of a file that was cut off, what there is
            return
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(path.lstat(), info):
            path.unlink()
    finally:
        os.close(fd)
