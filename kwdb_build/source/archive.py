"""Unpack an archive that somebody else made: only plain files, directories and inner symlinks, and all inside.

Members are read as a stream and written by our own hands, symlinks last, so that no member can lead another one out.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import sys
import tarfile
import time
import zipfile
import zlib
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from kwdb_build.errors import UnsafeArchiveError
from kwdb_build.files import human_bytes, require_space
from kwdb_build.source.prepared import leads_nowhere, leads_out, really_leads_out

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdError
    from compression.zstd import open as zstd_open
else:
    from backports.zstd import ZstdError
    from backports.zstd import open as zstd_open

if TYPE_CHECKING:
    from pathlib import Path

    from kwdb_build.console import Progress

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".zip")
_CHUNK = 1 << 20
_BLOCK = 512
_MAGIC = (
    (b"\x1f\x8b", "gzip"), (b"\xfd7zXZ\x00", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"BZh", "bzip2"),
    (b"PK\x03\x04", "zip"), (b"PK\x05\x06", "zip"),
)
_TAR_MAGIC_AT = 257
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, EOFError, lzma.LZMAError, ZstdError, zlib.error, gzip.BadGzipFile,
            NotImplementedError, RuntimeError)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an archive may hold at most. KWDB's whole source is about 20,000 entries and 0.2 GB, packed 1 to 4."""

    entries: int = 500_000
    size_bytes: int = 16 << 30
    ratio: int = 200
    ratio_from_bytes: int = 256 << 20
    name_bytes: int = 4096


@dataclass(frozen=True, kw_only=True)
class Unpacked:
    """What came out: newest_s is the newest time of a file (unix seconds), commit what `git archive` wrote into it."""

    files: int
    size_bytes: int
    newest_s: int
    commit: str = ""


@dataclass(frozen=True, kw_only=True)
class _Member:
    name: str
    kind: str
    size: int = 0
    mtime: int = 0
    executable: bool = False
    target: str = ""
    content: IO[bytes] | None = field(default=None, repr=False)


def is_archive_name(name: str) -> bool:
    """Whether a file of this name would be taken for an archive."""
    return name.lower().endswith(SUFFIXES)


def stem(name: str) -> str:
    """Name of an archive without its suffixes."""
    found = max((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), key=len, default="")
    return name[: len(name) - len(found)] if found else name


def unpack(archive: Path, target: Path, *, progress: Progress, limits: Limits | None = None) -> Unpacked:
    """Write what is in archive below the empty directory target.

    `.git` directories are left out: their settings and hooks would be somebody else's. UnsafeArchiveError names the
    first member that must not be unpacked, or says that the archive is cut or damaged; target is then half full.
    """
    writer = _Writer(archive, target, limits or Limits(), progress)
    try:
        with archive.open("rb") as stream:
            kind = _kind(stream, archive)
            commit = _zip(stream, writer) if kind == "zip" else _tar(stream, kind, writer)
        writer.finish()
    except _DAMAGED as error:
        raise _damaged(archive, f"{type(error).__name__}: {error}") from error
    return Unpacked(files=writer.files, size_bytes=writer.written, newest_s=writer.newest_s, commit=commit)


def _damaged(archive: Path, said: str) -> UnsafeArchiveError:
    return UnsafeArchiveError(
        f"{archive} is damaged or cut short", context=said,
        hint="fetch it again and compare its checksum with the publisher's",
    )


def _kind(stream: IO[bytes], archive: Path) -> str:
    head = stream.read(_BLOCK)
    stream.seek(0)
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head[_TAR_MAGIC_AT:_TAR_MAGIC_AT + 5] == b"ustar":
        return "tar"
    raise UnsafeArchiveError(
        f"{archive} is no archive that is known here", context=f"it begins with {head[:8]!r}",
        hint="give a .tar.gz, .tar.xz, .tar.zst, .tar.bz2, .tar or .zip file",
    )


