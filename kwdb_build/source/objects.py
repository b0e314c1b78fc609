"""What is in a cache that holds only part of the objects: which files a commit needs, which of them are there."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kwdb_build.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from kwdb_build.source.client import GitClient

_BLOCK_BYTES = 4096
_GITLINK = "160000"
_HASH_BYTES = 20
_CHUNK = 1 << 20
_NO_SINGLE = re.compile(r"unadvertised object|does not support shallow", re.IGNORECASE)
_NO_FILTER = re.compile(r"filtering not recognized by server", re.IGNORECASE)
_MIN_ABBREV = 7


@dataclass(frozen=True, kw_only=True)
class File:
    """One file of a commit."""

    path: str
    oid: str


def gives_no_single(words: str) -> bool:
    """Whether git's words mean that a host sends branches and tags, but nothing by its hash."""
    return _NO_SINGLE.search(words) is not None


def ignores_filter(words: str) -> bool:
    """Whether git's words mean that a host sent everything though a part was asked for."""
    return _NO_FILTER.search(words) is not None


def files_of(
    client: GitClient, repository: Path, commit: str, *, skip: tuple[str, ...] = (), only: tuple[str, ...] = ()
) -> tuple[File, ...]:
    """Files of a commit, without those below the directories in skip, or only the paths in `only`."""
    paths = ("--", *only) if only else ()
    listing = client.text(
        "ls-tree", "-r", "-z", "--full-tree", commit, *paths, cwd=repository, what="reading the tree"
    )
    return parse_files(listing, skip)


def parse_files(listing: str, skip: tuple[str, ...] = ()) -> tuple[File, ...]:
    """Read `git ls-tree -r -z`, without gitlinks and without what lies below skip."""
    below = tuple(f"{name}/" for name in skip)
    found = []
    for entry in listing.split("\0"):
        meta, tab, path = entry.partition("\t")
        if tab and not meta.startswith(_GITLINK) and not path.startswith(below):
            found.append(File(path=path, oid=meta.split()[2]))
    return tuple(found)


def sizes(client: GitClient, repository: Path) -> dict[str, int]:
    """Every object that is really here, with its size in bytes. Never asks a host for one that is not."""
    listing = client.text(
        "cat-file", "--batch-all-objects", "--unordered", "--batch-check=%(objectname) %(objectsize)", cwd=repository,
        what="reading the cache",
    )
    return {oid: int(size) for oid, _, size in (line.partition(" ") for line in listing.splitlines())}


def absent(client: GitClient, repository: Path, files: Iterable[File]) -> tuple[File, ...]:
    """Those files whose content is not here, each content once, in the order of the tree."""
    here = sizes(client, repository)
    return tuple({file.oid: file for file in files if file.oid not in here}.values())


def disk_bytes(client: GitClient, repository: Path, files: Iterable[File]) -> int:
    """What a checkout of the files takes on disk, rounded up to blocks; ones that are not here count as one block."""
    here = sizes(client, repository)
    return sum(
        -(-here.get(file.oid, 1) // _BLOCK_BYTES) * _BLOCK_BYTES + _BLOCK_BYTES // 4 for file in files
    )


def pack_bytes(repository: Path) -> int:
    """Size of all packs: what came over the wire, near enough."""
    return sum(path.stat().st_size for path in repository.glob("objects/pack/*.pack"))


def damaged_packs(repository: Path) -> tuple[Path, ...]:
    """Packs and indexes whose content is not what their own checksum says (sha1 of all before it), or that are gone."""
    found = [*repository.glob("objects/pack/pack-*.pack"), *repository.glob("objects/pack/pack-*.idx")]
    stems = {path.with_suffix("") for path in found}
    both = [stem.with_suffix(suffix) for stem in sorted(stems) for suffix in (".pack", ".idx")]
    return tuple(path for path in both if not _sums_up(path))


def _sums_up(path: Path) -> bool:
    try:
        size = path.stat().st_size
        digest, left = hashlib.sha1(usedforsecurity=False), size - _HASH_BYTES
        with path.open("rb") as stream:
            while left > 0 and (chunk := stream.read(min(left, _CHUNK))):
                digest.update(chunk)
                left -= len(chunk)
            return size > _HASH_BYTES and stream.read() == digest.digest()
    except OSError:
        return False


def abbreviation(client: GitClient, repository: Path, commit: str) -> int:
    """How many digits `git describe` gives to a commit in a full clone of this repository.

    git takes half the bits of the number of objects (source: find_unique_abbrev in git's object-name.c) and more where
    the name is not unique. A cache without the files has fewer objects; their names stand in its trees, though.
    """
    listing = client.text(
        "rev-list", "--objects", "--no-object-names", "--missing=print", "--branches", "--tags", cwd=repository,
        what="counting the objects",
    )
    oids = {line.lstrip("?") for line in listing.splitlines()}
    if not oids:
        raise SourceError("the cache holds no branch and no tag")
    shared = max((_common(commit, oid) for oid in oids if oid != commit), default=0)
    return max(_MIN_ABBREV, (len(oids).bit_length() + 1) // 2, shared + 1)


def _common(one: str, other: str) -> int:
    return next((number for number, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
