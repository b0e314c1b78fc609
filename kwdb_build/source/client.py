"""The one module that imports GitPython: runs one git command to its end, watched.

GitPython starts the process; we read both its streams as they come, so that progress is live, the log is whole, a
silent git is noticed, and Ctrl-C ends git with everything it started.
"""

from __future__ import annotations

import os
import re
import signal
import tempfile
import threading
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from subprocess import TimeoutExpired
from typing import TYPE_CHECKING, Any, Self

from kwdb_build import command
from kwdb_build.console import Progress
from kwdb_build.errors import DependencyError
from kwdb_build.source.diagnosis import explain, parse_progress, parse_speed, stalled
from kwdb_build.source.environment import UNSET, git_environment, origin_of
from kwdb_build.source.reference import Credentials, Redirect, redact, split_credentials
from kwdb_build.source.transfer import Channel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from subprocess import Popen

STALL_TIMEOUT_S = 120.0
LOCAL_TIMEOUT_S = 3600.0
"""Silence allowed to a git that only works on this machine's disks: a status on a slow one says nothing for long."""
_POLL_S = 0.25
_JOIN_S = 5.0
_CHUNK = 1 << 16
_LINE_END = re.compile(rb"[\r\n]")


@dataclass(frozen=True, kw_only=True)
class Output:
    """A finished git: exit code and both streams; stdout with its NULs and without its last line end."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def ok(self) -> bool:
        """Whether it exited 0."""
        return self.returncode == 0


@dataclass(frozen=True, kw_only=True)
class GitClient:
    """How git is run: redirects and passwords in its environment, progress, log, and when silence is too long.

    variables go into its environment besides. When cancelled is set, by whatever thread, a running git is ended.
    """

    redirects: tuple[Redirect, ...] = ()
    credentials: tuple[tuple[str, Credentials], ...] = ()
    config: tuple[tuple[str, str], ...] = ()
    progress: Progress = Progress()  # noqa: RUF009  # the silent base holds no state
    log: Path | None = None
    stall_timeout_s: float = STALL_TIMEOUT_S
    variables: tuple[tuple[str, str], ...] = ()
    cancelled: threading.Event = field(default_factory=threading.Event)

    def configured(self, *pairs: tuple[str, str]) -> GitClient:
        """The same with more settings."""
        return replace(self, config=(*self.config, *pairs))

    def with_url(self, url: str) -> tuple[GitClient, str]:
        """Split a password off url: a client that knows it, and the url to put into argument lists."""
        clean, secret = split_credentials(url)
        if secret is None:
            return self, url
        return replace(self, credentials=(*self.credentials, (origin_of(clean), secret))), clean

    def run(
        self, *args: str, cwd: Path, what: str, url: str = "", check: bool = True, stdin: str = ""
    ) -> Output:
        """Run `git args` in cwd, with stdin (surrogates stand for odd bytes) as its input.

        what names the deed for messages ('fetching'), url the other side. With check, a failure is raised as what
        diagnosis.explain makes of it; a git that talks to url and is silent for stall_timeout_s is ended and reported
        always.
        """
        patience_s = self.stall_timeout_s if url else LOCAL_TIMEOUT_S
        process = self._start(args, cwd, stdin)
        with _Reader(process, self) as reader:
            try:
                _watch(process, reader, patience_s, self.cancelled)
            except TimeoutError:
                command.end_group(process)
                raise stalled(what=what, url=url, seconds=patience_s, log=self.log) from None
            except BaseException:
                command.end_group(process)
                raise
        output = Output(returncode=process.returncode, stdout=reader.stdout, stderr=reader.stderr)
        if output.returncode < 0:
            # No answer at all, not a `no`: also where the caller would take exit 1 for one.
            seen = f"git was ended by {signal.Signals(-output.returncode).name}"
            raise explain(output.stderr, what=what, url=url, log=self.log, seen=seen)
        if check and not output.ok:
            raise explain(output.stderr or output.stdout, what=what, url=url, log=self.log)
        return output

    def text(self, *args: str, cwd: Path, what: str) -> str:
        """Standard output of a local git command that must succeed."""
        return self.run(*args, cwd=cwd, what=what).stdout

    def _start(self, args: tuple[str, ...], cwd: Path, stdin: str) -> Popen[bytes]:
        git = _gitpython()
        environment = git_environment(
            os.environ, redirects=self.redirects, credentials=dict(self.credentials),
            stall_timeout_s=self.stall_timeout_s, extra=self.config,
        ) | dict(self.variables)
        # GitPython lays variables over the process's own and cannot take one away: env(1) does, in the same process.
        foreign = [word for name in UNSET if name in os.environ for word in ("-u", name)]
        argv = [*(["env", *foreign] if foreign else []), "git", *args]
        self._write_log(f"$ {redact(command.quote(['git', *args]))}\n")
        try:
            with tempfile.TemporaryFile() if stdin else nullcontext() as given:
                if given is not None:
                    given.write(stdin.encode("utf-8", "surrogateescape"))
                    given.seek(0)
                started = git.Git(str(cwd)).execute(
                    argv, as_process=True, env=environment, start_new_session=True, istream=given,
                )
        except git.GitCommandNotFound as error:
            raise _no_git() from error
        process: Popen[bytes] = started.proc
        # We end and reap it ourselves; without this GitPython would end it when its wrapper is collected.
        started.proc = None
        return process

    def _write_log(self, text: str) -> None:
        if self.log is not None:
            # A log on the disk that has just become full must not hide git's own words about it.
            with suppress(OSError):
                self.log.parent.mkdir(parents=True, exist_ok=True)
                with self.log.open("a", encoding="utf-8", errors="replace") as stream:
                    stream.write(text)


class CancelledError(BaseException):
    """Another thread asked this one to stop; no error of its own, like KeyboardInterrupt."""


def _watch(process: Popen[bytes], reader: _Reader, patience_s: float, cancelled: threading.Event) -> None:
    """Wait for the end of process; TimeoutError when it has said nothing for patience_s."""
    while True:
        if cancelled.is_set():
            raise CancelledError
        try:
            process.wait(_POLL_S)
        except TimeoutExpired:
            if time.monotonic() - reader.last_sign > patience_s:
                raise TimeoutError from None
        else:
            return


class _Reader:
    """Reads both streams of a git in threads: progress to the person, whole lines to the log, all of it kept."""

    def __init__(self, process: Popen[bytes], client: GitClient) -> None:
        self._process = process
        self._client = client
        self._out: list[bytes] = []
        self._err: list[str] = []
        self.last_sign = time.monotonic()
        self._threads = [
            threading.Thread(target=self._read_out, daemon=True), threading.Thread(target=self._read_err, daemon=True)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            # Something that git left behind (a credential cache) can hold the pipe open after git's own end.
            thread.join(_JOIN_S)
        for thread, stream in zip(self._threads, (self._process.stdout, self._process.stderr), strict=True):
            if stream is not None and not thread.is_alive():
                stream.close()

    @property
    def stdout(self) -> str:
        return b"".join(self._out).decode("utf-8", "surrogateescape").removesuffix("\n")

    @property
    def stderr(self) -> str:
        return "\n".join(self._err)

    def _chunks(self, stream: Any) -> Iterator[bytes]:
        with suppress(ValueError, OSError):
            while chunk := stream.read1(_CHUNK):
                self.last_sign = time.monotonic()
                yield chunk

    def _read_out(self) -> None:
        self._out.extend(self._chunks(self._process.stdout))

    def _read_err(self) -> None:
        rest = b""
        for chunk in self._chunks(self._process.stderr):
            *lines, rest = _LINE_END.split(rest + chunk)
            for line in lines:
                self._take(line)
        self._take(rest)

    def _take(self, raw: bytes) -> None:
        line = raw.decode("utf-8", "replace").rstrip()
        if not line:
            return
        seen = parse_progress(line)
        if seen is not None:
            text, done, total = seen
            progress = self._client.progress
            if isinstance(progress, Channel):
                size_bytes, speed = parse_speed(line)
                progress.update(text, done=done, total=total, size_bytes=size_bytes, speed=speed)
            else:
                progress.update(text, done=done, total=total)
            if done < total:
                return
        else:
            self._err.append(line)
        self._client._write_log(redact(line) + "\n")  # noqa: SLF001  # its own helper


def _gitpython() -> Any:
    """Import GitPython late: it costs a tenth of a second and looks for git at once."""
    quiet = os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    try:
        import git
    except ImportError as error:
        raise DependencyError("GitPython is not usable", context=str(error), hint="install kwdb-build again") \
            from error
    finally:
        if quiet == "quiet":
            os.environ.pop("GIT_PYTHON_REFRESH", None)
    return git


def _no_git() -> DependencyError:
    return DependencyError("git is not installed", hint="install git 2.36 or newer, for example: apt install git")
