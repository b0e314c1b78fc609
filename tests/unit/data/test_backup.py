from __future__ import annotations

import mmap
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from kwdb_build.console import Progress
from kwdb_build.data import backup, manifest, stores
from kwdb_build.errors import BackupError, SpaceError, UsageError
from kwdb_build.model import Store
from tests.unit.data.storebox import lock_held, snapshot

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Seen(Progress):
    def __init__(self) -> None:
        self.shares: list[float] = []

    def update(self, text: str, *, done: float | None = None, total: float | None = None) -> None:
        if done is not None and total:
            self.shares.append(done / total)


def in_backup(destination: Path, tree: str = "store-1") -> dict[str, object]:
    return snapshot(destination / "data" / tree, skip=())


def without_links(found: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in found.items() if not isinstance(value[0], str) or value[0] == "dir"}  # type: ignore[index]


def test_a_full_backup_equals_the_store_and_leaves_it_untouched(store: Store, tmp_path: Path) -> None:
    before = snapshot(store.path, skip=())
    progress = Seen()
    made = backup.backup((store,), tmp_path / "backup", progress=progress)
    assert snapshot(store.path, skip=()) == before
    assert in_backup(tmp_path / "backup") == without_links(snapshot(store.path))
    group = tmp_path / "second disk" / "group"
    assert in_backup(tmp_path / "backup", "target-2") == snapshot(group)
    assert (made.files, made.copied, made.kept) == (16, 16, 0)
    assert made.size_bytes == sum(entry.size for _, entry in made.each_file())
    assert progress.shares[-1] == 1.0
    assert ((tmp_path / "backup").stat().st_mode & 0o777) == 0o700
    assert (made.path.stat().st_mode & 0o777) == 0o600
    backup.check(made)
    assert manifest.load(tmp_path / "backup") == made


def test_holes_stay_holes(store: Store, tmp_path: Path) -> None:
    backup.backup((store,), tmp_path / "backup")
    copy = (tmp_path / "backup/data/store-1/tsdb/vg_001/sparse").stat()
    assert copy.st_size == 8 << 20
    assert copy.st_blocks * 512 < 1 << 20


def test_no_file_of_the_backup_shares_an_inode_with_the_store(store: Store, tmp_path: Path) -> None:
    made = backup.backup((store,), tmp_path / "backup")
    for record, entry in made.each_file():
        source, copy = (record.tree.root / entry.path).stat(), made.place(record, entry).stat()
        assert (source.st_dev, source.st_ino) != (copy.st_dev, copy.st_ino)
        assert copy.st_nlink == 1


def test_labels_are_kept(store: Store, tmp_path: Path) -> None:
    label = store.path / "000016.sst"
    try:
        os.setxattr(label, "user.purpose", b"rows")
    except OSError as error:
        pytest.skip(f"no extended attributes here: {error}")
    backup.backup((store,), tmp_path / "backup")
    assert os.getxattr(tmp_path / "backup/data/store-1/000016.sst", "user.purpose") == b"rows"


