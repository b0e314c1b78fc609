"""Base images that a user gives: names, registries, files; and archives flattened to one root file system."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kwdb_build.engine.base import RunResult, RunSpec, StoredImage
from kwdb_build.errors import DependencyError, EngineError
from kwdb_build.toolchain import given_base
from kwdb_build.toolchain.flatten import flatten
from tests.unit.build.artifactbox import TOOLCHAIN

PINNED = f"debian:bookworm@sha256:{'a' * 64}"


@pytest.mark.parametrize(
    ("name", "registry", "shown"),
    [
        (PINNED, "", PINNED), (PINNED, "mirror.example/hub", f"mirror.example/hub/{PINNED}"),
        (PINNED, "mirror.example:5000/", f"mirror.example:5000/{PINNED}"),
        ("library/debian", "mirror.example", "mirror.example/library/debian"),
        ("quay.example/debian", "mirror.example", "quay.example/debian"),
        ("localhost:5000/debian", "mirror.example", "localhost:5000/debian"),
        (f"sha256:{'b' * 64}", "mirror.example", f"sha256:{'b' * 64}"),
    ],
)
def test_prefix_of_a_registry(name: str, registry: str, shown: str) -> None:
    assert given_base.from_registry(name, registry) == shown
    assert given_base.identity(name) == name, "another mirror of the same image is the same base"


@pytest.mark.parametrize("name", ["debian:", "Debian", "debian@sha256:abc", "debian bookworm", "-debian", "debian;id", "a//b"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(DependencyError, match="no name of an image"):
        given_base.identity(name)


def test_pinned() -> None:
    assert given_base.is_pinned(PINNED)
    assert given_base.is_pinned("/srv/base.tar")
    assert not given_base.is_pinned("debian:bookworm")


def test_a_file_is_its_content(tmp_path: Path) -> None:
    one, two = tmp_path / "one.tar", tmp_path / "two.tar"
    one.write_bytes(b"same")
    two.write_bytes(b"same")
    before = given_base.identity(str(one))
    assert before == given_base.identity(str(two)) == f"sha256:{hashlib.sha256(b'same').hexdigest()}"
    two.write_bytes(b"other bytes")
    assert given_base.identity(str(two)) != before
    with pytest.raises(DependencyError, match="cannot be read"):
        given_base.identity(str(tmp_path / "none.tar"))


class TakingEngine:
    """Remembers what it is given."""

    def __init__(self) -> None:
        self.images: dict[str, str] = {}

    def image_id(self, tag: str) -> str | None:
        return self.images.get(tag)

    def import_base(self, archive: Path, tag: str, *, environment: dict[str, str]) -> str:
        self.images[tag] = str(archive)
        return tag

    def load_image(self, path: Path) -> StoredImage:
        self.images["loaded:1"] = str(path)
        return StoredImage(tag="loaded:1", identity="sha256:1")


Entry = tuple[str, bytes | None] | tuple[str, bytes | None, str]


def layer(*entries: Entry) -> bytes:
    """A layer: (name, content), content None for a directory; a third one is what it is linked to (hard)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content, *link in entries:
            entry = tarfile.TarInfo(name)
            entry.mode = 0o750
            if content is None:
                entry.type = tarfile.DIRTYPE
            elif link:
                entry.type, entry.linkname = tarfile.LNKTYPE, link[0]
            else:
                entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content or b""))
    return out.getvalue()


def saved(path: Path, *layers: bytes, spoil: bool = False) -> Path:
    """An archive as `docker save` writes it."""
    digests = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in layers]
    config = json.dumps({"config": {"Env": ["PATH=/bin"]}, "rootfs": {"type": "layers", "diff_ids": digests}}).encode()
    names = [f"{number}/layer.tar" for number in range(len(layers))]
    manifest = json.dumps([{"Config": "c.json", "RepoTags": ["some/image:1"], "Layers": names}]).encode()
    files: list[tuple[str, bytes]] = [("c.json", config), ("manifest.json", manifest), *zip(names, layers, strict=True)]
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            content = data.replace(b"secret", b"sceret") if spoil else data
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def tree(path: Path) -> dict[str, Any]:
    with tarfile.open(path) as tar:
        return {
            entry.name: None if entry.isdir() else entry.linkname if entry.issym() else (tar.extractfile(entry) or io.BytesIO()).read()
            for entry in tar
        }


def test_a_root_file_system_or_an_image(tmp_path: Path) -> None:
    engine = TakingEngine()
    root = tmp_path / "root.tar"
    root.write_bytes(layer(("./etc", None), ("./var", None), ("./etc/os-release", b"ID=debian")))
    tag = given_base.take_file(str(root), engine=engine)  # type: ignore[arg-type]
    assert engine.images == {tag: str(root)}
    assert given_base.take_file(str(root), engine=engine) == tag  # type: ignore[arg-type]
    image = saved(tmp_path / "image.tar", layer(("etc", None)))
    assert given_base.take_file(str(image), engine=engine) == "loaded:1"  # type: ignore[arg-type]
    for content in (b"no tar", layer(("home", None))):
        (tmp_path / "bad.tar").write_bytes(content)
        with pytest.raises(DependencyError, match=r"bad\.tar"):
            given_base.take_file(str(tmp_path / "bad.tar"), engine=engine)  # type: ignore[arg-type]


