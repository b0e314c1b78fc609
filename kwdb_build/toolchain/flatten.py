"""An image archive of several layers as one root file system: what later layers hide or remove is gone for good."""

from __future__ import annotations

import tarfile
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING

from kwdb_build.engine.archive import open_layer, read_archive

if TYPE_CHECKING:
    from pathlib import Path

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"


def flatten(archive: Path, target: Path) -> None:
    """Write the root file system of a `docker save` archive, its layers checked, as a tar.

    Errors: EngineError when the archive is not whole, OSError when target cannot be written.
    """
    members = read_archive(archive).members
    with tarfile.open(archive) as tar, tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as out:
        kept = _kept(tar, members)
        for layer in members:
            with open_layer(tar, layer) as stream, _layer(stream) as entries:
                _copy(entries, out, kept[layer])


def _kept(tar: tarfile.TarFile, members: tuple[str, ...]) -> dict[str, set[str]]:
    """Names of each layer that no later layer replaces or removes."""
    kept: dict[str, set[str]] = {}
    seen: set[str] = set()
    gone: set[str] = set()  # names that a later layer removed, with all below them
    for layer in reversed(members):
        names, removed = set(), set()
        directories: set[str] = set()
        with open_layer(tar, layer) as stream, _layer(stream) as entries:
            for entry in entries:
                place = PurePosixPath("/", entry.name)
                if place.name == _OPAQUE:
                    removed.add(f"{place.parent}/")
                elif place.name.startswith(_WHITEOUT):
                    removed.add(str(place.parent / place.name.removeprefix(_WHITEOUT)))
                else:
                    names.add(str(place))
                    directories |= {str(place)} if entry.isdir() else set()
        kept[layer] = {name for name in names - seen if not _is_gone(name, gone)}
        seen |= kept[layer]
        # What is no directory here hides everything that was below it.
        gone |= removed | {f"{name}/" for name in kept[layer] - directories}
    return kept


def _is_gone(name: str, gone: set[str]) -> bool:
    parents = [str(parent) for parent in PurePosixPath(name).parents]
    return name in gone or any(parent in gone or f"{parent.rstrip('/')}/" in gone for parent in parents)


def _copy(entries: tarfile.TarFile, out: tarfile.TarFile, kept: set[str]) -> None:
    """Write the kept entries; a hard link to a name that is hidden becomes the file itself."""
    contents: dict[str, tarfile.TarInfo] = {}
    for entry in entries:
        name = str(PurePosixPath("/", entry.name))
        if entry.isreg():
            contents[name] = entry
        if name not in kept or name == "/":
            continue
        if entry.islnk() and str(PurePosixPath("/", entry.linkname)) not in kept:
            original = contents[str(PurePosixPath("/", entry.linkname))]
            entry.type, entry.size, entry.linkname = tarfile.REGTYPE, original.size, ""
            out.addfile(entry, entries.extractfile(original))
        else:
            out.addfile(entry, entries.extractfile(entry) if entry.isreg() else None)


def _layer(stream: IO[bytes]) -> tarfile.TarFile:
    return tarfile.open(fileobj=stream)
