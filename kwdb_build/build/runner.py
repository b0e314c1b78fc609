"""One build from look-up to stored artifact."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from kwdb_build.build import caches, conditions, provenance, remote, sbom
from kwdb_build.build import recipe as recipes
from kwdb_build.build.key import build_key
from kwdb_build.build.run import NAME, Run, copy_source
from kwdb_build.files import full_disk_said, require_space, tree_bytes
from kwdb_build.model import to_json
from kwdb_build.network import authorities
from kwdb_build.scratch import clean_leftovers, gate, scratch_directory
from kwdb_build.toolchain import given_base

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kwdb_build.build.conditions import Conditions
    from kwdb_build.build.recipe import Recipe
    from kwdb_build.build.store import ArtifactStore
    from kwdb_build.config import Settings
    from kwdb_build.console import Progress
    from kwdb_build.engine.base import Engine
    from kwdb_build.model import Artifact, BuildKey, BuildOptions, SourceTree, Toolchain

UNPRIVILEGED_ID = 65532
"""uid and gid of the build when the caller is root: no one's on usual systems, and not `nobody`, who may own things."""

_PREFIX = "build-"
_STORE_BYTES = 256 << 20
_CACHE_BYTES = 10 << 30


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What one call asks for beside the artifact. tests are of KWDB's own make targets."""

    keep_failed: bool = False
    shell_on_failure: bool = False
    tests: tuple[str, ...] = ()


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
    wishes: Wishes | None = None,
) -> Artifact:
    """Return the stored build of tree, building it in `image` when there is none with that key.

    The tree itself is never touched: a copy below work_dir, removed at the end whatever happens, is mounted at the
    fixed path and built without network and not as root. All output goes to log. While another process builds the same
    key this one waits, and takes its result. Caches lie beside work_dir.
    Errors: ArtifactError (a stored build was changed), SpaceError, BuildError (first error, path of the log),
    EngineError. Cancelling (any exception out of the engine's run) leaves no container, no copy and nothing stored.
    """
    wanted = wishes or Wishes()
    key = build_key(tree, toolchain, options)
    if not wanted.tests and (found := _stored(store, key, progress)) is not None:
        return found
    work_dir.mkdir(parents=True, exist_ok=True)
    with only_builder(work_dir, key, progress):
        if not wanted.tests and (found := _stored(store, key, progress)) is not None:
            return found
        bench = Bench(
            tree=tree, toolchain=toolchain, image=image, options=options, engine=engine, work_dir=work_dir, log=log,
            progress=progress, settings=settings, wishes=wanted,
        )
        bench.require_room(store)
        began, started = time.monotonic(), time.time()
        base = given_base.describe(toolchain, image, settings.registry if settings else "", engine=engine, log=log)
        if base is not None and base.packages is None:
            progress.note(f"the packages of {base.name} cannot be listed: the bill of materials says it is incomplete")
        with contextlib.ExitStack() as stack:
            # While make runs this process has nothing to do.
            bill = stack.enter_context(ThreadPoolExecutor(1)).submit(sbom.sbom_of, key, tree, toolchain, base)
            run = stack.enter_context(bench.run())
            details = run.outcome()
            progress.update("storing the build")
            identity = engine.image_id(image) or image
            info = engine.info()
            invocation = provenance.Invocation(
                id=f"urn:uuid:{uuid.uuid4()}", began=started, ended=time.time(), engine=info, image=identity, base=base,
            )
            artifact = store.add(
                key, run.installed, version=tree.version, commit=tree.commit, built_s=time.monotonic() - began,
                details={
                    "engine": f"{info.kind} {info.version}", "image": identity, "toolchain": toolchain.name,
                    "source": to_json(tree), "source_time": tree.commit_time, **details,
                },
                attest=lambda files: provenance.documents(
                    key, tree, toolchain, options, files, invocation, bill=bill.result()
                ),
            )
            for target in wanted.tests:
                run.own_tests(target)
        return artifact


def _stored(store: ArtifactStore, key: BuildKey, progress: Progress) -> Artifact | None:
    progress.update(f"looking for the stored build {key.short}")
    if (found := store.obtain(key)) is not None:
        progress.note(f"already built: {found.version} ({found.commit[:10]}), key {key.short}")
    return found


