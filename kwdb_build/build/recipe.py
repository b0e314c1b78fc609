"""How each generation of KWDB is built: data, and small pure functions over it.

Facts are from KWDB's own root Makefile and kwbase/Makefile (V2.2.2 to V3.2.1): BUILD_TYPE defaults to Debug,
INSTALL_PATH to <tree>/install, BUILDINFO_TAG stands in for `git describe`, build.utcTime is what `date -u` says at
link time, GOFLAGS reaches `go build`, NCPUS is the -j of the inner make, and CMAKE_CONFIG_OPTIONS is what CMake gets.

Every path that ends up in a binary is the same for everybody, because everything is mounted at a fixed place; so C and
C++ need no -ffile-prefix-map, which would change __FILE__ under code that counts its letters.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from kwdb_build.errors import UsageError
from kwdb_build.model import SOURCE_SUFFIX

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from kwdb_build.build.includes import Includes
    from kwdb_build.model import BuildOptions, SourceTree, Version

RECIPE_VERSION = 5
"""Part of the build key: raised whenever a change here (or to what the runner does to the result) changes bytes."""

GOPATH = PurePosixPath("/kwdb")
"""Where the working copy is mounted, always: paths end up in the binaries."""
SOURCE = GOPATH / str(SOURCE_SUFFIX)
INSTALL = GOPATH / "install"
HOME = GOPATH / "home"
SCRATCH = PurePosixPath("/scratch")
"""Where temporary files go. Its name must not begin with that of GOPATH: gcc would take it for a part of that, and with
-trimpath the chance name of Go's work directory, below TMPDIR, would stay in the debug information of cgo's objects."""
DIRECTORIES = (str(INSTALL.relative_to(GOPATH)), str(HOME.relative_to(GOPATH)))
"""Made in the working copy before the run, relative to its GOPATH."""
SHIMS = PurePosixPath("/kwdb-shims")
"""Where our stand-ins for programs are mounted, first in PATH."""
TOOLS = SCRATCH / "tools"
"""Where every compiler and cmake of the image has its name once more, as a link to our stand-in; next in PATH."""
CCACHE = PurePosixPath("/usr/bin/ccache")
NATIVE = GOPATH / "native"
"""Where KWDB's Makefiles build the C and C++ libraries that they bring along."""
THIRD_PARTY = SOURCE / "build/kwdbts2/third_party"
"""Where CMake builds those of third_party, from 3.2 on; what it installs of them goes to NATIVE."""
DEPENDENCIES = ("kwbase/c-deps", "kwdbts2/third_party")
"""Their sources."""
DEPENDENCIES_TIME = 315_532_800
"""SOURCE_DATE_EPOCH of all that is compiled there, 1980-01-01 as with Nix: with the time of the commit in it, what was
built for one commit would be wrong for each other one (rocksdb has __DATE__ in it)."""
COMMIT_MACRO = "GIT_COMMIT_ID"
"""KWDB's CMake gives it to every compiler, with the commit's name. No source of V2.0.3.2 to V3.2.1 reads it, but a
command line that differs by it is another one to ccache: each commit would be compiled whole."""
CACHE = PurePosixPath("/kwdb-cache")
"""Where what earlier builds compiled is mounted: ccache/ and go/."""
LINKED = CACHE / "go" / "linked"
"""Programs that `go install` linked (<name>/<sha256>), for the build to generate code with: Go keeps packages only."""
REMOTE = PurePosixPath("/kwdb-remote")
"""Where the way to a shared cache is mounted: a directory of files, or one with a socket."""
UMASK = "022"

