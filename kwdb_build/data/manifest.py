"""The record of a backup: written last, atomically, and checked against itself when it is read again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from kwdb_build.data.copying import Metadata
from kwdb_build.data.stores import Entry, Tree
from kwdb_build.errors import BackupError
from kwdb_build.files import PRIVATE, write_atomic
from kwdb_build.model import to_json

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE_NAME = "manifest.json"
DATA = "data"
_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class TreeRecord:
    """A tree as it was: where it belongs, the mount point it was on, and everything in it."""

    tree: Tree
    mount_point: Path
    entries: tuple[Entry, ...]

    @property
    def files(self) -> dict[str, Entry]:
        """Regular files by their path in the tree."""
        return {entry.path: entry for entry in self.entries if entry.kind == "file"}


@dataclass(frozen=True, kw_only=True)
class BackupManifest:
    """A backup: the directory that holds it, when it was made (unix seconds) and what it holds.

    files and size_bytes count regular files; copied, kept and cloned say how they came: written after the stop, found
    equal to the pre-copied one, written by sharing blocks. fresh lists those written after the stop ('tree/path').
    """

    directory: Path
    created_at: float
    trees: tuple[TreeRecord, ...]
    files: int
    size_bytes: int
    copied: int = 0
    kept: int = 0
    cloned: int = 0
    fresh: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The manifest's own file."""
        return self.directory / FILE_NAME

    def place(self, record: TreeRecord, entry: Entry) -> Path:
        """Where the backup keeps an entry."""
        return tree_directory(self.directory, record.tree) / entry.path

    def each_file(self) -> Iterator[tuple[TreeRecord, Entry]]:
        """Every regular file with its tree."""
        for record in self.trees:
            for entry in record.files.values():
                yield record, entry


def tree_directory(directory: Path, tree: Tree) -> Path:
    """Where a backup in `directory` keeps a tree."""
    return directory / DATA / tree.name


def save(manifest: BackupManifest) -> None:
    """Write it, private to its owner: names of files are nobody else's business. Any file name survives (ASCII)."""
    body = to_json(manifest)
    body["directory"] = "."
    document = {"schema": _SCHEMA, "digest": _digest(body), "backup": body}
    write_atomic(manifest.path, json.dumps(document, indent=1) + "\n", mode=PRIVATE)


def load(path: Path) -> BackupManifest:
    """Read a manifest (or the directory that holds one); BackupError when it is missing, damaged or unsafe."""
    path = path / FILE_NAME if path.is_dir() else path
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BackupError(
            f"there is no backup manifest at {path}", context="it is written last: without it a backup is unfinished",
            hint="a cut-off backup holds nothing that is needed: the store itself was not touched",
        ) from error
    except (OSError, ValueError) as error:
        raise BackupError(f"the backup manifest {path} cannot be read", context=str(error)) from error
    try:
        if document["schema"] != _SCHEMA or document["digest"] != _digest(document["backup"]):
            raise BackupError(f"the backup manifest {path} was changed or damaged after it was written")
        return _from_json(document["backup"], path.parent.resolve())
    except (KeyError, TypeError, ValueError) as error:
        raise BackupError(f"the backup manifest {path} is not one of ours", context=repr(error)) from error


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _from_json(body: dict[str, Any], directory: Path) -> BackupManifest:
    return BackupManifest(
        directory=directory, created_at=body["created_at"], files=body["files"], size_bytes=body["size_bytes"],
        copied=body["copied"], kept=body["kept"], cloned=body["cloned"], fresh=tuple(body["fresh"]),
        notes=tuple(body["notes"]),
        trees=tuple(
            TreeRecord(
                tree=Tree(
                    name=_safe(item["tree"]["name"]), root=Path(item["tree"]["root"]), is_store=item["tree"]["is_store"]
                ),
                mount_point=Path(item["mount_point"]),
                entries=tuple(_entry(entry) for entry in item["entries"]),
            )
            for item in body["trees"]
        ),
    )


def _entry(item: dict[str, Any]) -> Entry:
    return Entry(**{**item, "path": _safe(item["path"]), "metadata": Metadata(**item["metadata"])})


def _safe(relative: str) -> str:
    """A path that stays inside its tree."""
    path = PurePosixPath(relative)
    if path.is_absolute() or ".." in path.parts:
        raise BackupError(f"the backup manifest names a path outside its tree: {relative!r}")
    return relative
