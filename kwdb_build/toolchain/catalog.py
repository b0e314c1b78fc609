"""The things that KWDB asks for: how each is recognised on a system, and what the package managers call it."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Known:
    """How one thing is recognised, and the packages that bring it.

    tools, files: any of them present and new enough will do. packages: installed packages whose version counts. apt,
    rpm, zypper: what to install (rpm serves dnf and yum; zypper where its name differs). sonames: how the libraries of
    a running dependency begin, such as `libssl.so.`.
    """

    tools: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    apt: str
    rpm: str
    zypper: str = ""
    sonames: tuple[str, ...] = ()

    def package(self, manager: str) -> str:
        """What this is called by a package manager."""
        if manager == "apt-get":
            return self.apt
        return (self.zypper or self.rpm) if manager == "zypper" else self.rpm


CATALOG: dict[str, Known] = {
    "go": Known(tools=("go",), apt="golang-go", rpm="golang", zypper="go"),
    "cmake": Known(tools=("cmake",), apt="cmake", rpm="cmake"),
    "make": Known(tools=("make",), apt="make", rpm="make"),
    "gcc": Known(tools=("gcc",), apt="gcc", rpm="gcc"),
    "g++": Known(tools=("g++",), apt="g++", rpm="gcc-c++"),
    "autoconf": Known(tools=("autoconf",), apt="autoconf", rpm="autoconf"),
    "automake": Known(tools=("automake",), apt="automake", rpm="automake"),
    "libtool": Known(tools=("libtoolize",), apt="libtool", rpm="libtool"),
    "pkg-config": Known(tools=("pkg-config", "pkgconf"), apt="pkg-config", rpm="pkgconf-pkg-config", zypper="pkgconf"),
    "git": Known(tools=("git",), apt="git", rpm="git"),
    "goyacc": Known(tools=("goyacc",), apt="golang-golang-x-tools", rpm="golang-x-tools-goyacc"),
    "objcopy": Known(tools=("objcopy",), apt="binutils", rpm="binutils"),
    "protobuf-compiler": Known(tools=("protoc",), apt="protobuf-compiler", rpm="protobuf-compiler",
                                zypper="protobuf-devel"),
    "ca-certificates": Known(packages=("ca-certificates",), apt="ca-certificates", rpm="ca-certificates"),
    "dpkg-dev": Known(packages=("dpkg-dev",), apt="dpkg-dev", rpm="dpkg-dev"),
    "devscripts": Known(packages=("devscripts",), apt="devscripts", rpm="devscripts"),
    "checkinstall": Known(packages=("checkinstall",), apt="checkinstall", rpm="checkinstall"),
    "build-essential": Known(packages=("build-essential",), apt="build-essential", rpm="gcc gcc-c++ make"),
    "libssl": Known(packages=("libssl-dev", "openssl-devel", "libopenssl-devel", "openssl11-devel"), apt="libssl-dev",
                     rpm="openssl-devel", zypper="libopenssl-devel"),
    "libprotobuf": Known(packages=("libprotobuf-dev", "protobuf-devel"), apt="libprotobuf-dev", rpm="protobuf-devel"),
    "libprotoc-dev": Known(packages=("libprotoc-dev", "protobuf-devel"), apt="libprotoc-dev", rpm="protobuf-devel"),
    "liblzma": Known(packages=("liblzma-dev", "xz-devel"), apt="liblzma-dev", rpm="xz-devel"),
    "libncurses": Known(packages=("libncurses-dev", "libncurses5-dev", "ncurses-devel"), apt="libncurses-dev",
                         rpm="ncurses-devel"),
    "libatomic": Known(files=("libatomic.so", "libatomic.a"), apt="g++", rpm="libatomic", zypper="libatomic1"),
    "libstdc++-static": Known(files=("libstdc++.a",), apt="g++", rpm="libstdc++-static", zypper="gcc-c++"),
    "libgomp": Known(files=("libgomp.spec",), apt="gcc", rpm="libgomp", zypper="gcc"),
    "google/protobuf/stubs/stringprintf.h": Known(files=("google/protobuf/stubs/stringprintf.h",), apt="", rpm=""),
    "gflags": Known(packages=("libgflags-dev", "gflags-devel"), apt="libgflags-dev", rpm="gflags-devel"),
    "lz4": Known(packages=("liblz4-dev", "lz4-devel", "liblz4-devel"), apt="liblz4-dev", rpm="lz4-devel",
                  zypper="liblz4-devel"),
    "zlib": Known(packages=("zlib1g-dev", "zlib-devel", "zlib-ng-compat-devel"), apt="zlib1g-dev", rpm="zlib-devel"),
    "libssl.a": Known(files=("libssl.a",), apt="libssl-dev", rpm="openssl-static", zypper="libopenssl-devel-static"),
    "libcrypto.a": Known(files=("libcrypto.a",), apt="libssl-dev", rpm="openssl-static",
                          zypper="libopenssl-devel-static"),
    "libz.a": Known(files=("libz.a",), apt="zlib1g-dev", rpm="zlib-static", zypper="zlib-devel-static"),
    "libtinfo.a": Known(files=("libtinfo.a",), apt="libncurses-dev", rpm="ncurses-static",
                         zypper="ncurses-devel-static"),
    "openssl": Known(tools=("openssl",), packages=("libssl3", "libssl3t64", "libssl1.1", "openssl", "openssl-libs"),
                      apt="openssl", rpm="openssl"),
    "geos": Known(packages=("libgeos-c1v5", "libgeos-dev", "geos"), apt="libgeos-c1v5", rpm="geos"),
    "xz-libs": Known(packages=("liblzma5", "xz-libs"), apt="liblzma5", rpm="xz-libs", zypper="liblzma5"),
    "squashfs-tools": Known(packages=("squashfs-tools", "squashfs"), apt="squashfs-tools", rpm="squashfs-tools",
                             zypper="squashfs"),
    "squashfuse": Known(packages=("squashfuse",), apt="squashfuse", rpm="squashfuse"),
    "libgcc": Known(packages=("libgcc-s1", "libgcc", "libgcc_s1"), apt="libgcc-s1", rpm="libgcc", zypper="libgcc_s1"),
    "mount": Known(tools=("mount",), packages=("mount",), apt="mount", rpm="util-linux"),
}
RUNTIME_CATALOG: dict[str, Known] = {
    "openssl": Known(tools=("openssl",), packages=("libssl3", "libssl3t64", "libssl1.1", "openssl-libs", "openssl"),
                     sonames=("libssl.so.", "libcrypto.so."), apt="openssl", rpm="openssl"),
    "libprotobuf": Known(packages=("libprotobuf32", "libprotobuf32t64", "libprotobuf23", "libprotobuf17",
                                   "libprotobuf-dev", "protobuf"), sonames=("libprotobuf.so.",),
                         apt="libprotobuf-dev", rpm="protobuf", zypper="protobuf-devel"),
    "geos": Known(packages=("libgeos-c1v5", "libgeos-c1t64", "libgeos-dev", "geos"), sonames=("libgeos",),
                  apt="libgeos-c1v5", rpm="geos"),
    "xz-libs": Known(packages=("liblzma5", "xz-libs"), sonames=("liblzma.so.",), apt="liblzma5", rpm="xz-libs",
                     zypper="liblzma5"),
    "libgcc": Known(packages=("libgcc-s1", "libgcc", "libgcc_s1"), sonames=("libgcc_s.so.",), apt="libgcc-s1",
                    rpm="libgcc", zypper="libgcc_s1"),
}
"""Where the running side of a name is another package than the compiling side."""

_LIBRARIES: tuple[tuple[str, str, str, str], ...] = (
    (r"libprotobuf\.so\.(\d+)", r"libprotobuf\1", "protobuf", r"libprotobuf\1"),
    (r"lib(?:ssl|crypto)\.so\.3", "libssl3", "openssl-libs", "libopenssl3"),
    (r"lib(?:ssl|crypto)\.so\.1\.1", "libssl1.1", "compat-openssl11", "libopenssl1_1"),
    (r"liblzma\.so\.5", "liblzma5", "xz-libs", "liblzma5"),
    (r"lib(?:tinfo|ncursesw?)\.so\.6", "libtinfo6", "ncurses-libs", "libncurses6"),
    (r"libstdc\+\+\.so\.6", "libstdc++6", "libstdc++", "libstdc++6"),
    (r"libgcc_s\.so\.1", "libgcc-s1", "libgcc", "libgcc_s1"),
    (r"libgomp\.so\.1", "libgomp1", "libgomp", "libgomp1"),
    (r"libatomic\.so\.1", "libatomic1", "libatomic", "libatomic1"),
    (r"libunwind(?:-x86_64)?\.so\.8", "libunwind8", "libunwind", "libunwind8"),
    (r"libgflags\.so\.(2\.2)", r"libgflags\1", "gflags", "libgflags2"),
    (r"liblz4\.so\.1", "liblz4-1", "lz4-libs", "liblz4-1"),
    (r"libzstd\.so\.1", "libzstd1", "libzstd", "libzstd1"),
    (r"libsnappy\.so\.1", "libsnappy1v5", "snappy", "libsnappy1"),
    (r"libz\.so\.1", "zlib1g", "zlib", "libz1"),
    (r"libgeos.*\.so\..*", "libgeos-c1v5", "geos", "libgeos_c1"),
    (r"lib(?:c|m|dl|rt|pthread|resolv)\.so\.\d+", "libc6", "glibc", "glibc"),
)
"""Soname -> the package that holds it, by the names of apt, dnf and yum, zypper."""

MANAGERS = ("apt-get", "dnf", "yum", "zypper")


def key_of(name: str) -> str:
    """Name of a row without the accidents of spelling: case, blanks, aliases, `-dev`-less forms."""
    plain = re.sub(r"[`*\s]", "", name).lower()
    return _ALIASES.get(plain, plain)


_ALIASES = {
    "libz4": "lz4",
    "liblz4": "lz4",
    "libgflags": "gflags",
    "protobuf": "libprotobuf",
    "libprotoc": "libprotoc-dev",
    "golang": "go",
    "openssl": "openssl",
}


def known_of(name: str, *, running: bool) -> Known | None:
    """What is known of a row's name; None when nothing is."""
    key = key_of(name)
    return (RUNTIME_CATALOG.get(key) if running else None) or CATALOG.get(key)


def fixes(known: Known, own: str) -> tuple[str, ...]:
    """The command that installs a thing, for every package manager, this machine's own first; () when none does."""
    return () if not known.apt else tuple(f"{manager} install {known.package(manager)}" for manager in _own_first(own))


def library_fixes(soname: str, own: str) -> tuple[str, ...]:
    """The command that installs a shared library, for every package manager; () when its package is not known."""
    for pattern, *names in _LIBRARIES:
        if match := re.fullmatch(pattern, soname):
            apt, rpm, zypper = (match.expand(name) for name in names)
            return fixes(Known(apt=apt, rpm=rpm, zypper=zypper), own)
    return ()


def _own_first(own: str) -> tuple[str, ...]:
    return tuple(sorted(MANAGERS, key=lambda manager: manager != own))
