"""Control groups: a captured server's, joined again where a person (not systemd) made them, and what ours would mean.

A server that we start is in our own group. systemd ends a group with the service or (systemd-logind's
KillUserProcesses=) with the login that it belongs to.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
from pathlib import Path

from kwdb_build import command
from kwdb_build.server import proc

ROOT = Path("/sys/fs/cgroup")
_OF_A_LOGIN = re.compile(r"/(session-[^/]+\.scope|user@\d+\.service|[^/]+\.service|init\.scope)(/|$)")
"""systemd's own: it alone puts processes there, and takes a login's away with the login."""


_SESSION = re.compile(r"/user-(?P<uid>\d+)\.slice/(?P<name>session-[^/]+\.scope)")
_SERVICE = re.compile(r"/(?P<name>(?!user@)[^/]+\.service)(/|$)")
_LOGIND = ("org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager")
_ANSWER_S = 5.0
_WHOLE = frozenset({"control-group", "mixed"})
"""KillMode= that ends more than the main process."""


def lines(pid: int) -> tuple[str, ...]:
    """/proc/PID/cgroup as it is: 'number:controllers:path'. Errors as proc.read_text."""
    return tuple(filter(None, proc.read_text(pid, "cgroup").splitlines()))


def join(pid: int, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Put a process of ours into the groups that the captured server was in; a sentence for each that cannot be joined.

    Limits of a group that cannot be joined are not in force: no reason to keep a database down, but to be said.
    """
    notes = []
    ours = set(_places(lines(pid)))
    for controllers, path in _places(wanted):
        if (controllers, path) in ours or _OF_A_LOGIN.search(path):
            continue
        place = directory(controllers, path)
        try:
            (place / "cgroup.procs").write_text(str(pid), encoding="ascii")
        except OSError as error:
            notes.append(f"the server ran in the control group {place}, which cannot be joined again: {error.strerror}")
    return tuple(notes)


def _places(found: tuple[str, ...]) -> list[tuple[str, str]]:
    """Controllers and path of each line; the number of a hierarchy is another one after each mount."""
    return [(parts[1], parts[2]) for line in found if len(parts := line.split(":", 2)) == 3]  # noqa: PLR2004


def directory(controllers: str, path: str) -> Path:
    """Where a group is mounted: version 2 (no controllers), or the hierarchy of its controllers."""
    name = controllers.removeprefix("name=")
    if not name:
        unified = ROOT / "unified"
        return (unified if unified.is_dir() else ROOT) / path.lstrip("/")
    return ROOT / name / path.lstrip("/")


def ends_with(ours: tuple[str, ...], before: tuple[str, ...]) -> str:
    """What would take a server along that is started in these groups, in words; '' for nothing that we know of.

    before: the groups of the server as it runs; what they share with ours is no news, and what it joins again is not
    left to ours.
    """
    known = set(_places(before))
    joined = {controllers for controllers, path in known if _can_join(controllers, path)}
    for _, path in (place for place in _places(ours) if place not in known and place[0] not in joined):
        if (service := _SERVICE.search(path)) and _kill_mode(service["name"]) in _WHOLE:
            return f"with {service['name']}, which kwdb-build was started by"
        session = _SESSION.search(path)
        if session and kills_at_logout(_name(int(session["uid"]))):
            return f"with this login ({session['name']}): systemd-logind has KillUserProcesses=yes"
    return ""


def _can_join(controllers: str, path: str) -> bool:
    """Whether join() will succeed. Only root surely can: others need rights in the groups above both, too."""
    place = directory(controllers, path) / "cgroup.procs"
    return os.geteuid() == 0 and not _OF_A_LOGIN.search(path) and os.access(place, os.W_OK)


def kills_at_logout(user: str) -> bool:
    """Whether systemd-logind ends what a user's logout leaves behind (logind.conf). No where nobody can be asked."""
    names = ("KillUserProcesses", "KillOnlyUsers", "KillExcludeUsers")
    said = dict(zip(names, _ask("busctl", "--system", "get-property", *_LOGIND, *names).splitlines(), strict=False))
    only, exempt = (re.findall(r'"([^"]*)"', said.get(name, "")) for name in names[1:])
    return said.get(names[0]) == "b true" and user not in exempt and (not only or user in only)


def _kill_mode(service: str) -> str:
    """KillMode= of a unit: whether its end is that of its main process only (sshd, cron), or of the whole group."""
    return _ask("systemctl", "show", "--property=KillMode", "--value", "--", service).strip()


def _ask(*argv: str) -> str:
    """What a program of systemd says; nothing where there is no systemd."""
    with contextlib.suppress(command.CommandError):
        return command.run(argv, timeout_s=_ANSWER_S).stdout
    return ""


def _name(uid: int) -> str:
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return str(uid)
