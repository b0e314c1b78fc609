"""The base root file system of a build image: exactly a lock's Debian packages, made by mmdebstrap.

The archives are fetched and checked against the lock first; mmdebstrap then sees only them, as a local repository, so
that it needs no network, and no mirror's name, proxy or key of this machine can get into the image. Two runs of the
same lock give the same bytes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from kwdb_build import command, files
from kwdb_build.errors import DependencyError
from kwdb_build.scratch import scratch_directory
from kwdb_build.toolchain import apt
from kwdb_build.toolchain.load import digest_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kwdb_build.config import Settings
    from kwdb_build.console import Progress
    from kwdb_build.model import DebianPackage, Toolchain

EPOCH = 1_672_531_200
"""2023-01-01: the newest time any file of an image has, whenever it was made."""
_RECIPE = 1
"""Counted up when the way of making a base changes its bytes."""
_NEEDED_BYTES = 3 << 30
_TIMEOUT_S = 3600.0
_LEFT_OUT = ("doc", "doc-base", "info", "locale", "man", "lintian")
_CLEAN_UP = """#!/bin/sh
# $1 is the new root: take away what the making left in it
set -eu
rm -f "$1"/etc/apt/sources.list "$1"/etc/apt/apt.conf.d/99mmdebstrap "$1"/etc/dpkg/dpkg.cfg.d/99mmdebstrap
rm -f "$1"/etc/resolv.conf "$1"/etc/hostname "$1"/var/lib/dpkg/*-old "$1"/var/cache/debconf/*-old
rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/* "$1"/var/cache/ldconfig/* "$1"/var/log/* "$1"/tmp/*
: > "$1"/etc/apt/sources.list
"""


class PackageGoneError(DependencyError):
    """Locked package versions are no longer on offer."""

    reference = "package-gone"


def base_digest(toolchain: Toolchain) -> str:
    """Identity of the base: distribution, release, architecture and every package."""
    return digest_of({
        "recipe": _RECIPE, "distribution": toolchain.distribution, "release": toolchain.release,
        "architecture": toolchain.architecture,
        "packages": [[entry.name, entry.version, entry.sha256] for entry in toolchain.debian],
    })


def bootstrap(toolchain: Toolchain, *, settings: Settings, progress: Progress, log: Path) -> Path:
    """Tar of the root file system, from <home>/images when it was made before.

    Errors: DependencyError when mmdebstrap is missing or fails, PackageGoneError when a locked version is gone,
    SpaceError.
    """
    images = settings.home / "images"
    target = images / f"base-{base_digest(toolchain)}.tar"
    if target.is_file():
        return target
    images.mkdir(parents=True, exist_ok=True)
    require_mmdebstrap()
    with scratch_directory(images, ".base-") as scratch:  # what a killed one left goes before room is asked for
        files.require_space(images, _NEEDED_BYTES, "base image")
        archives = fetch_packages(toolchain, settings=settings, progress=progress, log=log)
        partial = scratch / target.name
        make(archives, partial, architecture=toolchain.architecture, progress=progress, log=log)
        files.fsync_file(partial)
        partial.replace(target)
    files.fsync_directory(images)
    return target


def require_mmdebstrap() -> None:
    """DependencyError with the command that installs it."""
    if not shutil.which("mmdebstrap"):
        raise DependencyError(
            "mmdebstrap is missing: the base image cannot be made", context="looked for mmdebstrap on PATH",
            hint="apt-get install mmdebstrap (and uidmap, when not root), or name a ready Debian image with the "
            "setting base_image",
        )


def fetch_packages(toolchain: Toolchain, *, settings: Settings, progress: Progress, log: Path) -> list[Path]:
    """Every archive of the lock, from the cache <home>/images/debs or this machine's apt sources, checked by digest."""
    cache = settings.home / "images" / "debs"
    cache.mkdir(parents=True, exist_ok=True)
    missing = [entry for entry in toolchain.debian if not _is_cached(cache, entry)]
    if missing:
        _fetch(missing, toolchain, cache, settings=settings, progress=progress, log=log)
    return [cache / f"{entry.sha256}.deb" for entry in toolchain.debian]


def _is_cached(cache: Path, entry: DebianPackage) -> bool:
    stored = cache / f"{entry.sha256}.deb"
    return stored.is_file() and files.sha256_of(stored) == entry.sha256


def _fetch(
    missing: Sequence[DebianPackage], toolchain: Toolchain, cache: Path, *, settings: Settings, progress: Progress,
    log: Path,
) -> None:
    sources, only_debian = apt.sources_for(toolchain.release, chosen=settings.apt_sources)
    with scratch_directory(cache, ".fetch-") as temporary:
        progress.update("reading the package lists")
        private = apt.PrivateApt.create(
            temporary / "apt", sources, architecture=toolchain.architecture, only_debian=only_debian,
            ca_bundle=settings.ca_bundle, log=log,
        )
        _refuse_gone(missing, private.available([entry.name for entry in missing]), toolchain.name, log)
        received = temporary / "received"
        private.download(
            missing, received,
            on_number=lambda number: progress.update("fetching packages", done=number, total=len(missing)),
        )
        _keep_received(received, missing, cache, log)


def _keep_received(received: Path, missing: Iterable[DebianPackage], cache: Path, log: Path) -> None:
    """Move archives into the cache by digest; anything but the locked bytes is an error."""
    found = {files.sha256_of(path): path for path in received.glob("*.deb")}
    strange = [
        f"{entry}: no archive with the locked sha256 {entry.sha256}" for entry in missing if entry.sha256 not in found
    ]
    if strange:
        raise DependencyError(
            "the archives sent other packages than the locked ones under the same versions",
            context="\n".join(strange), log=log, hint="do not build with them before you know why they differ",
        )
    for entry in missing:
        found[entry.sha256].replace(cache / f"{entry.sha256}.deb")


def _refuse_gone(
    missing: Iterable[DebianPackage], available: dict[str, list[str]], name: str, log: Path
) -> None:
    gone = [
        f"{entry.name}: locked {entry.version}, available {', '.join(available.get(entry.name, [])) or 'none'}"
        for entry in missing if entry.version not in available.get(entry.name, [])
    ]
    if gone:
        raise PackageGoneError(
            f"{len(gone)} locked package(s) of toolchain {name} are no longer in the apt sources",
            context="\n".join(gone), hint=f"kwdb-build toolchain lock {name}", log=log,
        )


def make(archives: Sequence[Path], target: Path, *, architecture: str, progress: Progress, log: Path) -> None:
    """Install the archives into an empty root and write it as a tar."""
    # Not below home: without root, mmdebstrap's own user must be able to read it, and home is private.
    with tempfile.TemporaryDirectory(prefix="kwdb-build-base-") as temporary:
        staging = Path(temporary)
        staging.chmod(0o755)
        repository, names = _repository(staging, archives)
        hook = staging / "clean-up"
        hook.write_text(_CLEAN_UP, encoding="utf-8")
        hook.chmod(0o755)
        argv = [
            "mmdebstrap", "--mode=auto", "--variant=essential", "--format=tar", f"--architectures={architecture}",
            f"--include={','.join(names)}", f"--customize-hook={hook}",
            *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _LEFT_OUT), "",
            str(target), f"deb [trusted=yes] copy:{repository} ./",
        ]
        environment = {
            "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin", "HOME": temporary, "LC_ALL": "C.UTF-8",
            "TMPDIR": tempfile.gettempdir(), "SOURCE_DATE_EPOCH": str(EPOCH),
        }
        done = command.run(
            argv, check=False, env=environment, timeout_s=_TIMEOUT_S, log=log,
            on_line=lambda line: progress.update(line.removeprefix("I: ")) if line.startswith("I: ") else None,
        )
    if not done.ok:
        raise DependencyError(
            f"the base image cannot be made: {command.describe(done)}",
            context="\n".join(done.stderr.splitlines()[-15:]), log=log,
            hint="" if os.geteuid() == 0 else "without root it needs the package uidmap and a range of this user in "
            "/etc/subuid and /etc/subgid; or run as root",
        )


def _repository(staging: Path, archives: Sequence[Path]) -> tuple[Path, list[str]]:
    """A flat apt repository of exactly these archives, in a fixed order; and the packages' names."""
    repository = staging / "packages"
    repository.mkdir(mode=0o755)
    stanzas, names = [], []
    for archive in archives:
        place = repository / archive.name
        shutil.copyfile(archive, place)
        place.chmod(0o644)
        fields = command.run(["dpkg-deb", "--field", str(place)], env={**os.environ, "LC_ALL": "C"}).stdout.rstrip("\n")
        names.append(next(line for line in fields.splitlines() if line.startswith("Package:")).split()[1])
        stanzas.append(f"{fields}\nFilename: ./{archive.name}\nSize: {place.stat().st_size}\nSHA256: {archive.stem}\n")
    listing = repository / "Packages"
    listing.write_text("\n".join(stanzas), encoding="utf-8")
    listing.chmod(0o644)
    return repository, names
