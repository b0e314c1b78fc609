"""A bundle: one file with all that a build needs, for a machine without network.

It is a tar stream compressed with zstd. Its first member, contents.json, names every other one with size and sha256 and
in order; the second may be contents.sig, an ssh signature over the first. So the signature (or the digest of
contents.json, which `bundle show` prints) vouches for every byte, and nothing is used that was not compared with it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import sys
import tarfile
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import TypeAdapter, ValidationError

from kwdb_build import command
from kwdb_build.errors import BundleError, UsageError
from kwdb_build.files import fsync_directory, full_disk_said, human_bytes, require_space, sha256_of
from kwdb_build.model import SOURCE_SUFFIX, Patch, SourceTree, to_json
from kwdb_build.scratch import scratch_directory
from kwdb_build.source.client import GitClient
from kwdb_build.source.packing import PackedRepository, unpack_repositories
from kwdb_build.source.partial import ZSTD_MAGIC, whole_file
from kwdb_build.source.patches import PatchFile, keep
from kwdb_build.source.prepared import prepared

if sys.version_info >= (3, 14):
    from compression.zstd import CompressionParameter, ZstdError
    from compression.zstd import open as zstd_open
else:
    from backports.zstd import CompressionParameter, ZstdError
    from backports.zstd import open as zstd_open

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kwdb_build.console import Progress

CONTENTS = "contents.json"
SIGNATURE = "contents.sig"
FORMAT: Final = 1
_NAMESPACE = "kwdb-build-bundle"
_NAME = re.compile(r"^(?:source|patches|toolchain)/[A-Za-z0-9][A-Za-z0-9._-]*$")
_CHUNK = 1 << 20
_MAX_CONTENTS = 64 << 20
_MARGIN_BYTES = 64 << 20
_OPENING = ".opening-"
_OPTIONS: dict[int, int] = {
    CompressionParameter.compression_level: 6, CompressionParameter.checksum_flag: 1,
    CompressionParameter.nb_workers: os.cpu_count() or 1,
}


@dataclass(frozen=True, kw_only=True)
class Member:
    """One file of a bundle."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class BundledToolchain:
    """The toolchain of a bundle: what its lock's digest and its image's tag must be on the other machine."""

    name: str
    lock_digest: str
    image_tag: str
    base_image: str = ""
    image: bool = False


