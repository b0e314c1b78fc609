from __future__ import annotations

import pytest

from kwdb_build.model import CheckResult, Verdict
from kwdb_build.toolchain.check import check, package_version, tool_version
from kwdb_build.toolchain.probe import parse_probe, tools_asked_for
from kwdb_build.toolchain.requirements import Phase, Requirement, Requirements

# As the probe printed it in an image of Debian 12, shortened.
RECORDED = """\
@tool cmake
cmake version 3.25.1

CMake suite maintained and supported by Kitware
@tool g++
g++ (Debian 12.2.0-14+deb12u1) 12.2.0
Copyright (C) 2022 Free Software Foundation, Inc.
@tool gcc
gcc (Debian 12.2.0-14+deb12u1) 12.2.0
@tool git
git version 2.39.5
@tool go
go version go1.22.10 linux/amd64
@tool make
GNU Make 4.3
Built for x86_64-pc-linux-gnu
@tool odd
no idea
@packages
ii \tlibssl-dev\t3.0.17-1~deb12u3
ii \tlibncurses-dev:amd64\t6.4-4
ii \tliblz4-dev\t1.9.2-1
ii \tlibprotobuf-dev\t3.21.12-3
rc \tlibgflags-dev\t2.2.2-2
@compiler
libatomic.so\t/usr/lib/gcc/x86_64-linux-gnu/12/libatomic.so
libstdc++.a\t/usr/lib/gcc/x86_64-linux-gnu/12/libstdc++.a
libz.a\tlibz.a
@manager
apt-get
@end
"""
FACTS = parse_probe(RECORDED.splitlines())


def one(row: Requirement, facts: dict[str, str] = FACTS) -> CheckResult:
    (result,) = check(Requirements(rows=(row,)), facts)
    return result


def test_facts_of_a_recorded_probe() -> None:
    assert FACTS["tool:go"] == "go version go1.22.10 linux/amd64"
    assert FACTS["package:libncurses-dev"] == "6.4-4"
    assert "package:libgflags-dev" not in FACTS, "removed, only its configuration is left"
    assert "file:libz.a" not in FACTS, "the compiler answers with the bare name when it has no such file"
    assert FACTS["manager"] == "apt-get"
    assert FACTS["end"] == "yes"


@pytest.mark.parametrize(
    ("answer", "version"),
    [
        ("gcc (Debian 12.2.0-14+deb12u1) 12.2.0\nCopyright (C) 2022", "12.2.0"),
        ("gcc (GCC) 8.5.0 20210514 (Red Hat 8.5.0-4)", "8.5.0"),
        ("go version go1.22.10 linux/amd64", "1.22.10"), ("GNU Make 4.3", "4.3"), ("libprotoc 3.21.12", "3.21.12"),
        ("autoconf (GNU Autoconf) 2.71", "2.71"), ("git version 2.39.5", "2.39.5"), ("1.8.1", "1.8.1"),
        ("OpenSSL 3.0.17 1 Jul 2025 (Library: OpenSSL 3.0.17)", "3.0.17"), ("OpenSSL 1.1.1w  11 Sep 2023", "1.1.1"),
        ("GNU objcopy (GNU Binutils for Debian) 2.40", "2.40"), ("mount from util-linux 2.38.1 (libmount 2.38.1)", "2.38.1"),
        ("no version here", ""), ("", ""),
    ],
)
def test_version_in_a_programs_own_words(answer: str, version: str) -> None:
    assert tool_version(answer) == version


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("1:2.39.5-0+deb12u2", "2.39.5"), ("6.2+20201114-2+deb11u2", "6.2"), ("1:1.2.13.dfsg-1", "1.2.13"),
        ("3.0.17-1~deb12u3", "3.0.17"), ("12.2.0-14", "12.2.0"), ("1.1.1k-12.el8", "1.1.1"), ("unknown", ""),
    ],
)
def test_version_of_a_package(text: str, version: str) -> None:
    assert package_version(text) == version


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        (Requirement(name="Go", where="w", minimum="1.15"), Verdict.OK),
        (Requirement(name="Go", where="w", minimum="1.23"), Verdict.FAIL),
        (Requirement(name="CMake", where="w", minimum="3.26", floor="3.6"), Verdict.WARN),
        (Requirement(name="CMake", where="w", minimum="3.26", floor="3.26"), Verdict.FAIL),
        (Requirement(name="gcc", where="w", minimum="7.3", maximum="13.2"), Verdict.OK),
        (Requirement(name="gcc", where="w", minimum="7.3", maximum="12.1"), Verdict.WARN),
        (Requirement(name="gcc", where="w", maximum="12.2"), Verdict.OK),
        (Requirement(name="gcc", where="w", minimum="12.3"), Verdict.FAIL),
        (Requirement(name="Autoconf", where="w", minimum="2.68"), Verdict.FAIL),
        (Requirement(name="automake", where="w", advisory=True), Verdict.WARN),
        (Requirement(name="libssl", where="w", minimum="1.1.1"), Verdict.OK),
        (Requirement(name="libncurses", where="w", minimum="6.2.0"), Verdict.OK),
        (Requirement(name="libz4", where="w", minimum="1.9.2"), Verdict.OK),
        (Requirement(name="libz4", where="w", minimum="1.9.3"), Verdict.FAIL),
        (Requirement(name="gflags", where="w", minimum="2.2.2"), Verdict.FAIL),
        (Requirement(name="gflags", where="w", minimum="2.2.2", waived="bundled"), Verdict.SKIP),
        (Requirement(name="libz4", where="w", minimum="9", waived="bundled"), Verdict.SKIP),
        (Requirement(name="libprotobuf", where="w", minimum="3.6.1", maximum="3.20.99"), Verdict.WARN),
        (Requirement(name="libatomic", where="w", minimum="7.3.0"), Verdict.OK),
        (Requirement(name="libz.a", where="w"), Verdict.FAIL),
        (Requirement(name="build-essential", where="w"), Verdict.OK),
        (Requirement(name="odd", where="w"), Verdict.OK),
        (Requirement(name="odd", where="w", minimum="1.0"), Verdict.UNKNOWN),
        (Requirement(name="never-heard-of", where="w"), Verdict.UNKNOWN),
        (Requirement(name="Go", where="w", readable=False, note="version 'x' cannot be read"), Verdict.UNKNOWN),
        (Requirement(name="openssl", where="w", minimum="1.1.1", phase=Phase.RUN), Verdict.SKIP),
        (Requirement(name="libprotobuf", where="w", minimum="4", phase=Phase.RUN), Verdict.WARN),
    ],
)
def test_verdicts(row: Requirement, verdict: Verdict) -> None:
    result = one(row)
    assert result.verdict is verdict
    assert result.where == "w"
    assert bool(result.fix) is (verdict in {Verdict.FAIL, Verdict.WARN} and "newer than" not in result.found)


