"""A stored build from the file that archive.export() wrote: whole and verified, or not at all.

Nothing is taken that the manifest at its beginning does not name: no other path, no device, no hard link, not one byte
more than is written there, and no document that would fill the memory of a machine with a database on it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tarfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from kwdb_build.build.archive import README, SUMS
from kwdb_build.build.inspection import architecture_of, inspect, require, this_architecture
from kwdb_build.build.manifest import parse_manifest
from kwdb_build.build.store import BESIDE, DIRECTORIES, MANIFEST, PROVENANCE, SBOM, SIGNATURES
from kwdb_build.errors import AccessError, ArtifactError, SpaceError, UsageError
from kwdb_build.files import NO_SPACE, human_bytes, require_space, write_atomic

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdError as _ZstdError
    from compression.zstd import open as _zstd_open
else:
    from backports.zstd import ZstdError as _ZstdError
    from backports.zstd import open as _zstd_open

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kwdb_build.build.signing import Trust
    from kwdb_build.build.store import ArtifactStore
    from kwdb_build.console import Progress
    from kwdb_build.model import Artifact, FileRecord

_MOST_BYTES = {MANIFEST: 4 << 20, SUMS: 4 << 20, PROVENANCE: 4 << 20, SBOM: 16 << 20}
"""Ten times what KWDB's take. As objects in memory they are a hundred times larger, on a machine with a database."""
_SMALL_BYTES = 64 << 10
"""The same for every other document, and for what tar writes around a member."""
_MARGIN_BYTES = 8 << 20
_CHUNK = 1 << 20
_MIN_PARTS = 2


def import_archive(
    store: ArtifactStore, path: Path, *, trust: Trust, foreign: bool, progress: Progress
) -> tuple[Artifact, bool]:
    """Add the build in a file that export() wrote; return it, and whether it is new here.

    Everything is verified before the build becomes visible: every file against the manifest, the key, provenance, bill
    of materials, and the signature when trust names somebody. A stored build of that key stays as it is, but gets the
    signatures that it lacks. Errors: UsageError (no such file, another architecture and not foreign), ArtifactError
    (damaged, not what it says, or other bytes than are stored under its key), SignatureError, SpaceError.
    """
    if not path.is_file():
        what = "is no regular file" if path.exists() else "is not there"
        raise UsageError(f"{path} {what}", hint="name a file that `kwdb-build artifact export` wrote")
    with store.scratch(f"importing {path.name}") as temporary:
        with _explained_damage(path, store.root), path.open("rb") as stream, _zstd_open(stream, "rb") as packed:
            limited = _Limited(packed)
            with tarfile.open(fileobj=limited, mode="r|", encoding="utf-8") as tar:
                incoming = _Incoming(tar, limited, temporary, path)
                artifact = incoming.begin(foreign=foreign)
                incoming.unpack(artifact, progress)
            while limited.read(_CHUNK):  # to the end, where the checksum of the whole file stands
                pass
        progress.update("verifying")
        require(artifact, inspect(artifact, trust), hint=f"{path} is damaged or was changed: get it anew")
        try:
            new = store.obtain(artifact.key) is None
        except ArtifactError as error:
            progress.note(f"the stored build of this key is replaced: {error.message}; {error.hint}")
            new = True
        stored = store.publish(temporary, artifact.key, artifact.files)
        _require_same(stored, artifact, path)
        if not new:
            _take_signatures(store, stored, temporary, progress)
        return stored, new


def _require_same(stored: Artifact, incoming: Artifact, path: Path) -> None:
    """ArtifactError when the build that was stored before has other bytes than the one in the file."""
    ours = {entry.path: entry.sha256 for entry in stored.files}
    theirs = {entry.path: entry.sha256 for entry in incoming.files}
    differing = [
        f"{name}: sha256 {ours.get(name, 'none')[:16]} here, {theirs.get(name, 'none')[:16]} there"
        for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)
    ]
    if differing:
        raise ArtifactError(
            f"{path} holds other bytes than the stored build of the same key, {stored.key.short}",
            context="\n".join(differing),
            hint="one of the two is not what its source gives: `kwdb-build build REF --verify-reproducible` tells "
            f"which one to trust. Nothing was changed here; to take the other one, remove {stored.path} first",
        )


def _take_signatures(store: ArtifactStore, stored: Artifact, incoming: Path, progress: Progress) -> None:
    """Give a build that was stored before the signatures that it lacks, when they are over its own provenance."""
    given = [name for name in SIGNATURES.values() if (incoming / name).is_file()]
    lacking = [name for name in given if not (stored.path / name).exists()]
    if not lacking:
        return
    kept = stored.path / PROVENANCE
    if not kept.is_file() or kept.read_bytes() != (incoming / PROVENANCE).read_bytes():
        progress.note("its signature is not kept: the build that was stored before has a provenance of its own")
        return
    for name in lacking:
        if store.attach(stored, name, (incoming / name).read_bytes(), replace=False):
            progress.note(f"added its signature {name} to the build that was stored before")


