"""Export and import: same bytes, whole or not at all, and nothing that a hostile archive could do."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from backports import zstd

from kwdb_build.build import archive, intake
from kwdb_build.build.signing import Trust
from kwdb_build.build.store import MANIFEST, ArtifactStore, signature_kinds
from kwdb_build.console import Progress
from kwdb_build.errors import ArtifactError, KwdbBuildError, SpaceError, UsageError
from kwdb_build.files import sha256_of
from kwdb_build.model import Artifact, BuildKey
from tests.unit.build.artifactbox import add_build, key_of, spoil

ROOT = Path(__file__).parents[3]
Member = tuple[tarfile.TarInfo, bytes]


@pytest.fixture
def packed(store: ArtifactStore, artifact: Artifact, tmp_path: Path) -> Path:
    export(store, artifact, tmp_path / "one.tar.zst")
    return tmp_path / "one.tar.zst"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[ArtifactStore]:
    made = ArtifactStore(tmp_path / "elsewhere")
    yield made
    made.close()


def export(store: ArtifactStore, artifact: Artifact, target: Path, *, force: bool = False) -> str:
    return archive.export(store, artifact, target, force=force, progress=Progress())


def take(store: ArtifactStore, path: Path, *, foreign: bool = False) -> tuple[Artifact, bool]:
    return intake.import_archive(store, path, trust=Trust(), foreign=foreign, progress=Progress())


def left(store: ArtifactStore) -> list[str]:
    return sorted(path.name for path in store.root.iterdir()) if store.root.exists() else []


def unpack(path: Path) -> list[Member]:
    with zstd.open(path, "rb") as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        return [(info, (tar.extractfile(info) or io.BytesIO()).read() if info.isreg() else b"") for info in tar]


def pack(path: Path, members: list[Member]) -> Path:
    with zstd.open(path, "wb") as stream, tarfile.open(fileobj=stream, mode="w|") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content) if content or info.isreg() else None)
    return path


def test_the_same_build_gives_the_same_bytes(store: ArtifactStore, artifact: Artifact, tmp_path: Path) -> None:
    digests = {export(store, artifact, tmp_path / f"{number}.tar.zst") for number in range(2)}
    assert digests == {sha256_of(tmp_path / "0.tar.zst")} == {sha256_of(tmp_path / "1.tar.zst")}
    os.utime(artifact.path / MANIFEST, (1, 1))
    assert export(store, artifact, tmp_path / "2.tar.zst") in digests


def test_people_can_install_it_by_hand(packed: Path, artifact: Artifact, tmp_path: Path) -> None:
    place = tmp_path / "by-hand"
    place.mkdir()
    subprocess.run(["tar", "--zstd", "-xf", str(packed), "-C", str(place)], check=True)
    (top,) = place.iterdir()
    assert top.name.startswith("kwdb-V3.2.1-linux-")
    assert sorted(path.name for path in top.iterdir()) == [
        "README.txt", "SHA256SUMS", "bin", "lib", "manifest.json", "provenance.json", "sbom.cdx.json",
    ]
    assert artifact.key.digest in (top / "README.txt").read_text()
    summed = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=top, check=True, capture_output=True, text=True)
    assert summed.stdout == "bin/kwbase: OK\nlib/libcommon.so.1: OK\nlib/libkwdbts2.so: OK\n"
    assert subprocess.run([top / "bin/kwbase"], check=False).returncode == 0
    assert (top / "lib/libcommon.so").readlink() == Path("libcommon.so.1")


def test_what_is_imported_is_found_under_the_same_key(
    packed: Path, artifact: Artifact, elsewhere: ArtifactStore
) -> None:
    one, new = take(elsewhere, packed)
    assert new
    found = elsewhere.obtain(artifact.key)
    assert found == one
    assert found is not None
    assert found.files == artifact.files
    assert (found.path / "provenance.json").read_bytes() == (artifact.path / "provenance.json").read_bytes()
    assert take(elsewhere, packed) == (one, False)
    assert left(elsewhere) == [".gate", artifact.key.digest]


def test_an_import_replaces_a_stored_build_that_was_spoiled(
    packed: Path, artifact: Artifact, elsewhere: ArtifactStore
) -> None:
    one, _ = take(elsewhere, packed)
    spoil(one.path / "lib/libkwdbts2.so")
    again, new = take(elsewhere, packed)
    assert new
    elsewhere.verify(again)
    assert [entry.path.parent.name for entry in elsewhere.damaged()] == ["set-aside"]


def test_other_bytes_under_a_stored_key_are_told_and_change_nothing(
    artifact: Artifact, packed: Path, elsewhere: ArtifactStore, tmp_path: Path
) -> None:
    """Two builds of one key that differ: an irreproducible source, or somebody's change with all digests made to fit."""
    other = ArtifactStore(tmp_path / "other")
    add_build(other, tmp_path / "place", "changed by hand", key=artifact.key)
    other.close()
    one, _ = take(elsewhere, packed)
    export(other, other.resolve("latest"), tmp_path / "other.tar.zst")
    with pytest.raises(ArtifactError, match="other bytes than the stored build") as caught:
        take(elsewhere, tmp_path / "other.tar.zst")
    assert caught.value.context.startswith("bin/kwbase: sha256 ")
    assert "lib/" not in caught.value.context
    elsewhere.verify(one)
    assert left(elsewhere) == [".gate", one.key.digest]


