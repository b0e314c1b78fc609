"""Parts of making an image that need no engine, and the order of its steps with an engine that only remembers."""

from __future__ import annotations

import dataclasses
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kwdb_build.config import Settings
from kwdb_build.console import Progress
from kwdb_build.engine.base import EngineInfo
from kwdb_build.errors import DependencyError, EngineError, SpaceError
from kwdb_build.files import sha256_of
from kwdb_build.toolchain import base_image
from kwdb_build.toolchain.image import ensure_image, fill_context
from kwdb_build.toolchain.load import image_recipe, load, with_base
from tests.unit.toolchain.toolchainbox import WANTED, folder, wheel, write_lock

if TYPE_CHECKING:
    from kwdb_build.model import Toolchain


BASE = f"debian@sha256:{'a' * 64}"


class RememberingEngine:
    """Keeps what it is asked; build_image tags only when it does not fail, as every engine must."""

    def __init__(self, *, free_bytes: int = -1, failure: Exception | None = None, pause_s: float = 0) -> None:
        self.pause_s = pause_s
        self.images: dict[str, str] = {}
        self.built: list[dict[str, Any]] = []
        self.free_bytes = free_bytes
        self.failure = failure

    def info(self) -> EngineInfo:
        return EngineInfo(kind="test", version="1", address="none", free_bytes=self.free_bytes)

    def image_id(self, tag: str) -> str | None:
        return self.images.get(tag)

    def build_image(self, context: Path, **given: Any) -> str:
        files = sorted(str(path.relative_to(context)) for path in context.rglob("*") if path.is_file())
        self.built.append({"files": files, **given})
        time.sleep(self.pause_s)
        if self.failure:
            raise self.failure
        self.images[given["tag"]] = f"sha256:{len(self.built)}"
        return self.images[given["tag"]]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return Settings(home=tmp_path / "home")


@pytest.fixture
def toolchain(tmp_path: Path, settings: Settings) -> Toolchain:
    digest = sha256_of(wheel(tmp_path / "index"))
    write_lock(folder(tmp_path), wheel_sha256=digest)
    return load("small", search=tmp_path, base_image=BASE)


def ensure(toolchain: Toolchain, engine: RememberingEngine, settings: Settings) -> str:
    log = settings.home.parent / "log"
    return ensure_image(toolchain, engine=engine, settings=settings, progress=Progress(), log=log)  # type: ignore[arg-type]


def test_built_once_for_a_lock(toolchain: Toolchain, settings: Settings) -> None:
    engine = RememberingEngine()
    first = ensure(toolchain, engine, settings)
    assert ensure(toolchain, engine, settings) == first
    assert len(engine.built) == 1
    other = dataclasses.replace(toolchain, lock_digest="f" * 64)
    assert ensure(other, engine, settings) != first
    assert set(engine.images) == {toolchain.image_tag, other.image_tag}


def test_two_at_once_build_one(toolchain: Toolchain, settings: Settings) -> None:
    engine = RememberingEngine(pause_s=0.3)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: ensure(toolchain, engine, settings), range(2)))
    assert found[0] == found[1]
    assert len(engine.built) == 1


def test_ready_base_is_given_to_from_with_its_network(toolchain: Toolchain, settings: Settings) -> None:
    engine = RememberingEngine()
    ensure(toolchain, engine, settings)
    asked = engine.built[0]
    assert asked["arguments"] == {"BASE_IMAGE": BASE}
    assert asked["network"] == "default"
    assert asked["files"] == [
        "Dockerfile", "root/opt/carrier/VERSION", "root/opt/carrier/bin/tool", "root/usr/share/kwdb-build/packages.list"
    ]
    assert not list((settings.home / "images").glob(".context-*")), "the context is thrown away"


def test_what_a_killed_one_left_is_removed(toolchain: Toolchain, settings: Settings) -> None:
    images = settings.home / "images"
    left = [images / ".context-of-a-killed-one", images / "wheels" / ".fetch-of-a-killed-one"]
    for directory in left:
        directory.mkdir(parents=True)
        (directory / "image.tar").write_bytes(b"half")
    ensure(toolchain, RememberingEngine(), settings)
    assert [directory for directory in left if directory.exists()] == []


def test_failed_build_can_be_tried_again(toolchain: Toolchain, settings: Settings) -> None:
    engine = RememberingEngine(failure=EngineError("no"))
    with pytest.raises(EngineError):
        ensure(toolchain, engine, settings)
    assert engine.images == {}
    engine.failure = None
    assert ensure(toolchain, engine, settings) == "sha256:2"


def test_engine_without_space(toolchain: Toolchain, settings: Settings) -> None:
    engine = RememberingEngine(free_bytes=1 << 20)
    with pytest.raises(SpaceError, match=r"1\.0 MiB free in the engine's storage"):
        ensure(toolchain, engine, settings)
    assert engine.built == []


def test_wrong_wheel_stops_before_the_engine(toolchain: Toolchain, settings: Settings, tmp_path: Path) -> None:
    wheel(tmp_path / "index", content="evil")
    engine = RememberingEngine()
    with pytest.raises(DependencyError, match="not the locked one"):
        ensure(toolchain, engine, settings)
    assert engine.built == []


def test_context_has_fixed_modes_and_times(toolchain: Toolchain, settings: Settings, tmp_path: Path) -> None:
    context = tmp_path / "context"
    context.mkdir()
    fill_context(toolchain, context, settings=settings, progress=Progress(), log=tmp_path / "log")
    assert (context / "Dockerfile").read_bytes() == image_recipe().read_bytes()
    listing = context / "root/usr/share/kwdb-build/packages.list"
    assert listing.read_text() == "base=2.0\ntool=1:1.0-1\n"
    below = list((context / "root").rglob("*"))
    assert {int(path.stat().st_mtime) for path in below} == {base_image.EPOCH}
    assert {stat.S_IMODE(path.stat().st_mode) for path in below if path.is_dir()} == {0o755}
    assert {stat.S_IMODE(path.stat().st_mode) for path in below if path.is_file()} == {0o644, 0o755}


def test_recipe_is_for_the_classic_builder_and_has_no_host() -> None:
    text = image_recipe().read_text()
    assert "--mount" not in "".join(line for line in text.splitlines() if not line.startswith("#"))
    assert "<<" not in text
    assert "://" not in text
    assert text.count("\nCOPY ") == 1


def test_base_depends_on_packages_alone(tmp_path: Path, toolchain: Toolchain) -> None:
    digest = base_image.base_digest(toolchain)
    write_lock(folder(tmp_path, WANTED.replace("1.0,<2.0", "1.0,<9.0") + 'TZ = "UTC"\n'), wheel_sha256="9" * 64)
    assert base_image.base_digest(load("small", search=tmp_path)) == digest
    assert base_image.base_digest(dataclasses.replace(toolchain, debian=toolchain.debian[:1])) != digest


def test_ready_base_makes_another_image(tmp_path: Path, toolchain: Toolchain) -> None:
    plain = load("small", search=tmp_path)
    assert (plain.base_image, toolchain.base_image) == ("", BASE)
    assert plain.image_tag != toolchain.image_tag
    assert with_base(plain, BASE) == toolchain
    assert with_base(toolchain, BASE) == toolchain, "counted in once"
    assert with_base(plain, "") == plain


def test_without_mmdebstrap(
    toolchain: Toolchain, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    engine = RememberingEngine()
    with pytest.raises(DependencyError, match="mmdebstrap is missing") as caught:
        ensure(dataclasses.replace(toolchain, base_image=""), engine, settings)
    assert "apt-get install mmdebstrap" in caught.value.hint
    assert engine.built == []
