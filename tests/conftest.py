"""Real parts that all tests share: an engine, the miniature's repositories, its builds.

Workers of pytest-xdist share one home, so each release is built once for all of them. TEST_BUILD_CACHE names a
directory that keeps builds between runs; without it each run makes its own.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from filelock import FileLock
from hypothesis import settings

from kwdb_build.config import Settings
from kwdb_build.console import Console
from kwdb_build.errors import EngineError
from kwdb_build.model import Artifact, Toolchain
from kwdb_build.upgrade.workshop import Workshop
from tests.minikwdb.repositories import MiniRepositories, locate_repositories, make_repositories

# CI runs the same examples every time (a new find belongs to a developer's run); a loaded machine is no failure.
settings.register_profile("kwdb-build", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("kwdb-build")

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling

# A shell's background job ignores Ctrl-C, one under nohup a hang-up, and so would every process that these tests
# start and interrupt.
for _signum, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_signum) == signal.SIG_IGN:
        signal.signal(_signum, _handler)

TOOLCHAIN = Path(__file__).parent / "minikwdb" / "toolchain"
# Their tests share builds that each worker would have to make again.
ONE_WORKER = frozenset({
    "tests/integration/test_build_minikwdb.py", "tests/integration/test_image_minikwdb.py",
    "tests/integration/test_engine_every.py",
    "tests/integration/test_server_systemd.py",
})


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    """Give out tests one by one, but some files as a whole, and those first."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file if file in ONE_WORKER else nodeid

    return Scheduling(config, log) if config.getvalue("dist") == "load" else None


def missing(what: str) -> NoReturn:
    """A skip with a reason; CI has everything, so there it is a failure."""
    if os.environ.get("CI"):
        pytest.fail(f"CI needs {what}")
    pytest.skip(f"needs {what}")


@pytest.fixture(scope="session")
def engine_address() -> str:
    """Address of a usable container engine; without one a skip, and in CI a failure."""
    from kwdb_build.engine.docker import DockerEngine

    try:
        with DockerEngine.connect() as engine:
            return engine.info().address
    except EngineError as error:
        missing(f"a container engine: {error.message} ({error.hint})")


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that all workers of this run have in common."""
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    place.mkdir(exist_ok=True)
    return place


@pytest.fixture(scope="session")
def repositories(shared: Path) -> MiniRepositories:
    """The miniature's four repositories. Nobody writes to them."""
    root = shared / "repositories"
    with FileLock(shared / "repositories.lock"):
        return locate_repositories(root) if root.exists() else make_repositories(root)


@pytest.fixture(scope="session")
def mini_home(shared: Path) -> Path:
    """Home of the builds that all tests share."""
    home = Path(os.environ.get("TEST_BUILD_CACHE") or shared / "home")
    (home / "logs").mkdir(parents=True, exist_ok=True)
    return home


@pytest.fixture(scope="session")
def mini_toolchain(engine_address: str, mini_home: Path) -> Toolchain:
    """The miniature's toolchain; its image is there."""
    from kwdb_build.engine.docker import DockerEngine
    from kwdb_build.toolchain.image import prepare_image
    from kwdb_build.toolchain.load import load, toolchains_root

    found = load(f"{TOOLCHAIN}/", search=toolchains_root(), home=mini_home)
    with DockerEngine.connect(engine_address) as engine:
        if engine.image_id(found.image_tag) is None and shutil.which("mmdebstrap") is None:
            missing("mmdebstrap to make the build image")
        return prepare_image(
            found, engine=engine, settings=Settings(home=mini_home), progress=Console(),
            log=mini_home / "logs" / "image.log",
        ).toolchain


@pytest.fixture(scope="session")
def mini_build(
    engine_address: str, mini_toolchain: Toolchain, repositories: MiniRepositories, mini_home: Path
) -> Callable[[str], Artifact]:
    """Build a reference of the miniature by the tool itself, once for all workers."""
    prefix, replacement = repositories.redirect
    wanted = Settings(home=mini_home, toolchain=str(TOOLCHAIN), docker_host=engine_address)

    @cache
    def build(ref: str) -> Artifact:
        logs = mini_home / "logs" / ref
        logs.mkdir(exist_ok=True)
        with FileLock(logs / "lock"):
            workshop = Workshop(wanted, Console(), logs)
            tree = workshop.fetch(ref, url=str(repositories.main), redirects=(f"{prefix}={replacement}",))
            return workshop.build(tree)

    return build
