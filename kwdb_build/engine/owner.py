"""Who made a container, so that what a killed run left can be told from what a living one still uses."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def owner() -> str:
    """This process, so that it cannot be mistaken for a later one with the same pid: place:pid:ticks since boot.

    Not the time of day it started: a clock that is set meanwhile (a virtual machine that catches up) would make a
    living owner look dead, and its container would be removed in mid-build.
    """
    return f"{_place()}:{os.getpid()}:{_start_ticks(os.getpid())}"


def owner_lives(text: str) -> bool:
    """Whether the process that made a container still runs; one of another host or container is taken to live."""
    place, _, rest = text.partition(":")
    pid, _, ticks = rest.partition(":")
    if not pid.isdigit():
        return False
    if place != _place():
        return True
    if found := _start_ticks(int(pid)):
        return ticks == found
    try:
        os.kill(int(pid), 0)  # with hidepid a living process of another user has no /proc/PID for us
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _start_ticks(pid: int) -> str:
    """Field 22 of /proc/PID/stat, counted from behind the command name, which may hold anything; '' when not seen."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return text.rpartition(")")[2].split()[19]


def _place() -> str:
    """Where pids mean what they mean here: a container with the host's network also has its name, but other pids."""
    namespace = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()} {namespace.readlink() if namespace.is_symlink() else ''}".replace(":", "")
