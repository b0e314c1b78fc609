"""Whether a header of KWDB's own can have mattered to the bundled libraries, judged by what their builds really did.

A developer changes KWDB's own headers every day, and the bundled libraries hardly ever include one. Our stand-in for
compilers notes what each call for dependencies wrote, or that it could look into another part of KWDB's tree (see
sight.py). Only when none could, and all that was built came from calls that were seen, do those headers not count for
what is kept. When in doubt they do, which costs time and never a right result.

Whoever builds could fake all of it, as they could what is kept: see kept.py for whom that concerns.
"""

from __future__ import annotations

import filecmp
import os
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from kwdb_build.build.recipe import DEPENDENCIES, GOPATH, NATIVE, SOURCE, THIRD_PARTY
from kwdb_build.build.sight import OUTSIDE, SEEN
from kwdb_build.files import untrusted_lines, walk_all

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

HEADERS = frozenset({".def", ".h", ".hh", ".hpp", ".hxx", ".inc", ".inl", ".ipp", ".tcc"})
VENDOR = "kwbase/vendor/"
_INSIDE = (NATIVE, THIRD_PARTY, *(SOURCE / name for name in DEPENDENCIES))
_INCLUDE = re.compile(
    rb"(?:#[ \t]*(?:include(?:_next)?|import|embed|define[ \t]+\w+)|__has_include(?:_next)?[ \t]*\(|\.incbin)[ \t\\]*"
    rb"([\"<])([^\">\n\\]+)"
)
_NAMED = re.compile(rb"%s/[^\s\\:]*" % re.escape(os.fsencode(GOPATH)))
"""A path in what compilers and CMake write down, up to a blank in it."""
_DEPENDS = frozenset({"compiler_depend.internal", "compiler_depend.make", "depend.internal", "depend.make"})
_DEPENDS_SUFFIXES = frozenset({".Plo", ".Po", ".d"})
"""Where CMake and automake write down which files a compilation has read."""
_OBJECTS = frozenset({".o", ".obj"})
_ELF, _ARCHIVES = b"\x7fELF", (b"!<arch>\n", b"!<thin>\n")
_NOTES_BYTES = 64 << 20
"""A line for each compilation of the libraries: V3.2.1 has two thousand."""
_HEADER_BYTES = 60
"""Of an archive's member: 16 of its name, from 48 on ten digits of its size."""


def names_above(tree: Path) -> frozenset[str]:
    """What KWDB has of its own beside and above the dependencies, in the source at tree and in a build of it."""
    above = {parent for name in DEPENDENCIES for parent in PurePosixPath(name).parents}
    names = {path.name for parent in above for path in (tree / parent).glob("*")}
    theirs = {PurePosixPath(name).name for name in DEPENDENCIES}
    return frozenset((names - theirs) | {"build", "install", *SOURCE.parts})


def climbs_out(path: Path, below: PurePosixPath, above: frozenset[str]) -> bool:
    """Whether a source of dependencies could include a file of KWDB's own by the name that it gives.

    below: its name below one of DEPENDENCIES, which itself is no place for a compiler to look in (see sight.py): so one
    .. does not lead out, wherever the name is looked for. More of them could, unless the file is there, or KWDB has
    nothing of that name (see names_above).
    """
    data = path.read_bytes()
    if b"../" not in data and os.fsencode(GOPATH) not in data:
        return False
    for match in _INCLUDE.finditer(data):
        name = os.path.normpath(os.fsdecode(match[2].strip()))
        if PurePosixPath(name).is_relative_to(GOPATH):
            return True
        *climbs, first = name.split("/")[:name.split("/").count("..") + 1]
        if not climbs or first == "..":
            continue
        if os.path.normpath(below.parent / name).startswith(".."):
            return True
        there = match[1] == b'"' and os.path.isfile(path.parent / name)  # noqa: PTH113 False also for what is no name
        if len(climbs) > 1 and first in above and not there:
            return True
    return False


