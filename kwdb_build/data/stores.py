"""What belongs to a store: its trees, what is in them, what is left out of a backup, and where they lie.

A store is a directory plus the directories outside it that symlinks inside lead to (time-series group directories can
be moved to other disks that way). Each of these is a *tree*: it is walked without following links, so that every file
belongs to exactly one tree. Facts on what may be left out: cluster.md C4 (a copy without kwbase.start_mode does not
start, one without tsdb/ starts and has silently lost all time-series rows).
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from kwdb_build.data import copying
from kwdb_build.errors import BackupError, UsageError
from kwdb_build.files import clone, record_lock_holder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kwdb_build.model import Store

Kind = Literal["file", "dir", "link"]

LEFT_OUT = frozenset({"logs", "temp-dirs-record.txt", "LOCK"})
"""Top-level names of a store that a backup leaves out: logs, and what names or locks the running process."""
TEMPORARY = re.compile(r"^kwbase-temp\d*$")
_STORE_MARKS = ("KWBASEDB_VERSION", "CURRENT", "IDENTITY", "kwbase.start_mode")
_BLOCK = 512


class SpecialFileError(BackupError):
    """Something that is no file, directory or symlink lies in a store."""

    reference = "special-file"


@dataclass(frozen=True, kw_only=True)
class Tree:
    """One directory to copy whole. name is its place in a backup; is_store says that LEFT_OUT applies at its top."""

    name: str
    root: Path
    is_store: bool


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file, directory or symlink of a tree. path is relative to the root ('.' is the root itself).

    allocated is what it really takes on the disk (bytes; less than size where the file has holes).
    """

    path: str
    kind: Kind
    size: int = 0
    allocated: int = 0
    link: str = ""
    metadata: copying.Metadata
    sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """How much a set of stores holds (without what is left out); allocated is what a copy needs."""

    files: int
    size_bytes: int
    allocated_bytes: int
    largest_bytes: int


@dataclass(frozen=True, kw_only=True)
class FileSystem:
    """The file system under a path: its type ('ext4'; '' when unknown), mount point and room."""

    type: str
    mount_point: Path
    device: int
    free_bytes: int
    details: dict[str, str] = field(default_factory=dict)


def looks_like_store(path: Path) -> bool:
    """Whether a directory holds a store, also a half-made one: any of the files that name one is enough.

    Meant as a guard before something is removed or overwritten, so it errs towards yes.
    """
    return any((path / name).exists() for name in _STORE_MARKS) or (path / "tsdb").is_dir()


def is_left_out(relative: str) -> bool:
    """Whether a path relative to a STORE's root is no part of a backup. Only top-level names count."""
    top = PurePosixPath(relative).parts[0] if relative != "." else ""
    return top in LEFT_OUT or TEMPORARY.match(top) is not None


def lock_holder(store: Path) -> int | None:
    """Pid that holds the store's LOCK (0: someone in another pid namespace), None when it is free.

    The file alone proves nothing (it stays after a stop); the fcntl lock on it does.
    """
    lock = store / "LOCK"
    try:
        return record_lock_holder(lock)
    except OSError as error:
        raise copying.explain(error, "asking who holds the store", lock) from error


def require_stopped(stores: Iterable[Store]) -> None:
    """BackupError when a server still holds one of the stores."""
    for store in stores:
        holder = lock_holder(store.path)
        if holder is not None:
            raise BackupError(
                f"a server still uses the store {store.path}", context=f"its LOCK is held by pid {holder}",
                hint="stop it first: files copied or replaced under a running server are worthless",
            )


def with_targets(store: Store) -> Store:
    """The store with the directories outside it that its symlinks lead to (found, not guessed)."""
    return replace(store, targets=tuple(tree.root for tree in trees((store,)) if not tree.is_store))


