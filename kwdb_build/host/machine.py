"""Facts of this machine, read from the kernel; each is None or -1 where it cannot be found out. Nothing is changed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
import socket
from dataclasses import dataclass
from pathlib import Path

import psutil

from kwdb_build import files

_STA_UNSYNC = 0x40
_TIMEX_BYTES = 256
_MAX_ERROR_OFFSET, _STATUS_OFFSET = 3 * 8, 5 * 8
_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, kw_only=True)
class Clock:
    """What the kernel knows of its clock: whether something keeps it right, and the greatest error in seconds."""

    synchronised: bool
    max_error_s: float


@dataclass(frozen=True, kw_only=True)
class MachineFacts:
    """Memory in bytes, limits as (soft, hard) with -1 for unlimited, cpu_flags as /proc/cpuinfo has them."""

    cores: int
    memory_bytes: int
    available_bytes: int
    free_bytes: int
    architecture: str
    cpu_flags: frozenset[str] | None = None
    max_map_count: int | None = None
    nofile: tuple[int, int] = (0, 0)
    memlock: tuple[int, int] = (0, 0)
    clock: Clock | None = None


def machine_facts(*, home: Path) -> MachineFacts:
    """Look at this machine; home is where builds will be."""
    memory = psutil.virtual_memory()
    return MachineFacts(
        cores=len(os.sched_getaffinity(0)), memory_bytes=_memory_limit(memory.total),
        available_bytes=memory.available, free_bytes=files.free_bytes(home), architecture=os.uname().machine,
        cpu_flags=_cpu_flags(), max_map_count=_number(Path("/proc/sys/vm/max_map_count")),
        nofile=resource.getrlimit(resource.RLIMIT_NOFILE), memlock=resource.getrlimit(resource.RLIMIT_MEMLOCK),
        clock=clock(),
    )


def _memory_limit(total: int) -> int:
    """Memory of this machine, or of the container that we are in."""
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        if (limit := _number(Path(name))) is not None:
            return min(total, limit)
    return total


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _cpu_flags() -> frozenset[str] | None:
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() in {"flags", "Features"}:
                return frozenset(value.split())
    return None


def clock() -> Clock | None:
    """Ask adjtimex(2), which may be read by anybody; None where it is not allowed (some containers)."""
    buffer = ctypes.create_string_buffer(_TIMEX_BYTES)  # modes = 0: nothing is set
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(buffer)
    except (OSError, AttributeError):
        return None
    if state < 0:
        return None
    max_error_us = ctypes.c_long.from_buffer(buffer, _MAX_ERROR_OFFSET).value
    status = ctypes.c_int.from_buffer(buffer, _STATUS_OFFSET).value
    return Clock(synchronised=not status & _STA_UNSYNC, max_error_s=max_error_us / 1e6)


def file_system(place: Path, mountinfo: str | None = None) -> str:
    """Type of the file system that holds a path ('ext4', 'nfs4'); '' when it cannot be told."""
    try:
        text = Path("/proc/self/mountinfo").read_text(encoding="utf-8") if mountinfo is None else mountinfo
        whole = os.path.realpath(place)
    except OSError:
        return ""
    best, kind = "", ""
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        if len(fields) < 5 or not right:  # noqa: PLR2004 - the fifth is where it is mounted
            continue
        point = _ESCAPED.sub(lambda match: chr(int(match[1], 8)), fields[4])
        inside = whole == point or whole.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # of two on one place the later one is seen
            best, kind = point, right.split()[0]
    return kind


def ports_in_use(ports: tuple[int, ...]) -> dict[int, str]:
    """Which of these TCP ports something listens on: port -> who, as far as it can be seen."""
    found: dict[int, str] = {}
    with contextlib.suppress(psutil.AccessDenied, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port in ports:
                found[connection.laddr.port] = _who(connection.pid)
        return found
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                found[port] = "somebody"
    return found


def _who(pid: int | None) -> str:
    if pid is None:
        return "a process of another user"
    try:
        return f"{psutil.Process(pid).name()} (pid {pid})"
    except psutil.Error:
        return f"pid {pid}"
