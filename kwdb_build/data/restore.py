"""The way back of the data: stores become exactly what the backup holds.

Decided by content, file by file, so a second run, or a run after a kill in the middle, ends in the same state. What
the new version wrote is kept in the run's own directory first (it may hold rows that clients wrote): only when that
does not fit is it given up, and the result says which. Directories of a store are never moved, and removed only when
they are empty and the backup does not know them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kwdb_build.console import Progress
from kwdb_build.data import copying, manifest, stores
from kwdb_build.errors import BackupError
from kwdb_build.files import free_bytes, fsync_directory, private_directory, sha256_of
from kwdb_build.model import Store

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from kwdb_build.data.manifest import BackupManifest, TreeRecord
    from kwdb_build.data.stores import Entry

_MARGIN_BYTES = 16 << 20
_SUFFIX = ".kwdb-build-restore"


@dataclass(frozen=True, kw_only=True)
class RestoreResult:
    """What a restore did. size_bytes: written to the stores.

    not_set_aside: files of the new version that are lost because there was no room (or they could not be read).
    notes: what was left as it is, and labels or owners that could not be set.
    """

    files_restored: int
    files_set_aside: int
    size_bytes: int
    set_aside: Path
    not_set_aside: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What is to be done in one tree.

    wrong: entries of the backup that are missing or differ. extra: live entries that must go (not in the backup, or of
    another kind there). live: all live entries by path. special: live sockets and the like.
    """

    record: TreeRecord
    wrong: tuple[Entry, ...]
    extra: tuple[Entry, ...]
    live: dict[str, Entry]
    special: tuple[Path, ...]

    @property
    def root(self) -> Path:
        """Where the tree lives."""
        return self.record.tree.root

    def wrong_files(self) -> list[Entry]:
        """Files to be written."""
        return [entry for entry in self.wrong if entry.kind == "file"]

    def given_up(self) -> list[Entry]:
        """Live files that will not be there any more."""
        replaced = [self.live[entry.path] for entry in self.wrong if entry.path in self.live]
        found = {entry.path: entry for entry in (*replaced, *self.extra) if entry.kind == "file"}
        return list(found.values())


def restore(manifest_path: Path, *, set_aside: Path, progress: Progress | None = None) -> RestoreResult:
    """Bring every store of the backup back to what the backup holds; the server must be stopped.

    Errors, all before anything is changed: BackupError when a server holds a store, a file system is not mounted, or a
    part of the backup that is needed is damaged. Later: SpaceError when not even giving up the new version's files
    makes enough room; nothing is lost then but what the result of a second run would give up, too.
    """
    progress = progress or Progress()
    made = manifest.load(manifest_path)
    _require_places(made)
    plans = _plans(made, progress)
    _require_sound(made, plans, progress)
    with copying.explained("creating the directory for set-aside files", set_aside):
        private_directory(set_aside)
    worker = _Restorer(made=made, set_aside=set_aside, keep=_affordable(made, plans, set_aside), progress=progress)
    for plan in plans:
        worker.tree(plan)
    return RestoreResult(
        files_restored=worker.restored, files_set_aside=len(worker.kept), size_bytes=worker.size_bytes,
        set_aside=set_aside, not_set_aside=tuple(worker.lost), notes=tuple(worker.notes),
    )


def compare(manifest_path: Path, *, progress: Progress | None = None) -> tuple[str, ...]:
    """Differences between the stores and the backup, in words; none after a restore and before a start."""
    made = manifest.load(manifest_path)
    found: list[str] = []
    for plan in _plans(made, progress or Progress()):
        found += [f"{plan.root / entry.path}: not in the backup" for entry in plan.extra
                  if entry.path not in {wrong.path for wrong in plan.wrong}]
        found += [f"{path}: a socket, pipe or device, not in the backup" for path in plan.special]
        for entry in plan.wrong:
            what = "differs from the backup" if entry.path in plan.live else "missing"
            found.append(f"{plan.root / entry.path}: {what}")
        found += _metadata_differences(plan)
    return tuple(found)


def _metadata_differences(plan: _Plan) -> list[str]:
    found = []
    for entry in plan.record.entries:
        live = plan.live.get(entry.path)
        if live is None or live.kind != entry.kind or entry.kind == "link":
            continue
        for name in ("mode", "uid", "gid"):
            is_now, was = getattr(live.metadata, name), getattr(entry.metadata, name)
            if is_now != was:
                shown = (f"{is_now:o}", f"{was:o}") if name == "mode" else (is_now, was)
                found.append(f"{plan.root / entry.path}: {name} {shown[0]} instead of {shown[1]}")
    return found


def _require_places(made: BackupManifest) -> None:
    stores.require_stopped(Store(path=record.tree.root) for record in made.trees if record.tree.is_store)
    for record in made.trees:
        root = record.tree.root
        now = stores.file_system(root).mount_point
        if now != record.mount_point:
            raise BackupError(
                f"the file system of {root} is not mounted as it was: {record.mount_point} then, {now} now",
                hint="mount it again: restoring to another file system would hide the real data",
            )
        if root.is_symlink() or (root.exists() and not root.is_dir()) or not root.parent.is_dir():
            raise BackupError(f"{root} is not the directory that it was", hint="put it back, then restore again")


