from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from kwdb_build.data import stores
from kwdb_build.errors import BackupError, UsageError
from kwdb_build.model import Store
from tests.unit.data.storebox import lock_held


def names(entries: tuple[stores.Entry, ...], kind: str) -> set[str]:
    return {entry.path for entry in entries if entry.kind == kind}


def test_a_scan_holds_what_a_store_needs_and_leaves_out_what_belongs_to_the_process(store: Store) -> None:
    tree = stores.trees((store,))[0]
    files = names(stores.scan(tree), "file")
    assert {"kwbase.start_mode", "000013.log", "tsdb/vg_001/TSVERSION-1", "empty"} <= files
    assert not any(name.startswith(("logs", "kwbase-temp", "LOCK", "temp-dirs")) for name in files)
    assert names(stores.scan(tree), "dir") >= {".", "tsdb/temp_db_", "auxiliary"}
    assert names(stores.scan(tree), "link") == {"tsdb/vg_002", "tsdb/alias", "tsdb/dangling"}


def test_a_log_below_the_top_level_is_data(store: Store) -> None:
    (store.path / "tsdb/logs").mkdir()
    (store.path / "tsdb/logs/LOCK").write_bytes(b"x")
    assert "tsdb/logs/LOCK" in names(stores.scan(stores.trees((store,))[0]), "file")


def test_linked_group_directories_become_trees_of_their_own(store: Store, tmp_path: Path) -> None:
    deeper = tmp_path / "third disk"
    deeper.mkdir()
    (deeper / "blk").write_bytes(b"rows")
    group = tmp_path / "second disk" / "group"
    (group / "inner" / "more").symlink_to(deeper)
    assert [tree.root for tree in stores.trees((store,))] == [store.path, group, deeper]
    assert stores.with_targets(store).targets == (group, deeper)


def test_a_store_inside_a_store_is_copied_once(store: Store) -> None:
    inner = Store(path=store.path / "tsdb", kind="ts-store")
    assert next(tree.root for tree in stores.trees((inner, store))) == store.path
    assert sum(tree.is_store for tree in stores.trees((inner, store))) == 1


def test_a_link_to_a_single_file_outside_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "rows").write_bytes(b"rows")
    (store.path / "tsdb/linked").symlink_to(tmp_path / "rows")
    with pytest.raises(BackupError, match="single file outside"):
        stores.trees((store,))


def test_a_link_to_a_parent_of_the_store_is_refused(store: Store) -> None:
    (store.path / "tsdb/up").symlink_to(store.path.parent)
    with pytest.raises(BackupError, match="holds the store itself"):
        stores.trees((store,))


def test_links_in_a_circle_are_refused(store: Store) -> None:
    (store.path / "tsdb/one").symlink_to("two")
    (store.path / "tsdb/two").symlink_to("one")
    with pytest.raises(BackupError, match="cannot be followed"):
        stores.trees((store,))


def test_a_socket_or_pipe_in_a_store_is_refused_by_name(store: Store) -> None:
    os.mkfifo(store.path / "tsdb/pipe")
    with pytest.raises(BackupError, match="tsdb/pipe is a socket, pipe or device"):
        stores.scan(stores.trees((store,))[0])


def test_a_real_socket_is_reported_instead_when_asked(store: Store) -> None:
    place = store.path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(store.path)
        listener.bind("s")
        found: list[Path] = []
        stores.scan(stores.trees((store,))[0], special=found)
        os.chdir("/")
    assert found == [place]


def test_a_missing_store_says_so(tmp_path: Path) -> None:
    with pytest.raises(BackupError, match="not a directory"):
        stores.trees((Store(path=tmp_path / "gone"),))


@pytest.mark.parametrize("name", ["KWBASEDB_VERSION", "CURRENT", "IDENTITY", "kwbase.start_mode"])
def test_any_mark_makes_a_directory_a_store(tmp_path: Path, name: str) -> None:
    assert not stores.looks_like_store(tmp_path)
    (tmp_path / name).write_bytes(b"")
    assert stores.looks_like_store(tmp_path)


def test_the_holder_of_the_lock_is_found_by_the_lock_and_not_by_the_file(store: Store) -> None:
    assert stores.lock_holder(store.path) is None
    with lock_held(store.path) as pid:
        assert stores.lock_holder(store.path) == pid
        with pytest.raises(BackupError, match="still uses the store") as caught:
            stores.require_stopped((store,))
        assert str(pid) in caught.value.context
    stores.require_stopped((store,))


def test_a_flock_is_not_mistaken_for_the_servers_lock(store: Store) -> None:
    with (store.path / "LOCK").open("r+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert stores.lock_holder(store.path) is None


def test_usage_counts_files_and_holes(store: Store) -> None:
    used = stores.usage((store,))
    assert used.size_bytes > (8 << 20) > used.allocated_bytes
    assert used.files == 15 + 1  # the store and the linked group
    assert used.largest_bytes == 8 << 20


@pytest.mark.parametrize("place", ["backup", "tsdb/backup", "logs/backup", "."])
def test_a_destination_inside_the_store_is_refused(store: Store, place: str) -> None:
    with pytest.raises(UsageError, match="inside each other"):
        stores.require_apart((store,), store.path / place)


def test_a_destination_above_or_linked_into_the_store_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "innocent").symlink_to(store.path / "tsdb")
    for place in (store.path.parent, tmp_path / "innocent" / "backup", tmp_path / "second disk" / "group" / "b"):
        with pytest.raises(UsageError, match="inside each other"):
            stores.require_apart((store,), place)
    stores.require_apart((store,), tmp_path / "elsewhere" / "deep")


def test_a_bind_mount_of_the_store_is_seen_through(store: Store, tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("a bind mount needs root")
    other = tmp_path / "other"
    other.mkdir()
    done = subprocess.run(["mount", "--bind", str(store.path), str(other)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("bind mounts are not allowed here")
    try:
        with pytest.raises(UsageError, match="inside each other"):
            stores.require_apart((store,), other / "backup")
    finally:
        subprocess.run(["umount", str(other)], check=True)


def test_mounts_with_spaces_are_parsed() -> None:
    text = (
        "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
        "40 22 8:17 /sub /mnt/big\\040disk rw - xfs /dev/sdb1 rw,attr2\n"
        "garbage\n"
    )
    assert stores.parse_mounts(text) == [(Path("/"), "ext4"), (Path("/mnt/big disk"), "xfs")]


def test_the_file_system_of_a_path_that_does_not_exist_yet_is_its_parents(small_disk: object, tmp_path: Path) -> None:
    disk = small_disk("2m")  # type: ignore[operator]
    found = stores.file_system(disk / "not" / "yet")
    assert (found.type, found.mount_point) == ("tmpfs", disk)
    assert 0 < found.free_bytes <= 2 << 20
