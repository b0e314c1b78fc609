"""A captured command as a script, a unit and a document: they say the same, show no secret, and run."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kwdb_build.errors import UsageError
from kwdb_build.model import Capabilities, StartCommand
from kwdb_build.server import capture, export, proc, startflags, usage
from tests.unit.server.test_server_saved import deployment

if TYPE_CHECKING:
    from collections.abc import Mapping

SHOW = (
    "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd(), os.getsid(0), os.getpid(), "
    "os.umask(0), sorted(os.getgroups())]))"
)
_TEXT = st.binary(max_size=15).filter(lambda data: b"\0" not in data).map(os.fsdecode)
_NAME = st.from_regex(r"[A-Z][A-Z_]{0,8}", fullmatch=True).filter(lambda name: name not in {"LC_CTYPE", "PYTHONHOME"})
_TEMPORARY = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
needs_tools = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ("setpriv", "prlimit", "setsid")), reason="needs util-linux"
)


def command(argv: tuple[str, ...], environ: Mapping[str, str], cwd: Path = Path("/")) -> StartCommand:
    """As this very process was started, but for its words."""
    own = capture._start_command(os.getpid(), argv, cwd, proc.Environment(variables={}))
    return dataclasses.replace(
        own, argv=argv, executable=Path(argv[0]), environ=dict(environ), dropped={"NOTIFY_SOCKET": "gone"},
        stdout="pipe:[4]", stderr="pipe:[4]",
    )


def run(start: StartCommand) -> bytes:
    text = export.shell_text(start, redact=False)
    return subprocess.run(["sh"], input=os.fsencode(text), capture_output=True, check=True, cwd="/").stdout


@needs_tools
@_TEMPORARY
@given(arguments=st.lists(_TEXT, max_size=4), environ=st.dictionaries(_NAME, _TEXT, max_size=4))
def test_the_script_runs_the_very_same_command(
    tmp_path: Path, arguments: list[str], environ: dict[str, str]
) -> None:
    place = tmp_path / "a b'ä"
    place.mkdir(exist_ok=True)
    start = command((sys.executable, "-I", "-X", "utf8", "-c", SHOW, *arguments), environ, place)
    argv, seen, cwd, session, pid, umask, groups = json.loads(run(dataclasses.replace(start, umask=0o027)))
    assert argv == arguments
    assert {name: seen[name] for name in environ} == environ
    assert set(seen) - set(environ) <= {"LC_CTYPE"}
    assert (cwd, session, umask, groups) == (str(place), pid, 0o022, sorted(os.getgroups()))


@needs_tools
def test_limits_and_scheduling_are_set() -> None:
    start = dataclasses.replace(
        command(("/bin/sh", "-c", "ulimit -n; ulimit -s; ulimit -c; cut -d' ' -f19 /proc/$$/stat; cat /proc/$$/oom_score_adj"),
                {"PATH": os.defpath}),
        limits={"nofile": (200, 4096), "stack": (4 << 20, -1), "core": (0, -1)}, nice=5, oom_score_adj=500,
    )
    assert run(start).split() == [b"200", b"4096", b"0", b"5", b"500"]


def test_redacted_text_tells_names_and_no_values() -> None:
    start = command(
        ("./kwbase", "start", "--import-password=s3cret"),
        {"KW_KEY": "hunter2", "EMPTY": "", "MY_SETTING": "hunter3", "KW_VGROUP_NUM": "2"},
    )
    for text in (export.shell_text(start, redact=True), export.unit_text(start, redact=True)):
        assert not any(secret in text for secret in ("s3cret", "hunter2", "hunter3"))
        assert "KW_KEY=<redacted>" in text
        assert "KW_VGROUP_NUM=2" in text
        assert "NOTIFY_SOCKET (gone)" in text
    subprocess.run(["sh", "-n"], input=export.shell_text(start, redact=True), text=True, check=True)


def test_a_strangers_name_does_not_end_a_comment() -> None:
    start = dataclasses.replace(
        command(("/bin/true",), {}), dropped={"LISTEN_X\necho broken": "gone"}, stdout="socket:[1]\necho broken",
    )
    assert "\necho broken" not in export.shell_text(start, redact=False)
    assert "\necho broken" not in export.unit_text(start, redact=False)


@_TEMPORARY
@given(arguments=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12), max_size=4))
def test_a_unit_keeps_every_word_in_its_own_quotes(arguments: list[str]) -> None:
    start = command(("./kwbase", "start", *arguments), {})
    (line,) = [one for one in export.unit_text(start, redact=False).split("\n") if one.startswith("ExecStart=")]
    words = shlex.split(line.removeprefix("ExecStart=@").replace("$$", "$").replace("%%", "%"))
    assert len(words) == len(startflags.without_background(start.argv)) + 1
    assert words[0] == start.executable.name
    assert all(word.isprintable() or not word.isascii() for word in words)


def test_what_a_unit_holds() -> None:
    start = dataclasses.replace(
        command(("./kwbase", "start-single-node", "--locality=a$b%c", "--background"), {"A": 'b"\\\n%'}, Path("/o p%q")),
        executable=Path("/o p%q/kwbase"), background=True, umask=0o077, nice=3, oom_score_adj=-5, ionice=(2, 6),
        scheduling=(3, 0), stdout="/var/log/a b", stderr="/dev/null", no_new_privileges=True,
        capabilities=Capabilities(bounding=(1 << 41) - 1 & ~(1 << 25), ambient=1 << 14), limits={"nofile": (5, -1)},
    )
    lines = export.unit_text(start, redact=False).splitlines()
    assert 'ExecStart=@"/o p%%q/kwbase" "./kwbase" "start-single-node" "--locality=a$$b%%c"' in lines
    assert 'Environment="A=b\\"\\\\\\n%%"' in lines
    assert {
        "WorkingDirectory=/o p%%q", "UMask=0077", "Nice=3", "OOMScoreAdjust=-5", "IOSchedulingClass=best-effort",
        "IOSchedulingPriority=6", "CPUSchedulingPolicy=batch", "StandardOutput=append:/var/log/a b",
        "StandardError=null", "LimitNOFILE=5:infinity", "AmbientCapabilities=CAP_IPC_LOCK", "NoNewPrivileges=yes",
        "Type=notify", "TimeoutStopSec=infinity",
    } <= set(lines)


@pytest.mark.parametrize("changes", [
    {"cwd": Path("/a\nb")}, {"argv": ("k", "start", "\udcff")}, {"executable": Path("/it's/kwbase")},
])
def test_what_a_unit_cannot_hold_is_a_clear_error(changes: dict[str, object]) -> None:
    start = dataclasses.replace(command(("k", "start"), {}), **changes)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"unit file|systemd"):
        export.unit_text(start, redact=False)


def test_a_document_tells_flags_given_from_defaults() -> None:
    start = command(("./kwbase", "start-single-node", "--insecure", "--store=/d", "--import-password=x"), {"A": "b"})
    known = usage.parse(
        "Flags:\n  -s, --store StoreSpec   where\n      --cache bytes    size of\n      the cache (default 128 MiB)\n"
        "      --insecure       no security\n"
    )
    shown = export.document(deployment(start), secrets=False, known=known, digests={"/k": "0"}, certificates=())
    assert shown["flags"]["given"] == {
        "insecure": ["true"], "store": ["/d"], "import-password": [startflags.REDACTED],
    }
    assert shown["flags"]["default"] == {"cache": "128 MiB"}
    assert shown["effective"]["http"] == ":8080"
    assert shown["deployment"]["start"]["environ"] == {"A": startflags.REDACTED}
    whole = export.document(deployment(start), secrets=True, known=known, digests={}, certificates=())
    assert whole["deployment"]["start"]["environ"] == {"A": "b"}
    json.dumps(whole)


def test_flags_of_a_help_text() -> None:
    found = usage.parse(
        "start a node\n\nUsage:\n  kwbase start [flags]\n\nFlags:\n      --attrs string      a list of\n"
        '  -s, --store strings   the path (default "kwbase-data")\n      --background\n  -h, --help\n\n'
        "Global Flags:\n      --logtostderr Severity[=DEFAULT]   logs (default NONE)\n"
    )
    assert {name: (flag.short, flag.default) for name, flag in found.items()} == {
        "attrs": ("", ""), "store": ("s", "kwbase-data"), "background": ("", ""), "help": ("h", ""),
        "logtostderr": ("", "NONE"),
    }
