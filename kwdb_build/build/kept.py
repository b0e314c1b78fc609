"""KWDB's bundled C and C++ libraries as an earlier build made them: `make` finds them built, and leaves them alone.

<place>/kept/<digest>/files/…        what lay below GOPATH, moved here at the end of the build that made it
<place>/kept/<digest>/manifest.json  what each file must be: checked whenever it is taken

ccache spares their compilations, but not the configure scripts and probes of a dozen projects, which take minutes. With
them goes what CMake found out about the compilers (see configured.py), as the same files and options decide that. The
digest (see inputs.Dependencies) stands for all that decides them: the narrow one where their build was seen to look at
none of KWDB's own headers (see evidence.py), else the wide one. That a build for another commit may take them is not
only hoped for: what holds a trace of the commit that it was built for is not kept.

Not below the directory that is mounted for builds, and its directories belong to us: builds run as one user, and one
that still holds a directory of another's working copy must not change what a third one finds.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from kwdb_build.build import configured
from kwdb_build.build.evidence import looked_outside
from kwdb_build.build.recipe import DEPENDENCIES, GOPATH, NATIVE, THIRD_PARTY
from kwdb_build.errors import ArtifactError
from kwdb_build.files import (
    NO_SPACE,
    check_manifest,
    human_bytes,
    load_json,
    manifest_of,
    tree_bytes,
    walk_all,
    write_json,
)
from kwdb_build.model import SOURCE_SUFFIX, FileRecord
from kwdb_build.scratch import remove_tree, scratch_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kwdb_build.build.inputs import Dependencies
    from kwdb_build.console import Progress
    from kwdb_build.model import SourceTree

DIRECTORY = "kept"
_BUILT = tuple(str(place.relative_to(GOPATH)) for place in (NATIVE, THIRD_PARTY))
_IN_SOURCE = (*(f"{name}/*/configure" for name in DEPENDENCIES), configured.COMPILERS, configured.CACHE)
"""Below the source. autoconf makes configure there, and one that is newer than what it made has that made anew."""
_FILES, _MANIFEST = "files", "manifest.json"
_NEW = ".new-"
NOT_KEPT = "the libraries that came with this source are not kept for the next build"
_CHUNK = 1 << 20
_SHORTEST_NAME = 7
"""Of a commit, as git abbreviates."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What was kept, by names below GOPATH: places, the files and links in them, directories before what they hold."""

    places: tuple[str, ...]
    files: tuple[FileRecord, ...]
    directories: tuple[str, ...]
    schema: int = 1


