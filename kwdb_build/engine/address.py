"""Which daemon is meant, and in plain words why it cannot be used. Pure apart from one connect(2) to a socket."""

from __future__ import annotations

import contextlib
import errno
import getpass
import ipaddress
import os
import shutil
import socket
from pathlib import Path
from urllib.parse import urlsplit

from kwdb_build.errors import EngineError

MINIMUM_API = (1, 40)
"""Docker 19.03; Podman's compatible socket says 1.41. It is the oldest that has all that a run asks for."""
DEFAULT_SOCKET = Path("/var/run/docker.sock")
PODMAN_SOCKET = Path("/run/podman/podman.sock")
_PROBE_TIMEOUT_S = 10.0
_PROGRAMS = ("dockerd", "docker", "podman")
_INSTALL_HINT = (
    "install Docker Engine 19.03 or later (Debian, Ubuntu: apt-get install docker.io; RHEL-like: dnf install podman "
    "and systemctl enable --now podman.socket), or name an engine with --docker-host"
)


def candidate_sockets(kind: str = "") -> list[Path]:
    """Where an engine of this machine may listen, in the order they are tried; kind: docker, podman, '' for both."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    mine = [Path(runtime)] if runtime else []
    docker = [DEFAULT_SOCKET, *(place / "docker.sock" for place in mine)]
    podman = [*(place / "podman" / "podman.sock" for place in mine), PODMAN_SOCKET]
    return {"docker": docker, "podman": podman}.get(kind, docker + podman)


def default_address(kind: str = "") -> str:
    """Address of the first engine socket that exists; the usual one when there is none, so that errors name it."""
    usual = PODMAN_SOCKET if kind == "podman" else DEFAULT_SOCKET
    found = next((path for path in candidate_sockets(kind) if _exists(path)), usual)
    return f"unix://{found}"


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a directory we may not look into: as good as absent
        return False


def socket_path(address: str) -> Path | None:
    """`unix:///run/x.sock` (or the bare path) -> its path; None for an address of another kind."""
    if address.startswith("/"):
        return Path(address)
    parts = urlsplit(address)
    if parts.scheme in {"unix", "http+unix"}:
        return Path("/" + (parts.netloc + parts.path).lstrip("/"))
    return None


def is_remote(address: str) -> bool:
    """Whether the engine is on another machine, which then cannot see our directories."""
    if socket_path(address) is not None:
        return False
    host = urlsplit(address).hostname or ""
    if host == "localhost":
        return False
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return True


def probe(address: str) -> None:
    """EngineError with the cause told apart when nothing answers at the address."""
    path = socket_path(address)
    if path is None and urlsplit(address).scheme not in {"tcp", "http", "https", "ssh"}:
        raise EngineError(
            f"not an engine address: {address!r}", hint="use unix:///path/to/docker.sock, tcp://host:port or ssh://host"
        )
    try:
        if path is not None:
            with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as client:
                client.settimeout(_PROBE_TIMEOUT_S)
                client.connect(str(path))
        elif urlsplit(address).scheme != "ssh":
            parts = urlsplit(address)
            socket.create_connection((parts.hostname or "", parts.port or 2375), _PROBE_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        raise unreachable(address, error, installed=is_installed(_PROGRAMS), user=_user()) from error


def is_installed(programs: tuple[str, ...]) -> bool:
    """Whether one of these programs is on PATH (installed, perhaps not running)."""
    return any(shutil.which(name) for name in programs)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a uid without a name
        return f"#{os.geteuid()}"


def unreachable(address: str, error: Exception, *, installed: bool, user: str) -> EngineError:
    """Turn a failed connect into an error that says what is missing: program, daemon, right or network."""
    code = error.errno if isinstance(error, OSError) else None
    seen = f"{address}: {error}"
    if code in {errno.EACCES, errno.EPERM}:
        return EngineError(
            f"user {user} may not use the container engine at {address}", context=seen,
            hint=f"add the user to the docker group (usermod -aG docker {user}) and log in again, "
            "or use a rootless engine (--docker-host unix://$XDG_RUNTIME_DIR/docker.sock)",
        )
    if socket_path(address) is None:
        return EngineError(
            f"the container engine at {address} cannot be reached", context=seen,
            hint="check the address (--docker-host, DOCKER_HOST, `docker context ls`), the network and the firewall",
        )
    if code == errno.ENOENT and not installed:
        return EngineError("no container engine is installed here", context=seen, hint=_INSTALL_HINT)
    unit = "podman.socket" if "podman" in address else "docker"
    return EngineError(
        f"the container engine does not run: nothing listens at {address}", context=seen,
        hint=f"start it (systemctl start {unit}; one of an ordinary user: systemctl --user start {unit}) and look at "
        f"`journalctl -u {unit}` if it does not stay up",
    )


def check_api(version: str, api: str, *, address: str) -> None:
    """EngineError when the engine's API (such as '1.41') is older than what runs need."""
    try:
        found = tuple(int(part) for part in api.split("."))
    except ValueError:
        found = ()
    if found < MINIMUM_API:
        wanted = ".".join(map(str, MINIMUM_API))
        raise EngineError(
            f"the container engine at {address} is too old: version {version or '?'} with API {api or '?'}",
            context=f"API {wanted} (Docker 19.03) or later is needed", hint="upgrade it, or name another one with "
            "--docker-host",
        )
