from __future__ import annotations

import fcntl
import hashlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kwdb_build.build import caches
from kwdb_build.model import Toolchain
from tests.notes import Notes

if TYPE_CHECKING:
    from collections.abc import Callable

TOOLCHAIN = Toolchain(
    name="t", path=Path("/t"), distribution="debian", release="12", architecture="amd64", packages=(),
    locked_packages=(), wheels=(), environment={}, serves="", lock_digest="d" * 64,
)


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., tuple[Path | None, list[str]]]:
    def call(limit_bytes: int = 1 << 30) -> tuple[Path | None, list[str]]:
        notes = Notes()
        with caches.opened(
            tmp_path / "cache", TOOLCHAIN, uid=os.geteuid(), gid=os.getegid(), limit_bytes=limit_bytes, progress=notes
        ) as place:
            return place, notes.notes

    return call


def entry(go: Path, content: bytes, *, mtime: float = 1e9) -> Path:
    name = hashlib.sha256(content).hexdigest()
    path = go / name[:2] / f"{name}-d"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (mtime, mtime))
    return path


def test_a_new_cache_belongs_to_the_builds_user_alone(opened: Callable[..., tuple[Path | None, list[str]]]) -> None:
    place, notes = opened()
    assert place is not None
    assert notes == []
    for part in (place, place / "go", place / "ccache", place.parent):
        assert part.stat().st_mode & 0o077 == 0
    assert caches.place_of(place.parents[1], TOOLCHAIN) == place.parent


@pytest.mark.parametrize("part", [".", "data", "data/go", "data/ccache"])
@pytest.mark.parametrize("harm", ["writable", "foreign", "link"])
def test_what_others_could_have_written_is_not_used(
    opened: Callable[..., tuple[Path | None, list[str]]], tmp_path: Path, part: str, harm: str
) -> None:
    place, _ = opened()
    assert place is not None
    path = place.parent / part
    if harm == "writable":
        path.chmod(0o770)
    elif harm == "foreign":
        if os.geteuid() != 0:
            pytest.skip("needs root to give a directory away")
        os.chown(path, 12345, 12345)
    else:
        path.rename(tmp_path / "moved")
        path.symlink_to(tmp_path / "moved")
    again, notes = opened()
    assert again is None
    assert str(path.resolve() if harm != "link" else path.absolute()) in notes[0].replace("/./", "/") or part == "."
    assert "not used" in notes[0]


def test_damaged_entries_of_go_are_removed_before_a_build(
    opened: Callable[..., tuple[Path | None, list[str]]]
) -> None:
    place, _ = opened()
    assert place is not None
    good, bad, cut = (entry(place / "go", content) for content in (b"good", b"bad", b"cut off"))
    bad.write_bytes(b"b4d")
    cut.write_bytes(b"")
    other = bad.with_name(bad.name[:-1] + "a")
    other.write_text("v1 an action, which Go reads for itself")
    _, notes = opened()
    assert good.exists()
    assert other.exists()
    assert not bad.exists()
    assert not cut.exists()
    assert notes[0].startswith("2 damaged entries")


def test_what_is_done_meanwhile_is_done_once_whatever_becomes_of_the_check(
    opened: Callable[..., tuple[Path | None, list[str]]], tmp_path: Path
) -> None:
    place, _ = opened()
    assert place is not None

    class StoppedError(Exception):
        pass

    def open_with(meanwhile: Callable[[], None]) -> Path | None:
        with caches.opened(
            tmp_path / "cache", TOOLCHAIN, uid=os.geteuid(), gid=os.getegid(), limit_bytes=1 << 30, progress=Notes(),
            meanwhile=meanwhile,
        ) as found:
            return found

    def stop() -> None:
        raise StoppedError

    bad, calls = entry(place / "go", b"bad"), []
    bad.write_bytes(b"b4d")
    with pytest.raises(StoppedError):
        open_with(stop)
    assert not bad.exists(), "the check came to its end"
    assert open_with(lambda: calls.append("sound")) == place, "nothing holds the lock"
    with place.parent.with_name(f"{place.parent.name}.lock").open("rb") as other_build:
        fcntl.flock(other_build, fcntl.LOCK_SH)
        assert open_with(lambda: calls.append("in use")) == place
    place.parent.chmod(0o777)
    assert open_with(lambda: calls.append("distrusted")) is None
    assert calls == ["sound", "in use", "distrusted"]


