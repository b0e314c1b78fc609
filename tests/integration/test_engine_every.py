"""What every engine promises about a run, on each of them: Docker, Podman, and the sandbox."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from kwdb_build.engine.base import Engine, Mount, RunSpec
from kwdb_build.engine.choose import choose
from kwdb_build.errors import EngineError
from kwdb_build.toolchain.probe import kept_answers, probe_image
from kwdb_build.toolchain.requirements import Requirements
from tests.conftest import missing
from tests.integration.enginebox import shell, tiny_image, tiny_root, unique
from tests.integration.sandboxes import NoPodmanError, podman_service
from tests.integration.tool import call

pytestmark = pytest.mark.engine
TOP = Path(__file__).resolve().parents[2]
KINDS = ("docker", "podman", "sandbox")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """One engine with a tiny image in it, and how another process reaches it."""

    kind: str
    engine: Engine
    image: str
    docker_host: str
    home: Path


@pytest.fixture(scope="module", params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    kind = str(request.param)
    directory = tmp_path_factory.mktemp(kind)
    docker_host = ""
    with contextlib.ExitStack() as stack:
        if kind == "docker":
            docker_host = request.getfixturevalue("engine_address")
        if kind == "podman":
            try:
                docker_host = stack.enter_context(podman_service())
            except NoPodmanError as error:
                missing(f"podman: {error}")
        try:
            engine = stack.enter_context(choose(kind, docker_host=docker_host, place=directory / "sandbox"))
        except EngineError as error:
            missing(f"{kind}: {error.message} {error.context} ({error.hint})")
        image = stack.enter_context(tiny_image(engine, directory))
        yield Place(kind=kind, engine=engine, image=image, docker_host=docker_host, home=directory)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "run.log"


def marked(seconds: int = 600) -> tuple[str, str]:
    """A sleep that can be told from all others on this machine: the words of its command line, and itself."""
    word = f"{seconds}.{uuid.uuid4().int % 10**18:018d}"
    return word, f"sleep {word}"


def running(word: str) -> list[psutil.Process]:
    """Processes of this machine with exactly this word in their command line: the program itself, no shell around it."""
    return [
        process for process in psutil.process_iter(["cmdline", "status"])
        if word in (process.info["cmdline"] or ()) and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


def wait_until(true: Callable[[], object], what: str) -> None:
    for _ in range(600):
        if true():
            return
        time.sleep(0.05)
    pytest.fail(f"waited in vain: {what}")


def test_output_and_code(place: Place, log: Path) -> None:
    lines: list[str] = []
    spec = shell(place.image, "echo one; echo two >&2; printf three; exit 7")
    result = place.engine.run(spec, on_line=lines.append, log=log)
    assert (result.returncode, result.oom_killed, result.timed_out, result.kept) == (7, False, False, "")
    assert sorted(lines) == ["one", "three", "two"]
    assert sorted(log.read_text().splitlines()) == sorted(lines)


def test_much_output_is_whole(place: Place, log: Path) -> None:
    script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done"
    lines: list[str] = []
    place.engine.run(shell(place.image, script), on_line=lines.append, log=log)
    assert lines == [f"line {number}" for number in range(20000)]


def test_nothing_but_what_was_given(place: Place, log: Path, tmp_path: Path) -> None:
    shared, fixed = tmp_path / "shared", tmp_path / "fixed"
    for directory in (shared, fixed):
        directory.mkdir()
        directory.chmod(0o777)
    (fixed / "given").write_text("to be read\n")
    (tmp_path / "secret").write_text("of the host")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = f":{listener.getsockname()[1]:04X}"
        assert port in Path("/proc/net/tcp").read_text(), "the host itself sees it"
        script = f"""
            id -u; id -g; cat /proc/self/status; cat /proc/net/dev; cat /proc/net/tcp; cat /fixed/given
            touch /made 2>/dev/null && echo root is writable
            touch /bin/made 2>/dev/null && echo image is writable
            touch /fixed/made 2>/dev/null && echo fixed is writable
            touch /tmp/made && echo tmp is writable
            cat {tmp_path}/secret 2>/dev/null
            cat /proc/sys/kernel/hostname; echo result > made; env; ls -d /proc/[0-9]*; cat /proc/self/mounts
        """
        lines: list[str] = []
        spec = shell(
            place.image, script, uid=1234, gid=2345, workdir="/at/work", environment={"PATH": "/bin", "WHAT": "a b"},
            mounts=(Mount(source=shared, target="/at/work", read_only=False), Mount(source=fixed, target="/fixed")),
        )
        if os.geteuid() != 0:
            spec = dataclasses.replace(spec, uid=os.geteuid(), gid=os.getegid())
        place.engine.run(spec, on_line=lines.append, log=log)
    assert lines[:2] == [str(spec.uid), str(spec.gid)]
    assert {"CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000",
            "NoNewPrivs:\t1"} <= set(lines)
    devices = lines.index(next(line for line in lines if line.lstrip().startswith("face ")))
    interfaces = [line.split(":")[0].strip() for line in lines[devices + 1:] if re.match(r"\s*\w+:\s+\d", line)]
    assert interfaces == ["lo"]
    assert not [line for line in lines if port in line], "loopback is its own"
    assert "to be read" in lines
    assert [line for line in lines if line.endswith("is writable")] == ["tmp is writable"]
    assert "of the host" not in "".join(lines)
    assert "kwdb-build" in lines
    given = {line.split("=")[0] for line in lines if re.match(r"\w+=", line)}
    assert {"PATH", "WHAT"} <= given <= {"PATH", "WHAT", "HOSTNAME", "HOME", "PWD", "OLDPWD", "SHLVL", "_", "TERM", "container"}
    assert "WHAT=a b" in lines
    assert len([line for line in lines if line.startswith("/proc/")]) < 8, "no process but its own"
    made = shared / "made"
    assert made.read_text() == "result\n"
    assert (made.stat().st_uid, made.stat().st_gid) == (spec.uid, spec.gid)


def test_root_is_refused(place: Place, log: Path) -> None:
    with pytest.raises(EngineError, match="never run as root"):
        place.engine.run(shell(place.image, "id", uid=0), on_line=print, log=log)


def test_memory_limit(place: Place, log: Path) -> None:
    result = place.engine.run(shell(place.image, "tail /dev/zero; exit 3", memory_bytes=64 << 20), on_line=print, log=log)
    assert result.returncode == 3
    if place.kind == "sandbox" and "no control group" not in log.read_text():
        assert result.oom_killed  # Docker's own word is looked at in test_engine_docker.py; Podman has none
    fine = place.engine.run(shell(place.image, "exit 0", memory_bytes=64 << 20), on_line=print, log=log)
    assert (fine.returncode, fine.oom_killed) == (0, False)


def test_cores_are_limited(place: Place, log: Path) -> None:
    """The kernel's own words about the group that a process of the run is in, or the cores it may use."""
    word, sleep = marked()
    spec = shell(place.image, f"echo up; exec {sleep}", cpus=0.5)
    seen: list[str] = []

    def look(_: str) -> None:
        wait_until(lambda: running(word), "the program runs")
        seen.append(cores_of(running(word)[0].pid))
        running(word)[0].kill()

    place.engine.run(spec, on_line=look, log=log)
    assert seen in (["0.5"], ["1 cores"])
    if seen == ["1 cores"]:
        assert "whole cores only" in log.read_text()


