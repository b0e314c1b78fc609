"""Parsers of /proc, from what Linux 5.15 and 6.x print, and against this very process."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwdb_build.errors import AccessError, ServerNotFoundError
from kwdb_build.server import proc

STATUS = """Name:\tkwbase
Umask:\t0027
State:\tS (sleeping)
Tgid:\t412
Pid:\t412
PPid:\t1
Uid:\t1000\t1001\t1000\t1000
Gid:\t100\t101\t100\t100
Groups:\t100 27 998
VmPeak:\t  470000 kB
"""
LIMITS = """Limit                     Soft Limit           Hard Limit           Units
Max cpu time              unlimited            unlimited            seconds
Max core file size        0                    unlimited            bytes
Max processes             96365                96365                processes
Max open files            1024                 1048576              files
Max locked memory         8388608              8388608              bytes
Max realtime timeout      unlimited            unlimited            us
"""
MAPS = """00400000-09000000 r-xp 00000000 08:01 131 /opt/kw db/bin/kwbase
7f0000000000-7f0000021000 rw-p 00000000 00:00 0
7f1000000000-7f1000100000 r-xp 00000000 08:01 132                        /opt/kw db/lib/libkwdbts2.so
7f1000100000-7f1000200000 r--p 00100000 08:01 132                        /opt/kw db/lib/libkwdbts2.so
7f1100000000-7f1100100000 r-xp 00000000 08:01 133                        /opt/kw db/lib/libcommon.so (deleted)
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]
"""
V1 = "9:name=systemd:/system.slice/kaiwudb.service\n4:memory:/jobs/7\n2:cpu,cpuacct:/\n0::/\n"
V2 = "0::/system.slice/docker-3f2a.scope\n"


def test_status() -> None:
    status = proc.parse_status(STATUS)
    assert status == proc.Status(
        name="kwbase", state="S", ppid=1, uid=1001, gid=101, groups=(100, 27, 998), umask=0o027
    )


def test_stat_with_a_name_that_looks_like_fields() -> None:
    text = "412 (kw) S 9 (x) R 7 412 400 0 -1 4194560 1 2 3 4 5 6 7 8 20 -5 16 0 88123 1 2"
    stat = proc.parse_stat(text)
    assert (stat.state, stat.ppid, stat.session, stat.nice, stat.start_ticks) == ("R", 7, 400, -5, 88123)


def test_limits() -> None:
    assert proc.parse_limits(LIMITS) == {
        "cpu": (-1, -1), "core": (0, -1), "nproc": (96365, 96365), "nofile": (1024, 1048576),
        "memlock": (8388608, 8388608), "rttime": (-1, -1),
    }


def test_limits_of_this_process_agree_with_the_kernel() -> None:
    found = proc.parse_limits(proc.read_text(os.getpid(), "limits"))
    assert found["nofile"] == resource.getrlimit(resource.RLIMIT_NOFILE)
    assert found["memlock"] == resource.getrlimit(resource.RLIMIT_MEMLOCK)
    assert len(found) == 16


def test_maps() -> None:
    assert proc.parse_maps(MAPS) == (
        "/opt/kw db/bin/kwbase", "/opt/kw db/lib/libkwdbts2.so", "/opt/kw db/lib/libcommon.so (deleted)",
    )


def test_cgroups_of_both_versions() -> None:
    assert proc.parse_cgroup(V1) == ("/system.slice/kaiwudb.service", "/jobs/7")
    assert proc.parse_cgroup(V2) == ("/system.slice/docker-3f2a.scope",)
    assert proc.parse_cgroup("0::/\n") == ()


def test_the_first_of_two_variables_counts_and_strays_are_told_apart() -> None:
    found = proc.parse_environ(b"A=1\0B=x=y\0A=2\0stray\0=odd\0E=\0")
    assert found.variables == {"A": "1", "B": "x=y", "E": ""}
    assert found.stray == ("stray", "=odd")
    assert "x=y" not in repr(found)


_ARGUMENT = st.binary(max_size=20).filter(lambda data: b"\0" not in data)


@given(st.lists(_ARGUMENT, min_size=1))
def test_any_command_line_survives(arguments: list[bytes]) -> None:
    parsed = proc.parse_cmdline(b"".join(argument + b"\0" for argument in arguments))
    assert [os.fsencode(argument) for argument in parsed] == arguments


@given(st.dictionaries(_ARGUMENT.filter(lambda name: name != b"" and b"=" not in name), _ARGUMENT))
def test_any_environment_survives(variables: dict[bytes, bytes]) -> None:
    data = b"".join(name + b"=" + value + b"\0" for name, value in variables.items())
    found = proc.parse_environ(data).variables
    assert {os.fsencode(name): os.fsencode(value) for name, value in found.items()} == variables


def test_a_process_is_known_by_pid_and_start_time() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        began = proc.start_time(child.pid)
        age = psutil.Process(child.pid).create_time() - psutil.Process().create_time()
        assert abs(began - proc.start_time(os.getpid()) - age) < 0.1, "it counts in seconds"
        assert proc.is_alive(child.pid, began)
        assert not proc.is_alive(child.pid, began - 3600)
        assert not proc.is_alive(child.pid, began - 1), "a pid that was used again"
        child.send_signal(signal.SIGKILL)
        with proc.Watch(child.pid) as watch:
            assert watch.wait(10)
        assert not proc.is_alive(child.pid, began)  # not collected yet: a zombie is not alive
    finally:
        child.kill()
        child.communicate()
    with pytest.raises(ServerNotFoundError):
        proc.start_time(child.pid)


@pytest.mark.parametrize("pidfd", [True, False])
def test_watch_signals_only_its_own_process(monkeypatch: pytest.MonkeyPatch, pidfd: bool) -> None:
    if not pidfd:
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
        with proc.Watch(child.pid) as watch:
            assert watch.alive
            assert not watch.wait(0.1)
            watch.send(signal.SIGTERM)
            assert watch.wait(10)
            assert not watch.alive
        assert child.wait() == -signal.SIGTERM
        watch.send(signal.SIGTERM)  # nothing there any more, and nothing happens


def test_members_of_a_session() -> None:
    with subprocess.Popen(
        ["sh", "-c", "sleep 60 & echo $!; wait"], start_new_session=True, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        sleeper = int(child.stdout.readline())
        assert proc.members(child.pid) == tuple(sorted((child.pid, sleeper)))
        assert child.pid in proc.ancestors(sleeper)
        os.killpg(child.pid, signal.SIGKILL)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which needs root")
def test_another_users_environment_is_an_access_error() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
        script = (
            "import os, sys\n"
            "sys.path[:0] = sys.argv[2:]\n"
            "from kwdb_build.server import proc\n"
            "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
            "try:\n    proc.read_bytes(int(sys.argv[1]), 'environ')\n"
            "except Exception as error:\n    print(type(error).__name__, error.message, error.hint)\n"
        )
        answer = subprocess.run(
            [sys.executable, "-c", script, str(child.pid), *sys.path], capture_output=True, text=True, check=True
        )
        child.kill()
    assert answer.stdout.startswith(AccessError.__name__)
    assert f"process {child.pid}" in answer.stdout
    assert "root" in answer.stdout