def trees(stores: Iterable[Store]) -> tuple[Tree, ...]:
    """All trees of the stores, each once: stores first, then what their links lead to, links of those included.

    A store inside another one is part of that one. BackupError for a link to a single file outside, as nothing of
    KWDB makes one and a copy would quietly lack it.
    """
    found: list[Tree] = []
    roots = sorted({store.path.resolve() for store in stores}, key=lambda path: (len(path.parts), str(path)))
    for root in roots:
        if not root.is_dir():
            raise BackupError(f"the store {root} is not a directory", hint="is its file system mounted?")
        if not _covered(root, found):
            found.append(Tree(name=f"store-{len(found) + 1}", root=root, is_store=True))
    pending = list(found)
    for extra in sorted({target.resolve() for store in stores for target in store.targets}):
        _add_target(extra, found, pending)
    while pending:
        tree = pending.pop(0)
        for link in _links(tree):
            _add_target(_outside_directory(tree, link), found, pending)
    return tuple(found)


def _covered(path: Path, found: Iterable[Tree]) -> bool:
    return any(path == tree.root or tree.root in path.parents for tree in found)


def _add_target(target: Path | None, found: list[Tree], pending: list[Tree]) -> None:
    if target is None or _covered(target, found):
        return
    inside = [tree.root for tree in found if target in tree.root.parents]
    if inside:
        raise BackupError(
            f"a symlink in the store leads to {target}, which holds the store itself ({inside[0]})",
            hint="such a loop cannot be copied: point the link to a directory of its own",
        )
    tree = Tree(name=f"target-{len(found) + 1}", root=target, is_store=False)
    found.append(tree)
    pending.append(tree)


def _links(tree: Tree) -> Iterator[Path]:
    for directory, names, files in os.walk(tree.root):
        here = Path(directory)
        if tree.is_store and here == tree.root:
            names[:] = [name for name in names if not is_left_out(name)]
            files = [name for name in files if not is_left_out(name)]  # noqa: PLW2901  (os.walk's list, filtered)
        yield from sorted(path for name in (*names, *files) if (path := here / name).is_symlink())


def _outside_directory(tree: Tree, link: Path) -> Path | None:
    try:
        target = link.resolve(strict=True)
    except FileNotFoundError:
        return None  # a dangling link holds no data; the link itself is recorded
    except (OSError, RuntimeError) as error:
        raise BackupError(f"the symlink {link} cannot be followed", context=str(error)) from error
    if tree.root == target or tree.root in target.parents:
        return None
    if not target.is_dir():
        raise BackupError(
            f"the symlink {link} leads to a single file outside the store: {target}",
            hint="move that file into the store, or link its directory, so that a backup can hold it",
        )
    return target


def scan(tree: Tree, *, hot: bool = False, special: list[Path] | None = None) -> tuple[Entry, ...]:
    """Everything in a tree that a backup holds, the root first, sorted, links not followed, digests empty.

    hot: a server may be writing, so what vanishes while we look is skipped. Otherwise a vanished file is an error.
    Sockets, pipes and devices are refused: nothing of KWDB makes them and no copy can hold them. With a list in
    `special` they are put there instead (a rollback must not stop at one).
    """
    found = [_entry(tree, tree.root)]
    for directory, names, files in os.walk(tree.root, onerror=None if hot else _raise):
        here = Path(directory)
        names.sort()
        if tree.is_store and here == tree.root:
            names[:] = [name for name in names if not is_left_out(name)]
            files = [name for name in files if not is_left_out(name)]  # noqa: PLW2901  (os.walk's list, filtered)
        for name in sorted((*names, *files)):
            try:
                found.append(_entry(tree, here / name))
            except FileNotFoundError:
                if not hot:
                    raise
            except SpecialFileError:
                if special is None:
                    raise
                special.append(here / name)
    return tuple(sorted(found, key=lambda entry: PurePosixPath(entry.path).parts))


def _raise(error: OSError) -> None:
    raise copying.explain(error, "listing the store", Path(str(error.filename)))


