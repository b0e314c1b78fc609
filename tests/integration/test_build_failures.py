"""Builds that fail, for real: what is said, with which exit code, and what is left."""

from __future__ import annotations

import difflib
import platform
import re
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kwdb_build.build.caches import DIRECTORY, place_of
from kwdb_build.engine.docker import LABEL, DockerEngine
from kwdb_build.errors import ExitCode
from kwdb_build.model import Artifact, Toolchain
from kwdb_build.scratch import gate
from tests.conftest import missing
from tests.integration.tool import Tool, call, clean_environment
from tests.minikwdb.repositories import MiniRepositories

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]
MAIN = Path(__file__).parents[1] / "minikwdb" / "source" / "main"


@pytest.fixture
def warm_in(
    mini_build: Callable[[str], Artifact], mini_home: Path, mini_toolchain: Toolchain, repositories: MiniRepositories,
    engine_address: str,
) -> Callable[[Path], Tool]:
    """A command line whose home has nothing but warm caches."""

    def make(home: Path) -> Tool:
        mini_build("V1.1.0")
        target = place_of(home / DIRECTORY, mini_toolchain)
        target.parent.mkdir(parents=True, mode=0o700)
        subprocess.run(["cp", "-a", str(place_of(mini_home / DIRECTORY, mini_toolchain)), str(target)], check=True)
        return Tool(home=home, repositories=repositories, docker_host=engine_address)

    return make


def left(home: Path) -> list[str]:
    return [path.name for path in (*(home / "work").glob("build-*"), *(home / "artifacts").glob("*"))
            if not path.name.startswith(".")]


@pytest.mark.slow  # a container with too little memory rereads its programs again and again before it is killed
def test_a_compiler_that_the_kernel_kills_for_memory_is_called_so(warm_in: Callable[[Path], Tool], tmp_path: Path) -> None:
    tool = warm_in(tmp_path / "home")
    answer = tool("build", "V1.0.0", "--no-cache", "--memory", "100m", "--jobs", "2", timeout_s=600)
    assert answer.code == ExitCode.BUILD, answer.err
    assert "ran out of memory with 2 jobs" in answer.err
    assert "--jobs 1" in answer.err
    assert left(tool.home) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1200m,mode=711", "tmpfs", str(place)], check=False, capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        missing(f"the right to mount a tmpfs ({done.stderr.strip()})")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.slow