def looked_outside(kept: Path, scratch: Path, tree: Path) -> str:
    """Why KWDB's own headers may have mattered to what lies in kept, by its names below GOPATH; '' when they did not.

    tree: the source as it was before the build.
    """
    if looked := untrusted_lines(scratch / OUTSIDE, limit_bytes=_NOTES_BYTES):
        return f"a compiler could look at {looked[0]}"
    seen = set(untrusted_lines(scratch / SEEN, limit_bytes=_NOTES_BYTES))
    names = {name.rpartition("/")[2] for name in seen}
    copies = _Copies(tree)
    for path in walk_all(kept):
        below = path.relative_to(kept)
        if path.is_symlink():
            target = PurePosixPath(os.path.normpath(GOPATH / below.parent / path.readlink()))
            if target.is_relative_to(GOPATH) and not any(target.is_relative_to(place) for place in _INSIDE):
                return f"{below} leads to {target}"
        elif path.is_file():
            if path.suffix in HEADERS and copies.has(path):
                return f"{below} is a header of KWDB's own"
            if (path.name in _DEPENDS or path.suffix in _DEPENDS_SUFFIXES) and (named := _names_own(path.read_bytes())):
                return f"{below} names {named}"
            if unseen := _unseen(path, below, seen, names):
                return f"nobody saw the compiler write {unseen}"
    return ""


def _names_own(text: bytes) -> str:
    """The first path in a list of what a compilation has read that is KWDB's own, '' for none.

    KWDB's CMake writes $GOPATH as <source>/../../.., so names are read as the kernel would read them.
    """
    for name in set(_NAMED.findall(text)):
        path = PurePosixPath(os.path.normpath(os.fsdecode(name)))
        if path.is_relative_to(GOPATH) and not any(path.is_relative_to(place) for place in _INSIDE):
            return str(path)
    return ""


class _Copies:
    """Knows a header of KWDB's own by its contents."""

    _COUNTED = (VENDOR, *(f"{name}/" for name in DEPENDENCIES))
    """Whose headers are part of both digests (see inputs.py)."""

    def __init__(self, tree: Path) -> None:
        self._own: dict[str, list[Path]] = {}
        self._theirs: dict[str, list[Path]] = {}
        for path in walk_all(tree):
            if path.suffix in HEADERS and path.is_file():
                theirs = path.relative_to(tree).as_posix().startswith(self._COUNTED)
                (self._theirs if theirs else self._own).setdefault(path.name, []).append(path)

    def has(self, path: Path) -> bool:
        """Whether path has the contents of one, and of none that dependencies bring along."""

        def same(other: Path) -> bool:
            return filecmp.cmp(path, other, shallow=False)

        return any(map(same, self._own.get(path.name, ()))) and not any(map(same, self._theirs.get(path.name, ())))


def _unseen(path: Path, below: Path, seen: set[str], names: set[str]) -> str:
    """What of a file no call wrote that was seen, '' for nothing: an object, a member of an archive, a program."""
    with path.open("rb") as stream:
        magic = stream.read(8)
        if magic in _ARCHIVES:
            return next((f"{member} of {below}" for member in _members(stream, thin=magic == _ARCHIVES[1])
                         if member.rpartition("/")[2] not in names), "")
    if path.suffix in _OBJECTS:
        return "" if str(GOPATH / below) in seen else str(below)
    # CMake leaves some that it only asks a compiler with, under other names.
    if magic.startswith(_ELF) and "CMakeFiles" not in below.parts and path.name not in names:
        return str(below)
    return ""


def _members(stream: BinaryIO, *, thin: bool) -> Iterator[str]:
    """Names of an archive's members, as GNU ar writes them; what is no archive has one that nobody can have written."""
    long_names = b""
    while header := stream.read(_HEADER_BYTES):
        name, size = header[:16].rstrip(), header[48:58].strip()
        if len(header) < _HEADER_BYTES or not size.isdigit():
            yield "a damaged part"
            return
        table = name in {b"/", b"//", b"/SYM64/"}
        if name == b"//":
            long_names = stream.read(int(size))
            stream.seek(int(size) % 2, os.SEEK_CUR)
            continue
        if not table:
            start = int(name[1:]) if name[1:].isdigit() else -1
            known = long_names[start:].partition(b"/\n")[0] if start >= 0 else name.removesuffix(b"/")
            yield os.fsdecode(known)
        if table or not thin:
            stream.seek(int(size) + int(size) % 2, os.SEEK_CUR)
