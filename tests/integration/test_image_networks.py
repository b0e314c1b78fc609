"""A build image from a base that the user gives, by networks as users have them; nothing of those stays in it."""

from __future__ import annotations

import json
import tarfile
import uuid
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kwdb_build import network
from kwdb_build.config import Settings
from kwdb_build.console import Progress
from kwdb_build.engine.docker import DockerEngine
from kwdb_build.errors import EngineError
from kwdb_build.files import sha256_of
from kwdb_build.toolchain import base_image, given_base
from kwdb_build.toolchain.flatten import flatten
from kwdb_build.toolchain.image import ensure_image
from kwdb_build.toolchain.load import load
from kwdb_build.toolchain.lock import lock
from tests.unit.source.gitserver import self_signed
from tests.unit.toolchain.networkbox import proxy, web
from tests.unit.toolchain.toolchainbox import deb, folder, publish

if TYPE_CHECKING:
    from kwdb_build.model import Toolchain

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]
SECRETS = ("mirror-planted", "proxy-planted")
WANTED = """
name = "lent-{unique}"
serves = ">=1.0"
release = "bookworm"
packages = [{packages}]
"""


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory, mini_home: Path) -> Toolchain:
    """A Debian with apt and nothing else, locked."""
    place = tmp_path_factory.mktemp("debian")
    made = folder(place, WANTED.format(unique="base", packages='"apt"'))
    lock(made, settings=Settings(home=mini_home), progress=Progress(), log=place / "log")
    return load(f"{made}/", search=place)


@pytest.fixture(scope="module")
def base(debian: Toolchain, mini_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its root file system as a file."""
    place = tmp_path_factory.mktemp("base")
    settings = Settings(home=mini_home)
    archives = base_image.fetch_packages(debian, settings=settings, progress=Progress(), log=place / "log")
    base_image.make(archives, place / "base.tar", architecture="amd64", progress=Progress(), log=place / "log")
    return place / "base.tar"


def wanted(tmp_path: Path, debian: Toolchain, archive: Path) -> Toolchain:
    """A toolchain of that Debian and one package more, as if it had been locked somewhere else."""
    from kwdb_build.files import sha256_of
    from kwdb_build.toolchain.load import read_lock, read_wanted
    from kwdb_build.toolchain.lock import render

    made = folder(tmp_path, WANTED.format(unique=uuid.uuid4().hex[:8], packages='"apt", "extra"'))
    before = read_lock(debian.path / "lock.toml", name="lent")
    packages = {**before.packages, "extra": f"1.0-1 amd64 {sha256_of(archive)}"}
    (made / "lock.toml").write_text(
        render(before.model_copy(update={"packages": packages, "wanted": read_wanted(made).digest}))
    )
    return load(f"{made}/", search=tmp_path)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        for spelling in (name, name.upper()):
            monkeypatch.setenv(spelling, "")
    monkeypatch.setenv("GIT_SSL_CAINFO", "")
    return Settings(home=tmp_path / "home")


def on_loopback(engine: DockerEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let image builds reach this machine's loopback, where the test's servers are."""
    original = engine._api.build
    monkeypatch.setattr(engine._api, "build", lambda **given: original(**{**given, "network_mode": "host"}))


@pytest.mark.parametrize("given_as", ["root file system", "docker save"])
def test_mirror_authority_and_proxy_are_lent_and_leave_no_trace(
    given_as: str, engine: DockerEngine, debian: Toolchain, base: Path, settings: Settings, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    archive = deb(tmp_path / "served" / "debian", "extra", "1.0-1")
    publish(tmp_path / "served" / "debian")
    toolchain = wanted(tmp_path, debian, archive)
    certificate = self_signed(tmp_path)
    log = tmp_path / "image.log"
    given = base
    tag = f"kwdb-build-test/given:{uuid.uuid4().hex[:8]}"
    if given_as == "docker save":
        engine.import_base(base, tag, environment={})
        given = tmp_path / "image.tar"
        engine.export_image(tag, given)
    on_loopback(engine, monkeypatch)
    with web(tmp_path / "served", secret=f"bob:{SECRETS[0]}", certificate=certificate) as mirror, \
            proxy(f"eve:{SECRETS[1]}") as through:
        sources = tmp_path / "own.list"
        sources.write_text(f"deb [trusted=yes] {mirror.url}/debian ./\n")
        settings = settings.model_copy(update={
            "apt_sources": str(sources), "ca_bundle": certificate[0], "https_proxy": through.url,
            "http_proxy": through.url, "base_image": str(given),
        })
        network.apply(settings)
        toolchain = load(f"{toolchain.path}/", search=tmp_path, base_image=settings.base_image)
        try:
            identity = ensure_image(toolchain, engine=engine, settings=settings, progress=Progress(), log=log)
            assert engine.image_id(toolchain.image_tag) == identity
            assert any(path.endswith("extra_1.0-1_amd64.deb") for path in mirror.asked)
            assert through.asked, "by the proxy"
            only = replace(toolchain, debian=tuple(one for one in toolchain.debian if one.name == "extra"))
            said = given_base.describe(only, identity, "", engine=engine, log=log)
            assert said is not None
            assert said.digest == f"sha256:{sha256_of(given)}"
            assert {str(one) for one in said.packages or ()} == {str(one) for one in debian.debian}
            refuse_traces(engine, toolchain.image_tag, mirror.url.rpartition("@")[2], tmp_path)
        finally:
            engine.remove_image(toolchain.image_tag)
            engine.remove_image(tag)
    assert engine.image_id(f"kwdb-build/work:{toolchain.lock_digest[:16]}") is None


def refuse_traces(engine: DockerEngine, tag: str, mirror: str, tmp_path: Path) -> None:
    """Look for secrets, mirror and certificate in the image's configuration, history and every file of every layer."""
    told = json.dumps([engine._api.inspect_image(tag), engine._api.history(tag)])
    saved, root = tmp_path / "saved.tar", tmp_path / "root.tar"
    engine.export_image(tag, saved)
    content = saved.read_bytes()
    for trace in (*SECRETS, mirror, "_proxy="):
        assert trace not in told
        assert trace.encode() not in content or trace == "_proxy=", trace
    flatten(saved, root)
    with tarfile.open(root) as tar:
        names = {entry.name.removeprefix("./") for entry in tar}
    assert "usr/share/extra/content" in names
    assert not {name for name in names if name.startswith(("run/kwdb-build", "var/lib/apt/lists/d", "var/cache/apt/pkg"))}


def test_a_mirror_that_does_not_answer_leaves_nothing_tagged(
    engine: DockerEngine, debian: Toolchain, base: Path, settings: Settings, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    toolchain = wanted(tmp_path, debian, deb(tmp_path / "served", "extra", "1.0-1"))
    on_loopback(engine, monkeypatch)
    settings = settings.model_copy(update={"apt_sources": "http://127.0.0.1:9/debian", "base_image": str(base)})
    toolchain = load(f"{toolchain.path}/", search=tmp_path, base_image=settings.base_image)
    make = partial(ensure_image, toolchain, engine=engine, settings=settings, progress=Progress(), log=tmp_path / "log")
    with pytest.raises(EngineError):
        make()
    assert engine.image_id(toolchain.image_tag) is None
    assert engine.image_id(f"kwdb-build/work:{toolchain.lock_digest[:16]}") is None
