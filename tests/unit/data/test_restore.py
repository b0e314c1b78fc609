from __future__ import annotations

import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from kwdb_build.data import backup, manifest, restore
from kwdb_build.errors import BackupError
from kwdb_build.model import Store
from tests.unit.data.storebox import fill_store, lock_held, snapshot

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def use_new_version(root: Path) -> None:
    """What a newer server does to a store: changes, appends, removes, adds, leaves spill files behind."""
    with (root / "000013.log").open("r+b") as stream:
        stream.seek(1000)
        stream.write(b"changed in place")
    (root / "000016.sst").unlink()
    (root / "000099.sst").write_bytes(os.urandom(50_000))
    (root / "CURRENT").write_bytes(b"MANIFEST-000099\n")
    (root / "tsdb/vg_003/db").mkdir(parents=True)
    (root / "tsdb/vg_003/db/blk").write_bytes(b"new rows")
    (root / "tsdb/vg_001/db00080_+0001794528000/blk").write_bytes(b"short")
    shutil.rmtree(root / "tsdb/temp_db_")
    (root / "tsdb/temp_db_").write_bytes(b"a file now")
    (root / "tsdb/alias").unlink()
    (root / "tsdb/alias").symlink_to("vg_003")
    (root / "tsdb/vg_002" / "inner" / "blk").write_bytes(b"changed in the group")
    (root / "kwbase-temp99").mkdir()
    (root / "kwbase-temp99" / "CURRENT").write_bytes(b"spill")
    (root / "logs" / "kwbase.new.log").write_bytes(b"I261123 started")
    (root / "kwbase.start_mode").chmod(0o600)
    if os.geteuid() == 0:
        os.chown(root / "kwbase.start_mode", 77, 78)
        os.chown(root / "tsdb", 77, 78)


@pytest.fixture
def saved(store: Store, tmp_path: Path) -> manifest.BackupManifest:
    made = backup.backup((store,), tmp_path / "backup")
    backup.check(made)
    return made


def whole(store: Store, tmp_path: Path) -> list[dict[str, object]]:
    return [snapshot(store.path), snapshot(tmp_path / "second disk" / "group")]


def test_the_store_is_exactly_as_before_and_the_new_rows_are_kept(
    store: Store, saved: manifest.BackupManifest, tmp_path: Path
) -> None:
    before = whole(store, tmp_path)
    use_new_version(store.path)
    assert whole(store, tmp_path) != before
    differences = restore.compare(saved.path)
    assert any("000016.sst: missing" in text for text in differences)
    assert any("vg_003/db/blk: not in the backup" in text for text in differences)
    assert any("kwbase.start_mode: mode 600 instead of 640" in text for text in differences)
    result = restore.restore(saved.path, set_aside=tmp_path / "aside")
    assert whole(store, tmp_path) == before
    assert restore.compare(saved.path) == ()
    assert result.not_set_aside == ()
    assert (tmp_path / "aside/store-1/tsdb/vg_003/db/blk").read_bytes() == b"new rows"
    assert (tmp_path / "aside/store-1/CURRENT").read_bytes() == b"MANIFEST-000099\n"
    assert (tmp_path / "aside/target-2/inner/blk").read_bytes() == b"changed in the group"
    assert result.files_set_aside == 7
    assert result.files_restored == 5
    assert (store.path / "logs" / "kwbase.new.log").exists()
    assert not (store.path / "kwbase-temp99").exists()
    assert (tmp_path / "aside").stat().st_mode & 0o777 == 0o700


def test_a_restore_of_an_untouched_store_changes_nothing(
    store: Store, saved: manifest.BackupManifest, tmp_path: Path
) -> None:
    inodes = {path: path.lstat().st_ino for path in store.path.rglob("*") if "kwbase-temp" not in str(path)}
    result = restore.restore(saved.path, set_aside=tmp_path / "aside")
    assert (result.files_restored, result.files_set_aside) == (0, 0)
    assert {path: path.lstat().st_ino for path in inodes} == inodes


