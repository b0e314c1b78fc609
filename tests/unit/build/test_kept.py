"""KWDB's bundled libraries, kept from one build for the next."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kwdb_build.build import kept
from kwdb_build.build.inputs import Dependencies
from kwdb_build.build.sight import OUTSIDE, SEEN
from kwdb_build.console import Progress
from kwdb_build.model import SourceTree, Version
from tests.notes import Notes

SOURCE = Path("src/gitee.com/kwbasedb")
COMMIT_TIME = 1_750_500_000  # 2025-06-21
DIGEST = "d" * 32


@pytest.fixture
def tree(tmp_path: Path) -> SourceTree:
    path = tmp_path / "fetched" / SOURCE
    (path / "kwbase/c-deps/krb5").mkdir(parents=True)
    (path / "kwbase/c-deps/krb5/configure").write_text("came with the source")
    return SourceTree(
        path=path, url="", ref="", commit="0123456789" * 4, version=Version.parse("V3.2.0"), commit_time=COMMIT_TIME,
        submodules=(),
    )


def built(gopath: Path, **more: bytes) -> Path:
    """A working copy after a build."""
    files = {
        "native/rocksdb/librocksdb.a": b"!<arch>", "native/rocksdb/CMakeCache.txt": b"", "native/bin/protoc": b"#!",
        f"{SOURCE}/build/kwdbts2/third_party/brpc/src/brpc-stamp/brpc-build": b"",
        f"{SOURCE}/build/lib/libkwdbts2.so": b"\x7fELF", f"{SOURCE}/kwbase/c-deps/jemalloc/configure": b"made",
        f"{SOURCE}/kwbase/c-deps/krb5/configure": b"came with the source",
        f"{SOURCE}/build/CMakeFiles/3.25.1/CMakeCXXCompiler.cmake": b"what CMake has found",
        f"{SOURCE}/build/CMakeFiles/3.25.1/CMakeSystem.cmake": b"the kernel of this machine",
        f"{SOURCE}/build/CMakeCache.txt": b"//Path\nCMAKE_AR:FILEPATH=/usr/bin/ar\n\n//x\nCOMMIT:STRING=0123456789\n",
    }
    for name, content in {**files, **{name.replace("__", "/"): content for name, content in more.items()}}.items():
        (gopath / name).parent.mkdir(parents=True, exist_ok=True)
        (gopath / name).write_bytes(content)
    (gopath / "native/bin/protoc").chmod(0o755)
    (gopath / "native/empty").mkdir()
    (gopath / "native/lib").symlink_to("rocksdb")
    return gopath


def fresh(gopath: Path) -> Path:
    """A working copy before a build."""
    for name in ("jemalloc", "krb5"):
        (gopath / SOURCE / "kwbase/c-deps" / name).mkdir(parents=True)
    (gopath / SOURCE / "kwbase/c-deps/krb5/configure").write_text("came with the source")
    return gopath


def keep(
    root: Path, digest: str, gopath: Path, tree: SourceTree, progress: Progress, *, limit_bytes: int = 1 << 24,
    narrow: str = "", scratch: Path = Path("/nonexistent"),
) -> str:
    digests = Dependencies(wide=digest, narrow=narrow)
    return kept.keep(root, digests, gopath, scratch, tree, progress, limit_bytes=limit_bytes)


def take(root: Path, gopath: Path, notes: Notes, *, newer_than: int = COMMIT_TIME) -> bool:
    return kept.take(
        root, DIGEST, gopath, uid=os.getuid(), gid=os.getgid(), newer_than=newer_than, progress=notes
    )


@pytest.fixture
def root(tmp_path: Path, tree: SourceTree) -> Path:
    notes = Notes()
    keep(tmp_path / "kept", DIGEST, built(tmp_path / "first"), tree, notes)
    assert notes.notes == []
    return tmp_path / "kept"


def test_the_next_build_finds_them_as_they_were_and_newer_than_its_source(root: Path, tmp_path: Path) -> None:
    assert not (tmp_path / "first/native").exists(), "moved, not copied"
    gopath, notes, now = fresh(tmp_path / "second"), Notes(), int(time.time())
    assert take(root, gopath, notes)
    assert notes.notes == []
    assert (gopath / "native/rocksdb/librocksdb.a").read_bytes() == b"!<arch>"
    assert (gopath / "native/bin/protoc").stat().st_mode & 0o777 == 0o755
    assert (gopath / "native/empty").is_dir()
    assert (gopath / "native/lib").readlink() == Path("rocksdb")
    assert (gopath / SOURCE / "build/kwdbts2/third_party/brpc/src/brpc-stamp/brpc-build").is_file()
    assert (gopath / SOURCE / "kwbase/c-deps/jemalloc/configure").read_bytes() == b"made"
    assert (gopath / SOURCE / "kwbase/c-deps/krb5/configure").read_text() == "came with the source"
    assert not (gopath / SOURCE / "build/lib").exists(), "KWDB's own libraries are built each time"
    [found] = (gopath / SOURCE / "build/CMakeFiles/3.25.1").iterdir()
    assert (found.name, found.stat().st_mtime) == ("CMakeCXXCompiler.cmake", COMMIT_TIME)
    assert (gopath / SOURCE / "build/CMakeCache.txt").read_text() == "//Path\nCMAKE_AR:FILEPATH=/usr/bin/ar\n"
    times = {path.lstat().st_mtime for path in (gopath / "native").rglob("*")}
    assert len(times) == 1, "nothing is older than what it was made from"
    assert (gopath / SOURCE / "kwbase/c-deps/jemalloc/configure").stat().st_mtime == COMMIT_TIME
    assert now <= times.pop() <= time.time() + 1
    third, ahead = fresh(tmp_path / "third"), int(time.time()) + 86_400
    assert take(root, third, notes, newer_than=ahead)
    assert (third / "native/rocksdb/librocksdb.a").stat().st_mtime == ahead + 1, "a commit made where the clock is ahead"


def become_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def become_link(path: Path) -> None:
    path.rename(path.parents[5] / "librocksdb.a")
    path.symlink_to(path.parents[5] / "librocksdb.a")


def say(path: Path, **changed: list[str]) -> None:
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changed))


LIBRARY, MANIFEST = "files/native/rocksdb/librocksdb.a", "manifest.json"
HARMS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "changed": (LIBRARY, lambda path: path.write_bytes(b"!<arcH>")),
    "missing": (LIBRARY, lambda path: path.unlink()),
    "more": ("files/native/rocksdb/more.a", lambda path: path.write_bytes(b"")),
    "manifest": (MANIFEST, lambda path: path.write_text("{")),
    "mode": ("files/native/bin/protoc", lambda path: path.chmod(0o644)),
    "a directory": (LIBRARY, become_directory),
    "a link": (LIBRARY, become_link),
    "outside": (MANIFEST, lambda path: say(path, directories=["../outside"])),
    "other place": (MANIFEST, lambda path: say(path, places=["native", "src"])),
    "up": (MANIFEST, lambda path: say(path, directories=["native/../../outside"])),
}


@pytest.mark.parametrize("harm", HARMS)
def test_what_is_damaged_is_removed_and_built_anew(root: Path, tree: SourceTree, tmp_path: Path, harm: str) -> None:
    name, do = HARMS[harm]
    do(root / DIGEST / name)
    gopath, notes = fresh(tmp_path / "second"), Notes()
    assert not take(root, gopath, notes)
    assert ["damaged" in note for note in notes.notes] == [True]
    assert not (gopath / "native").exists()
    assert not (tmp_path / "outside").exists()
    assert not (root / DIGEST).exists()
    keep(root, DIGEST, built(tmp_path / "third"), tree, notes)
    assert take(root, fresh(tmp_path / "fourth"), notes)


@pytest.mark.parametrize("left", ["files", "nothing", "a file"])
def test_what_is_left_of_an_entry_makes_room_for_a_whole_one(
    root: Path, tree: SourceTree, tmp_path: Path, left: str
) -> None:
    (root / DIGEST / "manifest.json").unlink()
    if left != "files":
        shutil.rmtree(root / DIGEST)
    if left == "a file":
        (root / DIGEST).write_text("")
    assert not take(root, fresh(tmp_path / "second"), Notes())
    keep(root, DIGEST, built(tmp_path / "third"), tree, Notes())
    assert take(root, fresh(tmp_path / "fourth"), Notes())


def test_what_is_changed_after_it_was_checked_is_not_taken(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a build could that has the file open for writing."""
    real = kept.check_manifest

    def check_and_change(*arguments: Any, **named: Any) -> None:
        real(*arguments, **named)
        (root / DIGEST / "files/native/rocksdb/librocksdb.a").write_bytes(b"!<evil>")

    monkeypatch.setattr(kept, "check_manifest", check_and_change)
    gopath = fresh(tmp_path / "second")
    assert not take(root, gopath, Notes())
    assert not (gopath / "native").exists()


