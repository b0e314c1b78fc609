"""A store whose file system becomes full, or whose process is killed, exactly while a build is stored."""

from __future__ import annotations

import multiprocessing
import os
import signal
import stat
import time
from collections.abc import Callable, Sequence
from itertools import count
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from kwdb_build.build import pruning
from kwdb_build.build.store import MANIFEST, ArtifactStore
from kwdb_build.errors import ExitCode, SpaceError
from kwdb_build.model import Artifact, BuildKey, FileRecord, Version
from kwdb_build.scratch import gate
from tests.unit.build.artifactbox import key_of
from tests.unit.build.disks import PAGE, Mount, fill, remount

DOCUMENTS = {"provenance.json": b"p" * 6000, "sbom.cdx.json": b"s" * 6000}
KEY = key_of("one")
TOOLS = 265
"""So many small files take more blocks than the margin of the check before."""


def stage(root: Path, tools: int) -> Path:
    """A build of small files, which take more room than their sizes say, and a large one."""
    for name in ("bin", "lib"):
        (root / name).mkdir(parents=True)
    for number in range(tools):
        (root / f"bin/tool-{number:03}").write_bytes(b"x")
    (root / "lib/libkwdbts2.so").write_bytes(os.urandom(16 * PAGE))
    (root / "lib/libkwdbts2.so.2").symlink_to("libkwdbts2.so")
    return root


def add(
    store: ArtifactStore, staged: Path, attest: Callable[[], None] = lambda: None, *, key: BuildKey = KEY
) -> Artifact:
    def documents(files: Sequence[FileRecord]) -> dict[str, bytes]:
        attest()
        return DOCUMENTS

    return store.add(key, staged, version=Version.parse("V3.2.1"), commit="a" * 40, built_s=1, attest=documents)


def names(store: ArtifactStore) -> list[str]:
    return sorted(path.name for path in store.root.iterdir() if path.name != ".gate") if store.root.exists() else []


def refused(store: ArtifactStore, call: Callable[[], object]) -> SpaceError:
    """What is said when a build cannot be stored: nothing of it is left, and the store is as it was."""
    before = names(store)
    with pytest.raises(SpaceError) as caught:
        call()
    assert caught.value.exit_code == ExitCode.SPACE
    assert str(store.root) in caught.value.message
    assert "--home" in caught.value.hint
    assert names(store) == before
    assert store.find(KEY) is None
    assert store.damaged() == ()
    return caught.value


def stored(store: ArtifactStore, staged: Path) -> Artifact:
    """It fits now, and is whole."""
    artifact = add(store, staged)
    store.verify(artifact)
    assert {name: (artifact.path / name).read_bytes() for name in DOCUMENTS} == DOCUMENTS
    assert [name for name in names(store) if name.startswith(".")] == []
    assert store.damaged() == ()
    store.close()
    return artifact


def test_no_name_can_be_made_any_more_at_whatever_moment(mount: Mount, tmp_path: Path) -> None:
    staged = stage(tmp_path / "staged", 3)
    seen = []
    for inodes in range(1, 40):
        place = mount("size=20m", f"nr_inodes={inodes}")
        store = ArtifactStore(place / "store")
        try:
            add(store, staged)
        except SpaceError:
            seen.append(refused(store, lambda store=store: add(store, staged)).context)  # type: ignore[misc]
            remount(place, "nr_inodes=40")
            stored(store, staged)
        else:
            store.close()
            break
    assert len(seen) == 13
    for moment in ("store'", ".gate'", ".adding-", "/bin'", "tool-002'", "libkwdbts2.so.2'", *DOCUMENTS, MANIFEST):
        assert [context for context in seen if moment in context], moment


def test_no_byte_can_be_written_any_more_at_whatever_moment(mount: Mount, tmp_path: Path) -> None:
    staged = stage(tmp_path / "staged", TOOLS)
    moments: list[str] = []
    for pages in range(TOOLS, TOOLS + 60):
        place = mount(f"size={pages * PAGE}")
        store = ArtifactStore(place / "store")
        attested: list[int] = []
        try:
            add(store, staged, lambda attested=attested: attested.append(1))  # type: ignore[misc]
        except SpaceError as error:
            moments.append("before" if "not enough" in error.message else "beside" if attested else "files")
        else:
            store.close()
            break
        refused(store, lambda store=store: add(store, staged))  # type: ignore[misc]
        remount(place, "size=20m")
        stored(store, staged)
    # Said before anything is written; while the files are; while the documents and the manifest are.
    assert moments == sorted(moments, key=("before", "files", "beside").index)
    assert [moments.count(moment) > 4 for moment in ("before", "files", "beside")] == [True, True, True]


