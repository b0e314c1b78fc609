"""Where one call of a verb without a run keeps its logs: two at the same time must not write into each other's."""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path

from kwdb_build.files import private_directory

_NAME = re.compile(r"^\d{8}T\d{6}Z-(?P<pid>\d+)$")
_KEPT = 30


def logs_of_call(home: Path) -> Path:
    """<home>/logs/TIME-PID, made when the first log is written; of earlier calls the newest 30 with logs stay.

    Errors: UsageError when there can be no directory below home.
    """
    root = private_directory(home / "logs")
    _prune(root)
    return root / f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.getpid()}"


def _prune(root: Path) -> None:
    """Remove old ones, and those that nothing was written to; a living process keeps its own."""
    ended = sorted(
        path for path in root.iterdir()
        if (match := _NAME.match(path.name)) and not Path(f"/proc/{match['pid']}").exists()
    )
    empty = [path for path in ended if not any(path.iterdir())]
    for path in (*empty, *[path for path in ended if path not in empty][:-_KEPT]):
        shutil.rmtree(path, ignore_errors=True)
