"""Builds in use: found by name, held, set aside, pruned; and blocks shared on disk."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwdb_build.build import pruning
from kwdb_build.build.pruning import Wanted, decide, size_of
from kwdb_build.build.store import MANIFEST, PROVENANCE, ArtifactStore, UnknownArtifactError, stored_at
from kwdb_build.errors import ArtifactError, UsageError
from kwdb_build.model import Artifact, BuildKey, FileRecord, Version
from tests.unit.build.artifactbox import add_build, key_of, spoil


@pytest.fixture
def other(store: ArtifactStore) -> Iterator[ArtifactStore]:
    """The same store, seen by another part of the same process: its locks count all the same."""
    made = ArtifactStore(store.root)
    yield made
    made.close()


def two(store: ArtifactStore, place: Path) -> tuple[Artifact, Artifact]:
    first = add_build(store, place, "one", version="V3.2.0", attested=False)
    os.utime(first.path / MANIFEST, (1000, 1000))
    return first, add_build(store, place, "two", version="V3.2.1", attested=False)


def test_a_build_is_found_by_key_beginning_version_and_latest(store: ArtifactStore, tmp_path: Path) -> None:
    first, second = two(store, tmp_path)
    for name, wanted in (
        ("V3.2.0", first), ("latest", second), (second.key.digest, second), (first.key.digest[:9].upper(), first),
    ):
        assert store.resolve(name) == wanted


@pytest.mark.parametrize("name", ["V9.9.9", "", "zz", "../x", "latest "])
def test_an_unknown_name_says_what_there_is(store: ArtifactStore, tmp_path: Path, name: str) -> None:
    two(store, tmp_path)
    with pytest.raises(UnknownArtifactError) as caught:
        store.resolve(name)
    assert "V3.2.0" in caught.value.context
    assert caught.value.exit_code == 2


def test_an_ambiguous_name_says_what_it_could_mean(store: ArtifactStore, tmp_path: Path) -> None:
    for number in range(20):  # two of twenty keys begin with the same digit
        add_build(store, tmp_path, str(number), attested=False)
    digits = [one.key.digest[0] for one in store.list()]
    double = next(digit for digit in digits if digits.count(digit) > 1)
    with pytest.raises(UnknownArtifactError, match="means"):
        store.resolve(double)
    with pytest.raises(UnknownArtifactError, match="means 20") as caught:
        store.resolve("V3.2.1")
    assert "and 12 more" in caught.value.context


def test_an_empty_store_says_so(store: ArtifactStore) -> None:
    with pytest.raises(UnknownArtifactError) as caught:
        store.resolve("latest")
    assert "there is none" in caught.value.context
    assert not store.root.exists()


def test_a_changed_build_is_set_aside_once_and_then_free_to_be_built(store: ArtifactStore, tmp_path: Path) -> None:
    artifact = add_build(store, tmp_path)
    spoil(artifact.path / "bin/kwbase")
    with pytest.raises(ArtifactError) as caught:
        store.obtain(artifact.key)
    assert "bin/kwbase: content changed" in caught.value.context
    (aside,) = store.damaged()
    assert str(aside.path) in caught.value.hint
    assert (aside.path / "bin/kwbase").exists()
    assert store.obtain(artifact.key) is None
    again = add_build(store, tmp_path / "again")
    assert store.obtain(again.key) == again


def test_an_unreadable_manifest_is_set_aside_by_a_look_up_but_only_told_by_find(
    store: ArtifactStore, tmp_path: Path
) -> None:
    artifact = add_build(store, tmp_path)
    spoil(artifact.path / MANIFEST, b"{")
    with pytest.raises(ArtifactError, match="no readable manifest"):
        store.find(artifact.key)
    assert [entry.path for entry in store.damaged()] == [artifact.path]
    assert store.list() == ()
    with pytest.raises(ArtifactError):
        store.look_up(artifact.key)
    assert not artifact.path.exists()
    assert store.look_up(artifact.key) is None


def test_what_was_removed_meanwhile_is_told(store: ArtifactStore, other: ArtifactStore, tmp_path: Path) -> None:
    artifact = add_build(store, tmp_path)
    store.close()
    assert other.remove(artifact)
    with pytest.raises(ArtifactError, match="is gone"):
        store.hold(artifact)


def test_a_build_in_use_is_not_removed(store: ArtifactStore, other: ArtifactStore, tmp_path: Path) -> None:
    artifact = add_build(store, tmp_path)
    assert not other.remove(artifact)
    assert other.obtain(artifact.key) == artifact  # several may use it
    store.close()
    assert not store.remove(artifact)
    other.close()
    assert store.remove(artifact)
    assert sorted(path.name for path in store.root.iterdir()) == [".gate"]


def _use(root: str, ready: multiprocessing.synchronize.Event) -> None:
    store = ArtifactStore(Path(root))
    assert store.obtain(key_of("one")) is not None
    ready.set()
    time.sleep(600)


def test_who_uses_a_build_keeps_it_until_its_end_even_by_kill_9(store: ArtifactStore, tmp_path: Path) -> None:
    artifact = add_build(store, tmp_path)
    store.close()
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_use, args=(str(store.root), ready))
    process.start()
    try:
        assert ready.wait(120)
        decisions = decide(
            store.list(), pruning.times_of(store.list()), Wanted(keep=0), needed={}, now=time.time()
        )
        (kept,) = pruning.execute(store, decisions)
        assert (kept.remove, kept.reason) == (False, "in use by a running kwdb-build")
        assert artifact.path.exists()
    finally:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join(60)
    (gone,) = pruning.execute(store, decisions)
    assert gone.remove
    assert not artifact.path.exists()


def test_who_reads_the_store_bears_that_builds_go_meanwhile(store: ArtifactStore, tmp_path: Path) -> None:
    first = add_build(store, tmp_path, "first", attested=False)
    store.close()
    for number in range(60):  # each a copy of the first under a key of its own
        key = key_of(str(number))
        copy = store.root / key.digest
        shutil.copytree(first.path, copy)
        data = json.loads((copy / MANIFEST).read_bytes()) | {"inputs": key.inputs, "key": key.digest}
        spoil(copy / MANIFEST, json.dumps(data).encode())
    pruner = threading.Thread(target=lambda: pruning.execute(store, [
        pruning.Decision(artifact=one, remove=True, reason="", size_bytes=0) for one in store.list()
    ]))
    reader = ArtifactStore(store.root)
    pruner.start()
    while pruner.is_alive():
        assert reader.damaged() == ()
        with contextlib.suppress(UnknownArtifactError):
            reader.resolve("latest")
    assert reader.list() == ()


def test_who_only_reads_a_build_keeps_it_or_is_told(
    store: ArtifactStore, other: ArtifactStore, tmp_path: Path
) -> None:
    artifact = add_build(store, tmp_path)
    store.close()
    other.keep(artifact)
    assert not store.remove(artifact)
    other.close()
    assert store.remove(artifact)
    assert stored_at(artifact) == 0
    with pytest.raises(ArtifactError, match="is gone"):
        other.keep(artifact)


def test_a_pipe_in_a_build_is_told_and_not_read(store: ArtifactStore, tmp_path: Path) -> None:
    artifact = add_build(store, tmp_path)
    library = artifact.path / "lib/libkwdbts2.so"
    library.parent.chmod(0o755)
    library.unlink()
    os.mkfifo(library)
    os.mkfifo(library.with_name("more"))
    with pytest.raises(ArtifactError) as caught:
        store.verify(artifact)
    assert caught.value.context.splitlines() == [
        "lib/more: not in the manifest", "lib/libkwdbts2.so: no file any more, but a pipe, a socket or a device",
    ]


def test_a_document_is_replaced_whole_and_the_build_stays_sealed(store: ArtifactStore, tmp_path: Path) -> None:
    artifact = add_build(store, tmp_path)
    for content in (b"one", b"two"):
        store.attach(artifact, f"{PROVENANCE}.sig", content)
        assert (artifact.path / f"{PROVENANCE}.sig").read_bytes() == content
    assert stat.S_IMODE(artifact.path.stat().st_mode) == 0o555
    store.verify(artifact)


# Prune ----------------------------------------------------------------------------------------------------------------


def made_up(number: int, size: int = 100) -> Artifact:
    return Artifact(
        key=BuildKey.of({"number": number}), path=Path("/nowhere"), version=Version.parse(f"V3.{number}.0"), commit="",
        files=(FileRecord(path="bin/kwbase", mode=0o555, size=size, sha256=""),),
    )


BUILDS = tuple(made_up(number) for number in range(4))
TIMES = {one.key.digest: 1000.0 * number for number, one in enumerate(BUILDS)}


@pytest.mark.parametrize(
    ("wanted", "needed", "gone"),
    [
        (Wanted(keep=0), {}, {0, 1, 2, 3}), (Wanted(keep=2), {}, {0, 1}), (Wanted(keep=9), {}, set()),
        (Wanted(older_s=1500), {}, {0, 1}), (Wanted(keep=3, older_s=1500), {}, {0}),
        (Wanted(max_bytes=250), {}, {0, 1}), (Wanted(max_bytes=250, keep=3), {}, {0}),
        (Wanted(keep=0), {1}, {0, 2, 3}), (Wanted(max_bytes=150), {0}, {1, 2}),
        (Wanted(older_s=0, max_bytes=1000), {}, {0, 1, 2}),
    ],
)
def test_which_builds_go(wanted: Wanted, needed: set[int], gone: set[int]) -> None:
    keys = {BUILDS[number].key.digest: "wanted" for number in needed}
    found = decide(BUILDS, TIMES, wanted, needed=keys, now=3000.0)
    assert [one.artifact for one in found] == list(reversed(BUILDS))
    assert {BUILDS.index(one.artifact) for one in found if one.remove} == gone


@given(
    sizes=st.lists(st.integers(0, 50), max_size=8), keep=st.none() | st.integers(0, 9),
    older=st.none() | st.floats(0, 9000), most=st.none() | st.integers(0, 400), needed=st.sets(st.integers(0, 7)),
)
def test_what_is_needed_or_among_the_newest_never_goes(
    sizes: list[int], keep: int | None, older: float | None, most: int | None, needed: set[int]
) -> None:
    builds = [made_up(number, size) for number, size in enumerate(sizes)]
    times = {one.key.digest: 1000.0 * number for number, one in enumerate(builds)}
    keys = {one.key.digest: "run" for number, one in enumerate(builds) if number in needed}
    found = decide(builds, times, Wanted(keep=keep, older_s=older, max_bytes=most), needed=keys, now=8000.0)
    newest = {one.key.digest for one in list(reversed(builds))[: keep or 0]}
    removed = {one.artifact.key.digest for one in found if one.remove}
    assert not removed & (keys.keys() | newest)
    if most is not None and not keys and not keep:
        assert sum(size_of(one.artifact) for one in found if not one.remove) <= most


@pytest.mark.parametrize(("text", "seconds"), [("12h", 43200), ("30d", 2592000), ("2w", 1209600)])
def test_ages(text: str, seconds: float) -> None:
    assert pruning.parse_age(text) == seconds


@pytest.mark.parametrize("text", ["", "d", "-1d", "3", "1y", "1.5d"])
def test_what_is_no_age(text: str) -> None:
    with pytest.raises(UsageError):
        pruning.parse_age(text)


def test_set_aside_builds_go_when_asked_for(store: ArtifactStore, tmp_path: Path) -> None:
    artifact = add_build(store, tmp_path)
    assert stored_at(artifact) > 0
    spoil(artifact.path / "bin/kwbase")
    with pytest.raises(ArtifactError):
        store.obtain(artifact.key)
    assert pruning.remove_set_aside(store) == 1
    assert store.damaged() == ()
    assert pruning.remove_set_aside(store) == 0


# Blocks shared on disk ------------------------------------------------------------------------------------------------


@pytest.fixture
def xfs(tmp_path: Path) -> Iterator[Path]:
    """A file system that shares blocks; needs root, mkfs.xfs and a loop device."""
    if os.geteuid() != 0 or shutil.which("mkfs.xfs") is None:
        pytest.skip("needs root and mkfs.xfs")
    disk, place = tmp_path / "disk", tmp_path / "mounted"
    with disk.open("wb") as stream:
        stream.truncate(400 << 20)
    place.mkdir()
    subprocess.run(["mkfs.xfs", "-q", str(disk)], check=True)
    if subprocess.run(["mount", "-o", "loop", str(disk), str(place)], check=False, capture_output=True).returncode:
        pytest.skip("needs a loop device")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def used_bytes(place: Path) -> int:
    os.sync()
    info = os.statvfs(place)
    return (info.f_blocks - info.f_bfree) * info.f_frsize


def test_equal_files_of_two_versions_share_their_blocks_but_stay_apart(xfs: Path, tmp_path: Path) -> None:
    store = ArtifactStore(xfs / "store")
    size = 8 << 20
    content = os.urandom(size)

    def add(word: str) -> Artifact:
        staged = tmp_path / word
        for name in ("bin", "lib"):
            (staged / name).mkdir(parents=True)
        (staged / "bin/kwbase").write_bytes(word.encode())
        (staged / "lib/libcommon.so").write_bytes(content)
        return store.add(key_of(word), staged, version=Version.parse("V3.2.1"), commit="a" * 40, built_s=0)

    empty = used_bytes(xfs)
    first = add("one")
    one = used_bytes(xfs) - empty
    second = add("two")
    both = used_bytes(xfs) - empty
    assert one >= size
    assert both < one + size // 4
    libraries = [artifact.path / "lib/libcommon.so" for artifact in (first, second)]
    assert len({path.stat().st_ino for path in libraries}) == 2
    spoil(libraries[0])
    store.verify(second)
    with pytest.raises(ArtifactError):
        store.verify(first)
    store.close()


def test_without_such_a_file_system_nothing_is_shared_and_nothing_breaks(store: ArtifactStore, tmp_path: Path) -> None:
    first, second = two(store, tmp_path)
    for artifact in (first, second):
        store.verify(artifact)
        assert all((artifact.path / entry.path).lstat().st_nlink == 1 for entry in artifact.files)