def test_a_link_that_comes_after_the_check_is_not_followed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = kept.check_manifest
    library = root / DIGEST / "files/native/rocksdb/librocksdb.a"

    def check_and_link(*arguments: Any, **named: Any) -> None:
        real(*arguments, **named)
        library.rename(tmp_path / "same bytes")
        library.symlink_to(tmp_path / "same bytes")

    monkeypatch.setattr(kept, "check_manifest", check_and_link)
    assert not take(root, fresh(tmp_path / "second"), Notes())


def test_directories_are_ours_so_that_a_build_that_holds_one_changes_nothing(root: Path) -> None:
    for path in (root / DIGEST).rglob("*"):
        if path.is_dir() and not path.is_symlink():
            info = path.stat()
            assert (info.st_uid, info.st_mode & 0o022) == (os.geteuid(), 0)


def test_what_takes_too_much_room_is_not_even_read(tmp_path: Path, tree: SourceTree) -> None:
    gopath, notes = built(tmp_path / "first"), Notes()
    os.truncate(gopath / "native/rocksdb/CMakeCache.txt", 4 << 40)
    keep(tmp_path / "kept", DIGEST, gopath, tree, notes, limit_bytes=1 << 30)
    assert ["of at most 1.0 GiB" in note for note in notes.notes] == [True]
    assert not (tmp_path / "kept").exists()


