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
from typing import TYPE_CHECKING, Literal

from kwdb_build.build.evidence import HEADERS
from kwdb_build.build.inputs import GENERATES
from kwdb_build.build.recipe import COMMIT_MACRO, DEPENDENCIES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Depth = Literal["", "own", "all"]
"""Which compilations ccache may know by the compiler's list of what it read (its depend mode): none, all but those of
KWDB's bundled libraries, all."""
_COMPILED = frozenset({".c", ".c++", ".cc", ".cpp", ".cxx", ".m", ".s"})
_INCLUDED = HEADERS | GENERATES | {".h++", ".tpp"}
_WRITES_SOURCES = frozenset({".awk", ".pl", ".py", ".sh"})
_OF_THE_BUILD = frozenset({".cmake", ".mk"})
_BUILD_FILES = ("cmakelists.txt", "gnumakefile", "makefile")
_MENTIONED = re.compile(rb"[\w.+-]+\.(?:h|hh|hpp|hxx|inc|inl|ipp|tcc)\b")
"""Names of headers in what says how something is built: it may make them."""
_COMMIT_PASSED_ON = re.compile(rb"=[ \t\\\"]*" + COMMIT_MACRO.encode())
"""A macro of another name, given the commit's by a file of the build."""
# Each begins with letters that are searched for as such: the sources of KWDB's libraries have a hundred megabytes.
_INCLUDE = rb"#[ \t]*(?:include|include_next|import)\b[ \t]*"
_BY_MACRO = re.compile(_INCLUDE + rb"[^<\"\s]")
"""An #include whose name only the preprocessor knows."""
_ASKED = (
    re.compile(_INCLUDE + rb"[<\"]([^<>\"\n]+)[>\"]"),
    re.compile(rb"__has_include(?:_next)?[ \t]*\(?[ \t]*[<\"]([^<>\"\n]+)[>\"]"),
    # A name that a later #include takes from a macro.
    re.compile(rb"#[ \t]*define\b[^\n<\"]*[<\"]([\w./+-]+\.\w+)[>\"]"),
)
_LIBRARIES = tuple(os.fsencode(f"{name}/") for name in DEPENDENCIES)
_COMMIT_BEGINS = COMMIT_MACRO.rpartition("_")[0]
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

    system holds the names, without directories, of all headers in the build image; None when they are not known.

    An #include of a/b.h finds a file whose path ends with that. So it can find another one only when there are two such
    files, or one that has the name of a header of the image (whose own #includes can find it, too) or of one that the
    build may make, or one that was not there before: what is asked for and is neither in the source nor in the image
    counts, as __has_include was told no. All names count in the bundled libraries, which change with their commits
    only; of what headers are generated from; and everywhere when the image's headers are not known, or an #include
    takes its name from a macro.
    """
    found = _Found()
    for below, link in _files(os.fsencode(source)):
        found.file(source, below, link)
    # What an #include names can have any ending, and ask for more itself.
    while new := [
        path for name in {_base(words) for words in found.asked} for path in found.places.get(name, ())
        if path not in found.read
    ]:
        for path in new:
            found.source(path, _text(source, path))
    always = found.links + (found.headers if system is None or found.by_macro else found.counting)
    order = hashlib.sha256()
    for line in (*sorted(always), *_several(found, system or frozenset())):
        order.update(line + b"\0")
    return Includes(
        order=order.hexdigest(), reads_commit=found.reads_commit, embeds=found.embeds,
        libraries_embed=found.libraries_embed,
    )


class _Found:
    """What is gathered over the files of a source."""

    def __init__(self) -> None:
        self.places: defaultdict[bytes, list[bytes]] = defaultdict(list)
        self.asked: set[bytes] = set()
        self.mentioned: set[bytes] = set()
        self.links: list[bytes] = []
        self.headers: list[bytes] = []
        self.counting: list[bytes] = []
        self.read: set[bytes] = set()
        self.reads_commit = self.embeds = self.libraries_embed = self.by_macro = False

    def file(self, source: Path, below: bytes, link: bytes) -> None:
        """One file, or a link to a directory, by its path below source."""
        name = below.rpartition(b"/")[2]
        self.places[name].append(below)
        suffix = os.path.splitext(os.fsdecode(name))[1].lower()  # noqa: PTH122 tens of thousands of them
        if link:
            self.links.append(below + b" -> " + link)
            return
        if suffix in _INCLUDED:
            self.headers.append(below)
            if suffix in GENERATES or below.startswith(_LIBRARIES):
                self.counting.append(below)
        if suffix in _COMPILED | _INCLUDED:
            self.source(below, _text(source, below), compiled=suffix in _COMPILED)
        elif suffix in _WRITES_SOURCES:
            self._script(below, _text(source, below))
        elif suffix in _OF_THE_BUILD or os.fsdecode(name).lower().startswith(_BUILD_FILES):
            text = _text(source, below)
            self.mentioned.update(_MENTIONED.findall(text))
            self.reads_commit = self.reads_commit or bool(_COMMIT_PASSED_ON.search(text))

    def source(self, below: bytes, text: bytes, *, compiled: bool = False) -> None:
        """What a file of C, C++ or an assembler's asks for. compiled: by itself, and not included by others."""
        self.read.add(below)
        library = below.startswith(_LIBRARIES)
        # KWDB's own could put the name together, of which this is the beginning.
        self.reads_commit = self.reads_commit or (COMMIT_MACRO if library else _COMMIT_BEGINS).encode() in text
        if _EMBEDS.search(text):
            if compiled and library:
                self.libraries_embed = True
            else:
                self.embeds = True
        self.by_macro = self.by_macro or (not library and any(
            not text[text.rfind(b"\n", 0, at) + 1:at].strip() for at in map(re.Match.start, _BY_MACRO.finditer(text))
        ))
        for asked in _ASKED:
            self.asked.update(asked.findall(text))

    def _script(self, below: bytes, text: bytes) -> None:
        self.read.add(below)
        self.reads_commit = self.reads_commit or COMMIT_MACRO.encode() in text
        self.mentioned.update(_MENTIONED.findall(text))


def _several(found: _Found, system: frozenset[bytes]) -> Iterator[bytes]:
    """What is asked for and is not one file, each with the files that it can be; in one order."""
    # By a link to a directory a file has further paths.
    names = {_base(words) if found.links else _ending(words) for words in found.asked}
    for name in sorted(names):
        base = name.rpartition(b"/")[2]
        files = sorted(path for path in found.places.get(base, ()) if path == name or path.endswith(b"/" + name))
        if len(files) > 1 or base in found.mentioned or (not files and base not in system):
            yield b"\n".join((name, *files, *((b"made",) if base in found.mentioned else ())))
    for name in sorted(found.places.keys() & system):
        yield b"\n".join((name, *sorted(found.places[name])))


def _base(words: bytes) -> bytes:
    return words.strip().rpartition(b"/")[2]


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