def cores_of(pid: int) -> str:
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        for mounted in ("cpu", "cpu,cpuacct", ""):
            group = Path("/sys/fs/cgroup", mounted, path.lstrip("/"))
            if "cpu" in names.split(",") and (group / "cpu.cfs_quota_us").is_file():
                quota = int((group / "cpu.cfs_quota_us").read_text())
                if quota > 0:
                    return f"{quota / int((group / 'cpu.cfs_period_us').read_text()):g}"
            if not names and (group / "cpu.max").is_file():
                limit, period = (group / "cpu.max").read_text().split()
                if limit != "max":
                    return f"{int(limit) / int(period):g}"
    return f"{len(os.sched_getaffinity(pid))} cores"


def test_time_limit(place: Place, log: Path) -> None:
    word, sleep = marked()
    lines: list[str] = []
    result = place.engine.run(shell(place.image, f"echo up; {sleep}", timeout_s=1), on_line=lines.append, log=log)
    assert result.timed_out
    assert lines == ["up"]
    assert running(word) == []


def test_a_failing_callback_leaves_nothing(place: Place, log: Path) -> None:
    word, sleep = marked()

    def refuse(line: str) -> None:
        raise ValueError(line)

    with pytest.raises(ValueError, match="up"):
        place.engine.run(shell(place.image, f"{sleep} & echo up; {sleep}"), on_line=refuse, log=log)
    assert running(word) == []