def test_a_signature_of_a_build_that_is_stored_already_is_added(
    store: ArtifactStore, artifact: Artifact, packed: Path, elsewhere: ArtifactStore, tmp_path: Path
) -> None:
    one, _ = take(elsewhere, packed)
    store.attach(artifact, "provenance.json.sig", b"signature")
    export(store, artifact, tmp_path / "signed.tar.zst")
    assert take(elsewhere, tmp_path / "signed.tar.zst") == (one, False)
    assert signature_kinds(one) == ("ssh",)
    # A build of the same key at another time has another provenance: that signature says nothing about it.
    later = ArtifactStore(tmp_path / "later")
    own = add_build(later, tmp_path / "later-place", began=1_790_000_000.0)
    assert take(later, tmp_path / "signed.tar.zst") == (own, False)
    assert signature_kinds(own) == ()
    later.close()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_cut_archive_is_refused(packed: Path, elsewhere: ArtifactStore, tmp_path: Path, share: float) -> None:
    cut = tmp_path / "cut.tar.zst"
    data = packed.read_bytes()
    cut.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ArtifactError) as caught:
        take(elsewhere, cut)
    assert str(cut) in caught.value.message
    assert left(elsewhere) == [".gate"]


@pytest.mark.parametrize("place", [0, 10, 500, -200, -4])
def test_a_flipped_bit_is_found(packed: Path, elsewhere: ArtifactStore, tmp_path: Path, place: int) -> None:
    data = bytearray(packed.read_bytes())
    data[place] ^= 0x10
    spoiled = tmp_path / "spoiled.tar.zst"
    spoiled.write_bytes(data)
    with pytest.raises(ArtifactError):
        take(elsewhere, spoiled)
    assert left(elsewhere) == [".gate"]


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x28\xb5\x2f\xfd" + bytes(50)])
def test_something_else_is_refused(elsewhere: ArtifactStore, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ArtifactError):
        take(elsewhere, tmp_path / "x")


def test_no_such_file(elsewhere: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="absent is not there"):
        take(elsewhere, tmp_path / "absent")
    with pytest.raises(UsageError, match="is no regular file"):
        take(elsewhere, tmp_path)


def _extra(name: str, **changes: object) -> Callable[[list[Member]], list[Member]]:
    def change(members: list[Member]) -> list[Member]:
        info = tarfile.TarInfo(name)
        for field, value in changes.items():
            setattr(info, field, value)
        return [*members, (info, b"")]

    return change


def _replace(part: str, **changes: object) -> Callable[[list[Member]], list[Member]]:
    def change(members: list[Member]) -> list[Member]:
        for info, _ in members:
            if info.name.endswith(part):
                for field, value in changes.items():
                    setattr(info, field, value)
        return [(info, b"" if info.name.endswith(part) and changes.get("type") else data) for info, data in members]

    return change


