"""Bundles as files: whole ones, and every way in which one can be cut, changed, reordered or signed by others."""

from __future__ import annotations

import dataclasses
import io
import json
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kwdb_build.console import Progress
from kwdb_build.errors import BundleError, UsageError
from kwdb_build.model import Patch, SourceTree, Version, to_json
from kwdb_build.source import bundle
from kwdb_build.source.packing import PackedRepository

if sys.version_info >= (3, 14):
    from compression.zstd import CompressionParameter, compress
    from compression.zstd import open as zstd_open
else:
    from backports.zstd import CompressionParameter, compress
    from backports.zstd import open as zstd_open

DATA = {"source/0.pack": b"pack" * 5000, "toolchain/lock.toml": b"lock", "toolchain/image.tar": bytes(range(256)) * 800}


def contents_of(directory: Path) -> bundle.Contents:
    tree = SourceTree(
        path=Path("/"), url="https://gitee.com/kwdb/kwdb.git", ref="V1.0.0", commit="c" * 40,
        version=Version.parse("V1.0.0"), commit_time=1, submodules=(),
    )
    return bundle.Contents(
        format=bundle.FORMAT, made_by="0", source=tree, patches=(), toolchain=None,
        repositories=(PackedRepository(path="", commit="c" * 40, pack="0.pack"),),
        members=bundle.members_of(directory),
    )


@pytest.fixture
def laid_out(tmp_path: Path) -> Path:
    place = tmp_path / "laid-out"
    for name, data in DATA.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    return place


@pytest.fixture
def made(laid_out: Path, tmp_path: Path) -> Path:
    file = tmp_path / "x.kwdb-bundle"
    bundle.write_bundle(contents_of(laid_out), laid_out, file, sign=None, progress=Progress())
    return file


def check(file: Path, **options: Any) -> bundle.Checked:
    return bundle.check_bundle(file, key=options.pop("key", None), progress=Progress(), **options)


def refused(file: Path, words: str, **options: Any) -> None:
    with pytest.raises(BundleError) as caught:
        check(file, **options)
    assert words in caught.value.message
    assert caught.value.exit_code == 19


def members(file: Path) -> list[tuple[str, bytes]]:
    with zstd_open(file, "rb") as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        return [(entry.name, tar.extractfile(entry).read()) for entry in tar]  # type: ignore[union-attr]


def packed(file: Path, entries: list[tuple[str, bytes]], *, kind: bytes = tarfile.REGTYPE) -> Path:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if name == "link":
                info.type, info.size, info.linkname = kind, 0, "/etc/passwd"
            tar.addfile(info, io.BytesIO(data))
    file.write_bytes(compress(stream.getvalue(), options={CompressionParameter.checksum_flag: 1}))
    return file


def test_a_whole_bundle(made: Path, tmp_path: Path) -> None:
    checked = check(made)
    assert {member.path for member in checked.contents.members} == set(DATA)
    assert not checked.signature
    (tmp_path / "out").mkdir()
    check(made, into=tmp_path / "out")
    assert {name: (tmp_path / "out" / name).read_bytes() for name in DATA} == DATA


def test_the_same_files_give_the_same_digest(laid_out: Path, made: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    digest = bundle.write_bundle(contents_of(laid_out), laid_out, again, sign=None, progress=Progress())
    assert digest == check(made).digest == check(again).digest


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.99])
def test_cut_short(made: Path, share: float) -> None:
    data = made.read_bytes()
    made.write_bytes(data[: int(len(data) * share)])
    refused(made, "refused")


def test_cut_by_one_byte_and_longer_by_one(made: Path) -> None:
    data = made.read_bytes()
    made.write_bytes(data[:-1])
    refused(made, "damaged or cut short")
    made.write_bytes(data + b"x")
    refused(made, "damaged or cut short")


@pytest.mark.parametrize("share", [number / 12 for number in range(12)])
def test_a_flipped_bit_anywhere(made: Path, share: float) -> None:
    data = bytearray(made.read_bytes())
    data[int(len(data) * share)] ^= 0x10
    made.write_bytes(bytes(data))
    refused(made, "refused")