def _plans(made: BackupManifest, progress: Progress) -> list[_Plan]:
    return [_plan(record, progress) for record in made.trees]


def _plan(record: TreeRecord, progress: Progress) -> _Plan:
    tree = record.tree
    special: list[Path] = []
    live = {entry.path: entry for entry in stores.scan(tree, hot=True, special=special)} if tree.root.exists() else {}
    wanted = {entry.path: entry for entry in record.entries}
    candidates = [
        entry for path, entry in wanted.items()
        if entry.kind == "file" and path in live and live[path].kind == "file" and live[path].size == entry.size
    ]
    total, done = sum(entry.size for entry in candidates), 0
    same: set[str] = set()

    def each(entry: Entry, is_same: bool) -> None:
        nonlocal done
        done += entry.size
        progress.update(f"comparing {tree.root} with the backup", done=done, total=total)
        if is_same:
            same.add(entry.path)

    copying.in_parallel(lambda entry: _same_content(tree.root / entry.path, entry), candidates, each)
    wrong, extra = [], []
    for path, entry in wanted.items():
        now = live.get(path)
        if now is None or now.kind != entry.kind or now.link != entry.link or (
            entry.kind == "file" and path not in same
        ):
            wrong.append(entry)
        if now is not None and now.kind != entry.kind:
            extra.append(now)
    extra += [entry for path, entry in live.items() if path not in wanted]
    return _Plan(record=record, wrong=tuple(wrong), extra=tuple(extra), live=live, special=tuple(special))


def _same_content(path: Path, entry: Entry) -> bool:
    """An unreadable file (the new version died on a bad disk, say) is a different one: it will be replaced."""
    try:
        return sha256_of(path) == entry.sha256
    except OSError:
        return False


def _require_sound(made: BackupManifest, plans: Iterable[_Plan], progress: Progress) -> None:
    """Read what is needed of the backup before the first change: half a way back is no way back."""
    needed = [(plan.record, entry) for plan in plans for entry in plan.wrong_files()]
    bad: list[str] = []

    def is_sound(item: tuple[TreeRecord, Entry]) -> bool:
        return _same_content(made.place(*item), item[1])

    def each(item: tuple[TreeRecord, Entry], sound: bool) -> None:
        progress.update(f"checking the backup: {item[1].path}")
        if not sound:
            bad.append(str(made.place(*item)))

    copying.in_parallel(is_sound, needed, each)
    if bad:
        raise BackupError(
            f"{len(bad)} files of the backup in {made.directory} are missing or damaged; nothing was changed",
            context="\n".join(bad[:20]), hint="keep everything as it is; the new version's data is still in the store",
        )


def _affordable(made: BackupManifest, plans: Sequence[_Plan], set_aside: Path) -> set[Path]:
    """Live files for which there is room to keep them, small ones first (so most files are kept)."""
    device = set_aside.stat().st_dev
    room = free_bytes(set_aside) - _MARGIN_BYTES
    candidates: list[tuple[int, Path]] = []
    for plan in plans:
        files = plan.given_up()
        candidates += [(entry.allocated, plan.root / entry.path) for entry in files]
        if stores.existing(plan.root).stat().st_dev != device:
            continue
        # On the same file system a kept file costs what it would have freed.
        room += sum(entry.allocated for entry in files)
        tree = manifest.tree_directory(made.directory, plan.record.tree)
        if not (plan.root.exists() and stores.can_reflink(tree, plan.root)):
            room -= sum(entry.allocated for entry in plan.wrong_files())
    chosen: set[Path] = set()
    for size, path in sorted(candidates):
        if size <= room:
            room -= size
            chosen.add(path)
    return chosen


