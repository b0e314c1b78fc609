"""The engine without a daemon: bubblewrap over unpacked root file systems in <home>/sandbox. The embedded default.

A run has its own user, process, mount, host name, IPC and network namespaces (no network but its own loopback), an
image that it cannot write, /tmp in memory, a minimal /dev, no capability and no way to get one. Its first process is
tied to ours: whatever ends this tool, SIGKILL included, ends the run.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import tarfile
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from kwdb_build import command
from kwdb_build.engine import again, bubblewrap, dockerfile, layers
from kwdb_build.engine.archive import read_archive
from kwdb_build.engine.base import EngineInfo, RunResult, StoredImage
from kwdb_build.engine.bubblewrap import Bind
from kwdb_build.engine.docker import proxy_arguments
from kwdb_build.engine.limits import limited
from kwdb_build.engine.rootfs import ROOT, ImageStore
from kwdb_build.engine.stream import TAIL_LINES, LineSplitter, Sink
from kwdb_build.engine.terminal import on_own_terminal, require_terminal
from kwdb_build.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

    from kwdb_build.engine.base import Mount, RunSpec
    from kwdb_build.engine.dockerfile import Instruction
    from kwdb_build.engine.limits import Limits

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ALL_IDS = 65536
_UNPACK_S = 3600.0
_NOT_FOUND = 127
_FAILED = 1
"""The exit code of a bwrap that could not do its own work, which it says on stderr."""
_SIGNALLED = 128
_PIECE = 1 << 16


class SandboxEngine:
    """Sandboxes of one home. A context manager like the other engines; there is nothing to close."""

    def __init__(self, place: Path, *, version: str) -> None:
        self.address = str(place)
        self.images = ImageStore(place)
        self._version = version
        self._as_root = os.geteuid() == 0

    @classmethod
    def open(cls, place: Path) -> Self:
        """Check that sandboxes can be made here, by making one; images are kept below place.

        Errors: EngineError that names the package or the setting that is missing.
        """
        try:
            said = command.run([bubblewrap.program(), "--version"]).stdout
        except command.CommandError as error:
            raise EngineError("bubblewrap does not run", context=error.context or error.message) from error
        found = cls(place, version=bubblewrap.check_version(said))
        found._try_out()
        return found

    def close(self) -> None:
        """Nothing is held open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _try_out(self) -> None:
        """A sandbox of this machine's own /usr that does nothing: the same steps as a run takes."""
        if self._as_root and not bubblewrap.may_mount():
            raise bubblewrap.refused("root without CAP_SYS_ADMIN, as in a container")
        try:
            self.with_own_tools((), ["/bin/sh", "-c", ":"])
        except command.CommandError as error:
            raise bubblewrap.refused(error.context or error.message) from error

    def info(self) -> EngineInfo:
        """Version of bubblewrap, where the images are, and the free space there."""
        place = next(path for path in (Path(self.address), *Path(self.address).parents) if path.is_dir())
        return EngineInfo(
            kind="sandbox", version=self._version, address=self.address, free_bytes=shutil.disk_usage(place).free
        )

    def image_id(self, tag: str) -> str | None:
        """Identity of an image, None when there is none."""
        return self.images.identity(tag)

    def remove_image(self, tag: str) -> None:
        """Forget a tag and its image; none of that name is fine."""
        self.images.remove(tag)

    def import_base(self, archive: Path, tag: str, *, environment: Mapping[str, str]) -> str:
        """Unpack the tar of a root file system; the tag appears when all of it was unpacked and hashed."""
        with self._changing(f"import {archive} as {tag}"), self.images.making() as scratch:
            self._unpack(archive, scratch / ROOT)
            if not any((scratch / ROOT).iterdir()):
                raise EngineError(f"{archive} is no root file system", context="nothing is in it")
            return self.images.keep(scratch, tag, environment=environment)

    def build_image(
        self, context: Path, *, dockerfile: str, tag: str, arguments: Mapping[str, str], mounts: tuple[Mount, ...] = (),
        on_line: Callable[[str], None], log: Path, network: str = "none",
    ) -> str:
        """Carry out an image recipe step by step on a copy of its base; the tag appears when all of it succeeded."""
        if mounts:
            raise EngineError("an image is built without mounts", hint="put files into the context")
        with self._changing(f"build the image {tag}", log), self.images.making() as scratch, \
                log.open("a", encoding="utf-8", errors="replace", buffering=1) as stream:
            build = _ImageBuild(
                engine=self, context=context, root=scratch / ROOT, given=arguments, network=network,
                sink=Sink(stream.write, on_line), log=log, tag=tag,
            )
            build.carry_out((context / dockerfile).read_text(encoding="utf-8"))
            return self.images.keep(scratch, tag, environment=build.environment)

    def export_image(self, tag: str, path: Path) -> StoredImage:
        """Write an image as `docker save` does, in one layer; the file appears only when it is whole."""
        root, record = self.images.open(tag)
        with self._changing(f"export {tag}"):
            layers.write_archive(path, root, tag=tag, environment=record["environment"])
        return StoredImage(tag=tag, identity=str(record["identity"]))

    def load_image(self, path: Path) -> StoredImage:
        """Take an image from the file of any engine, its layers checked and unpacked one over the other."""
        archive = read_archive(path)
        if (identity := self.image_id(archive.tag)) is not None:
            _, record = self.images.open(identity)
            if tuple(record["layers"]) == archive.diff_ids:
                return StoredImage(tag=archive.tag, identity=identity)
        with self._changing(f"load {path}"), self.images.making() as scratch, tarfile.open(path) as tar:
            for name in archive.members:
                layer = scratch / "layer.tar"
                layers.extract(tar, name, layer)
                layers.take_away(layer, scratch / ROOT)
                self._unpack(layer, scratch / ROOT)
                layer.unlink()
            identity = self.images.keep(
                scratch, archive.tag, environment=archive.environment, layers=archive.diff_ids
            )
        return StoredImage(tag=archive.tag, identity=identity)

    def remove_leftovers(self, name: str) -> int:
        """Nothing: a sandbox ends with the process that made it."""
        del name
        return 0

    def run(self, spec: RunSpec, *, on_line: Callable[[str], None], log: Path) -> RunResult:
        """Run to the end in a sandbox of its own; whatever ends this call, or this process, ends the run.

        Errors: EngineError when the image is missing or was changed, a mount's directory does not exist, or the
        sandbox cannot be made.
        """
        if spec.uid == 0:
            raise EngineError("builds never run as root", hint="give another uid")
        if spec.interactive:
            require_terminal()
        root, _ = self.images.open(spec.image)
        for mount in spec.mounts:
            if not mount.source.exists():
                raise EngineError(
                    f"the sandbox refused to mount {mount.source}: there is no such directory",
                    hint="the sandbox does not see that directory: it must exist before the run",
                )
        with log.open("a", encoding="utf-8", errors="replace", buffering=1) as stream, contextlib.ExitStack() as stack:
            sink = Sink(stream.write, on_line)
            limits = stack.enter_context(limited(spec.memory_bytes, spec.cpus))
            run = _Run(spec=spec, root=root, sink=sink, stack=stack, as_root=self._as_root, limits=limits)
            result = run.follow()
        if spec.keep_failed and result.returncode != 0:
            kept, removal = again.keep(Path(self.address), spec)
            return replace(result, kept=kept, removal=removal)
        return result

    def _unpack(self, archive: Path, target: Path) -> None:
        """Unpack in a sandbox that sees nothing but archive and target: what it holds cannot get anywhere else."""
        binds = (Bind(source=archive, target="/archive"), Bind(source=target, target="/target", read_only=False))
        try:
            self.with_own_tools(binds, [
                "tar", "--extract", "--file=/archive", "--directory=/target", "--preserve-permissions",
                "--no-same-owner", "--delay-directory-restore", "--exclude=./dev/*", "--exclude=dev/*",
                "--exclude=.wh.*", "--exclude=*/.wh.*",
            ])
        except command.CommandError as error:
            raise EngineError(f"{archive} cannot be unpacked", context=error.context or error.message) from error

    def with_own_tools(self, binds: Sequence[Bind], argv: Sequence[str]) -> None:
        """Run a program of this machine that sees only the binds; CommandError when it fails."""
        with self.user_namespace_of_all() as userns:
            options = bubblewrap.with_own_tools(binds, identity=bubblewrap.identity(0, 0, userns))
            command.run(
                [bubblewrap.program(), *options, "--", *argv], timeout_s=_UNPACK_S,
                env={"PATH": _PATH, "LC_ALL": "C.UTF-8"}, fds=() if userns is None else (userns,),
            )

    @contextlib.contextmanager
    def user_namespace_of_all(self) -> Iterator[int | None]:
        """A user namespace with all users of this machine, which only root can have; None: bwrap makes one for us."""
        if not self._as_root:
            yield None
            return
        with bubblewrap.user_namespace(0, 0, count=_ALL_IDS) as userns:
            yield userns

    @contextlib.contextmanager
    def _changing(self, doing: str, log: Path | None = None) -> Iterator[None]:
        """Turn what the file system raises (no space, no rights) into an EngineError; nothing half is left."""
        try:
            yield
        except OSError as error:
            raise EngineError(
                f"the sandbox cannot {doing}: {error.strerror or error}", context=str(error), log=log,
                hint=f"look at the free space and the rights of {self.address}",
            ) from error