_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_COMPILER_BYTES = 900_000_000
_LINKER_BYTES = 2_000_000_000
_BUILD_TYPE = re.compile(r"^(Debug|Release|RelWithDebInfo|MinSizeRel)$")
_VARIABLE_NAME = re.compile(r"^[A-Z][A-Z0-9_]*$")
_VARIABLE_VALUE = re.compile(r"^[A-Za-z0-9_./:=,+@%-]*$")
_RESERVED = frozenset({
    "BUILD_TYPE", "BUILDINFO_TAG", "CGO_CPPFLAGS", "CMAKE_CONFIG_OPTIONS", "GOCACHE", "GOFLAGS", "GOPATH", "HOME",
    "CPATH", "INSTALL_PATH", "KWDB_ASAN_OPTIONS", "KWDB_ASKED", "KWDB_CCACHE", "KWDB_DEPEND", "KWDB_LINKED",
    "KWDB_PATH", "MAKEFLAGS", "NCPUS", "PATH", "SHELL", "SOURCE_DATE_EPOCH", "TMPDIR",
})
_CMAKE_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
_CMAKE_RESERVED = frozenset({
    "CMAKE_BUILD_TYPE", "CMAKE_INSTALL_PREFIX", "CMAKE_PROJECT_INCLUDE", "PROTOBUF_DIR", "KWBASE_OSS",
})
_ASAN = ("WITH_ASAN", "ON")
GO_FLAGS = "-trimpath -v"
"""-v: packages that are compiled, and only those, are named."""
OWN_TESTS = ("kwbase-test", "kwdbts2-test")
"""KWDB's own targets for its tests."""


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
        if not _VARIABLE_NAME.fullmatch(name) or name in _RESERVED or name.startswith("CCACHE_"):
            raise UsageError(
                f"make variable {name!r} cannot be set",
                hint=f"a name in capitals, not one of {', '.join(sorted(_RESERVED))}",
            )
        _check_value("make", name, value)
    for name, value in options.cmake_variables:
        if not _CMAKE_NAME.fullmatch(name) or name in _CMAKE_RESERVED:
            raise UsageError(
                f"CMake variable {name!r} cannot be set",
                hint=f"a name without a type, not one of {', '.join(sorted(_CMAKE_RESERVED))} (those have options, or "
                "are make variables)",
            )
        _check_value("CMake", name, value)


def _check_value(kind: str, name: str, value: str) -> None:
    if not _VARIABLE_VALUE.fullmatch(value):
        raise UsageError(f"value of {kind} variable {name} has blanks or characters a shell acts on: {value!r}")


def parse_variables(pairs: Iterable[str], *, option: str) -> tuple[tuple[str, str], ...]:
    """['NAME=VALUE', …] -> pairs; UsageError for one without `=` and for a name that is given twice."""
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"{option} {pair!r} has no value", hint=f"{option} NAME=VALUE")
        if name in found:
            raise UsageError(f"{option} gives {name} twice: {found[name]!r} and {value!r}")
        found[name] = value
    return tuple(found.items())


def asan_environment(cmake_variables: Iterable[Sequence[str]]) -> dict[str, str]:
    """What lets a program with the address sanitizer in it print its version; {} for others.

    cmake_variables: pairs, as in BuildOptions or (from JSON) in the inputs of a build's key.
    """
    if _ASAN not in map(tuple, cmake_variables):
        return {}
    return {"ASAN_OPTIONS": "verify_asan_link_order=0:detect_leaks=0:halt_on_error=0:alloc_dealloc_mismatch=0"}


def question(options: BuildOptions) -> dict[str, str]:
    """What has `enter` run `kwbase version` from the results, once they are there."""
    return {
        "KWDB_ASKED": str(INSTALL / "bin"),
        "KWDB_ASAN_OPTIONS": asan_environment(options.cmake_variables).get("ASAN_OPTIONS", ""),
    }


