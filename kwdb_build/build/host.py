"""What a finished build needs from the machine it shall run on, and whether this machine has it."""

from __future__ import annotations

import os
import platform
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kwdb_build.build.elf import provided_versions, read_elf
from kwdb_build.command import CommandError, run
from kwdb_build.model import CheckResult, Verdict
from kwdb_build.toolchain.catalog import MANAGERS, library_fixes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kwdb_build.model import Artifact

_LIBRARIES = "shared libraries of this host"
_LDD_TIMEOUT_S = 60
_NOT_FOUND = re.compile(r"^\s*(?P<soname>\S+) => not found", re.MULTILINE)
_VERSION_NOT_FOUND = re.compile(r"version [`'](?P<version>[^']+)' not found \(required by (?P<by>[^)]+)\)")
_LIBRARY_DIRECTORIES = ("/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib64", "/usr/local/lib")


@dataclass(frozen=True, kw_only=True)
class Floor:
    """The least that a host must have: symbol versions ('' when none is needed) and shared libraries by soname."""

    glibc: str = ""
    glibcxx: str = ""
    libraries: tuple[str, ...] = field(default=())


def glibc_floor(artifact: Artifact) -> Floor:
    """Highest GLIBC_ and GLIBCXX_ versions over kwbase and its libraries, and the libraries they bring not along."""
    versions: dict[str, tuple[int, ...]] = {}
    needed: set[str] = set()
    own: set[str] = set()
    for record in artifact.files:
        if not (record.path == "bin/kwbase" or record.path.startswith("lib/")) or record.link:
            continue
        own.add(Path(record.path).name)
        try:
            facts = read_elf(artifact.path / record.path)
        except ValueError:
            continue
        needed |= set(facts.needed)
        for name, number in facts.versions.items():
            versions[name] = max(versions.get(name, ()), number)
    own |= {Path(record.path).name for record in artifact.files if record.link}
    return Floor(
        glibc=_dotted(versions.get("GLIBC", ())),
        glibcxx=_dotted(versions.get("GLIBCXX", ())),
        libraries=tuple(sorted(needed - own)),
    )


@dataclass(frozen=True, kw_only=True)
class HostFacts:
    """What a host offers; '' and None mean that it could not be found out."""

    glibc: str = ""
    glibcxx: str = ""
    libraries: frozenset[str] | None = None


def host_facts() -> HostFacts:
    """Ask this machine: its C library, its libstdc++, and the loader's cache of libraries."""
    libraries = _loader_cache()
    return HostFacts(
        glibc=host_glibc(),
        glibcxx=_libstdcxx(libraries),
        libraries=frozenset(libraries) if libraries is not None else None,
    )


def host_glibc() -> str:
    """Version of this machine's C library such as '2.36'; '' when it is another one (musl)."""
    text = os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in os.confstr_names else None
    return (text or "").removeprefix("glibc").strip()


def check_links(artifact: Artifact, host: HostFacts) -> tuple[CheckResult, ...]:
    """Whether this host can load the built binaries: versions by comparing, libraries by asking the loader itself."""
    floor = glibc_floor(artifact)
    *versions, libraries = host_supports(floor, host)
    if (answer := _ask_loader(artifact)) is not None:
        libraries = loader_row(floor.libraries, answer)
    return (*versions, libraries)


def _ask_loader(artifact: Artifact) -> str | None:
    """What ldd says of kwbase and its libraries; None where there is no ldd."""
    if shutil.which("ldd") is None:
        return None
    own = [
        str(artifact.path / record.path) for record in artifact.files
        if not record.link and (record.path == "bin/kwbase" or record.path.startswith("lib/"))
    ]
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "LD_LIBRARY_PATH": str(artifact.path / "lib")}
    try:
        completed = run(("ldd", *own), check=False, env=environment, timeout_s=_LDD_TIMEOUT_S)
    except CommandError:
        return None
    return completed.stdout + completed.stderr


def loader_row(required: tuple[str, ...], answer: str) -> CheckResult:
    """Verdict on what ldd said: every library is found and offers the versions asked of it. Pure but for the fixes."""
    missing = sorted({match["soname"] for match in _NOT_FOUND.finditer(answer)})
    lacking = sorted({
        f"{match['version']} (for {Path(match['by']).name})" for match in _VERSION_NOT_FOUND.finditer(answer)
    })
    wanted = " ".join(required)
    if not missing and not lacking:
        if "=>" not in answer:
            return CheckResult(name=_LIBRARIES, verdict=Verdict.UNKNOWN, required=wanted, found=answer.strip()[:200])
        return CheckResult(name=_LIBRARIES, verdict=Verdict.OK, required=wanted, found="all, by ldd")
    found = "; ".join([*(f"missing: {name}" for name in missing), *(f"too old: {name}" for name in lacking)])
    ways = [ways for name in missing if (ways := library_fixes(name, own_manager()))]
    other = "build with a toolchain of this host's distribution or an older one (--toolchain)"
    return CheckResult(
        name=_LIBRARIES, verdict=Verdict.FAIL, required=wanted, found=found,
        fix="; ".join([*dict.fromkeys(way[0] for way in ways), other]),
        fixes=tuple(dict.fromkeys(command for way in ways for command in way)),
    )


