"""Toolchain folders, small Debian archives and wheels made for tests with the real tools."""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from kwdb_build.toolchain.load import Lock, read_wanted
from kwdb_build.toolchain.lock import render

WANTED = """\
name = "small"
serves = ">=1.0,<2.0"
release = "bookworm"
packages = ["tool"]

[wheels.carrier]
version = "1.0"
directory = "payload"
target = "/opt/carrier"

[environment]
PATH = "/opt/carrier/bin:/usr/bin"
"""
DIGEST = "0" * 64


def folder(parent: Path, text: str = WANTED, *, name: str = "small") -> Path:
    """A toolchain folder without a lock."""
    made = parent / name
    made.mkdir(parents=True, exist_ok=True)
    (made / "toolchain.toml").write_text(text)
    return made


def write_lock(where: Path, *, packages: dict[str, str] | None = None, wheel_sha256: str = DIGEST,
               wanted: str | None = None, replaces: str = "", path: Path | None = None) -> Lock:
    """A lock for the folder, with its right digest unless another is given."""
    lock = Lock(
        schema=1, wanted=wanted or read_wanted(where).digest, replaces=replaces,
        packages={"tool": f"1:1.0-1 amd64 {DIGEST}", "base": f"2.0 all {DIGEST}"} if packages is None else packages,
        wheels={"carrier": {"version": "1.0", "sha256": (wheel_sha256,)}},  # type: ignore[dict-item]
    )
    target = path or where / "lock.toml"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(render(lock))
    return lock


def need(*programs: str) -> None:
    """Skip where Debian's own tools are not; a failure in CI."""
    missing = [name for name in programs if not shutil.which(name)]
    if missing and not os.environ.get("CI"):
        pytest.skip(f"not here: {', '.join(missing)}")
    assert not missing


def deb(repository: Path, name: str, version: str, *, essential: bool = False, depends: str = "",
        content: str = "") -> Path:
    """A real .deb in a flat repository."""
    root = repository.parent / f".root-{name}-{version.replace(':', '.')}"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "usr/share" / name).mkdir(parents=True)
    (root / "usr/share" / name / "content").write_text(content or f"{name} {version}\n")
    fields = [f"Package: {name}", f"Version: {version}", "Architecture: amd64", "Maintainer: T <t@example.org>",
              "Description: for a test"]
    if essential:
        fields.append("Essential: yes")
    if depends:
        fields.append(f"Depends: {depends}")
    (root / "DEBIAN/control").write_text("\n".join(fields) + "\n")
    repository.mkdir(parents=True, exist_ok=True)
    target = repository / f"{name}_{version.partition(':')[2] or version}_amd64.deb"  # archives leave the epoch out
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", str(root), str(target)], check=True,
                   capture_output=True)
    shutil.rmtree(root)
    return target


def publish(repository: Path) -> Path:
    """Write the repository's Packages file; return a sources file for it."""
    import hashlib

    stanzas = []
    for archive in sorted(repository.glob("*.deb")):
        fields = subprocess.run(["dpkg-deb", "-f", str(archive)], check=True, capture_output=True, text=True).stdout
        stanzas.append(
            f"{fields}Filename: ./{archive.name}\nSize: {archive.stat().st_size}\n"
            f"SHA256: {hashlib.sha256(archive.read_bytes()).hexdigest()}\n"
        )
    (repository / "Packages").write_text("\n".join(stanzas))
    sources = repository.parent / "test.list"
    sources.write_text(f"# of a test\ndeb [trusted=yes] copy:{repository} ./\n")
    return sources


def wheel(directory: Path, name: str = "carrier", version: str = "1.0", *, content: str = "one") -> Path:
    """A wheel that carries a program."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as packed:
        program = zipfile.ZipInfo("payload/bin/tool")
        program.external_attr = 0o100755 << 16
        packed.writestr(program, f"#!/bin/sh\necho {content}\n")
        data = zipfile.ZipInfo("payload/VERSION")
        data.external_attr = 0o100644 << 16
        packed.writestr(data, version)
        packed.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        packed.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        packed.writestr(f"{info}/RECORD", "")
    return path
