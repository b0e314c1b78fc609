from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kwdb_build.build.elf import drop_build_paths, highest, provided_versions, read_elf
from kwdb_build.build.host import (
    Floor,
    HostFacts,
    check_links,
    foreseen_links,
    glibc_floor,
    host_facts,
    host_supports,
    loader_row,
    parse_loader_cache,
)
from kwdb_build.errors import ArtifactError
from kwdb_build.files import manifest_of
from kwdb_build.model import Artifact, BuildKey, Verdict, Version
from kwdb_build.upgrade.workshop import require_runs_here

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc to make real ELF files with")


def compiled(tmp_path: Path, *, runpath: str, dtags: str = "--enable-new-dtags") -> Path:
    """An installed tree whose program needs a library of its own, linked as KWDB links."""
    build, install = tmp_path / "build" / "lib", tmp_path / "install"
    for directory in (build, install / "bin", install / "lib"):
        directory.mkdir(parents=True)
    (tmp_path / "two.c").write_text("int two(void) { return 2; }\n")
    (tmp_path / "main.c").write_text(
        '#include <stdio.h>\nint two(void);\nint main(void) { printf("%d\\n", two()); return 0; }\n'
    )
    library = build / "libcommon.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-Wl,-soname,libcommon.so", "-o", library, tmp_path / "two.c"], check=True)
    shutil.copy(library, install / "lib")
    program = install / "bin" / "kwbase"
    subprocess.run(
        ["gcc", "-o", program, tmp_path / "main.c", f"-L{build}", "-lcommon", f"-Wl,{dtags},-rpath,{runpath}"], check=True
    )
    return program


def loaded_from(program: Path) -> str:
    done = subprocess.run(["ldd", program], check=True, capture_output=True, text=True, env={"LC_ALL": "C"})
    return next((line.split()[2] for line in done.stdout.splitlines() if "libcommon" in line and "=>" in line), "")


@needs_gcc
@pytest.mark.parametrize("dtags", ["--enable-new-dtags", "--disable-new-dtags"])
def test_a_program_no_longer_loads_the_libraries_of_its_build_directory(tmp_path: Path, dtags: str) -> None:
    build = tmp_path / "build" / "lib"
    program = compiled(tmp_path, runpath=f"{build}:/nowhere//x:$ORIGIN/../lib:$ORIGIN", dtags=dtags)
    before = program.read_bytes()
    assert loaded_from(program) == str(build / "libcommon.so"), "this is the trap"
    assert drop_build_paths(program) == (str(build), "/nowhere//x")
    facts = read_elf(program)
    assert facts.runpath == ("$ORIGIN/../lib", "$ORIGIN")
    assert facts.rpath is (dtags == "--disable-new-dtags")
    assert "libcommon.so" in facts.needed
    assert Path(loaded_from(program)).samefile(tmp_path / "install" / "lib" / "libcommon.so")
    assert subprocess.run([program], check=True, capture_output=True, text=True).stdout == "2\n"
    changed = [index for index, (old, new) in enumerate(zip(before, program.read_bytes(), strict=True)) if old != new]
    assert 1 <= len(changed) <= 8, "one number in the dynamic section"
    assert drop_build_paths(program) == (), "twice is once"


@needs_gcc
@pytest.mark.parametrize("runpath", ["$ORIGIN/../lib", "/somewhere/else", "$ORIGIN/../lib:/somewhere"])
def test_a_program_that_looks_beside_itself_or_nowhere_near_is_left_alone(tmp_path: Path, runpath: str) -> None:
    program = compiled(tmp_path, runpath=runpath)
    before = program.read_bytes()
    assert drop_build_paths(program) == ()
    assert program.read_bytes() == before


@needs_gcc
def test_the_floor_of_a_real_build(tmp_path: Path) -> None:
    program = compiled(tmp_path, runpath="$ORIGIN/../lib")
    root = program.parents[1]
    artifact = Artifact(
        key=BuildKey.of({}), path=root, version=Version.parse("V1.0.0"), commit="", files=manifest_of(root)
    )
    floor = glibc_floor(artifact)
    assert floor.glibc
    assert floor.libraries == ("libc.so.6",), "its own library is no need of the host"
    results = host_supports(floor, host_facts())
    assert [result.verdict for result in results] == [Verdict.OK] * 3, results
    newer = dataclasses.replace(floor, glibc="99.1", libraries=("libc.so.6", "libnot-there.so.1"))
    refused = host_supports(newer, host_facts())
    assert [result.verdict for result in refused] == [Verdict.FAIL, Verdict.OK, Verdict.FAIL]
    assert "libnot-there.so.1" in refused[2].found


def test_a_file_that_is_no_elf(tmp_path: Path) -> None:
    file = tmp_path / "kwbase"
    for content in (b"", b"#!/bin/sh\n", b"\x7fELF"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="no ELF"):
            read_elf(file)


def test_the_interpreter_that_runs_this_test_is_an_elf_file() -> None:
    facts = read_elf(Path(sys.executable).resolve())
    assert facts.machine.startswith("EM_")
    assert facts.versions["GLIBC"] >= (2, 2)


def test_versions_are_numbers_and_not_text() -> None:
    assert highest(["GLIBC_2.9", "GLIBC_2.34", "GLIBC_2.2.5", "GLIBC_PRIVATE", "OTHER_9"]) == {"GLIBC": (2, 34)}


