from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kwdb_build.build import caches
from kwdb_build.build.history import FILE, BuildHistory
from kwdb_build.cli.main import main
from kwdb_build.console import Progress
from tests.unit.build.test_caches import TOOLCHAIN
from tests.unit.build.test_history_and_watch import RECORD


def use(home: Path) -> Path:
    with caches.opened(
        home / caches.DIRECTORY, TOOLCHAIN, uid=os.geteuid(), gid=os.getegid(), limit_bytes=1 << 20, progress=Progress()
    ) as data:
        assert data is not None
        (data / "ccache" / "object").write_bytes(b"x" * 100)
        return data


def test_caches_and_what_they_gave_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build-cache", "list", "--home", str(tmp_path)]) == 0
    use(tmp_path)
    BuildHistory(tmp_path / FILE).add(RECORD)
    capsys.readouterr()
    assert main(["build-cache", "list", "--home", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "100 B" in shown
    assert "1 of 3" in shown
    assert main(["build-cache", "list", "--home", str(tmp_path), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["caches"][0]["ccache_bytes"] == 100
    assert answer["builds"][0]["version"] == "V3.1.0"


def test_old_caches_are_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = use(tmp_path)
    assert main(["build-cache", "prune", "--home", str(tmp_path)]) == 0
    assert data.exists()
    os.utime(data.parent.with_name(f"{data.parent.name}.lock"), (1e9, 1e9))
    assert main(["build-cache", "prune", "--home", str(tmp_path), "-n"]) == 0
    said = capsys.readouterr().err
    assert f"would go: {data.parent.name}, last used 2001-09-09" in said
    assert "100 B would be freed" in said
    assert data.exists()
    assert main(["build-cache", "prune", "--home", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["freed_bytes"] == 100
    assert not data.parent.exists()


@pytest.mark.parametrize("dry_run", [True, False])
def test_caches_in_use_stay_and_are_said_to(tmp_path: Path, capsys: pytest.CaptureFixture[str], dry_run: bool) -> None:
    data = use(tmp_path)
    free = data.parent.with_name("other-0123456789abcdef")
    (free / "data").mkdir(parents=True)
    (free / "data" / "object").write_bytes(b"x" * 100)
    words = ["build-cache", "prune", "--unused-for", "0", "--home", str(tmp_path), *(["-n"] if dry_run else [])]
    with caches.opened(
        tmp_path / caches.DIRECTORY, TOOLCHAIN, uid=os.geteuid(), gid=os.getegid(), limit_bytes=1 << 20,
        progress=Progress(),
    ):
        capsys.readouterr()
        assert main(words) == 0
        said = capsys.readouterr().err
        assert f"{data.parent.name}: a build uses it, {'would be ' if dry_run else ''}left alone" in said
        assert f"{'would go' if dry_run else 'gone'}: {free.name}" in said
        assert data.exists()
        assert free.exists() is dry_run
        assert main([*words, "--json"]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert [one["name"] for one in answer["in_use"]] == [data.parent.name]
        assert [one["name"] for one in answer["removed"]] == ([free.name] if dry_run else [])
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["in_use"] == []
