"""What every engine offers: images, and one-off runs without network, privileges or root.

The Docker engine is engine/docker.py; others (a sandbox without a daemon) implement the same Protocol.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

HOSTNAME = "kwdb-build"
"""The same in every run: a host name in a build's output would make two builds differ."""


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """Which engine is used: kind ('docker'), version, address, free bytes of its storage (-1: unknown)."""

    kind: str
    version: str
    address: str
    free_bytes: int = -1


@dataclass(frozen=True, kw_only=True)
class Mount:
    """A bind mount: an absolute host directory at an absolute path in the container."""

    source: Path
    target: str
    read_only: bool = True


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One run: argv in an image. environment is the whole environment, built from nothing.

    uid and gid are never 0 for builds. memory_bytes and cpus of 0 mean no limit. name labels the container so that a
    left-over one of a killed run is found and removed. hostname is what `uname -n` says inside. With keep_failed a run
    that ends with another code than 0 stays as it is (stopped), and RunResult.kept says how to go on with it. An
    interactive run has the caller's terminal as its own: nothing goes to on_line or the log. listed names directories
    of the image that are read by listing them (Go's own tree): an engine whose image file system is not reliable there
    provides them in another way.
    """

    image: str
    argv: tuple[str, ...]
    mounts: tuple[Mount, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    workdir: str = "/"
    uid: int
    gid: int
    memory_bytes: int = 0
    cpus: float = 0
    name: str = "run"
    timeout_s: float | None = None
    hostname: str = HOSTNAME
    keep_failed: bool = False
    interactive: bool = False
    listed: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """How a run ended: its exit code, whether the kernel killed it for memory, whether timeout_s ended it.

    kept: what a person types to go on with a run that was kept (keep_failed), removal: what removes it; '' when
    nothing was.
    """

    returncode: int
    oom_killed: bool = False
    timed_out: bool = False
    kept: str = ""
    removal: str = ""


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """An image of an engine: its tag, and its identity there (another engine may give the same image another one)."""

    tag: str
    identity: str


class Engine(Protocol):
    """A place where builds run."""

    def info(self) -> EngineInfo:
        """Ask the engine itself; EngineError (with what is needed) when it cannot be used."""
        ...

    def image_id(self, tag: str) -> str | None:
        """Identity of a local image, None when there is none."""
        ...

    def remove_image(self, tag: str) -> None:
        """Remove a local image; none of that name is fine."""
        ...

    def import_base(self, archive: Path, tag: str, *, environment: Mapping[str, str]) -> str:
        """Make an image from a root file system archive; return its identity."""
        ...

    def build_image(
        self, context: Path, *, dockerfile: str, tag: str, arguments: Mapping[str, str], mounts: tuple[Mount, ...] = (),
        on_line: Callable[[str], None], log: Path, network: str = "none",
    ) -> str:
        """Build an image from a context directory; the tag appears only when the whole build succeeded.

        network is 'none' or 'default'.
        """
        ...

    def export_image(self, tag: str, path: Path) -> StoredImage:
        """Write a local image to a file as `docker save` does; the file appears only when it is whole.

        Errors: EngineError (no such image, the engine broke), OSError when the file cannot be written.
        """
        ...

    def load_image(self, path: Path) -> StoredImage:
        """Take an image that export_image wrote, on whatever kind of engine, with its tag.

        Every layer's digest is checked before the engine sees it. Nothing is done when the engine has this very image
        already. EngineError when the file is cut off or changed, or the engine does not take it.
        """
        ...

    def remove_leftovers(self, name: str) -> int:
        """End what killed runs of this name left, if they can leave anything; how many. A living caller's run stays."""
        ...

    def run(self, spec: RunSpec, *, on_line: Callable[[str], None], log: Path) -> RunResult:
        """Run to the end; each output line goes to on_line and the log; cancelling leaves no container behind."""
        ...