@dataclass(frozen=True, kw_only=True)
class Contents:
    """contents.json. source is the tree without the patches, which follow; its path means nothing here."""

    format: int
    made_by: str
    source: SourceTree
    repositories: tuple[PackedRepository, ...]
    patches: tuple[Patch, ...]
    toolchain: BundledToolchain | None
    members: tuple[Member, ...]

    @property
    def size_bytes(self) -> int:
        """What everything takes unpacked."""
        return sum(member.size for member in self.members)


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A bundle that was read to its end and found whole.

    digest: sha256 of contents.json. signature: it has one. signed: that is by the key that was asked for.
    """

    contents: Contents
    digest: str
    signature: bool
    signed: bool


# ---------------------------------------------------------------------- making


def members_of(directory: Path) -> tuple[Member, ...]:
    """Everything below a directory laid out like a bundle, small files first."""
    found = [
        Member(path=str(path.relative_to(directory)), size=path.stat().st_size, sha256=sha256_of(path))
        for path in directory.rglob("*") if path.is_file()
    ]
    return tuple(sorted(found, key=lambda member: (member.size, member.path)))


def write_bundle(contents: Contents, directory: Path, target: Path, *, sign: Path | None, progress: Progress) -> str:
    """Pack directory into target; it appears only when it is whole and on disk. Returns the digest of its contents."""
    text = (json.dumps(to_json(contents), indent=1, sort_keys=True) + "\n").encode()
    signature = _sign(text, sign) if sign is not None else b""
    with (
        whole_file(target, begins=ZSTD_MAGIC) as stream,
        zstd_open(stream, "wb", options=_OPTIONS) as packed,
    ):
        _write_members(packed, contents, text, signature, directory, progress)
    return hashlib.sha256(text).hexdigest()


def _write_members(
    packed: Any, contents: Contents, text: bytes, signature: bytes, directory: Path, progress: Progress
) -> None:
    done = 0
    with tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for name, data in ((CONTENTS, text), (SIGNATURE, signature)):
            if data:
                tar.addfile(_info(name, len(data)), io.BytesIO(data))
        for member in contents.members:
            progress.update(f"packing {member.path}", done=done, total=contents.size_bytes)
            with (directory / member.path).open("rb") as stream:
                tar.addfile(_info(member.path, member.size), stream)
            done += member.size


def _info(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info


# --------------------------------------------------------------------- reading


def check_bundle(file: Path, *, key: Path | None, progress: Progress, into: Path | None = None) -> Checked:
    """Read a bundle to its end and compare every byte with its contents; with `into`, write its files there.

    BundleError when anything is cut, changed, missing or too much, or when key (an ssh public key, or a file of allowed
    signers) is given and the contents are not signed by it. Files in `into` count only when this returns.
    """
    if not file.is_file():
        raise UsageError(f"there is no bundle {file}", hint="`kwdb-build bundle create` makes one")
    try:
        with file.open("rb") as stream:
            if stream.read(len(ZSTD_MAGIC)) != ZSTD_MAGIC:
                raise _refused(file, "it is no bundle of kwdb-build (not compressed with zstd)")
            stream.seek(0)
            reader = zstd_open(stream, "rb")
            with tarfile.open(fileobj=reader, mode="r|") as tar:
                checked = _check_members(file, tar, key=key, into=into, progress=progress)
            while reader.read(_CHUNK):  # the checksum of the whole stream stands at its end
                pass
    except (tarfile.TarError, EOFError, ZstdError, UnicodeDecodeError) as error:
        raise _refused(file, f"it is damaged or cut short ({error})") from error
    return checked


def _refused(file: Path, why: str, hint: str = "copy it again, or make it again") -> BundleError:
    return BundleError(f"the bundle {file} is refused: {why}", context="nothing of it was used", hint=hint)


def _check_members(
    file: Path, tar: tarfile.TarFile, *, key: Path | None, into: Path | None, progress: Progress
) -> Checked:
    entries = iter(tar)
    text = _small(file, tar, next(entries, None), CONTENTS)
    contents = _parse(file, text)
    entry = next(entries, None)
    signature = b""
    if entry is not None and entry.name == SIGNATURE:
        signature = _small(file, tar, entry, SIGNATURE)
        entry = next(entries, None)
    signed = key is not None and _require_signature(file, text, signature, key)
    if into is not None:
        require_space(into, contents.size_bytes + _MARGIN_BYTES, "unpacked bundle")
    done = 0
    for member in contents.members:
        progress.update(f"checking {member.path}", done=done, total=contents.size_bytes)
        if entry is None:
            raise _refused(file, f"it lacks {member.path}")
        if entry.name != member.path or not entry.isreg() or entry.size != member.size:
            raise _refused(file, f"{entry.name!r} stands where its contents name {member.path!r}")
        _check_member(file, tar, entry, member, into)
        done += member.size
        entry = next(entries, None)
    if entry is not None:
        raise _refused(file, f"{entry.name!r} is not in its contents")
    return Checked(
        contents=contents, digest=hashlib.sha256(text).hexdigest(), signature=bool(signature), signed=signed
    )


def _small(file: Path, tar: tarfile.TarFile, entry: tarfile.TarInfo | None, name: str) -> bytes:
    if entry is None or entry.name != name or not entry.isreg() or entry.size > _MAX_CONTENTS:
        raise _refused(file, f"it does not begin with {name}: it is no bundle of kwdb-build")
    stream = tar.extractfile(entry)
    return stream.read() if stream is not None else b""


def _check_member(file: Path, tar: tarfile.TarFile, entry: tarfile.TarInfo, member: Member, into: Path | None) -> None:
    stream = tar.extractfile(entry)
    digest = hashlib.sha256()
    with open(os.devnull if into is None else _place(into, member), "wb") as out:  # noqa: PTH123  # either of two
        while stream is not None and (chunk := stream.read(_CHUNK)):
            digest.update(chunk)
            out.write(chunk)
    if digest.hexdigest() != member.sha256:
        raise _refused(file, f"{member.path} is not what its contents say (sha256 {digest.hexdigest()[:16]}…)")


def _place(into: Path, member: Member) -> Path:
    path = into / member.path
    path.parent.mkdir(exist_ok=True)
    return path


def _parse(file: Path, text: bytes) -> Contents:
    try:
        data = json.loads(text)
        if isinstance(data, dict) and data.get("format") != FORMAT:
            raise _refused(file, f"its format {data.get('format')!r} is another one than {FORMAT}",
                           "it was made by another version of kwdb-build: use that one")
        contents = TypeAdapter(Contents).validate_python(data)
    except (ValueError, ValidationError) as error:
        raise _refused(file, f"its contents cannot be read ({str(error).splitlines()[0]})") from error
    names = [member.path for member in contents.members]
    for name in names:
        if not _NAME.match(name):
            raise _refused(file, f"its contents name {name!r}")
    if len(set(names)) != len(names):
        raise _refused(file, "its contents name a file twice")
    wanted = {f"source/{repository.pack}" for repository in contents.repositories}
    wanted |= {f"patches/{patch.sha256}.patch" for patch in contents.patches}
    if missing := sorted(wanted - set(names)):
        raise _refused(file, f"its contents lack {missing[0]}")
    for place in (*(one.path for one in contents.repositories), *(one.directory for one in contents.patches)):
        if place.startswith("/") or {"..", ".git"} & set(place.split("/")):
            raise _refused(file, f"its contents name the place {place!r}")
    return contents


# ------------------------------------------------------------------- signature


def _sign(text: bytes, key: Path) -> bytes:
    """An ssh signature by a private key (or a public one whose private half is in ssh-agent)."""
    if not key.is_file():
        raise UsageError(f"there is no ssh key {key}", hint="make one: ssh-keygen -t ed25519 -f FILE")
    with tempfile.TemporaryDirectory(prefix="kwdb-build-sign-") as temporary:
        file = Path(temporary) / CONTENTS
        file.write_bytes(text)
        done = command.run(
            ["ssh-keygen", "-Y", "sign", "-f", str(key), "-n", _NAMESPACE, str(file)], check=False,
            env={**os.environ, "SSH_ASKPASS_REQUIRE": "never", "LC_ALL": "C"},
        )
        if not done.ok:
            raise UsageError(
                f"{key} cannot sign", context=done.stderr.strip(),
                hint="give an ssh private key without passphrase, or load it into ssh-agent and give its public key",
            )
        return file.with_name(f"{CONTENTS}.sig").read_bytes()


def _require_signature(file: Path, text: bytes, signature: bytes, key: Path) -> bool:
    if not key.is_file():
        raise UsageError(f"there is no key {key} to verify bundles with")
    if not signature:
        raise _refused(file, "it is not signed, and a signature is asked for", "`bundle create --sign KEY` signs")
    with tempfile.TemporaryDirectory(prefix="kwdb-build-verify-") as temporary:
        place = Path(temporary)
        (place / CONTENTS).write_bytes(text)
        (place / SIGNATURE).write_bytes(signature)
        (place / "signers").write_text(_signers(key.read_text(encoding="utf-8")), encoding="utf-8")
        done = command.run(
            ["ssh-keygen", "-Y", "verify", "-f", str(place / "signers"), "-I", "bundle", "-n", _NAMESPACE,
             "-s", str(place / SIGNATURE)],
            check=False, stdin=place / CONTENTS, env={**os.environ, "LC_ALL": "C"},
        )
    if not done.ok:
        raise _refused(
            file, f"it is not signed by {key.name}", "do not use it before you know who made it"
        )
    return True


def _signers(text: str) -> str:
    """Lines of ssh public keys as a file of allowed signers, each for the one name that we ask for."""
    lines = []
    for line in text.splitlines():
        words = line.split()
        start = next((n for n, word in enumerate(words) if word.startswith(("ssh-", "ecdsa-", "sk-"))), None)
        if start is not None and not line.startswith("#"):
            lines.append(f"bundle {' '.join(words[start:start + 2])}\n")
    return "".join(lines)


# ---------------------------------------------------------------------- using


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A bundle's files below home, whole."""

    directory: Path
    contents: Contents

    @property
    def toolchain(self) -> Path | None:
        """Its toolchain folder."""
        return self.directory / "toolchain" if self.contents.toolchain is not None else None


