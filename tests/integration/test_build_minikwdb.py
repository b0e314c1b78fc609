"""Builds of the miniature for real: git repositories, the container engine, the compilers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kwdb_build.build import runner
from kwdb_build.build.elf import read_elf
from kwdb_build.build.host import glibc_floor, host_facts, host_supports
from kwdb_build.build.store import ArtifactStore
from kwdb_build.config import Settings
from kwdb_build.console import Progress
from kwdb_build.engine.choose import choose
from kwdb_build.errors import ArtifactError, BuildError
from kwdb_build.model import Artifact, BuildOptions, SourceTree, Toolchain, Verdict
from kwdb_build.source.fetch import SourceRequest, fetch
from kwdb_build.source.reference import Redirect
from kwdb_build.toolchain.check import check
from kwdb_build.toolchain.probe import probe_image
from kwdb_build.toolchain.requirements import Phase, read_requirements
from tests.conftest import missing
from tests.integration.sandboxes import NoPodmanError, podman_service
from tests.minikwdb.repositories import MiniRepositories

if TYPE_CHECKING:
    from collections.abc import Callable

    from kwdb_build.engine.docker import DockerEngine

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
LABEL = "kwdb-build"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def toolchain(mini_toolchain: Toolchain) -> Toolchain:
    return mini_toolchain


def fetched(repositories: MiniRepositories, ref: str, home: Path) -> SourceTree:
    prefix, replacement = repositories.redirect
    return fetch(
        SourceRequest(
            url=str(repositories.main), ref=ref, redirects=(Redirect(prefix=prefix, replacement=replacement),)
        ),
        home=home, progress=Progress(), log=home / "fetch.log",
    )


@pytest.fixture
def build(engine: DockerEngine, toolchain: Toolchain) -> Callable[[SourceTree, Path], Artifact]:
    def run(tree: SourceTree, place: Path) -> Artifact:
        place.mkdir(exist_ok=True)
        return runner.build(
            tree, toolchain=toolchain, image=toolchain.image_tag, options=BuildOptions(jobs=2), engine=engine,
            store=ArtifactStore(place / "store"), work_dir=place / "work", log=place / "build.log", progress=Progress(),
            settings=Settings(home=place),
        )

    return run


@pytest.fixture(scope="module")
def first(
    repositories: MiniRepositories, engine: DockerEngine, toolchain: Toolchain, home: Path
) -> tuple[SourceTree, Artifact]:
    """V1.0.0, built once for all tests here."""
    tree = fetched(repositories, "V1.0.0", home)
    artifact = runner.build(
        tree, toolchain=toolchain, image=toolchain.image_tag, options=BuildOptions(jobs=2), engine=engine,
        store=ArtifactStore(home / "store"), work_dir=home / "work", log=home / "build.log", progress=Progress(),
        settings=Settings(home=home),
    )
    return tree, artifact


def left_in(work: Path) -> list[str]:
    return [path.name for path in work.iterdir() if path.name not in {".gate", ".locks"}]


def containers_of(engine: DockerEngine, pid: int) -> list[str]:
    """Containers that one process of ours made: other builds of the same version may run on this machine."""
    listed = engine._api.containers(all=True, filters={"label": LABEL})
    return [found["Id"] for found in listed if f":{pid}:" in found["Labels"].get(f"{LABEL}.owner", "")]


def test_a_whole_build(first: tuple[SourceTree, Artifact], home: Path) -> None:
    tree, artifact = first
    names = [record.path for record in artifact.files]
    assert {"bin/kwbase", "lib/libcommon.so", "lib/libkwdbts2.so"} <= set(names)
    assert any(name.endswith(".sh") for name in names)
    assert artifact.commit == tree.commit
    assert artifact.kwbase.stat().st_uid == os.geteuid(), "outputs belong to the caller"
    assert left_in(home / "work") == []
    ArtifactStore(home / "store").verify(artifact)


def test_the_fetched_tree_stays_as_it_was(first: tuple[SourceTree, Artifact]) -> None:
    tree, _ = first
    status = subprocess.run(
        ["git", "status", "--porcelain", "--ignored"], cwd=tree.path, check=True, capture_output=True, text=True
    )
    assert status.stdout == ""


def test_the_version_and_the_time_are_the_commits(first: tuple[SourceTree, Artifact]) -> None:
    tree, artifact = first
    if any(row.verdict is not Verdict.OK for row in host_supports(glibc_floor(artifact), host_facts())):
        pytest.skip("this host cannot run what the image built")
    said = subprocess.run(["./kwbase", "version"], cwd=artifact.path / "bin", check=True, capture_output=True, text=True)
    assert tree.version.text in said.stdout
    assert tree.commit in said.stdout
    assert time.strftime("%Y/%m/%d %H:%M:%S", time.gmtime(tree.commit_time)) in said.stdout


def test_libraries_are_found_beside_the_binary(first: tuple[SourceTree, Artifact], home: Path) -> None:
    _, artifact = first
    assert read_elf(artifact.kwbase).runpath[0] == "$ORIGIN/../lib"
    recorded = ArtifactStore(home / "store").details(artifact)
    assert recorded["runpath_dropped"], "KWDB's link names the build directory first"


def test_the_sandbox_gives_the_same_bytes(
    first: tuple[SourceTree, Artifact], engine: DockerEngine, toolchain: Toolchain, home: Path, tmp_path: Path
) -> None:
    """The container engine's image, carried over; the same key, built without a daemon."""
    same_bytes(first, engine, toolchain, home, tmp_path, kind="sandbox", docker_host="")


