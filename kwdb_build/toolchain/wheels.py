"""Wheels as carriers of programs: fetched by the user's own pip, checked against the lock, unpacked as plain files."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import stat
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from kwdb_build import command, network
from kwdb_build.errors import DependencyError
from kwdb_build.files import sha256_of
from kwdb_build.scratch import scratch_directory

if TYPE_CHECKING:
    from kwdb_build.config import Settings
    from kwdb_build.model import Wheel

_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
_PLATFORMS = ("manylinux_2_17", "manylinux2014", "manylinux_2_28", "manylinux_2_34")
_TIMEOUT_S = 3600.0


def cache_of(settings: Settings) -> Path:
    """Where fetched wheels are kept, by digest."""
    cache = settings.home / "images" / "wheels"
    cache.mkdir(parents=True, exist_ok=True)
    return cache


def pip_command() -> list[str]:
    """A pip that works: this interpreter's module, else a program on PATH (environments made by uv have no pip)."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    for name in ("pip3", "pip"):
        if found := shutil.which(name):
            return [found]
    raise DependencyError(
        "pip is missing: the toolchain's wheels cannot be fetched", hint="install it: apt-get install python3-pip"
    )


def download(name: str, version: str, *, architecture: str, into: Path, settings: Settings, log: Path | None) -> Path:
    """Fetch one wheel for the toolchain's architecture; DependencyError with pip's own last words."""
    argv = [
        *pip_command(), "download", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps",
        "--only-binary=:all:", "--dest", str(into),
        *(f"--platform={base}_{_MACHINES[architecture]}" for base in _PLATFORMS), f"{name}=={version}",
    ]
    environment = dict(os.environ)
    if settings.pip_index_url:  # by environment: an index URL may carry a password, and argv is for everyone to read
        environment["PIP_INDEX_URL"] = settings.pip_index_url
    if settings.ca_bundle:
        bundle = str(network.authorities(settings.ca_bundle))
        environment |= {"PIP_CERT": bundle, "REQUESTS_CA_BUNDLE": bundle}  # pip lets the second one win
    before = set(into.glob("*.whl"))
    done = command.run(argv, check=False, env=environment, timeout_s=_TIMEOUT_S, log=log)
    found = sorted(set(into.glob("*.whl")) - before)
    if not done.ok or len(found) != 1:
        raise DependencyError(
            f"the wheel {name} {version} cannot be fetched", context="\n".join(done.stderr.splitlines()[-10:]), log=log,
            hint="check the network and pip's configuration (setting pip_index_url; else pip's own), and that the "
            f"version exists for {platform.system()} on {architecture}",
        )
    return found[0]


def fetch(wheel: Wheel, *, architecture: str, cache: Path, settings: Settings, log: Path | None) -> Path:
    """The locked wheel from the cache or the index; DependencyError when its digest is not the locked one."""
    for digest in wheel.sha256:
        if (stored := cache / f"{digest}.whl").is_file() and sha256_of(stored) == digest:
            return stored
    cache.mkdir(parents=True, exist_ok=True)
    with scratch_directory(cache, ".fetch-") as temporary:
        found = download(
            wheel.name, wheel.version, architecture=architecture, into=temporary, settings=settings, log=log
        )
        digest = sha256_of(found)
        if digest not in wheel.sha256:
            raise DependencyError(
                f"the wheel {wheel.name} {wheel.version} is not the locked one",
                context=f"sha256 {digest}\nlocked {' or '.join(wheel.sha256)}", log=log,
                hint="do not use it before you know why it differs; if it is right: kwdb-build toolchain lock NAME",
            )
        stored = cache / f"{digest}.whl"
        found.replace(stored)
    return stored


def unpack(archive: Path, directory: str, target: Path, *, mtime: int) -> int:
    """Write what stands under `directory` in a wheel to target, with the wheel's modes and one fixed time.

    Returns the number of files; DependencyError when the wheel has no such directory or is no zip file.
    """
    prefix = directory.rstrip("/") + "/"
    count = 0
    try:
        with zipfile.ZipFile(archive) as packed:
            for item in packed.infolist():
                relative = item.filename.removeprefix(prefix)
                if relative == item.filename or item.is_dir():
                    continue
                path = target / relative
                if not path.resolve().is_relative_to(target.resolve()):
                    raise DependencyError(f"the wheel {archive.name} has a path that leaves it: {item.filename}")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(packed.read(item))
                path.chmod(0o755 if (item.external_attr >> 16) & stat.S_IXUSR else 0o644)
                count += 1
    except (zipfile.BadZipFile, OSError) as error:
        raise DependencyError(f"cannot unpack the wheel {archive}", context=str(error)) from error
    if not count:
        raise DependencyError(f"the wheel {archive.name} has no directory {directory!r}", hint="mend toolchain.toml")
    _set_times(target, mtime)
    return count


def _set_times(root: Path, mtime: int) -> None:
    for here, names, files in os.walk(root, topdown=False):
        for name in [*files, *names]:
            os.utime(Path(here) / name, (mtime, mtime))
    os.utime(root, (mtime, mtime))
