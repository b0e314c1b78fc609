"""Running servers of the miniature, the command line against them, and the engine itself."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kwdb_build.engine.docker import DockerEngine
from kwdb_build.model import Artifact
from tests.integration.enginebox import tiny_image
from tests.integration.redisbox import running_redis
from tests.integration.tool import Tool, share_builds
from tests.minikwdb.instance import Instance
from tests.minikwdb.repositories import MiniRepositories
from tests.unit.source.sourcebox import Machine, Upstream


@pytest.fixture(scope="module")
def engine(engine_address: str) -> Iterator[DockerEngine]:
    """A connection to the engine."""
    with DockerEngine.connect(engine_address) as found:
        yield found


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[tuple[int, str]]:
    """A Redis on loopback: port and password."""
    with running_redis(tmp_path) as found:
        yield found


@pytest.fixture(scope="module")
def image(engine: DockerEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Tag of a tiny image with a shell."""
    with tiny_image(engine, tmp_path_factory.mktemp("tiny")) as tag:
        yield tag


@pytest.fixture
def upstream(tmp_path: Path) -> Upstream:
    """Repositories that a test may push to."""
    return Upstream.create(tmp_path / "upstream")


@pytest.fixture
def machine(tmp_path: Path, upstream: Upstream) -> Machine:
    """A user with a home, behind a redirect to them."""
    return Machine(home=tmp_path / "home", upstream=upstream)


@pytest.fixture
def install_server(mini_build: Callable[[str], Artifact], tmp_path: Path) -> Iterator[Callable[..., Instance]]:
    """Install a release below tmp_path, not started; what then runs on its store is killed at the end of the test."""
    with contextlib.ExitStack() as ends:

        def install(ref: str = "V1.0.0", *, name: str = "kwdb", **options: object) -> Instance:
            options.setdefault("root", tmp_path / name)
            instance = Instance(**options)  # type: ignore[arg-type]
            instance.root.mkdir(exist_ok=True)
            instance.install(mini_build(ref).path)
            ends.callback(instance.kill)
            return instance

        yield install


@pytest.fixture
def make_server(install_server: Callable[..., Instance]) -> Iterator[Callable[..., Instance]]:
    """Install a release below tmp_path, start it and fill it; ended in order at the end of the test."""
    with contextlib.ExitStack() as ends:

        def make(ref: str = "V1.0.0", *, rows: bool = True, **options: object) -> Instance:
            instance = install_server(ref, **options)
            ends.callback(instance.stop)
            instance.start()
            if rows:
                instance.write_rows()
            return instance

        yield make


@pytest.fixture
def tool(
    tmp_path: Path, repositories: MiniRepositories, engine_address: str, mini_build: Callable[[str], Artifact]
) -> Tool:
    """A command line with a home of its own that already has the good and the two bad releases built."""
    home = tmp_path / "home"
    share_builds(home, [mini_build(ref) for ref in ("V1.0.0", "V1.1.0", "V1.2.0", "V1.3.0", "patched")])
    return Tool(home=home, repositories=repositories, docker_host=engine_address)


@pytest.fixture(scope="session")
def no_network() -> tuple[str, ...]:
    """A prefix that takes the network away, loopback included."""
    prefix = ("unshare", "--net")
    if subprocess.run([*prefix, "true"], check=False, capture_output=True).returncode == 0:
        return prefix
    prefix = ("unshare", "--user", "--map-current-user", "--net")
    if subprocess.run([*prefix, "true"], check=False, capture_output=True).returncode == 0:
        return prefix
    if os.environ.get("CI"):
        pytest.fail("CI needs network namespaces")
    pytest.skip("needs network namespaces (root, or unprivileged user namespaces)")
