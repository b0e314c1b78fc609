"""A backup is a verified copy of the stopped store(s).

precopy() runs while the server still works and only saves time: its content is not trusted. After the stop backup()
reads and hashes every source file (size and time are not trustworthy: time-series tag files change through shared
mappings without either changing, cluster.md C3), keeps what is equal, copies what is not, and writes the manifest last.
Nothing ever writes to the source.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kwdb_build.console import Progress
from kwdb_build.data import copying, manifest, stores
from kwdb_build.data.manifest import BackupManifest, TreeRecord
from kwdb_build.errors import BackupError, SpaceError
from kwdb_build.files import (
    PRIVATE,
    free_bytes,
    fsync_directory,
    human_bytes,
    private_directory,
    read_json,
    sha256_of,
    write_atomic,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from kwdb_build.data.stores import Entry, Tree
    from kwdb_build.model import Store

INDEX = "precopy.json"
_MARGIN_SHARE = 0.05
_MARGIN_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class SpaceNeed:
    """What a backup and a rollback may take, in bytes.

    backup: on the file system of the destination (little where blocks can be shared). set_aside: in the worst case the
    new version rewrites everything, and a rollback keeps what it wrote; a rollback works without that room, too, and
    then says what it did not keep.
    """

    store_bytes: int
    files: int
    backup_bytes: int
    set_aside_bytes: int
    reflink: bool
    free_bytes: int
    file_system: str


@dataclass(frozen=True, kw_only=True)
class Precopy:
    """Result of the hot pass: files and bytes copied, and how many vanished while we looked (normal)."""

    files: int
    size_bytes: int
    vanished: int


@dataclass(frozen=True, kw_only=True)
class _Known:
    """A file of the backup whose content was read back from disk: its digest, and what shows that it is untouched."""

    sha256: str
    size: int
    inode: int
    changed_ns: int


def space_needed(of_stores: Sequence[Store], destination: Path) -> SpaceNeed:
    """What the way there and back may take; changes nothing but a probe file where reflinks could be."""
    used = stores.usage(of_stores)
    place = stores.file_system(destination)
    directory = stores.existing(destination)
    reflink = all(stores.can_reflink(store.path, directory) for store in of_stores)
    margin = int(used.allocated_bytes * _MARGIN_SHARE) + _MARGIN_BYTES
    return SpaceNeed(
        store_bytes=used.allocated_bytes, files=used.files, reflink=reflink, free_bytes=free_bytes(destination),
        backup_bytes=margin if reflink else used.allocated_bytes + margin,
        set_aside_bytes=used.allocated_bytes, file_system=place.type,
    )


def require_space(of_stores: Sequence[Store], destination: Path) -> SpaceNeed:
    """SpaceError when a backup would not fit; what an earlier pass already put there counts as room."""
    need = space_needed(of_stores, destination)
    present = _allocated(destination / manifest.DATA)
    if need.free_bytes + present < need.backup_bytes:
        raise SpaceError(
            f"not enough disk space for the backup: {human_bytes(need.backup_bytes)} needed, "
            f"{human_bytes(need.free_bytes + present)} free on the file system of {destination}",
            hint="free space there, or choose another place with --home",
        )
    return need


def precopy(of_stores: Sequence[Store], destination: Path, progress: Progress | None = None) -> Precopy:
    """Copy what can be copied while the server runs, and read the copies back. Harmless at any interruption."""
    progress = progress or Progress()
    _prepare(of_stores, destination)
    require_space(of_stores, destination)
    known: dict[str, _Known] = {}
    vanished: list[str] = []
    for tree in stores.trees(of_stores):
        entries = stores.scan(tree, hot=True)
        base = manifest.tree_directory(destination, tree)
        _directories(base, entries)
        todo = [entry for entry in entries if entry.kind == "file"]
        shown = _Meter(progress, f"pre-copying {tree.root}", todo)

        def each(entry: Entry, found: _Known | None, tree: Tree = tree, shown: _Meter = shown) -> None:
            shown.add(entry)
            if found is None:
                vanished.append(entry.path)
            else:
                known[f"{tree.name}/{entry.path}"] = found

        copying.in_parallel(functools.partial(_precopy_file, tree, base), todo, each)
    _save_index(destination, known)
    return Precopy(files=len(known), size_bytes=sum(item.size for item in known.values()), vanished=len(vanished))


class _Meter:
    """Progress of a pass over files, by bytes."""

    def __init__(self, progress: Progress, text: str, entries: Iterable[Entry]) -> None:
        self._progress = progress
        self._text = text
        self._total = sum(entry.size for entry in entries)
        self._done = 0

    def add(self, entry: Entry) -> None:
        """One more file is done."""
        self._done += entry.size
        self._progress.update(self._text, done=self._done, total=self._total)


def _precopy_file(tree: Tree, base: Path, entry: Entry) -> _Known | None:
    target = base / entry.path
    with copying.explained("writing the backup", target):
        _make_way(target)
        try:
            copying.copy_content(tree.root / entry.path, target)
        except (FileNotFoundError, IsADirectoryError):
            target.unlink(missing_ok=True)  # the server removed or replaced it meanwhile
            return None
        return _known(target, copying.sha256_fresh(target))


def backup(of_stores: Sequence[Store], destination: Path, *, progress: Progress | None = None) -> BackupManifest:
    """Bring the backup to exactly what the stopped stores hold, and write its manifest.

    Errors: BackupError when a server still holds a store, a file changes while it is read, or a file cannot be read or
    written; SpaceError when the disk is or becomes full. The source is never written to, whatever happens.
    """
    progress = progress or Progress()
    stores.require_stopped(of_stores)
    _prepare(of_stores, destination)
    require_space(of_stores, destination)
    index = _load_index(destination)
    records: list[TreeRecord] = []
    notes: list[str] = []
    fresh: list[str] = []
    cloned = 0
    found_trees = stores.trees(of_stores)
    _drop_strangers(destination / manifest.DATA, {tree.name for tree in found_trees})
    for tree in found_trees:
        outcome = _backup_tree(tree, destination, index, progress)
        records.append(outcome.record)
        notes += outcome.notes
        fresh += outcome.fresh
        cloned += outcome.cloned
    stores.require_stopped(of_stores)
    files = [entry for record in records for entry in record.files.values()]
    made = BackupManifest(
        directory=destination.resolve(), created_at=time.time(), trees=tuple(records), files=len(files),
        size_bytes=sum(entry.size for entry in files), copied=len(fresh), kept=len(files) - len(fresh), cloned=cloned,
        fresh=tuple(fresh), notes=tuple(notes),
    )
    with copying.explained("writing the backup's manifest", made.path):
        manifest.save(made)
    return made


def check(made: BackupManifest, *, progress: Progress | None = None, everything: bool = True) -> None:
    """Read the backup again from disk and compare it with the digests of the source; BackupError names what differs.

    With everything=False only files written after the stop are read: the others were read back after the hot pass and
    their digests compared with the source after the stop, which shortens the time that the database is down.
    """
    progress = progress or Progress()
    fresh = set(made.fresh)
    todo = [
        (record, entry) for record, entry in made.each_file()
        if everything or f"{record.tree.name}/{entry.path}" in fresh
    ]
    shown = _Meter(progress, "reading the backup again", [entry for _, entry in todo])
    problems = _missing(made)

    def read(item: tuple[TreeRecord, Entry]) -> str:
        place = made.place(*item)
        try:
            same = copying.sha256_fresh(place) == item[1].sha256
        except OSError as error:
            return f"{place}: {error.strerror}"
        return "" if same else f"{place}: content is not what was read from {item[0].tree.root / item[1].path}"

    def each(item: tuple[TreeRecord, Entry], problem: str) -> None:
        shown.add(item[1])
        if problem:
            problems.append(problem)

    copying.in_parallel(read, todo, each)
    if problems:
        raise BackupError(
            f"the backup in {made.directory} does not hold what the store holds",
            context="\n".join(problems[:20]),
            hint="do not rely on it; the store itself was not touched: look at the disk",
        )


def _missing(made: BackupManifest) -> list[str]:
    """Directories and links are compared without reading content."""
    problems = []
    for record in made.trees:
        for entry in record.entries:
            place = made.place(record, entry)
            if entry.kind == "dir" and not (place.is_dir() and not place.is_symlink()):
                problems.append(f"{place}: the directory is missing")
            if entry.kind == "file" and not (place.is_file() and place.stat().st_size == entry.size):
                problems.append(f"{place}: missing, or not {entry.size} bytes long")
    return problems


@dataclass(frozen=True, kw_only=True)
class _TreeOutcome:
    record: TreeRecord
    fresh: list[str]
    cloned: int
    notes: list[str]


def _backup_tree(tree: Tree, destination: Path, index: dict[str, _Known], progress: Progress) -> _TreeOutcome:
    base = manifest.tree_directory(destination, tree)
    with copying.explained("listing the store", tree.root):
        entries = stores.scan(tree)
    wanted = {entry.path: entry for entry in entries}
    _remove_vanished(base, wanted)
    _directories(base, entries)
    todo = [entry for entry in entries if entry.kind == "file"]
    shown = _Meter(progress, f"backing up {tree.root}", todo)
    results: list[tuple[Entry, _FileOutcome]] = []

    def each(entry: Entry, result: _FileOutcome) -> None:
        shown.add(entry)
        wanted[entry.path] = dataclasses.replace(entry, sha256=result.sha256)
        results.append((entry, result))

    copying.in_parallel(functools.partial(_backup_file, tree, base, index), todo, each)
    notes = [note for _, result in results for note in result.notes] + _finish_directories(base, entries)
    point = stores.file_system(tree.root).mount_point
    return _TreeOutcome(
        record=TreeRecord(tree=tree, mount_point=point, entries=tuple(wanted.values())),
        fresh=[f"{tree.name}/{entry.path}" for entry, result in results if result.fresh],
        cloned=sum(result.cloned for _, result in results), notes=notes,
    )


@dataclass(frozen=True, kw_only=True)
class _FileOutcome:
    sha256: str
    fresh: bool
    cloned: bool
    notes: tuple[str, ...]


def _backup_file(tree: Tree, base: Path, index: dict[str, _Known], entry: Entry) -> _FileOutcome:
    """Read one source file whole; keep the pre-copied one when it is equal, else copy."""
    source, target = tree.root / entry.path, base / entry.path
    with copying.explained("backing up the store", source, hint="the store itself was not touched"):
        before = source.lstat()
        known = _still_known(target, index.get(f"{tree.name}/{entry.path}"))
        fresh = cloned = False
        digest = sha256_of(source) if known is not None and known.size == before.st_size else ""
        if known is None or digest != known.sha256:
            _make_way(target)
            copied = copying.copy_content(source, target)
            digest, fresh, cloned = copied.sha256, True, copied.cloned
        after = source.lstat()
        # Not sufficient (a mapping changes without this), but necessary; require_stopped and check() do the rest.
        if (before.st_size, before.st_mtime_ns, before.st_ino) != (after.st_size, after.st_mtime_ns, after.st_ino):
            raise BackupError(
                f"{source} changed while it was read: is a server still running on this store?",
                hint="stop it and try again; the store itself was not touched",
            )
        notes = copying.write_metadata(target, entry.metadata)
    return _FileOutcome(sha256=digest, fresh=fresh, cloned=cloned, notes=notes)


def _known(path: Path, sha256: str) -> _Known:
    info = path.lstat()
    return _Known(sha256=sha256, size=info.st_size, inode=info.st_ino, changed_ns=info.st_ctime_ns)


def _still_known(path: Path, known: _Known | None) -> _Known | None:
    """The digest of a file of ours, when nothing touched it since it was read back (ctime cannot be set by hand)."""
    if known is None or not path.is_file() or path.is_symlink():
        return None
    return known if _known(path, known.sha256) == known else None


def _prepare(of_stores: Sequence[Store], destination: Path) -> None:
    if not of_stores:
        raise BackupError("there is no store to back up", hint="a server without a store on disk cannot be upgraded")
    stores.require_apart(of_stores, destination)
    if (destination / manifest.FILE_NAME).exists():
        # After the new version has started, copying again would put its data over the only copy of the old.
        raise BackupError(
            f"{destination} holds a finished backup, which is never written over",
            hint="use it, or give the next backup a directory of its own",
        )
    with copying.explained("creating the backup's directory", destination):
        private_directory(destination / manifest.DATA)
        destination.chmod(0o700)


def _directories(base: Path, entries: Iterable[Entry]) -> None:
    """Create the directories, writable for us until _finish_directories."""
    for entry in entries:
        if entry.kind != "dir":
            continue
        place = base / entry.path
        with copying.explained("creating the backup's directories", place):
            if place.is_symlink() or (place.exists() and not place.is_dir()):
                place.unlink()
            place.mkdir(mode=0o700, exist_ok=True)
            place.chmod(0o700)


def _finish_directories(base: Path, entries: Sequence[Entry]) -> list[str]:
    """Metadata of directories, deepest first, and their names made durable."""
    notes: list[str] = []
    for entry in reversed(entries):
        if entry.kind == "dir":
            place = base / entry.path
            with copying.explained("finishing the backup's directories", place):
                fsync_directory(place)
                notes += copying.write_metadata(place, entry.metadata)
    fsync_directory(base.parent)
    return notes


def _make_way(target: Path) -> None:
    """Remove what a hot pass left under this name (only ever inside the backup)."""
    if target.is_dir() and not target.is_symlink():
        _remove_tree(target)
    else:
        target.unlink(missing_ok=True)


def _remove_vanished(base: Path, wanted: dict[str, Entry]) -> None:
    """Remove what the hot pass copied and the stopped store no longer has. Inside the backup only."""
    for directory, names, files in os.walk(base, topdown=False):
        for name in (*names, *files):
            place = base.__class__(directory) / name
            entry = wanted.get(str(place.relative_to(base)))
            is_directory = place.is_dir() and not place.is_symlink()
            if entry is None or entry.kind != ("dir" if is_directory else "file"):
                _make_way(place)


def _drop_strangers(data: Path, names: set[str]) -> None:
    for place in data.iterdir():
        if place.name not in names:
            _make_way(place)


def _remove_tree(path: Path) -> None:
    """Remove a directory of the backup, file by file; a link is removed and never followed."""
    for directory, names, files in os.walk(path, topdown=False):
        for name in (*names, *files):
            place = path.__class__(directory) / name
            if place.is_dir() and not place.is_symlink():
                place.rmdir()
            else:
                place.unlink()
    path.rmdir()


def _allocated(path: Path) -> int:
    total = 0
    for directory, _, files in os.walk(path):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(directory, name)).st_blocks * 512  # noqa: PTH118  (many files)
    return total


def _save_index(destination: Path, known: dict[str, _Known]) -> None:
    place = destination / INDEX
    with copying.explained("writing the backup's index", place):
        content = json.dumps({name: dataclasses.asdict(item) for name, item in known.items()})
        write_atomic(place, content, mode=PRIVATE)


def _load_index(destination: Path) -> dict[str, _Known]:
    """What the hot pass knew; nothing when it did not run or was cut off."""
    try:
        return {name: _Known(**item) for name, item in read_json(destination / INDEX).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
