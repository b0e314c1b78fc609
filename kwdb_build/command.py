"""The only room that runs a subprocess: argv lists, never a shell string.

A child gets closed stdin, its own session when asked, a clean way to be ended, and (optionally) a log file that
holds everything it printed.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shlex
import signal
import subprocess
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from kwdb_build.errors import KwdbBuildError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

TAIL_LINES = 30
_END_GRACE_S = 5.0
_PIECE = 1 << 16
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC


@dataclass(frozen=True, kw_only=True)
class Completed:
    """A finished child: exit code (negative: ended by that signal), all of stdout, the last lines of stderr."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str

    @property
    def ok(self) -> bool:
        """Whether it exited 0."""
        return self.returncode == 0


class CommandError(KwdbBuildError):
    """A child could not be started, timed out, or failed where success was required."""

    reference = "command"

    def __init__(self, message: str, *, completed: Completed | None = None, context: str = "", hint: str = "",
                 log: Path | None = None) -> None:
        super().__init__(message, context=context, hint=hint, log=log)
        self.completed = completed


def quote(argv: Sequence[str]) -> str:
    """The command as a person would paste it."""
    return shlex.join(argv)


def run(
    argv: Sequence[str],
    *,
    check: bool = True,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float | None = 60.0,
    log: Path | None = None,
    on_line: Callable[[str], None] | None = None,
    stdin: Path | None = None,
    fds: Sequence[int] = (),
) -> Completed:
    """Run argv to its end and return what it said.

    env replaces the environment when given; stdin is a file that the child reads, else it gets nothing; fds are
    inherited under their numbers. stdout is kept whole, stderr as text too; both go to `log` line by line, and each
    line (of both) to on_line. A child that outlives timeout_s is ended with SIGTERM, then SIGKILL.
    Errors: CommandError when the program is missing, timed out or (with check) exits other than 0.
    """
    try:
        with (stdin or Path(os.devnull)).open("rb") as given:
            process = subprocess.Popen(
                list(argv), cwd=cwd, env=None if env is None else dict(env), stdin=given,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, pass_fds=tuple(fds),
            )
    except OSError as error:
        raise CommandError(
            f"cannot run {argv[0]}: {error.strerror}", context=quote(argv), hint=f"install {argv[0]} or put it on PATH"
        ) from error
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(log.open("a", encoding="utf-8", errors="replace")) if log else None
        collector = _Collector(process, sink, on_line)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            end_group(process)
            raise CommandError(
                f"{argv[0]} did not finish within {timeout_s:g} s", context=quote(argv), log=log
            ) from error
        except BaseException:
            end_group(process)
            raise
        finally:
            collector.join()
    completed = Completed(
        argv=tuple(argv), returncode=process.returncode,
        stdout="".join(collector.out), stderr="".join(collector.err),
    )
    if check and not completed.ok:
        tail = "\n".join((completed.stderr or completed.stdout).splitlines()[-TAIL_LINES:])
        raise CommandError(f"{describe(completed)}: {quote(argv)}", completed=completed, context=tail, log=log)
    return completed


class _Collector:
    """Reads both pipes of a child in threads, so that neither can fill up and block it."""

    def __init__(
        self, process: subprocess.Popen[bytes], sink: IO[str] | None, on_line: Callable[[str], None] | None
    ) -> None:
        self.out: list[str] = []
        self.err: deque[str] = deque(maxlen=2000)
        self._sink = sink
        self._on_line = on_line
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._pump, args=(stream, keep), daemon=True)
            for stream, keep in ((process.stdout, self.out.append), (process.stderr, self.err.append))
        ]
        for thread in self._threads:
            thread.start()

    def _pump(self, stream: IO[bytes], keep: Callable[[str], None]) -> None:
        with stream:
            for raw in stream:
                line = raw.decode("utf-8", "replace")
                with self._lock:
                    keep(line)
                    if self._sink and not self._sink.closed:
                        self._sink.write(line)
                        self._sink.flush()
                    if self._on_line:
                        self._on_line(line.rstrip("\n"))

    def join(self) -> None:
        """Wait for the rest; a grandchild that holds the pipes open is not waited for without end."""
        for thread in self._threads:
            thread.join(timeout=_END_GRACE_S)


