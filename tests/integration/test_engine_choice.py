"""Which engine is taken, what is said about it, and what each of them lacks where none can be used."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from kwdb_build.config import Settings, load
from kwdb_build.console import Console
from kwdb_build.engine import address
from kwdb_build.engine.base import Mount
from kwdb_build.engine.choose import choose
from kwdb_build.engine.docker import DockerEngine
from kwdb_build.engine.sandbox import SandboxEngine
from kwdb_build.errors import EngineError, ExitCode, UsageError
from kwdb_build.upgrade.workshop import Workshop
from tests.conftest import missing
from tests.integration.enginebox import shell, tiny_image, tiny_root
from tests.integration.sandboxes import NoPodmanError, podman_service

# docker-py drops its socket without closing it when a connect fails
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")
TOP = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _collect() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def no_daemon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine where no engine listens anywhere."""
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "CONTAINER_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setattr(address, "DEFAULT_SOCKET", tmp_path / "docker.sock")
    monkeypatch.setattr(address, "PODMAN_SOCKET", tmp_path / "podman.sock")


@pytest.fixture
def sandbox(tmp_path: Path) -> SandboxEngine:
    try:
        return SandboxEngine.open(tmp_path / "sandbox")
    except EngineError as error:
        missing(f"the sandbox: {error.message} {error.context} ({error.hint})")


@pytest.mark.usefixtures("sandbox")
def test_without_a_daemon_it_is_the_sandbox_and_that_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    with choose("", docker_host="", place=tmp_path / "sandbox", say=said.append) as engine:
        assert engine.info().kind == "sandbox"
    [text] = said
    assert text.startswith("engine: sandbox ")
    assert "docker: " in text
    assert "podman: " in text
    assert not (tmp_path / "sandbox").exists(), "to ask writes nothing"


@pytest.mark.usefixtures("sandbox")
def test_the_workshop_says_it_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    workshop = Workshop(Settings(home=tmp_path), Console(), tmp_path)
    assert workshop.engine is workshop.engine
    assert capfd.readouterr().err.count("engine: sandbox") == 1


@pytest.mark.parametrize("wanted", ["docker", "podman"])
def test_a_named_engine_is_not_replaced(tmp_path: Path, wanted: str) -> None:
    with pytest.raises(EngineError) as caught:
        choose(wanted, docker_host="", place=tmp_path)
    assert f"{wanted}.sock" in caught.value.context
    assert caught.value.exit_code == ExitCode.ENGINE


def test_neither_is_a_named_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError):
        choose("", docker_host=f"unix://{tmp_path}/other.sock", place=tmp_path)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/named.sock")
    with pytest.raises(EngineError) as caught:
        choose("", docker_host="", place=tmp_path)
    assert "named.sock" in caught.value.context


def test_podman_without_its_socket(tmp_path: Path) -> None:
    with pytest.raises(EngineError) as caught:
        choose("podman", docker_host="", place=tmp_path)
    assert "podman" in caught.value.hint


def test_docker_is_not_podman(engine_address: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="is docker, not podman") as caught:
        choose("podman", docker_host=engine_address, place=tmp_path)
    assert "--engine docker" in caught.value.hint


def test_none_at_all_tells_what_each_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="no engine to build in") as caught:
        choose("", docker_host="", place=tmp_path)
    assert [line.split(":")[0] for line in caught.value.context.splitlines() if not line.startswith(" ")] == [
        "docker", "podman", "sandbox",
    ]
    assert "install bubblewrap" in caught.value.hint


def test_unknown_name() -> None:
    with pytest.raises(UsageError, match="unknown engine"):
        choose("lxc", docker_host="", place=Path("/nonexistent"))
    with pytest.raises(UsageError, match="engine"):
        load({"engine": "lxc"})


def test_an_old_bubblewrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho bubblewrap 0.3.3\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(EngineError, match="too old"):
        SandboxEngine.open(tmp_path)


