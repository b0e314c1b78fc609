"""One build from look-up to stored artifact."""

from __future__ import annotations

import os
import platform
import re
import time
import uuid
from typing import TYPE_CHECKING, Any

from kwdb_build.build import provenance
from kwdb_build.build import recipe as recipes
from kwdb_build.build.elf import MACHINES, ORIGIN_LIB, drop_build_paths, read_elf
from kwdb_build.build.key import build_key
from kwdb_build.build.progress import Tracker, first_error, out_of_memory
from kwdb_build.engine.base import Mount, RunSpec
from kwdb_build.errors import BuildError
from kwdb_build.files import require_space, walk_files
from kwdb_build.model import to_json
from kwdb_build.scratch import scratch_directory
from kwdb_build.source.inspect import copy_tree

if TYPE_CHECKING:
    from pathlib import Path

    from kwdb_build.build.recipe import Recipe
    from kwdb_build.build.store import ArtifactStore
    from kwdb_build.config import Settings
    from kwdb_build.console import Progress
    from kwdb_build.engine.base import Engine
    from kwdb_build.model import Artifact, BuildOptions, SourceTree, Toolchain

UNPRIVILEGED_ID = 65532
"""uid and gid of the build when the caller is root: no one's on usual systems, and not `nobody`, who may own things."""

_PREFIX = "build-"
_RESULT = "/kwdb-result"
_STORE_BYTES = 256 << 20
_KILLED = 128 + 9
_VERSION_LINE = re.compile(r"^(?:KaiwuDB|KWDB) Version:\s*(?P<version>\S+)")


def build(
    tree: SourceTree,
    *,
    toolchain: Toolchain,
    image: str,
    options: BuildOptions,
    engine: Engine,
    store: ArtifactStore,
    work_dir: Path,
    log: Path,
    progress: Progress,
    settings: Settings | None = None,
) -> Artifact:
    """Return the stored build of tree, building it in `image` when there is none with that key.

    The tree itself is never touched: a copy below work_dir, removed at the end whatever happens, is mounted at the
    fixed path and built without network and not as root. All output goes to log.
    Errors: ArtifactError (a stored build was changed), SpaceError, BuildError (first error, path of the log),
    EngineError. Cancelling (any exception out of the engine's run) leaves no container, no copy and nothing stored.
    """
    key = build_key(tree, toolchain, options)
    progress.update(f"looking for the stored build {key.short}")
    if (found := store.obtain(key)) is not None:
        progress.note(f"already built: {found.version} ({found.commit[:10]}), key {key.short}")
        return found
    recipe = recipes.recipe_for(tree.version)
    work_dir.mkdir(parents=True, exist_ok=True)
    tree_bytes = sum(path.lstat().st_size for path in walk_files(tree.path))
    require_space(work_dir, recipe.needed_bytes(tree_bytes), "build")
    require_space(store.root, _STORE_BYTES, "finished build")
    began, started = time.monotonic(), time.time()
    with scratch_directory(work_dir, _PREFIX) as scratch:
        run = _Run(
            tree=tree, toolchain=toolchain, image=image, engine=engine, log=log, progress=progress, settings=settings,
            recipe=recipe, scratch=scratch,
        )
        run.prepare()
        run.make(options)
        details = run.inspect()
        run.check_version()
        progress.update("storing the build")
        identity = engine.image_id(image) or image
        info = engine.info()
        invocation = provenance.Invocation(
            id=f"urn:uuid:{uuid.uuid4()}", began=started, ended=time.time(), engine=info, image=identity
        )
        return store.add(
            key, run.installed, version=tree.version, commit=tree.commit, built_s=time.monotonic() - began,
            details={
                "engine": f"{info.kind} {info.version}", "image": identity, "toolchain": toolchain.name,
                "source": to_json(tree),
                "source_time": tree.commit_time, **details,
            },
            attest=lambda files: provenance.documents(key, tree, toolchain, options, files, invocation),
        )


