"""How each generation of KWDB is built: data, and small pure functions over it.

Facts are from KWDB's own root Makefile and kwbase/Makefile (V2.2.2 to V3.2.1): BUILD_TYPE defaults to Debug,
INSTALL_PATH to <tree>/install, BUILDINFO_TAG stands in for `git describe`, and build.utcTime is what `date -u` says at
link time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from kwdb_build.errors import UsageError
from kwdb_build.model import SOURCE_SUFFIX

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kwdb_build.model import BuildOptions, SourceTree, Version

RECIPE_VERSION = 1
"""Part of the build key: raised whenever a change here (or to what the runner does to the result) changes bytes."""

GOPATH = PurePosixPath("/kwdb")
"""Where the working copy is mounted, always: paths end up in the binaries."""
SOURCE = GOPATH / str(SOURCE_SUFFIX)
INSTALL = GOPATH / "install"
HOME = GOPATH / "home"
SCRATCH = GOPATH / "scratch"
SCRATCH_DIRECTORIES = (str(INSTALL.relative_to(GOPATH)), str(HOME.relative_to(GOPATH)),
                       str(SCRATCH.relative_to(GOPATH)), str((SCRATCH / "go").relative_to(GOPATH)))
"""Made in the working copy before the run, relative to its GOPATH."""
SHIMS = PurePosixPath("/kwdb-shims")
"""Where our stand-ins for programs are mounted, first in PATH."""

DATE_SHIM = """\
#!/bin/sh
# `date` of a build: the time of the commit instead of now, so that two builds agree. What asks for a file's time, or
# names a time itself, is answered by the real one.
for argument in "$@"; do
    case "$argument" in
        -r* | --reference* | -d* | --date* | -f* | --file* | -s* | --set*) exec /bin/date "$@" ;;
    esac
done
exec /bin/date -d "@${SOURCE_DATE_EPOCH:?}" "$@"
"""

_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_COMPILER_BYTES = 900_000_000
_LINKER_BYTES = 2_000_000_000
_BUILD_TYPE = re.compile(r"^(Debug|Release|RelWithDebInfo|MinSizeRel)$")
_VARIABLE_NAME = re.compile(r"^[A-Z][A-Z0-9_]*$")
_VARIABLE_VALUE = re.compile(r"^[A-Za-z0-9_./:=,+@%-]*$")
_RESERVED = frozenset({"BUILD_TYPE", "BUILDINFO_TAG", "GOPATH", "INSTALL_PATH", "MAKEFLAGS", "SHELL"})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One generation: from which release on, what `make` is asked for, what must come out, and how much room it takes.

    required names files below the install prefix. Room is source_factor times the size of the tree (its copy and its
    objects) plus spare_bytes.
    """

    name: str
    since: tuple[int, ...]
    target: str = "install"
    required: tuple[str, ...] = ("bin/kwbase", "lib/libcommon.so", "lib/libkwdbts2.so")
    source_factor: float = 4.0
    spare_bytes: int = 512 << 20

    def needed_bytes(self, tree_bytes: int) -> int:
        """Room for the working copy, its objects and Go's cache."""
        return int(tree_bytes * self.source_factor) + self.spare_bytes


RECIPES = (
    # From 3.2 the C++ libraries of third_party are built too, below $GOPATH/native: more objects for the same source.
    Recipe(name="kwdb-3.2", since=(3, 2), source_factor=5.0),
    Recipe(name="kwdb-3.0", since=(3,)),
    Recipe(name="kwdb-2", since=(0,)),
)


def recipe_for(version: Version) -> Recipe:
    """The newest recipe that is not newer than the version."""
    return next(recipe for recipe in RECIPES if version.release >= recipe.since)


def check_options(options: BuildOptions) -> None:
    """UsageError for a build type or make variable that cannot be passed on safely.

    KWDB's Makefiles paste variables into shell lines, so a value may hold no blanks and nothing a shell acts on.
    """
    if not _BUILD_TYPE.fullmatch(options.build_type):
        raise UsageError(
            f"unknown build type {options.build_type!r}", hint="one of Debug, Release, RelWithDebInfo, MinSizeRel"
        )
    for name, value in options.make_variables:
        if not _VARIABLE_NAME.fullmatch(name) or name in _RESERVED:
            raise UsageError(
                f"make variable {name!r} cannot be set",
                hint=f"a name in capitals, not one of {', '.join(sorted(_RESERVED))}",
            )
        if not _VARIABLE_VALUE.fullmatch(value):
            raise UsageError(f"value of make variable {name} has blanks or characters a shell acts on: {value!r}")


def make_argv(recipe: Recipe, tree: SourceTree, options: BuildOptions, jobs: int) -> tuple[str, ...]:
    """The build's command line, run in SOURCE.

    The version text is given rather than described from git: a shallow copy would describe itself otherwise, and
    generated files make the tree dirty. Given here and not in the environment, because only so it reaches the inner
    make, whose own assignment it must override.
    """
    check_options(options)
    return (
        "make",
        f"-j{jobs}",
        f"BUILD_TYPE={options.build_type}",
        f"INSTALL_PATH={INSTALL}",
        f"BUILDINFO_TAG={tree.version.text}",
        *(f"{name}={value}" for name, value in sorted(options.make_variables)),
        recipe.target,
    )


def environment(tree: SourceTree, toolchain_environment: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of the build: the toolchain's own, then what makes the build offline and repeatable.

    PATH is the toolchain's with our stand-ins first.
    """
    path = toolchain_environment.get("PATH", _DEFAULT_PATH)
    return {
        **toolchain_environment,
        "PATH": f"{SHIMS}:{path}",
        "HOME": str(HOME),
        "TMPDIR": str(SCRATCH),
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "SOURCE_DATE_EPOCH": str(tree.commit_time),
        "GOPATH": str(GOPATH),
        "GO111MODULE": "off",
        "GOFLAGS": "",
        "GOPROXY": "off",
        "GOTOOLCHAIN": "local",
        "GOENV": "off",
        "GOCACHE": str(SCRATCH / "go"),
        "CCACHE_DISABLE": "1",
        # The working copy is the build's own, but git also looks at the owner of the mount point.
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
        "GIT_TERMINAL_PROMPT": "0",
    }


def jobs_for(cores: int, memory_bytes: int) -> int:
    """Parallel jobs that cores and memory allow, at least 1.

    One C++ compiler takes up to 0.9 GB and Go's link 2 GB (measured on V3.1.0), which can come together.
    """
    return max(1, min(cores, (memory_bytes - _LINKER_BYTES) // _COMPILER_BYTES))


def parse_size(text: str) -> int:
    """'8g' -> bytes as Docker reads it (b, k, m, g; powers of 1024); '' -> 0; UsageError otherwise."""
    match = re.fullmatch(r"(\d+)\s*([bkmg]?)(?:i?b)?", text.strip().lower())
    if not text.strip():
        return 0
    if match is None:
        raise UsageError(f"not a size: {text!r}", hint="a number with b, k, m or g, such as 8g")
    return int(match[1]) << {"": 0, "b": 0, "k": 10, "m": 20, "g": 30}[match[2]]
