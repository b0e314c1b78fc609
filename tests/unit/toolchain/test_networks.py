"""Proxies, own authorities and own mirrors as settings: used for every download, told to nobody."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from kwdb_build import network
from kwdb_build.config import Settings
from kwdb_build.console import Progress
from kwdb_build.errors import DependencyError, UsageError
from kwdb_build.toolchain import wheels
from kwdb_build.toolchain.base_image import fetch_packages
from kwdb_build.toolchain.load import load
from kwdb_build.toolchain.lock import lock
from tests.unit.source.gitserver import self_signed
from tests.unit.toolchain.networkbox import proxy, web
from tests.unit.toolchain.toolchainbox import deb, folder, need, publish, wheel

MIRROR_SECRET, PROXY_SECRET = "bob:mirror-planted", "eve:proxy-planted"


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith(("PIP_", "GIT_SSL")):
            monkeypatch.delenv(name)
    for name in ("http_proxy", "https_proxy", "no_proxy"):  # what apply() sets is taken back at the end of a test
        for spelling in (name, name.upper()):
            monkeypatch.setenv(spelling, "")
    monkeypatch.setenv("GIT_SSL_CAINFO", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "0")


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """A Debian mirror and a wheel index, as files to serve."""
    need("apt-get", "dpkg-deb", "openssl")
    root = tmp_path / "served"
    deb(root / "debian", "base", "2.0", essential=True)
    deb(root / "debian", "tool", "1:1.0-1")
    publish(root / "debian")
    found = wheel(root / "simple" / "carrier")
    (root / "simple" / "carrier" / "index.html").write_text(f'<a href="{found.name}">{found.name}</a>')
    return root


def everything_below(*places: Path) -> str:
    return "".join(path.read_bytes().decode("latin-1") for place in places for path in place.rglob("*") if path.is_file())


def test_all_of_them_together(served: Path, tmp_path: Path) -> None:
    """Mirrors over TLS of an authority of one's own, with passwords, behind a proxy that wants another one."""
    certificate = self_signed(tmp_path)
    log = tmp_path / "logs" / "lock.log"
    log.parent.mkdir()
    made = folder(tmp_path)
    with web(served, secret=MIRROR_SECRET, certificate=certificate) as mirror, proxy(PROXY_SECRET) as through:
        sources = tmp_path / "own.list"
        sources.write_text(f"deb [trusted=yes] {mirror.url}/debian ./\n")
        settings = Settings(
            home=tmp_path / "home", apt_sources=str(sources), pip_index_url=f"{mirror.url}/simple",
            ca_bundle=certificate[0], https_proxy=through.url, http_proxy=through.url,
        )
        network.apply(settings)
        lock(made, settings=settings, progress=Progress(), log=log)
        toolchain = load(f"{made}/", search=made.parent)
        shutil.rmtree(wheels.cache_of(settings))
        wheels.fetch(toolchain.wheels[0], architecture="amd64", cache=wheels.cache_of(settings), settings=settings, log=log)
        fetch_packages(toolchain, settings=settings, progress=Progress(), log=log)
    host = mirror.url.rpartition("@")[2]
    assert set(through.asked) == {host}, "nothing went round the proxy"
    assert any(path.endswith(".deb") for path in mirror.asked)
    assert any(path.endswith(".whl") for path in mirror.asked)
    for secret in (MIRROR_SECRET, PROXY_SECRET):
        assert secret.partition(":")[2] not in everything_below(made, settings.home, log.parent)


def test_without_the_authority_the_mirror_is_not_believed(served: Path, tmp_path: Path) -> None:
    with web(served, certificate=self_signed(tmp_path)) as mirror:
        sources = tmp_path / "own.list"
        sources.write_text(f"deb [trusted=yes] {mirror.url}/debian ./\n")
        settings = Settings(home=tmp_path / "home", apt_sources=str(sources), pip_index_url=f"{mirror.url}/simple")
        with pytest.raises(DependencyError, match="package lists cannot be read") as caught:
            lock(folder(tmp_path), settings=settings, progress=Progress())
        assert "ertificate" in caught.value.context
        with pytest.raises(DependencyError, match="cannot be fetched"):
            wheels.download("carrier", "1.0", architecture="amd64", into=tmp_path, settings=settings, log=None)
    assert mirror.asked == []


def test_a_proxy_that_refuses_is_named_without_its_password(served: Path, tmp_path: Path) -> None:
    with web(served) as mirror, proxy("eve:another") as through:
        sources = tmp_path / "own.list"
        sources.write_text(f"deb [trusted=yes] {mirror.url}/debian ./\n")
        wrong = through.url.replace("another", "proxy-planted")
        settings = Settings(home=tmp_path / "home", apt_sources=str(sources), http_proxy=wrong)
        network.apply(settings)
        with pytest.raises(DependencyError, match="package lists cannot be read") as caught:
            lock(folder(tmp_path), settings=settings, progress=Progress())
    assert "407" in caught.value.context
    assert "proxy-planted" not in caught.value.context + caught.value.hint
    assert mirror.asked == []


def test_hosts_without_a_proxy(served: Path, tmp_path: Path) -> None:
    with web(served) as mirror, proxy(PROXY_SECRET) as through:
        settings = Settings(
            home=tmp_path / "home", pip_index_url=f"{mirror.url}/simple", http_proxy=through.url, no_proxy="127.0.0.1"
        )
        network.apply(settings)
        wheels.download("carrier", "1.0", architecture="amd64", into=tmp_path, settings=settings, log=None)
    assert through.asked == []


def test_nothing_is_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://of.the.machine:1")
    before = dict(os.environ)
    network.apply(Settings())
    assert dict(os.environ) == before
    network.apply(Settings(http_proxy="http://of.the.settings:2"))
    assert {os.environ["http_proxy"], os.environ["HTTP_PROXY"]} == {"http://of.the.settings:2"}


def test_own_authorities_come_beside_those_of_the_system(tmp_path: Path) -> None:
    need("openssl")
    own = self_signed(tmp_path)[0]
    joined = network.authorities(own)
    assert joined is not None
    text = joined.read_text()
    assert own.read_text().strip() in text
    assert text.count("BEGIN CERTIFICATE") > 1 or not Path("/etc/ssl/certs/ca-certificates.crt").exists()
    assert network.authorities(None) is None


@pytest.mark.parametrize("content", [None, "nothing of that kind"])
def test_no_bundle(tmp_path: Path, content: str | None) -> None:
    bundle = tmp_path / "ca.pem"
    if content is not None:
        bundle.write_text(content)
    with pytest.raises(UsageError, match="ca_bundle"):
        network.apply(Settings(ca_bundle=bundle))