def test_a_second_restore_does_nothing_more_and_keeps_what_the_first_kept(
    store: Store, saved: manifest.BackupManifest, tmp_path: Path
) -> None:
    use_new_version(store.path)
    restore.restore(saved.path, set_aside=tmp_path / "aside")
    (store.path / "CURRENT").write_bytes(b"MANIFEST-000100\n")
    restore.restore(saved.path, set_aside=tmp_path / "aside")
    assert restore.compare(saved.path) == ()
    kept = {path.read_bytes() for path in (tmp_path / "aside/store-1").glob("CURRENT*")}
    assert kept == {b"MANIFEST-000099\n", b"MANIFEST-000100\n"}


def test_directories_of_a_store_are_never_replaced(
    store: Store, saved: manifest.BackupManifest, tmp_path: Path
) -> None:
    group = tmp_path / "second disk" / "group"
    inodes = [store.path.stat().st_ino, group.stat().st_ino]
    use_new_version(store.path)
    restore.restore(saved.path, set_aside=tmp_path / "aside")
    assert [store.path.stat().st_ino, group.stat().st_ino] == inodes


def test_a_store_that_is_empty_or_gone_comes_back_whole(
    store: Store, saved: manifest.BackupManifest, tmp_path: Path
) -> None:
    before = whole(store, tmp_path)
    shutil.rmtree(store.path)
    shutil.rmtree(tmp_path / "second disk" / "group")
    restore.restore(saved.path, set_aside=tmp_path / "aside")
    assert whole(store, tmp_path) == before


def test_a_group_directory_that_became_a_link_is_a_directory_again(
    store: Store, saved: manifest.BackupManifest, tmp_path: Path
) -> None:
    before = whole(store, tmp_path)
    moved = tmp_path / "moved"
    (store.path / "tsdb/vg_001").rename(moved)
    (store.path / "tsdb/vg_001").symlink_to(moved)
    result = restore.restore(saved.path, set_aside=tmp_path / "aside")
    assert whole(store, tmp_path) == before
    assert any("symlink of the new version" in note for note in result.notes)
    assert (moved / "TSVERSION-1").exists(), "what the link led to is not ours to remove"


def test_a_damaged_backup_changes_nothing(store: Store, saved: manifest.BackupManifest, tmp_path: Path) -> None:
    use_new_version(store.path)
    now = snapshot(store.path, skip=())
    (tmp_path / "backup/data/store-1/000016.sst").write_bytes(b"rotten")
    with pytest.raises(BackupError, match=r"1 files of the backup .* damaged; nothing was changed"):
        restore.restore(saved.path, set_aside=tmp_path / "aside")
    assert snapshot(store.path, skip=()) == now


def test_a_running_server_stops_a_restore(store: Store, saved: manifest.BackupManifest, tmp_path: Path) -> None:
    use_new_version(store.path)
    with lock_held(store.path), pytest.raises(BackupError, match="still uses the store"):
        restore.restore(saved.path, set_aside=tmp_path / "aside")


def test_a_file_system_that_is_not_mounted_any_more_is_not_written_under(
    small_disk: Callable[[str], Path], tmp_path: Path
) -> None:
    disk = small_disk("40m")
    root = disk / "kwbase-data"
    root.mkdir()
    fill_store(root, disk / "group")
    made = backup.backup((Store(path=root),), tmp_path / "backup")
    subprocess.run(["umount", "-l", str(disk)], check=True)
    try:
        with pytest.raises(BackupError, match="not mounted as it was"):
            restore.restore(made.path, set_aside=tmp_path / "aside")
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["mount", "-t", "tmpfs", "none", str(disk)], check=True)


def test_without_room_the_rollback_works_and_tells_what_it_gave_up(
    small_disk: Callable[..., Path], store: Store, saved: manifest.BackupManifest, tmp_path: Path
) -> None:
    before = whole(store, tmp_path)
    use_new_version(store.path)
    (store.path / "tsdb/vg_003/db/large").write_bytes(os.urandom(30 << 20))
    aside = small_disk("20m", "aside-disk") / "aside"
    result = restore.restore(saved.path, set_aside=aside)
    assert whole(store, tmp_path) == before
    assert result.not_set_aside == (str(store.path / "tsdb/vg_003/db/large"),)
    assert (aside / "store-1/tsdb/vg_003/db/blk").read_bytes() == b"new rows"


