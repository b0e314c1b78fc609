"""Directories of one run that vanish with it, even when the run was killed.

Each is held by flock(2) while its owner lives, so the next run can tell a left-over one from one in use.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

if TYPE_CHECKING:
    from collections.abc import Iterator

_GATE = ".gate"
_KEEP = ".keep"


def gate(root: Path) -> FileLock:
    """The short lock under which temporaries below root are made, cleaned up and renamed."""
    return FileLock(root / _GATE)


@contextlib.contextmanager
def scratch_directory(root: Path, prefix: str) -> Iterator[Path]:
    """A new private directory below root, removed at the end unless it was renamed away or is kept.

    prefix starts with '.' or a word of ours and is what left-overs are known by: those whose owner is gone are removed.
    """
    with gate(root):
        clean_leftovers(root, prefix)
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    identity = os.fstat(fd)
    try:
        yield path
    finally:
        # After a rename the name is free or somebody else's: only what is still ours goes.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.lstat(), identity) and not (path / _KEEP).exists():
                remove_tree(path)
        os.close(fd)


def keep(path: Path) -> None:
    """Let a scratch directory stay for good: whoever asked for it removes it by hand."""
    (path / _KEEP).touch()


def clean_leftovers(root: Path, prefix: str) -> None:
    """Remove directories named prefix* whose owner is dead, as far as that goes. Called under gate(root)."""
    for path in root.glob(f"{prefix}*"):
        if path.is_symlink() or not path.is_dir() or (path / _KEEP).exists():
            continue
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        else:
            with contextlib.suppress(OSError):  # what something of its owner still writes to, the next run removes
                remove_tree(path)
        finally:
            os.close(fd)


def remove_tree(path: Path) -> None:
    """Remove a directory of ours, read-only parts included. Symlinks are removed, never followed."""
    for directory, names, _ in os.walk(path):
        for name in (directory, *(os.path.join(directory, name) for name in names)):  # noqa: PTH118 many paths
            info = os.lstat(name)
            if stat.S_ISDIR(info.st_mode) and not info.st_mode & stat.S_IWUSR:
                os.chmod(name, stat.S_IMODE(info.st_mode) | stat.S_IRWXU)  # noqa: PTH101
    shutil.rmtree(path)
