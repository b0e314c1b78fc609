"""Where a server can be reached from this machine: flags, the store's own address files and the real sockets agree.

The files kwbase.sql-addr and kwbase.http-addr (server.go, listenerInfo) hold the addresses after name resolution and
port choice, but they stay after a stop: only what the process really listens on counts.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
import stat
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kwdb_build.errors import StartError, UsageError
from kwdb_build.model import Address
from kwdb_build.server import proc, startflags
from kwdb_build.server.startflags import HostPort

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kwdb_build.model import Deployment
    from kwdb_build.server.startflags import StartFlags

_PROBE_TIMEOUT_S = 3.0
_PORT_WAIT_S = 10.0
_POLL_S = 0.1
_SSL_REQUEST = struct.pack("!ii", 8, 80877103)
"""PostgreSQL's question whether the server speaks TLS; the answer is one letter."""


@dataclass(frozen=True, kw_only=True)
class Occupant:
    """Who listens on a port; pid None when this user may not know."""

    pid: int | None
    name: str

    def describe(self) -> str:
        """In words."""
        return f"pid {self.pid} ({self.name})" if self.pid else "a process that this user may not see"


def listening(pid: int) -> tuple[HostPort, ...]:
    """Addresses that a process listens on (TCP). AccessError when this user may not know."""
    import psutil

    try:
        connections = psutil.Process(pid).net_connections(kind="tcp")
    except psutil.AccessDenied as error:
        raise proc.access_error(pid, "the sockets") from error
    except psutil.NoSuchProcess as error:
        raise proc.gone(pid, ProcessLookupError(str(error))) from error
    return tuple(
        HostPort(host=connection.laddr.ip, port=connection.laddr.port)
        for connection in connections if connection.status == psutil.CONN_LISTEN and connection.laddr
    )


def recorded(store: Path, name: str) -> HostPort | None:
    """Content of <store>/kwbase.<name>-addr, None when there is none or it is no address."""
    with contextlib.suppress(OSError, UsageError, UnicodeDecodeError):
        return startflags.parse_host_port((store / f"kwbase.{name}-addr").read_text(encoding="utf-8").strip(), 0)
    return None


def resolve(flags: StartFlags, stores: Sequence[Path], sockets: Sequence[HostPort]) -> tuple[Address, Address | None]:
    """SQL address, and HTTP address where there is one.

    Errors: StartError when the process listens on no port that its flags or its store name (not up yet, or draining).
    """
    first = stores[0] if stores else None
    sql = _pick([recorded(first, "sql") if first else None, flags.sql], sockets)
    http = _pick([recorded(first, "http") if first else None, flags.http], sockets)
    if sql is None:
        seen = ", ".join(str(one) for one in sockets) or "nothing"
        raise StartError(
            f"the server does not listen on its SQL port {flags.sql.port}", context=f"it listens on: {seen}",
            hint="wait until the server is up (or has ended) and try again",
        )
    return sql, http


def _pick(candidates: Iterable[HostPort | None], sockets: Sequence[HostPort]) -> Address | None:
    for wanted in candidates:
        bound = [one.host for one in sockets if wanted is not None and one.port == wanted.port]
        if wanted is not None and bound:
            return Address(host=dialable(wanted.host, bound), port=wanted.port)
    return None


def dialable(wanted: str, bound: Sequence[str]) -> str:
    """The host to dial, given the addresses that the port is bound to. A wildcard becomes a loopback."""
    hosts = [host.removeprefix("::ffff:") for host in bound]
    if "0.0.0.0" in hosts or "::" in hosts:  # noqa: S104 compared, not bound
        # Go's wildcard socket is an IPv6 one that takes IPv4 as well, unless the machine has no IPv4 at all.
        return "127.0.0.1" if "0.0.0.0" in hosts or _has_ipv4_loopback() else "::1"  # noqa: S104
    return wanted if wanted in hosts else hosts[0]


def _has_ipv4_loopback() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return True
    return False


def certified(address: Address, certs_dir: Path, names: Iterable[str]) -> Address:
    """The first host among the address's own and `names` for which the server shows a valid certificate.

    A client with sslmode=verify-full must dial a name that is in the certificate. The address as it is when none
    fits or none can be tried: the connection that follows says it better.
    """
    try:
        context = ssl.create_default_context(cafile=str(certs_dir / "ca.crt"))
    except OSError:
        return address
    for host in dict.fromkeys([address.host, *filter(None, names), "localhost"]):
        with contextlib.suppress(OSError, ValueError):
            _handshake(host, address, context)
            return Address(host=host, port=address.port)
    return address