def test_what_later_layers_hide_is_gone(tmp_path: Path) -> None:
    below = layer(
        ("etc", None), ("etc/keep", b"1"), ("etc/secret", b"secret"), ("etc/change", b"old"), ("opt", None),
        ("opt/lost", b"secret"), ("opt/deep", None), ("opt/deep/lost", b"secret"), ("usr", None), ("usr/file", b"dir later"),
        ("lib", None), ("lib/inner", b"hidden by a file"),
    )
    above = layer(
        ("etc", None), ("etc/change", b"new"), ("etc/.wh.secret", b""), ("opt", None), ("opt/.wh..wh..opq", b""),
        ("opt/new", b"2"), ("lib", b"now a file"),
    )
    target = tmp_path / "root.tar"
    flatten(saved(tmp_path / "image.tar", below, above), target)
    assert tree(target) == {
        "etc": None, "etc/keep": b"1", "etc/change": b"new", "opt": None, "opt/new": b"2", "usr": None,
        "usr/file": b"dir later", "lib": b"now a file",
    }
    assert b"secret" not in target.read_bytes()


def test_a_hard_link_survives_its_first_name(tmp_path: Path) -> None:
    below = layer(("bin", None), ("bin/one", b"program"), ("bin/two", b"", "bin/one"), ("bin/three", b"", "bin/one"))
    flatten(saved(tmp_path / "image.tar", below, layer(("bin", None), ("bin/one", b"changed"))), tmp_path / "root.tar")
    assert tree(tmp_path / "root.tar") == {
        "bin": None, "bin/one": b"changed", "bin/two": b"program", "bin/three": b"program"
    }


def test_what_comes_back_after_it_was_removed(tmp_path: Path) -> None:
    layers = [layer(("a", None), ("a/x", b"1")), layer((".wh.a", b"")), layer(("a", None), ("a/y", b"2"))]
    flatten(saved(tmp_path / "image.tar", *layers), tmp_path / "root.tar")
    assert tree(tmp_path / "root.tar") == {"a": None, "a/y": b"2"}


def test_a_changed_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no whole image archive"):
        flatten(saved(tmp_path / "image.tar", layer(("a", b"secret")), spoil=True), tmp_path / "root.tar")
    assert not (tmp_path / "root.tar").exists()


# What a build tells of its base ----------------------------------------------------------------------------------------

LISTED = (
    "ii \tgcc\t4:12.2.0-3\tamd64", "ii \tlibc6\t2.36-9\ti386", "ii \tlibc6\t2.36-9\tamd64",
    "rc \tvim\t2:9.0\tamd64", "hi \theld\t1.0\tall", "dpkg-query: warning: something", "iU \thalf\t1\tall",
)


@dataclasses.dataclass
class Asked:
    """Stands in for an engine that has these images and answers like this."""

    lines: tuple[str, ...] = LISTED
    result: RunResult = dataclasses.field(default_factory=lambda: RunResult(returncode=0))
    images: dict[str, str] = dataclasses.field(default_factory=dict)
    dies: bool = False
    specs: list[RunSpec] = dataclasses.field(default_factory=list)

    def image_id(self, tag: str) -> str | None:
        return self.images.get(tag)

    def run(self, spec: RunSpec, *, on_line: Callable[[str], None], log: Path) -> RunResult:
        self.specs.append(spec)
        if self.dies:
            raise EngineError("gone")
        for line in self.lines:
            on_line(line)
        return self.result


def described(engine: Asked, base_image: str, tmp_path: Path, registry: str = "") -> given_base.GivenBase | None:
    toolchain = dataclasses.replace(TOOLCHAIN, base_image=base_image)  # its lock has gcc
    return given_base.describe(toolchain, "t:1", registry, engine=engine, log=tmp_path / "log")  # type: ignore[arg-type]


def test_a_bootstrapped_image_has_no_base_and_is_not_asked(tmp_path: Path) -> None:
    engine = Asked()
    assert described(engine, "", tmp_path) is None
    assert engine.specs == []


def test_a_base_is_known_by_the_image_that_the_engine_has(tmp_path: Path) -> None:
    held = f"sha256:{'c' * 64}"
    engine = Asked(images={f"mirror.example/{PINNED}": held})
    base = described(engine, PINNED, tmp_path, "mirror.example")
    assert base is not None
    assert (base.name, base.uri) == (PINNED, f"docker://mirror.example/{PINNED}")
    assert (base.digest, base.digest_of) == (held, "image")
    assert base.packages is not None
    assert [(one.name, one.version, one.architecture) for one in base.packages] == [
        ("held", "1.0", "all"), ("libc6", "2.36-9", "amd64"), ("libc6", "2.36-9", "i386"),
    ], "what is installed, and in no lock"
    assert engine.specs[0].uid != 0
    base = described(Asked(), PINNED, tmp_path)
    assert base is not None
    assert (base.digest, base.digest_of) == (f"sha256:{'a' * 64}", "manifest"), "the engine needs it no more"
    base = described(Asked(), "debian:bookworm", tmp_path)
    assert base is not None
    assert (base.digest, base.digest_of) == ("", ""), "never guessed"


def test_a_base_from_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    file = tmp_path / "base image.tar"
    file.write_bytes(b"root")
    base = described(Asked(), str(file), tmp_path)
    assert base is not None
    assert (base.name, base.uri) == ("base image.tar", file.as_uri())
    assert (base.digest, base.digest_of) == (f"sha256:{hashlib.sha256(b'root').hexdigest()}", "file")
    file.unlink()
    base = described(Asked(), str(file), tmp_path)
    assert base is not None
    assert base.digest == ""


@pytest.mark.parametrize(
    "engine", [Asked(lines=()), Asked(result=RunResult(returncode=127)), Asked(dies=True)], ids=["empty", "none", "dead"]
)
def test_packages_that_cannot_be_read_are_not_an_empty_list(engine: Asked, tmp_path: Path) -> None:
    base = described(engine, PINNED, tmp_path)
    assert base is not None
    assert base.packages is None
