"""The launcher with real programs: surroundings, failures, and what must not be visible."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import stat
import sys
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kwdb_build import command
from kwdb_build.errors import NotStoppedError, StartError
from kwdb_build.server import locks, proc, spawn
from kwdb_build.server.start import Notify
from tests.integration.serverbox import QUIET

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which needs root")
SHELL = Path("/bin/sh")


def wanted(script: str, **changes: object) -> spawn.Specification:
    values: dict[str, object] = {
        "argv": ("a name", "-c", script), "executable": SHELL, "environ": {"PATH": os.defpath}, "cwd": Path("/"),
        "uid": os.getuid(), "gid": os.getgid(), "groups": tuple(os.getgroups()),
    }
    return spawn.Specification(**values | changes)  # type: ignore[arg-type]


def run(script: str, **changes: object) -> str:
    code, output = spawn.run_as(wanted(script, **changes), timeout_s=30)
    assert code == 0, output
    return output


def test_session_descriptors_umask_and_signals() -> None:
    old = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        output = run("ls /proc/self/fd; umask; cut -d' ' -f1,5,6 /proc/$$/stat; grep SigIgn /proc/$$/status")
    finally:
        signal.signal(signal.SIGUSR1, old)
    *fds, umask, ids, ignored = output.splitlines()
    assert fds == ["0", "1", "2", "3"]  # 3 is what ls itself reads
    assert umask == "0022"
    assert len(set(ids.split())) == 1
    usual = {signal.SIGPIPE, signal.SIGUSR1, signal.SIGXFSZ, signal.SIGINT, signal.SIGHUP}
    assert not any(int(ignored.split()[1], 16) >> (number - 1) & 1 for number in usual)


def test_argv_environment_and_directory_to_the_byte(tmp_path: Path) -> None:
    place = tmp_path / "ö ' \udcff"
    place.mkdir()
    environ = {"A": "", "B": "x=y\n\udcfe 'ü'", "PATH": os.defpath}
    output = run("tr '\\0' '|' </proc/$$/cmdline; pwd; tr '\\0' '|' </proc/$$/environ", cwd=place, environ=environ)
    assert output.startswith("a name|-c|")
    assert os.fsencode(place).decode("utf-8", "replace") in output
    assert "A=|B=x=y\n\N{REPLACEMENT CHARACTER} 'ü'|PATH=" in output


_BYTES = st.binary(max_size=20).filter(lambda data: b"\0" not in data)
_VARIABLE = st.binary(min_size=1, max_size=12).filter(lambda data: not {*b"\0="} & {*data})


@settings(max_examples=30)
@given(words=st.lists(_BYTES, max_size=5), variables=st.dictionaries(_VARIABLE, _BYTES, max_size=5))
def test_any_command_line_and_environment_arrives(words: list[bytes], variables: dict[bytes, bytes]) -> None:
    """The whole way: through our JSON, the launcher and its execve, into a process of its own."""
    show = "/bin/cat /proc/$$/cmdline; echo THE-END-OF-THE-COMMAND-LINE; /bin/cat /proc/$$/environ"
    argv = ("a name", "-c", show, *map(os.fsdecode, words))
    environ = {os.fsdecode(name): os.fsdecode(value) for name, value in variables.items()}
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with os.fdopen(reader, "rb") as stream:
        pid = spawn.launch(wanted("", argv=argv, environ=environ), stdout=writer, stderr=writer)
        os.close(writer)
        cmdline, _, environment = stream.read().partition(b"\0THE-END-OF-THE-COMMAND-LINE\n")
    assert command.reap(pid, 30) == 0
    assert cmdline.split(b"\0")[3:] == words
    assert environment == b"".join(name + b"=" + value + b"\0" for name, value in variables.items())


def test_limits_and_priorities() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    output = run(
        "ulimit -Sn; ulimit -Hn; ulimit -c; cat /proc/self/oom_score_adj; cut -d' ' -f19 /proc/$$/stat",
        limits={"nofile": (100, min(hard, 200) if hard > 0 else 200), "core": (0, 0)}, oom_score_adj=500, nice=7,
    )
    assert output.split() == ["100", str(min(hard, 200) if hard > 0 else 200), "0", "500", "7"]


@needs_root
def test_another_user_without_ways_back() -> None:
    output = run("id -u; id -g; id -G; grep ^Uid /proc/$$/status", uid=NOBODY, gid=NOBODY, groups=(NOBODY, 7))
    uid, gid, groups, status = output.splitlines()
    assert (uid, gid) == (str(NOBODY), str(NOBODY))
    assert sorted(groups.split()) == sorted([str(NOBODY), "7"])
    assert status.split()[1:] == [str(NOBODY)] * 4


def as_nobody(script: str) -> str:
    """What a Python of this package says when an unprivileged user runs it (started as root, rights given up)."""
    code, output = spawn.run_as(spawn.Specification(
        argv=("python", "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{script}"), executable=Path(sys.executable),
        environ={"PATH": os.defpath}, cwd=Path("/"), uid=0, gid=0, groups=(),
    ), timeout_s=60)
    assert code == 0, output
    return output


@needs_root
def test_a_limit_that_cannot_be_restored_is_said_clearly() -> None:
    output = as_nobody(
        "import os, resource, shutil\nfrom pathlib import Path\nfrom kwdb_build.server import launch\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (500, 500))\n"
        f"os.setgroups([]); os.setresgid({NOBODY}, {NOBODY}, {NOBODY}); os.setresuid({NOBODY}, {NOBODY}, {NOBODY})\n"
        "launch._limits({'limits': {'nofile': (400, 9000)}})\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE))\n"
        "try:\n    launch._limits({'limits': {'nofile': (9000, 9000)}})\n"
        "except ValueError as error:\n    print(error)\n"
    )
    reachable, refused = output.splitlines()
    assert reachable == "(400, 500)"
    assert "limit nofile was soft 9000" in refused
    assert "only go up to 500" in refused
    assert "root" in refused


@pytest.mark.parametrize(("changes", "step"), [
    ({"executable": Path("/no/such/kwbase")}, "execute a name"),
    ({"cwd": Path("/no/such/place")}, "working directory"),
    ({"executable": Path("/etc/passwd")}, "execute a name"),
])
def test_failures_name_their_step(changes: dict[str, object], step: str) -> None:
    with pytest.raises(StartError) as caught:
        spawn.run_as(wanted("true", **changes), timeout_s=30)
    assert step in caught.value.message
    assert caught.value.context


def test_an_open_executable_needs_no_path(tmp_path: Path) -> None:
    copy = tmp_path / "gone"
    shutil.copy(SHELL.resolve(), copy)
    fd = os.open(copy, os.O_RDONLY | os.O_CLOEXEC)
    copy.unlink()
    try:
        assert run("echo here", executable=fd) == "here\n"
    finally:
        os.close(fd)


def test_exit_codes_and_a_program_that_does_not_end() -> None:
    assert spawn.run_as(wanted("echo out; echo err >&2; exit 3"), timeout_s=30) == (3, "out\nerr\n")
    assert spawn.run_as(wanted("kill -9 $$"), timeout_s=30)[0] == -signal.SIGKILL
    assert spawn.run_as(wanted("echo partly; exec sleep 600"), timeout_s=0.5) == (None, "partly\n")


def test_no_value_of_the_environment_is_in_any_argv(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    real = command.spawn

    def spying(argv: list[str], **options: object) -> int:
        seen.extend(argv)
        seen.append(json.dumps(options["env"]))
        return real(argv, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(command, "spawn", spying)
    assert run("echo $SECRET", environ={"SECRET": "hunter2"}) == "hunter2\n"
    assert seen
    assert not any("hunter2" in word for word in seen)


def test_a_large_environment_passes() -> None:
    environ = {f"NAME_{number}": "x" * 1000 for number in range(300)} | {"PATH": os.defpath}
    assert run("env | grep -c ^NAME_", environ=environ) == "300\n"


def zombies() -> set[int]:
    children = (pid for pid in psutil.pids() if os.getpid() in proc.ancestors(pid))
    return {pid for pid in children if (state := proc.read_stat(pid)) is not None and state.state == "Z"}


def test_many_launches_leave_no_descriptors_and_no_zombies() -> None:
    others = zombies()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        run("true")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert zombies() <= others


def test_the_notify_socket_is_private_and_goes_away() -> None:
    notify = Notify(os.getuid(), os.getgid())
    try:
        assert stat.S_IMODE(notify.directory.stat().st_mode) == 0o700
        assert stat.S_IMODE(notify.path.stat().st_mode) == 0o600
        assert not notify.poll()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.connect(str(notify.path))
            sender.send(b"STATUS=starting")
            assert not notify.poll()
            sender.send(b"STATUS=up\nREADY=1\n")
        assert notify.poll()
        assert notify.poll()
    finally:
        notify.close()
    assert not notify.directory.exists()


def test_a_lock_is_seen_with_its_holder_and_its_file_proves_nothing(tmp_path: Path) -> None:
    assert locks.holder(tmp_path) is None
    (tmp_path / "LOCK").touch()
    assert locks.holder(tmp_path) is None
    script = "import fcntl, sys, time; f = open('LOCK', 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print('ok', flush=True); time.sleep(600)"
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = spawn.launch(
        wanted("", argv=("holder", "-c", script), executable=Path(sys.executable), cwd=tmp_path), stdout=writer, stderr=2
    )
    os.close(writer)
    try:
        assert os.read(reader, 10) == b"ok\n"
        assert locks.holder(tmp_path) == pid
        assert locks.holders([tmp_path, tmp_path / "none"]) == {tmp_path: pid}
        with pytest.raises(NotStoppedError) as caught:
            locks.wait_free([tmp_path], 0.2, QUIET)
        assert f"pid {pid}" in caught.value.context
        assert locks.holder(tmp_path) == pid  # asking has not let go of it
    finally:
        command.kill_child(pid)
        os.close(reader)
    locks.wait_free([tmp_path], 5, QUIET)