def describe(completed: Completed) -> str:
    """How it ended, in words."""
    if completed.returncode < 0:
        return f"{completed.argv[0]} was ended by {signal.Signals(-completed.returncode).name}"
    return f"{completed.argv[0]} failed with exit code {completed.returncode}"


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a child of ours and what it started: SIGTERM to its own process group, SIGKILL after a grace period."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signum)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_GRACE_S)
            return


_REAP_POLL_S = 0.02
_ended: dict[int, int] = {}


def spawn(argv: Sequence[str], *, env: Mapping[str, str], fds: Sequence[int]) -> int:
    """Start argv in a session of its own and return its pid at once; it may outlive us. reap() tells its end.

    The child inherits fds under their numbers (all above 2), and /dev/null as 0, 1 and 2.
    Errors: CommandError when it cannot be started.
    """
    try:
        process = subprocess.Popen(
            list(argv), env=dict(env), pass_fds=tuple(fds), start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
    except OSError as error:
        raise CommandError(f"cannot run {argv[0]}: {error.strerror}", context=quote(argv)) from error
    process.returncode = 0  # its end is ours to collect: the object must neither wait for it nor warn about it
    _ended.pop(process.pid, None)
    return process.pid


def reap(pid: int, timeout_s: float = 0.0) -> int | None:
    """Exit code of a child that spawn() started (negative: ended by that signal), None while it runs.

    Asking again after the end gives the same answer. Errors: ChildProcessError when it never was a child of ours.
    """
    deadline = time.monotonic() + timeout_s
    while pid not in _ended:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended == pid:
            _ended[pid] = os.waitstatus_to_exitcode(status)
        elif time.monotonic() >= deadline:
            return None
        else:
            time.sleep(_REAP_POLL_S)
    return _ended[pid]


def kill_child(pid: int) -> None:
    """SIGKILL a child that spawn() started, unless it has ended, and collect it."""
    if reap(pid) is None:
        os.kill(pid, signal.SIGKILL)
        reap(pid, _END_GRACE_S)


def follow(
    argv: Sequence[str], *, env: Mapping[str, str], fds: Sequence[int], on_output: Callable[[bytes, bytes], None],
    started: Callable[[], None] | None = None, end: Callable[[], None] | None = None, timeout_s: float | None = None,
) -> tuple[int, bool]:
    """Run argv in a session of its own, hand each piece of its (stdout, stderr) on as it comes, and wait for its end.

    Returns the exit code (negative: ended by that signal) and whether timeout_s ended it. env is its whole environment;
    it inherits fds under their numbers. started() is called once it runs. When time is up, or anything is raised in
    here, end() is called to make it end; what is left of it after that is killed. Errors: CommandError when it cannot
    be started.
    """
    try:
        process = subprocess.Popen(
            list(argv), env=dict(env), pass_fds=tuple(fds), start_new_session=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
    except OSError as error:
        raise CommandError(f"cannot run {argv[0]}: {error.strerror}", context=quote(argv)) from error
    with process:
        try:
            deadline = None if timeout_s is None else time.monotonic() + timeout_s
            if started:
                started()
            in_time = _read_both(process, on_output, deadline)
            if not in_time:
                _end(process, end)
                _read_both(process, on_output, time.monotonic() + _END_GRACE_S)
        except BaseException:
            _end(process, end)
            raise
    return process.returncode, not in_time


def _end(process: subprocess.Popen[bytes], end: Callable[[], None] | None) -> None:
    if end:
        end()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_GRACE_S)
    if process.poll() is None:
        end_group(process)


def _read_both(
    process: subprocess.Popen[bytes], on_output: Callable[[bytes, bytes], None], deadline: float | None
) -> bool:
    """Read stdout and stderr until both are closed and the child has ended; False when the deadline came first."""
    with selectors.DefaultSelector() as selector:
        for stream in (process.stdout, process.stderr):
            if stream is not None and not stream.closed:
                selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            for key, _ in selector.select(left):
                data = os.read(key.fd, _PIECE)
                if not data:
                    selector.unregister(key.fileobj)
                elif key.fileobj is process.stdout:
                    on_output(data, b"")
                else:
                    on_output(b"", data)
    try:
        process.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True


class Talking:
    """A child with pipes to and from it; it ends with the context."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid

    def ask(self, line: bytes) -> bytes:
        """Write a line and read what is answered, up to as many bytes; b'' when it has ended."""
        if self._process.stdin is None or self._process.stdout is None:
            return b""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line)
            self._process.stdin.flush()
        return self._process.stdout.read(len(line))

    def errors(self) -> str:
        """All that an ended child wrote to stderr."""
        return self._process.stderr.read().decode("utf-8", "replace") if self._process.stderr else ""


@contextlib.contextmanager
def start(argv: Sequence[str]) -> Iterator[Talking]:
    """Start argv with pipes for its standard streams; it is killed at the end of the context. Errors: CommandError."""
    try:
        process = subprocess.Popen(
            list(argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
    except OSError as error:
        raise CommandError(f"cannot run {argv[0]}: {error.strerror}", context=quote(argv)) from error
    try:
        yield Talking(process)
    finally:
        process.kill()
        with contextlib.suppress(BrokenPipeError):
            process.communicate()


def on_terminal(argv: Sequence[str], *, env: Mapping[str, str], fds: Sequence[int], terminal: int) -> Any:
    """Start argv with a terminal (an open descriptor) as its controlling one; the process, to be waited for."""
    try:
        return subprocess.Popen(
            ["setsid", "--ctty", "--wait", *argv], env=dict(env), pass_fds=tuple(fds), stdin=terminal, stdout=terminal,
            stderr=terminal,
        )
    except OSError as error:
        raise CommandError(f"cannot run {argv[0]}: {error.strerror}", context=quote(argv)) from error


def run_logged(argv: Sequence[str], *, log: Path, timeout_s: float) -> str:
    """Run a command that may leave a server behind: its outputs are the log file itself, and no pipe of ours.

    A pipe would end with us and take along the server that inherited it. Returns why there is no log ('': there is):
    a full or lost disk of ours must not keep a server down. Errors: CommandError, with the last lines of the log, when
    it is missing, fails, or does not end in time (then it is ended).
    """
    why, begin = "", 0
    try:
        begin = _begin_log(log, argv)
        fd = os.open(log, _APPEND)
    except OSError as error:
        why = f"{log}: {error.strerror}"
        fd = os.open(os.devnull, _APPEND)
    try:
        process = subprocess.Popen(list(argv), stdin=subprocess.DEVNULL, stdout=fd, stderr=fd, start_new_session=True)
    except OSError as error:
        raise CommandError(f"cannot run {argv[0]}: {error.strerror}", context=quote(argv), log=log) from error
    finally:
        os.close(fd)
    try:
        code = process.wait(timeout_s)
    except subprocess.TimeoutExpired as error:
        end_group(process)
        raise CommandError(
            f"{argv[0]} did not end within {timeout_s:g} s", context=quote(argv), log=log
        ) from error
    except BaseException:
        end_group(process)
        raise
    if code != 0:
        said = f"what it said is lost: {why}"
        if not why:
            with contextlib.suppress(OSError), log.open("rb") as stream:
                stream.seek(begin)
                said = "\n".join(stream.read().decode("utf-8", "replace").splitlines()[-TAIL_LINES:])
        done = Completed(argv=tuple(argv), returncode=code, stdout="", stderr="")
        raise CommandError(describe(done), context=said, log=log)
    return why


def _begin_log(log: Path, argv: Sequence[str]) -> int:
    """Write the command to its log, and return where what follows begins. OSError when it cannot be written."""
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with os.fdopen(os.open(log, _APPEND | os.O_CREAT, 0o600), "ab") as stream:
        stream.write(f"$ {quote(argv)}\n".encode(errors="surrogateescape"))
        return stream.tell()
