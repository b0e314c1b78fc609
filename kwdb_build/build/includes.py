"""What C and C++ sources ask for by #include and macros, as far as ccache does not see it by itself.

ccache's quick look-up goes by the command line and by the contents of the files that a compilation included. It does
not know that an #include would find another file now, nor which macros nobody reads. Both are answered here, from the
text of the whole source: so builds of another commit find their objects without a run of the preprocessor.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kwdb_build.build.recipe import COMMIT_MACRO, DEPENDENCIES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kwdb_build.build.recipe import Depth

_COMPILED = frozenset({".c", ".c++", ".cc", ".cpp", ".cxx", ".m", ".s"})
_INCLUDED = frozenset(
    {".def", ".h", ".h++", ".hh", ".hpp", ".hxx", ".in", ".inc", ".inl", ".ipp", ".l", ".proto", ".tcc", ".tpp", ".y"}
)
_WRITES_SOURCES = frozenset({".awk", ".pl", ".py", ".sh"})
_ASKED = re.compile(
    rb"(?:\#[ \t]*(?:include|include_next|import)\b|\b__has_include(?:_next)?[ \t]*\(?)[ \t]*[<\"]([^<>\"\n]+)[>\"]"
    # A name that a later #include takes from a macro.
    rb"|\#[ \t]*define\b[^\n]*?[<\"]([\w./+-]+\.\w+)[>\"]"
)
_EMBEDS = re.compile(rb"(?i)\.incbin|\.include[ \t]+\\?\"")
"""An assembler reads these files, and no compiler names them among what it read."""


@dataclass(frozen=True, kw_only=True)
class Includes:
    """Findings over a source.

    order: sha256 that is another one when an #include may find another file, or one where there was none. reads_commit:
    whether a source reads COMMIT_MACRO. embeds: whether an assembler may read files that ccache is not told of, in
    KWDB's own sources or any header, and in sources of the bundled libraries.
    """

    order: str
    reads_commit: bool
    embeds: bool
    libraries_embed: bool

    @property
    def depth(self) -> Depth:
        """For which compilations the compiler's own list of what it read is enough."""
        if self.embeds:
            return ""
        return "own" if self.libraries_embed else "all"


def includes_of(source: Path, system: frozenset[bytes] | None) -> Includes:
    """Read all sources and headers below source.

    system holds the names, without directories, of all headers in the build image; None when they are not known, which
    makes each new header's name count.

    An #include of a/b.h finds a file whose path ends with that. So it can find another one only when there are two such
    files, or one that has the name of a header of the image (whose own #includes can find it, too), or one that was not
    there before: what is asked for and is neither in the source nor in the image counts, as the build makes it or
    __has_include was told no. The names in the bundled libraries all count: they change with their commits only.
    """
    places: defaultdict[bytes, list[bytes]] = defaultdict(list)
    asked: set[bytes] = set()
    always: list[bytes] = []
    reads_commit = embeds = libraries_embed = False
    libraries = tuple(os.fsencode(f"{name}/") for name in DEPENDENCIES)
    for below, link in _files(os.fsencode(source)):
        name = below.rpartition(b"/")[2]
        places[name].append(below)
        suffix = os.path.splitext(os.fsdecode(name))[1].lower()  # noqa: PTH122 tens of thousands of them
        if link:
            always.append(below + b" -> " + link)
        elif (system is None and suffix in _INCLUDED) or (below.startswith(libraries) and suffix in _INCLUDED):
            always.append(below)
        if suffix not in _COMPILED | _INCLUDED | _WRITES_SOURCES:
            continue
        text = _text(source, below)
        reads_commit = reads_commit or COMMIT_MACRO.encode() in text
        if suffix in _WRITES_SOURCES:
            continue
        if _EMBEDS.search(text):
            if suffix in _COMPILED and below.startswith(libraries):
                libraries_embed = True
            else:
                embeds = True
        asked.update(one or other for one, other in _ASKED.findall(text))
    order = hashlib.sha256()
    for line in (*sorted(always), *_several(places, asked, system or frozenset())):
        order.update(line + b"\0")
    return Includes(
        order=order.hexdigest(), reads_commit=reads_commit, embeds=embeds, libraries_embed=libraries_embed
    )


def _several(
    places: dict[bytes, list[bytes]], asked: set[bytes], system: frozenset[bytes]
) -> Iterator[bytes]:
    """What is asked for and is not one file, each with the files that it can be; in one order."""
    for name in sorted({_ending(words) for words in asked}):
        base = name.rpartition(b"/")[2]
        found = sorted(path for path in places.get(base, ()) if path == name or path.endswith(b"/" + name))
        if len(found) > 1 or (not found and base not in system):
            yield b"\n".join((name, *found))
    for name in sorted(places.keys() & system):
        yield b"\n".join((name, *sorted(places[name])))


def _ending(words: bytes) -> bytes:
    """The part of what an #include says that the path of each file it can find must end with."""
    parts = [part for part in words.strip().split(b"/") if part not in {b"", b"."}]
    up = len(parts) - parts[::-1].index(b"..") if b".." in parts else 0
    return b"/".join(parts[-1:] if words.startswith(b"/") else parts[up:])


def _files(source: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Path below source of each file and link, with the target of those that lead to directories."""
    start = len(source) + 1
    for directory, subdirectories, files in os.walk(source):
        subdirectories[:] = [name for name in subdirectories if name != b".git"]
        for name in files:
            yield os.path.join(directory, name)[start:], b""  # noqa: PTH118
        for name in subdirectories:
            path = os.path.join(directory, name)  # noqa: PTH118
            if os.path.islink(path):  # noqa: PTH114
                yield path[start:], os.readlink(path)  # noqa: PTH115


def _text(source: Path, below: bytes) -> bytes:
    path = source / os.fsdecode(below)
    try:
        return path.read_bytes() if path.is_file() else b""
    except OSError:  # a link to what nobody may read: the compiler may not, either
        return b""