def _manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[list[Member]], list[Member]]:
    def changed(members: list[Member]) -> list[Member]:
        info, data = members[0]
        manifest = json.loads(data)
        change(manifest)
        content = json.dumps(manifest).encode()
        info.size = len(content)
        return [(info, content), *members[1:]]

    return changed


def _inputs(data: dict[str, Any], **changes: object) -> None:
    data["inputs"].update(changes)
    data["key"] = BuildKey.of(data["inputs"]).digest


TOP = "kwdb-V3.2.1-linux-amd64/"
HOSTILE: dict[str, Callable[[list[Member]], list[Member]]] = {
    "traversal": _extra(f"{TOP}../../evil"),
    "absolute": _extra("/tmp/evil"),
    "not in the manifest": _extra(f"{TOP}bin/evil"),
    "twice": lambda members: [*members, members[-1]],
    "device": _replace("lib/libkwdbts2.so", type=tarfile.CHRTYPE, size=0, devmajor=1, devminor=3),
    "pipe": _replace("lib/libkwdbts2.so", type=tarfile.FIFOTYPE, size=0),
    "hard link": _replace("lib/libkwdbts2.so", type=tarfile.LNKTYPE, size=0, linkname="/etc/passwd"),
    "symlink for a file": _replace("bin/kwbase", type=tarfile.SYMTYPE, size=0, linkname="/etc/passwd"),
    "symlink elsewhere": _replace("lib/libcommon.so", linkname="../../../etc/passwd"),
    "symlink for a document": _replace("provenance.json", type=tarfile.SYMTYPE, size=0, linkname="/etc/passwd"),
    "a missing file": lambda members: members[:-1],
    "manifest not first": lambda members: [*members[1:], members[0]],
    "manifest with traversal": _manifest(lambda data: data["files"][0].update(path="bin/../../../evil")),
    "manifest outside": _manifest(lambda data: data["files"][0].update(path="etc/evil")),
    "manifest with a link out": _manifest(lambda data: data["files"][2].update(link="../../evil")),
    "manifest with a path through a link": _manifest(lambda data: data["files"][2].update(link="q/../../kwbase")),
    "manifest with a file below a link": _manifest(
        lambda data: data["files"].append({**data["files"][0], "path": f"{data['files'][2]['path']}/evil"})
    ),
    "manifest with set-user-id": _manifest(lambda data: data["files"][0].update(mode=0o4555)),
    "manifest with another size": _manifest(lambda data: data["files"][0].update(size=3)),
    "manifest with another digest": _manifest(lambda data: data["files"][0].update(sha256="0" * 64)),
    "manifest of another key": _manifest(lambda data: data.update(key="0" * 64)),
    "manifest of another format": _manifest(lambda data: data.update(format=99)),
    "manifest without files": _manifest(lambda data: data.pop("files")),
    "manifest with strange files": _manifest(lambda data: data.update(files=[1])),
    "manifest of another version": _manifest(lambda data: data.update(version="V9.9.9")),
    "manifest of another commit": _manifest(lambda data: data.update(commit="e" * 40)),
    "manifest with a commit that is no text": _manifest(lambda data: data.update(commit={"a": 1})),
    "manifest with a strange time": _manifest(lambda data: data["details"].update(source_time="x")),
    "manifest with a time beyond all archives": _manifest(lambda data: data["details"].update(source_time=1 << 40)),
    "manifest with strange details": _manifest(lambda data: data.update(details="abc")),
    "manifest with a toolchain that is a text": _manifest(lambda data: _inputs(data, toolchain="x")),
    "manifest with an architecture that is a list": _manifest(lambda data: _inputs(data, toolchain={"architecture": [1]})),
    **{
        f"manifest with {field} {value!r}": _manifest(lambda data, f=field, v=value: data["files"][0].update({f: v}))
        for field, value in (("path", 5), ("size", "12"), ("size", 1.5), ("mode", None), ("sha256", None), ("link", 5))
    },
}


