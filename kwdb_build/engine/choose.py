"""Which engine is used: the one that is named, else the first that works of Docker, Podman and the sandbox."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kwdb_build.engine.docker import DockerEngine
from kwdb_build.engine.reach import names_engine
from kwdb_build.engine.sandbox import SandboxEngine
from kwdb_build.errors import EngineError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kwdb_build.engine.base import EngineInfo

KINDS = ("docker", "podman", "sandbox")


def choose(
    wanted: str, *, docker_host: str, place: Path, say: Callable[[str], None] = lambda _: None
) -> DockerEngine | SandboxEngine:
    """A usable engine; wanted is one of KINDS, '' leaves the choice open. What was chosen, and why, goes to say.

    An engine that is named (wanted, docker_host, DOCKER_HOST, the docker client's context) is used or is an error: no
    other one is taken in its place. Otherwise Docker's sockets are tried, then Podman's, then the sandbox (its images
    are kept below place). Errors: EngineError that says what each of them lacks; UsageError for an unknown name.
    """
    if wanted not in {"", *KINDS}:
        raise UsageError(f"unknown engine {wanted!r}", hint=f"one of {', '.join(KINDS)}; empty: the first that works")
    if wanted == "sandbox":
        return _said(SandboxEngine.open(place), say)
    if wanted or names_engine(docker_host):
        return _said(DockerEngine.connect(docker_host, kind=wanted), say)
    lacking: list[EngineError] = []
    for kind in KINDS:
        try:
            if kind == "sandbox":
                return _said(SandboxEngine.open(place), say, lacking)
            return _said(DockerEngine.connect(kind=kind), say, lacking)
        except EngineError as error:
            lacking.append(error)
    raise EngineError(
        "no engine to build in can be used here",
        context="\n".join(
            f"{kind}: {error.message}" + "".join(f"\n  {line}" for line in error.context.splitlines())
            for kind, error in zip(KINDS, lacking, strict=True)
        ),
        hint=f"the least that is needed is the sandbox: {lacking[-1].hint}",
    )


def _said(
    engine: DockerEngine | SandboxEngine, say: Callable[[str], None], lacking: list[EngineError] | None = None
) -> DockerEngine | SandboxEngine:
    text = f"engine: {named(engine.info())}"
    if lacking:
        text += " (" + "; ".join(f"{kind}: {error.message}" for kind, error in zip(KINDS, lacking, strict=False)) + ")"
    say(text)
    return engine


def named(info: EngineInfo) -> str:
    """'docker 20.10.24 at unix:///var/run/docker.sock', for people and records."""
    return f"{info.kind} {info.version} at {info.address}"