def _handshake(host: str, address: Address, context: ssl.SSLContext) -> None:
    """TLS on the SQL port, by the name `host` and to the machine that it really names. OSError when not valid."""
    with socket.create_connection((host, address.port), timeout=_PROBE_TIMEOUT_S) as plain:
        plain.sendall(_SSL_REQUEST)
        if plain.recv(1) != b"S":
            raise OSError("no TLS on this port")
        with context.wrap_socket(plain, server_hostname=host):
            return


def occupants(port: int) -> tuple[Occupant, ...]:
    """Who listens on a TCP port of this machine, on any address."""
    import psutil

    found: dict[int | None, Occupant] = {}
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return ()
    for connection in connections:
        if connection.status != psutil.CONN_LISTEN or not connection.laddr or connection.laddr.port != port:
            continue
        name = ""
        with contextlib.suppress(psutil.Error):
            name = psutil.Process(connection.pid).name() if connection.pid else ""
        found[connection.pid] = Occupant(pid=connection.pid, name=name)
    return tuple(found.values())


def port_free(address: Address) -> bool:
    """Whether nobody else listens there (a bind as Go makes it: SO_REUSEADDR, so TIME_WAIT does not count).

    Only EADDRINUSE is somebody else: a host that is not this machine's (NAT), or a port that this user may not bind
    (kwbase may have a capability for it), says nothing about a server that has listened there before.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
            probe.listen(1)
        except OSError as error:
            return error.errno != errno.EADDRINUSE
    return True


def unix_sockets(pid: int) -> tuple[Path, ...]:
    """Unix sockets that a process has bound, as absolute paths. Errors: AccessError, ServerNotFoundError.

    Lines of /proc/PID/net/unix: Num RefCount Protocol Flags Type St Inode [Path]; a path may hold spaces.
    """
    cwd = Path(proc.read_link(pid, "cwd"))
    own = _own_sockets(pid)
    lines = (line.split(None, 7) for line in proc.read_text(pid, "net/unix").split("\n"))
    return tuple(
        Path(os.path.normpath(cwd / fields[7])) for fields in lines
        if len(fields) == 8 and fields[6] in own  # noqa: PLR2004
    )


def _own_sockets(pid: int) -> set[str]:
    """Inodes of the sockets that a process has open."""
    found = set()
    try:
        for entry in (proc.PROC / str(pid) / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                found.add(str(entry.readlink()).removeprefix("socket:[").removesuffix("]"))
    except OSError as error:
        raise proc.gone(pid, error) from error
    return found


def clear_the_way(deployment: Deployment, *, wait_s: float = _PORT_WAIT_S) -> None:
    """Before a start: wait a little for ports to be given back, and remove the socket of a server that was killed.

    kwbase removes its Unix socket at a clean end only, and does not start over one. Errors: StartError names who has
    a port or the socket.
    """
    deadline = time.monotonic() + wait_s
    while not all(map(port_free, filter(None, (deployment.sql, deployment.http)))) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    require_ports_free((deployment.sql, deployment.http))
    start = deployment.start
    place = Path(startflags.parse(start.argv, cwd=str(start.cwd), environ=start.environ).socket)
    if not _is_socket(place):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_TIMEOUT_S)
        try:
            _connect(probe, place)
        except ConnectionRefusedError:  # nobody's
            place.unlink(missing_ok=True)
            return
        except OSError:
            return  # whatever it is: kwbase says it better
    raise StartError(f"somebody else listens on the Unix socket {place}", hint="end that process (`ss -lxp`)")


def _connect(probe: socket.socket, place: Path) -> None:
    """Connect through the directory: what kwbase binds by a relative path may have more bytes than a socket's path."""
    directory = os.open(place.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        probe.connect(f"/proc/self/fd/{directory}/{place.name}")
    finally:
        os.close(directory)


def _is_socket(place: Path) -> bool:
    """Whether the file itself is a socket: what a link leads to is not ours to remove."""
    with contextlib.suppress(OSError):
        return stat.S_ISSOCK(place.lstat().st_mode)
    return False


def require_ports_free(addresses: Iterable[Address | None]) -> None:
    """StartError that names who holds a port that the server is about to need."""
    for address in addresses:
        if address is not None and not port_free(address):
            holders = ", ".join(one.describe() for one in occupants(address.port)) or "a process that cannot be seen"
            raise StartError(
                f"port {address.port} is taken by someone else", context=f"{address}: {holders}",
                hint="end that process",
            )
