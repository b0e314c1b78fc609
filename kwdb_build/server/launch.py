"""Becomes another program exactly as a captured one was started. Run as a file, by a Python without site packages.

    python -I -S -X utf8 launch.py <specification fd> <status fd>

Reads a JSON specification from an inherited pipe (so that no value of an environment appears in any argv or on disk),
makes this process what it says and executes the program. On success the status fd just closes (close-on-exec); on
failure a line of JSON {"step": …, "error": …} is written to it and the exit code is 127. Standard library only, and
nothing of kwdb_build, all imported before the rights are given up: the new user may not be able to read this Python.

Specification: argv, executable (path, or an inherited fd as a number), environ, cwd, uid, gid, groups, limits
(name -> [soft, hard], -1 is unlimited), oom_score_adj, nice, umask, capabilities (inheritable, bounding, ambient as bit
masks), no_new_privileges, stdin/stdout/stderr (an inherited fd), new_session. Strings carry bytes as surrogate escapes.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
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


def _bounding(wanted: dict) -> None:  # type: ignore[type-arg]
    """What no later program may have any more; and keep what is to be passed on over the change of the user."""
    sets = wanted.get("capabilities")
    if sets is None:
        return
    ours = _own_capabilities()
    if wanted["uid"] == 0 and (lost := sets["bounding"] & ~ours["CapBnd"]):
        raise ValueError(f"the server's capabilities cannot all be given from here (mask {lost:#x}): run as root")
    for number in _bits(ours["CapBnd"] & ~sets["bounding"]):
        _prctl(_PR_CAPBSET_DROP, number)
    if sets["ambient"] or sets["inheritable"]:
        _prctl(_PR_SET_KEEPCAPS, 1)


def _inheritance(wanted: dict) -> None:  # type: ignore[type-arg]
    """Inheritable and ambient capabilities, after the change of the user has taken all others away."""
    sets = wanted.get("capabilities")
    if sets is not None:
        ours = _own_capabilities()
        if (ours["CapInh"], ours["CapAmb"]) != (sets["inheritable"], sets["ambient"]):
            inheritable = sets["inheritable"] | sets["ambient"]
            if lacking := inheritable & ~(ours["CapPrm"] | ours["CapInh"]):
                raise ValueError(f"the server's capabilities are not ours to give (mask {lacking:#x}): run as root")
            _capset(ours["CapEff"], ours["CapPrm"], inheritable)
            _prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL)
            for number in _bits(sets["ambient"]):
                _prctl(_PR_CAP_AMBIENT, _AMBIENT_RAISE, number)
    if wanted.get("no_new_privileges"):
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _own_capabilities() -> dict:  # type: ignore[type-arg]
    with open("/proc/self/status", encoding="ascii", errors="replace") as stream:  # noqa: PTH123
        lines = (line.split(":\t", 1) for line in stream if line.startswith("Cap"))
        return {name: int(value, 16) for name, value in lines}


def _bits(mask: int) -> list:  # type: ignore[type-arg]
    return [number for number in range(64) if mask >> number & 1]


def _prctl(*numbers: int) -> None:
    _call("prctl", *numbers, *[0] * (5 - len(numbers)))


def _capset(effective: int, permitted: int, inheritable: int) -> None:
    words = [mask >> shift & 0xFFFFFFFF for shift in (0, 32) for mask in (effective, permitted, inheritable)]
    _call("capset", struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), struct.pack("=6I", *words))


def _call(name: str, *arguments: object) -> None:
    """A function of the C library. Loaded only where it is needed: ctypes costs start-up time."""
    import ctypes

    converted = [ctypes.c_ulong(word) if isinstance(word, int) else word for word in arguments]
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*converted) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)


def _load_ctypes(wanted: dict) -> None:  # type: ignore[type-arg]
    """While this Python can still be read: the server's user may not be able to."""
    sets = wanted.get("capabilities") or {}
    if sets.get("ambient") or sets.get("inheritable") or wanted.get("no_new_privileges"):
        import ctypes  # noqa: F401


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
_PR_SET_KEEPCAPS, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 8, 24, 38, 47
_AMBIENT_RAISE, _AMBIENT_CLEAR_ALL = 2, 4
_CAPABILITY_VERSION_3 = 0x20080522
_STEPS = (
    ("start a session of its own", _session),
    ("restore the resource limits", _limits),
    ("restore oom_score_adj", _oom),
    ("restore the priority", _nice),
    ("prepare its capabilities", _load_ctypes),
    ("restrict its capabilities", _bounding),
    ("become the server's user", _user),
    ("restore its capabilities", _inheritance),
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
