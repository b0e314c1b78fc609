"""Why a build failed, in words that help."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from kwdb_build.build.diagnosis import explains, first_error, first_failed_test, out_of_memory
from kwdb_build.errors import BuildError, SpaceError
from kwdb_build.files import free_bytes, human_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from kwdb_build.build.runner import Wishes
    from kwdb_build.engine.base import RunResult
    from kwdb_build.errors import KwdbBuildError
    from kwdb_build.model import Version

_KILLED = 128 + 9
_FULL = re.compile(r"No space left on device|Disk quota exceeded", re.IGNORECASE)
_NOTHING_BYTES = 32 << 20
"""A disk with less is full: what a failed compiler gives back of its temporary files."""


def no_room(place: Path) -> bool:
    """Whether the disk that has place is full."""
    return free_bytes(place) < _NOTHING_BYTES


def disk_full(version: Version, context: str, log: Path) -> SpaceError:
    """The error of a build that found no more room."""
    return SpaceError(
        f"the disk became full while {version} was built", context=context, log=log,
        hint="free space where kwdb-build's home is, or choose another place with --home, and run it again",
    )


def failure(
    version: Version, result: RunResult, *, jobs: int, memory_bytes: int, wishes: Wishes, place: Path, log: Path,
    log_start: int,
) -> KwdbBuildError:
    """The error of a build in place that ended with another code than 0; its lines in the log begin at log_start.

    memory_bytes: the limit that it had, 0 for none.
    """
    with log.open(encoding="utf-8", errors="replace") as stream:
        stream.seek(log_start)
        error = first_error(stream)
        stream.seek(log_start)
        error = first_failed_test(stream) or error  # a test that passes may print what looks like an error
    # ccache keeps a compiler's words in a file before it repeats them: on a full disk they may be lost.
    if _FULL.search(error) or (not explains(error) and no_room(place)):
        return disk_full(version, error, log)
    if result.oom_killed or out_of_memory(error):
        more = (
            f"allow more memory than {human_bytes(memory_bytes)} (--memory)" if memory_bytes
            else "give this machine more memory or swap"
        )
        return BuildError(
            f"the build of {version} ran out of memory with {jobs} job{'s' if jobs != 1 else ''}", context=error,
            log=log, hint=f"{_with_fewer(jobs)}{more}: each C++ compiler takes up to 0.9 GB, and Go's link 2 GB",
        )
    if result.timed_out:
        return BuildError(f"the build of {version} did not come to an end and was stopped", context=error, log=log)
    if result.returncode == _KILLED:
        return BuildError(
            f"the build of {version} was killed from outside", context=error, log=log,
            hint="somebody removed its container, or the machine ran out of memory (the kernel's log tells): "
            + (f"run it again, perhaps with --jobs {jobs // 2}" if jobs > 1 else "run it again"),
        )
    return BuildError(
        f"the build of {version} failed (make ended with exit code {result.returncode})",
        context=error or "no line of its output looks like an error; see the log", log=log,
        hint="; ".join(["the first error is above", "the log has everything the compiler said", *_not_asked(wishes)]),
    )


def _with_fewer(jobs: int) -> str:
    return f"run it again with --jobs {jobs // 2}, or " if jobs > 1 else ""


def _not_asked(wishes: Wishes) -> list[str]:
    """Which ways to look into a failure were not taken. They are the verb build's: upgrade has no such options."""
    ways = {
        "`build … --shell-on-failure` opens a shell where it fails": wishes.shell_on_failure,
        "`build … --keep-container` keeps container and working copy": wishes.keep_failed,
    }
    return [words for words, taken in ways.items() if not taken]
