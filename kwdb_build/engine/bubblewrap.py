"""How bubblewrap is called: argument lists from a run's description, and plain words when it cannot work here.

As an ordinary user one bwrap makes the whole sandbox, its only user being the caller. As root the directories may be
closed to everybody else, so a first bwrap, still root, puts them within reach in a mount namespace of its own; the
second one enters a user namespace in which nobody but the build's own user exists: not root inside, nor outside. The
first one has a process namespace, too, whose end takes all with it: the second one's supervisor, not of that user and
without privileges, could not kill its own child.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kwdb_build import command
from kwdb_build.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from kwdb_build.engine.base import Mount, RunSpec

MINIMUM = (0, 4, 0)
"""The first with --userns; Debian 11 and RHEL 8 have it."""
RUN_CAPABILITIES = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP",
    "CAP_SYS_CHROOT",
)
"""What installing packages takes, inside of the user namespace only."""
_STAGE = "/tmp"  # noqa: S108 - a tmpfs of the first bwrap's own
_NAMESPACES = ("--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--die-with-parent")
_CAP_SYS_ADMIN = 21
_SYSCTLS = (
    ("kernel.unprivileged_userns_clone", "0", "1"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
    ("user.max_user_namespaces", "0", "15000"),
    ("user.max_mnt_namespaces", "0", "15000"),
)
_INSTALL = "install it: apt-get, dnf or zypper install bubblewrap"
_IN_CONTAINER = (
    "if this is a container, it must be started with --security-opt seccomp=unconfined --security-opt "
    "apparmor=unconfined --security-opt systempaths=unconfined, and for root --cap-add SYS_ADMIN"
)


@dataclass(frozen=True, kw_only=True)
class Bind:
    """A directory or file of this machine at a place in the sandbox."""

    source: Path
    target: str
    read_only: bool = True

    def options(self) -> tuple[str, ...]:
        """As bwrap takes it."""
        return ("--ro-bind" if self.read_only else "--bind", str(self.source), self.target)


def program() -> str:
    """Path of bwrap; EngineError when there is none."""
    found = shutil.which("bwrap")
    if found is None:
        raise EngineError("bubblewrap is not installed", context="looked for bwrap on PATH", hint=_INSTALL)
    return found


def check_version(text: str) -> str:
    """`bubblewrap 0.8.0` -> `0.8.0`; EngineError when it is too old or says something else."""
    match = re.search(r"(\d+)\.(\d+)\.(\d+)", text)
    if match is None or tuple(int(part) for part in match.groups()) < MINIMUM:
        raise EngineError(
            f"bubblewrap is too old: {text.strip() or 'it does not say its version'}",
            context=f"{'.'.join(map(str, MINIMUM))} or later is needed", hint=_INSTALL,
        )
    return match[0]


def root_entries(rootfs: Path, seen: Path) -> list[tuple[str, ...]]:
    """Options that show an image read-only, one for each entry of its top, so that mount points fit beside them.

    seen is where rootfs is for the bwrap that takes them.
    """
    options: list[tuple[str, ...]] = []
    for entry in sorted(rootfs.iterdir()):
        target = f"/{entry.name}"
        if entry.is_symlink():
            options.append(("--symlink", str(entry.readlink()), target))
        elif entry.name in {"dev", "proc", "tmp"}:
            continue
        else:
            options.append(("--ro-bind", str(seen / entry.name), target))
    return options


def flat(options: Sequence[Sequence[str]]) -> list[str]:
    """One list of all words."""
    return [word for option in options for word in option]


def sandbox(
    spec: RunSpec, rootfs: Path, mounts: Sequence[Mount], *, seen_rootfs: Path, userns: int | None
) -> list[str]:
    """Options of the bwrap that makes the sandbox of a run. The environment is not here: it is the process's own.

    seen_rootfs is where rootfs is for that bwrap; userns is a file descriptor of the user namespace to enter, None
    makes one.
    """
    return [
        *identity(spec.uid, spec.gid, userns), *_NAMESPACES, "--unshare-net", "--hostname", spec.hostname,
        *flat(root_entries(rootfs, seen_rootfs)), "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp",  # noqa: S108 - inside
        *flat([Bind(source=mount.source, target=mount.target, read_only=mount.read_only).options()
               for mount in mounts]),
        "--remount-ro", "/", "--chdir", spec.workdir, "--cap-drop", "ALL",
    ]


def identity(uid: int, gid: int, userns: int | None) -> list[str]:
    """Options for the user inside, in a user namespace that is there (its descriptor) or made by bwrap (None)."""
    how = ["--unshare-user"] if userns is None else ["--userns", str(userns)]
    return [*how, "--uid", str(uid), "--gid", str(gid)]


def within_reach(rootfs: Path, mounts: Sequence[Mount]) -> tuple[list[str], Path, list[Mount]]:
    """Options of the first bwrap that root needs, and where image and mounts are for the second one."""
    moved = [replace(mount, source=Path(f"{_STAGE}/{number}")) for number, mount in enumerate(mounts)]
    seen = Path(f"{_STAGE}/image")
    options = [
        # The second bwrap looks its child up in /proc by its number in this process namespace; and the kernel lets it
        # mount one of its own only where a whole one can be seen, which bwrap's is not.
        "--dev-bind", "/", "/", "--proc", "/proc", "--tmpfs", _STAGE, "--dev-bind", "/proc", f"{_STAGE}/proc",
        "--unshare-pid", "--die-with-parent",
        *Bind(source=rootfs, target=str(seen)).options(),
        *flat([Bind(source=mount.source, target=str(new.source), read_only=mount.read_only).options()
               for mount, new in zip(mounts, moved, strict=True)]),
    ]
    return options, seen, moved


def image_run(rootfs: Path, binds: Sequence[Bind], *, network: bool, userns: int | None) -> list[str]:
    """Options of the bwrap in which an image recipe's RUN changes an image, as root of a user namespace."""
    return [
        *identity(0, 0, userns), *_NAMESPACES, *([] if network else ["--unshare-net"]), "--hostname", "kwdb-build",
        "--new-session", *Bind(source=rootfs, target="/", read_only=False).options(),
        "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", *flat([bind.options() for bind in binds]),  # noqa: S108 - inside
        "--chdir", "/", "--cap-drop", "ALL", *flat([("--cap-add", name) for name in RUN_CAPABILITIES]),
    ]


