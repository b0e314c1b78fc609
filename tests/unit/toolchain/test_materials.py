"""What images were made of: the verb that removes what no lock names any more."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kwdb_build.cli.main import main
from kwdb_build.errors import ExitCode
from kwdb_build.toolchain import load
from kwdb_build.toolchain.base_image import base_digest
from tests.unit.toolchain.toolchainbox import WANTED, folder, write_lock

Call = Callable[..., tuple[int, Any]]
SIZE = 1000


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the toolchains are that come along: one, locked."""
    root = tmp_path / "come-along"
    write_lock(folder(root), packages={"tool": f"1.0 amd64 {'1' * 64}"}, wheel_sha256="2" * 64)
    monkeypatch.setattr("kwdb_build.toolchain.load.toolchains_root", lambda: root)
    return root


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def call(home: Path, search: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    del search

    def invoke(*words: str) -> tuple[int, Any]:
        code = main(["toolchain", "prune", "--home", str(home), "--json", *words])
        return code, json.loads(capsys.readouterr().out)

    return invoke


def put(home: Path, *names: str) -> set[Path]:
    """Files of these names where images are made."""
    place = {".tar": "", ".deb": "debs", ".whl": "wheels"}
    made = set()
    for name in names:
        path = home / "images" / place[Path(name).suffix] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * SIZE)
        made.add(path)
    return made


def base_of(where: Path, home: Path | None = None) -> str:
    return f"base-{base_digest(load.load(f'{where}/', search=where, home=home))}.tar"


def test_what_no_lock_names_goes_and_nothing_else(call: Call, home: Path, search: Path) -> None:
    stays = put(home, base_of(search / "small"), f"{'1' * 64}.deb", f"{'2' * 64}.whl")
    goes = put(home, f"base-{'8' * 64}.tar", f"{'8' * 64}.deb", f"{'9' * 64}.deb", f"{'8' * 64}.whl")
    others = put(home, "my-own.tar", "notes.deb") | {home / "images" / "small-1.lock", home / "images" / "probe-1.txt"}
    (home / "images" / "small-1.lock").touch()
    (home / "images" / "probe-1.txt").touch()
    link = home / "images" / f"base-{'7' * 64}.tar"
    link.symlink_to(home / "images" / "my-own.tar")
    for words in (["-n"], []):
        code, answer = call(*words)
        assert code == 0
        assert {Path(one["path"]) for one in answer["removed"]} == goes
        assert answer["freed_bytes"] == len(goes) * SIZE
        assert all(path.exists() for path in (*stays, *others, link))
        assert {path.exists() for path in goes} == {words == ["-n"]}
    assert call() == (0, {"schema": 1, "dry_run": False, "removed": [], "freed_bytes": 0})


def test_this_machines_own_lock_a_bundle_and_a_folder_of_ones_own_count(
    call: Call, home: Path, search: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed = load.read_lock(search / "small" / "lock.toml", name="small")
    write_lock(search / "small", packages={"tool": f"1.1 amd64 {'3' * 64}"}, wheel_sha256="2" * 64,
               replaces=committed.digest, path=load.home_lock(home, "small"))
    bundled = folder(home / "bundles" / "b", name="toolchain")
    write_lock(bundled, packages={"tool": f"1.2 amd64 {'4' * 64}"}, wheel_sha256="4" * 64)
    own = folder(tmp_path, WANTED.replace('"small"', '"own"'), name="own")
    write_lock(own, packages={"tool": f"1.3 amd64 {'5' * 64}"}, wheel_sha256="5" * 64)
    damaged = home / "bundles" / "damaged" / "toolchain"
    damaged.mkdir(parents=True)
    (damaged / "lock.toml").write_text("no lock")
    stays = put(
        home, base_of(search / "small"), base_of(search / "small", home), base_of(bundled), f"{'1' * 64}.deb",
        f"{'2' * 64}.whl", f"{'3' * 64}.deb", f"{'4' * 64}.deb", f"{'4' * 64}.whl",
    )
    mine = put(home, base_of(own), f"{'5' * 64}.deb", f"{'5' * 64}.whl")
    assert call("--keep", str(own))[1]["removed"] == []
    monkeypatch.setenv("KWDB_BUILD_TOOLCHAIN", str(own))
    assert call()[1]["removed"] == []
    monkeypatch.delenv("KWDB_BUILD_TOOLCHAIN")
    code, answer = call()
    assert code == 0
    assert {Path(one["path"]) for one in answer["removed"]} == mine
    assert all(path.exists() for path in stays)


def test_a_lock_that_cannot_be_read_stops_it(call: Call, home: Path, search: Path) -> None:
    goes = put(home, f"{'8' * 64}.deb")
    (search / "small" / "lock.toml").write_text("packages = 1")
    code, answer = call()
    assert code == ExitCode.DEPENDENCY
    assert "lock.toml" in json.dumps(answer["error"])
    assert all(path.exists() for path in goes)


def test_nothing_goes_while_an_image_is_made(call: Call, home: Path) -> None:
    goes = put(home, f"{'8' * 64}.deb")
    lock = home / "images" / "elsewhere-0123456789abcdef.lock"
    program = "import sys; from filelock import FileLock\nwith FileLock(sys.argv[1]): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as maker:
        assert maker.stdout is not None
        assert maker.stdout.readline() == "held\n"
        code, answer = call()
        assert code == ExitCode.LOCKED
        assert "elsewhere-0123456789abcdef" in answer["error"]["message"]
        assert all(path.exists() for path in goes)
        assert call("-n")[0] == 0
    assert call()[0] == 0
    assert not any(path.exists() for path in goes)


def test_people_read_sizes(home: Path, search: Path, capsys: pytest.CaptureFixture[str]) -> None:
    del search
    assert main(["toolchain", "prune", "--home", str(home)]) == 0, "a home without images"
    put(home, f"{'8' * 64}.deb", f"{'9' * 64}.deb", f"base-{'8' * 64}.tar")
    capsys.readouterr()
    assert main(["toolchain", "prune", "-n", "--home", str(home)]) == 0
    said = capsys.readouterr().err
    assert "would go: 1 base image, 1000 B" in said
    assert "would go: 2 packages, 2.0 KiB" in said
    assert "2.9 KiB would be freed" in said
