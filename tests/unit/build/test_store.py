from __future__ import annotations

import json
import multiprocessing
import os
import signal
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kwdb_build.build.store import ArtifactStore
from kwdb_build.errors import ArtifactError, BuildError
from kwdb_build.model import BuildKey, Version
from kwdb_build.scratch import clean_leftovers, scratch_directory

if TYPE_CHECKING:
    from collections.abc import Callable

    from kwdb_build.model import Artifact

KEY = BuildKey.of({"word": "one"})
VERSION = Version.parse("V3.1.0")


def stage(root: Path, *, content: bytes = b"\x7fELF server") -> Path:
    for name, data, mode in (
        ("bin/kwbase", content, 0o777),
        ("bin/query_status.sh", b"#!/bin/sh\n", 0o755),
        ("lib/libcommon.so", b"common", 0o644),
        ("lib/libkwdbts2.so.2", b"ts", 0o644),
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(mode)
    (root / "lib/libkwdbts2.so").symlink_to("libkwdbts2.so.2")
    (root / "share").mkdir()
    (root / "share" / "not-taken").write_text("x")
    return root


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    return stage(tmp_path / "staged")


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


@pytest.fixture
def artifact(store: ArtifactStore, staged: Path) -> Artifact:
    return store.add(KEY, staged, version=VERSION, commit="a" * 40, built_s=1.5, details={"image": "sha256:1"})


def test_nothing_is_found_in_a_store_that_is_not_there(store: ArtifactStore) -> None:
    assert store.find(KEY) is None
    assert store.list() == ()
    assert not store.root.exists()


def test_what_was_added_is_found_whole(store: ArtifactStore, artifact: Artifact) -> None:
    found = store.find(KEY)
    assert found == artifact
    assert found.version == VERSION
    assert found.commit == "a" * 40
    assert found.built_s == 1.5
    assert [entry.path for entry in found.files] == [
        "bin/kwbase", "bin/query_status.sh", "lib/libcommon.so", "lib/libkwdbts2.so", "lib/libkwdbts2.so.2",
    ]
    assert store.list() == (artifact,)
    assert store.details(artifact) == {"image": "sha256:1"}
    store.verify(found)
    assert store.find(BuildKey.of({"source": "two"})) is None


def test_stored_files_are_read_only_and_the_callers(artifact: Artifact) -> None:
    def mode(name: str) -> int:
        return stat.S_IMODE((artifact.path / name).stat().st_mode)

    assert mode("bin/kwbase") == 0o555
    assert mode("lib/libcommon.so") == 0o444
    assert mode("manifest.json") == 0o444
    assert mode(".") == mode("bin") == 0o555
    assert artifact.kwbase.stat().st_uid == os.geteuid()


def test_a_store_holds_no_temporary_after_an_add(store: ArtifactStore, artifact: Artifact) -> None:
    assert sorted(path.name for path in store.root.iterdir()) == [".gate", KEY.digest]


def writable(path: Path) -> None:
    path.chmod(0o755)


def change_content(root: Path) -> None:
    (root / "lib/libcommon.so").chmod(0o644)
    (root / "lib/libcommon.so").write_bytes(b"commoN")
    (root / "lib/libcommon.so").chmod(0o444)


def change_mode(root: Path) -> None:
    (root / "bin/kwbase").chmod(0o755)


def remove_file(root: Path) -> None:
    writable(root / "bin")
    (root / "bin/query_status.sh").unlink()


def add_file(root: Path) -> None:
    writable(root / "lib")
    (root / "lib/libevil.so").write_bytes(b"x")


def retarget(root: Path) -> None:
    writable(root / "lib")
    (root / "lib/libkwdbts2.so").unlink()
    (root / "lib/libkwdbts2.so").symlink_to("libcommon.so")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (change_content, "lib/libcommon.so: content changed"), (change_mode, "bin/kwbase: mode 755"),
        (remove_file, "bin/query_status.sh: missing"), (add_file, "lib/libevil.so: not in the manifest"),
        (retarget, "lib/libkwdbts2.so: content changed"),
    ],
)
def test_a_changed_build_is_refused_by_name(
    store: ArtifactStore, artifact: Artifact, harm: Callable[[Path], None], said: str
) -> None:
    harm(artifact.path)
    with pytest.raises(ArtifactError) as caught:
        store.verify(store.find(KEY))
    assert said in caught.value.context


