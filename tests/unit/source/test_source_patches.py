"""Reading patches as people keep them: files, git format-patch directories, quilt series."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kwdb_build.errors import PatchError, UsageError
from kwdb_build.model import Patch, Version
from kwdb_build.source.patches import keep, load, read_patches, set_digest, stored

DIFF = b"--- a/file\n+++ b/file\n@@ -1 +1 @@\n-one\n+two\n"


def write(path: Path, data: bytes = DIFF) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_files_and_directories_in_their_order(tmp_path: Path) -> None:
    write(tmp_path / "set" / "0002-b.patch", DIFF + b"2")
    write(tmp_path / "set" / "0001-a.patch", DIFF + b"1")
    write(tmp_path / "set" / "README", b"not a patch")
    single = write(tmp_path / "fix.diff")
    found = read_patches([str(single), str(tmp_path / "set")])
    assert [file.patch.name for file in found] == ["fix.diff", "0001-a.patch", "0002-b.patch"]
    assert len({file.patch.sha256 for file in found}) == 3


def test_a_quilt_series(tmp_path: Path) -> None:
    write(tmp_path / "z-first.patch")
    write(tmp_path / "sub" / "second", DIFF + b"2")
    write(tmp_path / "unused.patch")
    write(tmp_path / "series", b"# order matters\nz-first.patch\n\nsub/second -p0  # plain\n")
    found = read_patches([str(tmp_path)])
    assert [(file.patch.name, file.patch.strip) for file in found] == [("z-first.patch", 1), ("second", 0)]


@pytest.mark.parametrize(
    ("series", "words"),
    [
        (b"../fix.patch\n", "outside"), (b"/etc/fix.patch\n", "outside"), (b"missing.patch\n", "not there"),
        (b"fix.patch -R\n", "'-R'"), (b"# nothing\n", "no patch"),
    ],
)
def test_series_that_cannot_be_used(tmp_path: Path, series: bytes, words: str) -> None:
    write(tmp_path / "set" / "fix.patch")
    write(tmp_path / "set" / "series", series)
    with pytest.raises(PatchError) as caught:
        read_patches([str(tmp_path / "set")])
    assert words in caught.value.message


def test_for_a_submodule(tmp_path: Path) -> None:
    fix = write(tmp_path / "fix.patch")
    assert read_patches([f"kwbase/vendor={fix}"])[0].patch.directory == "kwbase/vendor"
    odd = write(tmp_path / "a=b.patch")
    assert read_patches([str(odd)])[0].patch.directory == "", "a file that exists is meant as it is"


@pytest.mark.parametrize("text", ["../x={}", "/abs={}", "a/.git/hooks={}", "={}"])
def test_directories_outside_of_the_source(tmp_path: Path, text: str) -> None:
    fix = write(tmp_path / "fix.patch")
    with pytest.raises(UsageError):
        read_patches([text.format(fix)])


def test_no_such_file_and_no_diff(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        read_patches([str(tmp_path / "missing.patch")])
    with pytest.raises(PatchError, match="no diff"):
        read_patches([str(write(tmp_path / "mail.patch", b"Subject: hello\n\nno code\n"))])


def test_kept_patches_outlive_the_persons_file(tmp_path: Path) -> None:
    fix = write(tmp_path / "fix.patch")
    [patch] = keep(read_patches([str(fix)]), tmp_path / "home")
    fix.unlink()
    assert load(patch, tmp_path / "home").data == DIFF
    place = stored(patch, tmp_path / "home")
    place.write_bytes(DIFF + b"more")
    with pytest.raises(PatchError, match="changed"):
        load(patch, tmp_path / "home")


def test_the_set_is_known_by_bytes_order_and_place() -> None:
    one, two = Patch(name="a", sha256="1" * 64), Patch(name="b", sha256="2" * 64)
    renamed = Patch(name="c", sha256="1" * 64)
    elsewhere = Patch(name="a", sha256="1" * 64, directory="kwbase/vendor")
    assert set_digest([one, two]) != set_digest([two, one])
    assert set_digest([one]) == set_digest([renamed])
    assert len({set_digest(patches) for patches in ([one], [elsewhere], [one, one], [])}) == 4


def test_version_texts_of_patched_and_dirty_sources() -> None:
    release = Version.parse("V3.2.1")
    patched = release.marked(patched="1a2b3c4d")
    assert patched.text == "V3.2.1-patched-1a2b3c4d"
    assert patched.marked(patched="ffffffff").text == "V3.2.1-patched-ffffffff"
    assert patched.marked(dirty=True).text == "V3.2.1-patched-1a2b3c4d-dirty"
    assert Version.parse("V3.2.1-dirty").marked(patched="1a2b3c4d").text == "V3.2.1-patched-1a2b3c4d-dirty"
    later = Version.parse("V2.0.3.2_RC3-3-gfe5eeb853e").marked(patched="1a2b3c4d")
    assert (later.release, later.pre, later.ahead, later.patched) == ((2, 0, 3, 2), "RC3", 3, "1a2b3c4d")
    assert patched.same_release(release), "the gate asks for --allow-same"
    assert patched > Version.parse("V3.2.0")


def test_as_root_or_not_nothing_but_bytes_count(tmp_path: Path) -> None:
    fix = write(tmp_path / "fix.patch")
    before = read_patches([str(fix)])
    os.utime(fix, (1, 1))
    fix.chmod(0o600)
    assert read_patches([str(fix)]) == before
