"""What Linux says about a process: pure parsers of /proc/PID files, and thin readers around them.

Formats: proc(5). Text of other programs (arguments, environment, paths) is decoded as Python decodes file names
(surrogateescape), so that any byte survives the way to JSON and back.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from kwdb_build.errors import AccessError, ServerNotFoundError
from kwdb_build.model import Capabilities

if TYPE_CHECKING:
    from collections.abc import Mapping

PROC = Path("/proc")
DELETED = " (deleted)"
SAME_START_S = 0.005
"""Half a tick of the kernel's clock."""
_BOOT_DIGITS = 6

_LIMIT_NAMES = {
    "Max cpu time": "cpu", "Max file size": "fsize", "Max data size": "data", "Max stack size": "stack",
    "Max core file size": "core", "Max resident set": "rss", "Max processes": "nproc", "Max open files": "nofile",
    "Max locked memory": "memlock", "Max address space": "as", "Max file locks": "locks",
    "Max pending signals": "sigpending", "Max msgqueue size": "msgqueue", "Max nice priority": "nice",
    "Max realtime priority": "rtprio", "Max realtime timeout": "rttime",
}
_LIMIT_LINE = re.compile(r"^(?P<name>Max .+?)\s{2,}(?P<soft>unlimited|\d+)\s+(?P<hard>unlimited|\d+)")
_MAP_LINE = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ [0-9a-f]+ \S+ \d+ *(?P<path>.*)$")
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, kw_only=True)
class Status:
    """From /proc/PID/status: who a process is. uid and gid are the effective ones; umask is -1 where unknown."""

    name: str
    state: str
    ppid: int
    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    umask: int = -1
    capabilities: Capabilities | None = None
    no_new_privileges: bool = False


@dataclass(frozen=True, kw_only=True)
class Stat:
    """From /proc/PID/stat. start_ticks counts clock ticks since boot; pid and start_ticks name a process for good."""

    state: str
    ppid: int
    session: int
    nice: int
    start_ticks: int


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A parsed environ: variables in their order, and entries without '=' that no getenv would ever find."""

    variables: dict[str, str] = field(repr=False)
    stray: tuple[str, ...] = field(default=(), repr=False)


def parse_cmdline(data: bytes) -> tuple[str, ...]:
    r"""Arguments as the process was given them; each ends in NUL, empty ones count."""
    return tuple(os.fsdecode(part) for part in data.removesuffix(b"\0").split(b"\0")) if data else ()


def parse_environ(data: bytes) -> Environment:
    """NUL separated NAME=value. Of two with one name the first counts, as for getenv(3) and for Go."""
    variables: dict[str, str] = {}
    stray = []
    for entry in data.split(b"\0"):
        name, equals, value = entry.partition(b"=")
        if not entry:
            continue
        if not equals or not name:
            stray.append(os.fsdecode(entry))
        else:
            variables.setdefault(os.fsdecode(name), os.fsdecode(value))
    return Environment(variables=variables, stray=tuple(stray))


def parse_status(text: str) -> Status:
    """Name, state, parent, effective ids, groups and umask."""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return Status(
        name=fields["Name"].strip(),
        state=fields["State"].split()[0],
        ppid=int(fields["PPid"]),
        uid=int(fields["Uid"].split()[1]),
        gid=int(fields["Gid"].split()[1]),
        groups=tuple(int(group) for group in fields.get("Groups", "").split()),
        umask=int(fields["Umask"], 8) if "Umask" in fields else -1,
        capabilities=_capabilities(fields),
        no_new_privileges=fields.get("NoNewPrivs", "0").strip() == "1",
    )


def _capabilities(fields: Mapping[str, str]) -> Capabilities | None:
    if "CapBnd" not in fields:
        return None
    sets = {"inheritable": "CapInh", "bounding": "CapBnd", "ambient": "CapAmb"}
    return Capabilities(**{name: int(fields.get(key, "0"), 16) for name, key in sets.items()})


def parse_stat(text: str) -> Stat:
    """The fields after the name; the name is in parentheses and may hold spaces and parentheses itself."""
    rest = text[text.rindex(")") + 1 :].split()
    return Stat(
        state=rest[0], ppid=int(rest[1]), session=int(rest[3]), nice=int(rest[16]), start_ticks=int(rest[19])
    )


def parse_limits(text: str) -> dict[str, tuple[int, int]]:
    """Names of getrlimit(2) ('nofile') -> (soft, hard); -1 is unlimited."""
    found = {}
    for line in text.splitlines():
        match = _LIMIT_LINE.match(line)
        if match and match["name"] in _LIMIT_NAMES:
            soft, hard = (-1 if word == "unlimited" else int(word) for word in (match["soft"], match["hard"]))
            found[_LIMIT_NAMES[match["name"]]] = (soft, hard)
    return found


def parse_maps(text: str) -> tuple[str, ...]:
    """Files mapped, each once, in order; a removed one keeps its ' (deleted)'."""
    paths: dict[str, None] = {}
    for line in text.splitlines():
        match = _MAP_LINE.match(line)
        if match and match["path"].startswith("/"):
            paths[_OCTAL.sub(lambda code: chr(int(code[1], 8)), match["path"])] = None
    return tuple(paths)


def parse_cgroup(text: str) -> tuple[str, ...]:
    """Paths of all hierarchies, systemd's own (version 2, or the named one of version 1) first, '/' left out."""
    own: list[str] = []
    others: list[str] = []
    for line in text.splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3 or parts[2] in {"/", ""}:  # noqa: PLR2004
            continue
        (own if parts[0] == "0" or parts[1] == "name=systemd" else others).append(parts[2])
    return tuple(dict.fromkeys(own + others))


