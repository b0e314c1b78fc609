"""Small file systems that are real, so they really become full."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pytest

PAGE = 4096


class Mount(Protocol):
    """Mount one more file system, with mount's own options; `image_mb` makes it an ext4 of that size in a file."""

    def __call__(self, *options: str, image_mb: int = 0) -> Path: ...


@contextmanager
def mounting(root: Path) -> Iterator[Mount]:
    """Mounts below root that are gone at the end."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mounted: list[Path] = []

    def mount(*options: str, image_mb: int = 0) -> Path:
        place = root / f"disk-{len(mounted)}"
        place.mkdir()
        argv = ["mount", "-t", "tmpfs", "-o", ",".join(options), "none", str(place)]
        if image_mb:
            image = root / f"{place.name}.ext4"
            # Blocks as small as they can be, and none in reserve for root, who runs this.
            subprocess.run(["mke2fs", "-q", "-t", "ext4", "-b", "1024", "-m", "0", str(image), f"{image_mb}m"], check=True)
            argv = ["mount", "-t", "ext4", "-o", ",".join(("loop", *options)), str(image), str(place)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"cannot mount here: {done.stderr.strip()}")
        mounted.append(place)
        return place

    try:
        yield mount
    finally:
        for place in mounted:
            subprocess.run(["umount", "-l", str(place)], check=True)


def remount(place: Path, option: str) -> None:
    """Give a tmpfs more room."""
    subprocess.run(["mount", "-o", f"remount,{option}", str(place)], check=True)


def fill(filler: Path) -> None:
    """Let a file take every byte that is left."""
    with filler.open("ab", buffering=0) as stream:
        for size in (1 << 20, PAGE, 1024, 1):
            try:
                while stream.write(bytes(size)):
                    pass
            except OSError:
                continue
        os.fsync(stream.fileno())
