"""Real parts for tests of the engine: a tiny image of this machine's own programs, and a proxy that can be cut."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import tarfile
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from kwdb_build.engine.address import socket_path
from kwdb_build.engine.base import RunSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kwdb_build.engine.docker import DockerEngine
    from kwdb_build.engine.sandbox import SandboxEngine

PROGRAMS = ("sh", "cat", "env", "id", "ls", "sleep", "tail", "touch", "mkdir", "head", "nproc")


def tiny_root(archive: Path) -> Path:
    """A root file system of a shell and a few programs, with the libraries they load."""
    with tarfile.open(archive, "w") as tar:
        added: set[str] = set()

        def add(source: Path, name: str) -> None:
            for parent in reversed(Path(name).parents[:-1]):  # the engine makes parents that are not in the tar private
                if str(parent) not in added:
                    added.add(str(parent))
                    entry = tarfile.TarInfo(str(parent))
                    entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                    tar.addfile(entry)
            if name not in added:
                added.add(name)
                tar.add(source.resolve(), name, recursive=False)

        for name in PROGRAMS:
            program = Path(shutil.which(name) or f"/bin/{name}")
            add(program, f"bin/{name}")
            listing = subprocess.run(["ldd", str(program)], text=True, capture_output=True, check=True).stdout
            for library in re.findall(r"(/\S+) \(0x", listing):
                add(Path(library), library.lstrip("/"))
    return archive


@contextlib.contextmanager
def tiny_image(engine: DockerEngine | SandboxEngine, directory: Path) -> Iterator[str]:
    """Tag of a small image; removed afterwards."""
    tag = f"kwdb-build-test/tiny:{uuid.uuid4().hex[:12]}"
    engine.import_base(tiny_root(directory / "tiny.tar"), tag, environment={})
    yield tag
    engine.remove_image(tag)


def shell(image: str, script: str, **changes: object) -> RunSpec:
    """A run of /bin/sh as an ordinary user."""
    given: dict[str, object] = {"environment": {"PATH": "/bin"}, "uid": 1000, "gid": 1000, "name": unique("run")}
    return RunSpec(image=image, argv=("/bin/sh", "-c", script), **{**given, **changes})  # type: ignore[arg-type]


def unique(word: str) -> str:
    """A container name that no other test uses."""
    return f"test-{word}-{uuid.uuid4().hex[:12]}"


def containers(engine: DockerEngine, name: str) -> list[str]:
    """Containers of a run's name, as the daemon lists them."""
    found = engine._api.containers(all=True, filters={"label": f"kwdb-build={name}"})
    return [str(entry["Id"]) for entry in found]


class CutProxy:
    """A socket in front of the real daemon; cut() is a daemon that dies: every connection ends, none is accepted."""

    def __init__(self, path: Path, upstream: str) -> None:
        self._upstream = str(socket_path(upstream))
        self._open: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(16)
        self.address = f"unix://{path}"
        self._path = path
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._upstream)
            self._open += [client, server]
            for source, sink in ((client, server), (server, client)):
                thread = threading.Thread(target=self._pump, args=(source, sink), daemon=True)
                self._threads.append(thread)
                thread.start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """End everything at once."""
        self._path.unlink(missing_ok=True)
        for end in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        for thread in self._threads:
            thread.join(5)
