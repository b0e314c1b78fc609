"""Becomes another program exactly as a captured one was started. Run as a file, by a Python without site packages.

    python -I -S -X utf8 launch.py <specification fd> <status fd>

Reads a JSON specification from an inherited pipe (so that no value of an environment appears in any argv or on disk),
makes this process what it says and executes the program. On success the status fd just closes (close-on-exec); on
failure a line of JSON {"step": …, "error": …} is written to it and the exit code is 127. Standard library only, and
nothing of kwdb_build, all imported before the rights are given up: the new user may not be able to read this Python.

Specification: argv, executable (path, or an inherited fd as a number), environ, cwd, uid, gid, groups, limits
(name -> [soft, hard], -1 is unlimited), oom_score_adj, nice, umask, stdin/stdout/stderr (an inherited fd),
new_session. Strings carry bytes as surrogate escapes.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys


def main(arguments: list[str]) -> int:
    """Read the specification and become the program; returns only on failure."""
    specification_fd, status_fd = int(arguments[0]), int(arguments[1])
    os.set_inheritable(status_fd, False)
    step = "read the specification"
    try:
        with os.fdopen(specification_fd, "rb") as stream:
            wanted = json.load(stream)
        for step, action in _STEPS:  # noqa: B007 the name is told when its action fails
            action(wanted)
        step = "execute " + str(wanted["argv"][0])
        _execute(wanted, status_fd)
    except Exception as error:  # noqa: BLE001 whatever it is, the other end of the pipe must hear of it
        os.write(status_fd, json.dumps({"step": step, "error": str(error) or repr(error)}).encode() + b"\n")
    return 127


def _session(wanted: dict) -> None:  # type: ignore[type-arg]
    # A session of its own: no terminal, no Ctrl-C and no hang-up of ours reaches it.
    if wanted.get("new_session", True) and os.getsid(0) != os.getpid():
        os.setsid()


def _limits(wanted: dict) -> None:  # type: ignore[type-arg]
    for name, (soft, hard) in wanted.get("limits", {}).items():
        number = getattr(resource, "RLIMIT_" + name.upper(), _LINUX_ONLY.get(name))
        if number is None:
            continue
        if resource.getrlimit(number) == (soft, hard):
            continue
        try:
            resource.setrlimit(number, (soft, hard))
        except (OSError, ValueError) as error:
            _soft_only(number, name, soft, hard, error)


def _soft_only(number: int, name: str, soft: int, hard: int, error: Exception) -> None:
    """The soft limit is what a program feels: with that in force, a hard limit that stays lower is no loss."""
    ours = resource.getrlimit(number)[1]
    reachable = ours == resource.RLIM_INFINITY or (soft != resource.RLIM_INFINITY and soft <= ours)
    if not reachable:
        raise ValueError(
            f"limit {name} was soft {_words(soft)}, hard {_words(hard)}, but this user may only go up to "
            f"{_words(ours)}: run as root, or raise the limit of this session ({error})"
        )
    resource.setrlimit(number, (soft, ours))


def _words(limit: int) -> str:
    return "unlimited" if limit == -1 else str(limit)


def _oom(wanted: dict) -> None:  # type: ignore[type-arg]
    value = wanted.get("oom_score_adj")
    if value is None:
        return
    path = "/proc/self/oom_score_adj"
    with open(path, encoding="ascii") as stream:  # noqa: PTH123 pathlib costs start-up time here
        if int(stream.read()) == value:
            return
    with open(path, "w", encoding="ascii") as stream:  # noqa: PTH123
        stream.write(str(value))


def _nice(wanted: dict) -> None:  # type: ignore[type-arg]
    value = wanted.get("nice")
    if value is not None and os.getpriority(os.PRIO_PROCESS, 0) != value:
        os.setpriority(os.PRIO_PROCESS, 0, value)


def _user(wanted: dict) -> None:  # type: ignore[type-arg]
    """Groups, then group, then user: after the last there is no right left to change the others."""
    uid, gid, groups = wanted["uid"], wanted["gid"], wanted["groups"]
    if sorted(os.getgroups()) != sorted(groups) and (os.geteuid() == 0 or os.geteuid() != uid):
        os.setgroups(groups)
    if os.getresgid() != (gid, gid, gid):
        os.setresgid(gid, gid, gid)
    if os.getresuid() != (uid, uid, uid):
        os.setresuid(uid, uid, uid)


def _place(wanted: dict) -> None:  # type: ignore[type-arg]
    os.umask(wanted.get("umask", 0o022))
    os.chdir(wanted["cwd"])


def _streams(wanted: dict) -> None:  # type: ignore[type-arg]
    """Inherited fds become 0, 1 and 2. They come in above 2, so that none overwrites another."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.dup2(wanted[name], number, inheritable=True)


def _signals(_: dict) -> None:  # type: ignore[type-arg]
    """Ignored and blocked signals pass through exec: Python ignores SIGPIPE and SIGXFSZ, a nohup SIGHUP."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


_LINUX_ONLY = {"locks": 10}
_STEPS = (
    ("start a session of its own", _session),
    ("restore the resource limits", _limits),
    ("restore oom_score_adj", _oom),
    ("restore the priority", _nice),
    ("become the server's user", _user),
    ("enter the server's working directory", _place),
    ("connect its outputs", _streams),
    ("reset signals", _signals),
)


def _execute(wanted: dict, status_fd: int) -> None:  # type: ignore[type-arg]
    executable = wanted["executable"]
    keep = {0, 1, 2, status_fd} | ({executable} if isinstance(executable, int) else set())
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 pathlib costs start-up time here
        if int(name) not in keep:
            try:
                os.close(int(name))
            except OSError:
                continue
    if isinstance(executable, int):
        os.set_inheritable(executable, False)
    os.execve(executable, wanted["argv"], wanted["environ"])  # noqa: S606 this is what a launcher is for


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