def test_a_change_through_a_mapping_with_the_same_size_and_time_is_seen(store: Store, tmp_path: Path) -> None:
    tag = store.path / "tsdb/schema/80/tag/80.tag.mt"
    backup.precopy((store,), tmp_path / "backup")
    before = tag.stat()
    with tag.open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as mapped:
        mapped[100:104] = b"NEW!"
    os.utime(tag, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (tag.stat().st_size, tag.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    made = backup.backup((store,), tmp_path / "backup")
    assert made.fresh == ("store-1/tsdb/schema/80/tag/80.tag.mt",)
    assert made.kept == 15
    assert (tmp_path / "backup/data/store-1/tsdb/schema/80/tag/80.tag.mt").read_bytes() == tag.read_bytes()
    backup.check(made)


def test_what_vanished_appeared_or_changed_its_kind_after_the_precopy(store: Store, tmp_path: Path) -> None:
    backup.precopy((store,), tmp_path / "backup")
    (store.path / "000016.sst").unlink()
    shutil.rmtree(store.path / "auxiliary")
    (store.path / "auxiliary").write_bytes(b"now a file")
    (store.path / "empty").unlink()
    (store.path / "empty").mkdir()
    (store.path / "empty" / "new").write_bytes(b"new")
    shutil.rmtree(store.path / "tsdb/vg_001/db00080_+0001794528000")
    (store.path / "tsdb/vg_001/db00080_+0001794528000").symlink_to("nowhere")
    made = backup.backup((store,), tmp_path / "backup")
    assert in_backup(tmp_path / "backup") == without_links(snapshot(store.path))
    backup.check(made)


def test_a_precopy_that_was_tampered_with_is_not_trusted(store: Store, tmp_path: Path) -> None:
    backup.precopy((store,), tmp_path / "backup")
    copy = tmp_path / "backup/data/store-1/000016.sst"
    content = bytearray(copy.read_bytes())
    content[7] ^= 1
    copy.write_bytes(content)
    made = backup.backup((store,), tmp_path / "backup")
    assert "store-1/000016.sst" in made.fresh
    backup.check(made)


def test_a_backup_of_a_store_that_a_writer_works_on_while_it_is_precopied(store: Store, tmp_path: Path) -> None:
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            (store.path / f"tsdb/vg_001/{number % 50}.tmp").write_bytes(os.urandom(4096))
            (store.path / f"tsdb/vg_001/{(number * 7) % 50}.tmp").unlink(missing_ok=True)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(3):
            backup.precopy((store,), tmp_path / "backup")
    finally:
        stop.set()
        writer.join()
    made = backup.backup((store,), tmp_path / "backup")
    assert in_backup(tmp_path / "backup") == without_links(snapshot(store.path))
    backup.check(made)


@pytest.mark.parametrize("everything", [True, False])
def test_a_flipped_bit_in_the_backup_is_found(store: Store, tmp_path: Path, everything: bool) -> None:
    backup.precopy((store,), tmp_path / "backup")
    (store.path / "CURRENT").write_bytes(b"MANIFEST-000013\n")
    made = backup.backup((store,), tmp_path / "backup")
    fresh = tmp_path / "backup/data/store-1/CURRENT"
    content = bytearray(fresh.read_bytes())
    content[3] ^= 0x10
    fresh.write_bytes(content)
    with pytest.raises(BackupError) as caught:
        backup.check(made, everything=everything)
    assert str(fresh) in caught.value.context


def test_a_missing_file_or_directory_of_the_backup_is_found(store: Store, tmp_path: Path) -> None:
    made = backup.backup((store,), tmp_path / "backup")
    (tmp_path / "backup/data/store-1/tsdb/temp_db_").rmdir()
    (tmp_path / "backup/data/store-1/empty").unlink()
    with pytest.raises(BackupError) as caught:
        backup.check(made, everything=False)
    assert "temp_db_: the directory is missing" in caught.value.context
    assert "empty: missing" in caught.value.context


def test_a_changed_manifest_is_refused(store: Store, tmp_path: Path) -> None:
    made = backup.backup((store,), tmp_path / "backup")
    text = made.path.read_text()
    made.path.write_text(text.replace('"mode": 416', '"mode": 511', 1))
    with pytest.raises(BackupError, match="changed or damaged"):
        manifest.load(made.path)
    made.path.write_text(text[: len(text) // 2])
    with pytest.raises(BackupError, match="cannot be read"):
        manifest.load(made.path)
    made.path.unlink()
    with pytest.raises(BackupError, match="no backup manifest"):
        manifest.load(made.path)


def test_a_running_server_is_refused(store: Store, tmp_path: Path) -> None:
    with lock_held(store.path), pytest.raises(BackupError, match="still uses the store"):
        backup.backup((store,), tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


def test_a_finished_backup_is_never_written_over(store: Store, tmp_path: Path) -> None:
    made = backup.backup((store,), tmp_path / "backup")
    (store.path / "CURRENT").write_bytes(b"the new version was here")
    for again in (lambda: backup.precopy((store,), tmp_path / "backup"),
                  lambda: backup.backup((store,), tmp_path / "backup")):
        with pytest.raises(BackupError, match="finished backup"):
            again()
    backup.check(made)


def test_no_store_and_a_destination_in_a_store_are_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(BackupError, match="no store"):
        backup.backup((), tmp_path / "backup")
    with pytest.raises(UsageError, match="inside each other"):
        backup.precopy((store,), store.path / "backup")
    assert not (store.path / "backup").exists()


def test_a_small_disk_is_refused_before_anything_is_written(
    store: Store, small_disk: Callable[[str], Path]
) -> None:
    disk = small_disk("1m")
    with pytest.raises(SpaceError, match="not enough disk space for the backup"):
        backup.backup((store,), disk / "backup")
    assert not list(disk.rglob("*.sst"))


def test_a_disk_that_becomes_full_in_the_middle(
    store: Store, small_disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk("900k")
    before = snapshot(store.path, skip=())
    monkeypatch.setattr(backup, "require_space", lambda *_: None)  # as when others write at the same time
    with pytest.raises(SpaceError, match="disk became full"):
        backup.backup((store,), disk / "backup")
    assert snapshot(store.path, skip=()) == before
    with pytest.raises(BackupError, match="no backup manifest"):
        manifest.load(disk / "backup")


def test_space_needed_names_both_needs(store: Store, tmp_path: Path) -> None:
    need = backup.space_needed((store,), tmp_path / "home")
    used = stores.usage((store,))
    assert need.set_aside_bytes == used.allocated_bytes
    assert need.reflink or need.backup_bytes > used.allocated_bytes
    assert not (tmp_path / "home").exists()


def test_names_that_are_no_utf8_survive_the_manifest(store: Store, tmp_path: Path) -> None:
    made = backup.backup((store,), tmp_path / "backup")
    loaded = manifest.load(made.path)
    weird = next(entry for _, entry in loaded.each_file() if "bad-" in entry.path)
    assert os.fsencode(weird.path).endswith(b"bad-\xff-name")


CHILD = """
import sys
from pathlib import Path
from kwdb_build.data import backup
from kwdb_build.model import Store
store, destination = Store(path=Path(sys.argv[1])), Path(sys.argv[2])
print("go", flush=True)
backup.precopy((store,), destination)
backup.backup((store,), destination)
"""


def test_kill_9_at_any_moment_leaves_no_manifest_that_lies(store: Store, tmp_path: Path) -> None:
    before = snapshot(store.path, skip=())
    for number in range(12):
        with subprocess.Popen(
            [sys.executable, "-c", CHILD, str(store.path), str(tmp_path / "backup")], stdout=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(0.011 * number)
            child.send_signal(signal.SIGKILL)
        if (tmp_path / "backup" / "manifest.json").exists():
            backup.check(manifest.load(tmp_path / "backup"))
            (tmp_path / "backup" / "manifest.json").unlink()
    backup.check(backup.backup((store,), tmp_path / "backup"))
    assert snapshot(store.path, skip=()) == before