def test_a_cache_in_use_is_not_looked_after(opened: Callable[..., tuple[Path | None, list[str]]]) -> None:
    place, _ = opened()
    assert place is not None
    half_written = entry(place / "go", b"whole")
    half_written.write_bytes(b"half")
    with place.parent.with_name(f"{place.parent.name}.lock").open("rb") as other_build:
        fcntl.flock(other_build, fcntl.LOCK_SH)
        assert opened()[1] == []
        assert half_written.exists()
        assert caches.remove(place.parent) is False
    assert opened()[1] != []
    assert caches.remove(place.parent) is True
    assert caches.remove(place.parent) is False, "there is nothing any more"
    assert not place.exists()


def test_what_a_build_has_stays_whoever_removes_meanwhile(
    opened: Callable[..., tuple[Path | None, list[str]]], tmp_path: Path
) -> None:
    """Builds that begin at the very moment of a removal, again and again."""
    root = tmp_path / "cache"
    ended = threading.Event()
    removed = 0

    def remove() -> None:
        nonlocal removed
        while not ended.is_set():
            removed += caches.remove(caches.place_of(root, TOOLCHAIN))

    def build(number: int) -> None:
        with caches.opened(
            root, TOOLCHAIN, uid=os.geteuid(), gid=os.getegid(), limit_bytes=1 << 30, progress=Notes()
        ) as place:
            assert place is not None
            kept = place / "ccache" / str(number)
            kept.write_bytes(b"")
            time.sleep(0.002)
            assert kept.exists()

    opened()
    remover = threading.Thread(target=remove)
    remover.start()
    try:
        with ThreadPoolExecutor(3) as pool:
            for first in range(0, 150, 3):  # in between there is a moment without a build
                list(pool.map(build, range(first, first + 3)))
    finally:
        ended.set()
        remover.join()
    assert removed > 0
    assert [facts.name for facts in caches.listed(root)] in ([], [caches.place_of(root, TOOLCHAIN).name])


def test_caches_are_listed_while_a_compiler_writes_and_removes_in_them(
    opened: Callable[..., tuple[Path | None, list[str]]], tmp_path: Path
) -> None:
    place, _ = opened()
    assert place is not None
    ended = threading.Event()

    def compile_all() -> None:
        while not ended.is_set():
            for number in range(50):
                (place / "ccache" / f"{number}.tmp").write_bytes(b"x")
            for number in range(50):
                (place / "ccache" / f"{number}.tmp").unlink()

    compiler = threading.Thread(target=compile_all)
    compiler.start()
    try:
        for _ in range(200):
            [facts] = caches.listed(tmp_path / "cache")
            assert facts.ccache_bytes <= 50
    finally:
        ended.set()
        compiler.join()


def test_what_was_not_used_for_long_goes_first(opened: Callable[..., tuple[Path | None, list[str]]]) -> None:
    place, _ = opened()
    assert place is not None
    old, middle, new = (
        entry(place / "go", bytes([number]) * 1000, mtime=1e9 + number) for number in (1, 2, 3)
    )
    opened(limit_bytes=9000)
    assert [path.exists() for path in (old, middle, new)] == [False, True, True]
    [facts] = caches.listed(place.parents[1])
    assert (facts.go_bytes, facts.ccache_bytes) == (2000, 0)


def test_linked_programs_count_and_go_with_gos_share(opened: Callable[..., tuple[Path | None, list[str]]]) -> None:
    place, _ = opened()
    assert place is not None
    for number, name in enumerate(("optgen", "execgen")):
        (place / "go/linked" / name).mkdir(parents=True)
        (place / "go/linked" / name / "0").write_bytes(bytes(1000))
        os.utime(place / "go/linked" / name / "0", (1e9 + number, 1e9 + number))
    (place / "go/linked/optgen/.new.17").write_bytes(b"of a build that was killed")
    os.utime(place / "go/linked/optgen/.new.17", (1, 1))
    opened(limit_bytes=6000)
    assert sorted(str(path.relative_to(place / "go/linked")) for path in place.glob("go/linked/*/*")) == ["execgen/0"]
    [facts] = caches.listed(place.parents[1])
    assert facts.go_bytes == 1000
