"""The Docker engine (also Podman behind its Docker-compatible socket). Only this and reach.py import docker-py."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import threading
import time
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from kwdb_build import files
from kwdb_build.engine.address import is_remote
from kwdb_build.engine.archive import LOCAL_PREFIX, read_archive
from kwdb_build.engine.base import EngineInfo, RunResult, StoredImage
from kwdb_build.engine.owner import owner, owner_lives
from kwdb_build.engine.reach import Reached, reach
from kwdb_build.engine.stream import BuildEvents, Sink
from kwdb_build.engine.terminal import relay, require_terminal
from kwdb_build.engine.volume import UNRELIABLE, forget_volumes, plain_volume
from kwdb_build.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from kwdb_build.engine.base import Mount, RunSpec

LABEL = "kwdb-build"
_RUN_LABEL = "kwdb-build.run"
_OWNER_LABEL = "kwdb-build.owner"
_KEEP_LABEL = "kwdb-build.keep-failed"
_PIDS_LIMIT = 8192
_SIGKILL_CODE = 137
_CHUNK = 1 << 20
_IDENTITY = re.compile(r"sha256:[0-9a-f]{64}")
_HOST = re.compile(r"^(localhost|[^/]*[.:][^/]*)/")
"""What stands before an image's name in a registry."""