@dataclass(kw_only=True)
class _Restorer:
    """Carries out plans and counts."""

    made: BackupManifest
    set_aside: Path
    keep: set[Path]
    progress: Progress
    restored: int = 0
    size_bytes: int = 0
    kept: list[Path] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    touched: set[Path] = field(default_factory=set)

    def tree(self, plan: _Plan) -> None:
        """Extra things go, directories and links come, files are replaced, owners and labels are set."""
        self.notes += [f"{path}: a socket, pipe or device, left as it is" for path in plan.special]
        with copying.explained("restoring the store", plan.root):
            plan.root.mkdir(exist_ok=True)
            self._remove_partial(plan)
            for entry in reversed(plan.extra):
                self._remove_extra(plan, entry)
            for entry in plan.wrong:
                if entry.kind == "dir":
                    (plan.root / entry.path).mkdir(mode=0o700, exist_ok=True)
                elif entry.kind == "link":
                    self._link(plan.root / entry.path, entry.link)
            self._files(plan)
            self._metadata(plan)
            self._remove_temporary(plan)
            for directory in self.touched:
                if directory.is_dir():
                    fsync_directory(directory)
            self.touched.clear()

    def _remove_partial(self, plan: _Plan) -> None:
        """What a killed restore left half-written beside its target (our own suffix)."""
        for path, entry in list(plan.live.items()):
            if path.endswith(_SUFFIX) and entry.kind != "dir":
                (plan.root / path).unlink(missing_ok=True)

    def _remove_extra(self, plan: _Plan, entry: Entry) -> None:
        path = plan.root / entry.path
        self.touched.add(path.parent)
        if entry.path.endswith(_SUFFIX):
            return
        if entry.kind == "dir":
            try:
                path.rmdir()
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise
                self.notes.append(f"{path}: a directory of the new version that is not empty, left as it is")
        elif entry.kind == "link":
            self.notes.append(f"{path}: a symlink of the new version to {entry.link}, removed; its target was left")
            path.unlink(missing_ok=True)
        elif not self._keep(plan, path):
            path.unlink(missing_ok=True)

    def _link(self, path: Path, text: str) -> None:
        temporary = path.with_name(path.name + _SUFFIX)
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(text)
        temporary.replace(path)
        self.touched.add(path.parent)

    def _files(self, plan: _Plan) -> None:
        todo = plan.wrong_files()
        total, done = sum(entry.size for entry in todo), 0
        for entry in todo:
            target = plan.root / entry.path
            if entry.path in plan.live and plan.live[entry.path].kind == "file":
                self._keep(plan, target)
            self._write(plan, entry, target)
            self.restored += 1
            self.size_bytes += entry.size
            done += entry.size
            self.progress.update(f"restoring {plan.root}", done=done, total=total)

    def _write(self, plan: _Plan, entry: Entry, target: Path) -> None:
        """New file beside, durable, then renamed over. When the disk is full, the new version's files make room."""
        source = self.made.place(plan.record, entry)
        temporary = target.with_name(target.name + _SUFFIX)
        while True:
            temporary.unlink(missing_ok=True)
            try:
                copied = copying.copy_content(source, temporary)
                break
            except OSError as error:
                temporary.unlink(missing_ok=True)
                if not copying.is_no_space(error) or not self._make_room(target):
                    raise
        if copied.sha256 != entry.sha256:
            temporary.unlink()
            raise BackupError(f"{source} changed while it was restored", hint="look at the disk, then restore again")
        self.notes += copying.write_metadata(temporary, entry.metadata)
        temporary.replace(target)
        self.touched.add(target.parent)

    def _make_room(self, target: Path) -> bool:
        """Give up what stands in the way: the old content of the target, then the largest file set aside."""
        if target.is_file():
            target.unlink()
            if str(target) not in self.lost:
                self.lost.append(str(target))
            return True
        device = stores.existing(target).stat().st_dev
        near = [path for path in self.kept if path.exists() and path.stat().st_dev == device]
        if not near:
            return False
        largest = max(near, key=lambda path: path.stat().st_blocks)
        largest.unlink()
        self.kept.remove(largest)
        self.lost.append(f"{largest} (was set aside, then removed: the disk was full)")
        return True

    def _keep(self, plan: _Plan, path: Path) -> bool:
        """Move a live file to the set-aside directory; False when it stays where it is and will be lost."""
        if path not in self.keep:
            self.lost.append(str(path))
            return False
        target = self.set_aside / plan.record.tree.name / path.relative_to(plan.root)
        try:
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            number = 0
            while target.exists():  # an earlier, cut-off restore kept one of the same name
                number += 1
                target = target.with_name(f"{path.name}.{number}")
            self._move(path, target)
        except OSError as error:
            self.lost.append(f"{path} ({error.strerror})")
            return False
        self.kept.append(target)
        return True

    def _move(self, path: Path, target: Path) -> None:
        try:
            path.rename(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
        else:
            fsync_directory(target.parent)
            return
        partial = target.with_name(target.name + ".part")
        partial.unlink(missing_ok=True)
        try:
            copying.copy_content(path, partial)
            copying.write_metadata(partial, copying.read_metadata(path))
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        partial.replace(target)
        fsync_directory(target.parent)
        path.unlink()

    def _metadata(self, plan: _Plan) -> None:
        """Owner, mode and labels of everything, directories after what is in them."""
        for entry in reversed(plan.record.entries):
            path = plan.root / entry.path
            if entry.kind == "link":
                with contextlib.suppress(PermissionError):
                    os.chown(path, entry.metadata.uid, entry.metadata.gid, follow_symlinks=False)
            elif copying.read_metadata(path) != entry.metadata:
                self.notes += copying.write_metadata(path, entry.metadata)

    def _remove_temporary(self, plan: _Plan) -> None:
        """The dead server's kwbase-temp<N> directories: nothing but spill files of queries that are gone."""
        if not plan.record.tree.is_store:
            return
        for path in plan.root.iterdir():
            if stores.TEMPORARY.match(path.name) and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
                self.touched.add(plan.root)

