from __future__ import annotations

import json
from pathlib import Path

import pytest

from kwdb_build.cli.main import main
from kwdb_build.errors import ExitCode


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "source" / ("a" * 40) / "src").mkdir(parents=True)
    (tmp_path / "runs" / "kept").mkdir(parents=True)
    return tmp_path


def test_list_and_prune(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--home", str(home), "--json"]
    assert main(["cache", "list", *where]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [entry["kind"] for entry in listed["cache"]] == ["checkout"]
    assert main(["cache", "prune", "--all", "-n", *where]) == 0
    tried = json.loads(capsys.readouterr().out)
    assert (len(tried["pruned"]["removed"]), tried["dry_run"]) == (1, True)
    assert (home / "source" / ("a" * 40)).is_dir()
    assert main(["cache", "prune", *where]) == 0
    assert json.loads(capsys.readouterr().out)["pruned"]["removed"] == []
    assert main(["cache", "prune", "--older-than", "0h", *where]) == 0
    assert not (home / "source" / ("a" * 40)).exists()
    assert (home / "runs" / "kept").is_dir()


@pytest.mark.parametrize("words", [["--older-than", "soon"], ["--max-size", "big"]])
def test_what_is_no_age_and_no_size(home: Path, words: list[str]) -> None:
    assert main(["cache", "prune", *words, "--home", str(home)]) == ExitCode.USAGE
    assert (home / "source" / ("a" * 40)).is_dir()
