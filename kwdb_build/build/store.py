"""Finished builds on disk: one read-only directory a key, complete or not there.

<root>/<key digest>/manifest.json  what it is, and path, mode and sha256 of every file
<root>/<key digest>/bin, lib       as `make install` left them
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kwdb_build.errors import ArtifactError, BuildError
from kwdb_build.files import (
    check_manifest,
    copy_file,
    fsync_directory,
    manifest_of,
    read_json,
    require_space,
    walk_files,
    write_json,
)
from kwdb_build.model import Artifact, BuildKey, FileRecord, Version
from kwdb_build.scratch import gate, scratch_directory

if TYPE_CHECKING:
    from collections.abc import Mapping

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1
DIRECTORIES = ("bin", "lib")
_TEMPORARY = ".adding-"
_DIGEST_LENGTH = 64


class ArtifactStore:
    """All builds below root. Safe for several processes at once; root is made when the first build is added."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, key: BuildKey) -> Artifact | None:
        """The build with that key, or None. Cheap: reads the manifest only, so call verify() before using its files.

        ArtifactError when there is a directory of that name with a manifest that cannot be read or is another's.
        """
        directory = self.root / key.digest
        return _read(directory) if directory.is_dir() else None

    def verify(self, artifact: Artifact) -> None:
        """Read every file again; ArtifactError names what differs in content or mode, is missing or is too many."""
        check_manifest(artifact.path, artifact.files, ignore=(MANIFEST,))

    def details(self, artifact: Artifact) -> dict[str, Any]:
        """What the build recorded beside the files (image, search path of the libraries, …)."""
        recorded = read_json(artifact.path / MANIFEST).get("details", {})
        return dict(recorded)

    def list(self) -> tuple[Artifact, ...]:
        """All builds, by version text then key. ArtifactError for a damaged one."""
        if not self.root.is_dir():
            return ()
        found = [
            _read(path) for path in self.root.iterdir() if len(path.name) == _DIGEST_LENGTH and path.is_dir()
        ]
        return tuple(sorted(found, key=lambda artifact: (artifact.version.text, artifact.key.digest)))

    def add(
        self,
        key: BuildKey,
        staged: Path,
        *,
        version: Version,
        commit: str,
        built_s: float,
        details: Mapping[str, Any] | None = None,
    ) -> Artifact:
        """Copy <staged>/{bin,lib} into the store under key and return the stored build.

        All files are written and fsynced under a temporary name in root, then one rename makes them visible. When
        another process added the same key meanwhile, that one stays and is returned.
        Errors: BuildError for something in staged that is no regular file or inner symlink; SpaceError.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        require_space(self.root, _size_of(staged), "finished build")
        with scratch_directory(self.root, _TEMPORARY) as temporary:
            for name in DIRECTORIES:
                _copy_tree(staged / name, temporary / name)
            write_json(
                temporary / MANIFEST,
                {
                    "format": MANIFEST_FORMAT,
                    "key": key.digest,
                    "inputs": key.inputs,
                    "version": version.text,
                    "commit": commit,
                    "built_s": round(built_s, 3),
                    "files": manifest_of(temporary),
                    "details": dict(details or {}),
                },
                mode=0o444,
            )
            _seal(temporary)
            final = self.root / key.digest
            with gate(self.root):
                if not final.exists():
                    temporary.rename(final)
            fsync_directory(self.root)
        return _read(final)


def _read(directory: Path) -> Artifact:
    try:
        data = read_json(directory / MANIFEST)
        key = BuildKey.of(data["inputs"])
        artifact = Artifact(
            key=key,
            path=directory,
            version=Version.parse(data["version"]),
            commit=str(data["commit"]),
            files=tuple(FileRecord(**entry) for entry in data["files"]),
            built_s=float(data["built_s"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"the stored build in {directory} has no readable manifest", context=f"{type(error).__name__}: {error}",
            hint="remove that directory and build again",
        ) from error
    if key.digest != directory.name or data.get("key") != key.digest or data.get("format") != MANIFEST_FORMAT:
        raise ArtifactError(
            f"the manifest in {directory} belongs to another build", context=f"its inputs have the key {key.digest}",
            hint="remove that directory and build again",
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
