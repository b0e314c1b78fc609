"""The miniature's toolchain made into a real image: reproducible, working, and without a trace of this machine."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kwdb_build.config import Settings
from kwdb_build.console import Progress
from kwdb_build.engine.base import RunSpec
from kwdb_build.errors import EngineError
from kwdb_build.files import sha256_of
from kwdb_build.toolchain import apt, base_image
from kwdb_build.toolchain.base_image import PackageGoneError
from kwdb_build.toolchain.image import PreparedImage, ensure_image, prepare_image
from kwdb_build.toolchain.load import load, read_lock, toolchains_root
from kwdb_build.toolchain.lock import render

if TYPE_CHECKING:
    from kwdb_build.engine.docker import DockerEngine
    from kwdb_build.model import Toolchain

pytestmark = pytest.mark.engine
FOLDER = Path(__file__).resolve().parents[1] / "minikwdb" / "toolchain"


class Noting(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def settings(mini_home: Path) -> Settings:
    return Settings(home=mini_home)


@pytest.fixture(scope="module")
def prepared(mini_toolchain: Toolchain, engine: DockerEngine, settings: Settings) -> PreparedImage:
    return prepare_image(
        mini_toolchain, engine=engine, settings=settings, progress=Progress(), log=settings.home / "logs" / "image.log"
    )


def run(engine: DockerEngine, prepared: PreparedImage, script: str, log: Path) -> list[str]:
    lines: list[str] = []
    spec = RunSpec(
        image=prepared.image_id, argv=("/bin/sh", "-euc", script), uid=1000, gid=1000, workdir="/tmp",
        environment=prepared.toolchain.environment, name="test-image",
    )
    assert engine.run(spec, on_line=lines.append, log=log).returncode == 0, lines
    return lines


@pytest.mark.slow  # every build of the miniature does as much
def test_compiles_and_links_go_with_cpp(engine: DockerEngine, prepared: PreparedImage, tmp_path: Path) -> None:
    script = r"""
        mkdir -p src/hello
        printf 'extern "C" int answer() { return 42; }\n' > answer.cc
        g++ -shared -fPIC -o libanswer.so answer.cc
        printf 'package main\n/*\n#cgo LDFLAGS: -L/tmp -lanswer -Wl,-rpath,/tmp\nint answer();\n*/\nimport "C"\nimport "fmt"\n' > src/hello/main.go
        printf 'func main() { fmt.Println("answer", C.answer()) }\n' >> src/hello/main.go
        export GOPATH=/tmp GOCACHE=/tmp/cache HOME=/tmp
        go build -o hello hello
        ./hello
        cmake --version | head -1; git --version; make --version | head -1
        test -f /usr/include/sqlite3.h
    """
    lines = run(engine, prepared, script, tmp_path / "log")
    assert lines[0] == "answer 42"


def test_holds_exactly_the_locked_packages(engine: DockerEngine, prepared: PreparedImage, tmp_path: Path) -> None:
    script = "dpkg-query --show --showformat='${Package}=${Version}\\n'"
    assert sorted(run(engine, prepared, script, tmp_path / "log")) == sorted(prepared.toolchain.locked_packages)


def test_second_look_makes_nothing(engine: DockerEngine, prepared: PreparedImage, tmp_path: Path) -> None:
    empty = Settings(home=tmp_path, apt_sources=tmp_path / "none")
    assert ensure_image(
        prepared.toolchain, engine=engine, settings=empty, progress=Progress(), log=tmp_path / "log"
    ) == prepared.image_id


@pytest.mark.slow
def test_two_bases_are_the_same_bytes_and_hold_nothing_of_this_machine(
    prepared: PreparedImage, settings: Settings, tmp_path: Path, engine: DockerEngine
) -> None:
    log = tmp_path / "log"
    archives = base_image.fetch_packages(prepared.toolchain, settings=settings, progress=Progress(), log=log)
    made = [tmp_path / "one.tar", tmp_path / "two.tar"]
    for target in made:
        base_image.make(archives, target, architecture="amd64", progress=Progress(), log=log)
    assert sha256_of(made[0]) == sha256_of(made[1])

    sources, _ = apt.sources_for(prepared.toolchain.release, chosen="")
    hosts = {uri.split("://", 1)[1].split("/", 1)[0] for source in sources for uri in source.uris}
    secrets = {str(tmp_path), str(settings.home)}
    with tarfile.open(made[0]) as tar:
        names = {member.name.removeprefix("./") for member in tar}
        configured = b"".join(
            (tar.extractfile(member) or io.BytesIO()).read() for member in tar
            if member.isfile() and member.name.startswith(("./etc/", "./var/lib/apt/", "./var/lib/dpkg/status"))
            and not member.name.endswith((".asc", ".gpg"))
        ).decode("utf-8", "replace")
    assert not names & {"etc/resolv.conf", "etc/hostname", "etc/apt/apt.conf.d/99mmdebstrap"}
    assert not [name for name in names if name.startswith(("var/lib/apt/lists/", "var/cache/apt/archives/"))
                and name.endswith(("Packages", ".deb", "Release"))]
    assert not [secret for secret in secrets if secret in configured]
    in_sources = [host for host in hosts if f"deb http://{host}" in configured or f"URIs: http://{host}" in configured]
    assert not in_sources


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_older_distribution_is_bootstrapped_alike_twice(settings: Settings, tmp_path: Path) -> None:
    """Debian 11 from this machine's own mirror, which its apt sources need not name."""
    toolchain = load("kwdb-2.2", search=toolchains_root(), home=settings.home)
    log = tmp_path / "log"
    archives = base_image.fetch_packages(toolchain, settings=settings, progress=Progress(), log=log)
    made = [tmp_path / "one.tar", tmp_path / "two.tar"]
    for target in made:
        base_image.make(archives, target, architecture="amd64", progress=Progress(), log=log)
    assert sha256_of(made[0]) == sha256_of(made[1])


