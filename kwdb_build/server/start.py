"""Starts a captured server again, in just its old way, so that nothing of ours can take it down.

It gets a session of its own (Ctrl-C, a closing terminal and the end of this tool do not reach it) and its outputs go
where they went before. None of its descriptors is a pipe of ours: a server with --background keeps the stdout that it
is given until it ends, and a tool that waited for the end of that pipe would hang as long.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import socket
import stat
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from kwdb_build import command, files
from kwdb_build.errors import StartError
from kwdb_build.server import cgroups, logs, proc, spawn, startflags

if TYPE_CHECKING:
    from collections.abc import Callable

    from kwdb_build.model import Deployment, StartCommand

_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY
_OWN_STDERR = re.compile(r"^kwbase.*\.log$")
"""kwbase redirects its own descriptor 2 into its log file: that is no place where it was sent to."""
_LONGEST_BASE = 60
"""A Unix socket's path has room for 107 bytes; ours adds a name of some 30."""


@dataclass(kw_only=True)
class StdioHold:
    """The old server's outputs, held open so that pipes and terminals survive its end. Use as a context manager.

    stdout, stderr: descriptors of ours, None when the output cannot be had again (`reasons` says why) or when the
    server itself redirects it into its own log.
    """

    stdout: int | None = None
    stderr: int | None = None
    reasons: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of them; the server has its own by then."""
        for name in ("stdout", "stderr"):
            fd = getattr(self, name)
            if fd is not None:
                os.close(fd)
                setattr(self, name, None)


def hold_stdio(deployment: Deployment) -> StdioHold:
    """Open the running server's outputs a second time. Call it before the server is stopped."""
    hold = StdioHold()
    for name, number in (("stdout", 1), ("stderr", 2)):
        target = getattr(deployment.start, name)
        if name == "stderr" and redirected_by_itself(deployment.start, target):
            continue
        try:
            setattr(hold, name, _open_output(proc.PROC / str(deployment.pid) / "fd" / str(number)))
        except OSError as error:
            hold.reasons[name] = f"{target}: {error.strerror}"
    return hold


def redirected_by_itself(start: StartCommand, target: str) -> bool:
    """Whether an output is kwbase's own log file: it sends its errors there by itself."""
    name = Path(target.removesuffix(proc.DELETED))
    if _OWN_STDERR.match(name.name) is None:
        return False
    directory = _flags(start).log_dir
    return bool(directory) and name.parent.resolve() == Path(directory).resolve()


def _open_output(path: Path) -> int:
    """Open for appending; OSError when nobody would read it (a broken pipe ends a Go program that writes to it)."""
    fd = os.open(path, _APPEND | os.O_NONBLOCK)
    poller = select.poll()
    poller.register(fd, 0)
    if any(events & (select.POLLERR | select.POLLHUP) for _, events in poller.poll(0)):
        os.close(fd)
        raise BrokenPipeError(32, "nobody reads it any more")
    os.set_blocking(fd, True)
    return fd