@pytest.mark.parametrize("word", HOSTILE)
def test_a_hostile_archive_is_refused(packed: Path, elsewhere: ArtifactStore, tmp_path: Path, word: str) -> None:
    hostile = pack(tmp_path / "hostile.tar.zst", HOSTILE[word](unpack(packed)))
    before = sorted(tmp_path.rglob("evil"))
    with pytest.raises(KwdbBuildError) as caught:
        take(elsewhere, hostile)
    assert isinstance(caught.value, ArtifactError), caught.value
    assert left(elsewhere) == [".gate"]
    assert sorted(tmp_path.rglob("evil")) == before == []


def _header_bomb(members: list[Member]) -> list[Member]:
    info = tarfile.TarInfo("x" * 50)
    info.pax_headers = {"comment": "0" * (8 << 20)}
    return [*members[:1], (info, b""), *members[1:]]


def _document_bomb(part: str, size: int) -> Callable[[list[Member]], list[Member]]:
    def change(members: list[Member]) -> list[Member]:
        content = b'{"x":[' + b"[]," * (size // 3) + b"[]]}"
        for info, _ in members:
            if info.name.endswith(part):
                info.size = len(content)
        return [(info, content if info.name.endswith(part) else data) for info, data in members]

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_header_bomb, "more than its manifest says"),
        (lambda members: _header_bomb(members)[1:], "more than its manifest says"),
        (_document_bomb("manifest.json", 5 << 20), "manifest.json is no plain file of at most 4.0 MiB"),
        (_document_bomb("provenance.json", 5 << 20), "provenance.json is no plain file of at most 4.0 MiB"),
        (_document_bomb("sbom.cdx.json", 17 << 20), "sbom.cdx.json is no plain file of at most 16.0 MiB"),
        (_document_bomb("README.txt", 1 << 20), "README.txt is no plain file of at most 64.0 KiB"),
    ],
)
def test_a_small_file_that_unpacks_to_much_is_refused(
    packed: Path, elsewhere: ArtifactStore, tmp_path: Path, change: Callable[[list[Member]], list[Member]], said: str
) -> None:
    bomb = pack(tmp_path / "bomb.tar.zst", change(unpack(packed)))
    assert bomb.stat().st_size < 200_000
    with pytest.raises(ArtifactError) as caught:
        take(elsewhere, bomb)
    assert said in caught.value.context
    assert left(elsewhere) == [".gate"]


def test_a_build_for_another_machine_is_refused_unless_meant(
    store: ArtifactStore, elsewhere: ArtifactStore, tmp_path: Path
) -> None:
    other = add_build(store, tmp_path, "riscv", key=key_of("riscv", architecture="riscv64"))
    target = tmp_path / "riscv.tar.zst"
    export(store, other, target)
    with pytest.raises(UsageError, match="riscv64"):
        take(elsewhere, target)
    # Meant: now its kwbase is looked at, and this one is not what its key says.
    with pytest.raises(ArtifactError) as caught:
        take(elsewhere, target, foreign=True)
    assert "EM_X86_64" in caught.value.context


def test_a_changed_build_is_not_exported(store: ArtifactStore, artifact: Artifact, tmp_path: Path) -> None:
    spoil(artifact.path / "lib/libkwdbts2.so")
    with pytest.raises(ArtifactError) as caught:
        export(store, artifact, tmp_path / "x.tar.zst")
    assert "set aside" in caught.value.hint
    assert not (tmp_path / "x.tar.zst").exists()
    assert store.find(artifact.key) is None