def _entry(tree: Tree, path: Path) -> Entry:
    info = path.lstat()
    relative = str(path.relative_to(tree.root))
    if stat.S_ISLNK(info.st_mode):
        return Entry(path=relative, kind="link", link=os.readlink(path),  # noqa: PTH115  (Path would tidy it)
                     metadata=copying.read_metadata(path))
    if stat.S_ISDIR(info.st_mode):
        return Entry(path=relative, kind="dir", metadata=copying.read_metadata(path))
    if not stat.S_ISREG(info.st_mode):
        raise SpecialFileError(
            f"{path} is a socket, pipe or device and cannot be backed up",
            hint="KWDB keeps none in a store: remove it, or move it elsewhere",
        )
    return Entry(
        path=relative, kind="file", size=info.st_size, allocated=min(info.st_size, info.st_blocks * _BLOCK),
        metadata=copying.read_metadata(path),
    )


def usage(stores: Iterable[Store]) -> Usage:
    """Files and bytes of the stores, safe while the server runs."""
    files = [entry for tree in trees(stores) for entry in scan(tree, hot=True) if entry.kind == "file"]
    return Usage(
        files=len(files), size_bytes=sum(entry.size for entry in files),
        allocated_bytes=sum(entry.allocated for entry in files), largest_bytes=max((e.size for e in files), default=0),
    )


def file_system(path: Path) -> FileSystem:
    """File system under path, or under its nearest parent that exists."""
    place = existing(path).resolve()
    best, kind = Path("/"), ""
    with contextlib.suppress(OSError):
        for point, name in parse_mounts(Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")):
            if (point == place or point in place.parents) and len(point.parts) >= len(best.parts):
                best, kind = point, name
    info = os.statvfs(place)
    return FileSystem(
        type=kind, mount_point=best, device=place.stat().st_dev, free_bytes=info.f_bavail * info.f_frsize
    )


def parse_mounts(text: str) -> list[tuple[Path, str]]:
    """Mount points and types out of /proc/self/mountinfo, in its order (a later mount hides an earlier one)."""
    found = []
    for line in text.splitlines():
        before, dash, after = line.partition(" - ")
        fields = before.split(" ")
        if dash and len(fields) > 4:  # noqa: PLR2004  (the fifth field is the mount point)
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
            found.append((Path(point), after.split(" ")[0]))
    return found


def existing(path: Path) -> Path:
    """The path itself or its nearest parent that exists."""
    while not path.exists():
        path = path.parent
    return path


def can_reflink(source: Path, directory: Path) -> bool:
    """Whether files of the source directory can share blocks with copies in `directory`: tried, not guessed."""
    sample = next((path for path in source.rglob("*") if path.is_file() and not path.is_symlink()
                   and path.stat().st_size), None)
    if sample is None:
        return False
    probe = directory / f".reflink-probe.{os.getpid()}"
    try:
        with sample.open("rb") as reader, probe.open("xb") as writer:
            return clone(writer.fileno(), reader.fileno())
    except OSError:
        return False
    finally:
        probe.unlink(missing_ok=True)


def require_apart(stores: Iterable[Store], destination: Path) -> None:
    """UsageError when the destination lies in a store or a store in it, also by another path (links, bind mounts)."""
    place = existing(destination).resolve()
    for tree in trees(stores):
        if _inside(place, tree.root) or _inside(tree.root, destination.resolve()):
            raise UsageError(
                f"{destination} and the store {tree.root} lie inside each other",
                context="a backup inside its own store would be copied into itself and lost with it",
                hint="choose another place with --home",
            )


def _inside(path: Path, directory: Path) -> bool:
    """Whether path is directory or below it, by name or by identity of any of its parents (a bind mount)."""
    if not directory.exists():
        return False
    wanted = directory.stat()
    for place in (path, *path.parents):
        with contextlib.suppress(OSError):
            info = place.stat()
            if (info.st_dev, info.st_ino) == (wanted.st_dev, wanted.st_ino):
                return True
    return False
