"""One session per verb; each is a thin call of the command line. `nox --list` shows them all."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "tests"]
nox.needs_version = ">=2024.10.9"

ROOT = Path(__file__).parent
SYSTEM_PACKAGES = {
    "git": "git",
    "mmdebstrap": "mmdebstrap",
    "zstd": "zstd",
}
SANDBOX_PACKAGES = {"bwrap": "bubblewrap"}
DOCKER_PACKAGES = {"dockerd": "docker.io"}
TEST_PACKAGES = {
    "psql": "postgresql-client", "openssl": "openssl", "podman": "podman", "newuidmap": "uidmap",
    "ssh-keygen": "openssh-client", "gpg": "gnupg", "minisign": "minisign", "mkfs.xfs": "xfsprogs",
    "redis-server": "redis-server",
}


def _engine_answers() -> bool:
    """Whether a container engine is in reach: kwdb-build talks to its socket and needs no client program."""
    if "DOCKER_HOST" in os.environ:
        return True
    user = Path(os.environ.get("XDG_RUNTIME_DIR") or "/nonexistent")
    places = ("/var/run/docker.sock", user / "docker.sock", user / "podman/podman.sock", "/run/podman/podman.sock")
    for place in places:
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(place)) == 0:
                return True
    return False


def _system(session: nox.Session, packages: dict[str, str]) -> None:
    """Install missing system packages by apt-get as root; elsewhere say what is missing and go on."""
    missing = sorted(package for program, package in packages.items() if shutil.which(program) is None)
    if "docker.io" in missing and (shutil.which("docker") or _engine_answers()):
        missing.remove("docker.io")  # the engine may be elsewhere, or another package's
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        session.warn(f"missing system packages: {' '.join(missing)} (not root or no apt-get: install them yourself)")
        return
    session.log(f"installing system packages: {' '.join(missing)}")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    session.run("apt-get", "update", "-qq", external=True, env=quiet)
    session.run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing, external=True, env=quiet)


def _docker(session: nox.Session) -> None:
    """Start Debian's Docker daemon when it is installed and none answers (fresh containers have no init)."""
    if _engine_answers() or os.geteuid() != 0 or not shutil.which("dockerd"):
        return
    session.log("starting dockerd")
    log = Path("/var/log/dockerd.kwdb-build.log").open("ab")  # noqa: SIM115  (it belongs to the daemon from here on)
    subprocess.Popen(["dockerd"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    for _ in range(60):
        if _engine_answers():
            return
        time.sleep(0.5)
    session.warn("dockerd did not come up: see /var/log/dockerd.kwdb-build.log")


def _sandbox_works() -> bool:
    """Whether bubblewrap may make a sandbox here; kwdb-build says why when it may not."""
    argv = ["bwrap", "--unshare-all", "--uid", "0", "--gid", "0", "--ro-bind", "/", "/", "--proc", "/proc", "true"]
    return shutil.which("bwrap") is not None and subprocess.run(argv, check=False, capture_output=True).returncode == 0


def _engine(session: nox.Session) -> None:
    """Something to build in, with as little as possible.

    An engine that answers, else Docker's daemon where it is installed already, else bubblewrap, and Docker from the
    distribution only where bubblewrap cannot work.
    """
    _system(session, SYSTEM_PACKAGES)
    _docker(session)
    if _engine_answers():
        return
    _system(session, SANDBOX_PACKAGES)
    if not _sandbox_works() and os.geteuid() == 0:
        _system(session, DOCKER_PACKAGES)
        _docker(session)


def _install(session: nox.Session, *groups: str) -> None:
    arguments = [part for group in groups for part in ("--group", group)]
    session.install("-q", "--upgrade", "pip>=25.1")  # --group came with 25.1
    session.install("-q", "-e", ".", *arguments)


def _verb(session: nox.Session, *argv: str, engine: bool = False) -> None:
    """Run a verb of the command line in the session's environment.

    Not by session.run: that turns every failure into exit code 1, mixes data with messages, and ends a child half a
    second after Ctrl-C, while an upgrade has to reach a safe point first. A terminal's Ctrl-C reaches the child by
    itself; SIGTERM to nox is passed on.
    """
    if engine:
        _engine(session)
    else:
        _system(session, {"git": "git"})
    _install(session)
    _run_module(session, "kwdb_build", *argv)


def _run_module(session: nox.Session, module: str, *argv: str) -> None:
    child = subprocess.Popen([Path(session.bin) / "python", "-m", module, *argv, *session.posargs])
    # From here on signals are the child's business: it decides when it is safe to stop.
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, lambda number, _frame: child.send_signal(number))
    code = child.wait()
    for signum, handler in before.items():
        signal.signal(signum, handler)
    if code != 0:
        sys.exit(code if code > 0 else 128 - code)


@nox.session(default=False)
def upgrade(session: nox.Session) -> None:
    """Upgrade a running kwbase: nox -s upgrade -- V3.2.1 [options]."""
    _verb(session, "upgrade", engine=True)


@nox.session(default=False)
def fetch(session: nox.Session) -> None:
    """Fetch a source: nox -s fetch -- V3.2.1 [options]."""
    _verb(session, "fetch")


@nox.session(default=False)
def check(session: nox.Session) -> None:
    """Check the compilation dependencies: nox -s check -- V3.2.1 [options]."""
    _verb(session, "check", engine=True)


@nox.session(default=False)
def doctor(session: nox.Session) -> None:
    """Look at the tool and its surroundings, for a bug report: nox -s doctor [-- --online]."""
    _install(session)
    _run_module(session, "kwdb_build", "doctor")


@nox.session(default=False)
def build(session: nox.Session) -> None:
    """Build an artifact: nox -s build -- V3.2.1 [options]."""
    _verb(session, "build", engine=True)


@nox.session(default=False)
def capture(session: nox.Session) -> None:
    """Show a running server's start command: nox -s capture."""
    _verb(session, "capture")


@nox.session(default=False)
def restart(session: nox.Session) -> None:
    """Restart a running server with its own command: nox -s restart."""
    _verb(session, "restart")


@nox.session(default=False)
def verify(session: nox.Session) -> None:
    """Verify a running server against the last baseline: nox -s verify."""
    _verb(session, "verify")


@nox.session(default=False)
def rollback(session: nox.Session) -> None:
    """Take the last run back: nox -s rollback [-- RUN]."""
    _verb(session, "rollback")


@nox.session(default=False)
def demo(session: nox.Session) -> None:
    """See an upgrade happen on the bundled miniature: nox -s demo."""
    _engine(session)
    _install(session)
    _run_module(session, "tests.minikwdb.demo")


@nox.session
def lint(session: nox.Session) -> None:
    """Style, types and the direction of imports."""
    _install(session, "lint", "tests")
    session.run("ruff", "check", ".")
    session.run("mypy")
    session.run("lint-imports")


def _install_tests(session: nox.Session) -> None:
    _install(session, "tests")
    # The tool is started a thousand times; with PYTHONDONTWRITEBYTECODE, as in many containers, each would compile it.
    session.run("python", "-m", "compileall", "-q", "-x", "verify/suite", "kwdb_build", "tests")


def _pytest(session: nox.Session, *argv: str) -> None:
    _system(session, {**SYSTEM_PACKAGES, **SANDBOX_PACKAGES, **DOCKER_PACKAGES, **TEST_PACKAGES})
    _docker(session)
    _install_tests(session)
    # Most tests wait for a process most of the time: one worker more than processors.
    workers = min(8, (os.cpu_count() or 1) + 1)
    session.run("pytest", f"--numprocesses={workers}", *argv, *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Unit and integration tests; real git, containers, servers and signals: nox -s tests [-- pytest's options]."""
    _pytest(session, "-m", "not slow and not systemd")


@nox.session(default=False)
def tests_systemd(session: nox.Session) -> None:
    """Servers that a real systemd runs, in a container.

    Not beside the others: while it runs there are control group hierarchies that Debian's Docker cannot find, and then
    it does not see that a container ran out of memory.
    """
    _pytest(session, "--numprocesses=2", "-m", "systemd and not slow")  # a container for each


@nox.session(default=False)
def tests_long(session: nox.Session) -> None:
    """Tests that take long and seldom find something: two base images, a build from another place, on the host."""
    _pytest(session, "-m", "slow")


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Measure against the bare alternatives in the same run; prints a table and JSON."""
    _system(session, {**SYSTEM_PACKAGES, **SANDBOX_PACKAGES, **DOCKER_PACKAGES})
    _docker(session)
    _install_tests(session)
    session.run("python", "-m", "tests.bench", *session.posargs, stderr=None)