class DockerEngine:
    """One daemon, reached through its API. A context manager: leaving it closes the connections."""

    def __init__(self, reached: Reached) -> None:
        self._api = reached.client
        self.address = reached.address
        self.kind = reached.kind
        self._rootless = reached.rootless
        self._active: set[str] = set()
        self._has_init = True

    @classmethod
    def connect(cls, docker_host: str = "", *, kind: str = "") -> Self:
        """Reach a daemon: docker_host, else DOCKER_HOST, else the docker client's context, else a known local socket.

        kind ('docker', 'podman') is what must answer; '' takes either. Podman is looked for at CONTAINER_HOST, its own
        variable. Errors: EngineError that tells apart not installed, not running, not allowed, unreachable, too old.
        """
        return cls(reach(docker_host, kind))

    def close(self) -> None:
        """Close the connections to the daemon."""
        self._api.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def info(self) -> EngineInfo:
        """Version, address and free space of the daemon; EngineError when it is gone."""
        with self._talk("ask the engine for its version"):
            version = self._api.version()
            root = str(self._api.info().get("DockerRootDir", ""))
        free = -1
        if root and not is_remote(self.address):
            with contextlib.suppress(OSError):  # Podman's store of another user, or a daemon in a machine of its own
                free = shutil.disk_usage(root).free
        return EngineInfo(
            kind=self.kind, version=str(version.get("Version", "")), address=self.address, free_bytes=free
        )

    def _name(self, tag: str) -> str:
        """A tag as this engine knows it: Podman would look for an image without a host's name in a registry."""
        local = self.kind == "podman" and "/" in tag and not tag.startswith("sha256:")
        return tag if not local or _HOST.match(tag) else f"{LOCAL_PREFIX}{tag}"

    def image_id(self, tag: str) -> str | None:
        """Identity of a local image, None when there is none."""
        from docker.errors import ImageNotFound

        with self._talk(f"look up the image {tag}"):
            try:
                return str(self._api.inspect_image(self._name(tag))["Id"])
            except ImageNotFound:
                return None

    def remove_image(self, tag: str) -> None:
        """Remove a local image; none of that name is fine."""
        from docker.errors import ImageNotFound

        with self._talk(f"remove the image {tag}"), contextlib.suppress(ImageNotFound):
            identity = str(self._api.inspect_image(self._name(tag))["Id"])
            self._api.remove_image(self._name(tag), force=True)
            if self.image_id(identity) is None:
                forget_volumes(self._api, identity)

    def import_base(self, archive: Path, tag: str, *, environment: Mapping[str, str]) -> str:
        """Make an image from a tar of a root file system; the tag appears when all of it was read."""
        changes = [f"LABEL {LABEL}=base", *(f'ENV {name}="{value}"' for name, value in environment.items())]
        with self._talk(f"import {archive} as {tag}"):
            # without a name: Podman 4 drops the tag that goes with it
            answer = str(self._api.import_image_from_file(str(archive), changes=changes))
            if made := _IDENTITY.search(answer):
                self._tag(made[0], tag)
        found = self.image_id(tag)
        if found is None:
            raise EngineError(f"the engine did not take {archive} as an image", context=answer[-2000:])
        return found

    def _tag(self, identity: str, tag: str) -> None:
        repository, _, version = self._name(tag).rpartition(":")
        self._api.tag(identity, repository, version, force=True)

    def export_image(self, tag: str, path: Path) -> StoredImage:
        """Write a local image to a file as `docker save` does; the file appears only when it is whole."""
        identity = self.image_id(tag)
        if identity is None:
            raise EngineError(f"cannot export {tag}: there is no such image", hint="make it first")
        partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with self._talk(f"export {tag}"), self._hanging_up(), partial.open("wb") as sink:
                for chunk in self._api.get_image(self._name(tag), chunk_size=_CHUNK):
                    sink.write(chunk)
            read_archive(partial)  # an engine that dies in the middle may end its answer like a whole one
            files.fsync_file(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        files.fsync_directory(path.parent)
        return StoredImage(tag=tag, identity=identity)

    def load_image(self, path: Path) -> StoredImage:
        """Take an image from export_image's file; its layers are checked here, and compared with the engine's after."""
        archive = read_archive(path)
        if self._layers(archive.tag) != archive.diff_ids:
            with self._talk(f"load {path}"), self._hanging_up(), path.open("rb") as stream:
                for event in self._api.load_image(stream):
                    if said := event.get("error"):
                        raise EngineError(f"the container engine refused to load {path}", context=str(said))
                if self.image_id(archive.tag) is None:  # from an engine that has another name for it
                    self._tag(archive.named, archive.tag)
        identity = self.image_id(archive.tag)
        if identity is None or self._layers(archive.tag) != archive.diff_ids:
            raise EngineError(f"the engine did not take {path} as {archive.tag}", hint="see the engine's own log")
        return StoredImage(tag=archive.tag, identity=identity)

    def _layers(self, tag: str) -> tuple[str, ...] | None:
        from docker.errors import ImageNotFound

        with self._talk(f"look up the image {tag}"):
            try:
                return tuple(self._api.inspect_image(self._name(tag))["RootFS"]["Layers"])
            except ImageNotFound:
                return None

    def build_image(
        self, context: Path, *, dockerfile: str, tag: str, arguments: Mapping[str, str], mounts: tuple[Mount, ...] = (),
        on_line: Callable[[str], None], log: Path, network: str = "none",
    ) -> str:
        """Build with the classic builder; the tag appears only when the whole build succeeded.

        network: 'none', or 'default' where a base from a registry needs its package manager. arguments are no place
        for secrets, except the names that Docker itself keeps out of images (HTTP_PROXY and the like).
        """
        if mounts:
            raise EngineError("the classic image builder has no bind mounts", hint="put files into the context")
        if network != "none":
            arguments = {**proxy_arguments(os.environ), **arguments}
        events = BuildEvents()
        with contextlib.ExitStack() as stack:
            sink = stack.enter_context(log.open("a", encoding="utf-8", buffering=1))
            stack.enter_context(self._talk(f"build the image {tag}", log=log))
            stack.enter_context(self._hanging_up())  # closing the answer is what cancels a build
            stream = self._api.build(
                path=str(context), dockerfile=dockerfile, rm=True, forcerm=True, pull=False, decode=True, timeout=None,
                buildargs=dict(arguments), network_mode=network, use_config_proxy=False,
            )
            for event in stream:
                for line in events.feed(event):
                    sink.write(line + "\n")
                    on_line(line)
            if events.error:
                sink.write(events.error + "\n")
                self._forget(events.intermediate)
            identity = events.finish(tag=tag, log=log)
            self._tag(identity, tag)
        return self.image_id(tag) or identity

    def _forget(self, identities: Sequence[str]) -> None:
        """Remove the nameless images that a failed build left; one with a name, or that others stand on, stays."""
        for identity in reversed(identities):
            with contextlib.suppress(Exception):
                found = self._api.inspect_image(identity)
                if not found.get("RepoTags") and not found.get("RepoDigests"):
                    self._api.remove_image(identity)

    def run(self, spec: RunSpec, *, on_line: Callable[[str], None], log: Path) -> RunResult:
        """Run to the end without network, capabilities or root; whatever ends this call removes the container.

        The image is mounted read-only; /tmp is a tmpfs. Errors: EngineError when the daemon refuses or dies.
        """
        if spec.uid == 0:
            raise EngineError("builds never run as root", hint="give another uid")
        if spec.mounts and is_remote(self.address):
            raise EngineError(
                f"the engine at {self.address} is on another machine and does not see the directories of this one",
                hint="use an engine of this machine (--docker-host unix:///var/run/docker.sock)",
            )
        for mount in spec.mounts if self.kind == "podman" else ():
            if not mount.source.exists():  # Podman would make an empty directory there
                raise EngineError(f"refused to mount {mount.source}: there is no such directory")
        if spec.interactive:
            require_terminal()
        self.remove_leftovers(spec.name)
        container, kept, removal = "", "", ""
        with log.open("a", encoding="utf-8", errors="replace", buffering=1) as sink:
            try:
                with self._talk(f"run {spec.argv[0]} in {spec.image}", log=log):
                    container = self._create(spec)
                    self._active.add(container)
                    result = self._follow(container, spec, Sink(sink.write, on_line))
                    if spec.keep_failed and result.returncode != 0:
                        kept = f"docker --host {self.address} start --attach {container[:12]}"
                        removal = f"docker --host {self.address} rm --force {container[:12]}"
                    return replace(result, kept=kept, removal=removal)
            finally:
                if not kept:
                    self._remove(container)
                self._active.discard(container)

    def remove_leftovers(self, name: str) -> int:
        """Remove containers that killed runs of this name left; one whose owner still lives stays. Returns how many."""
        removed = 0
        with self._talk(f"look for left-over containers of {name}"):
            for found in self._api.containers(all=True, filters={"label": f"{LABEL}={name}"}):
                if _KEEP_LABEL in found.get("Labels", {}) and self._ended_once(found["Id"]):
                    continue  # somebody asked for it, and still looks into it, or has started it again
                made_by = str(found.get("Labels", {}).get(_OWNER_LABEL, ""))
                mine = made_by == owner() and found["Id"] not in self._active  # the engine died under it
                if mine or not owner_lives(made_by):
                    self._remove(found["Id"])
                    removed += 1
        return removed

    def _ended_once(self, container: str) -> bool:
        from docker.errors import NotFound

        with contextlib.suppress(NotFound):
            return not str(self._api.inspect_container(container)["State"]["FinishedAt"]).startswith("0001")
        return False

    def _create(self, spec: RunSpec) -> str:
        from docker.errors import APIError

        try:
            return self._create_with(spec, init=self._has_init)
        except APIError as error:
            if not self._has_init or "container-init binary not found" not in _said(error):
                raise
            self._has_init = False  # Podman without catatonit: the program itself is the first process
            return self._create_with(spec, init=False)

    def _create_with(self, spec: RunSpec, *, init: bool) -> str:
        from docker.types import LogConfig
        from docker.types import Mount as DockerMount

        # "bind" mounts, not "binds": a directory that the daemon does not see is an error, not an empty directory
        mounts = [
            DockerMount(target=mount.target, source=str(mount.source), type="bind", read_only=mount.read_only)
            for mount in spec.mounts
        ]
        if spec.listed and self._api.info().get("Driver") in UNRELIABLE:
            image = str(self._api.inspect_image(self._name(spec.image))["Id"])
            mounts += [
                DockerMount(target=directory, source=plain_volume(self._api, image, directory), type="volume",
                            read_only=True, no_copy=True)
                for directory in spec.listed
            ]
        host = self._api.create_host_config(
            network_mode="none", cap_drop=["ALL"], security_opt=["no-new-privileges"], read_only=True, init=init,
            tmpfs={"/tmp": "rw,exec,nosuid,nodev,mode=1777"}, mounts=mounts,  # noqa: S108 - inside the container
            pids_limit=_PIDS_LIMIT, mem_limit=spec.memory_bytes or None, memswap_limit=spec.memory_bytes or None,
            nano_cpus=int(spec.cpus * 1e9) or None, log_config=LogConfig(type="none"),
        )
        if self._rootless and spec.mounts:
            host["UsernsMode"] = "keep-id"  # docker-py lets no other word than "host" through
        answer = self._api.create_container(
            image=self._name(spec.image), command=list(spec.argv), entrypoint=[], environment=dict(spec.environment),
            working_dir=spec.workdir, user=f"{spec.uid}:{spec.gid}", hostname=spec.hostname, host_config=host,
            labels={LABEL: spec.name, _RUN_LABEL: uuid.uuid4().hex, _OWNER_LABEL: owner(),
                    **({_KEEP_LABEL: "yes"} if spec.keep_failed else {})},
            tty=spec.interactive, stdin_open=spec.interactive, use_config_proxy=False,
        )
        return str(answer["Id"])

    @contextlib.contextmanager
    def _hanging_up(self) -> Iterator[None]:
        """Close every connection opened inside: docker-py leaves streams open that are not read to their end."""
        answers: list[Any] = []

        def remember(answer: Any, *_: Any, **__: Any) -> None:
            answers.append(answer)

        hooks: list[Any] = self._api.hooks["response"]
        hooks.append(remember)
        try:
            yield
        finally:
            hooks.remove(remember)
            for answer in answers:
                for close in (answer.raw.close, answer.close):
                    with contextlib.suppress(Exception):  # the other end may be gone already
                        close()

    def _follow(self, container: str, spec: RunSpec, sink: Sink) -> RunResult:
        with self._hanging_up():
            return self._converse(container) if spec.interactive else self._follow_open(container, spec, sink)

    def _converse(self, container: str) -> RunResult:
        """Connect the caller's terminal to the container until its program ends."""
        wanted = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
        stream = self._api.attach_socket(container, params=wanted)
        try:
            self._api.start(container)

            def resize(rows: int, columns: int) -> None:
                self._api.resize(container, rows, columns)

            if not relay(getattr(stream, "_sock", stream), resize):
                self._api.kill(container)  # the terminal was closed: nobody could end it any more
        finally:
            stream.close()
        return RunResult(returncode=int(self._api.wait(container, timeout=None)["StatusCode"]))

    def _follow_open(self, container: str, spec: RunSpec, sink: Sink) -> RunResult:
        stream = self._api.attach(container, stdout=True, stderr=True, stream=True, logs=False, demux=True)
        timed_out = threading.Event()

        def expire() -> None:
            timed_out.set()
            with contextlib.suppress(Exception):  # it may have ended by itself in this very moment
                self._api.kill(container)

        timer = threading.Timer(spec.timeout_s, expire) if spec.timeout_s is not None else None
        try:
            self._api.start(container)
            if timer:
                timer.start()
            for stdout, stderr in stream:
                sink.feed(stdout, stderr)
            returncode = int(self._api.wait(container, timeout=None)["StatusCode"])
        finally:
            if timer:
                timer.cancel()
            sink.flush()
        state = self._api.inspect_container(container)["State"]
        return RunResult(
            returncode=returncode, oom_killed=_out_of_memory(state), timed_out=timed_out.is_set() and
            returncode == _SIGKILL_CODE,
        )

    def _remove(self, container: str) -> None:
        if not container:
            return
        from docker.errors import APIError, DockerException
        from requests.exceptions import RequestException

        for _ in range(3):
            try:
                self._api.remove_container(container, force=True, v=True)
            except APIError as error:
                if error.status_code == 409:  # noqa: PLR2004 - the daemon is removing it already, or is still killing
                    time.sleep(0.5)
                    continue
            except (DockerException, RequestException, OSError):
                pass  # the daemon is gone; what is left is removed by the next run of the same name
            return

    @contextlib.contextmanager
    def _talk(self, doing: str, *, log: Path | None = None) -> Iterator[None]:
        """Turn everything that talking to a daemon can raise into one EngineError."""
        from docker.errors import APIError, DockerException, ImageNotFound
        from requests.exceptions import RequestException
        from urllib3.exceptions import HTTPError

        try:
            yield
        except ImageNotFound as error:
            raise EngineError(f"cannot {doing}: there is no such image", context=_said(error), log=log) from error
        except APIError as error:
            hint = ""
            if "bind source path does not exist" in _said(error):
                hint = (
                    f"the engine at {self.address} does not see that directory: it must be on this machine, "
                    "and its file sharing must include the directory"
                )
            elif "no space left" in _said(error):
                hint = f"make room in the engine's storage: {self.kind} system df; {self.kind} image prune"
            raise EngineError(
                f"the container engine refused to {doing}", context=_said(error), hint=hint, log=log
            ) from error
        except (RequestException, HTTPError, ConnectionError, DockerException) as error:
            raise EngineError(
                f"the connection to the container engine at {self.address} broke: cannot {doing}", context=str(error),
                hint="look whether it still runs (docker version; journalctl -u docker), then run the same again",
                log=log,
            ) from error


def _said(error: Any) -> str:
    return str(getattr(error, "explanation", "") or error)


def _out_of_memory(state: Mapping[str, Any]) -> bool:
    """The engine's own word; it is set when the kernel killed any process of the container, not only the first."""
    return bool(state.get("OOMKilled"))


def proxy_arguments(environment: Mapping[str, str]) -> dict[str, str]:
    """The proxies of this machine as build arguments that Docker keeps out of the image and its history."""
    names = ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY")
    wanted = {*names, *(name.lower() for name in names)}
    return {name: value for name, value in environment.items() if name in wanted}
