"""What parts of a build depend on, as digests: of those that no cache of others' knows by itself."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from kwdb_build.build.evidence import HEADERS, VENDOR, climbs_out, names_above
from kwdb_build.build.recipe import DEPENDENCIES, GOPATH, RECIPE_VERSION, recipe_for
from kwdb_build.files import sha256_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kwdb_build.model import BuildOptions, SourceTree

GENERATES = frozenset({".in", ".l", ".proto", ".y"})
"""What headers are generated from, under other names. KWDB's protoc writes some for libroach into its sources."""
_INCLUDED = HEADERS | GENERATES
_GRAMMARS = frozenset({".l", ".y"})
"""KWDB's own make Go of kwbase/pkg/sql/parser/sql.y, which changes in every second release."""
_OF_THE_BUILD = frozenset({".ac", ".am", ".awk", ".cmake", ".m4", ".mk", ".pl", ".sh"})
_BUILD_FILES = ("CMakeLists.txt", "GNUmakefile", "Makefile", "configure", "makefile")
"""What their names begin with: an enterprise tree has a Makefile_ent."""
_NOT_OF_THE_BUILD = ("qa/", VENDOR, "kaiwudb_install/")
"""KWDB's regression tests, Go packages, and its installer: what says there how something is built, says it to nobody
here. No file of the build names the last one (V2.0.3.2 to V3.2.1)."""


def headers_digest(source: Path) -> str:
    """Sha256 over names and contents of all headers below source. What headers are generated from counts as one.

    Go's cache knows the files in a package's own directory and the compiler's flags, but not the headers elsewhere that
    cgo's sources include: without their digest in the flags, a package comes from the cache with the interface of the
    release that was built before.
    """
    total = hashlib.sha256()
    for name, digest in _digests(source, lambda _, suffix: suffix in _INCLUDED):
        total.update(name + b"\0" + digest + b"\0")
    return total.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Dependencies:
    """All that decides what KWDB's bundled C and C++ libraries become, beside the toolchain's lock, as sha256.

    wide counts every header below the source, and every grammar. narrow counts none of KWDB's own: it is for what was
    built by compilers that could look at none of those (see evidence.looked_outside). With the same narrow digest their
    sources, build files and options are the same, and so are the calls of compilers, of which that is known; only a
    path among them leads to headers, and sources cannot climb out of it. Headers of vendored Go packages count for
    both: go-libedit has some that libedit makes, too, and nobody could tell whether they were copied. '' is for none: a
    link makes KWDB's own sources theirs too, or (narrow alone) one of theirs could include something of KWDB's own by
    its name.
    """

    narrow: str = ""
    wide: str = ""


def dependencies_digest(tree: SourceTree, options: BuildOptions, headers: str, *, image: str = "") -> Dependencies:
    """Digests of the libraries' own sources whole, of every file that says how something is built, and of the options.

    And of the commits of their submodules. Nothing of KWDB's own Go and C++ sources. image: what the build image is
    known by when the toolchain's lock does not say all of what is in it.
    """
    if any(_leads_out(tree.path, tree.path / name) for name in DEPENDENCIES):
        return Dependencies()
    total = hashlib.sha256(json.dumps({
        "recipe": [RECIPE_VERSION, recipe_for(tree.version).name],
        "build_type": options.build_type,
        "make": sorted(options.make_variables),
        "cmake": sorted(options.cmake_variables),
        "image": image,
        "submodules": sorted(
            [module.path, module.commit] for module in tree.submodules if module.path.startswith(DEPENDENCIES)
        ),
    }).encode())
    own, others = tuple(f"{name}/" for name in DEPENDENCIES), _NOT_OF_THE_BUILD

    def counts(name: str, suffix: str) -> bool:
        if name.startswith(own) or suffix in GENERATES - _GRAMMARS or (name.startswith(VENDOR) and suffix in HEADERS):
            return True
        named = suffix in _OF_THE_BUILD or name.rpartition("/")[2].startswith(_BUILD_FILES)
        return named and not name.startswith(others)

    climbs, above = False, names_above(tree.path)
    for name, digest in _digests(tree.path, counts):
        text = os.fsdecode(name)
        path = tree.path / text
        if place := next((place for place in own if text.startswith(place)), ""):
            if path.is_symlink() and _leads_out(tree.path, path):
                return Dependencies()
            climbs = climbs or (path.is_file() and climbs_out(path, PurePosixPath(text[len(place):]), above))
        total.update(name + b"\0" + digest + b"\0")
    wide = total.copy()
    total.update(b"without KWDB's own headers")
    wide.update(b"with headers\0" + headers.encode())
    return Dependencies(narrow="" if climbs else total.hexdigest(), wide=wide.hexdigest())


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
                yield os.fsencode(below), b"-> " + os.fsencode(os.readlink(path))  # noqa: PTH115  # Path would tidy it
            elif stat.S_ISREG(mode):
                yield os.fsencode(below), f"{mode & stat.S_IXUSR} {sha256_of(path)}".encode()
