"""Copying one file so that nothing about it is lost: content, holes, owner, mode, times, security labels.

Apart from files.copy_file because a store and an installed binary need more than content and mode: holes (time-series
files are allocated ahead and would grow to their full size), labels after the change of owner (chown drops
capabilities), and a digest of what was really read.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from kwdb_build.errors import AccessError, BackupError, KwdbBuildError, SpaceError
from kwdb_build.files import NO_SPACE, clone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

CHUNK = 1 << 20
_ZEROS = bytes(1 << 16)
_NO_ACCESS = {errno.EACCES, errno.EPERM, errno.EROFS}
_CONTENT_LABELS = {"security.ima", "security.evm"}
"""Signatures over the content itself: right on a copy, wrong on a new file that takes the old one's place."""

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """All of a file or directory except its content. mode is the permission bits, times are nanoseconds.

    xattrs maps names to hex: extended attributes, POSIX ACLs and security labels are all of that kind.
    """

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Copied:
    """A finished copy: digest of what was read from the source, its size, whether blocks are shared (reflink)."""

    sha256: str
    size: int
    cloned: bool


def read_metadata(path: Path) -> Metadata:
    """Metadata of a regular file or directory (a symlink is not followed)."""
    info = path.lstat()
    found: dict[str, str] = {}
    if not stat.S_ISLNK(info.st_mode):
        with contextlib.suppress(OSError):  # a file system without them has none
            for name in os.listxattr(path, follow_symlinks=False):
                with contextlib.suppress(OSError):  # trusted.* is not for everybody to read
                    found[name] = os.getxattr(path, name, follow_symlinks=False).hex()
    return Metadata(
        mode=stat.S_IMODE(info.st_mode), uid=info.st_uid, gid=info.st_gid, mtime_ns=info.st_mtime_ns,
        xattrs=dict(sorted(found.items())),
    )


def write_metadata(path: Path, wanted: Metadata, *, new_content: bool = False) -> tuple[str, ...]:
    """Give path the metadata of another file; return what could not be set, in words.

    Owner before mode before labels: chown clears set-user-id bits and capabilities. With new_content the labels that
    sign the old content are left out, and the time stays the file's own.
    """
    missing: list[str] = []
    info = path.lstat()
    if (info.st_uid, info.st_gid) != (wanted.uid, wanted.gid):
        try:
            os.chown(path, wanted.uid, wanted.gid, follow_symlinks=False)
        except PermissionError:
            missing.append(f"{path}: owner {wanted.uid}:{wanted.gid} (needs root)")
    path.chmod(wanted.mode)
    for name, value in wanted.xattrs.items():
        if new_content and name in _CONTENT_LABELS:
            continue
        data = bytes.fromhex(value)
        try:
            with contextlib.suppress(OSError):
                if os.getxattr(path, name, follow_symlinks=False) == data:
                    continue
            os.setxattr(path, name, data, follow_symlinks=False)
        except OSError as error:
            missing.append(f"{path}: attribute {name} ({error.strerror})")
    if not new_content:
        os.utime(path, ns=(wanted.mtime_ns, wanted.mtime_ns), follow_symlinks=False)
    return tuple(missing)


def copy_content(source: Path, target: Path) -> Copied:
    """Copy bytes into a new file (mode 0600 until write_metadata) and make them durable. OSError as it comes."""
    digest = hashlib.sha256()
    read_fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        write_fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            cloned = clone(write_fd, read_fd)
            info = os.fstat(read_fd)
            write = _write_with_holes if info.st_blocks * 512 < info.st_size else _write_block
            size = 0
            while chunk := os.read(read_fd, CHUNK):
                digest.update(chunk)
                if not cloned:
                    write(write_fd, chunk, size)
                size += len(chunk)
            if not cloned:
                os.ftruncate(write_fd, size)
            os.fsync(write_fd)
        finally:
            os.close(write_fd)
    finally:
        os.close(read_fd)
    return Copied(sha256=digest.hexdigest(), size=size, cloned=cloned)


def _write_block(fd: int, block: bytes, offset: int) -> None:
    view = memoryview(block)
    while view:
        written = os.pwrite(fd, view, offset)
        offset += written
        view = view[written:]


def _write_with_holes(fd: int, chunk: bytes, offset: int) -> None:
    """Write only blocks that hold something: a hole stays a hole."""
    for start in range(0, len(chunk), len(_ZEROS)):
        block = chunk[start : start + len(_ZEROS)]
        if block != _ZEROS[: len(block)]:
            _write_block(fd, block, offset + start)


def sha256_fresh(path: Path) -> str:
    """Digest of a file as the disk has it: cached pages are dropped first (they must be clean: fsynced before)."""
    with path.open("rb") as stream:
        with contextlib.suppress(OSError):
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return hashlib.file_digest(stream, "sha256").hexdigest()


def in_parallel(work: Callable[[In], Out], items: Sequence[In], each: Callable[[In, Out], None]) -> None:
    """Call work on all items from a few threads, and each(item, result) here, in order.

    Hashing and file calls release the interpreter's lock. When a call fails or Ctrl-C comes, what has not begun is
    dropped, so that the end does not wait for the rest.
    """
    pool = ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1))
    try:
        for item, result in zip(items, pool.map(work, items), strict=True):
            each(item, result)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def explained(action: str, path: Path, *, hint: str = "") -> Iterator[None]:
    """Turn an OSError into the error a person can act on: space, permission, or a failed copy."""
    try:
        yield
    except KwdbBuildError:
        raise
    except OSError as error:
        raise explain(error, action, path, hint=hint) from error


def explain(error: OSError, action: str, path: Path, *, hint: str = "") -> KwdbBuildError:
    """Error for an OSError that happened while doing `action` with `path`."""
    context = str(error)
    if error.errno in NO_SPACE:
        return SpaceError(
            f"the disk became full while {action}: {path}", context=context, hint=hint or "free space and try again"
        )
    if error.errno in _NO_ACCESS:
        return AccessError(
            f"not allowed while {action}: {path}", context=context,
            hint=hint or "run as the owner of the files or as root; is the file system mounted read-only?",
        )
    return BackupError(f"failed while {action}: {path}", context=context, hint=hint or "look at the disk's health")


def is_no_space(error: OSError) -> bool:
    """Full disk or quota."""
    return error.errno in NO_SPACE
