"""Images as unpacked root file systems: <store>/images/<identity>/root beside its image.json, and <store>/tags/<tag>.

An image is made under a temporary name that its maker holds by a lock, hashed, synced and renamed, and only then gets
its tag: a killed maker leaves a temporary that the next one removes, never half an image. Identity is the content:
names, types, permissions, links and bytes; not owners, which a user without privileges cannot set.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from kwdb_build import command, files
from kwdb_build.errors import EngineError
from kwdb_build.scratch import gate, remove_tree, scratch_directory

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT = "root"
_RECORD = "image.json"
_MAKING = ".making-"
_SCHEMA = 1
_IDENTITY = re.compile(r"^sha256:[0-9a-f]{64}$")
_FORBIDDEN_BITS = stat.S_ISUID | stat.S_ISGID
_SYNC_S = 600.0


class ImageStore:
    """The images of one home."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._images = place / "images"
        self._tags = place / "tags"
        self._seen: set[str] = set()

    def identity(self, name: str) -> str | None:
        """Identity of the image with a tag (or with this identity); None when there is none."""
        identity = name if _IDENTITY.match(name) else self._tagged(name)
        return identity if identity and (self._directory(identity) / _RECORD).is_file() else None

    def _tagged(self, tag: str) -> str:
        with contextlib.suppress(OSError):
            return self._tag(tag).read_text(encoding="ascii").strip()
        return ""

    def _tag(self, tag: str) -> Path:
        return self._tags / quote(tag, safe="")

    def _directory(self, identity: str) -> Path:
        return self._images / identity.removeprefix("sha256:")

    def open(self, name: str) -> tuple[Path, dict[str, Any]]:
        """Root directory and record of an image that is as it was made.

        Names, sizes, modes and times of all files are looked at once for each process. EngineError when there is no
        such image, or when it was changed.
        """
        identity = self.identity(name)
        if identity is None:
            raise EngineError(f"there is no such image in the sandbox: {name}", context=f"looked in {self._images}")
        directory = self._directory(identity)
        record = files.read_json(directory / _RECORD)
        if record.get("schema") != _SCHEMA or (
            identity not in self._seen and look_of(directory / ROOT) != record["look"]
        ):
            raise EngineError(
                f"the sandbox's image {name} was changed after it was made", context=str(directory),
                hint=f"remove that directory, then run again: it will be made anew (rm -rf {directory})",
            )
        self._seen.add(identity)
        return directory / ROOT, record

    @contextlib.contextmanager
    def making(self) -> Iterator[Path]:
        """A directory for a new image (its files belong in root/); gone at the end unless it was kept."""
        for directory in (self._images, self._tags):
            directory.mkdir(parents=True, exist_ok=True)
        with scratch_directory(self._images, _MAKING) as scratch:
            (scratch / ROOT).mkdir(mode=0o755)
            yield scratch

    def keep(
        self, scratch: Path, tag: str, *, environment: Mapping[str, str], layers: Sequence[str] = ()
    ) -> str:
        """Give the finished image in scratch its identity and tag."""
        root = scratch / ROOT
        root.chmod(0o755)
        identity = settle(root)
        files.write_json(scratch / _RECORD, {
            "schema": _SCHEMA, "identity": identity, "look": look_of(root), "environment": dict(environment),
            "layers": list(layers),
        })
        command.run(["sync", "--file-system", str(scratch)], timeout_s=_SYNC_S)
        with gate(self._images):
            if self.identity(identity) is None:
                scratch.rename(self._directory(identity))
                files.fsync_directory(self._images)
        files.write_atomic(self._tag(tag), identity)
        return identity

    def remove(self, tag: str) -> None:
        """Forget a tag, and its image when no other tag names it; none of that name is fine."""
        identity = self._tagged(tag)
        self._tag(tag).unlink(missing_ok=True)
        if not _IDENTITY.match(identity):
            return
        with gate(self._images):
            if any(path.read_text(encoding="ascii") == identity for path in self._tags.iterdir()):
                return
            gone = self._images / f"{_MAKING}gone-{os.getpid()}-{identity[-16:]}"
            with contextlib.suppress(FileNotFoundError):
                self._directory(identity).rename(gone)
                remove_tree(gone)


def settle(root: Path) -> str:
    """Take set-user-ID and the like off every file (nothing in a sandbox may gain rights) and return its identity."""
    digest = hashlib.sha256()
    for path, info in _walk(root):
        mode = stat.S_IMODE(info.st_mode)
        if mode & _FORBIDDEN_BITS and not stat.S_ISLNK(info.st_mode):
            mode &= ~_FORBIDDEN_BITS
            path.chmod(mode)
        if stat.S_ISREG(info.st_mode):
            content = files.sha256_of(path)
        elif stat.S_ISLNK(info.st_mode):
            content = str(path.readlink())
        elif stat.S_ISDIR(info.st_mode):
            content = ""
        else:
            path.unlink()  # a device, socket or pipe: the sandbox has its own /dev
            continue
        digest.update(json.dumps(
            [os.fsencode(path.relative_to(root)).hex(), stat.S_IFMT(info.st_mode), mode, content]
        ).encode())
    return f"sha256:{digest.hexdigest()}"


def look_of(root: Path) -> str:
    """Digest of what stat says of every file: cheap, and different after any ordinary change."""
    digest = hashlib.sha256()
    for path, info in _walk(root):
        digest.update(
            f"{os.fsencode(path.relative_to(root)).hex()} {info.st_mode} {info.st_size} {info.st_mtime_ns}\n".encode()
        )
    return digest.hexdigest()


def _walk(root: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Everything below root in a fixed order, symlinks not followed."""
    for directory, names, others in os.walk(root):
        names.sort()
        for name in sorted([*names, *others]):
            path = Path(directory, name)
            yield path, path.lstat()