def take(root: Path, digest: str, gopath: Path, *, uid: int, gid: int, newer_than: int, progress: Progress) -> bool:
    """Copy what is kept under digest into a working copy, owned by uid:gid; False when there is nothing (sound).

    All that was built gets one time, now and after newer_than (unix seconds: that of the sources), and what was made
    in the source gets that of the sources. So all of it is up to date to make, to which equal times are, and to KWDB's
    `uptodate`, to which they are not.
    """
    entry = root / digest
    if not (entry / _MANIFEST).is_file():
        return False
    places: tuple[str, ...] = ()
    try:
        manifest = load_json(Manifest, entry / _MANIFEST)
        _require_sound(manifest)
        if any((gopath / place).exists() or _linked(gopath, place) for place in manifest.places):
            return False
        places = manifest.places
        check_manifest(entry / _FILES, manifest.files, content=False)  # _copy reads them
        _copy(entry / _FILES, gopath, manifest, uid, gid)
    except (ArtifactError, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            raise
        progress.note(f"the libraries kept in {entry} are damaged: they are removed, and built anew")
        _discard(entry)
        for place in places:
            _remove(gopath / place)
        return False
    built = max(int(time.time()), newer_than + 1)
    for name in (*(record.path for record in manifest.files), *manifest.directories):
        when = built if f"{name}/".startswith(tuple(f"{place}/" for place in _BUILT)) else newer_than
        os.chown(gopath / name, uid, gid, follow_symlinks=False)
        os.utime(gopath / name, (when, when), follow_symlinks=False)
    with contextlib.suppress(FileNotFoundError):
        os.utime(entry)  # used now: prune() takes the one first that was not for the longest time
    return True


def keep(
    root: Path, digests: Dependencies, gopath: Path, scratch: Path, tree: SourceTree, progress: Progress, *,
    limit_bytes: int,
) -> str:
    """Move what a finished build of tree made into root, if a build of another commit may have it as it is.

    Returns why a change of KWDB's own headers will have it built anew, '' when it will not.

    The working copy at gopath is of no use any more; scratch: what the build had as such. Nothing is done when there is
    an entry already, also by the other digest: what was taken from it, nobody saw being compiled. Errors: OSError,
    ValueError (a name that is no text).
    """
    present = [place for place in _places(gopath, tree) if (gopath / place).exists() and not _linked(gopath, place)]
    there = any((root / digest / _MANIFEST).is_file() for digest in (digests.narrow, digests.wide) if digest)
    if not any(place in _BUILT for place in present) or there:
        return ""
    if (size := sum(_size(gopath / place) for place in present)) > limit_bytes:
        progress.note(f"{NOT_KEPT}: they take {human_bytes(size)} of at most {human_bytes(limit_bytes)} (a part of "
                      "cache_size)")
        return ""
    root.mkdir(mode=0o700, exist_ok=True)
    with scratch_directory(root, _NEW) as new:
        for place in present:
            (new / _FILES / place).parent.mkdir(parents=True, exist_ok=True)
            (gopath / place).rename(new / _FILES / place)
        _own(new / _FILES)
        if (cache := new / _FILES / SOURCE_SUFFIX / configured.CACHE).exists():
            configured.reduce(cache)
        if reason := _unfit(new / _FILES, marks_of(tree)):
            progress.note(f"{NOT_KEPT}: {reason}")
            return ""
        directories = [path for path in sorted(walk_all(new / _FILES)) if path.is_dir() and not path.is_symlink()]
        outside = looked_outside(new / _FILES, scratch, tree.path) if digests.narrow else (
            "one of their sources includes a file by a path that could lead out of them"
        )
        entry = root / (digests.wide if outside else digests.narrow)
        write_json(new / _MANIFEST, Manifest(
            places=tuple(present), files=manifest_of(new / _FILES),
            directories=tuple(str(path.relative_to(new / _FILES)) for path in directories),
        ))
        if not (entry / _MANIFEST).is_file():
            _discard(entry)  # of one that was being removed when the power failed, say
        with contextlib.suppress(OSError):  # another build of the same was first
            new.rename(entry)
        return outside


def prune(root: Path, limit_bytes: int) -> int:
    """Remove what was not used for the longest time until all is within limit_bytes; how many. While no build runs."""
    removed = 0
    entries = [path for path in root.glob("[!.]*") if path.is_dir()]
    for path in sorted(entries, key=lambda path: path.stat().st_mtime, reverse=True):
        limit_bytes -= tree_bytes(path)
        if limit_bytes < 0:
            _discard(path)
            removed += 1
    return removed


def _require_sound(manifest: Manifest) -> None:
    """ValueError for names that no build can have had: they are made as root."""
    shapes = tuple(f"{SOURCE_SUFFIX}/{shape}" for shape in _IN_SOURCE)
    for place in manifest.places:
        if place not in _BUILT and not any(PurePosixPath(place).match(shape) for shape in shapes):
            raise ValueError(f"not a place of libraries: {place}")
    above = {str(parent) for place in manifest.places for parent in PurePosixPath(place).parents}
    for name in (*(record.path for record in manifest.files), *manifest.directories):
        inside = any(PurePosixPath(name).is_relative_to(place) for place in manifest.places)
        if ".." in PurePosixPath(name).parts or not (inside or name in above):
            raise ValueError(f"not in a place of libraries: {name}")


def _copy(source: Path, gopath: Path, manifest: Manifest, uid: int, gid: int) -> None:
    for name in manifest.directories:
        with contextlib.suppress(FileExistsError):
            (gopath / name).mkdir()
            os.chown(gopath / name, uid, gid)

    def copy(record: FileRecord) -> None:
        target = gopath / record.path
        if record.link:
            target.symlink_to(record.link)
            return
        # Whoever made the file may still have it open: what counts is what was read here.
        digest = hashlib.sha256()
        with (
            os.fdopen(os.open(source / record.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as reader,
            target.open("xb") as writer,
        ):
            while chunk := reader.read(_CHUNK):
                digest.update(chunk)
                writer.write(chunk)
        if digest.hexdigest() != record.sha256:
            raise ArtifactError(f"{record.path} was changed")
        target.chmod(record.mode & 0o777)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(copy, manifest.files))


def _own(place: Path) -> None:
    """Take a directory and all below it from the build's user, who may still hold some of them open."""
    for _, _, _, fd in os.fwalk(place):
        os.fchown(fd, os.geteuid(), os.getegid())
        os.fchmod(fd, 0o755)


def _places(gopath: Path, tree: SourceTree) -> Iterator[str]:
    yield from _BUILT
    for shape in _IN_SOURCE:
        for path in sorted((gopath / SOURCE_SUFFIX).glob(shape)):
            below = path.relative_to(gopath / SOURCE_SUFFIX)
            if not (tree.path / below).exists():
                yield str(SOURCE_SUFFIX / below)


def _linked(gopath: Path, place: str) -> bool:
    """Whether the place or what it lies in is a link, or no directory where there should be one."""
    path = gopath / place
    return path.is_symlink() or any(
        above.is_symlink() or (above.exists() and not above.is_dir())
        for above in (gopath / parent for parent in PurePosixPath(place).parents)
    )


def _discard(entry: Path) -> None:
    """Remove an entry so that half of one is never in its place."""
    with contextlib.suppress(FileNotFoundError):
        away = entry.with_name(f"{_NEW}{uuid.uuid4().hex}")
        entry.rename(away)
        _remove(away)


def _remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            remove_tree(path)
        else:
            path.unlink()


def _size(place: Path) -> int:
    return tree_bytes(place) if place.is_dir() else place.lstat().st_size


def _unfit(place: Path, marks: tuple[tuple[str, bytes], ...]) -> str:
    """Why what lies in place serves one commit alone, or cannot be kept as files; '' when it may be kept."""

    def reason(path: Path) -> str:
        info = path.lstat()
        if stat.S_ISLNK(info.st_mode):
            return ""
        if stat.S_ISDIR(info.st_mode):  # one that was made while we took the others
            return "" if info.st_uid == os.geteuid() else f"{path.relative_to(place)} is being changed"
        if not stat.S_ISREG(info.st_mode):
            return f"{path.relative_to(place)} is no regular file"
        what = _held(path, marks)
        return f"{path.relative_to(place)} holds the {what} of this commit" if what else ""

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return next(filter(None, pool.map(reason, sorted(walk_all(place)))), "")


def marks_of(tree: SourceTree) -> tuple[tuple[str, bytes], ...]:
    """What a build could leave of the commit that it was made for: its name, and its time as programs write it."""
    when = time.gmtime(tree.commit_time)
    # The C library pads the day with a blank, as __DATE__ does.
    days = (time.strftime(form, when) for form in ("%b %e %Y", "%Y-%m-%d", "%Y/%m/%d", "%Y%m%d"))
    return (
        ("name", tree.commit[:_SHORTEST_NAME].encode()), ("time", str(tree.commit_time).encode()),
        *(("date", day.encode()) for day in days),
    )


def _held(path: Path, marks: tuple[tuple[str, bytes], ...]) -> str:
    """What the first mark stands for that is in a file, '' for none. A library can be larger than memory is free."""
    overlap = max(len(mark) for _, mark in marks) - 1
    last = b""
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            content = last + chunk
            for what, mark in marks:
                if mark in content:
                    return what
            last = content[-overlap:]
    return ""