def build_identity() -> tuple[int, int]:
    """User and group of the build: the caller's, never root's."""
    if os.geteuid() == 0:
        return UNPRIVILEGED_ID, UNPRIVILEGED_ID
    return os.geteuid(), os.getegid()


class _Run:
    """The parts of one build that share its working copy."""

    def __init__(
        self, *, tree: SourceTree, toolchain: Toolchain, image: str, engine: Engine, log: Path, progress: Progress,
        settings: Settings | None, recipe: Recipe, scratch: Path,
    ) -> None:
        self.tree = tree
        self.toolchain = toolchain
        self.image = image
        self.engine = engine
        self.log = log
        self.progress = progress
        self.recipe = recipe
        self.uid, self.gid = build_identity()
        self.memory_bytes = recipes.parse_size(settings.memory) if settings else 0
        self.wanted_jobs = settings.jobs if settings else 0
        self.gopath = scratch / "gopath"
        self.shims = scratch / "shims"

    @property
    def installed(self) -> Path:
        """Where the results lie on this side."""
        return self.gopath / recipes.INSTALL.relative_to(recipes.GOPATH)

    def prepare(self) -> None:
        """Copy the tree for the build's own user, and lay out what it writes to."""
        copy_tree(self.tree, self.gopath, uid=self.uid, gid=self.gid, progress=self.progress)
        for name in recipes.SCRATCH_DIRECTORIES:
            (self.gopath / name).mkdir(parents=True, exist_ok=True)
            os.chown(self.gopath / name, self.uid, self.gid)
        os.chown(self.gopath, self.uid, self.gid)
        self.shims.mkdir()
        shim = self.shims / "date"
        shim.write_text(recipes.DATE_SHIM, encoding="utf-8")
        for path in (shim, self.shims):
            path.chmod(0o755)

    def make(self, options: BuildOptions) -> None:
        """Run make in the container; BuildError with the first error when it fails."""
        jobs = options.jobs or self.wanted_jobs or recipes.jobs_for(os.cpu_count() or 1, self._memory())
        argv = recipes.make_argv(self.recipe, self.tree, options, jobs)
        tracker = Tracker()

        def follow(line: str) -> None:
            if (step := tracker.feed(line)) is not None:
                self.progress.update(step.text, done=step.done or None, total=step.total or None)

        log_start = self.log.stat().st_size if self.log.exists() else 0
        self.progress.update(f"starting the build with {jobs} jobs")
        result = self.engine.run(
            self._spec(
                argv, mounts=(
                    Mount(source=self.gopath, target=str(recipes.GOPATH), read_only=False),
                    Mount(source=self.shims, target=str(recipes.SHIMS)),
                ),
                environment=recipes.environment(self.tree, self.toolchain.environment),
                workdir=str(recipes.SOURCE), name=f"build-{self.tree.version}",
            ),
            on_line=follow, log=self.log,
        )
        if result.returncode != 0:
            raise self._failure(result.returncode, log_start, jobs, oom_killed=result.oom_killed)

    def _failure(self, returncode: int, log_start: int, jobs: int, *, oom_killed: bool) -> BuildError:
        with self.log.open(encoding="utf-8", errors="replace") as stream:
            stream.seek(log_start)
            error = first_error(stream)
        if oom_killed or out_of_memory(error):
            return BuildError(
                f"the build of {self.tree.version} ran out of memory with {jobs} jobs", context=error, log=self.log,
                hint=f"allow fewer jobs (--jobs {max(1, jobs // 2)}) or more memory: each C++ compiler takes up to "
                "0.9 GB, and Go's link 2 GB",
            )
        if returncode == _KILLED:
            return BuildError(
                f"the build of {self.tree.version} was killed from outside", context=error, log=self.log,
                hint="somebody removed its container, or the machine ran out of memory (the kernel's log tells): run "
                f"it again, perhaps with --jobs {max(1, jobs // 2)}",
            )
        return BuildError(
            f"the build of {self.tree.version} failed (make ended with exit code {returncode})",
            context=error or "no line of its output looks like an error; see the log", log=self.log,
            hint="the first error is above; the log has everything the compiler said",
        )

    def inspect(self) -> dict[str, Any]:
        """Check that everything came out, as ELF for this machine; make kwbase find its own libraries first.

        Returns what is worth recording. BuildError names what is missing.
        """
        self.progress.update("checking the results")
        missing = [name for name in self.recipe.required if not (self.installed / name).is_file()]
        if missing:
            raise BuildError(
                f"make succeeded but did not install {', '.join(missing)}", log=self.log,
                context="installed: " + (", ".join(self._names()) or "nothing"),
                hint="the tree's install rules do not put it below bin/ and lib/; see the log",
            )
        wanted = MACHINES.get(platform.machine(), "")
        for name in self.recipe.required:
            self._check_elf(name, wanted)
        for script in (name for name in self._names() if name.startswith("bin/") and name.endswith(".sh")):
            if not os.access(self.installed / script, os.X_OK):
                raise BuildError(f"{script} was installed but cannot be executed", log=self.log)
        return self._settle_search_path()

    def _names(self) -> list[str]:
        return [str(path.relative_to(self.installed)) for path in walk_files(self.installed)]

    def _check_elf(self, name: str, wanted: str) -> None:
        try:
            facts = read_elf(self.installed / name)
        except ValueError as error:
            raise BuildError(f"{name} was installed but is no ELF file", context=str(error), log=self.log) from error
        if wanted and facts.machine != wanted:
            raise BuildError(
                f"{name} was built for {facts.machine}, this machine needs {wanted}", log=self.log,
                hint="use a toolchain of this machine's architecture",
            )

    def _settle_search_path(self) -> dict[str, Any]:
        kwbase = self.installed / "bin" / "kwbase"
        dropped = drop_build_paths(kwbase)
        facts = read_elf(kwbase)
        if not facts.runpath or facts.runpath[0] != ORIGIN_LIB:
            self.progress.note("kwbase does not look for its libraries beside itself: it needs LD_LIBRARY_PATH")
        return {"runpath": list(facts.runpath), "runpath_dropped": list(dropped)}

    def check_version(self) -> None:
        """Run `kwbase version` once, from the results and with their libraries; its version must be the tree's."""
        self.progress.update("running kwbase version")
        lines: list[str] = []
        path = self.toolchain.environment.get("PATH", "/usr/bin:/bin")
        result = self.engine.run(
            self._spec(
                ("./kwbase", "version"), mounts=(Mount(source=self.installed, target=_RESULT),),
                environment={"PATH": path, "LC_ALL": "C.UTF-8", "TZ": "UTC", "HOME": "/tmp",  # noqa: S108 container's
                             "LD_LIBRARY_PATH": "../lib"},
                workdir=f"{_RESULT}/bin", name=f"version-{self.tree.version}",
            ),
            on_line=lines.append, log=self.log,
        )
        said = next((match["version"] for line in lines if (match := _VERSION_LINE.match(line.strip()))), "")
        if result.returncode != 0 or not said:
            raise BuildError(
                f"the built kwbase does not run: `kwbase version` ended with exit code {result.returncode}",
                context="\n".join(lines[-10:]), log=self.log,
            )
        if said != self.tree.version.text:
            raise BuildError(
                f"the built kwbase says it is {said}, not {self.tree.version}", context="\n".join(lines), log=self.log,
                hint="the tree stamps its version in a way that BUILDINFO_TAG does not reach",
            )

    def _memory(self) -> int:
        physical = _physical_memory()
        return min(self.memory_bytes or physical, physical)

    def _spec(
        self, argv: tuple[str, ...], *, mounts: tuple[Mount, ...], environment: dict[str, str], workdir: str, name: str
    ) -> RunSpec:
        return RunSpec(
            image=self.image, argv=argv, mounts=mounts, environment=environment, workdir=workdir, uid=self.uid,
            gid=self.gid, memory_bytes=self.memory_bytes, name=name,
            listed=tuple(filter(None, (self.toolchain.environment.get("GOROOT"),))),
        )


def _physical_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