@pytest.mark.slow
def test_podman_gives_the_same_bytes(
    first: tuple[SourceTree, Artifact], engine: DockerEngine, toolchain: Toolchain, home: Path, tmp_path: Path
) -> None:
    try:
        with podman_service() as address:
            same_bytes(first, engine, toolchain, home, tmp_path, kind="podman", docker_host=address)
    except NoPodmanError as error:
        missing(f"podman: {error}")


def same_bytes(
    first: tuple[SourceTree, Artifact], engine: DockerEngine, toolchain: Toolchain, home: Path, place: Path, *,
    kind: str, docker_host: str,
) -> None:
    tree, there = first
    carried = place / "image.tar"
    engine.export_image(toolchain.image_tag, carried)
    with choose(kind, docker_host=docker_host, place=place / "sandbox") as other:
        assert other.load_image(carried).tag == toolchain.image_tag
        carried.unlink()
        here = runner.build(
            tree, toolchain=toolchain, image=toolchain.image_tag, options=BuildOptions(jobs=2), engine=other,
            store=ArtifactStore(place / "store"), work_dir=place / "work", log=place / "build.log", progress=Progress(),
            settings=Settings(home=place),
        )
        assert other.info().kind == kind
    assert here.key == there.key
    assert here.files == there.files, "every path, mode, size and sha256"
    assert ArtifactStore(place / "store").details(here)["engine"].startswith(f"{kind} ")
    assert ArtifactStore(home / "store").details(there)["engine"].startswith(engine.kind)


def test_a_second_build_is_a_look_up(
    first: tuple[SourceTree, Artifact], build: Callable[[SourceTree, Path], Artifact], home: Path
) -> None:
    tree, artifact = first
    before = (home / "build.log").stat().st_size
    assert build(tree, home) == artifact
    assert (home / "build.log").stat().st_size == before


def test_a_changed_artifact_is_refused(
    repositories: MiniRepositories, first: tuple[SourceTree, Artifact],
    build: Callable[[SourceTree, Path], Artifact], tmp_path: Path,
) -> None:
    tree, artifact = first
    store = ArtifactStore(tmp_path / "store")
    copy = store.add(artifact.key, artifact.path, version=artifact.version, commit=artifact.commit, built_s=1)
    library = copy.path / "lib" / "libkwdbts2.so"
    library.chmod(0o644)
    with library.open("r+b") as stream:
        stream.seek(100)
        stream.write(b"\xff\xfe")
    library.chmod(0o444)
    with pytest.raises(ArtifactError) as caught:
        build(tree, tmp_path)
    assert "lib/libkwdbts2.so: content changed" in caught.value.context