class _Incoming:
    """An archive that is read once, from its beginning to its end, into an empty directory."""

    def __init__(self, tar: tarfile.TarFile, limited: _Limited, into: Path, path: Path) -> None:
        self._tar = tar
        self._limited = limited
        self._into = into
        self._path = path
        self._top = ""

    def begin(self, *, foreign: bool) -> Artifact:
        """Read the manifest and decide whether to go on."""
        first = self._next()
        if first is None or not first.name.endswith(f"/{MANIFEST}") or first.name.count("/") != 1:
            raise _damaged(self._path, "it does not begin with a manifest: no archive of kwdb-build")
        self._top = first.name.removesuffix(MANIFEST)
        content = self._content(first, MANIFEST)
        try:
            artifact = parse_manifest(json.loads(content), self._into)
        except ArtifactError as error:
            raise _damaged(self._path, f"its manifest cannot be used: {error.context}") from error
        if not all(_harmless(entry) for entry in artifact.files):
            raise _damaged(self._path, "its manifest names a path outside of bin/ and lib/, or a strange mode")
        links = {entry.path for entry in artifact.files if entry.link}
        if any(str(above) in links for entry in artifact.files for above in PurePosixPath(entry.path).parents):
            raise _damaged(self._path, "its manifest names a path below a symlink")
        architecture = architecture_of(artifact)
        if architecture not in {"", this_architecture()} and not foreign:
            raise UsageError(
                f"{self._path.name} holds a build for {architecture}, this machine is {this_architecture()}",
                hint="it cannot run here; --foreign stores it nevertheless, to hand it on",
            )
        require_space(self._into, sum(entry.size for entry in artifact.files) + _MARGIN_BYTES, "imported build")
        self._keep(MANIFEST, content)
        return artifact

    def unpack(self, artifact: Artifact, progress: Progress) -> None:
        """Take every file that the manifest names, and nothing else."""
        wanted = {entry.path: entry for entry in artifact.files}
        total, done = sum(entry.size for entry in artifact.files), 0
        seen: set[str] = set()
        while (info := self._next()) is not None:
            name = info.name.removeprefix(self._top)
            if not info.name.startswith(self._top) or name in seen:
                raise _damaged(self._path, f"it has a member that is not expected: {info.name!r}")
            seen.add(name)
            if name in wanted:
                self._take(info, wanted[name])
                done += info.size
                progress.update("unpacking", done=done, total=total)
            elif name in BESIDE[1:]:
                self._keep(name, self._content(info, name))
            elif name in {README, SUMS}:  # for people
                self._content(info, name)
            else:
                raise _damaged(self._path, f"it has a member that the manifest does not name: {info.name!r}")
        if missing := sorted(wanted.keys() - seen):
            raise _damaged(self._path, f"it lacks {', '.join(missing[:5])}")

    def _next(self) -> tarfile.TarInfo | None:
        """The next member; the content of the one before counts as read."""
        self._limited.allowed += _SMALL_BYTES
        return self._tar.next()

    def _content(self, info: tarfile.TarInfo, name: str) -> bytes:
        most = _MOST_BYTES.get(name, _SMALL_BYTES)
        stream = self._tar.extractfile(info) if _plain(info) and info.size <= most else None
        if stream is None:
            raise _damaged(self._path, f"{name} is no plain file of at most {human_bytes(most)}")
        self._limited.allowed += info.size
        return stream.read()

    def _keep(self, name: str, content: bytes) -> None:
        write_atomic(self._into / name, content, mode=0o444)

    def _take(self, info: tarfile.TarInfo, entry: FileRecord) -> None:
        target = self._into / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        if entry.link:
            if not info.issym() or info.linkname != entry.link:
                raise _damaged(self._path, f"{entry.path} is not the symlink that the manifest names")
            target.symlink_to(entry.link)
            return
        stream = self._tar.extractfile(info) if _plain(info) and info.size == entry.size else None
        if stream is None:
            raise _damaged(self._path, f"{entry.path} is not the file of {entry.size} bytes that the manifest names")
        self._limited.allowed += entry.size
        with target.open("xb") as writer:
            while chunk := stream.read(_CHUNK):
                writer.write(chunk)
            writer.flush()
            os.fchmod(writer.fileno(), entry.mode)
            os.fsync(writer.fileno())


def _plain(info: tarfile.TarInfo) -> bool:
    return info.isreg() and not info.issparse()


def _harmless(entry: FileRecord) -> bool:
    """Whether a manifest's entry stays below bin/ or lib/, links included, and has a mode that the store gives."""
    path = PurePosixPath(entry.path)
    if path.parts[:1] not in {(name,) for name in DIRECTORIES} or ".." in path.parts or len(path.parts) < _MIN_PARTS:
        return False
    if str(path) != entry.path or entry.size < 0:
        return False
    if entry.link:
        words = entry.link.split("/")
        if ".." in words[next((number for number, word in enumerate(words) if word != ".."), len(words)):]:
            return False  # `name/..` may be elsewhere, when the name is a link itself
        target = os.path.normpath(path.parent / entry.link)
        return not entry.link.startswith("/") and target.split("/")[0] in DIRECTORIES
    return entry.mode in {0o444, 0o555}


class _Limited(io.RawIOBase):
    """A stream that gives at most `allowed` bytes: a small file must not unpack to a full disk, or full memory."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.allowed = _SMALL_BYTES  # tarfile reads the first header when it opens

    def readable(self) -> bool:
        """As asked by io."""
        return True

    def read(self, size: int = -1) -> bytes:
        """The next bytes; ValueError when there are more than allowed."""
        data: bytes = self._stream.read(size)
        self.allowed -= len(data)
        if self.allowed < 0:
            msg = "it holds more than its manifest says"
            raise ValueError(msg)
        return data


def _damaged(path: Path, why: str) -> ArtifactError:
    return ArtifactError(
        f"{path} cannot be imported", context=why, hint="get it anew, and compare its sha256 with that of its origin"
    )


@contextlib.contextmanager
def _explained_damage(path: Path, root: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, ValueError, _ZstdError, UnicodeError, RecursionError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    except OSError as error:
        if error.errno in NO_SPACE:
            raise SpaceError(
                f"{path} could not be unpacked: {error.strerror}", hint=f"free space on the file system of {root}"
            ) from error
        raise AccessError(
            f"{path} could not be unpacked: {error.strerror or error}",
            hint=f"{root} has to be this user's to write, and the file to read",
        ) from error
