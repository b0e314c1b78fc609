"""Packages are resolved, fetched and checked by a private apt, here against a repository made on the spot."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kwdb_build.config import Settings
from kwdb_build.console import Progress
from kwdb_build.errors import DependencyError
from kwdb_build.files import sha256_of
from kwdb_build.model import Toolchain
from kwdb_build.toolchain import apt, wheels
from kwdb_build.toolchain.base_image import PackageGoneError, fetch_packages
from kwdb_build.toolchain.image import relock_here
from kwdb_build.toolchain.load import load, read_lock
from kwdb_build.toolchain.lock import differences, lock
from tests.unit.toolchain.toolchainbox import deb, folder, need, publish, wheel

DEB822 = """\
# a comment
Types: deb deb-src
# between
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates bookworm-backports
Components: main contrib
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBF

Types: deb
URIs: http://mirror.example/security
Suites: bookworm-security
Components: main
Enabled: yes

Types: deb
Enabled: no
URIs: http://off.example/
Suites: bookworm
Components: main

Types: deb-src
URIs: http://src.example/
Suites: bookworm
Components: main
"""
ONE_LINE = """\
# deb http://old.example/debian bookworm main
deb http://mirror.example/debian bookworm main non-free # why
deb [ arch=amd64 signed-by=/usr/share/keyrings/a.gpg ] http://mirror.example/security bookworm-security main
deb-src http://mirror.example/debian bookworm main
deb https://third.example/linux bookworm stable
deb https://nightly.example/ nodistro main
deb http://mirror.example/debian trixie main
"""


def test_deb822() -> None:
    found = apt.parse_sources(DEB822, deb822=True)
    assert [source.uris[0] for source in found] == ["http://mirror.example/debian", "http://mirror.example/security"]
    assert found[0].suites == ("bookworm", "bookworm-updates", "bookworm-backports")
    assert "Signed-By: \n -----BEGIN PGP" in found[0].stanza()
    assert apt.parse_sources(found[0].stanza(), deb822=True) == [found[0]]


def test_one_line() -> None:
    found = apt.parse_sources(ONE_LINE, deb822=False)
    assert [source.suites[0] for source in found] == ["bookworm", "bookworm-security", "bookworm", "nodistro", "trixie"]
    assert found[0].components == ("main", "non-free")
    assert found[1].options == (("Signed-By", "/usr/share/keyrings/a.gpg"),)


@pytest.mark.parametrize("text", [(DEB822, True), (ONE_LINE, False)])
def test_only_the_release_and_its_main_component_match(text: tuple[str, bool]) -> None:
    found = apt.matching(apt.parse_sources(text[0], deb822=text[1]), "bookworm")
    assert {source.uris[0] for source in found} == {"http://mirror.example/debian", "http://mirror.example/security"}
    assert {name for source in found for name in source.components} == {"main"}
    assert not any("backports" in suite or suite == "trixie" for source in found for suite in source.suites)


def test_machine_without_the_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sources.list").write_text("deb http://mirror.example/ubuntu noble main universe\n")
    monkeypatch.setattr(apt, "SYSTEM_SOURCES", (tmp_path / "sources.list", tmp_path / "absent"))
    with pytest.raises(DependencyError, match="no Debian bookworm") as caught:
        apt.sources_for("bookworm", chosen="")
    assert "apt_sources" in caught.value.hint
    assert "base_image" in caught.value.hint


def test_another_release_is_asked_from_the_same_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.sources").write_text(
        "Types: deb\nURIs: http://m.example/debian\nSuites: bookworm bookworm-updates\nComponents: main contrib\n"
        "Signed-By: /k.gpg\n\n"
        "Types: deb\nURIs: http://m.example/debian-security\nSuites: bookworm-security\nComponents: main\n\n"
        "Types: deb\nURIs: https://vendor.example/apt\nSuites: bookworm\nComponents: main\n"
    )
    monkeypatch.setattr(apt, "SYSTEM_SOURCES", (tmp_path / "own.sources",))
    sources, only_debian = apt.sources_for("bullseye", chosen="")
    assert [(source.uris, source.suites, source.components) for source in sources] == [
        (("http://m.example/debian",), ("bullseye", "bullseye-updates"), ("main",)),
        (("http://m.example/debian-security",), ("bullseye-security",), ("main",)),
    ]
    assert sources[0].options == (("Signed-By", "/k.gpg"),)
    assert only_debian


def test_mirror_by_its_url() -> None:
    sources, only_debian = apt.sources_for("bullseye", chosen="https://u:secret@m.example/debian/")
    assert [(source.uris, source.suites) for source in sources] == [
        (("https://u:secret@m.example/debian",), ("bullseye", "bullseye-updates")),
        (("https://u:secret@m.example/debian-security",), ("bullseye-security",)),
    ]
    assert only_debian
    with pytest.raises(DependencyError, match="no URL of a Debian mirror") as caught:
        apt.sources_for("bullseye", chosen="gopher://u:secret@m.example/debian")
    assert "secret" not in caught.value.message


def test_chosen_sources_are_taken_whole(tmp_path: Path) -> None:
    chosen = tmp_path / "own.list"
    chosen.write_text("deb [trusted=yes] file:/srv/debs ./\n")
    sources, only_debian = apt.sources_for("bookworm", chosen=str(chosen))
    assert (sources[0].suites, sources[0].options, only_debian) == (("./",), (("Trusted", "yes"),), False)
    with pytest.raises(DependencyError, match="do not exist"):
        apt.sources_for("bookworm", chosen=str(tmp_path / "none.list"))


def test_printed() -> None:
    digest = "a" * 64
    text = f"Reading...\n'http://m.example/p/g/gcc_12.2.0-3_amd64.deb' gcc_4%3a12.2.0-3_amd64.deb 5216 SHA256:{digest}\n"
    package = apt.parse_printed(text)[0]
    assert (package.name, package.version, package.architecture, package.sha256) == (
        "gcc", "4:12.2.0-3", "amd64", digest
    )


def test_madison() -> None:
    text = " gcc | 4:12.2.0-3 | http://a bookworm/main\n gcc | 4:12.2.0-1 | http://a\n gcc | 4:12.2.0-3 | http://b\n"
    assert apt.parse_madison(text) == {"gcc": ["4:12.2.0-3", "4:12.2.0-1"]}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, Settings]:
    """A repository (essential base, tool, its library), a toolchain folder and settings that use both."""
    need("apt-get", "dpkg-deb")
    repository = tmp_path / "repository"
    deb(repository, "base", "2.0", essential=True)
    deb(repository, "library", "3.1-4")
    deb(repository, "tool", "1:1.0-1", depends="library (>= 3)")
    deb(repository, "unrelated", "1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel(tmp_path / "index").parent))
    settings = Settings(home=tmp_path / "home", apt_sources=publish(repository))
    return repository, folder(tmp_path), settings


def locked(made: Path, settings: Settings) -> Toolchain:
    lock(made, settings=settings, progress=Progress())
    return load(f"{made}/", search=made.parent)


def test_lock_holds_everything_and_twice_the_same(world: tuple[Path, Path, Settings]) -> None:
    _, made, settings = world
    toolchain = locked(made, settings)
    first = (made / "lock.toml").read_text()
    assert toolchain.locked_packages == ("base=2.0", "library=3.1-4", "tool=1:1.0-1")
    assert toolchain.wheels[0].version == "1.0"
    assert locked(made, settings) == toolchain
    assert (made / "lock.toml").read_text() == first


def test_fetch_gives_the_locked_bytes_and_then_needs_no_source(world: tuple[Path, Path, Settings]) -> None:
    repository, made, settings = world
    toolchain = locked(made, settings)
    log = made / "log"
    fetched = fetch_packages(toolchain, settings=settings, progress=Progress(), log=log)
    assert [sha256_of(path) for path in fetched] == [entry.sha256 for entry in toolchain.debian]
    assert {sha256_of(path) for path in fetched} <= {sha256_of(path) for path in repository.glob("*.deb")}
    offline = settings.model_copy(update={"apt_sources": str(made / "none.list")})
    assert fetch_packages(toolchain, settings=offline, progress=Progress(), log=log) == fetched


def test_damaged_cache_is_fetched_again(world: tuple[Path, Path, Settings]) -> None:
    _, made, settings = world
    toolchain = locked(made, settings)
    fetched = fetch_packages(toolchain, settings=settings, progress=Progress(), log=made / "log")
    fetched[0].write_bytes(b"cut off")
    again = fetch_packages(toolchain, settings=settings, progress=Progress(), log=made / "log")
    assert sha256_of(again[0]) == toolchain.debian[0].sha256


def replace_library(repository: Path, version: str, content: str = "") -> None:
    next(repository.glob("library_*.deb")).unlink()
    deb(repository, "library", version, content=content)
    publish(repository)


def test_gone_version_names_package_locked_available_and_the_command(world: tuple[Path, Path, Settings]) -> None:
    repository, made, settings = world
    toolchain = locked(made, settings)
    replace_library(repository, "3.1-5")
    with pytest.raises(PackageGoneError) as caught:
        fetch_packages(toolchain, settings=settings, progress=Progress(), log=made / "log")
    assert caught.value.context == "library: locked 3.1-4, available 3.1-5"
    assert caught.value.hint == "kwdb-build toolchain lock small"
    assert caught.value.log == made / "log"


def test_gone_package_is_resolved_anew_for_this_machine(world: tuple[Path, Path, Settings]) -> None:
    repository, made, settings = world
    old = locked(made, settings)
    committed = (made / "lock.toml").read_text()
    replace_library(repository, "3.1-5")
    said: list[str] = []

    class Listening(Progress):
        def note(self, text: str) -> None:
            said.append(text)

    new = relock_here(old, settings=settings, progress=Listening(), log=made / "log")
    assert "library=3.1-5" in new.locked_packages
    assert new.lock_digest != old.lock_digest
    assert (made / "lock.toml").read_text() == committed, "the folder's own lock stays as it is"
    assert load(f"{made}/", search=made.parent, home=settings.home) == new
    assert any("library: 3.1-4 -> 3.1-5" in line for line in said)
    fetch_packages(new, settings=settings, progress=Progress(), log=made / "log")


def test_same_version_with_other_bytes_is_refused(world: tuple[Path, Path, Settings]) -> None:
    repository, made, settings = world
    toolchain = locked(made, settings)
    replace_library(repository, "3.1-4", content="something else\n")
    with pytest.raises(DependencyError, match="other packages than the locked ones") as caught:
        fetch_packages(toolchain, settings=settings, progress=Progress(), log=made / "log")
    assert not isinstance(caught.value, PackageGoneError), "never resolved anew by itself"
    assert "library=3.1-4" in caught.value.context


def test_unknown_package(world: tuple[Path, Path, Settings]) -> None:
    _, made, settings = world
    text = (made / "toolchain.toml").read_text()
    folder(made.parent, text.replace('["tool"]', '["tool", "no-such-thing"]'))
    with pytest.raises(DependencyError, match="cannot be resolved") as caught:
        lock(made, settings=settings, progress=Progress())
    assert "no-such-thing" in caught.value.context


def test_a_promise_that_the_packages_break(world: tuple[Path, Path, Settings]) -> None:
    repository, made, settings = world
    deb(repository, "libc6", "2.36-9", essential=True)
    publish(repository)
    text = (made / "toolchain.toml").read_text()
    folder(made.parent, text.replace("release =", 'glibc = "2.36"\nrelease ='))
    assert lock(made, settings=settings, progress=Progress()).glibc == "2.36"
    assert load(f"{made}/", search=made.parent).glibc == "2.36"
    folder(made.parent, text.replace("release =", 'glibc = "2.31"\nrelease ='))
    with pytest.raises(DependencyError, match=r"promises glibc 2\.31, but its packages bring 2\.36"):
        lock(made, settings=settings, progress=Progress())


def test_archive_that_does_not_answer(world: tuple[Path, Path, Settings], tmp_path: Path) -> None:
    _, made, settings = world
    dead = tmp_path / "dead.list"
    dead.write_text("deb [trusted=yes] http://127.0.0.1:9/debian bookworm main\n")
    with pytest.raises(DependencyError, match="package lists cannot be read") as caught:
        lock(made, settings=settings.model_copy(update={"apt_sources": str(dead)}), progress=Progress())
    assert "127.0.0.1" in caught.value.context


def test_third_party_archive_with_the_releases_name_is_ignored(world: tuple[Path, Path, Settings]) -> None:
    repository, made, _ = world
    listing = made.parent / "third" / "dists" / "bookworm" / "main" / "binary-amd64" / "Packages"
    listing.parent.mkdir(parents=True)
    listing.write_text((repository / "Packages").read_text())
    release = listing.parents[2] / "Release"
    entry = apt.Source(
        uris=(f"copy:{made.parent}/third",), suites=("bookworm",), components=("main",), options=(("Trusted", "yes"),)
    )

    def resolved(origin: str) -> bool:
        digest = hashlib.sha256(listing.read_bytes()).hexdigest()
        release.write_text(
            f"Origin: {origin}\nSuite: bookworm\nCodename: bookworm\nComponents: main\nArchitectures: amd64\n"
            f"Date: Sun, 01 Jan 2023 00:00:00 UTC\nSHA256:\n {digest} {listing.stat().st_size} main/binary-amd64/Packages\n"
        )
        place = made.parent / f"apt-{origin}"
        place.mkdir()
        private = apt.PrivateApt.create(place, [entry], architecture="amd64", only_debian=True)
        try:
            return bool(private.resolve(["tool"]))
        except DependencyError:
            return False

    assert resolved("Debian")
    assert not resolved("Elsewhere")


def test_the_command_mends_a_lock_that_cannot_be_read(world: tuple[Path, Path, Settings]) -> None:
    """Such as one with the marks of a merge: what says that it is wrong says that this command makes it anew."""
    _, made, settings = world
    (made / "lock.toml").write_text("<<<<<<< ours\n")
    done = subprocess.run(
        [sys.executable, "-m", "kwdb_build", "toolchain", "lock", f"{made}/", "--home", str(settings.home)],
        env={**os.environ, "KWDB_BUILD_APT_SOURCES": settings.apt_sources}, capture_output=True, text=True, check=False,
    )
    assert (done.returncode, done.stdout) == (0, "locked 3 packages\n"), done.stderr
    assert load(f"{made}/", search=made.parent).locked_packages == ("base=2.0", "library=3.1-4", "tool=1:1.0-1")


def test_differences(world: tuple[Path, Path, Settings]) -> None:
    repository, made, settings = world
    locked(made, settings)
    before = read_lock(made / "lock.toml", name="small")
    replace_library(repository, "3.1-5")
    locked(made, settings)
    assert differences(before, read_lock(made / "lock.toml", name="small")) == ["library: 3.1-4 -> 3.1-5"]


def test_no_host_configuration_but_transport(tmp_path: Path) -> None:
    text = apt.configuration(tmp_path, "amd64", 'Acquire::http::Proxy "http://u:p@proxy.example:1/";', Path("/ca.pem"))
    assert 'Acquire::http::Proxy "http://u:p@proxy.example:1/";' in text
    assert 'Acquire::https::CaInfo "/ca.pem";' in text
    assert 'Dir::Etc::parts "/dev/null";' in text


def test_transport_settings_leave_hooks_out() -> None:
    need("apt-config")
    lines = apt.transport_settings().splitlines()
    assert lines
    assert all(line.startswith("Acquire::") for line in lines)


def test_wheel_of_the_lock(world: tuple[Path, Path, Settings], tmp_path: Path) -> None:
    _, made, settings = world
    toolchain = locked(made, settings)
    cache = tmp_path / "fresh"
    found = wheels.fetch(
        toolchain.wheels[0], architecture="amd64", cache=cache, settings=settings, log=tmp_path / "log"
    )
    assert sha256_of(found) == toolchain.wheels[0].sha256[0]