def test_what_libstdcxx_of_this_host_offers() -> None:
    facts = host_facts()
    assert facts.glibc
    if facts.glibcxx:
        found = [Path(place) for place in ("/usr/lib/x86_64-linux-gnu/libstdc++.so.6",) if Path(place).exists()]
        for library in found:
            assert provided_versions(library)["GLIBCXX"] >= (3, 4)


@pytest.mark.parametrize(
    ("floor", "host", "verdicts"),
    [
        (Floor(glibc="2.34", glibcxx="3.4.30"), HostFacts(glibc="2.36", glibcxx="3.4.30", libraries=frozenset()),
         [Verdict.OK, Verdict.OK, Verdict.OK]),
        (Floor(glibc="2.34", glibcxx="3.4.30"), HostFacts(glibc="2.31", glibcxx="3.4.9", libraries=frozenset()),
         [Verdict.FAIL, Verdict.FAIL, Verdict.OK]),
        (Floor(glibc="2.34", glibcxx="3.4.30"), HostFacts(), [Verdict.UNKNOWN, Verdict.UNKNOWN, Verdict.UNKNOWN]),
        (Floor(), HostFacts(), [Verdict.OK, Verdict.OK, Verdict.UNKNOWN]),
    ],
)
def test_a_floor_against_a_host(floor: Floor, host: HostFacts, verdicts: list[Verdict]) -> None:
    assert [result.verdict for result in host_supports(floor, host)] == verdicts


CACHE = """\
4 libs found in cache `/etc/ld.so.cache'
\tlibz.so.1 (libc6,x86-64) => /lib/x86_64-linux-gnu/libz.so.1
\tlibz.so.1 (libc6) => /lib/i386-linux-gnu/libz.so.1
\tlibold.so.5 (libc6) => /lib/i386-linux-gnu/libold.so.5
\tld-linux-x86-64.so.2 (libc6,x86-64) => /lib64/ld-linux-x86-64.so.2
Cache generated by: ldconfig (Debian GLIBC 2.36-9) stable release version 2.36
"""


def test_the_loaders_cache() -> None:
    assert parse_loader_cache(CACHE, "x86_64") == {
        "libz.so.1": "/lib/x86_64-linux-gnu/libz.so.1", "ld-linux-x86-64.so.2": "/lib64/ld-linux-x86-64.so.2",
    }


def built(install: Path) -> Artifact:
    return Artifact(
        key=BuildKey.of({}), path=install, version=Version.parse("V3.2.1"), commit="0" * 40, files=manifest_of(install)
    )


@needs_gcc
@pytest.mark.skipif(shutil.which("ldd") is None, reason="no ldd")
def test_the_loader_itself_says_what_is_missing(tmp_path: Path) -> None:
    compiled(tmp_path, runpath="$ORIGIN/../lib")
    install = tmp_path / "install"
    assert {row.verdict for row in check_links(built(install), host_facts())} == {Verdict.OK}
    # Its own library now needs one that no host has.
    (tmp_path / "three.c").write_text("int three(void) { return 3; }\n")
    for name in ("libprotobuf.so.99", "libnobody.so.1"):
        subprocess.run(
            ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", tmp_path / name, tmp_path / "three.c"], check=True
        )
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-Wl,--no-as-needed", "-Wl,-soname,libcommon.so", "-o", install / "lib/libcommon.so",
         tmp_path / "two.c", tmp_path / "libprotobuf.so.99", tmp_path / "libnobody.so.1"], check=True,
    )
    row = check_links(built(install), host_facts())[-1]
    assert (row.verdict, row.found) == (Verdict.FAIL, "missing: libnobody.so.1; missing: libprotobuf.so.99")
    assert "apt-get install libprotobuf99" in row.fixes
    assert "dnf install protobuf" in row.fixes
    with pytest.raises(ArtifactError, match=r"this host cannot load V3\.2\.1") as caught:
        require_runs_here(built(install))
    assert "libprotobuf.so.99" in caught.value.context
    assert "install" in caught.value.hint
    assert "--toolchain" in caught.value.hint


def test_a_loader_that_finds_too_old_versions() -> None:
    answer = (
        "./kwbase: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.38' not found (required by ./kwbase)\n"
        "\tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x0)\n"
    )
    row = loader_row(("libm.so.6",), answer)
    assert (row.verdict, row.found) == (Verdict.FAIL, "too old: GLIBC_2.38 (for kwbase)")
    assert loader_row(("libm.so.6",), "\tlibm.so.6 => /lib/libm.so.6 (0x0)\n").verdict is Verdict.OK
    assert loader_row(("libm.so.6",), "exited with unknown exit code (139)").verdict is Verdict.UNKNOWN


def test_a_library_that_the_build_will_link_and_this_host_has_under_another_name() -> None:
    row, = foreseen_links(("libc6", "libprotobuf23", "libprotobuf-dev"), frozenset({"libprotobuf.so.32", "libz.so.1"}))
    assert (row.name, row.verdict, row.found) == (
        "libprotobuf.so.23 (foreseen)", Verdict.WARN, "this host has libprotobuf.so.32"
    )
    assert "apt-get install libprotobuf23" in row.fixes
    assert foreseen_links(("libprotobuf23",), frozenset({"libprotobuf.so.23"})) == ()
    assert foreseen_links(("libprotobuf23",), None) == ()
    assert foreseen_links(("libc6",), frozenset()) == ()
