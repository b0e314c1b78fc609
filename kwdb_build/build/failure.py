"""Why a build failed, in words that help."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from kwdb_build.build.diagnosis import explains, first_error, first_failed_test, out_of_memory
from kwdb_build.errors import BuildError, SpaceError
from kwdb_build.files import free_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from kwdb_build.engine.base import RunResult
    from kwdb_build.errors import KwdbBuildError
    from kwdb_build.model import Version

_KILLED = 128 + 9
_FULL = re.compile(r"No space left on device|Disk quota exceeded", re.IGNORECASE)
_NOTHING_BYTES = 32 << 20
"""A disk with less is full: what a failed compiler gives back of its temporary files."""


def _disk_full(version: Version, context: str, log: Path) -> SpaceError:
    return SpaceError(
        f"the disk became full while {version} was built", context=context, log=log,
        hint="free space where kwdb-build's home is, or choose another place with --home, and run it again",
    )


def failure(
    version: Version, result: RunResult, *, jobs: int, place: Path, log: Path, log_start: int
) -> KwdbBuildError:
    """The error of a build in place that ended with another code than 0; its lines in the log begin at log_start."""
    with log.open(encoding="utf-8", errors="replace") as stream:
        stream.seek(log_start)
        error = first_error(stream)
        stream.seek(log_start)
        error = first_failed_test(stream) or error  # a test that passes may print what looks like an error
    # ccache keeps a compiler's words in a file before it repeats them: on a full disk they may be lost.
    if _FULL.search(error) or (not explains(error) and free_bytes(place) < _NOTHING_BYTES):
        return _disk_full(version, error, log)
    if result.oom_killed or out_of_memory(error):
        fewer = f"run it again with --jobs {max(1, jobs // 2)}, or allow" if jobs > 1 else "allow"
        return BuildError(
            f"the build of {version} ran out of memory with {jobs} job{'s' if jobs != 1 else ''}", context=error,
            log=log, hint=f"{fewer} more memory (--memory): each C++ compiler takes up to 0.9 GB, and Go's link 2 GB",
        )
    if result.timed_out:
        return BuildError(f"the build of {version} did not come to an end and was stopped", context=error, log=log)
    if result.returncode == _KILLED:
        return BuildError(
            f"the build of {version} was killed from outside", context=error, log=log,
            hint="somebody removed its container, or the machine ran out of memory (the kernel's log tells): run "
            f"it again, perhaps with --jobs {max(1, jobs // 2)}",
        )
    return BuildError(
        f"the build of {version} failed (make ended with exit code {result.returncode})",
        context=error or "no line of its output looks like an error; see the log", log=log,
        hint="the first error is above; the log has everything the compiler said; --shell-on-failure opens a shell in "
        "the container, --keep-container keeps it",
    )