def gone(pid: int, error: OSError) -> ServerNotFoundError | AccessError:
    """The error for a /proc file that cannot be read: the process ended, or it is not ours to read."""
    if isinstance(error, PermissionError):
        return access_error(pid, str(error.filename or PROC / str(pid)))
    return ServerNotFoundError(f"process {pid} is gone", context=str(error), hint="look again with `kwdb-build status`")


def access_error(pid: int, what: str) -> AccessError:
    """Name what may not be read and which user may."""
    owner = "root"
    with contextlib.suppress(OSError, KeyError, ValueError):
        owner = f"{user_name(read_status(pid).uid)} (the server's user) or root"
    return AccessError(
        f"not allowed to read {what} of process {pid}",
        context=f"running as {user_name(os.geteuid())}", hint=f"run kwdb-build as {owner}, for example with sudo",
    )


def user_name(uid: int) -> str:
    """Login name, or the number where there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def read_bytes(pid: int, name: str) -> bytes:
    """One file of /proc/PID. Errors: ServerNotFoundError (gone), AccessError."""
    try:
        return (PROC / str(pid) / name).read_bytes()
    except OSError as error:
        raise gone(pid, error) from error


def read_text(pid: int, name: str) -> str:
    """One file of /proc/PID as text."""
    return os.fsdecode(read_bytes(pid, name))


def read_link(pid: int, name: str) -> str:
    """Target of cwd, exe, fd/1, ns/mnt … as the kernel shows it. Errors as read_bytes."""
    try:
        return str((PROC / str(pid) / name).readlink())
    except OSError as error:
        raise gone(pid, error) from error


def read_status(pid: int) -> Status:
    """/proc/PID/status; OSError when the process is gone."""
    return parse_status(os.fsdecode((PROC / str(pid) / "status").read_bytes()))


def read_stat(pid: int) -> Stat | None:
    """/proc/PID/stat, None when there is no such process (any more)."""
    try:
        return parse_stat(os.fsdecode((PROC / str(pid) / "stat").read_bytes()))
    except (FileNotFoundError, ProcessLookupError):
        return None


def boot_number() -> int:
    """A number that names this boot of the machine (0 when the kernel does not say)."""
    with contextlib.suppress(OSError, ValueError):
        return int((PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii")[:_BOOT_DIGITS], 16) * 1000
    return 0


def started_at(stat: Stat) -> float:
    """What tells a process from a later one with its pid: seconds since the boot, plus the number of that boot.

    No time of day: that comes out differently when the clock is set, and the server that runs would seem to be gone.
    """
    return boot_number() + stat.start_ticks / os.sysconf("SC_CLK_TCK")


def now() -> float:
    """This moment, as started_at() numbers the starts of processes."""
    return boot_number() + time.clock_gettime(time.CLOCK_BOOTTIME)


def start_time(pid: int) -> float:
    """The start of pid as started_at() numbers it; ServerNotFoundError when there is no such process."""
    stat = read_stat(pid)
    if stat is None:
        raise ServerNotFoundError(f"process {pid} is gone", hint="start the server and try again")
    return started_at(stat)


def is_alive(pid: int, began: float) -> bool:
    """Whether the process with that start (start_time) still runs; a zombie and a reused pid do not count."""
    stat = read_stat(pid)
    return stat is not None and stat.state not in "ZX" and abs(started_at(stat) - began) <= SAME_START_S


def members(session: int) -> tuple[int, ...]:
    """Live processes of a session (setsid), lowest pid first."""
    found = []
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            stat = read_stat(int(entry.name))
            if stat is not None and stat.session == session and stat.state not in "ZX":
                found.append(int(entry.name))
    return tuple(sorted(found))


def ancestors(pid: int) -> tuple[int, ...]:
    """Parent, grandparent … up to 1."""
    found: list[int] = []
    stat = read_stat(pid)
    while stat is not None and stat.ppid > 0 and stat.ppid not in found:
        found.append(stat.ppid)
        stat = read_stat(stat.ppid)
    return tuple(found)


def mapped_libraries(pid: int, names: Mapping[str, str] | tuple[str, ...]) -> dict[str, str]:
    """Name -> mapped file (perhaps with ' (deleted)') for each of the names that the process maps.

    The kernel shows where links led to: libcommon.so may be mapped as libcommon.so.3.1.0.
    """
    found = {}
    for path in parse_maps(read_text(pid, "maps")):
        mapped = path.removesuffix(DELETED).rpartition("/")[2]
        for name in names:
            if mapped == name or mapped.startswith(f"{name}."):
                found[name] = path
    return found


class Watch:
    """Waits for the end of one process without missing it, and signals only that one, never a later user of its pid.

    By a pidfd where the kernel has one (5.3+), by polling the start time elsewhere.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = -1
        with contextlib.suppress(OSError, AttributeError):
            self._fd = os.pidfd_open(pid)
        stat = read_stat(pid)
        self._ticks = -1 if stat is None else stat.start_ticks

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def alive(self) -> bool:
        """Whether it has not ended (a zombie has)."""
        stat = read_stat(self.pid)
        return stat is not None and stat.start_ticks == self._ticks and stat.state not in "ZX"

    def send(self, signum: int) -> None:
        """Signal it; nothing when it has ended. AccessError when not allowed."""
        import signal

        try:
            if self._fd >= 0:
                signal.pidfd_send_signal(self._fd, signum)
            elif self.alive:
                os.kill(self.pid, signum)
        except ProcessLookupError:
            return
        except PermissionError as error:
            raise AccessError(
                f"not allowed to signal process {self.pid}", context=f"running as {user_name(os.geteuid())}",
                hint="run kwdb-build as the server's user or as root",
            ) from error

    def wait(self, timeout_s: float) -> bool:
        """Sleep until it ends or timeout_s have passed; True when it has ended."""
        import select

        if self._fd < 0:
            deadline = time.monotonic() + timeout_s
            while self.alive and time.monotonic() < deadline:
                time.sleep(min(0.05, max(0.0, deadline - time.monotonic())))
            return not self.alive
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        return bool(poller.poll(max(0.0, timeout_s) * 1000)) or not self.alive
