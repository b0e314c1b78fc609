"""Image archives as `docker save` writes them (OCI layouts of newer engines have the same manifest.json inside).

An archive is believed only after every layer was hashed: the digests in its configuration are the ones an engine
checks too, so an image carried to another machine, or to another kind of engine, is the same image there.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import tarfile
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, cast

from kwdb_build.errors import EngineError

if TYPE_CHECKING:
    from pathlib import Path

LOCAL_PREFIX = "localhost/"
"""What Podman puts before the name of an image without a registry."""
_GZIP = b"\x1f\x8b"
_CHUNK = 1 << 20
_SMALL = 16 << 20


@dataclass(frozen=True, kw_only=True)
class ImageArchive:
    """One image in an archive: tag, digests of its uncompressed layers, their members' names, its environment.

    named is the tag as written in the archive.
    """

    tag: str
    named: str
    diff_ids: tuple[str, ...]
    members: tuple[str, ...]
    environment: dict[str, str]


def read_archive(path: Path) -> ImageArchive:
    """Read an archive of one tagged image and check every layer; EngineError names what is wrong."""
    try:
        with tarfile.open(path) as tar:
            manifest = _json(tar, "manifest.json")
            if not isinstance(manifest, list) or len(manifest) != 1 or not manifest[0].get("RepoTags"):
                raise _refused(path, "it must hold exactly one image, with a tag")
            entry = manifest[0]
            config = _json(tar, str(entry["Config"]))
            diff_ids, members = tuple(config["rootfs"]["diff_ids"]), tuple(entry["Layers"])
            if len(diff_ids) != len(members):
                raise _refused(path, f"its configuration names {len(diff_ids)} layers, its list {len(members)}")
            for wanted, name in zip(diff_ids, members, strict=True):
                if (found := _digest(tar, name)) != wanted:
                    raise _refused(path, f"layer {name}: {wanted} is written in the image, {found} was read")
    except (tarfile.TarError, OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _refused(path, f"{type(error).__name__}: {error}") from error
    named = str(entry["RepoTags"][0])
    environment = dict(pair.split("=", 1) for pair in config.get("config", {}).get("Env") or [] if "=" in pair)
    return ImageArchive(
        tag=named.removeprefix(LOCAL_PREFIX), named=named, diff_ids=diff_ids, members=members, environment=environment
    )


def open_layer(tar: tarfile.TarFile, name: str) -> IO[bytes]:
    """The uncompressed tar of a layer."""
    member = tar.extractfile(name)
    if member is None:
        msg = f"{name} is no file"
        raise ValueError(msg)
    compressed = member.read(len(_GZIP)) == _GZIP
    member.seek(0)
    return cast("IO[bytes]", gzip.GzipFile(fileobj=member) if compressed else member)


def _digest(tar: tarfile.TarFile, name: str) -> str:
    digest = hashlib.sha256()
    with open_layer(tar, name) as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


def _json(tar: tarfile.TarFile, name: str) -> Any:
    member = tar.getmember(name)
    stream = tar.extractfile(member)
    if stream is None or member.size > _SMALL:
        msg = f"{name} is no small file"
        raise ValueError(msg)
    return json.load(stream)


def _refused(path: Path, why: str) -> EngineError:
    return EngineError(
        f"{path} is no whole image archive", context=why,
        hint="make it again (docker save NAME:TAG, or kwdb-build's own export); it may be cut off or changed",
    )
