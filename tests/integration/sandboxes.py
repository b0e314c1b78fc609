"""Engines of every kind for tests: the sandbox as this user and as an ordinary one, Podman with a service of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
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


_AS_USER = """
for file in passwd group subuid subgid; do mount --bind "$1/$file" "/etc/$file" || exit 1; done
user=$2; shift 2; exec setpriv --reuid "$user" --regid "$user" --clear-groups "$@"
"""
"""A user of this process only: names and ranges of ids are seen in its own mount namespace, nothing is changed."""


@contextlib.contextmanager
def podman_service(user: int = 0, *, storage: str = "") -> Iterator[str]:
    """Address of a Podman service with storage of its own; it ends with the context. NoPodmanError when it cannot run.

    user: another one than root has a rootless Podman, with 65536 ids of its own. storage: its size, such as '30m'.
    Limits are those that this machine may set, the runtime is runc where crun does not know this kind of control
    groups (version 1 and 2 at once).
    """
    if shutil.which("podman") is None:
        raise NoPodmanError("podman is not installed")
    if os.geteuid() != 0:
        raise NoPodmanError("the tests run Podman as root only")
    with tempfile.TemporaryDirectory(prefix="kb-podman-", ignore_cleanup_errors=True) as short:  # Podman counts letters
        directory = Path(short)
        if storage:
            (directory / "root").mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={storage}", "tmpfs", directory / "root"], check=True)
        try:
            with _service(directory, user) as address:
                yield address
        finally:
            _end_pause(directory)
            for mounted in ("root/overlay", "root"):
                subprocess.run(["umount", directory / mounted], check=False, capture_output=True, timeout=60)


def _end_pause(directory: Path) -> None:
    """Rootless Podman leaves a process that keeps its user namespace."""
    with contextlib.suppress(OSError, ValueError):
        os.kill(int((directory / "libpod" / "tmp" / "pause.pid").read_text()), signal.SIGKILL)


def _as_user(directory: Path, user: int) -> list[str]:
    if user == 0:
        return []
    entry = f"kwdb-build-test:x:{user}:{user}::{directory}:/bin/sh"
    (directory / "passwd").write_text(f"{Path('/etc/passwd').read_text()}\n{entry}\n")
    (directory / "group").write_text(f"{Path('/etc/group').read_text()}\nkwdb-build-test:x:{user}:\n")
    for name in ("subuid", "subgid"):
        (directory / name).write_text("kwdb-build-test:1000000:65536\n")
    shutil.chown(directory, user, user)
    return ["unshare", "--mount", "sh", "-c", _AS_USER, "sh", str(directory), str(user)]


@contextlib.contextmanager
def _service(directory: Path, user: int) -> Iterator[str]:
    (directory / "containers.conf").write_text(_CONFIGURATION if user == 0 else "")
    runtime = shutil.which("runc")
    options = [
        *_as_user(directory, user), "podman", "--root", str(directory / "root"), "--runroot", str(directory / "run"), "--cgroup-manager=cgroupfs",
        *(["--runtime", runtime] if runtime else []),
    ]
    address = f"unix://{directory}/podman.sock"
    with (directory / "service.log").open("wb") as log, subprocess.Popen(
        [*options, "system", "service", "--time=0", address], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        env={**os.environ, "CONTAINERS_CONF": str(directory / "containers.conf"),
             **({"HOME": str(directory), "XDG_RUNTIME_DIR": str(directory)} if user else {})},
        start_new_session=True, cwd=directory,  # its monitor leaves a file "oom" there when the kernel kills
    ) as service:
        try:
            _wait_for(directory / "podman.sock", service)
            _try_out(address, directory)
            yield address
        finally:
            service.terminate()
            service.wait(30)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(service.pid, signal.SIGKILL)  # rootless Podman's child in its user namespace may outlive it


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