def open_bundle(file: Path, *, home: Path, key: Path | None, progress: Progress) -> Opened:
    """Check a bundle and have its files below home/bundles; the same bundle is unpacked once."""
    bundles = home.absolute() / "bundles"
    bundles.mkdir(parents=True, exist_ok=True)
    with full_disk_said(home, "unpacking the bundle"), scratch_directory(bundles, _OPENING) as temporary:
        checked = check_bundle(file, key=key, progress=progress, into=temporary)
        (temporary / CONTENTS).write_text(json.dumps(to_json(checked.contents)), encoding="utf-8")
        place = bundles / checked.digest
        if place.exists() and not _is_whole(place, checked.contents.members):
            progress.note(f"the unpacked bundle {checked.digest[:12]} was changed; it is unpacked again")
            shutil.rmtree(place)
        if not place.exists():
            os.sync()  # one flush for all, before the name makes them count
            temporary.rename(place)
            fsync_directory(bundles)
        os.utime(place)  # `cache list` tells when it was last used
    return reopen(place)


def reopen(directory: Path) -> Opened:
    """A bundle that was opened before."""
    try:
        contents = TypeAdapter(Contents).validate_json((directory / CONTENTS).read_bytes())
    except (OSError, ValueError) as error:
        raise BundleError(f"the opened bundle {directory} is gone or damaged", context=str(error),
                          hint="name the bundle file again") from error
    return Opened(directory=directory, contents=contents)


