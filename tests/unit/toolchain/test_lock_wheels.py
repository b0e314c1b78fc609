"""Wheels: fetched by real pip from a local folder, refused when they are not the locked ones."""

from __future__ import annotations

import dataclasses
import stat
import zipfile
from pathlib import Path

import pytest

from kwdb_build.config import Settings
from kwdb_build.errors import DependencyError
from kwdb_build.files import sha256_of
from kwdb_build.model import Wheel
from kwdb_build.toolchain import wheels
from tests.unit.toolchain.toolchainbox import wheel


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    return Settings(home=tmp_path / "home")


def locked(tmp_path: Path) -> Wheel:
    made = wheel(tmp_path / "index")
    return Wheel(name="carrier", version="1.0", sha256=(sha256_of(made),), directory="payload", target="/opt/c")


def fetch(wanted: Wheel, tmp_path: Path, settings: Settings) -> Path:
    return wheels.fetch(
        wanted, architecture="amd64", cache=tmp_path / "cache", settings=settings, log=tmp_path / "log"
    )


def test_fetched_once(tmp_path: Path, settings: Settings) -> None:
    wanted = locked(tmp_path)
    found = fetch(wanted, tmp_path, settings)
    assert sha256_of(found) == wanted.sha256[0]
    (tmp_path / "index" / "carrier-1.0-py3-none-any.whl").unlink()
    assert fetch(wanted, tmp_path, settings) == found


def test_other_digest_is_refused_and_not_kept(tmp_path: Path, settings: Settings) -> None:
    wanted = locked(tmp_path)
    other = wheel(tmp_path / "index", content="evil")
    with pytest.raises(DependencyError, match="not the locked one") as caught:
        fetch(wanted, tmp_path, settings)
    assert sha256_of(other) in caught.value.context
    assert wanted.sha256[0] in caught.value.context
    assert not list((tmp_path / "cache").glob("*.whl"))


def test_damaged_cache_is_fetched_again(tmp_path: Path, settings: Settings) -> None:
    wanted = locked(tmp_path)
    fetch(wanted, tmp_path, settings).write_bytes(b"cut off")
    assert sha256_of(fetch(wanted, tmp_path, settings)) == wanted.sha256[0]


def test_unknown_version(tmp_path: Path, settings: Settings) -> None:
    wanted = dataclasses.replace(locked(tmp_path), version="9.9")
    with pytest.raises(DependencyError, match=r"carrier 9\.9 cannot be fetched") as caught:
        fetch(wanted, tmp_path, settings)
    assert "carrier==9.9" in caught.value.context
    assert "pip_index_url" in caught.value.hint


def test_unpack_keeps_modes_and_gives_one_time(tmp_path: Path) -> None:
    made = wheel(tmp_path)
    count = wheels.unpack(made, "payload", tmp_path / "out", mtime=1_600_000_000)
    program = tmp_path / "out/bin/tool"
    assert count == 2
    assert stat.S_IMODE(program.stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "out/VERSION").stat().st_mode) == 0o644
    assert {int(path.stat().st_mtime) for path in (tmp_path / "out").rglob("*")} == {1_600_000_000}


def test_directory_that_the_wheel_lacks(tmp_path: Path) -> None:
    with pytest.raises(DependencyError, match="has no directory 'pay'"):
        wheels.unpack(wheel(tmp_path), "pay", tmp_path / "out", mtime=0)


def test_path_that_leaves_the_wheel(tmp_path: Path) -> None:
    bad = tmp_path / "bad.whl"
    with zipfile.ZipFile(bad, "w") as packed:
        packed.writestr("payload/../../escaped", "x")
    with pytest.raises(DependencyError, match="leaves it"):
        wheels.unpack(bad, "payload", tmp_path / "in" / "out", mtime=0)
    assert not (tmp_path / "escaped").exists()
    assert not (tmp_path / "in" / "escaped").exists()


def test_no_zip(tmp_path: Path) -> None:
    (tmp_path / "x.whl").write_bytes(b"no zip")
    with pytest.raises(DependencyError, match="cannot unpack"):
        wheels.unpack(tmp_path / "x.whl", "payload", tmp_path / "out", mtime=0)