def test_no_user_namespaces(tmp_path: Path, sandbox: SandboxEngine) -> None:
    """The kernel itself refuses: a limit of 0 in a user namespace of our own, in which the tool then runs."""
    script = """
        import sys
        from pathlib import Path
        from kwdb_build.engine.sandbox import SandboxEngine
        from kwdb_build.errors import EngineError
        Path("/proc/sys/user/max_user_namespaces").write_text("0")
        try:
            SandboxEngine.open(Path(sys.argv[1]))
        except EngineError as error:
            print(error.message, "|", error.context, "|", error.hint)
    """
    answer = subprocess.run(
        ["unshare", "--user", "--map-root-user", sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        check=False, capture_output=True, text=True, cwd=TOP, env={**os.environ, "PYTHONPATH": str(TOP)}, timeout=60,
    )
    assert "user namespaces are switched off here" in answer.stdout, answer.stderr
    assert "user.max_user_namespaces = 0" in answer.stdout
    assert "sysctl -w user.max_user_namespaces=15000" in answer.stdout


def test_no_space_for_an_image_leaves_none(sandbox: SandboxEngine, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounts a small file system")
    small = tmp_path / "small"
    small.mkdir()
    archive = tiny_root(tmp_path / "tiny.tar")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", small], check=True)
    try:
        with pytest.raises(EngineError) as caught:
            SandboxEngine.open(small).import_base(archive, "kwdb-build-test/big:1", environment={})
        assert "No space left" in caught.value.message + caught.value.context
        assert SandboxEngine.open(small).image_id("kwdb-build-test/big:1") is None
        assert sorted(path.name for path in (small / "images").iterdir()) == [".gate"]
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_broken_archive_leaves_no_image(sandbox: SandboxEngine, tmp_path: Path) -> None:
    (tmp_path / "broken.tar").write_bytes(b"this is no archive" * 1000)
    with pytest.raises(EngineError, match="cannot be unpacked"):
        sandbox.import_base(tmp_path / "broken.tar", "kwdb-build-test/broken:1", environment={})
    assert sandbox.image_id("kwdb-build-test/broken:1") is None


def test_a_base_that_is_only_in_a_registry(sandbox: SandboxEngine, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nRUN true\n")
    with pytest.raises(EngineError, match="cannot fetch one from a registry") as caught:
        sandbox.build_image(
            tmp_path, dockerfile="Dockerfile", tag="kwdb-build-test/none:1",
            arguments={"BASE_IMAGE": "registry.invalid/debian@sha256:0"}, on_line=print, log=tmp_path / "log",
        )
    assert "base_image" in caught.value.hint


def test_an_archive_cannot_reach_out_of_its_image(sandbox: SandboxEngine, tmp_path: Path) -> None:
    """A link to a place outside, and a file through it: both stay inside."""
    outside = tmp_path / "outside"
    outside.mkdir()
    made = tmp_path / "made"
    made.mkdir()
    (made / "escape").symlink_to(outside)
    subprocess.run(["tar", "-cf", tmp_path / "bad.tar", "-C", made, "escape"], check=True)
    (made / "escape").unlink()
    (made / "escape").mkdir()
    (made / "escape" / "file").write_text("x")
    subprocess.run(["tar", "-rf", tmp_path / "bad.tar", "-C", made, "escape/file"], check=True)
    subprocess.run(["tar", "-rPf", tmp_path / "bad.tar", f"--transform=s,^,{tmp_path}/../../..,", str(made / "escape" / "file")], check=True)
    try:
        sandbox.import_base(tmp_path / "bad.tar", "kwdb-build-test/bad:1", environment={})
    except EngineError as error:
        assert "cannot be unpacked" in error.message  # noqa: PT017 - refused or kept inside, both are right
    assert list(outside.iterdir()) == []


ORDINARY = """
import os, sys
from pathlib import Path
import kwdb_build.engine.again, kwdb_build.engine.limits, kwdb_build.engine.sandbox, tests.integration.enginebox
import filelock, json, logging, resource, selectors, tarfile, uuid, encodings.idna, encodings.ascii, encodings.latin_1
from kwdb_build.engine.base import Mount
from kwdb_build.engine.sandbox import SandboxEngine
from tests.integration.enginebox import shell
os.setgroups([]); os.setresgid(4321, 4321, 4321); os.setresuid(4321, 4321, 4321)
place = Path(sys.argv[1])
engine = SandboxEngine.open(place / "sandbox")
engine.import_base(place / "tiny.tar", "kwdb-build-test/tiny:1", environment={})
(place / "mine").mkdir()
mount = (Mount(source=place / "mine", target="/mine", read_only=False),)
spec = shell("kwdb-build-test/tiny:1", "id -u; cat /proc/self/status; echo made > /mine/file; touch /bin/x", uid=4321,
             gid=4321, mounts=mount)
print(engine.run(spec, on_line=print, log=place / "log").returncode)
print("owner", (place / "mine" / "file").stat().st_uid)
"""


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that other users can reach: pytest's own are closed to them."""
    with tempfile.TemporaryDirectory(prefix="kwdb-build-test-") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.mark.usefixtures("sandbox")
def test_as_an_ordinary_user(open_place: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("all other tests run as an ordinary user already")
    place = open_place
    tiny_root(place / "tiny.tar")
    shutil.chown(place, 4321, 4321)
    answer = subprocess.run(
        [sys.executable, "-c", ORDINARY, str(place)], check=False, capture_output=True, text=True, cwd=TOP,
        env={**os.environ, "PYTHONPATH": str(TOP)}, timeout=120,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    lines = answer.stdout.splitlines()
    assert "4321" in lines
    assert {"CapEff:\t0000000000000000", "NoNewPrivs:\t1"} <= set(lines)
    assert lines[-2:] == ["1", "owner 4321"], "the image is read-only"


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_podman_of_an_ordinary_user(open_place: Path) -> None:
    """Its ids are others outside: only a kept one can write to the directories of the user."""
    user = 4321
    written = open_place / "out"
    written.mkdir(mode=0o700)
    shutil.chown(written, user, user)
    try:
        with (
            podman_service(user) as address, DockerEngine.connect(address, kind="podman") as engine,
            tiny_image(engine, open_place) as image,
        ):
            result = engine.run(
                shell(image, "touch /out/x && id -u", uid=user, gid=user, memory_bytes=1 << 28,
                      mounts=(Mount(source=written, target="/out", read_only=False),)),
                on_line=print, log=open_place / "log",
            )
    except NoPodmanError as error:
        missing(f"podman: {error}")
    assert result.returncode == 0, (open_place / "log").read_text()
    assert (written / "x").stat().st_uid == user


@pytest.mark.usefixtures("sandbox")
def test_root_of_a_container(tmp_path: Path) -> None:
    """Root with the capabilities that Docker leaves and SYS_ADMIN, so without NET_ADMIN."""
    if os.geteuid() != 0:
        pytest.skip("drops capabilities of root")
    tiny_root(tmp_path / "tiny.tar")
    script = """
        import sys
        from pathlib import Path
        from kwdb_build.engine.sandbox import SandboxEngine
        from tests.integration.enginebox import shell
        place = Path(sys.argv[1])
        engine = SandboxEngine.open(place / "sandbox")
        engine.import_base(place / "tiny.tar", "kwdb-build-test/tiny:1", environment={})
        engine.run(shell("kwdb-build-test/tiny:1", "id -u"), on_line=print, log=place / "log")
    """
    kept = "chown,dac_override,fowner,fsetid,kill,setgid,setuid,setpcap,net_bind_service,net_raw,sys_chroot,mknod"
    bounding = "-all," + ",".join(f"+{name}" for name in [*kept.split(","), "audit_write", "setfcap", "sys_admin"])
    answer = subprocess.run(
        ["setpriv", f"--bounding-set={bounding}", sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        check=False, capture_output=True, text=True, cwd=TOP, env={**os.environ, "PYTHONPATH": str(TOP)}, timeout=120,
    )
    assert (answer.returncode, answer.stdout) == (0, "1000\n"), answer.stderr


INTERACTIVE = """
import os, sys
from pathlib import Path
from kwdb_build.engine.base import RunSpec
from kwdb_build.engine.sandbox import SandboxEngine
user = os.geteuid() or 1234
with SandboxEngine.open(Path(sys.argv[1])) as engine:
    spec = RunSpec(image=sys.argv[2], argv=("sh",), uid=user, gid=user, interactive=True,
                   environment={"PATH": "/bin", "PS1": "inside> "})
    print("code", engine.run(spec, on_line=print, log=Path(sys.argv[1], "log")).returncode)
"""


def test_a_shell_has_a_terminal_of_its_own(sandbox: SandboxEngine, tmp_path: Path) -> None:
    import pexpect

    with tiny_image(sandbox, tmp_path) as image:
        child = pexpect.spawn(
            sys.executable, ["-c", INTERACTIVE, str(tmp_path / "sandbox"), image], cwd=str(TOP), encoding="utf-8",
            timeout=60, env={**os.environ, "PYTHONPATH": str(TOP)},
        )
        child.expect_exact("inside> ")
        child.sendline("test -t 0 && echo a-$((40+2))-terminal; sleep 600")
        child.expect_exact("a-42-terminal")
        for _ in range(60):  # the first may come before the sleep does, when it is the shell's own
            child.sendintr()
            if child.expect_exact(["inside> ", pexpect.TIMEOUT], timeout=1) == 0:
                break
        child.sendline("exit 0")
        child.expect("code [0-9]")  # a shell may complain that it cannot give the terminal back to a session outside
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 0


def test_a_failed_run_can_go_on(sandbox: SandboxEngine, tmp_path: Path) -> None:
    import dataclasses

    work = tmp_path / "work"
    work.mkdir()
    work.chmod(0o777)
    with tiny_image(sandbox, tmp_path) as image:
        from kwdb_build.engine.base import Mount

        spec = shell(
            image, "echo $SECRET; test -e /given/mended", mounts=(Mount(source=work, target="/given"),), keep_failed=True,
            environment={"PATH": "/bin", "SECRET": "xyzzy"},
        )
        if os.geteuid() != 0:
            spec = dataclasses.replace(spec, uid=os.geteuid(), gid=os.getegid())
        result = sandbox.run(spec, on_line=print, log=tmp_path / "log")
        assert result.returncode == 1
        assert "xyzzy" not in result.kept
        [kept] = (tmp_path / "sandbox" / "kept").glob("*.json")
        assert kept.stat().st_mode & 0o777 == 0o600
        (work / "mended").touch()
        again = subprocess.run(
            result.kept.split(), check=False, capture_output=True, text=True, cwd=TOP, timeout=60,
            env={**os.environ, "PYTHONPATH": str(TOP)},
        )
        assert (again.returncode, again.stdout) == (0, "xyzzy\n"), again.stderr
        subprocess.run(result.removal.split(), check=True)
        assert list(kept.parent.iterdir()) == []