def test_a_file_that_is_there_stays_unless_forced(store: ArtifactStore, artifact: Artifact, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("precious")
    with pytest.raises(UsageError, match="is there already"):
        export(store, artifact, target)
    assert target.read_text() == "precious"
    assert export(store, artifact, target, force=True) == sha256_of(target)


def test_a_place_that_takes_no_file_is_told_before_anything_is_read(
    store: ArtifactStore, artifact: Artifact, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"there is no directory .*/absent") as caught:
        export(store, artifact, tmp_path / "absent" / "x.tar.zst")
    assert caught.value.hint
    with pytest.raises(UsageError, match="is no regular file"):
        export(store, artifact, Path("/dev/null"), force=True)


@pytest.mark.parametrize("force", [False, True])
def test_of_two_exports_at_once_the_later_replaces_only_by_force_and_nobody_elses_file(
    store: ArtifactStore, artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, force: bool
) -> None:
    target, mine = tmp_path / "x.tar.zst", tmp_path / ".x.tar.zst.part"
    mine.write_text("precious")
    write_members, digests = archive._write_members, []

    def export_meanwhile(*arguments: Any) -> None:
        monkeypatch.setattr(archive, "_write_members", write_members)
        digests.append(export(store, artifact, target))
        write_members(*arguments)

    monkeypatch.setattr(archive, "_write_members", export_meanwhile)
    with contextlib.nullcontext() if force else pytest.raises(UsageError, match="is there already"):
        digests.append(export(store, artifact, target, force=force))
    assert digests == [sha256_of(target)] * (1 + force)
    assert mine.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.glob("*x.tar.zst*")) == [".x.tar.zst.part", "x.tar.zst"]


def test_a_full_disk_leaves_nothing_behind(
    store: ArtifactStore, artifact: Artifact, packed: Path, elsewhere: ArtifactStore, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(archive._Hashing, "write", full)
    with pytest.raises(SpaceError, match="No space left") as caught:
        export(store, artifact, tmp_path / "x.tar.zst")
    assert caught.value.hint == "free space there, or choose another place"
    assert not list(tmp_path.glob("*x.tar.zst*"))
    monkeypatch.setattr(os, "fchmod", full)
    with pytest.raises(SpaceError, match="No space left"):
        take(elsewhere, packed)
    assert left(elsewhere) == [".gate"]


_KILLED = """
import os, signal, sys
from pathlib import Path
from kwdb_build.build import archive, intake
from kwdb_build.build.signing import Trust
from kwdb_build.build.store import ArtifactStore
from kwdb_build.console import Progress

class Die(Progress):
    def update(self, text, *, done=None, total=None):
        if text == sys.argv[4]:
            os.kill(os.getpid(), signal.SIGKILL)

store = ArtifactStore(Path(sys.argv[2]))
if sys.argv[1] == "export":
    archive.export(store, store.resolve("latest"), Path(sys.argv[3]), force=False, progress=Die())
else:
    intake.import_archive(store, Path(sys.argv[3]), trust=Trust(), foreign=False, progress=Die())
"""


def _killed(*words: str) -> None:
    done = subprocess.run([sys.executable, "-c", _KILLED, *words], cwd=ROOT, check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_kill_9_in_the_middle_of_an_export(store: ArtifactStore, artifact: Artifact, tmp_path: Path) -> None:
    target = tmp_path / "x.tar.zst"
    _killed("export", str(store.root), str(target), "packing")
    assert not target.exists()
    assert export(store, artifact, target) == sha256_of(target)
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize("moment", ["unpacking", "verifying"])
def test_kill_9_in_the_middle_of_an_import(packed: Path, elsewhere: ArtifactStore, moment: str) -> None:
    _killed("import", str(elsewhere.root), str(packed), moment)
    assert elsewhere.list() == ()
    one, new = take(elsewhere, packed)
    assert new
    assert left(elsewhere) == [".gate", one.key.digest]


def test_two_imports_at_once_leave_one_whole_build(packed: Path, elsewhere: ArtifactStore) -> None:
    argv = [sys.executable, "-c", _KILLED, "import", str(elsewhere.root), str(packed), "never"]
    both = [subprocess.Popen(argv, cwd=ROOT) for _ in range(2)]
    assert [one.wait(120) for one in both] == [0, 0]
    (only,) = elsewhere.list()
    elsewhere.verify(only)
    assert left(elsewhere) == [".gate", only.key.digest]


def test_names_say_what_is_inside(artifact: Artifact) -> None:
    name = archive.archive_name(artifact)
    assert name.startswith("kwdb-V3.2.1-linux-")
    assert name.endswith(f"-{artifact.key.digest[:12]}.tar.zst")
