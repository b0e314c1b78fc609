"""A client of the daemon that is meant: found by the docker client's own rules, and asked what it is."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kwdb_build.engine.address import MINIMUM_API, candidate_sockets, check_api, default_address, probe
from kwdb_build.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Mapping


_API_TIMEOUT_S = 300


@dataclass(frozen=True, kw_only=True)
class Reached:
    """A daemon: its docker.APIClient, address, kind ('docker', 'podman').

    rootless: it is an ordinary user's own Podman. A user's id inside its containers is another one outside, so that
    the build could not write to its own directories; unless the ids are kept.
    """

    client: Any
    address: str
    kind: str = "docker"
    rootless: bool = False


def reach(docker_host: str, kind: str) -> Reached:
    """Connect to a daemon; what the arguments and errors are is said at DockerEngine.connect."""
    address, tls = _which(docker_host, kind)
    probe(address)
    import docker
    from docker.errors import DockerException

    def client(version: str) -> Any:
        return docker.APIClient(base_url=address, tls=tls or False, version=version, timeout=_API_TIMEOUT_S)

    try:
        # "auto" would leak its connection when the answer is strange or too old: a client of its own asks
        with contextlib.closing(client(".".join(map(str, MINIMUM_API)))) as asking:
            found = asking.version(api_version=False)
            api = str(found["ApiVersion"])
            check_api(str(found.get("Version", "")), api, address=address)
            info = asking.info()
    except (DockerException, OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(
            f"what listens at {address} does not answer like a container engine", context=str(error),
            hint="check the address and, for tcp, the TLS settings (DOCKER_TLS_VERIFY, DOCKER_CERT_PATH)",
        ) from error
    answering = _kind_of(found)
    if kind and kind != answering:
        raise EngineError(
            f"the engine at {address} is {answering}, not {kind}",
            hint=f"--engine {answering}, or name the other one's address with --docker-host",
        )
    if answering == "docker" and "name=rootless" in (info.get("SecurityOptions") or ()):
        raise EngineError(
            f"the Docker engine at {address} is rootless: what runs in it as an ordinary user cannot write to this "
            "user's directories",
            hint="use Podman (systemctl --user start podman.socket), which can keep the user's id, or --engine sandbox",
        )
    return Reached(
        client=client(api), address=address, kind=answering, rootless=bool(info.get("Rootless")),
    )


def _kind_of(version: Mapping[str, Any]) -> str:
    """Who answered a question for the version."""
    return "podman" if "podman" in str(version.get("Components", "")).lower() else "docker"


def names_engine(docker_host: str) -> bool:
    """Whether a person or the docker client's settings name one engine, so that no other may be taken instead."""
    return bool(docker_host or os.environ.get("DOCKER_HOST")) or _which("", "")[0] not in {
        f"unix://{path}" for path in candidate_sockets()
    }


def _which(docker_host: str, kind: str) -> tuple[str, Any]:
    """Address and TLS settings; TLS as DOCKER_TLS_VERIFY and DOCKER_CERT_PATH or the context say."""
    from docker.context import ContextAPI
    from docker.errors import DockerException
    from docker.utils import kwargs_from_env

    if kind == "podman" and not docker_host:
        return os.environ.get("CONTAINER_HOST") or default_address(kind), None
    try:
        settings = kwargs_from_env(environment={**os.environ, **({"DOCKER_HOST": docker_host} if docker_host else {})})
        if "base_url" in settings:
            return str(settings["base_url"]), settings.get("tls")
        context = ContextAPI.get_context(os.environ.get("DOCKER_CONTEXT"))
    except (DockerException, OSError, ValueError) as error:
        raise EngineError(
            "the docker client's settings cannot be read", context=str(error),
            hint="check DOCKER_HOST, DOCKER_CONTEXT, DOCKER_CERT_PATH and `docker context ls`",
        ) from error
    if context is None:
        raise EngineError(f"no docker context {os.environ.get('DOCKER_CONTEXT', '')!r}", hint="docker context ls")
    if context.Name == "default" or not context.Host:
        return default_address(kind), None
    return str(context.Host), context.TLSConfig
