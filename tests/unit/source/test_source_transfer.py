from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from kwdb_build.source.checkout import place_name
from kwdb_build.source.diagnosis import parse_speed
from kwdb_build.source.objects import damaged_packs, parse_files
from kwdb_build.source.transfer import Board, figures
from tests.unit.source.sourcebox import Notes

MIB = 1 << 20


@pytest.mark.parametrize(
    ("line", "size", "speed"),
    [
        ("Receiving objects:  24% (16038/66823), 26.00 MiB | 5.50 MiB/s", 26 * MIB, 5.5 * MIB),
        ("Receiving objects: 100% (3/3), 512 bytes | 512.00 KiB/s, done.", 512, 512 * 1024),
        ("Receiving objects: 100% (3/3), 1.50 GiB, done.", 1.5 * (1 << 30), 0),
        ("Resolving deltas: 100% (3/3), done.", 0, 0),
    ],
)
def test_bytes_and_speed(line: str, size: float, speed: float) -> None:
    assert parse_speed(line) == (size, speed)


def test_one_transfer_and_then_two_in_one_line() -> None:
    now, said = [0.0], Notes()
    board = Board(said, clock=lambda: now[0])
    main = board.open("main")
    main.update("receiving objects", done=0, total=100, size_bytes=0, speed=0)
    now[0] = 10
    main.update("receiving objects", done=25, total=100, size_bytes=5 * MIB, speed=MIB / 2)
    assert said.updates[-1] == ("5.0 MiB, 512.0 KiB/s, 30 s left, main: receiving objects", 0.25, 1)
    vendor = board.open("kwbase/vendor")
    vendor.update("receiving objects", done=50, total=100, size_bytes=MIB, speed=MIB)
    assert said.updates[-1][0] == "6.0 MiB, 1.5 MiB/s, 30 s left, main 25 %, vendor 50 %"
    assert said.updates[-1][1:] == (0.75, 2)
    main.close()
    vendor.update("receiving objects", done=100, total=100, size_bytes=2 * MIB, speed=MIB)
    assert said.updates[-1] == ("2.0 MiB, kwbase/vendor: receiving objects", 1.0, 1)
    vendor.note("taken from /x")
    assert said.notes == ["kwbase/vendor: taken from /x"]


def test_requests_of_a_larger_whole_count_on() -> None:
    said = Notes()
    channel = Board(said, clock=lambda: 0.0).open("main")
    channel.within(1500, 3000, 10 * MIB)
    channel.update("receiving objects", done=750, total=1500, size_bytes=2 * MIB)
    channel.update("resolving deltas", done=1, total=2)
    assert len(said.updates) == 1
    assert said.updates[0][0].startswith("12.0 MiB, main: receiving objects")
    assert said.updates[0][1] == 0.75


def test_figures_that_are_not_known_are_left_out() -> None:
    assert figures(0, 0, None) == []


def test_files_of_a_tree_without_what_is_skipped() -> None:
    oid = "d63ad876f83bb3a0d561824349834aa8786cb9a9"
    listing = "".join(
        f"{mode} {oid}\t{path}\0" for mode, path in (
            ("100644 blob", "qa/x"), ("100644 blob", "qa.txt"), ("160000 commit", "kwbase/vendor"),
            ("120000 blob", "a\nb\tc"), ("100644 blob", "deep/qa/x"), ("100644 blob", "a/fixtures/y"),
        )
    )
    assert [file.path for file in parse_files(listing, ("qa", "a/fixtures"))] == ["qa.txt", "a\nb\tc", "deep/qa/x"]


def test_places_differ_when_their_contents_do() -> None:
    tips = {"kwbase/vendor": "a" * 40}
    names = {
        place_name("c"), place_name("c", skip=()), place_name("c", skip=("qa",)), place_name("c", tips=tips),
        place_name("c", tips={"kwbase/vendor": "b" * 40}), place_name("c", skip=(), tips=tips),
    }
    assert len(names) == 6
    assert place_name("c") == "c"


def test_damaged_packs(tmp_path: Path) -> None:
    directory = tmp_path / "objects" / "pack"
    directory.mkdir(parents=True)
    content = b"PACK and more"
    good = content + hashlib.sha1(content).digest()  # noqa: S324  # git's own
    for name in ("pack-a.pack", "pack-a.idx"):
        (directory / name).write_bytes(good)
    assert damaged_packs(tmp_path) == ()
    (directory / "pack-a.pack").write_bytes(good.replace(b"more", b"less"))
    assert damaged_packs(tmp_path) == (directory / "pack-a.pack",)
    (directory / "pack-a.pack").write_bytes(good[:15])
    (directory / "pack-a.idx").unlink()
    assert damaged_packs(tmp_path) == (directory / "pack-a.pack", directory / "pack-a.idx")