class Filling(ArtifactStore):
    """Between the last file and the rename that makes a build visible, something else takes all the room."""

    filler = Path()

    def publish(self, temporary: Path, *rest: object) -> Artifact:
        fill(self.filler)
        return super().publish(temporary, *rest)  # type: ignore[arg-type]


def test_no_room_for_the_rename_that_makes_it_visible(mount: Mount, tmp_path: Path) -> None:
    staged = stage(tmp_path / "staged", 3)
    place = mount(image_mb=8)
    store = Filling(place / "store")
    store.filler = place / "filler"
    store.filler.touch()
    store.root.mkdir()
    (store.root / ".gate").touch()
    # The directory's only block has room for the temporary name, and none for the longer one of a key.
    for number in range(15):
        (store.root / f"{number:02}{'x' * 50}").touch()
    assert store.root.stat().st_size == 1024
    error = refused(store, lambda: add(store, staged))
    assert "became full while storing" in error.message
    assert ".adding-" in error.context, error.context
    assert KEY.digest in error.context
    assert store.root.stat().st_size == 1024
    store.filler.unlink()
    stored(ArtifactStore(store.root), staged)
    assert store.root.stat().st_size > 1024, "the rename needs a block, or this test shows nothing"


def test_a_signature_that_does_not_fit_leaves_the_one_that_is_there(mount: Mount, tmp_path: Path) -> None:
    place = mount("size=4m")
    store = ArtifactStore(place / "store")
    artifact = stored(store, stage(tmp_path / "staged", 3))
    name = "provenance.json.sig"
    store.attach(artifact, name, b"old")
    fill(place / "filler")
    with pytest.raises(SpaceError, match=r"became full while adding provenance\.json\.sig") as caught:
        store.attach(artifact, name, b"new" * PAGE)
    assert str(store.root) in caught.value.message
    assert (artifact.path / name).read_bytes() == b"old"
    assert names(store) == [KEY.digest]
    assert stat.S_IMODE(artifact.path.stat().st_mode) == 0o555
    (place / "filler").unlink()
    store.attach(artifact, name, b"new" * PAGE)
    assert (artifact.path / name).read_bytes() == b"new" * PAGE


# Killed ---------------------------------------------------------------------------------------------------------------


def _add_slowly(root: str, staged: str, ready: Event, go: Event) -> None:
    def wait() -> None:
        ready.set()
        go.wait(600)

    add(ArtifactStore(Path(root)), Path(staged), wait)


def _add_always(root: str, staged: str, ready: Event) -> None:
    store = ArtifactStore(Path(root))
    for number in count():
        artifact = add(store, Path(staged), key=key_of(f"{os.getpid()}-{number}"))
        ready.set()
        store.attach(artifact, "provenance.json.sig", b"signature" * number)


def killed(process: BaseProcess) -> None:
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)


@pytest.mark.parametrize("moment", ["the files are written", "the rename comes next"])
def test_kill_9_while_a_build_is_stored(tmp_path: Path, moment: str) -> None:
    store, staged = ArtifactStore(tmp_path / "store"), stage(tmp_path / "staged", 3)
    context = multiprocessing.get_context("spawn")
    ready, go = context.Event(), context.Event()
    process = context.Process(target=_add_slowly, args=(str(store.root), str(staged), ready, go))
    process.start()
    assert ready.wait(60)
    [temporary] = store.root.glob(".adding-*")
    assert (temporary / "lib/libkwdbts2.so").stat().st_size == 16 * PAGE
    if moment == "the rename comes next":
        with gate(store.root):  # all that it still waits for
            go.set()
            while stat.S_IMODE(temporary.stat().st_mode) != 0o555:
                assert process.is_alive()
                time.sleep(0.005)
            killed(process)
    else:
        killed(process)
    assert names(store) == [temporary.name]
    assert (store.find(KEY), store.list(), store.damaged()) == (None, (), ())
    stored(store, staged)
    assert names(store) == [KEY.digest]


def test_kill_9_at_any_moment_leaves_whole_builds_and_what_the_next_removes(tmp_path: Path) -> None:
    store, staged = ArtifactStore(tmp_path / "store"), stage(tmp_path / "staged", 20)
    context = multiprocessing.get_context("spawn")
    for number in range(6):
        ready = context.Event()
        process = context.Process(target=_add_always, args=(str(store.root), str(staged), ready))
        process.start()
        assert ready.wait(60)
        time.sleep(number * 0.013)
        killed(process)
        assert store.damaged() == ()
    artifacts = store.list()
    assert len(artifacts) >= 6
    for artifact in artifacts:
        store.verify(artifact)
        assert set(DOCUMENTS) < {path.name for path in artifact.path.iterdir()}
    pruning.execute(store, ())
    assert names(store) == sorted(artifact.key.digest for artifact in artifacts)
