"""Runs and image builds on the real engine."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kwdb_build.engine.base import Mount
from kwdb_build.errors import EngineError
from tests.integration.enginebox import containers, shell, unique

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kwdb_build.engine.docker import DockerEngine

pytestmark = pytest.mark.engine
TOP = Path(__file__).resolve().parents[2]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "run.log"


def test_info(engine: DockerEngine) -> None:
    info = engine.info()
    assert info.kind in {"docker", "podman"}
    assert info.version[0].isdigit()
    assert info.address == engine.address


def test_output_reaches_callback_and_log_and_the_code_comes_back(engine: DockerEngine, image: str, log: Path) -> None:
    lines: list[str] = []
    spec = shell(image, "echo one; echo two >&2; printf three; exit 7")
    result = engine.run(spec, on_line=lines.append, log=log)
    assert (result.returncode, result.oom_killed, result.timed_out) == (7, False, False)
    assert sorted(lines) == ["one", "three", "two"]
    assert sorted(log.read_text().splitlines()) == sorted(lines)
    assert containers(engine, spec.name) == []


def test_a_failed_run_is_kept_when_asked_for_and_can_go_on(
    engine: DockerEngine, image: str, log: Path, tmp_path: Path
) -> None:
    tmp_path.chmod(0o777)
    spec = dataclasses.replace(
        shell(image, "cat /proc/sys/kernel/hostname; while test -e /at/wait; do sleep 0.1; done; test -e /at/mended", mounts=(Mount(source=tmp_path, target="/at"),)),
        keep_failed=True, hostname="elsewhere",
    )
    lines: list[str] = []
    result = engine.run(spec, on_line=lines.append, log=log)
    assert lines == ["elsewhere"]
    assert (result.returncode, result.kept != "") == (1, True)
    [kept] = containers(engine, spec.name)
    try:
        assert engine.remove_leftovers(spec.name) == 0, "the next run of that name leaves it alone"
        for name in ("mended", "wait"):
            (tmp_path / name).touch()
        with subprocess.Popen(result.kept.split(), stdout=subprocess.PIPE, text=True) as again:
            assert again.stdout is not None
            assert again.stdout.readline() == "elsewhere\n"
            assert engine.remove_leftovers(spec.name) == 0, "nor while it runs again"
            (tmp_path / "wait").unlink()
            assert again.wait(60) == 0
        (tmp_path / "mended").unlink()
        subprocess.run(result.removal.split(), check=True, stdout=subprocess.DEVNULL)
        assert containers(engine, spec.name) == []
    finally:
        engine._remove(kept)
    well = engine.run(dataclasses.replace(spec, argv=("sh", "-c", "exit 0")), on_line=lines.append, log=log)
    assert (well.returncode, well.kept) == (0, "")
    assert containers(engine, spec.name) == [], "a good one never stays"


_INTERACTIVE = """
import sys
from pathlib import Path
from kwdb_build.engine.base import RunSpec
from kwdb_build.engine.docker import DockerEngine
with DockerEngine.connect() as engine:
    spec = RunSpec(image=sys.argv[1], argv=("sh",), uid=1234, gid=1234, name=sys.argv[2], interactive=True,
                   environment={"PATH": "/bin:/usr/bin", "PS1": "inside> "})
    print("code", engine.run(spec, on_line=print, log=Path(sys.argv[3])).returncode)
