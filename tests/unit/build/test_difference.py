from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kwdb_build.build.difference import Difference, Marks, compare, diffoscope, first_difference
from kwdb_build.build.elf import sections_of

NOW = 1_800_000_000.0
MARKS = Marks(words=(("host name", "kwdb-build", "another-machine"), ("user id", "65532", "54321")),
              clock=(NOW, NOW + 9e7))


def pair(tmp_path: Path, one: bytes, other: bytes, name: str = "bin/x") -> Difference:
    for directory, data in (("one", one), ("other", other)):
        path = tmp_path / directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    [found] = compare(tmp_path / "one", tmp_path / "other", MARKS)
    return found


def test_equal_directories_have_no_difference(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("the same")
    (tmp_path / "one" / "manifest.json").write_text("of the store")
    assert compare(tmp_path / "one", tmp_path / "other", MARKS, ignore=frozenset({"manifest.json"})) == ()
    [extra] = compare(tmp_path / "one", tmp_path / "other", MARKS)
    assert (extra.path, extra.what) == ("manifest.json", "only in the first build")
    (tmp_path / "other" / "x").chmod(0o755)
    assert "mode" in compare(tmp_path / "one", tmp_path / "other", MARKS)[-1].what


@pytest.mark.parametrize(
    ("one", "other", "cause"),
    [
        (b"built on kwdb-build here", b"built on another-machine here", "the host name of the build machine"),
        (b"made by 65532", b"made by 54321", "the user id of the build machine"),
        (b"at " + time.strftime("%Y/%m/%d %H:%M:%S", time.gmtime(NOW)).encode(),
         b"at " + time.strftime("%Y/%m/%d %H:%M:%S", time.gmtime(NOW + 9e7)).encode(), "the time of the build"),
        (b"stamp=1800000055;", b"stamp=1890000071;", "the time of the build"),
        (b"dir /tmp/go-build123/b001 end", b"dir /tmp/go-build777/b001 end", "/tmp/go-build777/b001"),
        (b"alpha\0beta\0gamma\0", b"gamma\0alpha\0beta\0", "order"),
        (b"abc\x01\x02", b"abc\x03\x04", "not found out"),
    ],
)
def test_the_likely_cause_is_named(tmp_path: Path, one: bytes, other: bytes, cause: str) -> None:
    found = pair(tmp_path, one, other)
    assert cause in "; ".join(found.causes)
    assert found.what.startswith("the content differs")


def test_the_first_difference_is_shown_with_its_text(tmp_path: Path) -> None:
    found = pair(tmp_path, b"\0\0on kwdb-build\0", b"\0\0on another-machine\0")
    assert found.offset == 5
    assert "'on kwdb-build" in found.first
    assert "'on another-machine" in found.second
    assert "61 6e" in found.second
    assert "at 0x5" in str(found)


@pytest.mark.parametrize(("one", "other", "offset"), [(b"abc", b"abd", 2), (b"abc", b"abcd", 3), (b"", b"x", 0)])
def test_first_difference(one: bytes, other: bytes, offset: int) -> None:
    assert first_difference(one, other) == offset


def test_the_sections_of_an_elf_file_are_told_apart(tmp_path: Path) -> None:
    data = bytearray(Path(sys.executable).resolve().read_bytes())
    sections = sections_of(bytes(data))
    assert {".text", ".rodata"} <= sections.keys()
    changed = bytearray(data)
    place = data.index(sections[".text"])
    changed[place + 100] ^= 0x01
    found = pair(tmp_path, bytes(data), bytes(changed))
    assert found.sections == (".text",)
    assert found.offset == 100
    assert sections_of(b"no elf") == {}


@pytest.mark.skipif(shutil.which("gcc") is None or shutil.which("as") is None, reason="needs gcc")
def test_objects_that_were_linked_in_another_order_are_called_so(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.c").write_text(f"int of_{name}(int x) {{ return x * {ord(name)}; }}\n")
    for target, order in (("one", "ab"), ("other", "ba")):
        (tmp_path / target).mkdir()
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-o", f"{target}/lib.so", *(f"{name}.c" for name in order)], cwd=tmp_path,
            check=True,
        )
    [found] = compare(tmp_path / "one", tmp_path / "other", MARKS)
    assert ".text" in found.sections
    assert found.causes[0].startswith("order:")


def test_without_diffoscope_there_is_no_answer_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert diffoscope(tmp_path, tmp_path, tmp_path / "log") == ""


def test_diffoscopes_answer_is_taken_and_its_failure_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "diffoscope"
    program.write_text('#!/bin/sh\nwhile [ "$1" != --text ]; do shift; done\necho "-a +b" > "$2"; exit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert diffoscope(tmp_path, tmp_path, tmp_path / "log") == "-a +b"
    program.write_text("#!/bin/sh\necho broken >&2; exit 2\n")
    (tmp_path / "log").write_text("")
    assert "broken" in diffoscope(tmp_path, tmp_path, tmp_path / "log")
