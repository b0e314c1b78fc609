from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
from pathlib import Path

import pytest

PATH = "/srv/kwdb/a-rather-long-directory/that-does-not-fit/into-a-narrow-terminal/home/runs/0001-x/report.html"
SHOW = f"""
import time
from kwdb_build.console import Console
console = Console()
with console.step(1, 2, "build"):
    console.update("compiling engine.cpp", done=45, total=100)
    console.note("a note with [brackets] that stays")
    time.sleep(0.3)
    console.update("2 files \\u2014 done")
try:
    with console.step(2, 2, "stop"):
        console.update("never shown when it failed")
        raise RuntimeError
except RuntimeError:
    pass
console.facts("Upgraded", [("report", {PATH!r}), ("downtime", "0.7 s\\nstop 0.5 s")], style="green")
console.table("", ("run", "store"), [("0001", {PATH!r})])
console.table("", ("run", "outcome"), [("0001", "upgraded")])
"""


def piped(code: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, timeout=30, stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONUTF8": "0", **environment},
    )


def on_a_terminal(code: str, *, columns: int, answer: bytes = b"", **environment: str) -> str:
    """What a terminal of that width is sent."""
    master, slave = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), "LC_ALL": "C.UTF-8", **environment}
    with subprocess.Popen([sys.executable, "-c", code], stdin=slave, stdout=slave, stderr=slave, env=env) as child:
        os.close(slave)
        if answer:
            os.write(master, answer)
        seen = b""
        while select.select([master], [], [], 30)[0]:
            try:
                chunk = os.read(master, 1 << 16)
            except OSError:
                break
            if not chunk:
                break
            seen += chunk
        assert child.wait(30) == 0, seen.decode("utf-8", "replace")
    os.close(master)
    return seen.decode("utf-8", "replace")


def test_a_terminal_that_cannot_redraw_a_line_gets_lines_as_a_file_does() -> None:
    code = "from kwdb_build import console; console.HEARTBEAT_S = 0.1\n" + SHOW
    shown = on_a_terminal(code, columns=80, TERM="dumb")
    assert "[1/2] build ..." in shown
    assert "[1/2] build: compiling engine.cpp  45 % (0 s)" in shown


def test_off_a_terminal_there_are_plain_whole_lines() -> None:
    done = piped(SHOW, LC_ALL="C.UTF-8")
    assert (done.returncode, done.stdout) == (0, b"")
    lines = done.stderr.decode().splitlines()
    assert "\x1b" not in done.stderr.decode()
    assert lines[0] == "[1/2] build ..."
    assert lines[1] == "a note with [brackets] that stays"
    assert lines[2].startswith("[1/2] ✓ build  (0.")
    assert lines[2].endswith("s)  2 files — done")
    assert lines[4].startswith("[2/2] ✗ stop  (")
    assert "never shown" not in done.stderr.decode()
    assert f"  report    {PATH}" in lines
    assert "            stop 0.5 s" in lines
    assert any(PATH in line and line.startswith("│ 0001") for line in lines)


def test_what_a_file_or_an_archive_says_is_shown_and_not_obeyed() -> None:
    """A name that clears the screen, moves the cursor over what was said, or sets the terminal's title."""
    hostile = "\x1b[2J\x1b]0;title\x07 \x9b1A\x00"
    code = (
        "from kwdb_build.console import Console\nfrom kwdb_build.errors import KwdbBuildError\nconsole = Console()\n"
        f"bad = {hostile!r}\nconsole.note(bad)\nconsole.table('', ('a', 'b'), [(bad, 'x')], data=True)\n"
        "console.facts('t', [(bad, bad)])\nconsole.error(KwdbBuildError(bad, context=bad, hint=bad))\n"
        "with console.step(1, 1, bad):\n    console.update(bad)"
    )
    done = piped(code, LC_ALL="C.UTF-8")
    said = (done.stdout + done.stderr).decode()
    assert [mark for mark in hostile if not mark.isprintable() and mark in said] == []
    assert "\\x1b[2J\\x1b]0;title\\x07 \\x9b1A\\x00" in said


def test_without_utf8_everything_is_ascii() -> None:
    done = piped(SHOW, LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    text = done.stderr.decode("ascii")
    assert "[1/2] ok build" in text
    assert "2 files ? done" in text
    assert "| 0001 |" in text


@pytest.mark.parametrize("columns", [40, 80])
def test_a_narrow_terminal_leaves_paths_whole(columns: int) -> None:
    seen = on_a_terminal(SHOW, columns=columns)
    assert seen.count(PATH) == 2, "in the facts and in the table that became blocks"
    assert "│ 0001" in seen, "a table that fits stays a table"
    assert "45 %" in seen


def test_no_color_means_no_color() -> None:
    coloured, plain = (on_a_terminal(SHOW, columns=100, **env) for env in ({}, {"NO_COLOR": "1"}))
    assert "\x1b[32m" in coloured or "\x1b[1;32m" in coloured
    assert "\x1b[32m" not in plain
    assert "\x1b[1;32m" not in plain


@pytest.mark.parametrize(("typed", "said"), [(b"y\n", "True"), (b"\n", "False"), (b"no\n", "False")])
def test_a_question_stops_the_live_line_until_it_is_answered(typed: bytes, said: str) -> None:
    code = (
        "from kwdb_build.console import Console\nconsole = Console()\n"
        "with console.step(1, 1, 'gate'):\n    found = console.confirm('Go on?')\nconsole.note(f'said {found}')"
    )
    seen = on_a_terminal(code, columns=80, answer=typed)
    assert f"said {said}" in seen
    assert "Go on? [y/N] " in seen


@pytest.mark.parametrize("stream", ["closed", "full", "hung up"])
def test_words_for_people_never_fail(stream: str, tmp_path: Path) -> None:
    """stderr is a closed pipe, a full disk, or a terminal that is gone; the run goes on to its end."""
    done = tmp_path / "done"
    code = SHOW + f"\nopen({str(done)!r}, 'w').write('yes')"
    if stream == "full":
        fd = os.open("/dev/full", os.O_WRONLY)
    elif stream == "closed":
        reader, fd = os.pipe()
        os.close(reader)
    else:
        master, fd = pty.openpty()
        os.close(master)
    try:
        subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, stdout=fd, stderr=fd, timeout=30, check=False)
    finally:
        os.close(fd)
    assert done.read_text() == "yes"


def test_data_is_one_document_on_stdout() -> None:
    done = piped("from kwdb_build.console import Console\nConsole(as_json=True).data({'name': 'ü'})", LC_ALL="C.UTF-8")
    assert json.loads(done.stdout) == {"schema": 1, "name": "ü"}
    assert done.stderr == b""
