"""Whether a build image has what a tree asks for.

One container run collects facts (which tools answer, which packages and compiler files are there); everything after
that is pure, so it is tested from recorded facts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kwdb_build.engine.base import RunSpec
from kwdb_build.errors import EngineError
from kwdb_build.model import CheckResult, Verdict
from kwdb_build.toolchain.requirements import Phase, Requirement, Requirements, key_of, numbers

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path
    from typing import Protocol

    from kwdb_build.engine.base import Engine

    class _Result(Protocol):
        def __call__(self, verdict: Verdict, found: str, *, fix: bool = False) -> CheckResult: ...

PROBE_ID = 65532
"""User and group of the probe: never root, and nobody's on usual systems."""
_PROBE_TIMEOUT_S = 120.0
_SAFE_NAME = re.compile(r"^[a-z0-9][a-z0-9.+_-]*$")


@dataclass(frozen=True, kw_only=True)
class _Known:
    """How one thing is recognised, and the packages that bring it.

    tools, files: any of them present and new enough will do. packages: installed packages whose version counts. apt,
    rpm, zypper: what to install (rpm serves dnf and yum; zypper where its name differs).
    """

    tools: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    apt: str
    rpm: str
    zypper: str = ""


_CATALOG: dict[str, _Known] = {
    "go": _Known(tools=("go",), apt="golang-go", rpm="golang", zypper="go"),
    "cmake": _Known(tools=("cmake",), apt="cmake", rpm="cmake"),
    "make": _Known(tools=("make",), apt="make", rpm="make"),
    "gcc": _Known(tools=("gcc",), apt="gcc", rpm="gcc"),
    "g++": _Known(tools=("g++",), apt="g++", rpm="gcc-c++"),
    "autoconf": _Known(tools=("autoconf",), apt="autoconf", rpm="autoconf"),
    "automake": _Known(tools=("automake",), apt="automake", rpm="automake"),
    "libtool": _Known(tools=("libtoolize",), apt="libtool", rpm="libtool"),
    "pkg-config": _Known(tools=("pkg-config", "pkgconf"), apt="pkg-config", rpm="pkgconf-pkg-config", zypper="pkgconf"),
    "git": _Known(tools=("git",), apt="git", rpm="git"),
    "goyacc": _Known(tools=("goyacc",), apt="golang-golang-x-tools", rpm="golang-x-tools-goyacc"),
    "objcopy": _Known(tools=("objcopy",), apt="binutils", rpm="binutils"),
    "protobuf-compiler": _Known(tools=("protoc",), apt="protobuf-compiler", rpm="protobuf-compiler",
                                zypper="protobuf-devel"),
    "ca-certificates": _Known(packages=("ca-certificates",), apt="ca-certificates", rpm="ca-certificates"),
    "dpkg-dev": _Known(packages=("dpkg-dev",), apt="dpkg-dev", rpm="dpkg-dev"),
    "devscripts": _Known(packages=("devscripts",), apt="devscripts", rpm="devscripts"),
    "checkinstall": _Known(packages=("checkinstall",), apt="checkinstall", rpm="checkinstall"),
    "build-essential": _Known(packages=("build-essential",), apt="build-essential", rpm="gcc gcc-c++ make"),
    "libssl": _Known(packages=("libssl-dev", "openssl-devel", "libopenssl-devel", "openssl11-devel"), apt="libssl-dev",
                     rpm="openssl-devel", zypper="libopenssl-devel"),
    "libprotobuf": _Known(packages=("libprotobuf-dev", "protobuf-devel"), apt="libprotobuf-dev", rpm="protobuf-devel"),
    "libprotoc-dev": _Known(packages=("libprotoc-dev", "protobuf-devel"), apt="libprotoc-dev", rpm="protobuf-devel"),
    "liblzma": _Known(packages=("liblzma-dev", "xz-devel"), apt="liblzma-dev", rpm="xz-devel"),
    "libncurses": _Known(packages=("libncurses-dev", "libncurses5-dev", "ncurses-devel"), apt="libncurses-dev",
                         rpm="ncurses-devel"),
    "libatomic": _Known(files=("libatomic.so", "libatomic.a"), apt="g++", rpm="libatomic", zypper="libatomic1"),
    "libstdc++-static": _Known(files=("libstdc++.a",), apt="g++", rpm="libstdc++-static", zypper="gcc-c++"),
    "libgomp": _Known(files=("libgomp.spec",), apt="gcc", rpm="libgomp", zypper="gcc"),
    "gflags": _Known(packages=("libgflags-dev", "gflags-devel"), apt="libgflags-dev", rpm="gflags-devel"),
    "lz4": _Known(packages=("liblz4-dev", "lz4-devel", "liblz4-devel"), apt="liblz4-dev", rpm="lz4-devel",
                  zypper="liblz4-devel"),
    "zlib": _Known(packages=("zlib1g-dev", "zlib-devel", "zlib-ng-compat-devel"), apt="zlib1g-dev", rpm="zlib-devel"),
    "libssl.a": _Known(files=("libssl.a",), apt="libssl-dev", rpm="openssl-static", zypper="libopenssl-devel-static"),
    "libcrypto.a": _Known(files=("libcrypto.a",), apt="libssl-dev", rpm="openssl-static",
                          zypper="libopenssl-devel-static"),
    "libz.a": _Known(files=("libz.a",), apt="zlib1g-dev", rpm="zlib-static", zypper="zlib-devel-static"),
    "libtinfo.a": _Known(files=("libtinfo.a",), apt="libncurses-dev", rpm="ncurses-static",
                         zypper="ncurses-devel-static"),
    "openssl": _Known(tools=("openssl",), packages=("libssl3", "libssl3t64", "libssl1.1", "openssl", "openssl-libs"),
                      apt="openssl", rpm="openssl"),
    "geos": _Known(packages=("libgeos-c1v5", "libgeos-dev", "geos"), apt="libgeos-c1v5", rpm="geos"),
    "xz-libs": _Known(packages=("liblzma5", "xz-libs"), apt="liblzma5", rpm="xz-libs", zypper="liblzma5"),
    "squashfs-tools": _Known(packages=("squashfs-tools", "squashfs"), apt="squashfs-tools", rpm="squashfs-tools",
                             zypper="squashfs"),
    "squashfuse": _Known(packages=("squashfuse",), apt="squashfuse", rpm="squashfuse"),
    "libgcc": _Known(packages=("libgcc-s1", "libgcc", "libgcc_s1"), apt="libgcc-s1", rpm="libgcc", zypper="libgcc_s1"),
    "mount": _Known(tools=("mount",), packages=("mount",), apt="mount", rpm="util-linux"),
}
_RUNTIME_CATALOG: dict[str, _Known] = {
    "libprotobuf": _Known(packages=("libprotobuf32", "libprotobuf32t64", "libprotobuf23", "libprotobuf17",
                                    "libprotobuf-dev", "protobuf"),
                          apt="libprotobuf32", rpm="protobuf"),
}
"""Where the running side of a name is another package than the compiling side."""

