"""A large file that takes its name only when it is whole, wherever a person wants it.

Until then it lies beside as `.NAME.RANDOM.part`, locked by flock(2) while its writer lives: what a killed one left is
told from one that is being written, and goes when the next file of that name is made. Nothing else there is touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING

from kwdb_build.files import fsync_directory, full_disk_said, require_file

if TYPE_CHECKING:
    from collections.abc import Iterator

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
"""What a file of zstd begins with."""
_SUFFIX = ".part"
_RANDOM = r"[a-z0-9_]{8}"
"""What tempfile puts between."""


@contextlib.contextmanager
def whole_file(target: Path, *, begins: bytes) -> Iterator[IO[bytes]]:
    """A file to write to that has target's name, and is on disk, at the end; nothing is left of it on an error.

    begins: how every such file begins; what begins otherwise is none of ours. SpaceError when the disk becomes full.
    """
    require_file(target)
    _remove_leftovers(target, begins)
    fd, temporary = _locked(target)
    try:
        with full_disk_said(target.parent, f"writing {target.name}"), os.fdopen(fd, "wb") as stream:
            yield stream
            stream.flush()
            os.fchmod(stream.fileno(), 0o644)
            os.fsync(stream.fileno())
            temporary.replace(target)
        fsync_directory(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


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
