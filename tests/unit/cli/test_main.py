"""The command line's surface: help, codes, and what is imported for it."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from kwdb_build.cli import options
from kwdb_build.cli.main import _VERBS, _refusal, kwdb_build, main
from kwdb_build.errors import EXIT_CODE_MEANINGS, ExitCode
from kwdb_build.model import Address
from kwdb_build.sql import Login, SqlError

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


@pytest.mark.parametrize("verb", _VERBS)
def test_no_option_is_there_twice(verb: str) -> None:
    """A shared group of options and a verb's own: click lets the last one win without a word."""
    found = kwdb_build.get_command(None, verb)  # type: ignore[arg-type]
    for command in found.commands.values() if isinstance(found, click.Group) else [found]:
        names = [name for each in command.params for name in (*each.opts, *each.secondary_opts, each.name)]
        options = [name for name in names if name.startswith("-")]
        assert sorted(set(options)) == sorted(options), command.name
        assert len({each.name for each in command.params}) == len(command.params), command.name


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


@pytest.mark.parametrize("verb", ["fetch", "build"])
def test_a_home_that_cannot_be_written_is_no_defect(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "V1.0.0", "--home", "/sys/kwdb-build", "--json"]) == ExitCode.PERMISSION
    told = json.loads(capsys.readouterr().out)["error"]
    assert told["message"].startswith("/sys/kwdb-build: ")
    assert "--home" in told["hint"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), ExitCode.SPACE),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/home/x"), ExitCode.SPACE),
        (OSError(errno.EIO, "Input/output error", "/home/x"), None), (PermissionError("of some library"), None),
        (ValueError("x"), None),
    ],
)
def test_what_the_system_refuses_anywhere_is_told_from_a_defect(error: Exception, code: ExitCode | None) -> None:
    told = _refusal(error)
    assert (told.exit_code if told else None) == code


def test_readme_has_the_table_of_exit_codes() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\d+) \| (.+?) \|$", readme, re.MULTILINE))
    assert rows == {str(int(code)): meaning for code, meaning in EXIT_CODE_MEANINGS.items()}


def test_a_typed_password_is_a_file_in_memory_for_us_and_our_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getpass", lambda _: "ge heim")
    path = options.typed_password("admin")
    login = Login(address=Address(host="127.0.0.1", port=1), user="admin", password_file=path)
    assert login.parameters()["password"] == "ge heim"
    assert subprocess.run(["cat", str(path)], capture_output=True, check=True).stdout == b"ge heim"
    assert "memfd:" in str(path.readlink())
    assert "ge heim" not in repr(login)


def test_a_password_file_that_cannot_be_read_is_a_clear_error(tmp_path: Path) -> None:
    login = Login(address=Address(host="127.0.0.1", port=1), password_file=tmp_path / "none")
    with pytest.raises(SqlError, match="cannot read the password of root") as caught:
        login.parameters()
    assert "--ask-sql-password" in caught.value.hint


def test_a_stopped_call_has_its_code_even_when_the_signal_came_while_code_from_a_string_ran(tmp_path: Path) -> None:
    (tmp_path / "stopped.py").write_text(
        "import kwdb_build.__main__ as entry, kwdb_build.cli as cli\n"
        "def run(argv):\n"
        "    try:\n        exec('import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(30)')\n"
        "    except KeyboardInterrupt:\n        return 130\n"
        "cli.run = run\nentry.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "stopped"], check=False, capture_output=True, text=True, timeout=30, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"},
    )
    assert done.returncode == ExitCode.INTERRUPTED, done.stderr


_STOPS_AT = """
import os, signal, sys

class Stops:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            sys.stderr.write("interrupted here")
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Stops())
sys.argv = ["kwdb-build", "artifact", "list"]
for loaded in ("contextlib",):  # what Python's own start may have imported
    sys.modules.pop(loaded, None)
from kwdb_build.__main__ import main
main()
"""


@pytest.mark.parametrize(
    "name", ["contextlib", "kwdb_build.cli", "kwdb_build.cli.main", "click", "kwdb_build.errors", "kwdb_build.cli.artifact"]
)
def test_ctrl_c_while_python_still_imports_ends_without_a_traceback(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _STOPS_AT.format(name=name)], check=False, capture_output=True, text=True, timeout=30,
        cwd=ROOT,
    )
    assert done.returncode == ExitCode.INTERRUPTED, done.stderr
    assert done.stderr.startswith("interrupted here"), "the interrupt came where it was meant to"
    assert done.stderr.removeprefix("interrupted here").strip() in {"", "stopped on request"}


@pytest.mark.parametrize(
    ("words", "code"), [(["build", "V1", "--no-such"], ExitCode.USAGE), (["build", "V1", "-j", "many"], ExitCode.USAGE)]
)
def test_a_wrong_call_answers_in_json_when_that_was_asked_for(
    words: list[str], code: ExitCode, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--json"]) == code
    answer = json.loads(capsys.readouterr().out)
    assert answer["error"]["exit_code"] == code
    assert words[-1].lstrip("-") in answer["error"]["message"]


def test_a_stopped_call_answers_in_json_when_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kwdb_build.cli.building.make_workshop", stop)
    assert main(["build", "V1", "--home", str(tmp_path), "--json"]) == ExitCode.INTERRUPTED
    assert json.loads(capsys.readouterr().out)["error"]["reference"] == "interrupted"
