"""Finds the running kwbase servers of this machine, and the one that is meant."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kwdb_build import command
from kwdb_build.errors import KwdbBuildError, RefusedError, ServerNotFoundError, UsageError
from kwdb_build.server import proc, startflags

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SERVER_NAME = "kwbase"
TRIAL_PREFIX = "kwdb-build-trial-"
"""Directories of trials of a new version, which are ours and nobody's server."""
ENGINE_LIBRARY = "libkwdbts2.so"
_CONTAINER_CGROUP = re.compile(r"docker|containerd|kubepods|libpod|/lxc[./]|machine\.slice|crio", re.IGNORECASE)
_SERVICE = re.compile(r"^[^/]+\.service$")
_HOSTS_OF_STRANGERS = re.compile(
    r"^(user@\d+|sshd?(@.*)?|crond?|atd|docker|containerd|dbus|gitlab-runner|podman)\.service$"
)
"""Services below which people's own processes live: being in their cgroup does not mean being supervised."""
_SYSTEMCTL_TIMEOUT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Found:
    """A running kwbase server.

    stores are absolute (empty when they cannot be known), listen is 'host:port' as its flags say. readable is False
    for another user's process that only root or that user may capture.
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

    def describe(self) -> str:
        """One line for people."""
        stores = ", ".join(str(path) for path in self.stores) or "unknown"
        marks = [word for word, on in (
            ("in a container", self.container), (self.supervisor, self.supervisor != "none"),
            ("not readable for this user", not self.readable),
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
    import psutil

    found = []
    for pid in sorted(psutil.pids()):
        with contextlib.suppress(ServerNotFoundError, OSError):
            server = _look_at(pid)
            if server is not None:
                found.append(server)
    return tuple(found)


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
    stores, listen = _from_flags(pid, argv)
    if stores and all(store.parent.name.startswith(TRIAL_PREFIX) for store in stores):
        return None
    return Found(
        pid=pid, command=startflags.split(argv)[0], user=proc.user_name(status.uid), stores=stores, listen=listen,
        executable=executable or argv[0], container=in_container(pid), supervisor=supervisor_of(pid),
        readable=bool(executable) and os.access(proc.PROC / str(pid) / "environ", os.R_OK) and _can_read_cwd(pid),
    )


def _is_kwbase(pid: int, argv: tuple[str, ...], executable: str) -> bool:
    names = {startflags.base_name(argv[0]), startflags.base_name(executable.removesuffix(proc.DELETED))}
    if SERVER_NAME in names:
        return True
    # A renamed binary is recognised by the engine that it maps.
    with contextlib.suppress(KwdbBuildError):
        return bool(proc.mapped_libraries(pid, (ENGINE_LIBRARY,)))
    return False


def _readable_link(pid: int, name: str) -> str:
    with contextlib.suppress(KwdbBuildError):
        return proc.read_link(pid, name)
    return ""


def _can_read_cwd(pid: int) -> bool:
    return bool(_readable_link(pid, "cwd"))


def _from_flags(pid: int, argv: tuple[str, ...]) -> tuple[tuple[Path, ...], str]:
    """Stores and listen address as far as they can be known; a relative store needs the working directory."""
    cwd = _readable_link(pid, "cwd")
    try:
        flags = startflags.parse(argv, cwd=cwd or "/", environ={})
    except UsageError:
        return (), ""
    listen = str(flags.listen)
    if cwd:
        return startflags.store_paths(flags), listen
    given = flags.values.get("store", ()) + flags.values.get("ts-store", ())
    absolute = [startflags.parse_store(value, cwd="").path for value in given]
    return tuple(Path(path) for path in absolute if path.startswith("/")), listen


def in_container(pid: int) -> bool:
    """Whether the process sees other processes or other files than we do.

    A systemd service may have a mount namespace of its own (PrivateTmp=) and is still no container. Where the
    namespaces cannot be read (another user's process) the names of its cgroups decide.
    """
    groups = proc.parse_cgroup((proc.PROC / str(pid) / "cgroup").read_text(encoding="utf-8", errors="replace"))
    marked = any(_CONTAINER_CGROUP.search(group) for group in groups)
    theirs = {name: _readable_link(pid, f"ns/{name}") for name in ("pid", "mnt")}
    if not all(theirs.values()):
        own = proc.parse_cgroup((proc.PROC / "self/cgroup").read_text(encoding="utf-8", errors="replace"))
        return marked and groups != own
    ours = {name: str((proc.PROC / "self/ns" / name).readlink()) for name in theirs}
    if theirs["pid"] != ours["pid"] or _readable_link(pid, "root") not in {"/", ""}:
        return True
    return theirs["mnt"] != ours["mnt"] and (marked or not any(unit_of(group) for group in groups))


def unit_of(cgroup: str) -> str:
    """The service that a cgroup path ends in: '/system.slice/kaiwudb.service' -> 'kaiwudb.service', else ''."""
    services = [part for part in cgroup.split("/") if _SERVICE.match(part) and not _HOSTS_OF_STRANGERS.match(part)]
    return services[-1] if services else ""


def supervisor_of(pid: int) -> str:
    """'systemd:<unit>' when a unit owns the process, else 'none'.

    The unit's main process must be this one or one of its ancestors: a server started by hand from within some
    service is merely accounted to it. When systemd does not answer, the cgroup alone decides.
    """
    groups = proc.parse_cgroup((proc.PROC / str(pid) / "cgroup").read_text(encoding="utf-8", errors="replace"))
    unit = next(filter(None, (unit_of(group) for group in groups)), "")
    if not unit:
        return "none"
    main = _main_pid(unit)
    if main is None or main == pid or (main > 0 and main in proc.ancestors(pid)):
        return f"systemd:{unit}"
    return "none"


def _main_pid(unit: str) -> int | None:
    """MainPID of a unit; 0 when it has none, None when systemd cannot tell."""
    try:
        answer = command.run(
            ["systemctl", "show", "--property=MainPID,LoadState", "--", unit], timeout_s=_SYSTEMCTL_TIMEOUT_S
        )
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
            f"the server with pid {matching[0].pid} runs in a container, which is not supported yet",
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