@contextlib.contextmanager
def only_builder(work_dir: Path, key: BuildKey, progress: Progress) -> Iterator[None]:
    """Let one process at a time build a key; whoever comes later waits, and says so."""
    locks = work_dir / ".locks"
    locks.mkdir(exist_ok=True)
    lock = FileLock(locks / key.digest[:32])
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress.note(f"another kwdb-build is building {key.short} here: waiting for its result")
        progress.update(f"waiting for another kwdb-build that builds {key.short}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def build_identity() -> tuple[int, int]:
    """User and group of the build: the caller's, never root's."""
    if os.geteuid() == 0:
        return UNPRIVILEGED_ID, UNPRIVILEGED_ID
    return os.geteuid(), os.getegid()


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where and from what a build is made; run() does one, under the usual conditions or others."""

    tree: SourceTree
    toolchain: Toolchain
    image: str
    options: BuildOptions
    engine: Engine
    work_dir: Path
    log: Path
    progress: Progress
    settings: Settings | None = None
    wishes: Wishes = Wishes()

    @property
    def recipe(self) -> Recipe:
        """How this generation is built."""
        return recipes.recipe_for(self.tree.version)

    @property
    def memory_bytes(self) -> int:
        """The limit of the settings, 0 for none."""
        return recipes.parse_size(self.settings.memory) if self.settings else 0

    @property
    def cpus(self) -> float:
        """How many processors the settings allow, 0 for all. Docker refuses to give more than there are."""
        return min(self.settings.cpus, os.cpu_count() or 1) if self.settings else 0

    @property
    def cache_bytes(self) -> int:
        """How large the caches may grow."""
        return recipes.parse_size(self.settings.cache_size) if self.settings else _CACHE_BYTES

    @property
    def jobs(self) -> int:
        """Parallel jobs: as asked for, or what cores and memory allow."""
        physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        allowed = recipes.jobs_for(recipes.cores_for(self.cpus), min(self.memory_bytes or physical, physical))
        return self.options.jobs or (self.settings.jobs if self.settings else 0) or allowed

    def require_room(self, store: ArtifactStore) -> None:
        """SpaceError when the copy, its objects or the result would not fit, whatever killed builds left of theirs."""
        self.tidy()
        store.tidy()
        require_space(self.work_dir, self.recipe.needed_bytes(tree_bytes(self.tree.path)), "build")
        require_space(store.root, _STORE_BYTES, "finished build")

    def tidy(self) -> None:
        """Remove what killed builds left: the container, which goes on writing to copy and caches, then the copy."""
        self.engine.remove_leftovers(NAME)
        with gate(self.work_dir):
            clean_leftovers(self.work_dir, _PREFIX)

    @contextlib.contextmanager
    def run(self, surroundings: Conditions = conditions.USUAL, *, cold: bool = False) -> Iterator[Run]:
        """Build in a working copy that vanishes at the end; yields it when make has succeeded. tidy() goes before.

        cold: without ccache and kept libraries, and with an empty cache of its own for Go. A failed copy stays when it
        was asked for.
        """
        uid, gid = surroundings.identity or build_identity()
        with (
            full_disk_said(self.work_dir, f"building {self.tree.version}", log=self.log),
            scratch_directory(self.work_dir, _PREFIX) as scratch,
            contextlib.ExitStack() as stack,
        ):
            def copy() -> None:
                copy_source(self, scratch, surroundings, uid=uid, gid=gid)

            cache = None
            if not cold and (self.settings is None or self.settings.use_cache):
                cache = stack.enter_context(caches.opened(
                    self.work_dir.parent / caches.DIRECTORY, self.toolchain, uid=uid, gid=gid,
                    limit_bytes=self.cache_bytes, progress=self.progress, meanwhile=copy,
                ))
            else:
                copy()
            shared = stack.enter_context(remote.shared(
                self.settings.cache_remote if self.settings and cache else "",
                self.settings.cache_remote_password_file if self.settings else None, scratch=scratch,
                progress=self.progress, authorities=authorities(self.settings.ca_bundle if self.settings else None),
            ))
            run = Run(self, scratch, uid=uid, gid=gid, cache=cache, shared=shared, surroundings=surroundings)
            run.prepare()
            run.make()
            yield run
            run.leave()