def _is_whole(place: Path, members: Sequence[Member]) -> bool:
    return all(
        (place / member.path).is_file() and sha256_of(place / member.path) == member.sha256 for member in members
    )


def bundled_patches(opened: Opened, home: Path) -> tuple[Patch, ...]:
    """The patches of a bundle, kept below home like ones given by --patch."""
    files = (
        PatchFile(patch=patch, data=(opened.directory / "patches" / f"{patch.sha256}.patch").read_bytes())
        for patch in opened.contents.patches
    )
    return keep(files, home)


def prepare_bundled(directory: Path, *, home: Path, progress: Progress, log: Path) -> SourceTree:
    """The source tree of an opened bundle, without its patches."""
    opened = reopen(directory)
    contents = opened.contents
    git = GitClient(progress=progress, log=log)

    def make(temporary: Path) -> SourceTree:
        tree = unpack_repositories(
            git, contents.repositories, directory / "source", contents.source, temporary / SOURCE_SUFFIX
        )
        if contents.source.content and tree.content != contents.source.content:
            raise BundleError("the files of the bundle are not the ones it was made of", hint="make the bundle again")
        return tree if tree.origin in {"archive", "directory"} else replace(tree, origin="bundle")

    with full_disk_said(home, "unpacking the bundle", log=log):
        return prepared(home, f"bundle-{directory.name[:40]}", make, progress=progress)


def words(contents: Contents) -> list[tuple[str, str]]:
    """Facts about a bundle for people."""
    source = contents.source
    rows = [
        ("version", str(source.version)), ("commit", source.commit), ("reference", f"{source.ref} of {source.url}"),
        *((module.path, module.commit) for module in source.submodules),
        *((f"patch {number}", f"{patch.name}  {patch.sha256}") for number, patch in enumerate(contents.patches, 1)),
    ]
    if contents.toolchain is not None:
        image = "with its image" if contents.toolchain.image else "without image"
        rows.append(("toolchain", f"{contents.toolchain.name}, {image}, {contents.toolchain.image_tag}"))
    rows += [("unpacked", human_bytes(contents.size_bytes)), ("made by", f"kwdb-build {contents.made_by}")]
    return rows