def test_missing_image_program_and_directory(place: Place, log: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no such image"):
        place.engine.run(shell("kwdb-build-test/none:none", "true"), on_line=print, log=log)
    missing = Mount(source=tmp_path / "missing", target="/m")
    with pytest.raises(EngineError, match="refused"):
        place.engine.run(shell(place.image, "true", mounts=(missing,)), on_line=print, log=log)
    assert not (tmp_path / "missing").exists()
    spec = dataclasses.replace(shell(place.image, ""), argv=("/bin/no-such-program",))
    if place.kind == "podman":  # without an init (catatonit) it is Podman itself that refuses
        assert "no-such-program" in ending_of(place, spec, log)
    else:
        assert place.engine.run(spec, on_line=print, log=log).returncode == 127


def ending_of(place: Place, spec: RunSpec, log: Path) -> str:
    """All that a run, or its refusal, says."""
    lines: list[str] = []
    try:
        place.engine.run(spec, on_line=lines.append, log=log)
    except EngineError as error:
        lines.append(error.context)
    return "\n".join(lines)


def test_two_at_once(place: Place, tmp_path: Path) -> None:
    """Both are in the middle at the same moment: each waits for the other's file."""
    tmp_path.chmod(0o777)
    results = {}

    def one(mine: str, other: str) -> None:
        script = f"touch /at/{mine}; while ! [ -e /at/{other} ]; do sleep 0.05; done; id -u"
        spec = shell(
            place.image, script, mounts=(Mount(source=tmp_path, target="/at", read_only=False),), timeout_s=60,
            **({} if os.geteuid() == 0 else {"uid": os.geteuid(), "gid": os.getegid()}),
        )
        with choose(place.kind, docker_host=place.docker_host, place=place.home / "sandbox") as engine:
            results[mine] = engine.run(spec, on_line=lambda _: None, log=tmp_path / f"{mine}.log").returncode

    threads = [threading.Thread(target=one, args=pair) for pair in (("a", "b"), ("b", "a"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {"a": 0, "b": 0}


CHILD = """
import sys
from pathlib import Path
import kwdb_build.__main__ as tool
from kwdb_build.engine.choose import choose
from tests.integration.enginebox import shell
kind, docker_host, place, image, name, script = sys.argv[1:]
tool.end_in_order()
with choose(kind, docker_host=docker_host, place=Path(place)) as engine:
    engine.run(shell(image, script, name=name), on_line=lambda line: print(line, flush=True), log=Path(place, "child.log"))
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_end_of_the_tool_is_the_end_of_the_run(place: Place, log: Path, signum: signal.Signals) -> None:
    word, sleep = marked()
    name = unique("ended")
    directory = place.home / "sandbox"
    directory.mkdir(exist_ok=True)
    argv = [sys.executable, "-c", CHILD, place.kind, place.docker_host, str(directory), place.image, name,
            f"{sleep} & echo up; {sleep}"]
    with subprocess.Popen(
        argv, cwd=TOP, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(TOP)}
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "up\n", child.stderr.read() if child.stderr else ""
            wait_until(lambda: len(running(word)) == 2, "both programs run")
            child.send_signal(signum)
            child.communicate(timeout=60)
        finally:
            child.kill()
    if signum == signal.SIGKILL and place.kind != "sandbox":
        # a daemon's container outlives a client that was killed; the next run of its name removes it
        result = place.engine.run(shell(place.image, "exit 0", name=name), on_line=print, log=log)
        assert result.returncode == 0
    wait_until(lambda: running(word) == [], "nothing of it runs any more")


def test_an_image_recipe(place: Place, log: Path, tmp_path: Path) -> None:
    """ARG, FROM, ENV, COPY and RUN have the same outcome; a failing one leaves no image."""
    tag = f"kwdb-build-test/built:{uuid.uuid4().hex[:12]}"
    context = tmp_path / "context"
    (context / "root" / "opt" / "made").mkdir(parents=True)
    (context / "root" / "opt" / "made" / "file").write_text("copied\n")
    recipe = context / "Dockerfile"
    recipe.write_text(
        "# a comment\nARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nARG WORD=usual\nENV PATH=/bin\nCOPY root/ /\n"
        'RUN set -eu; \\\n    id -u > /opt/made/user; \\\n    echo "$WORD" > /opt/made/word; echo fine\nRUN mkdir /more\n'
    )
    arguments = {"BASE_IMAGE": place.image, "WORD": "given"}
    lines: list[str] = []
    identity = place.engine.build_image(
        context, dockerfile="Dockerfile", tag=tag, arguments=arguments, on_line=lines.append, log=log
    )
    try:
        assert place.engine.image_id(tag) == identity
        assert "fine" in lines
        seen: list[str] = []
        script = "cat /opt/made/user /opt/made/word /opt/made/file; ls -d /more"
        place.engine.run(shell(tag, script), on_line=seen.append, log=log)
        assert seen == ["0", "given", "copied", "/more"]
        before: list[str] = []
        place.engine.run(shell(place.image, "ls -d /more /opt"), on_line=before.append, log=log)
        assert "/more" not in before, "the base stays as it was"
    finally:
        place.engine.remove_image(tag)
    recipe.write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nENV PATH=/bin\nRUN echo fine; mkdir /done\nRUN echo broke here; exit 9\n")
    with pytest.raises(EngineError) as caught:
        place.engine.build_image(
            context, dockerfile="Dockerfile", tag=tag, arguments=arguments, on_line=lines.append, log=log
        )
    assert "RUN echo broke here; exit 9" in caught.value.context
    assert "9" in caught.value.context.splitlines()[-1]
    assert place.engine.image_id(tag) is None


def test_carried_to_another_engine_and_back(place: Place, tmp_path: Path, log: Path) -> None:
    """What export_image wrote is a whole image on the sandbox, and the sandbox's is one here."""
    place.engine.export_image(place.image, tmp_path / "image.tar")
    with choose("sandbox", docker_host="", place=tmp_path / "other") as other:
        assert other.load_image(tmp_path / "image.tar").tag == place.image
        lines: list[str] = []
        other.run(shell(place.image, "echo carried"), on_line=lines.append, log=log)
        other.export_image(place.image, tmp_path / "back.tar")
    tag = f"kwdb-build-test/tiny:{hashlib.sha256(place.image.encode()).hexdigest()[:12]}"
    _retag(tmp_path / "back.tar", place.image, tag)
    try:
        assert place.engine.load_image(tmp_path / "back.tar").tag == tag
        place.engine.run(shell(tag, "echo and back"), on_line=lines.append, log=log)
    finally:
        place.engine.remove_image(tag)
    assert lines == ["carried", "and back"]


def test_what_an_image_answered_goes_with_the_image(place: Place, tmp_path: Path, log: Path) -> None:
    def ask() -> Path:
        before = set(kept_answers(known))
        probe_image(
            place.engine, identity, log, requirements=Requirements(rows=()), environment={"PATH": "/bin"}, known=known
        )
        [new] = set(kept_answers(known)) - before
        return new

    def prune(*words: str, **more: str) -> list[str]:
        settings = {"KWDB_BUILD_ENGINE": place.kind, "KWDB_BUILD_DOCKER_HOST": place.docker_host, **more}
        answer = call("cache", "prune", "--home", str(place.home), "--json", *words, **settings)
        assert answer.code == 0, answer.err
        return list(answer.json["image_answers"])

    known = place.home / "images"
    archive, tag = tiny_root(tmp_path / "other.tar"), f"kwdb-build-test/tiny:{uuid.uuid4().hex[:12]}"
    with tarfile.open(archive, "a") as tar:
        tar.addfile(tarfile.TarInfo("not-in-the-image-of-the-other-tests"))
    identity = place.engine.import_base(archive, tag, environment={})
    try:
        answer = ask()
        assert prune() == []
    finally:
        place.engine.remove_image(tag)
    other = known / "probe-of-another-engine.txt"
    other.write_text(answer.read_text().replace(f"@image {place.kind} ", "@image another "))
    old = known / "probe-that-does-not-say-whose.txt"
    old.write_text("@tool go\n@end\n")
    assert prune("-n") == sorted(map(str, (answer, old)))
    assert prune(KWDB_BUILD_ENGINE="docker", KWDB_BUILD_DOCKER_HOST="unix:///no/such/socket") == []
    assert {answer, old} < set(known.iterdir()), "nobody could be asked"
    assert prune() == sorted(map(str, (answer, old)))
    assert list(known.glob("probe-*")) == [other]
    other.unlink()


def _retag(path: Path, old: str, new: str) -> None:
    """Another name of the same length in the archive's manifest."""
    assert len(old) == len(new)
    content = path.read_bytes()
    assert content.count(old.encode()) == 1
    path.write_bytes(content.replace(old.encode(), new.encode()))