def with_own_tools(binds: Sequence[Bind], *, identity: Sequence[str]) -> list[str]:
    """Options that run a program of this machine, which sees nothing but itself and the binds."""
    options = [*identity, *_NAMESPACES, "--unshare-net", "--new-session", "--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        place = Path("/", name)
        if place.is_symlink():
            options += ["--symlink", str(place.readlink()), str(place)]
        elif place.is_dir():
            options += ["--ro-bind", str(place), str(place)]
    options += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache", "--proc", "/proc", "--dev", "/dev"]
    return [*options, "--tmpfs", "/tmp", *flat([bind.options() for bind in binds]), "--cap-drop", "ALL"]  # noqa: S108


@contextlib.contextmanager
def arguments_file(options: Sequence[str]) -> Iterator[int]:
    """A file descriptor for --args: paths of this machine stay out of the process list, inside and outside."""
    fd = os.memfd_create("bwrap-arguments")
    try:
        os.write(fd, b"".join(os.fsencode(word) + b"\0" for word in options))
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def user_namespace(uid: int, gid: int, *, count: int = 1) -> Iterator[int]:
    """A file descriptor of a new user namespace in which the users from uid on are themselves and no others exist.

    For root. Errors: EngineError when none can be made.
    """
    with contextlib.ExitStack() as stack:
        try:
            # cat answers once unshare has done its work, and lives until its stdin ends
            holder = stack.enter_context(command.start(["unshare", "--user", "cat"]))
            said = holder.ask(b"\n")
            if not said:
                raise refused(holder.errors() or "unshare --user failed")
            place = Path(f"/proc/{holder.pid}")
            (place / "uid_map").write_text(f"{uid} {uid} {count}\n", encoding="ascii")
            (place / "gid_map").write_text(f"{gid} {gid} {count}\n", encoding="ascii")
            fd = os.open(place / "ns" / "user", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise refused(str(error)) from error
        except command.CommandError as error:
            raise refused(error.message) from error
    try:
        yield fd
    finally:
        os.close(fd)


def _sysctls() -> dict[str, str]:
    found = {}
    for name, _, _ in _SYSCTLS:
        with contextlib.suppress(OSError):
            path = Path("/proc/sys", *name.split("."))
            found[name] = path.read_text(encoding="ascii").strip()
    return found


def may_mount() -> bool:
    """Whether this process has CAP_SYS_ADMIN; root in a container often has not."""
    text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    match = re.search(r"^CapEff:\s*([0-9a-f]+)", text, re.MULTILINE)
    return match is not None and bool(int(match[1], 16) >> _CAP_SYS_ADMIN & 1)


def refused(said: str, sysctls: Mapping[str, str] | None = None) -> EngineError:
    """What stands in the way of a sandbox, from bwrap's own words and this machine's settings (read when None)."""
    seen = _sysctls() if sysctls is None else sysctls
    blocking = [(name, wanted) for name, bad, wanted in _SYSCTLS if seen.get(name) == bad]
    context = "\n".join([said.strip(), *(f"{name} = {seen[name]}" for name, _ in blocking)]).strip()
    if blocking:
        return EngineError(
            "user namespaces are switched off here: the sandbox needs them", context=context,
            hint="; ".join(f"sysctl -w {name}={wanted}" for name, wanted in blocking) + " (as root; a file in "
            "/etc/sysctl.d keeps it), or use a container engine (--engine docker)",
        )
    if "proc" in said and "mount" in said.lower():
        return EngineError("the sandbox may not mount /proc here", context=context, hint=_IN_CONTAINER)
    return EngineError(
        "this machine does not let bubblewrap make a sandbox", context=context,
        hint=f"{_IN_CONTAINER}; otherwise use a container engine (--engine docker)",
    )