class _Tail(io.RawIOBase):
    """Passes a tar stream on and remembers its last block: a whole one ends in zeros."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.last = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[:len(data)] = data
        if data:
            self.last = (self.last + data)[-_BLOCK:]
        return len(data)


def opened(stream: IO[bytes], kind: str) -> IO[bytes]:
    """The uncompressed bytes of a stream."""
    opener: dict[str, Any] = {
        "gzip": lambda: gzip.GzipFile(fileobj=stream), "xz": lambda: lzma.LZMAFile(stream),  # noqa: SIM115  # closed with stream
        "bzip2": lambda: bz2.BZ2File(stream), "zstd": lambda: zstd_open(stream, "rb"),
        "tar": lambda: stream,
    }
    found: IO[bytes] = opener[kind]()
    return found


def _tar(stream: IO[bytes], kind: str, writer: _Writer) -> str:
    tail = _Tail(opened(stream, kind))
    with tarfile.open(fileobj=io.BufferedReader(tail, _CHUNK), mode="r|", errorlevel=1) as packed:
        for item in packed:
            writer.take(_tar_member(packed, item), packed_at=stream.tell())
        commit = str(packed.pax_headers.get("comment", ""))
    if tail.last.strip(b"\0") or len(tail.last) < _BLOCK:
        raise EOFError("the mark of its end is missing")
    return commit


def _tar_member(packed: tarfile.TarFile, item: tarfile.TarInfo) -> _Member:
    kind = (
        "file" if item.isreg() else "directory" if item.isdir() else "symlink" if item.issym()
        else "hard link" if item.islnk() else "device or pipe" if item.isdev() else f"member of type {item.type!r}"
    )
    if item.mode & (stat.S_ISUID | stat.S_ISGID) and kind == "file":
        kind = "setuid or setgid file"
    return _Member(
        name=item.name, kind=kind, size=item.size if kind == "file" else 0, mtime=int(item.mtime),
        executable=bool(item.mode & 0o100), target=item.linkname,
        content=packed.extractfile(item) if kind == "file" else None,
    )


def _zip(stream: IO[bytes], writer: _Writer) -> str:
    with zipfile.ZipFile(stream) as packed, ExitStack() as stack:
        for item in packed.infolist():
            mode = item.external_attr >> 16 if item.create_system == 3 else 0  # noqa: PLR2004  # 3: unix
            form = stat.S_IFMT(mode)
            kind = (
                "directory" if item.is_dir() else "symlink" if form == stat.S_IFLNK
                else "file" if form in {0, stat.S_IFREG} else "device or pipe"
            )
            if mode & (stat.S_ISUID | stat.S_ISGID) and kind == "file":
                kind = "setuid or setgid file"
            if item.flag_bits & 1:
                kind = "encrypted file"
            content = stack.enter_context(packed.open(item)) if kind in {"file", "symlink"} else None
            target = ""
            if kind == "symlink" and content is not None:
                target, content = content.read(writer.limits.name_bytes + 1).decode("utf-8", "surrogateescape"), None
            writer.take(
                _Member(
                    name=item.orig_filename, kind=kind, size=item.file_size, executable=bool(mode & 0o100),
                    mtime=_zip_time(item), target=target, content=content,
                ),
                packed_at=max(stream.tell(), 1),
            )
            stack.pop_all().close()
        return packed.comment.decode("ascii", "replace")


def _zip_time(item: zipfile.ZipInfo) -> int:
    """A zip keeps a clock time without a zone; it is read as UTC, so that every machine reads the same."""
    try:
        import calendar

        return calendar.timegm((*item.date_time, 0, 0, 0))
    except (ValueError, OverflowError):
        return 0


class _Writer:
    """Checks each member and writes it."""

    def __init__(self, archive: Path, target: Path, limits: Limits, progress: Progress) -> None:
        self.archive = archive
        self.target = target
        self.limits = limits
        self.progress = progress
        self.packed_bytes = archive.stat().st_size
        self.entries = self.files = self.written = self.newest_s = 0
        self.kinds: dict[str, str] = {}
        self.links: dict[str, str] = {}
        self._told_s = 0.0

    def refuse(self, member: str, why: str) -> UnsafeArchiveError:
        """The error for one member; nothing of the archive is used then."""
        return UnsafeArchiveError(
            f"{self.archive} is refused: {why}", context=f"member {member!r}",
            hint="nothing of it was used; fetch it again from where you trust it, or pack the source anew",
        )

    def take(self, member: _Member, *, packed_at: int) -> None:
        """Check one member, and write it unless it is of no use."""
        self.entries += 1
        if self.entries > self.limits.entries:
            raise self.refuse(member.name, f"more than {self.limits.entries} entries")
        name = self._checked_name(member)
        if not name or ".git" in name.split("/"):
            return
        if self.kinds.get(name) == "directory" and member.kind == "directory":
            return
        if name in self.kinds:
            raise self.refuse(member.name, "two members have this name")
        self._require_parents(member, name)
        self.kinds[name] = member.kind
        if member.kind == "directory":
            (self.target / name).mkdir(parents=True, exist_ok=True)
        elif member.kind == "symlink":
            outside = leads_out(name, member.target) and not leads_nowhere(member.target)
            if outside or "\0" in member.target:
                raise self.refuse(member.name, f"it is a symlink that leads out of the archive, to {member.target!r}")
            self.links[name] = member.target
        elif member.kind == "file" and member.content is not None:
            self._write(member, name, packed_at)
        else:
            raise self.refuse(member.name, f"it is a {member.kind}")

    def _checked_name(self, member: _Member) -> str:
        raw = member.name
        if len(os.fsencode(raw)) > self.limits.name_bytes:
            raise self.refuse(f"{raw[:60]}…", "a name is too long")
        if "\0" in raw or "\\" in raw or any(ord(letter) < 32 for letter in raw):  # noqa: PLR2004  # control characters
            raise self.refuse(raw, "a name holds control characters or backslashes")
        if raw.startswith("/"):
            raise self.refuse(raw, "a path is absolute")
        parts = [part for part in raw.split("/") if part not in {"", "."}]
        if ".." in parts:
            raise self.refuse(raw, "a path leads out of the archive")
        return "/".join(parts)

    def _require_parents(self, member: _Member, name: str) -> None:
        """What stands above a member is a directory: never a file, never a link."""
        parts = name.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            above = "/".join(parts[:depth])
            if self.kinds.setdefault(above, "directory") != "directory":
                raise self.refuse(member.name, f"it lies below {above!r}, which is a {self.kinds[above]}")

    def _write(self, member: _Member, name: str, packed_at: int) -> None:
        self._require_size(member, member.size, packed_at)
        require_space(self.target, member.size + (32 << 20), f"unpacking of {self.archive.name}")
        path = self.target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = 0o755 if member.executable else 0o644
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        with os.fdopen(fd, "wb") as writer:
            os.fchmod(writer.fileno(), mode)
            content: IO[bytes] = member.content or io.BytesIO()
            while chunk := content.read(_CHUNK):
                self.written += len(chunk)
                self._require_size(member, 0, packed_at)
                writer.write(chunk)
            if writer.tell() != member.size:
                raise EOFError(f"{member.name}: {writer.tell()} of {member.size} bytes")
        self.files += 1
        self.newest_s = max(self.newest_s, member.mtime)
        os.utime(path, (member.mtime, member.mtime))
        if time.monotonic() - self._told_s > 0.2:  # noqa: PLR2004  # seconds
            self._told_s = time.monotonic()
            self.progress.update(
                f"unpacking {self.archive.name}, {human_bytes(self.written)}", done=packed_at, total=self.packed_bytes
            )

    def _require_size(self, member: _Member, more: int, packed_at: int) -> None:
        size = self.written + more
        if size > self.limits.size_bytes:
            raise self.refuse(member.name, f"it would unpack to more than {human_bytes(self.limits.size_bytes)}")
        if size > self.limits.ratio_from_bytes and size > self.limits.ratio * max(self.packed_bytes, packed_at):
            raise self.refuse(
                member.name, f"it unpacks to more than {self.limits.ratio} times its own size, as bombs do"
            )

    def finish(self) -> None:
        """Make the symlinks, when nothing is written any more."""
        for name, target in self.links.items():
            path = self.target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(target)
        for name, target in self.links.items():
            # Two links that look harmless can lead out together (a -> ., b -> a/..).
            if not leads_nowhere(target) and really_leads_out(self.target, name):
                raise self.refuse(name, f"it is a symlink that leads out of the archive, to {target!r}")
