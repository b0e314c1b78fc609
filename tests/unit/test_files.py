"""Atomic writes, manifests and copies."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from kwdb_build import files
from kwdb_build.errors import ArtifactError, SpaceError, UsageError


def test_write_atomic_replaces_whole_files_with_the_asked_mode(tmp_path: Path) -> None:
    target = tmp_path / "f"
    os.umask(os.umask(0o022))
    files.write_atomic(target, "one", mode=0o600)
    assert target.stat().st_mode & 0o777 == 0o600
    inode = target.stat().st_ino
    files.write_atomic(target, "two")
    assert target.read_text(encoding="utf-8") == "two"
    assert target.stat().st_ino != inode
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("place", ["file", "file/logs", "/proc/kwdb-build"])
def test_a_home_that_cannot_be_one_is_said(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="there cannot be a directory") as caught:
        files.private_directory(tmp_path / place)
    assert "--home" in caught.value.hint


@pytest.mark.parametrize("kind", ["pipe", "device", "link to it", "directory"])
def test_what_is_no_file_is_never_replaced_by_one(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "target"
    if kind == "pipe":
        os.mkfifo(target)
    elif kind == "directory":
        target.mkdir()
    elif kind == "link to it":
        target.symlink_to(os.devnull)
    elif os.geteuid() == 0:
        os.mknod(target, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    else:
        pytest.skip("only root makes devices")
    before = target.lstat()
    with pytest.raises(UsageError, match="no regular file"):
        files.write_atomic(target, "x")
    assert target.lstat() == before
    assert list(tmp_path.iterdir()) == [target]


def test_manifest_finds_every_difference(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("bin/a", "bin/b", "c"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    (tmp_path / "link").symlink_to("c")
    manifest = files.manifest_of(tmp_path)
    files.check_manifest(tmp_path, manifest)
    (tmp_path / "bin/a").write_text("x", encoding="utf-8")
    (tmp_path / "bin/b").chmod(0o700)
    (tmp_path / "c").unlink()
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("elsewhere")
    (tmp_path / "new").touch()
    with pytest.raises(ArtifactError) as caught:
        files.check_manifest(tmp_path, manifest)
    context = caught.value.context
    for words in ("bin/a: content changed", "bin/b: mode 700", "c: missing", "new: not in the manifest", "link: content"):
        assert words in context


def test_a_manifest_is_checked_without_reading_by_names_sizes_kinds_and_modes(tmp_path: Path) -> None:
    for name in ("same", "longer", "mode", "pipe"):
        (tmp_path / name).write_text(name if name != "pipe" else "", encoding="utf-8")
    (tmp_path / "link").symlink_to("same")
    manifest = files.manifest_of(tmp_path)
    (tmp_path / "same").write_text("emas", encoding="utf-8")
    files.check_manifest(tmp_path, manifest, content=False)
    (tmp_path / "longer").write_text("longer than that", encoding="utf-8")
    (tmp_path / "mode").chmod(0o700)
    for name in ("pipe", "link"):
        (tmp_path / name).unlink()
    os.mkfifo(tmp_path / "pipe", 0o644)
    (tmp_path / "link").symlink_to("longer")
    with pytest.raises(ArtifactError) as caught:
        files.check_manifest(tmp_path, manifest, content=False)
    context = caught.value.context
    for words in ("longer: 16 bytes instead of 6", "mode: mode 700", "pipe: no file any more", "link: content changed"):
        assert words in context
    assert "same" not in context


def test_copy_keeps_mode_and_times_and_is_no_hard_link(tmp_path: Path) -> None:
    source, target = tmp_path / "s", tmp_path / "t"
    source.write_bytes(os.urandom(3 << 20))
    source.chmod(0o640)
    os.utime(source, (1, 2))
    digest = files.copy_file(source, target)
    assert digest == files.sha256_of(source) == files.sha256_of(target)
    assert target.stat().st_mode == source.stat().st_mode
    assert target.stat().st_mtime == 2
    assert target.stat().st_ino != source.stat().st_ino
    assert target.stat().st_nlink == 1


def test_space_is_asked_of_the_right_file_system(tmp_path: Path) -> None:
    files.require_space(tmp_path / "not" / "yet" / "there", 1, "test")
    with pytest.raises(SpaceError, match=r"not enough disk space for the test: 8\.0 EiB|not enough"):
        files.require_space(tmp_path, 1 << 63, "test")


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB")])
def test_sizes_for_people(size: int, text: str) -> None:
    assert files.human_bytes(size) == text