@dataclass(kw_only=True)
class _Run:
    """One run: its sandbox's options, what bwrap tells about it, and how it is ended."""

    spec: RunSpec
    root: Path
    sink: Sink
    stack: contextlib.ExitStack
    as_root: bool
    limits: Limits
    child: int = 0
    status: str = ""
    said: list[str] = field(default_factory=list)
    _open: set[int] = field(default_factory=set)

    def follow(self) -> RunResult:
        for lacking in self.limits.lacking:
            self.sink.emit([f"sandbox: {lacking}"])
        self._status, self._status_write = self._pipe()
        block, self._block_write = self._pipe()
        argv, fds = self._argv(["--json-status-fd", str(self._status_write), "--block-fd", str(block)])
        argv, fds = [*self.limits.prefix, *argv], [*fds, self._status_write, block]
        if self.spec.interactive:
            returncode = on_own_terminal(argv, env=self.spec.environment, fds=fds, started=self._admit)
            timed_out = False
        else:
            errors = LineSplitter()

            def take(out: bytes, err: bytes) -> None:
                self._listen(errors.feed(err))
                self.sink.feed(out, err)

            returncode, timed_out = command.follow(
                argv, env=self.spec.environment, fds=fds, on_output=take, started=self._admit, end=self.end,
                timeout_s=self.spec.timeout_s,
            )
            self._listen(errors.flush())
            self.sink.flush()
        return self._result(returncode, timed_out=timed_out)

    def end(self) -> None:
        """Kill the first process of the sandbox's process namespace: the kernel kills all others before it is gone."""
        if self.child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.child, signal.SIGKILL)

    def _pipe(self) -> tuple[int, int]:
        ends = os.pipe()
        for end in ends:
            self.stack.callback(self._close, end)
        self._open.update(ends)
        return ends

    def _close(self, end: int) -> None:
        """Close an end of a pipe once: the number may be somebody else's right after."""
        if end in self._open:
            self._open.remove(end)
            os.close(end)

    def _argv(self, first: list[str]) -> tuple[list[str], list[int]]:
        """The command line, and the descriptors that it needs; first: further options of the first bwrap.

        Only that one tells of itself: the second one would look for its process under a number of another namespace.
        """
        spec, program = self.spec, bubblewrap.program()
        session = [] if spec.interactive else ["--new-session"]
        if not self.as_root:
            options = bubblewrap.sandbox(spec, self.root, spec.mounts, seen_rootfs=self.root, userns=None)
            file = self._file([*options, *session, *first])
            return [program, "--args", str(file), "--", *spec.argv], [file]
        userns = self.stack.enter_context(bubblewrap.user_namespace(spec.uid, spec.gid))
        reach, seen, mounts = bubblewrap.within_reach(self.root, spec.mounts)
        options = bubblewrap.sandbox(spec, self.root, mounts, seen_rootfs=seen, userns=userns)
        outer, inner = self._file([*reach, *first]), self._file([*options, *session])
        argv = [program, "--args", str(outer), "--", program, "--args", str(inner), "--", *spec.argv]
        return argv, [outer, inner, userns]

    def _file(self, options: Sequence[str]) -> int:
        return self.stack.enter_context(bubblewrap.arguments_file(options))

    def _admit(self) -> None:
        """Wait until bwrap tells its first process, put that into its limits and let it go on."""
        self._close(self._status_write)  # only bwrap's own copy is left: a bwrap that fails ends the reading
        while not self.child:
            data = os.read(self._status, _PIECE)
            if not data:
                return
            self.status += data.decode("ascii", "replace")
            self.child = _told(self.status, "child-pid") or 0
        self.limits.take(self.child)
        os.write(self._block_write, b"\n")

    def _listen(self, lines: Sequence[str]) -> None:
        self.said += [line for line in lines if line.startswith("bwrap: ")]

    def _result(self, returncode: int, *, timed_out: bool) -> RunResult:
        oom = self.limits.out_of_memory()
        said = "\n".join(self.said)
        if not timed_out and (self.child == 0 or (said and returncode == _FAILED)):
            if "execvp" in said:
                return RunResult(returncode=_NOT_FOUND)
            raise bubblewrap.refused(said or f"bwrap ended with exit code {returncode}")
        code = returncode if returncode >= 0 else _SIGNALLED - returncode
        return RunResult(returncode=code, oom_killed=oom, timed_out=timed_out)


