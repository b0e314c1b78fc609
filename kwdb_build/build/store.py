"""Finished builds on disk: one read-only directory a key, complete or not there.

<root>/<key digest>/manifest.json    what it is, and path, mode and sha256 of every file
<root>/<key digest>/bin, lib         as `make install` left them
<root>/<key digest>/provenance.json  how it was built, and sbom.cdx.json what went in (builds since 0.2 have both)
<root>/<key digest>/provenance.json.{sig,asc,minisig}  signatures, when asked for
<root>/set-aside/                    builds that were found changed or incomplete: never used, kept to be looked at
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kwdb_build.build.manifest import FORMAT, parse_manifest
from kwdb_build.build.sharing import share_blocks
from kwdb_build.errors import ArtifactError, BuildError, UsageError
from kwdb_build.files import (
    check_manifest,
    copy_file,
    fsync_directory,
    full_disk_said,
    manifest_of,
    read_json,
    require_space,
    walk_files,
    write_atomic,
    write_json,
)
from kwdb_build.model import Artifact, BuildKey, FileRecord, Version
from kwdb_build.scratch import clean_leftovers, gate, remove_tree, scratch_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

MANIFEST = "manifest.json"
PROVENANCE = "provenance.json"
SBOM = "sbom.cdx.json"
SIGNATURES = {"ssh": f"{PROVENANCE}.sig", "gpg": f"{PROVENANCE}.asc", "minisign": f"{PROVENANCE}.minisig"}
BESIDE = (MANIFEST, PROVENANCE, SBOM, *SIGNATURES.values())
"""What lies beside bin/ and lib/, and is no installed file."""
DIRECTORIES = ("bin", "lib")
SET_ASIDE = "set-aside"
LATEST = "latest"
_TEMPORARY = ".adding-"
_PRUNING = ".pruning-"
_DIGEST_LENGTH = 64
_SHOWN = 8


class UnknownArtifactError(UsageError):
    """No stored build has that key or version."""

    reference = "unknown-artifact"


class AmbiguousArtifactError(UnknownArtifactError):
    """Several stored builds have that version, or keys that begin so."""

    reference = "ambiguous-artifact"


@dataclass(frozen=True, kw_only=True)
class Damaged:
    """A stored build that cannot be read: where it is, and why."""

    path: Path
    why: str


class ArtifactStore:
    """All builds below root. Safe for several processes at once; root is made when the first build is added.

    Builds that obtain() or hold() gave out are held against `prune` until the store is closed or the process ends.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._held: dict[str, int] = {}

    def close(self) -> None:
        """Let go of all builds that are held."""
        while self._held:
            os.close(self._held.popitem()[1])

    def find(self, key: BuildKey) -> Artifact | None:
        """The build with that key, or None. Cheap: reads the manifest only, so call verify() before using its files.

        ArtifactError when there is a directory of that name with a manifest that cannot be read or is another's.
        """
        directory = self.root / key.digest
        return _read(directory) if directory.is_dir() else None

    def look_up(self, key: BuildKey) -> Artifact | None:
        """As find(), but for who goes on to use it: held against prune, and set aside when it cannot be read."""
        return self._take(key, lambda _: None)

    def obtain(self, key: BuildKey) -> Artifact | None:
        """The build with that key to be used now: verified, and held against prune. None when there is none.

        ArtifactError when it was changed or is incomplete. It is then set aside, so that the next build makes it anew.
        """
        return self._take(key, self.verify)

    def _take(self, key: BuildKey, check: Callable[[Artifact], None]) -> Artifact | None:
        directory = self.root / key.digest
        if not self._hold(directory):
            return None
        try:
            artifact = _read(directory)
            check(artifact)
        except ArtifactError as error:
            raise self._set_aside(directory, error) from error
        return artifact

    def hold(self, artifact: Artifact) -> None:
        """As obtain(), for a build that was found before: verified and held, or set aside and ArtifactError."""
        if self.obtain(artifact.key) is None:
            raise _gone(artifact)

    def keep(self, artifact: Artifact) -> None:
        """Hold a build that was found before against prune, as it is: for who only reads it. ArtifactError: gone."""
        if not self._hold(artifact.path):
            raise _gone(artifact)

    def verify(self, artifact: Artifact) -> None:
        """Read every file again; ArtifactError names what differs in content or mode, is missing or is too many."""
        check_manifest(artifact.path, artifact.files, ignore=BESIDE)

    def details(self, artifact: Artifact) -> dict[str, Any]:
        """What the build recorded beside the files (image, search path of the libraries, …)."""
        recorded = read_json(artifact.path / MANIFEST).get("details", {})
        return dict(recorded)

    def list(self) -> tuple[Artifact, ...]:
        """All readable builds, by version text then key."""
        found = [entry for entry in self._entries() if isinstance(entry, Artifact)]
        return tuple(sorted(found, key=lambda artifact: (artifact.version.text, artifact.key.digest)))

    def damaged(self) -> tuple[Damaged, ...]:
        """What cannot be read, and what was set aside."""
        found = [entry for entry in self._entries() if isinstance(entry, Damaged)]
        aside = self.root / SET_ASIDE
        if aside.is_dir():
            found += [Damaged(path=path, why="was set aside") for path in sorted(aside.iterdir())]
        return tuple(found)

    def _entries(self) -> Iterator[Artifact | Damaged]:
        if not self.root.is_dir():
            return
        for path in sorted(self.root.iterdir()):
            if len(path.name) != _DIGEST_LENGTH or not path.is_dir():
                continue
            try:
                yield _read(path)
            except ArtifactError as error:
                if path.exists():  # else it was removed meanwhile
                    yield Damaged(path=path, why=f"{error.message}: {error.context}")

    def resolve(self, name: str) -> Artifact:
        """The build that a person means: a key or the beginning of one, a version text, or `latest` (stored last).

        UnknownArtifactError names what there is, AmbiguousArtifactError what the name could mean.
        """
        found = self.list()
        if name == LATEST:
            matching = sorted(found, key=stored_at)[-1:]
        else:
            wanted = name.lower()
            matching = [one for one in found if one.version.text == name] or [
                one for one in found if wanted and one.key.digest.startswith(wanted)
            ]
        if len(matching) == 1:
            return matching[0]
        if matching:
            raise AmbiguousArtifactError(
                f"{name!r} means {len(matching)} stored builds", context=_lines(matching),
                hint="give more of the key",
            )
        known = _lines(found) if found else f"there is none under {self.root}"
        raise UnknownArtifactError(
            f"no stored build {name!r}", context=known,
            hint="a key or its beginning, a version, or latest; `kwdb-build artifact list` shows all",
        )

    def add(
        self,
        key: BuildKey,
        staged: Path,
        *,
        version: Version,
        commit: str,
        built_s: float,
        details: Mapping[str, Any] | None = None,
        attest: Callable[[Sequence[FileRecord]], Mapping[str, bytes]] | None = None,
    ) -> Artifact:
        """Copy <staged>/{bin,lib} into the store under key and return the stored build.

        All files are written and fsynced under a temporary name in root, then one rename makes them visible. When
        another process added the same key meanwhile, that one stays and is returned. attest makes the documents that
        lie beside (name -> content) from the files as they are stored.
        Errors: BuildError for something in staged that is no regular file or inner symlink; SpaceError.
        """
        with self.scratch("storing the build") as temporary:
            require_space(self.root, _size_of(staged), "finished build")
            for name in DIRECTORIES:
                _copy_tree(staged / name, temporary / name)
            files = manifest_of(temporary)
            for name, content in (attest(files) if attest else {}).items():
                write_atomic(temporary / name, content, mode=0o444)
            write_json(
                temporary / MANIFEST,
                {
                    "format": FORMAT,
                    "key": key.digest,
                    "inputs": key.inputs,
                    "version": version.text,
                    "commit": commit,
                    "built_s": round(built_s, 3),
                    "files": files,
                    "details": dict(details or {}),
                },
                mode=0o444,
            )
            artifact = self.publish(temporary, key, files)
        # Not before: the directory is still locked as the temporary one that it was.
        if not self._hold(artifact.path):
            raise ArtifactError(f"the build {key.short} was removed right after it was stored", hint="build it again")
        return artifact

    @contextlib.contextmanager
    def scratch(self, doing: str) -> Iterator[Path]:
        """A directory on the store's file system that vanishes at the end unless it is published.

        What killed processes left of theirs goes before. SpaceError when the file system becomes full meanwhile.
        """
        with full_disk_said(self.root, doing):
            self.root.mkdir(parents=True, exist_ok=True)
            with scratch_directory(self.root, _TEMPORARY) as temporary:
                yield temporary

    def tidy(self) -> None:
        """Remove what killed processes left half made or half removed."""
        if self.root.is_dir():
            with gate(self.root):
                clean_leftovers(self.root, _TEMPORARY)
                clean_leftovers(self.root, _PRUNING)

    def publish(self, temporary: Path, key: BuildKey, files: Iterable[FileRecord]) -> Artifact:
        """Make a complete directory below root visible under its key, unless that key is there already."""
        share_blocks(temporary, files, self._contents())
        _seal(temporary)
        final = self.root / key.digest
        with gate(self.root):
            if not final.exists():
                temporary.rename(final)
        fsync_directory(self.root)
        return _read(final)

    def _contents(self) -> dict[str, Path]:
        return {entry.sha256: one.path / entry.path for one in self.list() for entry in one.files if not entry.link}

    def attach(self, artifact: Artifact, name: str, content: bytes, *, replace: bool = True) -> bool:
        """Add one document beside the files of a stored build; readers see the old or the new one.

        False when there is one of that name already which is not to be replaced: it stays as it is.
        """
        with self.scratch(f"adding {name} to {artifact.key.short}") as temporary:
            write_atomic(temporary / name, content, mode=0o444)
            with gate(self.root):
                if not replace and (artifact.path / name).exists():
                    return False
                artifact.path.chmod(0o755)
                try:
                    (temporary / name).rename(artifact.path / name)
                finally:
                    artifact.path.chmod(0o555)
            fsync_directory(artifact.path)
        return True

    def remove(self, artifact: Artifact) -> bool:
        """Remove a stored build; False when some process uses it."""
        with gate(self.root), contextlib.suppress(FileNotFoundError):
            fd = os.open(artifact.path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            else:
                gone = self.root / f"{_PRUNING}{artifact.key.digest}-{os.getpid()}"
                artifact.path.rename(gone)
                fsync_directory(self.root)
                remove_tree(gone)
            finally:
                os.close(fd)
        return True

    def _hold(self, directory: Path) -> bool:
        """Take a shared lock on a build's directory until close(); False when there is no such directory."""
        while directory.is_dir():
            if directory.name in self._held:
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(directory.stat(), os.fstat(self._held[directory.name])):
                        return True
                os.close(self._held.pop(directory.name))
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
                fcntl.flock(fd, fcntl.LOCK_SH)
                # Seen again after the lock, as it may have been removed and made anew meanwhile.
                self._held[directory.name] = fd
        return False

    def _set_aside(self, directory: Path, error: ArtifactError) -> ArtifactError:
        """Move a build that must not be used out of the way, and say where to; the files are not changed."""
        place = self.root / SET_ASIDE
        target = place / f"{directory.name}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.getpid()}"
        try:
            place.mkdir(exist_ok=True)
            with gate(self.root):
                directory.chmod(0o755)  # a directory that moves to another one is itself written to
                directory.rename(target)
            fsync_directory(self.root)
        except OSError as failure:
            return ArtifactError(
                error.message, context=error.context,
                hint=f"it could not be set aside ({failure.strerror}): remove {directory} and build again",
            )
        return ArtifactError(
            error.message, context=error.context,
            hint=f"it is not used and was set aside as {target}; run the same again: it is built anew",
        )


def stored_at(artifact: Artifact) -> float:
    """When it came into this store (unix seconds); 0 when it was removed meanwhile."""
    try:
        return (artifact.path / MANIFEST).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _gone(artifact: Artifact) -> ArtifactError:
    return ArtifactError(
        f"the stored build {artifact.key.short} of {artifact.version} is gone", context=str(artifact.path),
        hint="it was removed meanwhile: run the same again, it is built anew",
    )


def signature_kinds(artifact: Artifact) -> tuple[str, ...]:
    """Which kinds of signature lie beside it; whether they are good is another question."""
    return tuple(kind for kind, name in SIGNATURES.items() if (artifact.path / name).is_file())


def _lines(artifacts: Iterable[Artifact]) -> str:
    rows = [f"{one.key.digest[:16]}  {one.version}" for one in artifacts]
    return "\n".join([*rows[:_SHOWN], *([f"and {len(rows) - _SHOWN} more"] if len(rows) > _SHOWN else [])])


def _read(directory: Path) -> Artifact:
    try:
        data = read_json(directory / MANIFEST)
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"the stored build in {directory} has no readable manifest", context=f"{type(error).__name__}: {error}",
            hint="remove that directory and build again",
        ) from error
    artifact = parse_manifest(data, directory)
    if artifact.key.digest != directory.name:
        raise ArtifactError(
            f"the manifest in {directory} belongs to another build",
            context=f"its inputs have the key {artifact.key.digest}", hint="remove that directory and build again",
        )
    return artifact


