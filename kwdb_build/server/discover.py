"""Finds the running kwbase servers of this machine, and the one that is meant."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kwdb_build.errors import AccessError, KwdbBuildError, RefusedError, ServerNotFoundError, UsageError
from kwdb_build.server import proc, startflags
from kwdb_build.server.unit import Unit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kwdb_build.server.startflags import StartFlags

SERVER_NAME = "kwbase"
TRIAL_PREFIX = "kwdb-build-trial-"
"""Directories of trials of a new version, which are ours and nobody's server."""
ENGINE_LIBRARY = "libkwdbts2.so"
_CONTAINER_CGROUPS = (
    ("kubernetes", re.compile(r"kubepods.*?(?P<id>[0-9a-f]{32,64})?(?:\.scope)?(?:/|$)")),
    ("podman", re.compile(r"libpod(?:_pod)?-(?P<id>[0-9a-f]{12,64})")),
    ("docker", re.compile(r"docker[-/](?P<id>[0-9a-f]{12,64})")),
    ("containerd", re.compile(r"(?:containerd|crio)[-/:](?P<id>[0-9a-f]{12,64})")),
    ("lxc", re.compile(r"/lxc(?:\.payload)?[./](?P<id>[^/]+)")),
    ("nspawn", re.compile(r"machine\.slice/(?:machine-|systemd-nspawn@)?(?P<id>[^/]+)")),
)
_SHORT_ID = 12
_SERVICE = re.compile(r"^[^/]+\.service$")
_HOSTS_OF_STRANGERS = re.compile(
    r"^(user@\d+|sshd?(@.*)?|crond?|atd|docker|containerd|dbus|gitlab-runner|podman)\.service$"
)
"""Services below which people's own processes live: being in their cgroup does not mean being supervised."""
_USER_MANAGER = re.compile(r"/user@(?P<uid>\d+)\.service/")
_SUPERVISORS = {
    "supervisord": "supervisord", "runsv": "runit", "s6-supervise": "s6", "supervise": "daemontools",
    "supervise-daemo": "openrc", "circusd": "circus", "monit": "monit",
}
"""Names of processes (as the kernel cuts them, 15 characters) that start their children again -> who that is."""
_SYSTEMCTL_TIMEOUT_S = 10.0
_START_WORD = b"\0start"
_ENOUGH = 1 << 14
_LISTEN = "0A"


@dataclass(frozen=True, kw_only=True)
class Found:
    """A running kwbase server.

    command is its mode (start-single-node …). stores are absolute (empty when they cannot be known), listen and http
    are 'host:port' as its flags say, uptime_s is -1 where unknown. place says where else than directly on this machine
    it runs ('container docker 3f2a…', 'chroot /srv/jail'), container is whether it does. readable is False for another
    user's process that only root or that user may capture. version is '' until somebody asked for it.
    """

    pid: int
    command: str
    user: str
    stores: tuple[Path, ...]
    listen: str
    executable: str
    container: bool
    supervisor: str
    readable: bool = True
    http: str = ""
    secure: bool = False
    uptime_s: float = -1
    place: str = ""
    version: str = ""

    def describe(self) -> str:
        """One line for people."""
        stores = ", ".join(str(path) for path in self.stores) or "unknown"
        marks = [word for word, on in (
            (f"in a {self.place}" if self.place else "in a container", self.container),
            (self.supervisor, self.supervisor != "none"), ("not readable for this user", not self.readable),
        ) if on]
        text = f"pid {self.pid} ({self.user}): {self.command}, listens on {self.listen or 'unknown'}, store {stores}"
        return f"{text} [{'; '.join(marks)}]" if marks else text


@dataclass(frozen=True, kw_only=True)
class Selector:
    """What the person said about the server: its pid, one of its stores, its listen address (host:port or :port)."""

    pid: int | None = None
    store: Path | None = None
    listen: str | None = None

    def describe(self) -> str:
        """What was asked for, '' when nothing was."""
        parts = [
            f"--pid {self.pid}" if self.pid is not None else "",
            f"--store {self.store}" if self.store is not None else "",
            f"--listen-addr {self.listen}" if self.listen is not None else "",
        ]
        return " ".join(filter(None, parts))


def find_servers() -> tuple[Found, ...]:
    """All kwbase servers that this user can see, lowest pid first; processes that end meanwhile are left out."""
    found = []
    for pid in candidates():
        with contextlib.suppress(ServerNotFoundError, OSError):
            server = _look_at(pid)
            if server is not None:
                found.append(server)
    return tuple(found)