_PROBE = r"""
for tool in "$@"; do
    path=$(command -v "$tool") || continue
    echo "@tool $tool"
    case "$tool" in
        go | openssl) "$tool" version ;;
        *) "$tool" --version ;;
    esac </dev/null 2>&1 | head -n 3
done
echo "@packages"
if command -v dpkg-query >/dev/null; then
    dpkg-query -W -f '${db:Status-Abbrev}\t${Package}\t${Version}\n'
elif command -v rpm >/dev/null; then
    rpm -qa --qf 'ii \t%{NAME}\t%{VERSION}-%{RELEASE}\n'
fi
echo "@compiler"
for file in libatomic.so libatomic.a libstdc++.a libgomp.spec libssl.a libcrypto.a libz.a libtinfo.a; do
    printf '%s\t%s\n' "$file" "$(g++ -print-file-name="$file" 2>/dev/null)"
done
echo "@manager"
for manager in apt-get dnf yum zypper; do
    if command -v "$manager" >/dev/null; then echo "$manager"; fi
done
echo "@end"
"""
"""Constant text run by the image's own shell; the names of tools come as its arguments, never pasted in."""


def tools_asked_for(requirements: Requirements) -> tuple[str, ...]:
    """Programs whose version is worth asking: those of known rows, and any row whose name could be a program."""
    wanted: set[str] = {"gcc", "g++", "make"}
    for row in requirements.rows:
        key = key_of(row.name)
        known = _CATALOG.get(key)
        wanted |= set(known.tools) if known else {key} & {key if _SAFE_NAME.match(key) else ""}
    return tuple(sorted(wanted - {""}))


