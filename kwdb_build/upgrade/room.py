"""A little room kept free for the way back: a journal must be writable when the disk is full and the server is down.

Made before the stop (while a full disk is still a mere refusal) and given up with the first write that finds no space.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, TypeVar

from kwdb_build.data.copying import explained, is_no_space
from kwdb_build.files import PRIVATE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NAME = ".room"
_SIZE_BYTES = 4 << 20
"""For the journal, the records of a start, the logs and the result of a verification."""

T = TypeVar("T")


def reserve(run: Path) -> None:
    """Take the room; SpaceError when there is none."""
    place = run / NAME
    with explained("reserving room for the way back", place):
        fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
        try:
            os.posix_fallocate(fd, 0, _SIZE_BYTES)
        except OSError:
            release(run)
            raise
        finally:
            os.close(fd)


def release(run: Path) -> bool:
    """Give it back; whether there was any."""
    with contextlib.suppress(OSError):
        (run / NAME).unlink()
        return True
    return False


def spending(run: Path, write: Callable[[], T]) -> T:
    """Call `write`; when it finds no space, once more with the room given up. OSError as it comes."""
    try:
        return write()
    except OSError as error:
        if not is_no_space(error) or not release(run):
            raise
    return write()
