"""Drives launch.py: starts a program as a captured server was started, and tells what went wrong if it did not.

Environment values travel through a pipe only. The child has its own session from its first moment.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import selectors
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from kwdb_build import command
from kwdb_build.errors import StartError
from kwdb_build.model import to_json
from kwdb_build.server import proc, scheduling

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kwdb_build.model import Capabilities, StartCommand

LAUNCHER = Path(__file__).with_name("launch.py")
DEFAULT_UMASK = 0o022
_FIRST_FD = 20
"""Inherited descriptors are moved here and above, out of the way of 0, 1 and 2."""
_LAUNCH_TIMEOUT_S = 30.0
_OUTPUT_LIMIT = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Specification:
    """What launch.py makes of itself. executable is a path or an open fd of ours; None for a number: leave as it is."""

    argv: tuple[str, ...]
    executable: Path | int
    environ: Mapping[str, str] = field(repr=False)
    cwd: Path
    uid: int
    gid: int
    groups: tuple[int, ...]
    limits: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    oom_score_adj: int | None = None
    nice: int | None = None
    umask: int = DEFAULT_UMASK
    capabilities: Capabilities | None = None
    no_new_privileges: bool = False
    share: scheduling.Share = field(default_factory=scheduling.Share)


def specification(start: StartCommand, *, argv: tuple[str, ...], executable: Path | int,
                  environ: Mapping[str, str]) -> Specification:
    """A captured server's surroundings for another command line, executable or environment."""
    return Specification(
        argv=argv, executable=executable, environ=environ, cwd=start.cwd, uid=start.uid, gid=start.gid,
        groups=start.groups, limits=start.limits, oom_score_adj=start.oom_score_adj, nice=start.nice,
        umask=start.launcher_umask, capabilities=start.capabilities, no_new_privileges=start.no_new_privileges,
        share=scheduling.Share(ionice=start.ionice, scheduling=start.scheduling, affinity=start.affinity),
    )


def launch(
    wanted: Specification, *, stdout: int, stderr: int, on_launch: Callable[[int], None] | None = None
) -> int:
    """Start the program with our fds stdout and stderr as its 1 and 2 (stdin is /dev/null); return its pid.

    Returns once the program itself runs (its execve succeeded). It is a child of ours: reap() tells how it ended.
    Errors: StartError naming the step that failed.
    """
    with contextlib.ExitStack() as stack:
        null = stack.enter_context(_Fd(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)))
        passed = {"stdin": null.number, "stdout": stdout, "stderr": stderr}
        if isinstance(wanted.executable, int):
            passed["executable"] = wanted.executable
        moved = [stack.enter_context(_Fd(_above(fd))) for fd in passed.values()]
        read_spec, write_spec = (stack.enter_context(_Fd(fd)) for fd in _pipe_above())
        read_status, write_status = (stack.enter_context(_Fd(fd)) for fd in _pipe_above())
        inherited = (*moved, read_spec, write_status)
        pid = command.spawn(
            [sys.executable, "-I", "-S", "-X", "utf8", str(LAUNCHER), str(read_spec.number), str(write_status.number)],
            env={"LC_ALL": "C.UTF-8"}, fds=[fd.number for fd in inherited],
        )
        read_spec.close()
        write_status.close()
        try:
            if on_launch is not None:
                on_launch(pid)
            scheduling.apply(pid, wanted.share)  # the launcher waits for its specification; what it becomes keeps this
        except BaseException:
            command.kill_child(pid)
            raise
        _send(write_spec, wanted, {name: fd.number for name, fd in zip(passed, moved, strict=True)})
        _await_exec(pid, read_status.number, wanted)
    return pid


def _send(pipe: _Fd, wanted: Specification, inherited: Mapping[str, int]) -> None:
    content: dict[str, Any] = {
        "argv": wanted.argv, "environ": dict(wanted.environ), "cwd": str(wanted.cwd), "uid": wanted.uid,
        "gid": wanted.gid, "groups": wanted.groups, "limits": dict(wanted.limits), "nice": wanted.nice,
        "oom_score_adj": wanted.oom_score_adj, "umask": wanted.umask, "no_new_privileges": wanted.no_new_privileges,
        "capabilities": to_json(wanted.capabilities),
        "executable": str(wanted.executable), **inherited,
    }
    data = json.dumps(content).encode("ascii")
    # A launcher that died early leaves a broken pipe: its status says why.
    with contextlib.suppress(BrokenPipeError):
        while data:
            data = data[os.write(pipe.number, data):]
    pipe.close()


def _await_exec(pid: int, status: int, wanted: Specification) -> None:
    answer = _read_until_closed(status, _LAUNCH_TIMEOUT_S)
    if answer is None:
        command.kill_child(pid)
        raise StartError(f"the launcher of {wanted.argv[0]} did not finish within {_LAUNCH_TIMEOUT_S:g} s")
    if not answer:
        return
    command.kill_child(pid)
    problem = json.loads(answer)
    raise StartError(
        f"cannot start {wanted.argv[0]}: could not {problem['step']}", context=str(problem["error"]),
        hint=f"run kwdb-build as root or as {proc.user_name(wanted.uid)}; is everything of the command still there?",
    )


def _read_until_closed(fd: int, timeout_s: float) -> bytes | None:
    """All bytes until the other side closes, None when it does not in time."""
    deadline = time.monotonic() + timeout_s
    content = b""
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while selector.select(max(0.0, deadline - time.monotonic())):
            chunk = os.read(fd, 1 << 16)
            if not chunk:
                return content
            content = (content + chunk)[-_OUTPUT_LIMIT:]
    return None


def run_as(wanted: Specification, *, timeout_s: float) -> tuple[int | None, str]:
    """Run a short program the same way to its end: exit code and what it printed on both outputs.

    Used for `kwbase version`, so that a server's binary never runs with more rights than the server has.
    Exit code None: it did not end within timeout_s and was killed. Errors: StartError when it could not be started.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    output: list[bytes] = []
    try:
        pid = launch(wanted, stdout=writer, stderr=writer)
    except BaseException:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    pump = threading.Thread(target=_pump, args=(reader, output), daemon=True)
    pump.start()
    deadline = time.monotonic() + timeout_s
    pump.join(timeout_s)  # the end of its output is noticed at once, that of the process only by asking
    code = command.reap(pid, max(0.0, deadline - time.monotonic()))
    if code is None:
        command.kill_child(pid)
    pump.join(timeout=1.0)
    return code, b"".join(output).decode("utf-8", "replace")


def _pump(reader: int, output: list[bytes]) -> None:
    with os.fdopen(reader, "rb", buffering=0) as stream:
        while chunk := stream.read(1 << 16):
            output.append(chunk)


class _Fd:
    """A descriptor that is closed once and only once (its number may be somebody else's a moment later)."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it unless that has been done."""
        if self.number >= 0:
            os.close(self.number)
            self.number = -1


def _above(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_FD)


def _pipe_above() -> tuple[int, int]:
    pair = os.pipe2(os.O_CLOEXEC)
    moved = _above(pair[0]), _above(pair[1])
    for fd in pair:
        os.close(fd)
    return moved