class Notify:
    """A socket that the server writes READY=1 to when it listens (sd_notify). In a directory of its own, mode 0700."""

    def __init__(self, uid: int, gid: int) -> None:
        base = tempfile.gettempdir()
        if len(base) > _LONGEST_BASE:
            base = "/tmp"  # noqa: S108 mkdtemp makes a private directory in it
        self.directory = Path(tempfile.mkdtemp(prefix="kwdb-build-", dir=base))
        self.path = self.directory / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.bind(str(self.path))
        self._socket.setblocking(False)
        self.path.chmod(files.PRIVATE)
        if uid != os.geteuid():
            os.chown(self.path, uid, gid)
            os.chown(self.directory, uid, gid)
        self.ready = False

    def poll(self) -> bool:
        """Whether READY=1 has come; never waits."""
        with contextlib.suppress(BlockingIOError, OSError):
            while not self.ready:
                self.ready = b"READY=1" in self._socket.recv(4096).split(b"\n")
        return self.ready

    def close(self) -> None:
        """Remove socket and directory."""
        self._socket.close()
        shutil.rmtree(self.directory, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class Started:
    """A start that is under way. launched: pid of the server, or of kwbase's parent when it starts in the background.

    began_at: unix seconds. stdout_log, stderr_log: the regular file that output goes to, None for pipes and terminals.
    mark: how long the log files were before.
    """

    launched: int
    background: bool
    began_at: float
    began: float
    stdout_log: Path | None
    stderr_log: Path | None
    mark: logs.Mark
    notify: Notify | None = None
    notes: tuple[str, ...] = ()

    def processes(self) -> tuple[int, ...]:
        """All live processes that come from this start: it opened a session of its own."""
        return proc.members(self.launched)

    def server_pid(self) -> int | None:
        """Pid of the server itself; None while a background start has not come that far, or it is gone."""
        if not self.background:
            return self.launched if self.launched in self.processes() else None
        return next((pid for pid in self.processes() if pid != self.launched), None)

    def exit_code(self) -> int | None:
        """How the launched process ended (negative: by that signal); None while it runs."""
        try:
            return command.reap(self.launched)
        except ChildProcessError:
            return None if self.launched in self.processes() else 0

    def last_words(self) -> str:
        """The last lines that the server has written since, in its log and on its outputs."""
        return logs.tail(logs.since(self.mark))


def start(
    start: StartCommand, *, log_dir: Path, stdio: StdioHold | None = None, notify: bool = True,
    on_launch: Callable[[int], None] | None = None,
) -> Started:
    """Execute a captured start command; returns as soon as it runs (readiness.wait_ready does the waiting).

    Outputs: the held ones; without a hold the file it wrote to before when that still exists; else a file in log_dir.
    notify: give a foreground server our own NOTIFY_SOCKET (with --background kwbase sets its own).
    on_launch: called with the id of the new session before the program is executed in it, for callers that must know
    their own servers again after a crash.
    Errors: StartError.
    """
    executable = _program(start)
    environ = dict(start.environ)
    listener: Notify | None = None
    if notify and not start.background:
        with contextlib.suppress(OSError):  # no temporary directory, or a full one: the health page tells as well
            listener = Notify(start.uid, start.gid)
    if listener:
        environ["NOTIFY_SOCKET"] = str(listener.path)
    with contextlib.ExitStack() as stack:
        outputs = {name: _output(start, name, stdio, log_dir, stack) for name in ("stdout", "stderr")}
        regular = {name: _regular(fd) for name, fd in outputs.items()}
        directory = _flags(start).log_dir
        mark = logs.mark(Path(directory) if directory else None, filter(None, dict.fromkeys(regular.values())))
        began_at, began = time.time(), time.monotonic()
        left: list[str] = []

        def launched(session: int) -> None:
            if on_launch is not None:
                on_launch(session)
            left.extend(cgroups.join(session, start.cgroup))

        try:
            pid = spawn.launch(
                spawn.specification(start, argv=start.argv, executable=executable, environ=environ),
                stdout=outputs["stdout"], stderr=outputs["stderr"], on_launch=launched,
            )
        except BaseException:
            if listener:
                listener.close()
            raise
    reasons = stdio.reasons if stdio else {}
    return Started(
        launched=pid, background=start.background, began_at=began_at, began=began, stdout_log=regular["stdout"],
        stderr_log=regular["stderr"], mark=mark, notify=listener,
        notes=(*(f"{name} could not go where it went: {why}" for name, why in reasons.items()), *left),
    )


def _flags(start: StartCommand) -> startflags.StartFlags:
    return startflags.parse(start.argv, cwd=str(start.cwd), environ=start.environ)


def _program(start: StartCommand) -> Path:
    """The path to execute: argv[0] where that is the captured executable, the executable itself elsewhere.

    With --background kwbase executes argv[0] once more by itself, so there it must lead to the same file.
    """
    called = start.argv[0]
    if "/" in called:
        named: Path | None = start.cwd / called
    else:
        search = os.pathsep.join(
            str(start.cwd / directory) for directory in start.environ.get("PATH", os.defpath).split(os.pathsep)
        )
        named = Path(hit) if (hit := shutil.which(called, path=search)) else None
    if named is not None and named.resolve() == start.executable.resolve():
        return named
    if start.background:
        raise StartError(
            f"{called} no longer leads to {start.executable}", context=f"it leads to {named}, in {start.cwd}",
            hint="with --background kwbase starts itself by that name: point it to the server's executable again",
        )
    return start.executable


def _output(start: StartCommand, name: str, stdio: StdioHold | None, log_dir: Path, stack: contextlib.ExitStack) -> int:
    held = getattr(stdio, name) if stdio else None
    if held is not None:
        return int(held)
    fd = None
    if stdio is None:
        fd = _old_file(start, name)
    if fd is None:
        try:
            log_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = os.open(log_dir / f"server-{name}.log", _APPEND | os.O_CREAT | os.O_NOFOLLOW, files.PRIVATE)
        except OSError:  # a full or lost disk of ours: a server without this file is better than none
            fd = os.open(os.devnull, _APPEND)
    stack.callback(os.close, fd)
    return fd


def _old_file(start: StartCommand, name: str) -> int | None:
    """The file of the old server's output by its path: only when it is still there and a plain file or /dev/null."""
    target = getattr(start, name)
    if not target.startswith("/") or (name == "stderr" and redirected_by_itself(start, target)):
        return None
    with contextlib.suppress(OSError):
        kind = os.lstat(target).st_mode
        if stat.S_ISREG(kind) or target == os.devnull:
            return os.open(target, _APPEND | os.O_NOFOLLOW)
    return None


def _regular(fd: int) -> Path | None:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        return None
    return Path(f"/proc/self/fd/{fd}").readlink()