@pytest.mark.slow
def test_gone_package(engine: DockerEngine, prepared: PreparedImage, settings: Settings, tmp_path: Path) -> None:
    """A lock of long ago: refused when strict; else resolved anew, said aloud, and used."""
    old = tmp_path / "toolchain"
    shutil.copytree(FOLDER, old)
    committed = read_lock(old / "lock.toml", name="minikwdb")
    packages = {**committed.packages, "make": f"3.0-gone amd64 {'0' * 64}"}
    (old / "lock.toml").write_text(render(committed.model_copy(update={"packages": packages})))
    mine = settings.model_copy(update={"home": tmp_path / "home"})
    if (settings.home / "images").is_dir():
        shutil.copytree(settings.home / "images", mine.home / "images")  # packages that are there already
    toolchain = load(f"{old}/", search=toolchains_root(), home=mine.home)
    log = tmp_path / "log"

    with pytest.raises(PackageGoneError) as caught:
        prepare_image(
            toolchain, engine=engine, settings=mine.model_copy(update={"strict_lock": True}), progress=Progress(),
            log=log,
        )
    assert "make: locked 3.0-gone, available " in caught.value.context
    assert caught.value.hint == "kwdb-build toolchain lock minikwdb"
    assert engine.image_id(toolchain.image_tag) is None

    progress = Noting()
    found = prepare_image(toolchain, engine=engine, settings=mine, progress=progress, log=log)
    assert found.toolchain.lock_digest != toolchain.lock_digest
    assert found.toolchain == load(f"{old}/", search=toolchains_root(), home=mine.home)
    assert any("resolving the lock anew" in note for note in progress.notes)
    assert any("make: 3.0-gone -> " in note for note in progress.notes)
    assert engine.image_id(found.toolchain.image_tag) == found.image_id


def test_recipe_refuses_a_base_that_is_not_as_locked(
    engine: DockerEngine, prepared: PreparedImage, tmp_path: Path
) -> None:
    """Dockerfile.build itself compares the base with the list; without network it cannot mend it."""
    context = tmp_path / "context"
    (context / "root/usr/share/kwdb-build").mkdir(parents=True)
    shutil.copyfile(toolchains_root().parent / "Dockerfile.build", context / "Dockerfile")
    (context / "root/usr/share/kwdb-build/packages.list").write_text("no-such-package=1.0\n")
    tag = "kwdb-build-test/unlocked:1"
    with pytest.raises(EngineError) as caught:
        engine.build_image(
            context, dockerfile="Dockerfile", tag=tag, arguments={"BASE_IMAGE": prepared.image_id},
            on_line=lambda _: None, log=tmp_path / "log",
        )
    assert "no-such-package" in caught.value.context
    assert engine.image_id(tag) is None