def asan(variables: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """CMake variables with KWDB's switch for the address sanitizer on."""
    return (*(pair for pair in variables if pair[0] != _ASAN[0]), _ASAN)


def make_argv(recipe: Recipe, tree: SourceTree, options: BuildOptions, jobs: int, target: str = "") -> tuple[str, ...]:
    """The build's command line, run in SOURCE; target is the recipe's own unless given.

    The version text is given rather than described from git: a shallow copy would describe itself otherwise, and
    generated files make the tree dirty. Given here and not in the environment, because only so it reaches the inner
    make, whose own assignment it must override; so do Go's flags, and the number of jobs, which KWDB's inner make else
    takes from the machine.
    """
    check_options(options)
    return (
        str(SHIMS / "enter"), UMASK,
        "make",
        f"-j{jobs}",
        f"BUILD_TYPE={options.build_type}",
        f"INSTALL_PATH={INSTALL}",
        f"BUILDINFO_TAG={tree.version.text}",
        f"GOFLAGS={GO_FLAGS}",
        f"NCPUS={jobs}",
        # Go keeps the results of tests, and does not see that a library that is loaded at run time has changed.
        *(("GOTESTFLAGS=-count=1",) if target in OWN_TESTS else ()),
        *(f"{name}={value}" for name, value in sorted(options.make_variables)),
        target or recipe.target,
    )


def cmake_environment(options: BuildOptions) -> dict[str, str]:
    """What gives CMake variables beside those of KWDB's Makefile; {} when there are none.

    By the environment: on make's command line it would also override the variables of the test targets. What the
    Makefile itself would pass on is repeated, as the whole of it is replaced. KWBASE_OSS only when it was asked for:
    older trees do not know it, and its default is CMake's.
    """
    if not options.cmake_variables:
        return {}
    passed_on = ["-DCMAKE_BUILD_TYPE=$(BUILD_TYPE)", "-DCMAKE_INSTALL_PREFIX=$(INSTALL_PATH)",
                 "-DPROTOBUF_DIR=$(PROTOBUF_DIR)"]
    passed_on += [f"-DKWBASE_OSS={value}" for name, value in options.make_variables if name == "KWBASE_OSS"]
    passed_on += [f"-D{name}={value}" for name, value in sorted(options.cmake_variables)]
    return {"CMAKE_CONFIG_OPTIONS": " ".join(passed_on)}


def environment(
    tree: SourceTree, toolchain_environment: Mapping[str, str], headers: str, includes: Includes | None
) -> dict[str, str]:
    """The whole environment of the build: the toolchain's own, then what makes the build offline and repeatable.

    PATH is the toolchain's with our stand-ins first. headers, a digest of theirs, becomes a macro that nobody reads, as
    cgo's flags are part of what Go's cache goes by. KWDB's Makefile sets the other CGO_ variables, and leaves this one
    alone.

    ccache gets no base_dir (everything has a fixed path) and no sloppiness: with time_macros a file that uses __DATE__
    would come from the cache with the date of another commit, and the bytes would differ from those of a cold build.
    gcc takes __DATE__ from SOURCE_DATE_EPOCH, and ccache counts that in. Its quick look-up knows which files a source
    included and their contents, but not that another one now comes before one of them. So the digest of what decides
    that stands in CPATH, as a directory that is not there: that look-up counts CPATH in. The thorough one, by what the
    preprocessor says, does not, but a compilation that lists what it reads is not looked up in that way.

    includes: None for a build without ccache.
    """
    # Without a directory of links to ccache: our stand-ins call that, and it would find them as its compilers.
    path = ":".join(
        place for place in toolchain_environment.get("PATH", _DEFAULT_PATH).split(":")
        if CCACHE.name not in PurePosixPath(place).parts
    )
    return {
        **toolchain_environment,
        "PATH": f"{SHIMS}:{TOOLS}:{path}",
        "KWDB_PATH": path,
        **({"KWDB_CCACHE": ""} if includes is None else _lasting_environment(includes, toolchain_environment)),
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
        "GOCACHE": str(CACHE / "go"),
        "CGO_CPPFLAGS": f"-DKWDB_BUILD_HEADERS_{headers[:32]}",
        # The working copy is the build's own, but git also looks at the owner of the mount point.
        "GIT_CONFIG_NOSYSTEM": "1",
        # A dependency that asks git for its revision must not be told KWDB's: brpc does, from where CMake builds it. It
        # would have in it the branch that was checked out, and as many digits as this clone needs for a commit.
        "GIT_CEILING_DIRECTORIES": ":".join(map(str, (SOURCE / "build", *(SOURCE / name for name in DEPENDENCIES)))),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
        "GIT_TERMINAL_PROMPT": "0",
    }


def _lasting_environment(includes: Includes, toolchain_environment: Mapping[str, str]) -> dict[str, str]:
    return {
        "KWDB_LINKED": str(LINKED),
        "KWDB_CCACHE": str(CCACHE),
        "KWDB_DEPEND": includes.depth,
        "CPATH": ":".join(filter(None, (f"/kwdb-includes/{includes.order[:32]}", toolchain_environment.get("CPATH")))),
        "CCACHE_DIR": str(CACHE / "ccache"),
        "CCACHE_COMPILERCHECK": "content",
        "CCACHE_CONFIGPATH": str(SHIMS / "no-ccache.conf"),  # there is none: a cache brings no settings of its own
        "CCACHE_IGNOREOPTIONS": "" if includes.reads_commit else f"-D{COMMIT_MACRO}=*",
        "CCACHE_NOINODECACHE": "1",
        "CCACHE_STATSLOG": str(SCRATCH / "ccache.log"),
    }


def cores_for(cpus: float) -> int:
    """Processors that jobs can be spread over: those that this process may use, or what a limit (0: none) leaves."""
    own = len(os.sched_getaffinity(0))
    return min(own, math.ceil(cpus)) if cpus else own


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
