"""What a source tree is made of besides its own code: submodules, C and C++ libraries in them, vendored Go modules.

Everything is read from the tree: names and versions from directory names (`brpc-1.9.0`) and from each library's own
build files and headers, Go modules from go.mod files and import paths (KWDB's vendor directory has no modules.txt).
What cannot be read is left out, never guessed.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kwdb_build.model import SourceTree, Submodule

GO = "go"
LIBRARY = "library"
_READ_BYTES = 200_000


@dataclass(frozen=True, kw_only=True)
class Found:
    """One component: kind 'go' or 'library', name (of a Go module its path), version ('' when the tree does not say).

    place is relative to the tree; licence an SPDX id or ''; packages are the import paths of a Go module; within is
    the path of the submodule that pins it.
    """

    kind: str
    name: str
    version: str
    place: str
    licence: str = ""
    packages: tuple[str, ...] = ()
    within: str = ""


def components(tree: SourceTree) -> tuple[Found, ...]:
    """Libraries and Go modules of all submodules, sorted by place."""
    found: list[Found] = []
    for module in tree.submodules:
        root = tree.path / module.path
        if root.name == "vendor":
            found += go_modules(root, tree.path, module)
        else:
            found += libraries(root, tree.path, module)
    return tuple(sorted(found, key=lambda one: (one.place, one.name)))


# Go -------------------------------------------------------------------------------------------------------------------

_MODULE_LINE = re.compile(r"^module\s+\"?(?P<path>[^\s\"]+)", re.MULTILINE)
_THREE_PARTS = frozenset({"github.com", "gitlab.com", "bitbucket.org", "gitee.com", "golang.org"})
_GOPKG = re.compile(r"\.v\d+$")


def go_modules(vendor: Path, tree: Path, module: Submodule) -> Iterator[Found]:
    """Modules of a vendor directory: go.mod says where one begins, else the conventions of its host do."""
    packages: dict[str, list[str]] = {}
    declared: dict[str, str] = {}
    for directory, names, files in os.walk(vendor):
        names[:] = sorted(name for name in names if name not in {"testdata", ".git"} and not name.startswith("_"))
        path = Path(directory).relative_to(vendor).as_posix()
        if "go.mod" in files and (match := _MODULE_LINE.search(_read(Path(directory) / "go.mod"))):
            declared[path] = match["path"]
        if path != "." and any(name.endswith(".go") and not name.endswith("_test.go") for name in files):
            packages[path] = []
    roots: dict[str, list[str]] = {}
    for path in packages:
        roots.setdefault(_module_root(path, declared), []).append(path)
    for root, paths in sorted(roots.items()):
        yield Found(
            kind=GO, name=root, version="", place=str((vendor / root).relative_to(tree)), within=module.path,
            licence=licence_of(vendor / root), packages=tuple(sorted(paths)),
        )


def _module_root(path: str, declared: dict[str, str]) -> str:
    """Import path of the module that a package belongs to."""
    parts = path.split("/")
    for length in range(len(parts), 0, -1):
        if "/".join(parts[:length]) in declared:
            return "/".join(parts[:length])
    if parts[0] == "gopkg.in":
        return "/".join(parts[: 2 if len(parts) < 3 or _GOPKG.search(parts[1]) else 3])  # noqa: PLR2004
    return "/".join(parts[: 3 if parts[0] in _THREE_PARTS else 2])


# C and C++ ------------------------------------------------------------------------------------------------------------

_NAMED = re.compile(
    r"^(?P<name>[A-Za-z][A-Za-z0-9_+.-]*?)[-_]v?(?P<version>\d+(?:\.\d+)+[a-z0-9]*)(?:\.tar\.\w+|\.zip)?$"
)
_NUMBER = r"(?P<version>\d+(?:\.\d+)+[A-Za-z0-9.-]*)"
_STATED = (
    ("CMakeLists.txt", re.compile(rf"^\s*project\s*\([^)]*?\bVERSION\s+\"?{_NUMBER}", re.IGNORECASE | re.MULTILINE)),
    ("CMakeLists.txt", re.compile(rf"^\s*set\s*\(\s*\w*VERSION\s+\"?{_NUMBER}\"?", re.IGNORECASE | re.MULTILINE)),
    ("configure.ac", re.compile(rf"^AC_INIT\(\s*\[?[^,]*?\]?\s*,\s*\[?{_NUMBER}", re.MULTILINE)),
    ("RELEASE_VERSION", re.compile(rf"^v?{_NUMBER}")),
    ("VERSION", re.compile(rf"^v?{_NUMBER}")),
)
_HEADERS = ("{name}.h", "lib/{name}.h", "include/{name}/version.h", "{name}/version.h", "include/{name}.h",
            "src/{name}.h", "version.h", "include/version.h")
_DEFINED = re.compile(
    r"^\s*#\s*define\s+\w*?(?P<part>MAJOR|MINOR|PATCH|RELEASE|MICRO)(?:_VERSION|_NUMBER)?\s+(?P<number>\d+)\b",
    re.MULTILINE,
)
_SOURCES = frozenset({".c", ".cc", ".cpp", ".cxx", ".h", ".hpp"})


def libraries(root: Path, tree: Path, module: Submodule) -> Iterator[Found]:
    """Each directory of a submodule that holds C or C++ sources, and each archive named like a release."""
    if not root.is_dir():
        return
    for path in sorted(root.iterdir()):
        named = _NAMED.match(path.name)
        if path.name.startswith(".") or path.is_symlink() or not (named or (path.is_dir() and _has_sources(path))):
            continue
        name = named["name"] if named else path.name
        version = named["version"] if named else (stated_version(path, name) if path.is_dir() else "")
        yield Found(
            kind=LIBRARY, name=name, version=version, place=str(path.relative_to(tree)), within=module.path,
            licence=licence_of(path) if path.is_dir() else "",
        )


def _has_sources(path: Path) -> bool:
    return any(
        Path(name).suffix in _SOURCES for _, _, files in os.walk(path) for name in files
    )


def stated_version(path: Path, name: str) -> str:
    """The version that a library states in its build files, or in its version header; '' when it does not."""
    for file, pattern in _STATED:
        if match := pattern.search(_read(path / file)):
            return match["version"].rstrip(".-")
    for header in _HEADERS:
        parts = {match["part"]: match["number"] for match in _DEFINED.finditer(_read(path / header.format(name=name)))}
        last = next((parts[word] for word in ("PATCH", "RELEASE", "MICRO") if word in parts), None)
        if {"MAJOR", "MINOR"} <= parts.keys():
            return ".".join(filter(None, (parts["MAJOR"], parts["MINOR"], last)))
    return ""


# Licences -------------------------------------------------------------------------------------------------------------

_LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "COPYING", "LICENCE", "License.txt")
_SPDX = re.compile(r"SPDX-License-Identifier:\s*(?P<id>[A-Za-z0-9.+-]+)\s*$", re.MULTILINE)
_PHRASES = (
    # Each licence by words of its own text; the more special one first.
    ("MulanPSL-2.0", ("Mulan PSL v2",)),
    ("MulanPSL-2.0", ("Mulan Permissive Software License", "Version 2")),
    ("Apache-2.0", ("Apache License", "Version 2.0")),
    ("MPL-2.0", ("Mozilla Public License", "Version 2.0")),
    ("BSL-1.0", ("Boost Software License", "Version 1.0")),
    ("ISC", ("Permission to use, copy, modify, and/or distribute this software",)),
    ("ISC", ("Permission to use, copy, modify, and distribute this software for any",)),
    ("MIT", ("Permission is hereby granted, free of charge", 'THE SOFTWARE IS PROVIDED "AS IS"')),
    ("BSD-3-Clause", ("Redistribution and use in source and binary forms", "Neither the name")),
    ("BSD-3-Clause", ("Redistribution and use in source and binary forms", "may not be used to endorse")),
    ("BSD-2-Clause", ("Redistribution and use in source and binary forms", "THIS SOFTWARE IS PROVIDED BY")),
)


def licence_of(directory: Path) -> str:
    """SPDX id of the one licence file of a directory, '' when there is none, several that differ, or an unknown one."""
    known = {licence_in(_read(directory / name)) for name in _LICENCE_FILES if (directory / name).is_file()}
    return known.pop() if len(known) == 1 else ""


def licence_in(text: str) -> str:
    """SPDX id of a licence's text, '' when it is not recognised or the text holds several licences."""
    plain = " ".join(text.split())
    if match := _SPDX.search(text):
        return match["id"]
    names = dict.fromkeys(name for name, phrases in _PHRASES if all(" ".join(p.split()) in plain for p in phrases))
    if set(names) == {"BSD-3-Clause", "BSD-2-Clause"}:
        return "BSD-3-Clause"
    return next(iter(names)) if len(names) == 1 else ""


def git_uri(url: str) -> str:
    """`https://host/x.git` -> `git+https://host/x.git`; a local path becomes a file URL."""
    if urlsplit(url).scheme in {"http", "https", "ssh", "git", "file"}:
        return f"git+{url}"
    if url.startswith("/"):
        return f"git+file://{url}"
    host, colon, path = url.partition(":")
    return f"git+ssh://{host}/{path}" if colon and "/" not in host else f"git+{url}"


def _read(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return stream.read(_READ_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