def probe_image(
    engine: Engine, image: str, log: Path, *, requirements: Requirements, environment: Mapping[str, str]
) -> dict[str, str]:
    """Facts of an image by one run in it: 'tool:go' -> its answer, 'package:git' -> version, 'file:libz.a' -> path.

    environment is the toolchain's, whose PATH finds its tools. EngineError when the run does not come to its end.
    """
    lines: list[str] = []
    result = engine.run(
        RunSpec(
            image=image, argv=("/bin/sh", "-c", _PROBE, "probe", *tools_asked_for(requirements)),
            environment={"LC_ALL": "C", "HOME": "/tmp", **environment},  # noqa: S108 of the container
            uid=PROBE_ID, gid=PROBE_ID, name="check", timeout_s=_PROBE_TIMEOUT_S,
        ),
        on_line=lines.append, log=log,
    )
    facts = parse_probe(lines)
    if result.returncode != 0 or "end" not in facts:
        raise EngineError(
            f"the image {image} could not be asked what it has (exit code {result.returncode})",
            context="\n".join(lines[-10:]), log=log, hint="build the toolchain's image anew",
        )
    return facts


def parse_probe(lines: Iterable[str]) -> dict[str, str]:
    """Facts from the probe's output; pure."""
    facts: dict[str, str] = {}
    section = name = ""
    for raw in lines:
        line = raw.rstrip("\r\n")
        if line.startswith("@"):
            section, _, name = line[1:].partition(" ")
            facts |= {f"tool:{name}": ""} if section == "tool" else {"end": "yes"} if section == "end" else {}
        elif section == "tool":
            facts[f"tool:{name}"] = f"{facts[f'tool:{name}']}\n{line}".strip()
        elif section == "manager" and line:
            facts.setdefault("manager", line)
        else:
            facts |= _tabbed_fact(section, line.split("\t"))
    return facts


def _tabbed_fact(section: str, cells: list[str]) -> dict[str, str]:
    match section, cells:
        case "packages", [status, package, version] if status.startswith("ii"):
            return {f"package:{package.partition(':')[0]}": version}
        # The compiler answers with the bare name when it has no such file.
        case "compiler", [file, path] if path.startswith("/"):
            return {f"file:{file}": path}
    return {}


def check(requirements: Requirements, facts: Mapping[str, str]) -> tuple[CheckResult, ...]:
    """One verdict a row; pure. A row that cannot be read or found out is unknown, never ok."""
    return tuple(_verdict(row, facts) for row in requirements.rows)


def _verdict(row: Requirement, facts: Mapping[str, str]) -> CheckResult:
    name = row.name if row.phase is Phase.COMPILE else f"{row.name} (running)"

    def result(verdict: Verdict, found: str, *, fix: bool = False) -> CheckResult:
        return CheckResult(
            name=name, verdict=verdict, required=row.wanted if row.readable else "?", found=found, where=row.where,
            fix=_fix(row, facts) if fix else "",
        )

    if not row.readable:
        return result(Verdict.UNKNOWN, row.note)
    found = _look(row, facts)
    if found is None:
        return _absent(row, facts, result)
    text, version = found
    if not version and (row.minimum or row.maximum):
        if row.waived:
            return result(Verdict.SKIP, f"{text}; not needed: {row.waived}")
        return result(Verdict.UNKNOWN, f"present, but its version cannot be read: {text[:60]}")
    if row.minimum and numbers(version) < numbers(row.minimum):
        return _too_old(row, text, version, result)
    if row.maximum and numbers(version) > numbers(row.maximum):
        return result(Verdict.WARN, f"{text}; newer than the tree was tried with")
    return result(Verdict.OK, text)