CHANGES: dict[str, tuple[Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]], str]] = {
    "content": (lambda have: [*have[:-1], (have[-1][0], b"\xff" + have[-1][1][1:])], "is not what its contents say"),
    "missing": (lambda have: have[:-1], "it lacks"),
    "more": (lambda have: [*have, ("source/9.pack", b"x")], "is not in its contents"),
    "twice": (lambda have: [*have, have[-1]], "is not in its contents"),
    "order": (lambda have: [have[0], *reversed(have[1:])], "stands where"),
    "renamed": (lambda have: [have[0], ("../../etc/x", have[1][1]), *have[2:]], "stands where"),
    "link": (lambda have: [have[0], ("link", b""), *have[1:]], "stands where"),
    "no contents": (lambda have: have[1:], "does not begin with"),
    "no json": (lambda have: [("contents.json", b"{"), *have[1:]], "cannot be read"),
    "empty": (lambda have: [], "does not begin with"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_put_together_anew(made: Path, name: str) -> None:
    change, words = CHANGES[name]
    refused(packed(made, change(members(made)), kind=tarfile.SYMTYPE), words)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda c: c | {"format": 2}, "format 2"),
        (lambda c: c | {"members": [*c["members"], c["members"][0]]}, "twice"),
        (lambda c: c | {"members": [c["members"][0] | {"path": "source/../../x"}]}, "name 'source/../../x'"),
        (lambda c: c | {"members": [c["members"][0] | {"path": "/etc/x"}]}, "name '/etc/x'"),
        (lambda c: c | {"repositories": [c["repositories"][0] | {"pack": "1.pack"}]}, "lack source/1.pack"),
        (lambda c: c | {"repositories": [c["repositories"][0] | {"path": "../x"}]}, "name the place '../x'"),
        (lambda c: c | {"repositories": [c["repositories"][0] | {"path": "a/.git"}]}, "name the place"),
        (lambda c: c | {"patches": [to_json(Patch(name="p", sha256="e" * 64))]}, "lack patches/"),
        (lambda c: c | {"source": {}}, "cannot be read"),
    ],
)
def test_contents_that_lie(made: Path, edit: Callable[[dict[str, Any]], dict[str, Any]], words: str) -> None:
    have = members(made)
    changed = json.dumps(edit(json.loads(have[0][1]))).encode()
    refused(packed(made, [("contents.json", changed), *have[1:]]), words)


def test_not_a_bundle(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"PK\x03\x04")
    refused(file, "no bundle of kwdb-build")
    with pytest.raises(UsageError):
        check(tmp_path / "missing")


# ------------------------------------------------------------------ signatures


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two people's ssh keys."""
    place = tmp_path_factory.mktemp("keys")
    for name in ("mine", "other"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"{name}@host", "-f", place / name], check=True)
    return place / "mine", place / "other"


@pytest.fixture
def signed(laid_out: Path, tmp_path: Path, keys: tuple[Path, Path]) -> Path:
    file = tmp_path / "signed"
    bundle.write_bundle(contents_of(laid_out), laid_out, file, sign=keys[0], progress=Progress())
    return file


def public(key: Path) -> Path:
    return key.with_name(f"{key.name}.pub")


def test_a_signed_bundle(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    assert check(signed, key=public(keys[0])).signed
    assert not check(signed).signed
    assert check(signed).signature
    several = tmp_path / "allowed"
    several.write_text(f"# ours\nother@host {public(keys[1]).read_text()}me@host {public(keys[0]).read_text()}")
    assert check(signed, key=several).signed, "a file of allowed signers works too"


def test_signed_by_somebody_else(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    refused(signed, "not signed by", key=public(keys[1]))
    empty = tmp_path / "empty.pub"
    empty.write_text("")
    refused(signed, "not signed by", key=empty)


def test_not_signed_but_asked_for(made: Path, keys: tuple[Path, Path]) -> None:
    refused(made, "it is not signed", key=public(keys[0]))
    with pytest.raises(UsageError):
        check(made, key=Path("/nonexistent"))


def test_a_signature_of_other_contents(signed: Path, made: Path, keys: tuple[Path, Path]) -> None:
    theirs = dict(members(signed))
    other = json.loads(theirs["contents.json"]) | {"made_by": "somebody else"}
    entries = [("contents.json", json.dumps(other).encode()), *members(signed)[1:]]
    refused(packed(made, entries), "not signed by", key=public(keys[0]))


def test_keys_that_cannot_sign(laid_out: Path, tmp_path: Path) -> None:
    contents = contents_of(laid_out)
    (tmp_path / "key").write_text("no key")
    for key in (tmp_path / "key", tmp_path / "missing"):
        with pytest.raises(UsageError):
            bundle.write_bundle(contents, laid_out, tmp_path / "out", sign=key, progress=Progress())
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".part")]


_KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from kwdb_build.source.partial import whole_file

with whole_file(Path(sys.argv[1]), begins=bytes.fromhex("28b52ffd")) as stream:
    stream.write(bytes.fromhex("28b52ffd")[: int(sys.argv[2])])
    stream.flush()
    print("writing", flush=True)
    sys.stdin.read()  # until the test has seen it
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("written", [0, 2, 4])
def test_what_a_killed_call_left_goes_with_the_next_and_nothing_else(
    laid_out: Path, tmp_path: Path, written: int
) -> None:
    place = tmp_path / "stick"
    place.mkdir()
    target = place / "a+b.kwdb-bundle"

    def write() -> None:
        bundle.write_bundle(contents_of(laid_out), laid_out, target, sign=None, progress=Progress())

    others = {
        ".a+b.kwdb-bundle.mynotes1.part": b"no bundle", ".a+b.kwdb-bundle.part": b"\x28\xb5\x2f\xfd",
        ".aab.kwdb-bundle.abcdefgh.part": b"\x28\xb5\x2f\xfd", "a+b.kwdb-bundle.abcdefgh.part": b"\x28\xb5\x2f\xfd",
    }
    for name, content in others.items():
        (place / name).write_bytes(content)
    (place / ".a+b.kwdb-bundle.alink123.part").symlink_to(tmp_path)
    (place / ".a+b.kwdb-bundle.adir1234.part").mkdir()
    before = set(place.iterdir())
    with subprocess.Popen(
        [sys.executable, "-c", _KILLED_WHILE_WRITING, str(target), str(written)], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3],
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        [partial] = set(place.iterdir()) - before
        write()
        assert partial.exists(), "it is being written"
        assert writer.stdin is not None
        writer.stdin.close()
        assert writer.wait(30) == -signal.SIGKILL
    assert partial.exists(), "kill -9 leaves it"
    write()
    assert set(place.iterdir()) == before | {target}
    check(target)


def test_a_place_that_may_be_written_to_but_not_listed(
    laid_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    contents = contents_of(laid_out)
    monkeypatch.setattr("kwdb_build.source.partial.Path.iterdir", refuse)
    bundle.write_bundle(contents, laid_out, tmp_path / "out", sign=None, progress=Progress())
    monkeypatch.undo()
    check(tmp_path / "out")


# --------------------------------------------------------------------- opening


def test_opened_once_and_whole(made: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    first = bundle.open_bundle(made, home=home, key=None, progress=Progress())
    inode = first.directory.stat().st_ino
    assert bundle.open_bundle(made, home=home, key=None, progress=Progress()) == first
    assert first.directory.stat().st_ino == inode
    (first.directory / "toolchain/lock.toml").write_text("evil")
    again = bundle.open_bundle(made, home=home, key=None, progress=Progress())
    assert (again.directory / "toolchain/lock.toml").read_bytes() == b"lock"


def test_a_damaged_one_leaves_nothing(made: Path, tmp_path: Path) -> None:
    made.write_bytes(made.read_bytes()[:-9])
    with pytest.raises(BundleError):
        bundle.open_bundle(made, home=tmp_path / "home", key=None, progress=Progress())
    assert [path.name for path in (tmp_path / "home/bundles").iterdir()] == [".gate"]


def test_a_changed_file_while_it_is_written(laid_out: Path, tmp_path: Path) -> None:
    contents = contents_of(laid_out)
    smaller = dataclasses.replace(
        contents, members=tuple(dataclasses.replace(member, sha256="0" * 64) for member in contents.members)
    )
    bundle.write_bundle(smaller, laid_out, tmp_path / "out", sign=None, progress=Progress())
    refused(tmp_path / "out", "is not what its contents say")
