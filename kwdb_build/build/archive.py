"""One stored build as one file (.tar.zst), to carry it to another machine or to install it there by hand.

<name>/manifest.json      first, so that the reader knows every file, its size and its sha256 before it comes
<name>/README.txt         how to install by hand
<name>/SHA256SUMS         the digests of the files as sha256sum reads them, for who has no kwdb-build
<name>/provenance.json …  what else lies beside the files
<name>/bin, <name>/lib    the files
The same stored build gives the same bytes each time (one zstd release assumed). intake.py reads it.
"""

from __future__ import annotations

import hashlib
import io
import sys
import tarfile
from typing import IO, TYPE_CHECKING, Any

from kwdb_build.build.inspection import architecture_of, this_architecture
from kwdb_build.build.store import BESIDE, MANIFEST
from kwdb_build.source.partial import ZSTD_MAGIC, require_free, whole_file

if sys.version_info >= (3, 14):
    from compression.zstd import CompressionParameter as _Parameter
    from compression.zstd import open as _zstd_open
else:
    from backports.zstd import CompressionParameter as _Parameter
    from backports.zstd import open as _zstd_open

if TYPE_CHECKING:
    from pathlib import Path

    from kwdb_build.build.store import ArtifactStore
    from kwdb_build.console import Progress
    from kwdb_build.model import Artifact

SUFFIX = ".tar.zst"
README = "README.txt"
SUMS = "SHA256SUMS"
_OPTIONS: dict[int, int] = {_Parameter.compression_level: 10, _Parameter.checksum_flag: 1}
_FIRST_MOMENT = 1
"""Time of members when the build did not record its commit's: not 0, which some tools take for 'unknown'."""


def archive_name(artifact: Artifact) -> str:
    """Usual file name: version, architecture, beginning of the key."""
    return f"{_top(artifact)}-{artifact.key.short}{SUFFIX}"


def _top(artifact: Artifact) -> str:
    return f"kwdb-{artifact.version}-linux-{architecture_of(artifact) or this_architecture()}"


def export(store: ArtifactStore, artifact: Artifact, target: Path, *, force: bool, progress: Progress) -> str:
    """Write a stored build into one file; return the file's sha256.

    The build is verified first. target appears complete or not at all. Errors: ArtifactError, UsageError (target is
    there and not force), SpaceError, AccessError.
    """
    require_free(target, force=force)
    progress.update("verifying the stored build")
    store.hold(artifact)
    with whole_file(target, begins=ZSTD_MAGIC, force=force) as stream:
        digest = _Hashing(stream)
        with _zstd_open(digest, "wb", options=_OPTIONS) as packed, tarfile.open(
            fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT, encoding="utf-8"
        ) as tar:
            _write_members(tar, store, artifact, progress)
    return digest.hexdigest()


def _write_members(tar: tarfile.TarFile, store: ArtifactStore, artifact: Artifact, progress: Progress) -> None:
    top = _top(artifact)
    moment = int(store.details(artifact).get("source_time", _FIRST_MOMENT))

    def member(name: str, mode: int) -> tarfile.TarInfo:
        info = tarfile.TarInfo(f"{top}/{name}")
        info.mtime, info.mode = moment, mode
        return info

    def whole(name: str, content: bytes) -> None:
        info = member(name, 0o644)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))

    whole(MANIFEST, (artifact.path / MANIFEST).read_bytes())
    whole(README, _readme(artifact).encode())
    whole(SUMS, "".join(f"{entry.sha256}  {entry.path}\n" for entry in artifact.files if not entry.link).encode())
    for name in BESIDE[1:]:
        if (artifact.path / name).is_file():
            whole(name, (artifact.path / name).read_bytes())
    total = sum(entry.size for entry in artifact.files)
    done = 0
    for entry in artifact.files:
        # As installed by hand: the owner may write, unlike in the store.
        info = member(entry.path, 0o755 if entry.mode & 0o111 else 0o644)
        if entry.link:
            info.type, info.linkname = tarfile.SYMTYPE, entry.link
            tar.addfile(info)
            continue
        info.size = entry.size
        with (artifact.path / entry.path).open("rb") as stream:
            tar.addfile(info, stream)
        done += entry.size
        progress.update("packing", done=done, total=total)


def _readme(artifact: Artifact) -> str:
    return (
        f"KWDB {artifact.version} (commit {artifact.commit}), built from source by kwdb-build, "
        f"key {artifact.key.digest}.\n"
        f"By hand: sha256sum -c {SUMS}; put bin/ and lib/ side by side, start bin/kwbase; both belong together, never "
        "mix two versions.\n"
        "With kwdb-build: kwdb-build artifact import FILE. Origin: provenance.json; what is in it: sbom.cdx.json.\n"
    )


class _Hashing(io.RawIOBase):
    """A file that also hashes what is written to it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()

    def writable(self) -> bool:
        """As asked by io."""
        return True

    def write(self, data: Any) -> int:
        """Hash and pass on."""
        self._digest.update(data)
        return self._stream.write(data)

    def hexdigest(self) -> str:
        """Of all that was written."""
        return self._digest.hexdigest()