_LINKED_PACKAGE = re.compile(r"libprotobuf(\d+)(?:t64)?")


def foreseen_links(locked: Iterable[str], present: frozenset[str] | None) -> tuple[CheckResult, ...]:
    """What a build with these packages will link that this host lacks, before it is built; rows only where there are.

    Of all libraries that KWDB up to 3.1 takes from the system only protobuf changes its name with the distribution.
    """
    rows = []
    for name in locked:
        match = _LINKED_PACKAGE.fullmatch(name)
        soname = f"libprotobuf.so.{match[1]}" if match else ""
        if not soname or present is None or soname in present:
            continue
        ways = library_fixes(soname, own_manager())
        other = sorted(library for library in present if library.startswith("libprotobuf.so."))
        rows.append(CheckResult(
            name=f"{soname} (foreseen)", verdict=Verdict.WARN, required="what the build will link",
            found=f"this host has {', '.join(other) or 'none'}", fixes=ways,
            fix=f"{ways[0]} where it has that, or put the library into lib/ beside the new ones; an upgrade would be "
            "refused before the stop",
        ))
    return tuple(rows)


def own_manager() -> str:
    """The package manager of this machine; '' when it has none that is known."""
    return next((name for name in MANAGERS if shutil.which(name)), "")


def host_supports(floor: Floor, host: HostFacts) -> tuple[CheckResult, ...]:
    """Compare; pure. One row each for the C library, the C++ library and the shared libraries."""
    hint = "build with a toolchain of an older distribution, or run a newer one here"
    return (
        _row("glibc of this host", floor.glibc, host.glibc, hint),
        _row("libstdc++ of this host", floor.glibcxx, host.glibcxx, hint),
        _libraries_row(floor.libraries, host.libraries),
    )


def _row(name: str, required: str, found: str, hint: str) -> CheckResult:
    if not required:
        return CheckResult(name=name, verdict=Verdict.OK, required="none", found=found)
    if not found:
        return CheckResult(name=name, verdict=Verdict.UNKNOWN, required=required, found="not found out", fix=hint)
    enough = _numbers(found) >= _numbers(required)
    return CheckResult(
        name=name, verdict=Verdict.OK if enough else Verdict.FAIL, required=required, found=found,
        fix="" if enough else hint,
    )


def _libraries_row(required: tuple[str, ...], present: frozenset[str] | None) -> CheckResult:
    name = _LIBRARIES
    if present is None:
        return CheckResult(name=name, verdict=Verdict.UNKNOWN, required=" ".join(required), found="no loader cache")
    missing = [library for library in required if library not in present and not library.startswith("ld-linux")]
    if not missing:
        return CheckResult(name=name, verdict=Verdict.OK, required=f"{len(required)} libraries", found="all")
    return CheckResult(
        name=name, verdict=Verdict.FAIL, required=" ".join(required), found=f"missing: {' '.join(missing)}",
        fix="install the packages that hold them, or build with a toolchain of this host's distribution",
    )


def parse_loader_cache(text: str, machine: str) -> dict[str, str]:
    """`ldconfig -p` -> soname to file, of the libraries for this machine; pure.

    A line reads `libz.so.1 (libc6,x86-64) => /lib/x86_64-linux-gnu/libz.so.1`; a 32-bit one has no word after libc6.
    """
    word = {"x86_64": "x86-64", "aarch64": "AArch64"}.get(machine, "")
    found: dict[str, str] = {}
    for line in text.splitlines():
        head, arrow, target = line.strip().partition(" => ")
        soname, _, kind = head.partition(" ")
        if arrow and word in kind:
            found.setdefault(soname, target)
    return found


def _loader_cache() -> dict[str, str] | None:
    for program in ("ldconfig", "/sbin/ldconfig"):
        try:
            completed = run((program, "-p"), timeout_s=20)
        except CommandError:
            continue
        return parse_loader_cache(completed.stdout, platform.machine())
    return None


def _libstdcxx(libraries: dict[str, str] | None) -> str:
    known = (libraries or {}).get("libstdc++.so.6")
    triplet = f"{platform.machine()}-linux-gnu"
    places = [f"{directory}/{part}libstdc++.so.6" for directory in _LIBRARY_DIRECTORIES for part in (f"{triplet}/", "")]
    for place in ([known] if known else []) + places:
        if Path(place).is_file():
            try:
                return _dotted(provided_versions(Path(place)).get("GLIBCXX", ()))
            except ValueError:
                continue
    return ""


def _dotted(number: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in number)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())
