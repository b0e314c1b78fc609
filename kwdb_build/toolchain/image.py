"""The build image of a toolchain: made at most once for each lock, tagged only when whole."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from kwdb_build import files
from kwdb_build.errors import SpaceError
from kwdb_build.toolchain import base_image, wheels
from kwdb_build.toolchain.load import (
    LOCK_FILE,
    assemble,
    home_lock,
    image_recipe,
    read_lock,
    read_wanted,
    with_base,
)
from kwdb_build.toolchain.lock import differences, lock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kwdb_build.config import Settings
    from kwdb_build.console import Progress
    from kwdb_build.engine.base import Engine
    from kwdb_build.model import Toolchain

_ENGINE_BYTES = 3 << 30
"""What the largest toolchain's base, its layers and the import take in the engine's storage."""
_SHOWN_DIFFERENCES = 10
_LINE = 100
_PACKAGE_LIST = "usr/share/kwdb-build/packages.list"


@dataclass(frozen=True, kw_only=True)
class PreparedImage:
    """A build image and the toolchain it was really made from (its lock may be this machine's own)."""

    toolchain: Toolchain
    image_id: str


def prepare_image(
    toolchain: Toolchain, *, engine: Engine, settings: Settings, progress: Progress, log: Path
) -> PreparedImage:
    """As ensure_image; but when locked packages are gone, resolve anew for this machine and go on with that lock.

    Use the toolchain that comes back: a build's key holds its lock's digest. With the setting strict_lock the
    PackageGoneError goes through.
    """
    toolchain = with_base(toolchain, settings.base_image)
    try:
        identity = ensure_image(toolchain, engine=engine, settings=settings, progress=progress, log=log)
    except base_image.PackageGoneError as error:
        if settings.strict_lock:
            raise
        progress.note(f"{error.message}: resolving them anew for this machine (setting strict_lock refuses instead)")
        toolchain = relock_here(toolchain, settings=settings, progress=progress, log=log)
        identity = ensure_image(toolchain, engine=engine, settings=settings, progress=progress, log=log)
    return PreparedImage(toolchain=toolchain, image_id=identity)


def relock_here(toolchain: Toolchain, *, settings: Settings, progress: Progress, log: Path) -> Toolchain:
    """Resolve a toolchain anew into <home>/toolchains/<name>/lock.toml and say what changed."""
    committed = read_lock(toolchain.path / LOCK_FILE, name=toolchain.name)
    path = home_lock(settings.home, toolchain.name)
    resolved = lock(
        toolchain.path, settings=settings, progress=progress, log=log, target=path, replaces=committed.digest
    )
    changed = differences(committed, resolved)
    for line in changed[:_SHOWN_DIFFERENCES]:
        progress.note(f"  {line}")
    if len(changed) > _SHOWN_DIFFERENCES:
        progress.note(f"  and {len(changed) - _SHOWN_DIFFERENCES} more")
    progress.note(f"  written to {path}; builds with it have their own key")
    return with_base(assemble(toolchain.path, read_wanted(toolchain.path), resolved, path), toolchain.base_image)


def ensure_image(
    toolchain: Toolchain, *, engine: Engine, settings: Settings, progress: Progress, log: Path
) -> str:
    """Identity of the toolchain's build image, made now when the engine has none.

    Errors: DependencyError (packages, wheels, mmdebstrap), PackageGoneError, EngineError, SpaceError. A failure leaves
    no tagged image behind.
    """
    if found := engine.image_id(toolchain.image_tag):
        return found
    images = settings.home / "images"
    images.mkdir(parents=True, exist_ok=True)
    with _only_one(images / f"{toolchain.name}-{toolchain.lock_digest[:16]}.lock", progress):
        if found := engine.image_id(toolchain.image_tag):  # the one we waited for has made it
            return found
        free = engine.info().free_bytes
        if 0 <= free < _ENGINE_BYTES:
            raise SpaceError(
                f"not enough disk space for the build image: {files.human_bytes(_ENGINE_BYTES)} needed, "
                f"{files.human_bytes(free)} free in the engine's storage", hint="docker system df; docker image prune",
            )
        base, network = _base(toolchain, engine=engine, settings=settings, progress=progress, log=log)
        with tempfile.TemporaryDirectory(dir=images, prefix=".context-") as temporary:
            context = Path(temporary)
            fill_context(toolchain, context, settings=settings, progress=progress, log=log)
            progress.update("making the build image")
            return engine.build_image(
                context, dockerfile="Dockerfile", tag=toolchain.image_tag, arguments={"BASE_IMAGE": base}, log=log,
                on_line=lambda line: progress.update(line[:_LINE]), network=network,
            )


def _base(
    toolchain: Toolchain, *, engine: Engine, settings: Settings, progress: Progress, log: Path
) -> tuple[str, str]:
    """Name of the base image for FROM, and the network that Dockerfile.build needs on top of it."""
    if toolchain.base_image:
        return toolchain.base_image, "default"
    tag = f"kwdb-build/base:{base_image.base_digest(toolchain)[:16]}"
    if engine.image_id(tag) is None:
        archive = base_image.bootstrap(toolchain, settings=settings, progress=progress, log=log)
        progress.update(f"importing {files.human_bytes(archive.stat().st_size)}")
        engine.import_base(archive, tag, environment={})
    return tag, "none"


def fill_context(toolchain: Toolchain, context: Path, *, settings: Settings, progress: Progress, log: Path) -> None:
    """What Dockerfile.build copies: the recipe, the list of packages, and the unpacked wheels under root/."""
    shutil.copyfile(image_recipe(), context / "Dockerfile")
    root = context / "root"
    listing = root / _PACKAGE_LIST
    listing.parent.mkdir(parents=True)
    listing.write_text("".join(f"{line}\n" for line in toolchain.locked_packages), encoding="utf-8")
    for wheel in toolchain.wheels:
        progress.update(f"unpacking {wheel.name} {wheel.version}")
        archive = wheels.fetch(
            wheel, architecture=toolchain.architecture, cache=wheels.cache_of(settings), settings=settings, log=log
        )
        wheels.unpack(archive, wheel.directory, root / wheel.target.lstrip("/"), mtime=base_image.EPOCH)
    normalise(root)


def normalise(root: Path) -> None:
    """Give directories one mode and everything one time, so that umask and clock leave no trace in the image."""
    for path in sorted(root.rglob("*"), reverse=True):
        if path.is_dir():
            path.chmod(0o755)
        elif not path.stat().st_mode & 0o100:
            path.chmod(0o644)
        os.utime(path, (base_image.EPOCH, base_image.EPOCH))


@contextlib.contextmanager
def _only_one(path: Path, progress: Progress) -> Iterator[None]:
    """Hold a lock file; say so while another process holds it."""
    lock_file = FileLock(path)
    try:
        lock_file.acquire(timeout=0)
    except Timeout:
        progress.update("waiting for another kwdb-build that makes this image")
        lock_file.acquire()
    try:
        yield
    finally:
        lock_file.release()