@dataclass(kw_only=True)
class _ImageBuild:
    """The state that instructions of an image recipe work on."""

    engine: SandboxEngine
    context: Path
    root: Path
    tag: str
    given: Mapping[str, str]
    network: str
    sink: Sink
    log: Path
    environment: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))

    def carry_out(self, text: str) -> None:
        """Every instruction in order; EngineError with the failed one and its last lines."""
        steps = dockerfile.parse(text)
        do = {"ARG": self.arg, "FROM": self.take_base, "ENV": self.env, "COPY": self.copy, "RUN": self.run}
        for number, step in enumerate(steps, 1):
            self.tail.clear()
            self.sink.emit([f"Step {number}/{len(steps)} : {step}"])
            do[step.keyword](step)

    def arg(self, step: Instruction) -> None:
        name, default = dockerfile.argument(step.rest)
        value = self.given.get(name, default)
        if value is not None:
            self.arguments[name] = value

    def env(self, step: Instruction) -> None:
        self.environment |= {
            name: dockerfile.expand(value, self.arguments | self.environment)
            for name, value in dockerfile.assignments(step.rest).items()
        }

    def take_base(self, step: Instruction) -> None:
        name = dockerfile.expand(step.rest, self.arguments)
        if self.engine.image_id(name) is None:
            raise EngineError(
                f"the sandbox has no image {name} and cannot fetch one from a registry", log=self.log,
                hint="leave the setting base_image empty (the base is then made from packages), give it as a file, or "
                "use a container engine (--engine docker)",
            )
        base, record = self.engine.images.open(name)
        self.environment = dict(record["environment"])
        self.arguments = {}
        self._done(step, lambda: command.run(
            ["cp", "--archive", "--reflink=auto", f"{base}/.", str(self.root)], timeout_s=_UNPACK_S
        ))

    def copy(self, step: Instruction) -> None:
        source, target = dockerfile.copied(dockerfile.expand(step.rest, self.arguments | self.environment))
        binds = (
            Bind(source=self.context / source, target="/context"),
            Bind(source=self.root, target="/target", read_only=False),
        )
        self._done(step, lambda: self.engine.with_own_tools(
            binds, ["cp", "--recursive", "--preserve=mode,timestamps,links", "--no-dereference", "/context/.",
                    f"/target/{target.lstrip('/')}"],
        ))

    def run(self, step: Instruction) -> None:
        binds = []
        if self.network != "none":
            binds += [Bind(source=path, target=str(path)) for path in (Path("/etc/resolv.conf"), Path("/etc/hosts"))
                      if path.exists() and (self.root / path.relative_to("/")).exists()]
        environment = {
            "PATH": _PATH, **(proxy_arguments(os.environ) if self.network != "none" else {}), **self.environment,
            **self.arguments,
        }
        with self.engine.user_namespace_of_all() as userns:
            argv = [
                bubblewrap.program(), *bubblewrap.image_run(
                    self.root, binds, network=self.network != "none", userns=userns
                ), "--", "/bin/sh", "-c", step.rest,
            ]
            self._done(step, lambda: self._follow(argv, environment, userns))

    def _follow(self, argv: Sequence[str], environment: Mapping[str, str], userns: int | None) -> None:
        splitter = LineSplitter()

        def take(out: bytes, err: bytes) -> None:
            self.tail.extend(splitter.feed(out + err))
            self.sink.feed(out, err)

        returncode, _ = command.follow(
            argv, env=environment, fds=() if userns is None else (userns,), on_output=take
        )
        self.tail.extend(splitter.flush())
        self.sink.flush()
        if returncode != 0:
            raise command.CommandError(f"it ended with exit code: {returncode}")

    def _done(self, step: Instruction, work: Callable[[], object]) -> None:
        try:
            work()
        except command.CommandError as error:
            seen = "\n".join([str(step), *self.tail, error.context, error.message]).strip()
            raise EngineError(
                f"building the image {self.tag} failed", context=seen, hint="see the log", log=self.log
            ) from error


def _told(text: str, name: str) -> int | None:
    """A value of bwrap's events, one JSON document a line."""
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if name in event:
                return int(event[name])
    return None