def test_a_store_on_a_full_disk_is_rolled_back_all_the_same(small_disk: Callable[..., Path], tmp_path: Path) -> None:
    disk = small_disk("40m", "full-disk")
    root = disk / "kwbase-data"
    root.mkdir()
    fill_store(root, disk / "group")
    store = Store(path=root)
    before = [snapshot(root), snapshot(disk / "group")]
    made = backup.backup((store,), tmp_path / "backup")
    use_new_version(root)
    with pytest.raises(OSError, match="No space"):
        (root / "tsdb/vg_003/filler").write_bytes(os.urandom(50 << 20))
    result = restore.restore(made.path, set_aside=disk / "aside")
    assert [snapshot(root), snapshot(disk / "group")] == before
    assert str(root / "tsdb/vg_003/filler") in result.not_set_aside


def test_room_that_vanishes_in_the_middle_is_made_again(
    small_disk: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk("12m", "tight-disk")
    root = disk / "kwbase-data"
    root.mkdir()
    for number in range(4):
        (root / f"{number}.sst").write_bytes(os.urandom(2 << 20))
    made = backup.backup((Store(path=root),), tmp_path / "backup")
    for number in range(4):
        (root / f"{number}.sst").write_bytes(os.urandom(2 << 20))
    everything = {root / f"{number}.sst" for number in range(4)}
    monkeypatch.setattr(restore, "_affordable", lambda *_: everything)  # as when others use the room meanwhile
    result = restore.restore(made.path, set_aside=disk / "aside")
    assert restore.compare(made.path) == ()
    assert any("then removed" in text for text in result.not_set_aside)


def test_a_manifest_that_points_outside_is_refused(store: Store, saved: manifest.BackupManifest) -> None:
    record = saved.trees[0]
    bad = dataclasses.replace(record.entries[1], path="../../escape")
    manifest.save(dataclasses.replace(saved, trees=(dataclasses.replace(record, entries=(bad,)),)))
    with pytest.raises(BackupError, match="outside its tree"):
        restore.restore(saved.path, set_aside=store.path.parent / "aside")


CHILD = """
import sys
from pathlib import Path
from kwdb_build.data import restore
from kwdb_build.console import Progress
class Loud(Progress):
    def update(self, text, *, done=None, total=None):
        print(text, flush=True)
Path(sys.argv[2]).parent.mkdir(exist_ok=True)
restore.restore(Path(sys.argv[1]), set_aside=Path(sys.argv[2]), progress=Loud())
"""


@pytest.mark.parametrize("seed", range(8))
def test_kill_9_in_the_middle_of_a_restore_is_made_good_by_the_next(
    store: Store, saved: manifest.BackupManifest, tmp_path: Path, seed: int
) -> None:
    before = whole(store, tmp_path)
    use_new_version(store.path)
    for number in range(40):
        (store.path / f"tsdb/vg_003/db/{number}").write_bytes(f"row {number}".encode())
        (store.path / f"tsdb/schema/{number}.new").write_bytes(os.urandom(1000))
    chance = random.Random(seed)
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(saved.path), str(tmp_path / "aside")], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith("checking the backup" if seed % 2 else "restoring"):
                time.sleep(chance.random() * 0.01)
                break
        child.send_signal(signal.SIGKILL)
    restore.restore(saved.path, set_aside=tmp_path / "aside")
    assert whole(store, tmp_path) == before
    assert restore.compare(saved.path) == ()
    kept = {path.read_bytes() for path in (tmp_path / "aside/store-1/tsdb/vg_003/db").iterdir()}
    assert {f"row {number}".encode() for number in range(40)} <= kept, "no new row is lost on the way"
