"""Resolve what a toolchain wants to exact packages and wheels, and write that down without any host's name.

A Debian mirror keeps only the newest version of a package, so a lock ages: after some months a locked version is gone.
Then a build is either refused (setting strict_lock) or the toolchain is resolved anew for this machine alone, aloud,
into <home>/toolchains/<name>/lock.toml. Builds made with it have another key, as another lock makes other bytes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from kwdb_build import files
from kwdb_build.errors import DependencyError
from kwdb_build.scratch import scratch_directory
from kwdb_build.toolchain import apt, wheels
from kwdb_build.toolchain.load import LOCK_FILE, LOCK_SCHEMA, Lock, LockedWheel, Wanted, numbers, read_wanted

if TYPE_CHECKING:
    from kwdb_build.config import Settings
    from kwdb_build.console import Progress

_HEADER = "# What toolchain.toml resolved to. Written by `kwdb-build toolchain lock`: do not edit by hand.\n"


def lock(
    toolchain_dir: Path, *, settings: Settings, progress: Progress, log: Path | None = None,
    target: Path | None = None, replaces: str = "",
) -> Lock:
    """Resolve a toolchain folder and write its lock (to target when given).

    replaces is the digest of the lock in whose place the new one is used. Errors: DependencyError when the archives,
    the index or one of the names cannot be had.
    """
    resolved = resolve(read_wanted(toolchain_dir), settings=settings, progress=progress, log=log, replaces=replaces)
    path = target or toolchain_dir / LOCK_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomic(path, render(resolved))
    return resolved


def resolve(
    wanted: Wanted, *, settings: Settings, progress: Progress, log: Path | None = None, replaces: str = ""
) -> Lock:
    """Ask the archives and the index; write nothing but the wheels' cache."""
    sources, only_debian = apt.sources_for(wanted.release, chosen=settings.apt_sources)
    with tempfile.TemporaryDirectory(prefix="kwdb-build-apt-") as temporary:
        progress.update(f"reading the package lists of {wanted.distribution} {wanted.release}")
        private = apt.PrivateApt.create(
            Path(temporary), sources, architecture=wanted.architecture, only_debian=only_debian,
            ca_bundle=settings.ca_bundle, log=log,
        )
        packages = private.resolve(wanted.packages)
    locked_wheels = {
        name: LockedWheel(
            version=wheel.version,
            sha256=(_wheel_digest(name, wheel.version, wanted.architecture, settings, progress, log),),
        )
        for name, wheel in sorted(wanted.wheels.items())
    }
    resolved = Lock(
        schema=LOCK_SCHEMA, wanted=wanted.digest, replaces=replaces, wheels=locked_wheels,
        packages={entry.name: f"{entry.version} {entry.architecture} {entry.sha256}" for entry in packages},
    )
    progress.update(f"{len(packages)} packages, {len(locked_wheels)} wheels, glibc {resolved.glibc or 'none'}")
    if wanted.glibc and numbers(resolved.glibc) > numbers(wanted.glibc):
        raise DependencyError(
            f"toolchain {wanted.name} promises glibc {wanted.glibc}, but its packages bring {resolved.glibc}",
            context="what is built with it would not run on the hosts it was made for",
            hint=f"choose an older release than {wanted.release}, or raise glibc in toolchain.toml", log=log,
        )
    return resolved


def _wheel_digest(
    name: str, version: str, architecture: str, settings: Settings, progress: Progress, log: Path | None
) -> str:
    progress.update(f"fetching the wheel {name} {version}")
    cache = wheels.cache_of(settings)
    with scratch_directory(cache, ".fetch-") as temporary:
        found = wheels.download(name, version, architecture=architecture, into=temporary, settings=settings, log=log)
        digest = files.sha256_of(found)
        found.replace(cache / f"{digest}.whl")
    return digest


def render(value: Lock) -> str:
    """The lock as TOML, one package a line, so that two locks compare line by line."""
    lines = [_HEADER, f"schema = {LOCK_SCHEMA}", f'wanted = "{value.wanted}"']
    if value.replaces:
        lines.append(f'replaces = "{value.replaces}"')
    lines += ["", "[packages]", *(f'"{name}" = "{entry}"' for name, entry in sorted(value.packages.items()))]
    for name, wheel in sorted(value.wheels.items()):
        digests = ", ".join(f'"{digest}"' for digest in wheel.sha256)
        lines += ["", f'[wheels."{name}"]', f'version = "{wheel.version}"', f"sha256 = [{digests}]"]
    return "\n".join(lines) + "\n"


def differences(old: Lock, new: Lock) -> list[str]:
    """What changed between two locks, a line each, for people."""
    rows = []
    for name in sorted(old.packages.keys() | new.packages.keys()):
        one, other = old.packages.get(name, "absent").split(" "), new.packages.get(name, "absent").split(" ")
        if one[0] != other[0]:
            rows.append(f"{name}: {one[0]} -> {other[0]}")
        elif one != other:
            rows.append(f"{name} {one[0]}: another archive under the same version")
    for name in sorted(old.wheels.keys() | new.wheels.keys()):
        was, now = old.wheels.get(name), new.wheels.get(name)
        versions = [wheel.version if wheel else "absent" for wheel in (was, now)]
        if versions[0] != versions[1]:
            rows.append(f"wheel {name}: {versions[0]} -> {versions[1]}")
        elif was != now:
            rows.append(f"wheel {name} {versions[0]}: other digests")
    return rows