def test_a_disk_that_becomes_full_in_the_middle(warm_in: Callable[[Path], Tool], small_disk: Path) -> None:
    tool = warm_in(small_disk / "home")
    process = tool.begin("build", "V1.0.0", "--no-cache")
    deadline = time.monotonic() + 240
    while not list((tool.home / "work").glob("build-*/gopath/src/gitee.com/kwbasedb/build/CMakeCache.txt")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while process.poll() is None and file.write(bytes(1 << 20)):
                pass
        except OSError:
            pass
    _, err = process.communicate(timeout=300)
    assert process.returncode == ExitCode.SPACE, err
    assert "became full" in err
    assert "--home" in err
    assert left(tool.home) == []
    filler.unlink()
    again = tool("build", "V1.0.0", timeout_s=600)
    assert again.code == 0, "what was left of the failed build harms the next one\n" + again.err


@pytest.mark.slow
def test_a_store_without_room_and_a_kill_9_while_the_build_is_stored(
    warm_in: Callable[[Path], Tool], tmp_path: Path, mini_build: Callable[[str], Artifact]
) -> None:
    tool = warm_in(tmp_path / "home")
    artifacts = tool.home / "artifacts"
    artifacts.mkdir(mode=0o700)
    mounted = subprocess.run(
        # Bytes enough for every check before, names for half of the files.
        ["mount", "-t", "tmpfs", "-o", "size=600m,nr_inodes=7,mode=700", "tmpfs", str(artifacts)], check=False,
        capture_output=True, text=True,
    )
    if mounted.returncode != 0:
        missing(f"the right to mount a tmpfs ({mounted.stderr.strip()})")
    try:
        answer = tool("build", "V1.1.0", timeout_s=600)
        assert answer.code == ExitCode.SPACE, answer.err
        assert f"the file system of {artifacts} became full while storing the build" in answer.err
        assert "df -i" in answer.err
        assert [path.name for path in artifacts.iterdir()] == [".gate"]
        assert left(tool.home) == []

        subprocess.run(["mount", "-o", "remount,nr_inodes=100", str(artifacts)], check=True)
        process = tool.begin("build", "V1.1.0")
        while not (found := list(artifacts.glob(".adding-*"))):
            assert process.poll() is None, process.communicate()
            time.sleep(0.0005)
        process.send_signal(signal.SIGSTOP)
        [temporary] = found
        with gate(artifacts):  # which it takes for the rename that makes the build visible
            process.send_signal(signal.SIGCONT)
            while stat.S_IMODE(temporary.stat().st_mode) != 0o555:
                assert process.poll() is None, process.communicate()
                time.sleep(0.01)
            process.kill()
            process.communicate()
        assert sorted(path.name for path in artifacts.iterdir()) == sorted([temporary.name, ".gate"])

        again = tool("build", "V1.1.0", "--json", timeout_s=600)
        assert again.code == 0, again.err
        got = {entry["path"]: entry["sha256"] for entry in again.json["artifact"]["files"]}
        assert got == {record.path: record.sha256 for record in mini_build("V1.1.0").files}
        digest = again.json["artifact"]["key"]["digest"]
        assert sorted(path.name for path in artifacts.iterdir()) == sorted([digest, ".gate"])
        assert left(tool.home) == [digest]
        verified = call("artifact", "verify", "V1.1.0", "--home", str(tool.home))
        assert verified.code == 0, verified.err
    finally:
        subprocess.run(["umount", "--lazy", str(artifacts)], check=True)


@pytest.mark.slow
def test_a_failed_build_can_be_kept_and_looked_into(warm_in: Callable[[Path], Tool], tmp_path: Path) -> None:
    import pexpect

    tool = warm_in(tmp_path / "home")
    argv = tool.argv("build", "V1.1.2", "--keep-container", "--shell-on-failure")
    child = pexpect.spawn(
        argv[0], argv[1:], encoding="utf-8", timeout=300, dimensions=(40, 200),
        env=clean_environment({"TERM": "dumb"}),
    )
    child.expect_exact("kept: the working copy ")
    child.expect_exact("start --attach ")
    child.expect("[0-9a-f]{12}")
    container = child.match.group(0)
    try:
        child.expect_exact(f"rm --force {container}`, then `rm -rf {tool.home}/work/build-")
        child.expect_exact("a shell where the build failed")
        child.expect_exact("kwbasedb$ ")
        child.sendline("pwd; id -u; ls build/CMakeCache.txt")
        child.expect_exact("/kwdb/src/gitee.com/kwbasedb")
        child.expect_exact("build/CMakeCache.txt")
        child.sendline("exit")
        child.expect_exact("what to do:")
        child.expect_exact("exit code 7")
        assert "--keep-container" not in child.before
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == ExitCode.BUILD
        [kept] = (tool.home / "work").glob("build-*")
        # Mended by hand in the working copy, the same container builds on.
        file = kept / "gopath/src/gitee.com/kwbasedb/kwbase/pkg/server/stop.go"
        file.write_text(file.read_text().replace("func drainOnly() {", "func (s *Server) drainOnly() {"))
        again = subprocess.run(
            ["docker", "--host", tool.docker_host, "start", "--attach", container], check=False, capture_output=True,
            text=True, timeout=300,
        )
        assert again.returncode == 0, again.stdout + again.stderr
        assert (kept / "gopath/install/bin/kwbase").is_file()
        other = tool("build", "V1.1.2", timeout_s=300)
        assert other.code == ExitCode.BUILD
        assert kept.is_dir(), "another build leaves it alone"
    finally:
        subprocess.run(["docker", "--host", tool.docker_host, "rm", "--force", container], check=True,
                       capture_output=True)


def test_a_shell_needs_a_terminal(tmp_path: Path, repositories: MiniRepositories, engine_address: str) -> None:
    tool = Tool(home=tmp_path, repositories=repositories, docker_host=engine_address)
    answer = tool("build", "V1.1.2", "--shell-on-failure")
    assert answer.code == ExitCode.USAGE
    assert "terminal" in answer.err


OTHER_MACHINE = r"\267" if platform.machine() == "x86_64" else r"\076"
"""EM_AARCH64 or EM_X86_64, as printf takes it."""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (r"\binstall(?=:| kwdbts2-test)", "instal", r"No rule to make target [`']install'"),
        pytest.param(
            r"(?<=BUILDDIR\) install\n)",
            rf"\tprintf '\{OTHER_MACHINE}' | dd of=$(INSTALL_PATH)/lib/libcommon.so bs=1 seek=18 conv=notrunc\n",
            r"lib/libcommon\.so was built for EM_\w+, this machine needs EM_", marks=pytest.mark.slow,
        ),
    ], ids=["no target", "another architecture"],
)
def test_a_build_that_cannot_give_what_is_wanted(
    warm_in: Callable[[Path], Tool], tmp_path: Path, old: str, new: str, said: str
) -> None:
    tool = warm_in(tmp_path / "home")
    before = (MAIN / "Makefile").read_text()
    after = re.sub(old, new, before)
    assert after != before
    patch = tmp_path / "change.patch"
    patch.write_text("".join(difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), "a/Makefile", "b/Makefile"
    )))
    answer = tool("build", "V1.1.0", "--patch", str(patch))
    assert answer.code == ExitCode.BUILD, answer.err
    assert re.search(said, answer.err), answer.err
    assert "log:" in answer.err
    assert left(tool.home) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--make-var", "GOPATH=/x"), "cannot be set"), (("--make-var", "X"), "has no value"),
        (("--cmake-var", "A=$(id)"), "a shell acts on"), (("--make-var", "A=1", "--make-var", "A=2"), "twice"),
        (("--test", "no-such-test"), "kwbase-test"), (("--no-such-option",), "No such option"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_fetched(
    tmp_path: Path, repositories: MiniRepositories, engine_address: str, words: tuple[str, ...], said: str
) -> None:
    tool = Tool(home=tmp_path, repositories=repositories, docker_host=engine_address)
    answer = tool("build", "V1.0.0", *words)
    assert answer.code == ExitCode.USAGE
    assert said in answer.err
    assert not (tmp_path / "source").exists()


@pytest.mark.slow
def test_kill_9_in_the_middle_leaves_caches_sound_and_no_container_for_long(
    warm_in: Callable[[Path], Tool], tmp_path: Path, mini_build: Callable[[str], Artifact], engine: DockerEngine
) -> None:
    tool = warm_in(tmp_path / "home")
    for moment in ("CMakeCache.txt", "lib/libcommon.so", "lib/libkwdbts2.so"):
        process = tool.begin("build", "V1.1.0", "--json")
        deadline = time.monotonic() + 240
        while not list((tool.home / "work").glob(f"build-*/gopath/src/gitee.com/kwbasedb/build/{moment}")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
        process.communicate()
        assert not [path for path in (tool.home / "artifacts").glob("*") if not path.name.startswith(".")]
    answer = tool("build", "V1.1.0", "--json", timeout_s=600)
    assert answer.code == 0, answer.err
    got = {entry["path"]: entry["sha256"] for entry in answer.json["artifact"]["files"]}
    assert got == {record.path: record.sha256 for record in mini_build("V1.1.0").files}
    mounted = {
        mount["Source"] for found in engine._api.containers(all=True, filters={"label": LABEL}) for mount in found["Mounts"]
    }
    assert not [path for path in mounted if Path(path).is_relative_to(tool.home)]
    assert [path.name for path in (tool.home / "work").glob("build-*")] == []


@pytest.mark.slow
def test_own_tests_and_other_options(warm_in: Callable[[Path], Tool], tmp_path: Path) -> None:
    tool = warm_in(tmp_path / "home")
    plain = tool("build", "V1.1.0", "--json", "--test", "kwdbts2-test", "--test", "kwbase-test", timeout_s=900)
    assert plain.code == 0, plain.err
    assert "make kwdbts2-test: passed" in plain.err
    assert "make kwbase-test: passed" in plain.err
    asan = tool("build", "V1.1.0", "--json", "--asan", timeout_s=900)
    debug = tool("build", "V1.1.0", "--json", "--build-type", "Debug", timeout_s=900)
    keys = {answer.json["artifact"]["key"]["digest"] for answer in (plain, asan, debug) if answer.code == 0}
    assert len(keys) == 3, asan.err + debug.err
    libraries = Path(asan.json["artifact"]["path"]) / "lib" / "libkwdbts2.so"
    assert b"__asan_init" in libraries.read_bytes()


@pytest.mark.slow
def test_a_failed_test_of_kwdbs_own_says_what_it_said(warm_in: Callable[[Path], Tool], tmp_path: Path) -> None:
    tool = warm_in(tmp_path / "home")
    file = next(path for path in sorted((MAIN / "kwdbts2").rglob("*test*.cpp")) if "int main" in path.read_text())
    before = file.read_text()
    after = re.sub(r"(?m)^int main\(.*\{$", r'\g<0>\n  fprintf(stderr, "row 3: expected 7, got 8\\n");\n  return 1;', before)
    assert after != before
    name = file.relative_to(MAIN)
    patch = tmp_path / "change.patch"
    patch.write_text("".join(difflib.unified_diff(
        before.splitlines(keepends=True), ("#include <cstdio>\n" + after).splitlines(keepends=True), f"a/{name}", f"b/{name}"
    )))
    answer = tool("build", "V1.1.0", "--patch", str(patch), "--test", "kwdbts2-test", timeout_s=600)
    assert answer.code == ExitCode.BUILD, answer.err
    assert "make kwdbts2-test ended with exit code" in answer.err
    assert "  | row 3: expected 7, got 8" in answer.err
    assert "the build itself succeeded and is stored" in answer.err
    assert len(left(tool.home)) == 1, "the build"
