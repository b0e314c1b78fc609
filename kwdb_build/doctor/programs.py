"""The tool, its settings, the programs it calls and the engines it can use."""

from __future__ import annotations

import getpass
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kwdb_build import __version__, command
from kwdb_build.errors import EngineError
from kwdb_build.files import human_bytes
from kwdb_build.model import CheckResult, Verdict
from kwdb_build.toolchain.catalog import Known, fixes
from kwdb_build.toolchain.check import tool_version
from kwdb_build.toolchain.load import numbers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kwdb_build.config import Settings

_TIMEOUT_S = 10.0
_GIT = "2.31"


def this_system() -> Iterator[CheckResult]:
    """Versions of the tool, Python, the distribution and the kernel."""
    release = platform.freedesktop_os_release() if Path("/etc/os-release").exists() else {}
    user = f"{_user()} (uid {os.geteuid()})"
    for name, found in (
        ("kwdb-build", __version__), ("Python", f"{platform.python_version()} at {sys.executable}"),
        ("system", f"{release.get('PRETTY_NAME', 'unknown')}, kernel {platform.release()} {platform.machine()}"),
        ("user", user), ("locale", f"{sys.getfilesystemencoding()}, LANG={os.environ.get('LANG', '')}"),
    ):
        yield CheckResult(name=name, verdict=Verdict.OK, found=found, group="tool")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an id without a name, as in containers
        return "without a name"


def settings_in_force(settings: Settings) -> Iterator[CheckResult]:
    """Settings that are not the defaults."""
    changed = settings.model_dump(mode="json", exclude_defaults=True)
    words = ", ".join(f"{name}={value}" for name, value in sorted(changed.items()) if name != "home")
    yield CheckResult(name="settings", verdict=Verdict.OK, found=words or "all defaults", group="tool")


@dataclass(frozen=True, kw_only=True)
class _Program:
    """A program, what it is for, and how packages call it. least: the version without which nothing works."""

    name: str
    purpose: str
    package: Known
    least: str = ""
    needed: bool = False
    argument: str = "--version"


def _program(name: str, purpose: str, apt: str, rpm: str, *, least: str = "", needed: bool = False,
             argument: str = "--version") -> _Program:
    return _Program(name=name, purpose=purpose, package=Known(apt=apt, rpm=rpm), least=least, needed=needed,
                    argument=argument)


_PROGRAMS = (
    _program("git", "fetching sources", "git", "git", least=_GIT, needed=True),
    _program("docker", "a person's own look at the engine; not called", "docker.io", "docker"),
    _program("podman", "an engine without a daemon of root's", "podman", "podman"),
    _program("bwrap", "building without any engine", "bubblewrap", "bubblewrap"),
    _program("mmdebstrap", "base images without a registry", "mmdebstrap", "mmdebstrap"),
    _program("apt-get", "base images: resolving and fetching packages", "apt", "apt"),
    _program("dpkg-deb", "base images: reading packages", "dpkg", "dpkg"),
    _program("ccache", "nothing: the build image brings its own", "ccache", "ccache"),
    _program("ldd", "the link check of a build", "libc-bin", "glibc-common"),
    _program("openssl", "nothing here; certificates of a secure server", "openssl", "openssl", argument="version"),
)


def programs() -> Iterator[CheckResult]:
    """A row for each program that is called or asked about in reports."""
    own = next((name for name in ("apt-get", "dnf", "yum", "zypper") if shutil.which(name)), "")
    for program in _PROGRAMS:
        path = shutil.which(program.name)
        ways = fixes(program.package, own)
        if path is None:
            yield CheckResult(
                name=program.name, verdict=Verdict.FAIL if program.needed else Verdict.SKIP,
                required=_wanted(program), found=f"not here; for {program.purpose}", group="programs",
                fix=ways[0] if program.needed else "", fixes=ways if program.needed else (),
            )
            continue
        version = _version(path, program.argument)
        verdict, fix = Verdict.OK if version else Verdict.UNKNOWN, ""
        if version and program.least and numbers(version) < numbers(program.least):
            verdict, fix = Verdict.FAIL, f"install {program.name} {program.least} or newer"
        yield CheckResult(
            name=program.name, verdict=verdict, required=_wanted(program), group="programs", fix=fix,
            found=f"{version or 'does not say its version'} at {path}",
        )


