"""What parts of a build depend on, as digests: of those that no cache of others' knows by itself."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kwdb_build.build.recipe import DEPENDENCIES, GOPATH, RECIPE_VERSION, recipe_for
from kwdb_build.files import sha256_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kwdb_build.model import BuildOptions, SourceTree

_INCLUDED = frozenset(
    {".def", ".h", ".hh", ".hpp", ".hxx", ".in", ".inc", ".inl", ".ipp", ".l", ".proto", ".tcc", ".y"}
)
_OF_THE_BUILD = frozenset({".ac", ".am", ".awk", ".cmake", ".m4", ".mk", ".pl", ".sh"})
_BUILD_FILES = ("CMakeLists.txt", "GNUmakefile", "Makefile", "configure", "makefile")
"""What their names begin with: an enterprise tree has a Makefile_ent."""
_NOT_OF_THE_BUILD = ("qa/", "kwbase/vendor/")
"""KWDB's regression tests, and Go packages: what says there how something is built, says it to nobody here."""


@dataclass(frozen=True, kw_only=True)
class Headers:
    """Everything below a source that C or C++ may include: sha256 over names and contents, and over names alone."""

    contents: str
    names: str


def headers_of(source: Path) -> Headers:
    """Read all headers below source. What headers are generated from counts as one.

    Go's cache knows the files in a package's own directory and the compiler's flags, but not the headers elsewhere that
    cgo's sources include: without their digest in the flags, a package comes from the cache with the interface of the
    release that was built before.
    """
    contents, names = hashlib.sha256(), hashlib.sha256()
    for name, digest in _digests(source, lambda _, suffix: suffix in _INCLUDED):
        names.update(name + b"\0")
        contents.update(name + b"\0" + digest + b"\0")
    return Headers(contents=contents.hexdigest(), names=names.hexdigest())


def dependencies_digest(tree: SourceTree, options: BuildOptions, headers: Headers) -> str:
    """Sha256 of all that decides what KWDB's bundled C and C++ libraries become, beside the toolchain's lock.

    Their own sources whole, every header and every file that says how something is built, the options, and the commits
    of their submodules. Nothing of KWDB's own Go and C++ sources: '' when a link makes some of them the libraries' too.
    """
    if any(_leads_out(tree.path, tree.path / name) for name in DEPENDENCIES):
        return ""
    total = hashlib.sha256(json.dumps({
        "recipe": [RECIPE_VERSION, recipe_for(tree.version).name],
        "build_type": options.build_type,
        "make": sorted(options.make_variables),
        "cmake": sorted(options.cmake_variables),
        "submodules": sorted(
            [module.path, module.commit] for module in tree.submodules if module.path.startswith(DEPENDENCIES)
        ),
        "headers": headers.contents,
    }).encode())
    own, others = tuple(f"{name}/" for name in DEPENDENCIES), _NOT_OF_THE_BUILD

    def counts(name: str, suffix: str) -> bool:
        if name.startswith(own):
            return True
        named = suffix in _OF_THE_BUILD or name.rpartition("/")[2].startswith(_BUILD_FILES)
        return named and not name.startswith(others)

    for name, digest in _digests(tree.path, counts):
        path = tree.path / os.fsdecode(name)
        if path.is_symlink() and os.fsdecode(name).startswith(own) and _leads_out(tree.path, path):
            return ""
        total.update(name + b"\0" + digest + b"\0")
    return total.hexdigest()


def _leads_out(source: Path, path: Path) -> bool:
    """Whether a path of the dependencies is by a link another part of source. The image's files are no part of it."""
    own = source.resolve()
    target = path.resolve()
    if path.is_symlink() and path.readlink().is_relative_to(GOPATH):
        return True
    return target.is_relative_to(own) and not any(target.is_relative_to(own / name) for name in DEPENDENCIES)


def _digests(source: Path, counts: Callable[[str, str], bool]) -> Iterator[tuple[bytes, bytes]]:
    """Relative name and digest (of a link: its target) of the files that count by name and suffix, in one order."""
    start = len(os.fspath(source)) + 1
    for directory, subdirectories, files in os.walk(source):
        subdirectories[:] = sorted(name for name in subdirectories if name != ".git")
        # A tree has ten thousands of files: no Path for those that do not count.
        for name in sorted([*files, *subdirectories]):
            below = f"{directory}/{name}"[start:]
            if not counts(below, os.path.splitext(name)[1]):  # noqa: PTH122
                continue
            path = Path(directory, name)
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                yield os.fsencode(below), b"-> " + os.fsencode(path.readlink())
            elif stat.S_ISREG(mode):
                yield os.fsencode(below), f"{mode & stat.S_IXUSR} {sha256_of(path)}".encode()