def _too_old(row: Requirement, text: str, version: str, result: _Result) -> CheckResult:
    if row.waived:
        return result(Verdict.SKIP, f"{text}; not needed: {row.waived}")
    if row.floor and numbers(version) >= numbers(row.floor):
        return result(Verdict.WARN, f"{text}; the tree's own build files accept {row.floor} or newer", fix=True)
    return result(Verdict.WARN if row.phase is Phase.RUN else Verdict.FAIL, text, fix=True)


def _absent(row: Requirement, facts: Mapping[str, str], result: _Result) -> CheckResult:
    if row.waived:
        return result(Verdict.SKIP, f"not there; not needed: {row.waived}")
    if row.phase is Phase.RUN:
        return result(Verdict.SKIP, "not in the build image; counts where the server runs")
    if key_of(row.name) not in _CATALOG:
        return result(Verdict.UNKNOWN, "no program or package of that name; not known how else to look for it")
    if row.advisory:
        return result(Verdict.WARN, "not found", fix=True)
    if key_of(row.name) == "build-essential" and all(f"tool:{tool}" in facts for tool in ("gcc", "g++", "make")):
        return result(Verdict.OK, "gcc, g++ and make")
    return result(Verdict.FAIL, "not found", fix=True)


def _look(row: Requirement, facts: Mapping[str, str]) -> tuple[str, str] | None:
    """(text for people, version number or '') of what is there; None when nothing is."""
    key = key_of(row.name)
    known = (_RUNTIME_CATALOG.get(key) if row.phase is Phase.RUN else None) or _CATALOG.get(key)
    tools = known.tools if known else (key,)
    packages = known.packages if known else (key, f"{key}-dev", f"{key}-devel")
    for tool in tools:
        if (answer := facts.get(f"tool:{tool}")) is not None:
            version = tool_version(answer)
            return f"{tool} {version}".strip() if version else answer.splitlines()[0] if answer else tool, version
    for package in packages:
        if (text := facts.get(f"package:{package}")) is not None:
            return f"{package} {text}", package_version(text)
    for file in known.files if known else ():
        if path := facts.get(f"file:{file}"):
            # What the compiler brings has the compiler's version.
            return path, tool_version(facts.get("tool:gcc", ""))
    return None


_PARENTHESES = re.compile(r"\([^()]*\)")
_NUMBER = re.compile(r"(?:^|[\s v]|go)(\d+(?:\.\d+)+|\d+)(?=$|[\s,.\-+~a-z])")


def tool_version(answer: str) -> str:
    """Version number in a program's own words: `gcc (Debian 12.2.0-14) 12.2.0`, `go version go1.22.10 linux/amd64`."""
    for line in answer.splitlines():
        if match := _NUMBER.search(_PARENTHESES.sub("", line)):
            return match[1]
    return ""


def package_version(text: str) -> str:
    """Upstream number of a package version: `1:2.39.5-0+deb12u2` -> 2.39.5, `6.2+20201114-2` -> 6.2."""
    upstream = text.partition(":")[2] or text
    match = re.match(r"\d+(?:\.\d+)*", upstream)
    return match[0] if match else ""


def _fix(row: Requirement, facts: Mapping[str, str]) -> str:
    known = _CATALOG.get(key_of(row.name))
    if known is None:
        return row.note
    manager = facts.get("manager", "apt-get")
    package = known.apt if manager == "apt-get" else known.rpm
    if manager == "zypper":
        package = known.zypper or known.rpm
    return f"{manager} install {package}"
