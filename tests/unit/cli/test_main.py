"""The command line's surface: help, codes, and what is imported for it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kwdb_build.cli.main import _VERBS, kwdb_build, main
from kwdb_build.errors import EXIT_CODE_MEANINGS, ExitCode

ROOT = Path(__file__).parents[3]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from kwdb_build.cli import run; run(['--help']);"
        "print([m for m in ('docker', 'git', 'psycopg', 'pydantic', 'rich', 'psutil', 'jinja2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("verb", _VERBS)
def test_every_verb_describes_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    assert "Usage: kwdb-build" in capsys.readouterr().out
    assert kwdb_build.get_command(None, verb) is not None  # type: ignore[arg-type]


def test_unknown_verb_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["upgrad"]) == ExitCode.USAGE
    assert "did you mean upgrade" in capsys.readouterr().err
    assert main(["upgrade", "V1", "--no-such"]) == ExitCode.USAGE
    assert "no-such" in capsys.readouterr().err


def test_nobody_to_confirm_is_refused_before_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    done = subprocess.run(
        [sys.executable, "-m", "kwdb_build", "upgrade", "V1.1.0", "--home", str(home), "--json"], check=False,
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )
    assert done.returncode == ExitCode.REFUSED
    answer = json.loads(done.stdout)
    assert answer["schema"] == 1
    assert answer["error"]["exit_code"] == ExitCode.REFUSED
    assert not home.exists()


def test_readme_has_the_table_of_exit_codes() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\d+) \| (.+?) \|$", readme, re.MULTILINE))
    assert rows == {str(int(code)): meaning for code, meaning in EXIT_CODE_MEANINGS.items()}