def _size_of(staged: Path) -> int:
    return sum(path.lstat().st_size for path in walk_files(staged)) + (1 << 20)


def _copy_tree(source: Path, target: Path) -> None:
    """Copy one directory: owned by the caller, 0555 what may run, 0444 the rest, all of it on disk at the end."""
    target.mkdir()
    for path in walk_files(source):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        info = path.lstat()
        if stat.S_ISLNK(info.st_mode):
            _copy_link(path, copy, source)
        elif stat.S_ISREG(info.st_mode):
            copy_file(path, copy)
            os.chown(copy, os.geteuid(), os.getegid())
            copy.chmod(0o555 if info.st_mode & 0o111 else 0o444)
        else:
            raise BuildError(f"the build installed something that is no file: {path.relative_to(source)}")


def _copy_link(path: Path, copy: Path, source: Path) -> None:
    target = path.readlink()
    inside = Path(os.path.normpath(path.parent / target)).is_relative_to(source)
    if target.is_absolute() or not inside:
        raise BuildError(f"the build installed a symlink that leads out of it: {path.relative_to(source)} -> {target}")
    shutil.copyfile(path, copy, follow_symlinks=False)


def _seal(root: Path) -> None:
    """Make every directory read-only and durable, innermost first."""
    for directory, _, _ in os.walk(root, topdown=False):
        path = Path(directory)
        path.chmod(0o555)
        fsync_directory(path)