"""


def test_a_shell_has_the_callers_terminal(engine: DockerEngine, image: str, log: Path) -> None:
    import pexpect

    name = unique("shell")
    child = pexpect.spawn(
        sys.executable, ["-c", _INTERACTIVE, image, name, str(log)], cwd=str(TOP), encoding="utf-8", timeout=60,
        dimensions=(33, 77),
    )
    child.expect_exact("inside> ")
    child.sendline("id -u; test -t 0 && echo a-$((40+2))-terminal; exit 5")
    child.expect_exact("1234")
    child.expect_exact("a-42-terminal")
    child.expect("code 5")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert containers(engine, name) == []


def test_much_output_is_whole(engine: DockerEngine, image: str, log: Path) -> None:
    script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done"
    lines: list[str] = []
    engine.run(shell(image, script), on_line=lines.append, log=log)
    assert lines == [f"line {number}" for number in range(20000)]


def test_nothing_but_what_was_given(engine: DockerEngine, image: str, log: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    (tmp_path / "fixed").mkdir()
    script = """
        id -u; id -g; cat /proc/self/status; cat /proc/net/dev
        touch /made 2>/dev/null && echo root is writable
        touch /fixed/made 2>/dev/null && echo fixed is writable
        touch /tmp/made && echo tmp is writable
        echo result > made; env
    """
    lines: list[str] = []
    engine.run(
        shell(
            image, script, uid=1234, gid=2345, workdir="/at/work", environment={"PATH": "/bin", "WHAT": "a b"},
            mounts=(Mount(source=shared, target="/at/work", read_only=False),
                    Mount(source=tmp_path / "fixed", target="/fixed")),
        ),
        on_line=lines.append, log=log,
    )
    assert lines[:2] == ["1234", "2345"]
    assert "CapEff:\t0000000000000000" in lines
    assert "CapBnd:\t0000000000000000" in lines
    assert "NoNewPrivs:\t1" in lines
    interfaces = {line.split(":")[0].strip() for line in lines if ":" in line and line.startswith((" ", "eth"))}
    assert "eth0" not in interfaces
    assert "tmp is writable" in lines
    assert "root is writable" not in lines
    assert "fixed is writable" not in lines
    assert "WHAT=a b" in lines
    given = {line.split("=")[0] for line in lines if "=" in line}
    assert given <= {"PATH", "WHAT", "HOSTNAME", "HOME", "PWD", "OLDPWD", "SHLVL", "_"}
    made = shared / "made"
    assert made.read_text() == "result\n"
    assert (made.stat().st_uid, made.stat().st_gid) == (1234, 2345)


def test_root_is_refused(engine: DockerEngine, image: str, log: Path) -> None:
    with pytest.raises(EngineError, match="never run as root"):
        engine.run(shell(image, "id", uid=0), on_line=print, log=log)


def test_memory_limit_is_recognised_when_a_child_is_killed(engine: DockerEngine, image: str, log: Path) -> None:
    spec = shell(image, "tail /dev/zero; exit 3", memory_bytes=64 << 20)
    result = engine.run(spec, on_line=lambda _: None, log=log)
    assert result.oom_killed
    assert result.returncode == 3


def test_time_limit(engine: DockerEngine, image: str, log: Path) -> None:
    spec = shell(image, "echo up; sleep 600", timeout_s=1)
    lines: list[str] = []
    result = engine.run(spec, on_line=lines.append, log=log)
    assert result.timed_out
    assert lines == ["up"]
    assert containers(engine, spec.name) == []


def test_a_failing_callback_leaves_no_container(engine: DockerEngine, image: str, log: Path) -> None:
    def refuse(line: str) -> None:
        raise ValueError(line)

    spec = shell(image, "echo up; sleep 600")
    with pytest.raises(ValueError, match="up"):
        engine.run(spec, on_line=refuse, log=log)
    assert containers(engine, spec.name) == []


def test_missing_image_and_missing_program(engine: DockerEngine, image: str, log: Path) -> None:
    with pytest.raises(EngineError, match="no such image"):
        engine.run(shell("kwdb-build-test/none:none", "true"), on_line=print, log=log)
    spec = dataclasses.replace(shell(image, ""), argv=("/bin/no-such-program",))
    lines: list[str] = []
    assert engine.run(spec, on_line=lines.append, log=log).returncode == 127
    assert "no-such-program" in "".join(lines)
    assert containers(engine, spec.name) == []


def test_directory_that_the_daemon_does_not_see(engine: DockerEngine, image: str, log: Path, tmp_path: Path) -> None:
    missing = Mount(source=tmp_path / "missing", target="/m")
    with pytest.raises(EngineError, match="refused") as caught:
        engine.run(shell(image, "true", mounts=(missing,)), on_line=print, log=log)
    assert "does not see that directory" in caught.value.hint
    assert not (tmp_path / "missing").exists()


def test_import_of_something_else_leaves_no_tag(engine: DockerEngine, tmp_path: Path) -> None:
    broken = tmp_path / "broken.tar"
    broken.write_bytes(b"this is no archive" * 100)
    with pytest.raises(EngineError):
        engine.import_base(broken, "kwdb-build-test/broken:1", environment={})
    assert engine.image_id("kwdb-build-test/broken:1") is None


def test_build_tags_only_a_whole_image(engine: DockerEngine, image: str, tmp_path: Path, log: Path) -> None:
    tag = f"kwdb-build-test/built:{unique('x')}"
    (tmp_path / "context").mkdir()
    recipe = tmp_path / "context" / "Dockerfile"
    recipe.write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nRUN echo fine; mkdir /done\nRUN echo broke here; exit 9\n")
    with pytest.raises(EngineError) as caught:
        engine.build_image(
            tmp_path / "context", dockerfile="Dockerfile", tag=tag, arguments={"BASE_IMAGE": image},
            on_line=lambda _: None, log=log,
        )
    assert "Step 4/4 : RUN echo broke here; exit 9" in caught.value.context
    assert "broke here" in caught.value.context
    assert "code: 9" in caught.value.context
    assert "fine" in log.read_text()
    assert engine.image_id(tag) is None
    base = engine.image_id(image)
    left = [entry["Id"] for entry in engine._api.images(all=True) if entry["ParentId"] == base]
    assert not left, "nothing nameless is left on top of the base"

    recipe.write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nRUN echo fine; mkdir /done\n")
    lines: list[str] = []
    identity = engine.build_image(
        tmp_path / "context", dockerfile="Dockerfile", tag=tag, arguments={"BASE_IMAGE": image}, on_line=lines.append,
        log=log,
    )
    try:
        assert engine.image_id(tag) == identity
        assert any(line.startswith("Step 3/3") for line in lines)
        engine.run(shell(tag, "ls -d /done"), on_line=lines.append, log=log)
        assert "/done" in lines
    finally:
        engine.remove_image(tag)


def test_malformed_recipe(engine: DockerEngine, tmp_path: Path, log: Path) -> None:
    (tmp_path / "Dockerfile").write_text("NONSENSE here\n")
    with pytest.raises(EngineError, match="refused") as caught:
        engine.build_image(
            tmp_path, dockerfile="Dockerfile", tag="kwdb-build-test/none:1", arguments={}, on_line=print, log=log
        )
    assert "NONSENSE" in caught.value.context


CHILD = """
    import sys
    from pathlib import Path
    from kwdb_build.engine.base import RunSpec
    from kwdb_build.engine.docker import DockerEngine

    image, name, log, script = sys.argv[1:]
    with DockerEngine.connect() as engine:
        spec = RunSpec(image=image, argv=("/bin/sh", "-c", script), environment={"PATH": "/bin"}, uid=1000, gid=1000,
                       name=name)
        engine.run(spec, on_line=lambda line: print(line, flush=True), log=Path(log))
"""


@contextlib.contextmanager
def running_child(image: str, name: str, log: Path) -> Iterator[subprocess.Popen[str]]:
    """Another kwdb-build in the middle of a run; it ends with the test at the latest."""
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), image, name, str(log), "echo up; sleep 600"],
        cwd=TOP, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(TOP)},
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "up\n"
            yield child
        finally:
            child.kill()


def test_ctrl_c_removes_the_container(engine: DockerEngine, image: str, log: Path) -> None:
    name = unique("interrupted")
    with running_child(image, name, log) as child:
        assert len(containers(engine, name)) == 1
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors
    assert containers(engine, name) == []


def test_left_over_of_a_killed_run_is_removed_by_the_next(engine: DockerEngine, image: str, log: Path) -> None:
    name = unique("killed")
    with running_child(image, name, log):
        left = containers(engine, name)
        engine.remove_leftovers(name)
        assert containers(engine, name) == left, "its owner lives"
    time.sleep(0.2)
    assert containers(engine, name) == left
    lines: list[str] = []
    result = engine.run(shell(image, "echo next", name=name), on_line=lines.append, log=log)
    assert (result.returncode, lines) == (0, ["next"])
    assert containers(engine, name) == []