def _wanted(program: _Program) -> str:
    return f"{program.least} or newer" if program.least else ""


def _version(path: str, argument: str) -> str:
    try:
        done = command.run([path, argument], check=False, timeout_s=_TIMEOUT_S, env={**os.environ, "LC_ALL": "C"})
    except command.CommandError:
        return ""
    return tool_version(done.stdout + done.stderr)


def engines(settings: Settings) -> Iterator[CheckResult]:
    """The engine that builds would use, every other one in reach, and the sandbox that needs none."""
    from kwdb_build.engine.address import candidate_sockets
    from kwdb_build.engine.choose import choose, named

    try:
        info = choose(settings.engine, docker_host=settings.docker_host, place=settings.home / "sandbox").info()
    except EngineError as error:
        yield CheckResult(name="engine in use", verdict=Verdict.FAIL, required="Docker, Podman or bubblewrap",
                          found=error.message, fix=error.hint, note=error.context, group="engines")
    else:
        yield CheckResult(name="engine in use", verdict=Verdict.OK, found=named(info), group="engines")
    addresses = [settings.docker_host or os.environ.get("DOCKER_HOST", "")]
    if not addresses[0]:
        addresses = [f"unix://{path}" for path in candidate_sockets() if _exists(path)]
    yield from (_engine(address) for address in addresses)
    yield _sandbox(settings.home / "sandbox")
    yield _user_namespaces()


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _engine(address: str) -> CheckResult:
    from kwdb_build.engine.docker import DockerEngine

    try:
        with DockerEngine.connect(address) as engine:
            info = engine.info()
    except EngineError as error:
        return CheckResult(name=f"engine at {address}", verdict=Verdict.WARN, found=error.message, fix=error.hint,
                           note=error.context, group="engines")
    free = human_bytes(info.free_bytes) if info.free_bytes >= 0 else "an unknown amount"
    return CheckResult(
        name=f"engine at {address}", verdict=Verdict.OK, found=f"{info.kind} {info.version}, {free} free",
        group="engines",
    )


def _sandbox(place: Path) -> CheckResult:
    """Whether builds could run in a sandbox here; tried, as only that tells."""
    from kwdb_build.engine.sandbox import SandboxEngine

    name, required = "sandbox", "bubblewrap, and user namespaces or root"
    try:
        info = SandboxEngine.open(place).info()
    except EngineError as error:
        return CheckResult(name=name, verdict=Verdict.SKIP, required=required, found=error.message, fix=error.hint,
                           group="engines")
    return CheckResult(name=name, verdict=Verdict.OK, required=required, found=f"works, bubblewrap {info.version}",
                       group="engines")


_NAMESPACES = (
    ("kernel/unprivileged_userns_clone", "0"), ("user/max_user_namespaces", "0"),
    ("kernel/apparmor_restrict_unprivileged_userns", "1"),
)
"""Below /proc/sys: what forbids user namespaces to others than root, and the value that does."""


def _user_namespaces() -> CheckResult:
    forbidding = []
    for name, value in _NAMESPACES:
        try:
            found = (Path("/proc/sys") / name).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if found == value:
            forbidding.append(f"{name.replace('/', '.')}={value}")
    if not forbidding:
        return CheckResult(name="user namespaces", verdict=Verdict.OK, found="allowed", group="engines")
    root = os.geteuid() == 0
    return CheckResult(
        name="user namespaces", verdict=Verdict.SKIP if root else Verdict.WARN, group="engines",
        found=f"forbidden to others than root: {', '.join(forbidding)}",
        fix="" if root else "as root: sysctl -w " + " ".join(
            f"{entry.partition('=')[0]}={'0' if entry.endswith('=1') else '15000' if 'max' in entry else '1'}"
            for entry in forbidding
        ),
    )
