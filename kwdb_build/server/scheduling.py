"""How a process shares processors and disks with others: read from a running one, given to one that is being started.

Formats: sched(7), ioprio_set(2). All of it passes through execve and to the threads that are made later.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

from kwdb_build.errors import StartError
from kwdb_build.server import proc

IO_CLASSES = ("none", "realtime", "best-effort", "idle")


@dataclass(frozen=True, kw_only=True)
class Share:
    """ionice: (class, level); scheduling: (policy, priority); affinity: processors, sorted (empty: not known)."""

    ionice: tuple[int, int] = (0, 0)
    scheduling: tuple[int, int] = (0, 0)
    affinity: tuple[int, ...] = ()


def read(pid: int) -> Share:
    """The share of a running process (of its first thread). Errors: ServerNotFoundError, AccessError."""
    import psutil

    try:
        scheduling = (os.sched_getscheduler(pid), os.sched_getparam(pid).sched_priority)
        affinity = tuple(sorted(os.sched_getaffinity(pid)))
        ionice = psutil.Process(pid).ionice()
    except (ProcessLookupError, PermissionError) as error:
        raise proc.gone(pid, error) from error
    except psutil.NoSuchProcess as error:
        raise proc.gone(pid, ProcessLookupError(str(error))) from error
    except psutil.AccessDenied as error:
        raise proc.access_error(pid, "the I/O priority") from error
    return Share(ionice=(int(ionice.ioclass), int(ionice.value)), scheduling=scheduling, affinity=affinity)


def apply(pid: int, wanted: Share) -> None:
    """Give a process (that has one thread so far) a share; what it has already is not touched. Errors: StartError."""
    try:
        ours = read(pid)
        if wanted.affinity and wanted.affinity != ours.affinity:
            # A processor that was taken away since: the others still keep the server off those it was kept off.
            os.sched_setaffinity(pid, set(wanted.affinity) & all_processors() or set(ours.affinity))
        if wanted.scheduling != ours.scheduling:
            policy, priority = wanted.scheduling
            os.sched_setscheduler(pid, policy, os.sched_param(priority))
        if wanted.ionice != ours.ionice:
            _set_ionice(pid, *wanted.ionice)
    except PermissionError as error:
        raise StartError(
            "the server's scheduling or I/O priority cannot be restored",
            context=f"policy and priority {wanted.scheduling}, I/O class and level {wanted.ionice}: {error}",
            hint="run kwdb-build as root",
        ) from error


def _set_ionice(pid: int, io_class: int, level: int) -> None:
    import psutil

    try:
        # The idle class and "none" have no level, and psutil refuses one.
        psutil.Process(pid).ionice(io_class, level if io_class in {1, 2} else None)
    except psutil.AccessDenied as error:
        raise PermissionError(1, "not permitted", "ioprio_set") from error


def all_processors() -> set[int]:
    """Numbers of the processors that are on line."""
    found: set[int] = set()
    with contextlib.suppress(OSError, ValueError):
        for part in (proc.PROC.parent / "sys/devices/system/cpu/online").read_text(encoding="ascii").split(","):
            first, _, last = part.strip().partition("-")
            found.update(range(int(first), int(last or first) + 1))
    return found or set(os.sched_getaffinity(0))