def candidates() -> tuple[int, ...]:
    """Processes with a word in their command line that could be a start command, lowest pid first.

    This is asked of every process of the machine, so it is one read each and nothing else.
    """
    found = []
    for name in os.listdir(proc.PROC):  # noqa: PTH208 thousands of them: no objects
        if not name.isdecimal():
            continue
        try:
            fd = os.open(f"/proc/{name}/cmdline", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            if _START_WORD in os.read(fd, _ENOUGH):
                found.append(int(name))
        except OSError:
            continue
        finally:
            os.close(fd)
    return tuple(sorted(found))


def _look_at(pid: int) -> Found | None:
    argv = proc.parse_cmdline((proc.PROC / str(pid) / "cmdline").read_bytes())
    if not argv or not startflags.is_start_command(argv):
        return None
    executable = _readable_link(pid, "exe")
    if not _is_kwbase(pid, argv, executable):
        return None
    if startflags.split(argv)[1].get("background", ("false",))[-1] == "true":
        return None  # the parent that waits for its background child to be ready; the child is the server
    status = proc.read_status(pid)
    flags, stores = _flags(pid, argv)
    if stores and all(store.parent.name.startswith(TRIAL_PREFIX) for store in stores):
        return None
    place = place_of(pid)
    return Found(
        pid=pid, command=startflags.split(argv)[0], user=proc.user_name(status.uid), stores=stores,
        listen=str(flags.listen) if flags else "", http=str(flags.http) if flags else "",
        secure=flags is not None and not flags.insecure, uptime_s=_uptime(pid), executable=executable or argv[0],
        container=bool(place), place=place, supervisor="none" if place else supervisor_of(pid),
        readable=bool(executable) and os.access(proc.PROC / str(pid) / "environ", os.R_OK) and _can_read_cwd(pid),
    )


def _uptime(pid: int) -> float:
    stat = proc.read_stat(pid)
    return round(proc.now() - proc.started_at(stat), 1) if stat else -1


def _is_kwbase(pid: int, argv: tuple[str, ...], executable: str) -> bool:
    """By its name, by the engine that it maps (a renamed binary), or by its port where neither may be read."""
    names = {startflags.base_name(argv[0]), startflags.base_name(executable.removesuffix(proc.DELETED))}
    if SERVER_NAME in names:
        return True
    try:
        return bool(proc.mapped_libraries(pid, (ENGINE_LIBRARY,)))
    except AccessError:
        flags, _ = _flags(pid, argv)
        return flags is not None and flags.listen.port in _listened_ports()
    except KwdbBuildError:
        return False


def _listened_ports() -> frozenset[int]:
    """TCP ports that somebody of this network namespace listens on."""
    ports = set()
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (proc.PROC / "self/net" / name).read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTEN:
                    ports.add(int(fields[1].rpartition(":")[2], 16))
    return frozenset(ports)


def _readable_link(pid: int, name: str) -> str:
    with contextlib.suppress(KwdbBuildError):
        return proc.read_link(pid, name)
    return ""


def _can_read_cwd(pid: int) -> bool:
    return bool(_readable_link(pid, "cwd"))


def _flags(pid: int, argv: tuple[str, ...]) -> tuple[StartFlags | None, tuple[Path, ...]]:
    """Flags and stores as far as they can be known; a relative store needs the working directory."""
    cwd = _readable_link(pid, "cwd")
    try:
        flags = startflags.parse(argv, cwd=cwd or "/", environ={})
    except UsageError:
        return None, ()
    if cwd:
        return flags, startflags.store_paths(flags)
    given = flags.values.get("store", ()) + flags.values.get("ts-store", ())
    absolute = [startflags.parse_store(value, cwd="").path for value in given]
    return flags, tuple(Path(path) for path in absolute if path.startswith("/"))


def place_of(pid: int) -> str:
    """Where a process runs that sees other processes or other files than we do; '' when it is here.

    A systemd service may have a mount namespace of its own (PrivateTmp=) and is still here. Where the namespaces
    cannot be read (another user's process) the names of its cgroups decide.
    """
    groups = proc.parse_cgroup((proc.PROC / str(pid) / "cgroup").read_text(encoding="utf-8", errors="replace"))
    own = proc.parse_cgroup((proc.PROC / "self/cgroup").read_text(encoding="utf-8", errors="replace"))
    container = container_of(groups)
    if container == container_of(own):
        container = ""  # the one that we are in ourselves
    theirs = {name: _readable_link(pid, f"ns/{name}") for name in ("pid", "mnt")}
    if not all(theirs.values()):
        return container
    ours = {name: str((proc.PROC / "self/ns" / name).readlink()) for name in theirs}
    if theirs["pid"] != ours["pid"]:
        return container or "container (process namespace of its own)"
    if (root := _readable_link(pid, "root")) not in {"/", ""}:
        return container or f"chroot {root}"
    if theirs["mnt"] != ours["mnt"] and (container or not any(unit_of(group) for group in groups)):
        return container or "mount namespace of its own"
    return ""


def container_of(groups: Iterable[str]) -> str:
    """What the names of its control groups tell of a container: 'container docker 3f2a…', '' for none."""
    for group in groups:
        for kind, pattern in _CONTAINER_CGROUPS:
            if match := pattern.search(group):
                return f"container {kind} {(match['id'] or '')[:_SHORT_ID]}".rstrip()
    return ""


def unit_of(cgroup: str) -> str:
    """The service that a cgroup path ends in: '/system.slice/kaiwudb.service' -> 'kaiwudb.service', else ''."""
    services = [part for part in cgroup.split("/") if _SERVICE.match(part) and not _HOSTS_OF_STRANGERS.match(part)]
    return services[-1] if services else ""


def supervisor_of(pid: int) -> str:
    """Who starts the process again: 'systemd:<unit>', 'systemd-user:<uid>:<unit>', 'supervisord', 'runit' or 'none'.

    A unit's main process must be this one or one of its ancestors: a server started by hand from within some service
    is merely accounted to it. When systemd does not answer, the cgroup alone decides.
    """
    ancestors = proc.ancestors(pid)
    for parent in ancestors[:2]:
        with contextlib.suppress(OSError):
            if known := _SUPERVISORS.get(proc.read_status(parent).name):
                return known
    groups = proc.parse_cgroup((proc.PROC / str(pid) / "cgroup").read_text(encoding="utf-8", errors="replace"))
    for group in groups:
        if name := unit_of(group):
            user = _USER_MANAGER.search(group)
            unit = Unit(name=name, uid=int(user["uid"]) if user else None)
            main = _main_pid(unit)
            return str(unit) if main is None or main == pid or (main > 0 and main in ancestors) else "none"
    return "none"


def _main_pid(unit: Unit) -> int | None:
    """MainPID of a unit; 0 when it has none, None when systemd cannot tell."""
    try:
        answer = unit.call("show", "--property=MainPID,LoadState", "--", unit.name, timeout_s=_SYSTEMCTL_TIMEOUT_S)
    except KwdbBuildError:
        return None
    return parse_main_pid(answer.stdout)


def parse_main_pid(text: str) -> int | None:
    """From `systemctl show`: the MainPID of a loaded unit, None when the unit is not known to this manager."""
    fields = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    if fields.get("LoadState") != "loaded" or not fields.get("MainPID", "").isdigit():
        return None
    return int(fields["MainPID"])


def choose(found: Iterable[Found], selector: Selector) -> Found:
    """The one server that is meant.

    Errors: ServerNotFoundError for none, or several without a word which; RefusedError for one in a container.
    """
    servers = tuple(found)
    matching = tuple(server for server in servers if _matches(server, selector))
    asked = selector.describe()
    if not matching:
        raise ServerNotFoundError(
            f"no running kwbase matches {asked}" if asked and servers else "no running kwbase found on this machine",
            context=_seen(servers),
            hint="start the server that is to be upgraded, or see an upgrade on the bundled miniature: nox -s demo",
        )
    if len(matching) > 1:
        raise ServerNotFoundError(
            f"{len(matching)} kwbase servers run here" + (f" that match {asked}" if asked else ""),
            context="\n".join(server.describe() for server in matching),
            hint="say which: --pid PID, --store DIRECTORY or --listen-addr HOST:PORT",
        )
    if matching[0].container:
        raise RefusedError(
            f"the server with pid {matching[0].pid} runs in a {matching[0].place or 'container'}, which is not "
            "supported yet",
            context=matching[0].describe(), hint="only servers that run directly on this machine can be upgraded",
        )
    return matching[0]


def _seen(servers: tuple[Found, ...]) -> str:
    looked = (
        f"looked for processes named {SERVER_NAME}, or with {ENGINE_LIBRARY} mapped, that run one of: "
        + ", ".join(sorted(startflags.START_COMMANDS))
    )
    return "\n".join([looked, *(server.describe() for server in servers)])


def _matches(server: Found, selector: Selector) -> bool:
    return all(_conditions(server, selector))


def _conditions(server: Found, selector: Selector) -> Iterator[bool]:
    if selector.pid is not None:
        yield server.pid == selector.pid
    if selector.store is not None:
        wanted = selector.store.resolve()
        yield any(path.resolve() == wanted for path in server.stores)
    if selector.listen is not None:
        yield _listens(server, selector.listen)


def _listens(server: Found, wanted: str) -> bool:
    """Same port, and same host unless either side means every address."""
    if not server.listen:
        return False
    asked = startflags.parse_host_port(wanted, startflags.SERVER_PORT)
    actual = startflags.parse_host_port(server.listen, startflags.SERVER_PORT)
    same_host = asked.wildcard or actual.wildcard or _plain(asked.host) == _plain(actual.host)
    return asked.port == actual.port and same_host


def _plain(host: str) -> str:
    return "127.0.0.1" if host in {"localhost", "::1"} else host
