"""The switch of installed files: binary and libraries as one unit, forward and back.

prepare() keeps a verified copy of every old file and writes down what is intended, before anything changes; stage()
writes the new files beside the old ones while the old server still runs, so that only renames are left for the time
without a server; apply() and undo() can each be repeated after a kill at any moment, from any mixture of old and new
files. Each file is written beside the old one under a temporary name, read back, and renamed over it: a running binary
is not disturbed (cp over it fails with "Text file busy"), and no reader ever sees half a file.

A target that is a symlink (lib/libcommon.so -> libcommon.so.3.1.0) is replaced at the level of the link: the new file
takes the link's name, the file behind it stays untouched for others that use it, and undo puts the link back. A hard
link's other names keep the old file. Directories are neither made, moved nor removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kwdb_build.data import copying
from kwdb_build.data.copying import Metadata
from kwdb_build.errors import ArtifactError, BackupError, SpaceError, UsageError
from kwdb_build.files import (
    PRIVATE,
    free_bytes,
    fsync_directory,
    human_bytes,
    private_directory,
    read_json,
    sha256_of,
    write_json,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

RECORD = "replace.json"
STAGED = "staged.json"
State = Literal["old", "new", "mixed"]
_SUFFIX = ".kwdb-build-new"
_NOTHING = "absent"
_DEFAULT_MODE = 0o755


@dataclass(frozen=True, kw_only=True)
class Replacement:
    """One file of the plan: what is installed at target, what takes its place, and whether target existed."""

    target: Path
    source: Path
    existed: bool


@dataclass(frozen=True, kw_only=True)
class ReplacedFile:
    """One file of a record. old and new are digests ('absent', 'link:<text>' or a sha256).

    kept: the verified copy of the old file (None when there was none or it was a link). metadata: what the new file
    takes over (of the old file, or of what the link led to, or what suits the directory).
    """

    target: Path
    source: Path
    old: str
    new: str
    kept: Path | None
    metadata: Metadata


@dataclass(frozen=True, kw_only=True)
class ReplaceRecord:
    """A prepared switch: where its record and the old files are kept, and all its files."""

    keep: Path
    files: tuple[ReplacedFile, ...]
    notes: tuple[str, ...] = ()


def prepare(plan: Sequence[Replacement], *, keep: Path) -> ReplaceRecord:
    """Keep the old files and write the record; nothing installed changes. A record that is there already is returned.

    Errors: UsageError for a plan that contradicts the disk, ArtifactError for a source that is missing, SpaceError,
    BackupError when an old file cannot be kept.
    """
    if (keep / RECORD).exists():
        record = load(keep)
        if [(item.target, item.source) for item in record.files] != [(item.target, item.source) for item in plan]:
            raise UsageError(f"{keep} holds the old files of another switch", hint="use a directory of its own")
        return record
    _check_plan(plan)
    with copying.explained("creating the directory for the old files", keep):
        private_directory(keep)
    _require_space(plan, keep)
    files = tuple(_prepare_file(number, item, keep) for number, item in enumerate(plan))
    record = ReplaceRecord(keep=keep, files=files)
    with copying.explained("writing the record of the switch", keep / RECORD):
        fsync_directory(keep)
        write_json(keep / RECORD, {"schema": 1, "files": files}, mode=PRIVATE)
    return record


def load(keep: Path) -> ReplaceRecord:
    """Read a record again; BackupError when there is none or it is damaged."""
    path = keep / RECORD
    try:
        items: list[dict[str, Any]] = read_json(path)["files"]
        files = tuple(
            ReplacedFile(
                target=Path(item["target"]), source=Path(item["source"]), old=item["old"], new=item["new"],
                kept=Path(item["kept"]) if item["kept"] else None, metadata=Metadata(**item["metadata"]),
            )
            for item in items
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackupError(f"there is no readable record of a switch at {path}", context=repr(error)) from error
    return ReplaceRecord(keep=keep, files=files)


def stage(record: ReplaceRecord) -> ReplaceRecord:
    """Write every new file beside the old one, read it back, and write down by what both are known again.

    Nothing installed changes; discard() takes it back. ArtifactError when a source changed since it was prepared.
    """
    notes: list[str] = []
    (record.keep / STAGED).unlink(missing_ok=True)
    known: dict[str, dict[str, Any]] = {}
    for item in record.files:
        _beside(item.target).unlink(missing_ok=True)
        if digest(item.target) != item.new:
            with copying.explained("writing the new file beside", item.target):
                notes += _write_beside(item.source, item.target, item.new, item.metadata, new_content=True)
        known[str(item.target)] = {"old": _signature(item.target), "new": _signature(_beside(item.target))}
    with copying.explained("writing the record of the staged files", record.keep / STAGED):
        for directory in {item.target.parent for item in record.files}:
            fsync_directory(directory)
        write_json(record.keep / STAGED, {"schema": 1, "files": known, "notes": notes}, mode=PRIVATE)
    return ReplaceRecord(keep=record.keep, files=record.files, notes=(*record.notes, *notes))


def staged(record: ReplaceRecord) -> bool:
    """Whether old and staged files are, by inode, size and times, those that stage() read back; cheap."""
    try:
        known = read_json(record.keep / STAGED)["files"]
        return all(
            known[str(item.target)] == {"old": _signature(item.target), "new": _signature(_beside(item.target))}
            for item in record.files
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def discard(record: ReplaceRecord) -> None:
    """Remove staged files that were never renamed into place. The kept copies of the old files stay."""
    (record.keep / STAGED).unlink(missing_ok=True)
    for item in record.files:
        with copying.explained("removing the staged file of", item.target):
            _beside(item.target).unlink(missing_ok=True)


def apply(record: ReplaceRecord) -> ReplaceRecord:
    """Put every new file in its place, from any mixture; return the record with notes on labels that did not take.

    Files that stage() wrote, and that nobody touched since, are only renamed: reading them again would lengthen the
    downtime. Otherwise all new files are written and read back before the first rename.
    ArtifactError when a source changed, or when an installed file is neither the old nor the new one (somebody else
    works there); nothing is renamed then.
    """
    if staged(record):
        return _apply_staged(record)
    notes: list[str] = []
    todo = [item for item in record.files if digest(item.target) != item.new]
    for item in todo:
        if digest(item.target) != item.old:
            raise ArtifactError(
                f"{item.target} was changed by somebody else since the switch was prepared",
                context=f"neither the old file ({item.old[:16]}) nor the new one ({item.new[:16]})",
                hint="find out who installs files there; `kwdb-build rollback` puts the old file back",
            )
    for item in record.files:
        _beside(item.target).unlink(missing_ok=True)  # of a killed undo
    for item in todo:
        with copying.explained("installing", item.target):
            notes += _write_beside(item.source, item.target, item.new, item.metadata, new_content=True)
    _rename_all(todo)
    _require(record, "new")
    return ReplaceRecord(keep=record.keep, files=record.files, notes=(*record.notes, *notes))


def _apply_staged(record: ReplaceRecord) -> ReplaceRecord:
    known = read_json(record.keep / STAGED)["files"]
    todo = [item for item in record.files if known[str(item.target)]["new"] is not None]
    _rename_all(todo)
    wrong = [item for item in todo if (_signature(item.target) or [])[:4] != known[str(item.target)]["new"][:4]]
    if wrong:  # a rename changes the last time, nothing else
        raise BackupError(
            "after the switch these are not the staged files", context="\n".join(str(item.target) for item in wrong),
            hint="does something else install files there? `kwdb-build rollback` puts the old ones back",
        )
    return record


def undo(record: ReplaceRecord) -> ReplaceRecord:
    """Put every old file back, from any mixture; files that did not exist are removed.

    A file that is neither old nor new is copied to the keep directory first. BackupError, before anything changes, when
    a kept file is damaged.
    """
    todo = [item for item in record.files if digest(item.target) != item.old]
    for item in todo:
        if item.kept is not None and digest(item.kept) != item.old:
            raise BackupError(
                f"the kept copy {item.kept} of {item.target} is missing or damaged; nothing was put back",
                hint="install the old version's files by other means",
            )
    notes: list[str] = []
    for item in record.files:
        _beside(item.target).unlink(missing_ok=True)
    for item in todo:
        with copying.explained("putting back", item.target):
            _save_stranger(item, record.keep)
            if item.kept is not None:
                notes += _write_beside(item.kept, item.target, item.old, item.metadata, new_content=False)
            elif item.old.startswith("link:"):
                _beside(item.target).symlink_to(item.old.removeprefix("link:"))
    _rename_all([item for item in todo if item.old != _NOTHING])
    for item in todo:
        if item.old == _NOTHING:
            with copying.explained("removing", item.target):
                item.target.unlink(missing_ok=True)
                fsync_directory(item.target.parent)
    _require(record, "old")
    return ReplaceRecord(keep=record.keep, files=record.files, notes=(*record.notes, *notes))


def replace_files(plan: Sequence[Replacement], *, keep: Path) -> ReplaceRecord:
    """Prepare and apply in one call."""
    return apply(prepare(plan, keep=keep))


def state(record: ReplaceRecord) -> State:
    """What is installed, by content: all old, all new, or a mixture. A plan that changes nothing counts as new."""
    found = [(digest(item.target), item) for item in record.files]
    if all(now == item.new for now, item in found):
        return "new"
    return "old" if all(now == item.old for now, item in found) else "mixed"


def digest(path: Path) -> str:
    """Sha256 of a regular file, 'link:<text>' of a symlink, 'absent' of nothing."""
    try:
        info = path.lstat()
        if stat.S_ISLNK(info.st_mode):
            return "link:" + os.readlink(path)  # noqa: PTH115  (Path would tidy the text)
        return sha256_of(path)
    except FileNotFoundError:
        return _NOTHING
    except OSError as error:
        raise copying.explain(error, "reading", path) from error


def _signature(path: Path) -> list[int] | None:
    """What changes when a file is written to or replaced: device, inode, size, time of content and of inode."""
    try:
        info = path.lstat()
    except FileNotFoundError:
        return None
    return [info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns]


def _check_plan(plan: Sequence[Replacement]) -> None:
    if not plan:
        raise UsageError("there is no file to replace")
    targets = [item.target for item in plan]
    if len(set(targets)) != len(targets):
        raise UsageError("a file would be replaced twice", context="\n".join(map(str, targets)))
    for item in plan:
        if not item.source.is_file():
            raise ArtifactError(f"{item.source} is missing from the build", hint="build again")
        if not item.target.is_absolute() or not item.target.parent.is_dir():
            raise UsageError(f"{item.target} is not in a directory that exists")
        there = item.target.is_symlink() or item.target.exists()
        if there != item.existed:
            raise UsageError(f"{item.target} {'exists' if there else 'does not exist'}, other than planned")
        if there and not (item.target.is_symlink() or item.target.is_file()):
            raise UsageError(f"{item.target} is no regular file and cannot be replaced")


def _require_space(plan: Sequence[Replacement], keep: Path) -> None:
    """Room for the new files beside the old ones and for the kept copies, on each file system."""
    needed: dict[int, tuple[Path, int]] = {}
    for item in plan:
        wants = [(item.target.parent, item.source.stat().st_size)]
        if item.target.is_file() and not item.target.is_symlink():
            wants.append((keep, item.target.stat().st_size))
        for place, size in wants:
            device = place.stat().st_dev
            needed[device] = (place, needed.get(device, (place, 0))[1] + size)
    for place, size in needed.values():
        if free_bytes(place) < size:
            raise SpaceError(
                f"not enough disk space for the switch: {human_bytes(size)} needed, "
                f"{human_bytes(free_bytes(place))} free on the file system of {place}", hint="free space there",
            )


def _prepare_file(number: int, item: Replacement, keep: Path) -> ReplacedFile:
    old = digest(item.target)
    kept: Path | None = None
    if old != _NOTHING and not old.startswith("link:"):
        kept = keep / f"{number:02}-{item.target.name}"
        with copying.explained("keeping a copy of the old file", item.target):
            kept.unlink(missing_ok=True)
            copied = copying.copy_content(item.target, kept)
            copying.write_metadata(kept, copying.read_metadata(item.target))
            if copied.sha256 != old or copying.sha256_fresh(kept) != old:
                raise BackupError(f"the copy of {item.target} does not hold what the file holds")
    return ReplacedFile(
        target=item.target, source=item.source, old=old, new=digest(item.source.resolve()), kept=kept,
        metadata=_wanted_metadata(item),
    )


def _wanted_metadata(item: Replacement) -> Metadata:
    with contextlib.suppress(FileNotFoundError):
        real = item.target.resolve(strict=True)
        return copying.read_metadata(real)
    directory = item.target.parent.stat()
    mode = stat.S_IMODE(item.source.stat().st_mode) & _DEFAULT_MODE
    return Metadata(
        mode=mode | stat.S_IRUSR | stat.S_IWUSR, uid=directory.st_uid, gid=directory.st_gid,
        mtime_ns=item.source.stat().st_mtime_ns,
    )


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}{_SUFFIX}")


def _write_beside(source: Path, target: Path, wanted: str, metadata: Metadata, *, new_content: bool) -> tuple[str, ...]:
    """A durable, re-read copy of source under the temporary name of target."""
    temporary = _beside(target)
    temporary.unlink(missing_ok=True)
    try:
        copied = copying.copy_content(source.resolve(), temporary)
        _require_same(source, wanted, copied.sha256, copying.sha256_fresh(temporary))
        notes = copying.write_metadata(temporary, metadata, new_content=new_content)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return notes


def _require_same(source: Path, wanted: str, *found: str) -> None:
    if any(digest_found != wanted for digest_found in found):
        raise ArtifactError(f"{source} is not what it was when the switch was prepared", hint="build again")


def _rename_all(items: Sequence[ReplacedFile]) -> None:
    """The short moment in which old and new are mixed."""
    for item in items:
        with copying.explained("renaming into place", item.target):
            _beside(item.target).rename(item.target)
    for directory in {item.target.parent for item in items}:
        with copying.explained("making the new names durable", directory):
            fsync_directory(directory)


def _save_stranger(item: ReplacedFile, keep: Path) -> None:
    """Something that is neither the old nor the new file is not thrown away."""
    now = digest(item.target)
    if now in (item.new, item.old, _NOTHING):
        return
    name = f"displaced-{hashlib.sha256(now.encode()).hexdigest()[:12]}-{item.target.name}"
    place = keep / name
    if not place.exists() and not place.is_symlink():
        if now.startswith("link:"):
            place.symlink_to(now.removeprefix("link:"))
        else:
            copying.copy_content(item.target, place)
            copying.write_metadata(place, copying.read_metadata(item.target))


def _require(record: ReplaceRecord, wanted: State) -> None:
    """Read everything again: a rename that was reported as done is not proof."""
    wrong = [
        str(item.target) for item in record.files
        if digest(item.target) != (item.new if wanted == "new" else item.old)
    ]
    if wrong:
        raise BackupError(
            f"after the switch to the {wanted} files these are not what they must be", context="\n".join(wrong),
            hint="does something else install files there? `kwdb-build rollback` puts the old ones back",
        )