@pytest.mark.parametrize("content", ["", "{", "[]", '{"inputs": {}}', None])
def test_a_damaged_manifest_is_an_error_and_not_a_missing_build(
    store: ArtifactStore, artifact: Artifact, content: str | None
) -> None:
    manifest = artifact.path / "manifest.json"
    writable(artifact.path)
    manifest.unlink()
    if content is not None:
        manifest.write_text(content)
    with pytest.raises(ArtifactError):
        store.find(KEY)


def test_a_manifest_under_another_key_is_refused(store: ArtifactStore, artifact: Artifact) -> None:
    other = BuildKey.of({"source": "two"})
    writable(artifact.path)
    artifact.path.rename(store.root / other.digest)
    with pytest.raises(ArtifactError, match="another build"):
        store.find(other)


def test_inputs_that_do_not_give_the_key_are_refused(store: ArtifactStore, artifact: Artifact) -> None:
    manifest = artifact.path / "manifest.json"
    data = json.loads(manifest.read_text())
    data["inputs"]["word"] = "two"
    manifest.chmod(0o644)
    manifest.write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match="another build"):
        store.find(KEY)


def test_the_first_of_two_adds_of_one_key_stays(store: ArtifactStore, artifact: Artifact, tmp_path: Path) -> None:
    other = stage(tmp_path / "other", content=b"other bytes")
    again = store.add(KEY, other, version=VERSION, commit="b" * 40, built_s=2)
    assert again == artifact
    store.verify(again)
    assert again.kwbase.read_bytes() == b"\x7fELF server"
    assert sorted(path.name for path in store.root.iterdir()) == [".gate", KEY.digest]


@pytest.mark.parametrize("target", ["/etc/passwd", "../../outside", "../bin/../../x"])
def test_a_symlink_out_of_the_build_is_refused(store: ArtifactStore, staged: Path, target: str) -> None:
    (staged / "lib/libodd.so").symlink_to(target)
    with pytest.raises(BuildError, match=r"lib[a-z]*\.so"):
        store.add(KEY, staged, version=VERSION, commit="a", built_s=0)
    assert store.find(KEY) is None
    assert [path.name for path in store.root.iterdir()] == [".gate"]


def test_a_device_or_pipe_is_refused(store: ArtifactStore, staged: Path) -> None:
    os.mkfifo(staged / "bin" / "pipe")
    with pytest.raises(BuildError, match="no file"):
        store.add(KEY, staged, version=VERSION, commit="a", built_s=0)


def _add(root: str, staged: str, start: multiprocessing.synchronize.Barrier, index: int) -> None:
    start.wait(30)
    ArtifactStore(Path(root)).add(KEY, Path(staged), version=VERSION, commit=str(index), built_s=index)


def test_many_processes_adding_one_key_leave_one_whole_build(store: ArtifactStore, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(4)
    workers = [
        context.Process(target=_add, args=(str(store.root), str(stage(tmp_path / f"s{index}")), start, index))
        for index in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    (only,) = store.list()
    store.verify(only)
    assert sorted(path.name for path in store.root.iterdir()) == [".gate", KEY.digest]


def _hold(root: str, ready: multiprocessing.synchronize.Event) -> None:
    with scratch_directory(Path(root), ".adding-") as path:
        (path / "bin").mkdir()
        (path / "bin" / "kwbase").write_bytes(b"half")
        (path / "bin").chmod(0o555)
        ready.set()
        time.sleep(600)


def test_what_a_killed_add_left_is_cleaned_by_the_next_but_not_what_lives(store: ArtifactStore, staged: Path) -> None:
    store.root.mkdir()
    context = multiprocessing.get_context("spawn")
    processes, directories = [], []
    for _ in range(2):
        ready = context.Event()
        process = context.Process(target=_hold, args=(str(store.root), ready))
        process.start()
        assert ready.wait(60)
        directories.append(next(path for path in store.root.glob(".adding-*") if path not in directories))
        processes.append(process)
    dead, alive = processes
    assert dead.pid is not None
    os.kill(dead.pid, signal.SIGKILL)
    dead.join(30)
    try:
        store.add(KEY, staged, version=VERSION, commit="a", built_s=0)
        assert [directory.exists() for directory in directories] == [False, True]
        assert store.find(KEY) is not None
    finally:
        alive.kill()
        alive.join(30)
    clean_leftovers(store.root, ".adding-")
    assert not directories[1].exists()


def test_a_symlink_named_like_a_left_over_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "data").write_text("x")
    root = tmp_path / "root"
    root.mkdir()
    (root / ".adding-x").symlink_to(precious)
    clean_leftovers(root, ".adding-")
    assert (precious / "data").exists()
