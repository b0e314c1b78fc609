"""The engine is not there, is another thing, is too old, or dies in the middle."""

from __future__ import annotations

import gc
import http.server
import json
import os
import socketserver
import tarfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kwdb_build.engine.base import Mount, RunSpec
from kwdb_build.engine.docker import DockerEngine
from kwdb_build.engine.reach import Reached
from kwdb_build.errors import EngineError, ExitCode
from tests.conftest import missing
from tests.integration.enginebox import CutProxy, containers, shell, tiny_image, unique
from tests.integration.sandboxes import NoPodmanError, podman_service

if TYPE_CHECKING:
    from collections.abc import Iterator

# docker-py drops its socket without closing it when a connect fails; the collector's complaint belongs to these tests
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def _collect() -> Iterator[None]:
    yield
    gc.collect()


class UnixHttpServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    answer: Any = None


class Answering(http.server.BaseHTTPRequestHandler):
    """Answers every request with the server's one document."""

    server: UnixHttpServer

    def do_GET(self) -> None:
        body = json.dumps(self.server.answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def impostor(tmp_path: Path) -> Iterator[UnixHttpServer]:
    with UnixHttpServer(str(tmp_path / "other.sock"), Answering) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_too_old(impostor: UnixHttpServer) -> None:
    impostor.answer = {"Version": "18.09.1", "ApiVersion": "1.39", "Components": []}
    with pytest.raises(EngineError, match=r"too old: version 18\.09\.1") as caught:
        DockerEngine.connect(f"unix://{impostor.server_address}")
    assert caught.value.exit_code == ExitCode.ENGINE


def test_rootless_docker(impostor: UnixHttpServer) -> None:
    """As /version and /info of such a Docker answer, in what matters."""
    impostor.answer = {
        "Version": "27.0.0", "ApiVersion": "1.46", "Components": [], "SecurityOptions": ["name=seccomp", "name=rootless"]
    }
    with pytest.raises(EngineError, match="is rootless") as caught:
        DockerEngine.connect(f"unix://{impostor.server_address}")
    assert "--engine sandbox" in caught.value.hint


def test_some_other_service(impostor: UnixHttpServer) -> None:
    impostor.answer = {"hello": "world"}
    with pytest.raises(EngineError, match="does not answer like a container engine"):
        DockerEngine.connect(f"unix://{impostor.server_address}")


def test_no_socket(tmp_path: Path) -> None:
    with pytest.raises(EngineError) as caught:
        DockerEngine.connect(f"unix://{tmp_path}/none.sock")
    assert "none.sock" in caught.value.context


def test_docker_host_of_the_environment_is_used_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/from-environment.sock")
    with pytest.raises(EngineError) as caught:
        DockerEngine.connect()
    assert "from-environment.sock" in caught.value.context


def test_context_of_the_docker_client_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setenv("DOCKER_CONTEXT", "no-such-context")
    with pytest.raises(EngineError, match="context"):
        DockerEngine.connect()


def test_remote_engine_cannot_mount_our_directories(tmp_path: Path) -> None:
    engine = DockerEngine(Reached(client=None, address="tcp://builder.invalid:2376"))
    spec = RunSpec(image="x", argv=("true",), uid=1, gid=1, mounts=(Mount(source=tmp_path, target="/x"),))
    with pytest.raises(EngineError, match="another machine"):
        engine.run(spec, on_line=print, log=tmp_path / "log")


@pytest.fixture
def proxy(engine: DockerEngine, tmp_path: Path) -> Iterator[CutProxy]:
    found = CutProxy(tmp_path / "docker.sock", engine.address)
    yield found
    found.cut()


@pytest.mark.engine
def test_dies_in_a_run(engine: DockerEngine, image: str, proxy: CutProxy, tmp_path: Path) -> None:
    spec = shell(image, "echo up; sleep 600", name=unique("lost"))
    log = tmp_path / "log"
    with DockerEngine.connect(proxy.address) as mortal:
        with pytest.raises(EngineError, match=r"connection to the container engine .* broke") as caught:
            mortal.run(spec, on_line=lambda _: proxy.cut(), log=log)
        assert caught.value.log == log
        assert log.read_text() == "up\n"
        assert "run the same again" in caught.value.hint
    # what it could not remove then is removed when the engine is back
    assert len(containers(engine, spec.name)) == 1
    assert engine.remove_leftovers(spec.name) == 1
    assert containers(engine, spec.name) == []


@pytest.mark.engine
def test_dies_in_an_image_build(engine: DockerEngine, image: str, proxy: CutProxy, tmp_path: Path) -> None:
    context = tmp_path / "context"
    context.mkdir()
    (context / "Dockerfile").write_text(f"FROM {image}\nRUN echo up; sleep 5\n")

    def cut(line: str) -> None:
        if line == "up":
            proxy.cut()

    tag = "kwdb-build-test/never:1"
    with DockerEngine.connect(proxy.address) as mortal, pytest.raises(EngineError):
        mortal.build_image(
            context, dockerfile="Dockerfile", tag=tag, arguments={}, on_line=cut, log=tmp_path / "log"
        )
    assert engine.image_id(tag) is None


def test_its_storage_is_full(tmp_path: Path) -> None:
    """In the middle of an import and of an image build: said in the engine's words, and nothing has a name."""
    recipe = tmp_path / "recipe"
    recipe.mkdir()
    (recipe / "Dockerfile").write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nCOPY large /large\n")
    for large in (recipe / "large", tmp_path / "large"):
        large.write_bytes(os.urandom(40 << 20))
    with tarfile.open(tmp_path / "large.tar", "w") as tar:
        tar.add(tmp_path / "large", "large")
    log, tag = tmp_path / "log", "kwdb-build-test/large:1"
    try:
        with (
            podman_service(storage="36m") as address, DockerEngine.connect(address) as engine,
            tiny_image(engine, tmp_path) as image,
        ):
            with pytest.raises(EngineError) as imported:
                engine.import_base(tmp_path / "large.tar", tag, environment={})
            assert engine.image_id(tag) is None
            with pytest.raises(EngineError) as built:
                engine.build_image(
                    recipe, dockerfile="Dockerfile", tag=tag, arguments={"BASE_IMAGE": image}, on_line=print, log=log
                )
            assert engine.image_id(tag) is None
    except NoPodmanError as error:
        missing(f"podman: {error}")
    for caught in (imported, built):
        assert "no space left" in caught.value.context, caught.value
        assert "make room" in caught.value.hint


@pytest.mark.engine
def test_dies_before_a_look_up(proxy: CutProxy) -> None:
    with DockerEngine.connect(proxy.address) as mortal:
        proxy.cut()
        with pytest.raises(EngineError, match="broke"):
            mortal.image_id("anything:1")