def test_an_entry_that_another_process_removes_meanwhile_is_no_failure(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = kept.check_manifest

    def check_and_lose(*arguments: Any, **named: Any) -> None:
        real(*arguments, **named)
        kept.prune(root, 0)

    monkeypatch.setattr(kept, "check_manifest", check_and_lose)
    gopath = fresh(tmp_path / "second")
    assert not take(root, gopath, Notes())
    assert sorted(path.name for path in gopath.iterdir()) == ["src"]
    assert not (gopath / SOURCE / "build/kwdbts2/third_party").exists()


@pytest.mark.parametrize(("content", "said"), [
    (b"compiled at Jun 21 2025 10:00", "date"), (b'rev="0123456"', "name"), (b"epoch 1750500000", "time"),
    (b"2025-06-21", "date"), (b"20250621", "date"), (b"2025/06/21", "date"),
])
def test_what_shows_its_commit_serves_no_other_one(
    tmp_path: Path, tree: SourceTree, content: bytes, said: str
) -> None:
    notes = Notes()
    gopath = built(tmp_path / "first", native__rocksdb__version=b"\0" * ((1 << 20) - 4) + content)
    keep(tmp_path / "kept", DIGEST, gopath, tree, notes)
    assert [f"native/rocksdb/version holds the {said} of this commit" in note for note in notes.notes] == [True]
    assert not take(tmp_path / "kept", fresh(tmp_path / "second"), notes)


def test_what_is_no_file_is_not_kept(tmp_path: Path, tree: SourceTree) -> None:
    notes, gopath = Notes(), built(tmp_path / "first")
    os.mkfifo(gopath / "native/pipe")
    keep(tmp_path / "kept", DIGEST, gopath, tree, notes)
    assert ["native/pipe is no regular file" in note for note in notes.notes] == [True]


def test_a_process_that_is_killed_while_it_keeps_leaves_nothing_half(tmp_path: Path, tree: SourceTree) -> None:
    root, gopath = tmp_path / "kept", built(tmp_path / "first")
    read_end, write_end = os.pipe()
    if not (child := os.fork()):
        kept.manifest_of = lambda _: (os.write(write_end, b"x"), signal.pause())  # type: ignore[assignment]
        keep(root, DIGEST, gopath, tree, Progress())
        os._exit(1)
    assert os.read(read_end, 1) == b"x"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert [path.name.startswith(".new-") for path in root.iterdir() if path.is_dir()] == [True]
    assert not take(root, fresh(tmp_path / "second"), Notes())
    assert kept.prune(root, 0) == 0
    keep(root, DIGEST, built(tmp_path / "third"), tree, Progress())
    assert sorted(path.name for path in root.iterdir() if path.is_dir()) == [DIGEST]
    assert take(root, fresh(tmp_path / "fourth"), Notes())


@pytest.mark.parametrize("outside", [True, False])
def test_the_wide_digest_is_for_what_could_look_outside(tmp_path: Path, tree: SourceTree, *, outside: bool) -> None:
    narrow, scratch = "n" * 32, tmp_path / "scratch"
    scratch.mkdir()
    (scratch / SEEN).write_text("/kwdb/native/rocksdb/db.o\n")
    if outside:
        (scratch / OUTSIDE).write_text("../../common\n")
    gopath = built(tmp_path / "first", **{"native__rocksdb__db.o": b"\x7fELF"})
    (gopath / "native/rocksdb/librocksdb.a").write_bytes(b"!<arch>\n")
    reason = keep(tmp_path / "kept", DIGEST, gopath, tree, Notes(), narrow=narrow, scratch=scratch)
    assert reason == ("a compiler could look at ../../common" if outside else "")
    assert [path.name for path in (tmp_path / "kept").glob("[!.]*")] == [DIGEST if outside else narrow]
    (scratch / OUTSIDE).unlink(missing_ok=True)
    keep(tmp_path / "kept", DIGEST, built(tmp_path / "second"), tree, Notes(), narrow=narrow, scratch=scratch)
    assert len(list((tmp_path / "kept").glob("[!.]*"))) == 1, "what was taken from the one is not made the other"


def test_links_lead_nowhere(root: Path, tree: SourceTree, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    gopath = fresh(tmp_path / "second")
    (gopath / SOURCE / "build").symlink_to(elsewhere)
    assert not take(root, gopath, Notes())
    assert list(elsewhere.iterdir()) == []
    other = fresh(tmp_path / "third")
    (elsewhere / "precious").write_text("data")
    (other / "native").symlink_to(elsewhere)
    keep(tmp_path / "new", DIGEST, other, tree, Notes())
    assert not (tmp_path / "new").exists()
    assert (elsewhere / "precious").exists()


def test_the_first_of_two_stays_and_the_oldest_goes_first(root: Path, tree: SourceTree, tmp_path: Path) -> None:
    notes = Notes()
    other = built(tmp_path / "other", native__more=b"of the second build")
    keep(root, DIGEST, other, tree, notes)
    assert not (root / DIGEST / "files/native/more").exists()
    keep(root, "e" * 32, other, tree, notes)
    os.utime(root / DIGEST, (1e9, 1e9))
    size = sum(path.stat().st_size for path in (root / ("e" * 32)).rglob("*") if path.is_file())
    assert kept.prune(root, size + 100) == 1
    assert [path.name for path in root.glob("[!.]*")] == ["e" * 32]
    assert take(root, fresh(tmp_path / "second"), notes) is False
    assert kept.prune(root, 0) == 1
    assert list(root.glob("[!.]*")) == []
    assert kept.prune(tmp_path / "none", 0) == 0
