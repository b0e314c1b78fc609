"""What build images were made of and is kept below <home>/images: base images, Debian packages, wheels.

All of it can be fetched and made again, so what no lock names any more may go.
"""

from __future__ import annotations

import contextlib
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from kwdb_build.errors import KwdbBuildError, LockedError
from kwdb_build.toolchain import load
from kwdb_build.toolchain.base_image import base_digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

BASE, PACKAGE, WHEEL = "base image", "package", "wheel"
_KINDS = (
    (BASE, "", re.compile(r"base-[0-9a-f]{64}\.tar")), (PACKAGE, "debs", re.compile(r"[0-9a-f]{64}\.deb")),
    (WHEEL, "wheels", re.compile(r"[0-9a-f]{64}\.whl")),
)
"""Kind, directory below images, and names; whatever has another name is none of ours."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """One file that images are made of."""

    kind: str
    path: Path
    size_bytes: int


def kept(images: Path) -> tuple[Material, ...]:
    """All that is there."""
    found = []
    for kind, place, name in _KINDS:
        for path in sorted((images / place).glob("*")):
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                info = path.lstat()
                if name.fullmatch(path.name) and stat.S_ISREG(info.st_mode):
                    found.append(Material(kind=kind, path=path, size_bytes=info.st_size))
    return tuple(found)


def needed(home: Path, folders: Iterable[Path]) -> frozenset[str]:
    """Names of the files that the locks of these toolchain folders, or of this machine, stand for.

    A lock counts also while another one is in its place. Those of opened bundles count, too. DependencyError for a
    lock that cannot be read: what it needs is not known.
    """
    names: set[str] = set()
    for folder in folders:
        wanted = load.read_wanted(folder)
        for path in (folder / load.LOCK_FILE, load.home_lock(home, wanted.name)):
            if path.is_file():
                lock = load.read_lock(path, name=wanted.name)
                names |= _files_of(lock)
                names.add(f"base-{base_digest(load.assemble(folder, wanted, lock, path))}.tar")
    for path in sorted((home / "toolchains").glob(f"*/{load.LOCK_FILE}")):  # of folders that are elsewhere
        names |= _files_of(load.read_lock(path, name=path.parent.name))
    for folder in sorted((home / "bundles").glob("*/toolchain")):
        # One that is damaged is unpacked again before it is used, and what it then lacks is fetched.
        with contextlib.suppress(KwdbBuildError, OSError):
            lock = load.read_lock(folder / load.LOCK_FILE, name=folder.name)
            assembled = load.assemble(folder, load.read_wanted(folder), lock, folder / load.LOCK_FILE)
            names |= _files_of(lock) | {f"base-{base_digest(assembled)}.tar"}
    return frozenset(names)


def _files_of(lock: load.Lock) -> set[str]:
    debs = {f"{entry.sha256}.deb" for entry in lock.debian}
    return debs | {f"{digest}.whl" for wheel in lock.wheels.values() for digest in wheel.sha256}


def prune(images: Path, names: frozenset[str], *, dry_run: bool) -> tuple[Material, ...]:
    """Remove what is there and not among names; what went, or would go. LockedError while an image is being made."""
    with contextlib.ExitStack() as stack:
        if not dry_run:
            stack.enter_context(_nobody_makes(images))
        gone = tuple(one for one in kept(images) if one.path.name not in names)
        for one in () if dry_run else gone:
            one.path.unlink(missing_ok=True)
    return gone


@contextlib.contextmanager
def _nobody_makes(images: Path) -> Iterator[None]:
    """Hold the locks of all images that were made here: one that is in the making may be of a folder not known here."""
    with contextlib.ExitStack() as stack:
        for path in sorted(images.glob("*.lock")):
            try:
                stack.enter_context(FileLock(path).acquire(timeout=0))
            except Timeout as error:
                raise LockedError(
                    f"a build image is being made: {path.stem}", context=str(path),
                    hint="wait for it; nothing was removed",
                ) from error
        yield


def folders_of(names: Iterable[str], *, search: Path) -> tuple[Path, ...]:
    """The folders of all toolchains that come with kwdb-build, and of these; UsageError for what is none."""
    return tuple(load.find(name, search=search) for name in (*load.names(search), *names))
