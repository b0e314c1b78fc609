"""Engines of every kind for tests: the sandbox as this user and as an ordinary one, Podman with a service of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kwdb_build.engine.docker import DockerEngine
from kwdb_build.errors import EngineError
from tests.integration.enginebox import shell, tiny_image

_CONFIGURATION = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
"""


class NoPodmanError(Exception):
    """Podman is not there or cannot run containers here; the text says why."""


@contextlib.contextmanager
def podman_service() -> Iterator[str]:
    """Address of a Podman service with storage of its own; it ends with the context. NoPodmanError when it cannot run.

    Limits are those that this machine may set, the runtime is runc where crun does not know this kind of control
    groups (version 1 and 2 at once).
    """
    if shutil.which("podman") is None:
        raise NoPodmanError("podman is not installed")
    if os.geteuid() != 0:
        raise NoPodmanError("the tests run Podman as root only")
    with tempfile.TemporaryDirectory(prefix="kb-podman-", ignore_cleanup_errors=True) as short:  # Podman counts letters
        directory = Path(short)
        try:
            with _service(directory) as address:
                yield address
        finally:
            subprocess.run(["umount", directory / "root" / "overlay"], check=False, capture_output=True, timeout=60)


@contextlib.contextmanager
def _service(directory: Path) -> Iterator[str]:
    (directory / "containers.conf").write_text(_CONFIGURATION)
    runtime = shutil.which("runc")
    options = [
        "podman", "--root", str(directory / "root"), "--runroot", str(directory / "run"), "--cgroup-manager=cgroupfs",
        *(["--runtime", runtime] if runtime else []),
    ]
    address = f"unix://{directory}/podman.sock"
    with (directory / "service.log").open("wb") as log, subprocess.Popen(
        [*options, "system", "service", "--time=0", address], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        env={**os.environ, "CONTAINERS_CONF": str(directory / "containers.conf")},
    ) as service:
        try:
            _wait_for(directory / "podman.sock", service)
            _try_out(address, directory)
            yield address
        finally:
            service.terminate()
            service.wait(30)


def _wait_for(socket: Path, service: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        if socket.exists():
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            service.wait(0.1)
            break
    said = (socket.parent / "service.log").read_text(errors="replace")
    raise NoPodmanError(f"podman's service did not come up: {said[-300:]}")


def _try_out(address: str, directory: Path) -> None:
    try:
        with DockerEngine.connect(address, kind="podman") as engine, tiny_image(engine, directory) as image:
            result = engine.run(shell(image, "exit 0"), on_line=print, log=directory / "try.log")
    except EngineError as error:
        raise NoPodmanError(f"podman cannot run a container here: {error.message} {error.context}") from error
    if result.returncode != 0:
        raise NoPodmanError(f"podman cannot run a container here: exit code {result.returncode}")
