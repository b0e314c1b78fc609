"""Equal files of different builds share their blocks on disk where the file system can (XFS, Btrfs, …).

Only by FIDEDUPERANGE: the kernel compares the bytes itself, under lock, and each file stays a file of its own. Hard
links would save the same room on every file system, but one file written in place (or one that a careless `chmod` and
an editor changed) would then spoil every version that shares it, among them the one that is wanted to go back to.
"""

from __future__ import annotations

import fcntl
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from kwdb_build.model import FileRecord

_FIDEDUPERANGE = 0xC0189436
_REQUEST = struct.Struct("@QQHHIqQQiI")
"""struct file_dedupe_range with one file_dedupe_range_info, see ioctl_fideduperange(2)."""
_STEP = 16 << 20
"""Btrfs does at most this much in one call."""
_WORTH_BYTES = 4096


def share_blocks(root: Path, files: Iterable[FileRecord], stored: Mapping[str, Path]) -> int:
    """Let each file below root share blocks with a stored one of the same sha256; return the bytes now shared.

    stored: sha256 -> a file that is thought to have that content. Never an error: without such a file system, or when
    the bytes differ after all, nothing is shared.
    """
    shared = 0
    for entry in files:
        other = stored.get(entry.sha256)
        if other is not None and not entry.link and entry.size >= _WORTH_BYTES:
            shared += _share(other, root / entry.path, entry.size)
    return shared


def _share(source: Path, target: Path, size: int) -> int:
    done = 0
    try:
        # Reading is enough for the owner of the file; who may write it needs no more either.
        with source.open("rb") as reader, target.open("rb") as writer:
            while done < size:
                answer = fcntl.ioctl(
                    reader.fileno(), _FIDEDUPERANGE,
                    _REQUEST.pack(done, min(_STEP, size - done), 1, 0, 0, writer.fileno(), done, 0, 0, 0),
                )
                *_, deduped, status, _ = _REQUEST.unpack(answer)
                if status != 0 or deduped == 0:
                    break
                done += deduped
    except OSError:
        return done
    return done