@pytest.mark.slow
def test_another_place_time_and_user_give_the_same_bytes(
    repositories: MiniRepositories, first: tuple[SourceTree, Artifact],
    build: Callable[[SourceTree, Path], Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, artifact = first
    if os.geteuid() == 0:
        monkeypatch.setattr(runner, "build_identity", lambda: (23456, 34567))
    elsewhere = tmp_path / "another place with a longer name"
    elsewhere.mkdir()
    again = build(fetched(repositories, "V1.0.0", elsewhere), elsewhere)
    assert again.path != artifact.path
    assert again.key == artifact.key
    assert again.files == artifact.files


@pytest.mark.slow  # test_upgrade_refusals has them on the command line
@pytest.mark.parametrize(
    ("tag", "said"),
    [("V1.1.1", r"\.(?:cpp|h):\d+:\d+: error: "), ("V1.1.2", r"\.go:\d+:\d+: "), ("V1.1.4", "did not install")],
)
def test_broken_releases_are_explained(
    repositories: MiniRepositories, home: Path, build: Callable[[SourceTree, Path], Artifact], tmp_path: Path,
    tag: str, said: str,
) -> None:
    import re

    with pytest.raises(BuildError) as caught:
        build(fetched(repositories, tag, home), tmp_path)
    error = caught.value
    assert re.search(said, f"{error.message}\n{error.context}"), error.context
    assert error.log == tmp_path / "build.log"
    assert error.log.stat().st_size > 0
    assert left_in(tmp_path / "work") == []
    assert ArtifactStore(tmp_path / "store").list() == ()


def test_the_image_has_what_the_tree_asks_for(
    first: tuple[SourceTree, Artifact], engine: DockerEngine, toolchain: Toolchain, tmp_path: Path
) -> None:
    tree, _ = first
    requirements = read_requirements(tree.path)
    assert len(requirements.only(Phase.COMPILE).rows) >= 5
    identity = engine.image_id(toolchain.image_tag)
    assert identity is not None

    def ask(log: str) -> dict[str, str]:
        return probe_image(
            engine, identity, tmp_path / log, requirements=requirements, environment=toolchain.environment,
            known=tmp_path / "known",
        )

    facts = ask("check.log")
    assert ask("again.log") == facts
    assert not (tmp_path / "again.log").exists(), "an image that answered once was asked again"
    (answer,) = (tmp_path / "known").iterdir()
    answer.write_text("@tool go\n")  # cut off
    assert ask("third.log") == facts
    assert (tmp_path / "third.log").exists()
    rows = check(requirements, facts)
    assert [row for row in rows if row.verdict not in {Verdict.OK, Verdict.SKIP}] == []
    assert {"gcc", "g++", "make"} <= {row.name for row in rows if row.verdict is Verdict.OK}


_CHILD = """
import json, sys
from pathlib import Path
from kwdb_build.build import runner
from kwdb_build.build.store import ArtifactStore
from kwdb_build.config import Settings
from kwdb_build.console import Progress
from kwdb_build.engine.docker import DockerEngine
from kwdb_build.model import BuildOptions
from kwdb_build.source.inspect import read_tree
from kwdb_build.toolchain.load import load, toolchains_root

class Say(Progress):
    def update(self, text, *, done=None, total=None):
        print(text, flush=True)

given = json.loads(sys.argv[1])
place = Path(given["place"])
with DockerEngine.connect() as engine:
    runner.build(
        read_tree(Path(given["tree"]), url="file:///x", ref="V1.0.0"),
        toolchain=load(given["toolchain"], search=toolchains_root(), home=Path(given["home"])), image=given["image"],
        options=BuildOptions(build_type="Debug", jobs=1), engine=engine, store=ArtifactStore(place / "store"),
        work_dir=place / "work", log=place / "build.log", progress=Say(), settings=Settings(home=place),
    )
"""


def test_ctrl_c_leaves_no_container_no_copy_and_nothing_stored(
    first: tuple[SourceTree, Artifact], engine: DockerEngine, toolchain: Toolchain, mini_home: Path, tmp_path: Path
) -> None:
    tree, _ = first
    given = {
        "place": str(tmp_path), "tree": str(tree.path), "toolchain": f"{ROOT}/tests/minikwdb/toolchain/",
        "home": str(mini_home), "image": toolchain.image_tag,
    }
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, json.dumps(given)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    seen: list[str] = []
    for line in child.stdout:
        seen.append(line)
        if "compiling" in line:
            break
    else:
        pytest.fail(f"the build never compiled: {seen} {child.communicate()[1]}")
    assert len(containers_of(engine, child.pid)) == 1
    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=120)
    assert child.returncode != 0
    assert "KeyboardInterrupt" in stderr
    assert containers_of(engine, child.pid) == []
    assert left_in(tmp_path / "work") == []
    assert ArtifactStore(tmp_path / "store").list() == ()
