"""Files written so that a crash at any moment leaves the old or the new content, never half of either."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import struct
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kwdb_build.errors import ArtifactError, SpaceError, UsageError
from kwdb_build.model import FileRecord, to_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_T = TypeVar("_T")

PRIVATE = 0o600
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What the operating system says when there is no more room, for all or for this user."""
_FICLONE = 0x40049409
_FLOCK = struct.Struct("@hhqqi0q")
"""struct flock of 64-bit Linux: type, whence, start, length, pid."""
_CHUNK = 1 << 20
_UNREAD = "unread"


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fsync_directory(path: Path) -> None:
    """Make renames and new names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_file(path: Path) -> None:
    """Make a file's content durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def require_file(path: Path) -> None:
    """UsageError for what is there and is no file: a rename would take /dev/null away from the whole machine."""
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is no regular file", hint="name a file: it is replaced as a whole")


def write_atomic(path: Path, data: bytes | str, *, mode: int = 0o644) -> None:
    """Replace path by data: temporary file beside it (created with the final mode), fsync, rename, fsync directory."""
    require_file(path)
    content = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(fd, "wb") as stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def write_json(path: Path, value: Any, *, mode: int = 0o644) -> None:
    """Write dataclasses and the like as indented JSON, atomically."""
    write_atomic(path, json.dumps(to_json(value), indent=2, ensure_ascii=False, sort_keys=False) + "\n", mode=mode)


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def walk_files(root: Path) -> Iterator[Path]:
    """Every regular file and symlink below root, sorted, symlinks not followed."""
    for directory, names, files in os.walk(root):
        names.sort()
        here = Path(directory)
        linked = [name for name in names if (here / name).is_symlink()]
        for name in sorted([*files, *linked]):
            yield here / name


def walk_all(root: Path) -> Iterator[Path]:
    """Everything below root, directories too, symlinks not followed."""
    for directory, names, files in os.walk(root):
        for name in [*names, *files]:
            yield Path(directory) / name


def untrusted_lines(path: Path, *, limit_bytes: int) -> list[str]:
    """The lines of a file that its owner, another user, could have made anything else, or endless: that is an OSError.

    [] when it is not there.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return []
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "is no regular file", str(path))
        with os.fdopen(fd, "rb", closefd=False) as stream:
            content = stream.read(limit_bytes + 1)
    finally:
        os.close(fd)
    if len(content) > limit_bytes:
        raise OSError(errno.EFBIG, f"has more than {human_bytes(limit_bytes)}", str(path))
    return [os.fsdecode(line) for line in content.splitlines()]


def tree_bytes(root: Path) -> int:
    """Size of all files and symlinks below root together; what vanishes meanwhile counts nothing."""
    total = 0
    for directory, _, names in os.walk(root):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(f"{directory}/{name}").st_size  # a source tree has ten thousands: no Path for each
    return total


def record_of(path: Path, root: Path, *, content: bool = True) -> FileRecord:
    """Manifest entry of one file or symlink; what is neither (a pipe, a device) has no sha256.

    content: whether a file is read; the sha256 of one that is not is _UNREAD.
    """
    info = path.lstat()
    if stat.S_ISLNK(info.st_mode):
        target = os.readlink(path)  # noqa: PTH115  # Path would tidy it
        digest = hashlib.sha256(os.fsencode(target)).hexdigest()
        return FileRecord(path=str(path.relative_to(root)), mode=0o777, size=0, sha256=digest, link=target)
    if not stat.S_ISREG(info.st_mode):  # never opened: a pipe has no end, and some devices do what they are read for
        return FileRecord(path=str(path.relative_to(root)), mode=stat.S_IMODE(info.st_mode), size=0, sha256="")
    return FileRecord(
        path=str(path.relative_to(root)), mode=stat.S_IMODE(info.st_mode), size=info.st_size,
        sha256=sha256_of(path) if content else _UNREAD,
    )


def manifest_of(root: Path) -> tuple[FileRecord, ...]:
    """Manifest of everything below root."""
    return tuple(record_of(path, root) for path in walk_files(root))


def check_manifest(
    root: Path, files: Iterable[FileRecord], *, ignore: Iterable[str] = (), content: bool = True
) -> None:
    """Compare what is on disk with a manifest; ArtifactError names every difference.

    ignore: relative names that are expected besides (the manifest's own file). Without content the files are not read,
    only named, measured and asked for their modes: for who reads them afterwards anyway.
    """
    skipped = set(ignore)
    wanted = {entry.path: entry if content or entry.link else replace(entry, sha256=_UNREAD) for entry in files}
    records = (record_of(path, root, content=content) for path in walk_files(root))
    found = {entry.path: entry for entry in records if entry.path not in skipped}
    problems = [f"{name}: missing" for name in sorted(wanted.keys() - found.keys())]
    problems += [f"{name}: not in the manifest" for name in sorted(found.keys() - wanted.keys())]
    problems += [
        f"{name}: {_difference(wanted[name], found[name])}"
        for name in sorted(wanted.keys() & found.keys())
        if wanted[name] != found[name]
    ]
    if problems:
        raise ArtifactError(
            f"{root} does not match its manifest", context="\n".join(problems),
            hint="it was changed after the build; remove that directory and build again",
        )


def _difference(wanted: FileRecord, found: FileRecord) -> str:
    if not found.sha256:
        return "no file any more, but a pipe, a socket or a device"
    if wanted.sha256 != found.sha256:
        return f"content changed (sha256 {found.sha256[:16]} instead of {wanted.sha256[:16]})"
    if wanted.size != found.size:
        return f"{found.size} bytes instead of {wanted.size}"
    return f"mode {found.mode:o} instead of {wanted.mode:o}"


def free_bytes(path: Path) -> int:
    """Space an ordinary user can still write on the file system that holds path (or its nearest parent)."""
    while not path.exists():
        path = path.parent
    info = os.statvfs(path)
    return info.f_bavail * info.f_frsize


def require_space(path: Path, needed: int, purpose: str) -> None:
    """SpaceError when the file system under path has less than needed bytes left."""
    free = free_bytes(path)
    if free < needed:
        raise SpaceError(
            f"not enough disk space for the {purpose}: {human_bytes(needed)} needed, {human_bytes(free)} free "
            f"on the file system of {path}",
            hint="free space there, or choose another place with --home",
        )


@contextlib.contextmanager
def full_disk_said(place: Path, doing: str, *, log: Path | None = None) -> Iterator[None]:
    """Turn a full disk that our own writing meets into the error for it."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise SpaceError(
            f"the file system of {place} became full while {doing}", context=str(error), log=log,
            hint="free space there (`df -h`; `df -i` when too many files are it), or choose another place with --home, "
            "and run it again",
        ) from error