def test_nothing_is_ok_in_an_image_without_facts() -> None:
    rows = tuple(Requirement(name=name, where="w") for name in ("Go", "make", "libssl", "build-essential", "never"))
    bare = check(Requirements(rows=rows), {"end": "yes"})
    assert {result.verdict for result in bare} == {Verdict.FAIL, Verdict.UNKNOWN}
    assert {result.verdict for result in check(Requirements(rows=rows), {})} == {Verdict.UNKNOWN}


@pytest.mark.parametrize(
    ("manager", "fix"),
    [
        ("apt-get", "apt-get install liblz4-dev"), ("dnf", "dnf install lz4-devel"), ("yum", "yum install lz4-devel"),
        ("zypper", "zypper install liblz4-devel"),
    ],
)
def test_the_fix_is_in_the_words_of_the_distribution(manager: str, fix: str) -> None:
    assert one(Requirement(name="lz4", where="w"), {"manager": manager}).fix == fix


def test_a_header_that_no_package_installs() -> None:
    """protobuf keeps it for itself: an advice that names a package would be wrong."""
    name = "google/protobuf/stubs/stringprintf.h"
    row = Requirement(name=name, where="w", advisory=True, note="take it from the sources")
    absent = one(row)
    assert (absent.verdict, absent.fix, absent.fixes) == (Verdict.WARN, "take it from the sources", ())
    facts = parse_probe(["@compiler", f"{name}\t/usr/local/include/{name}", "@end"])
    assert one(row, facts).verdict is Verdict.OK


def test_packages_of_an_rpm_image() -> None:
    facts = parse_probe(["@packages", "ii \topenssl-devel\t1.1.1k-12.el8_9", "@end"])
    assert one(Requirement(name="libssl", where="w", minimum="1.1.1"), facts).verdict is Verdict.OK


def test_only_names_that_can_be_programs_are_asked() -> None:
    rows = tuple(Requirement(name=name, where="w") for name in ("Go", "some-tool", "a b", "-rf", "$(id)", "依赖", "libssl"))
    asked = tools_asked_for(Requirements(rows=rows))
    assert asked == ("ab", "g++", "gcc", "go", "make", "some-tool")


def test_an_answer_cut_off_is_seen() -> None:
    assert "end" not in parse_probe(RECORDED.splitlines()[:10])
