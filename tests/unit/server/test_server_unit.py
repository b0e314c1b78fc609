"""Units as systemctl shows them, what is written for them, and what is compared after a start. Outputs of systemd 252."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kwdb_build.errors import UsageError
from kwdb_build.model import StartCommand
from kwdb_build.server import compare, listing, script, systemd, unit
from kwdb_build.server.unit import Unit, parse_facts

SHOWN = """\
Type=simple
MainPID=119
ExecStop={ path=/bin/kill ; argv[]=/bin/kill $MAINPID ; ignore_errors=no ; start_time=[n/a] ; stop_time=[n/a] ; pid=0 ; code=(null) ; status=0/0 }
Result=success
KillMode=control-group
KillSignal=15
LoadState=loaded
ActiveState=active
SubState=running
FragmentPath=/etc/systemd/system/kaiwudb.service
UnitFileState=disabled
NeedDaemonReload=no
RefuseManualStart=no
RefuseManualStop=no
ExecMainCode=0
ExecMainStatus=0
Job=0
EnvironmentFiles=/etc/kaiwudb/script/kaiwudb_env (ignore_errors=no)
EnvironmentFiles=/srv/a b/env (ignore_errors=yes)
"""


def test_the_installers_unit() -> None:
    facts = parse_facts(SHOWN)
    assert (facts.main_pid, facts.load, facts.active, facts.kill_signal, facts.busy) == (119, "loaded", "active", 15, False)
    assert facts.exec_stop == ("/bin/kill $MAINPID",)
    assert facts.environment_files == (Path("/etc/kaiwudb/script/kaiwudb_env"), Path("/srv/a b/env"))
    assert facts.only_kills
    assert not facts.stops_by_itself
    text = systemd.drop_in_text(Unit(name="kw@a%b.service"), facts)
    assert "\nExecStop=\n" in text
    assert "\nTimeoutStopSec=infinity\n" in text
    assert "\nRestart=no\n" in text
    assert "AssertPathExists=!/run/systemd/system/kw@a%%b.service.d/kwdb-build.hold\n" in text
    assert "KillSignal" not in text


@pytest.mark.parametrize(("command", "plain"), [
    ("/bin/kill $MAINPID", True), ("/usr/bin/kill -s TERM ${MAINPID}", True), ("/bin/kill -15 $MAINPID", True),
    ("/bin/sh -c kill -TERM $MAINPID", True), ("/bin/kill -9 $MAINPID", False), ("/bin/kill -INT $MAINPID", False),
    ("/bin/sh -c kill $MAINPID; sleep 1", False), ("/opt/kw/bin/kwbase quit --insecure", False),
])
def test_stop_commands(command: str, plain: bool) -> None:
    facts = parse_facts(SHOWN.replace("/bin/kill $MAINPID ;", f"{command} ;"))
    assert facts.exec_stop == (command,)
    assert (facts.only_kills, facts.stops_by_itself) == (plain, not plain)
    assert ("KillSignal=SIGCONT" in systemd.drop_in_text(Unit(name="kw.service"), facts)) is not plain


def test_a_unit_that_is_never_signalled_by_systemd_is_meanwhile() -> None:
    assert "\nKillMode=process\n" in systemd.drop_in_text(
        Unit(name="kw.service"), parse_facts(SHOWN.replace("control-group", "none"))
    )


def test_how_a_main_process_ended() -> None:
    ended = SHOWN.replace("ExecMainCode=0", "ExecMainCode=2").replace("ExecMainStatus=0", "ExecMainStatus=15")
    assert parse_facts(ended).exit_code == -15
    assert parse_facts(SHOWN.replace("ExecMainStatus=0", "ExecMainStatus=3")).exit_code == 3
    assert parse_facts(SHOWN.replace("Job=0", "Job=17")).busy


@pytest.mark.parametrize("name", ["systemd:kw@1.service", "systemd-user:1000:kw.service"])
def test_names(name: str) -> None:
    found = Unit.parse(name)
    assert found is not None
    assert str(found) == name
    assert str(found.drop_in_directory).startswith("/run/user/1000/" if "user:" in name else "/run/systemd/system/")
    assert Unit.parse("supervisord") is None
    assert unit.parse_facts("").load == ""


def test_commands_are_split_and_nothing_is_expanded() -> None:
    assert script.parse("supervisorctl stop 'my db' $HOME", "--stop-cmd") == ("supervisorctl", "stop", "my db", "$HOME")
    assert script.parse("", "--stop-cmd") == ()
    for wrong in ("it's", "  "):
        with pytest.raises(UsageError, match="--stop-cmd"):
            script.parse(wrong, "--stop-cmd")


def test_versions_of_a_metrics_page() -> None:
    page = '# TYPE build_timestamp gauge\nbuild_timestamp{tag="V3.1.0",go_version="go1.22.10"} 1.7e+09\n'
    assert listing.parse_version(page) == "V3.1.0"
    assert listing.parse_version("# nothing\n") == ""


def test_a_process_is_compared_with_a_captured_one() -> None:
    from kwdb_build.server import capture, proc

    pid = os.getpid()
    environ, _ = capture.filter_environment(proc.parse_environ(proc.read_bytes(pid, "environ")))
    same = StartCommand(
        argv=proc.parse_cmdline(proc.read_bytes(pid, "cmdline")), background=False, cwd=Path.cwd(),
        executable=Path("/x"), environ=environ, dropped={}, uid=os.geteuid(), gid=os.getegid(), groups=(), limits={},
        oom_score_adj=0, nice=0, stdout="", stderr="",
    )
    assert compare.differences(same, pid) == ()
    import dataclasses

    other = dataclasses.replace(same, argv=("kwbase", "start"), environ={**environ, "KW_VGROUP_NUM": "2", "LESS": "-R x"})
    found = {one.text: one.decisive for one in compare.differences(other, pid)}
    assert found["the variable KW_VGROUP_NUM is gone"]
    assert [decisive for text, decisive in found.items() if "LESS" in text] == [False]
    assert any("command line" in text and decisive for text, decisive in found.items())
