"""Image archives: whole ones of both shapes, and every way in which one can be broken."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from kwdb_build.engine.archive import read_archive
from kwdb_build.errors import EngineError


def tar_of(members: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return sink.getvalue()


LAYER = tar_of({"etc/motd": b"hello\n"})
DIFF_ID = f"sha256:{hashlib.sha256(LAYER).hexdigest()}"


def archive(path: Path, *, tags: Any = ("kwdb-build/x:1",), layer: bytes = LAYER, diff_ids: Any = (DIFF_ID,)) -> Path:
    config = {"rootfs": {"diff_ids": list(diff_ids)}, "config": {"Env": ["PATH=/bin", "EMPTY="]}}
    manifest = [{"Config": "c.json", "RepoTags": list(tags), "Layers": ["l/layer.tar"]}]
    path.write_bytes(tar_of({
        "manifest.json": json.dumps(manifest).encode(), "c.json": json.dumps(config).encode(), "l/layer.tar": layer,
    }))
    return path


@pytest.mark.parametrize("layer", [LAYER, gzip.compress(LAYER)], ids=["plain", "compressed"])
def test_a_whole_one(tmp_path: Path, layer: bytes) -> None:
    found = read_archive(archive(tmp_path / "a.tar", layer=layer))
    assert (found.tag, found.diff_ids, found.members) == ("kwdb-build/x:1", (DIFF_ID,), ("l/layer.tar",))
    assert found.environment == {"PATH": "/bin", "EMPTY": ""}


def test_podman_s_name_is_the_same_name(tmp_path: Path) -> None:
    found = read_archive(archive(tmp_path / "a.tar", tags=["localhost/kwdb-build/x:1"]))
    assert (found.tag, found.named) == ("kwdb-build/x:1", "localhost/kwdb-build/x:1")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tags": []}, "exactly one image, with a tag"),
        ({"layer": LAYER.replace(b"hello", b"HELLO")}, "was read"),
        ({"diff_ids": []}, "names 0 layers, its list 1"),
        ({"layer": gzip.compress(LAYER)[:-20]}, "EOFError"),
    ],
)
def test_a_changed_one_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(EngineError, match="no whole image archive") as caught:
        read_archive(archive(tmp_path / "a.tar", **changes))
    assert said in caught.value.context


@pytest.mark.parametrize("size", [0, 700, 1500, 3000])
def test_a_cut_one_is_refused(tmp_path: Path, size: int) -> None:
    whole = archive(tmp_path / "a.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:size])
    with pytest.raises(EngineError, match="no whole image archive"):
        read_archive(tmp_path / "cut.tar")


def test_none_and_other_files(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"none\.tar is no whole image archive"):
        read_archive(tmp_path / "none.tar")
    (tmp_path / "text").write_text("no archive at all" * 1000)
    with pytest.raises(EngineError, match="no whole image archive"):
        read_archive(tmp_path / "text")
