"""Layers of an image archive over an unpacked root file system, and a root file system as an archive of one layer."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import shutil
import tarfile
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from kwdb_build import command, files
from kwdb_build.engine.archive import open_layer
from kwdb_build.errors import EngineError
from kwdb_build.scratch import remove_tree

if TYPE_CHECKING:
    from collections.abc import Mapping

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_PACK_S = 3600.0
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def extract(tar: tarfile.TarFile, name: str, target: Path) -> None:
    """One layer's uncompressed tar as a file."""
    with open_layer(tar, name) as stream, target.open("wb") as sink:
        shutil.copyfileobj(stream, sink, 1 << 20)


def take_away(layer: Path, root: Path) -> None:
    """Remove below root what a layer says is gone (its white-outs); nothing outside of root, whatever it says."""
    with tarfile.open(layer) as tar:
        for member in tar:
            place = PurePosixPath(member.name)
            if not place.name.startswith(_WHITEOUT):
                continue
            parent = _inside(root, place.parent)
            if parent is None:
                continue
            if place.name == _OPAQUE:
                for entry in parent.iterdir():
                    _remove(entry)
            else:
                _remove(parent / place.name.removeprefix(_WHITEOUT))


def _inside(root: Path, relative: PurePosixPath) -> Path | None:
    """The directory root/relative, None when it is none, or reached through a link or `..`."""
    place = root
    for part in relative.parts:
        if part in {".", "/"}:
            continue
        place /= part
        if part == ".." or place.is_symlink() or not place.is_dir():
            return None
    return place


def _remove(path: Path) -> None:
    if path.name in {"", ".", ".."}:
        return
    if path.is_dir() and not path.is_symlink():
        remove_tree(path)
    else:
        path.unlink(missing_ok=True)


def write_archive(path: Path, root: Path, *, tag: str, environment: Mapping[str, str]) -> None:
    """Write root as an image archive that every engine takes; the file appears only when it is whole.

    Everything belongs to root in it, as in the image of a container engine.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as temporary:
        layer, partial = Path(temporary) / "layer.tar", Path(temporary) / "image.tar"
        try:
            command.run([
                "tar", "--create", f"--file={layer}", f"--directory={root}", "--sort=name", "--numeric-owner",
                "--owner=0", "--group=0", "--format=gnu", ".",
            ], timeout_s=_PACK_S)
        except command.CommandError as error:
            raise EngineError(f"cannot export {tag}", context=error.context or error.message) from error
        diff_id = f"sha256:{files.sha256_of(layer)}"
        machine = platform.machine()
        config = json.dumps({
            "architecture": _ARCHITECTURES.get(machine, machine), "os": "linux",
            "config": {"Env": [f"{name}={value}" for name, value in environment.items()]},
            "rootfs": {"type": "layers", "diff_ids": [diff_id]}, "history": [{"created_by": "kwdb-build"}],
        }).encode()
        name = f"{hashlib.sha256(config).hexdigest()}.json"
        manifest = json.dumps([{"Config": name, "RepoTags": [tag], "Layers": ["layer.tar"]}]).encode()
        with tarfile.open(partial, "w") as tar:
            for member, content in ((name, config), ("manifest.json", manifest)):
                file = Path(temporary) / "member"
                file.write_bytes(content)
                tar.add(file, member, filter=_plain)
            tar.add(layer, "layer.tar", filter=_plain)
        files.fsync_file(partial)
        partial.replace(path)
    with contextlib.suppress(OSError):
        files.fsync_directory(path.parent)


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mtime = 0
    entry.mode = 0o644
    return entry