def human_bytes(size: float) -> str:
    """1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:  # noqa: PLR2004
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def copy_file(source: Path, target: Path) -> str:
    """Copy content, mode, times and (as root) owner of a regular file; return its sha256 as read on the way.

    A clone (FICLONE) where the file system shares blocks; hard links never, as a store is edited in place.
    """
    digest = hashlib.sha256()
    with source.open("rb") as reader, target.open("xb") as writer:
        if clone(writer.fileno(), reader.fileno()):
            while chunk := reader.read(_CHUNK):
                digest.update(chunk)
        else:
            while chunk := reader.read(_CHUNK):
                digest.update(chunk)
                writer.write(chunk)
        writer.flush()
        os.fsync(writer.fileno())
    shutil.copystat(source, target)
    info = source.stat()
    with contextlib.suppress(PermissionError):
        os.chown(target, info.st_uid, info.st_gid)
        target.chmod(stat.S_IMODE(info.st_mode))
    return digest.hexdigest()


def clone(target_fd: int, source_fd: int) -> bool:
    """Share blocks where the file system can (reflink); never a hard link, as a store is edited in place."""
    try:
        fcntl.ioctl(target_fd, _FICLONE, source_fd)
    except OSError:
        return False
    return True


def record_lock_holder(path: Path) -> int | None:
    """Pid of the process that holds a POSIX record lock on a file, None when nobody does or there is no such file.

    0 stands for a holder that cannot be seen from here (another pid namespace, another machine). F_GETLK takes nothing;
    a process that holds the lock itself must not ask, as closing the file would drop it. Errors: OSError.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        answer = fcntl.fcntl(fd, fcntl.F_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    finally:
        os.close(fd)
    kind, _, _, _, pid = _FLOCK.unpack(answer)
    return None if kind == fcntl.F_UNLCK else max(int(pid), 0)


def private_directory(path: Path) -> Path:
    """Create a directory (and parents) that only its owner can enter; UsageError where there cannot be one."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (FileExistsError, FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(
            f"there cannot be a directory {path}", context=str(error), hint="choose another place with --home"
        ) from error
    return path


def load_json(kind: type[_T], path: Path) -> _T:
    """Read a JSON file that write_json made back into its (frozen, nested) dataclass."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind).validate_json(path.read_bytes())
