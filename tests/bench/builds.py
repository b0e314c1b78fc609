"""A cold build through the tool against the bare `make install`, and the look-up of a build that is there already."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kwdb_build.build import conditions, runner
from kwdb_build.build.caches import DIRECTORY
from kwdb_build.build.history import FILE, BuildHistory, CacheUse
from kwdb_build.build.remote import Remote
from kwdb_build.build.run import Run, copy_source
from kwdb_build.build.store import ArtifactStore
from kwdb_build.config import Settings
from kwdb_build.console import Console
from kwdb_build.engine.base import Engine, RunResult
from kwdb_build.engine.docker import DockerEngine
from kwdb_build.model import SOURCE_SUFFIX, Artifact, SourceTree
from kwdb_build.scratch import scratch_directory
from kwdb_build.upgrade.workshop import Workshop
from tests.bench.downtime import peaks
from tests.integration.tool import TOOLCHAIN, Tool
from tests.minikwdb.repositories import MiniRepositories


class TimedEngine:
    """An engine that notes how long each of its runs took."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.runs_s: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(self, *arguments: Any, **named: Any) -> RunResult:
        """Run and note the seconds."""
        began = time.monotonic()
        try:
            return self._engine.run(*arguments, **named)
        finally:
            self.runs_s.append(time.monotonic() - began)


@dataclass(kw_only=True)
class Bench:
    """One place for all builds of a run: home keeps sources and images, store is empty in the beginning."""

    home: Path
    store: Path
    repositories: MiniRepositories
    console: Console
    workshop: Workshop = field(init=False)
    settings: Settings = field(init=False)
    own_make_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        logs = self.home / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self.settings = Settings(home=self.home, toolchain=str(TOOLCHAIN))
        self.workshop = Workshop(self.settings, self.console, logs)

    def fetch(self, ref: str) -> SourceTree:
        """Fetch a release, from the cache when it is there."""
        prefix, replacement = self.repositories.redirect
        return self.workshop.fetch(ref, url=str(self.repositories.main), redirects=(f"{prefix}={replacement}",))

    def ready(self, ref: str) -> Artifact:
        """A build of a release, whatever it takes; not measured."""
        return self.workshop.build(self.fetch(ref))

    def turn(self, ref: str, *, bare_first: bool) -> tuple[float, float, float]:
        """Seconds of three cold builds of the same tree in the same image: through the tool without and with caches that
        it fills for the next one, and bare.
        """
        tree = self.fetch(ref)
        image = self.workshop.image(tree)
        bare = self.bare(tree, image) if bare_first else 0.0
        without = self.cold(tree, use_cache=False)
        shutil.rmtree(self.home / DIRECTORY, ignore_errors=True)
        filling = self.cold(tree)
        return without, filling, bare or self.bare(tree, image)

    def cold(self, tree: SourceTree, *, use_cache: bool = True) -> float:
        """The tool: copy of the tree, build, checks of the results, `kwbase version`, durable storage. Caches as they are.

        What the container with `make install` took of it goes to `own_make_s`: the same work in the same minute, where
        a pair of builds on a busy machine differs by more than the tool could add.
        """
        shutil.rmtree(self.store, ignore_errors=True)
        settings = self.settings.model_copy(update={"use_cache": use_cache})
        workshop = Workshop(settings, self.console, self.home / "logs")
        workshop.store = ArtifactStore(self.store)
        timed = TimedEngine(workshop.engine)
        workshop.__dict__["engine"] = timed
        began = time.monotonic()
        workshop.build(tree)
        taken = time.monotonic() - began
        self.own_make_s.append(max(timed.runs_s))
        return taken

    def bare(self, tree: SourceTree, image: str) -> float:
        """`docker run … make install` with the same command, user and mounts; the copy is not counted."""
        with self.working_copy(tree, image) as run:
            return self.make(run, image)

    @contextlib.contextmanager
    def working_copy(self, tree: SourceTree, image: str) -> Iterator[Run]:
        """A copy of the tree as the tool would build in it, with empty caches."""
        with DockerEngine.connect(self.settings.docker_host) as engine, scratch_directory(
            self.home / "work", "bench-"
        ) as scratch:
            bench = runner.Bench(
                tree=tree, toolchain=self.workshop.toolchain(tree), image=image, options=self.workshop.options(),
                engine=engine, work_dir=self.home / "work", log=self.home / "logs" / "bare.log", progress=self.console,
                settings=self.settings,
            )
            uid, gid = runner.build_identity()
            copy_source(bench, scratch, conditions.USUAL, uid=uid, gid=gid)
            run = Run(
                bench, scratch, uid=uid, gid=gid, cache=None, shared=Remote(), surroundings=conditions.USUAL
            )
            run.prepare()
            yield run

    def make(self, run: Run, image: str) -> float:
        """Seconds of the bare command in a working copy: the compilers themselves, nothing of ours around make.

        Also not our `date`: KWDB's Makefile stamps the time into kwbase, so that each bare `make install` links it, and
        once more when it installs it.
        """
        spec = run.make_spec()
        environment = {**spec.environment, "PATH": spec.environment["KWDB_PATH"]}
        argv = [
            "docker", "--host", self.workshop.engine.info().address, "run", "--rm", "--network=none", "--init",
            f"--user={spec.uid}:{spec.gid}", f"--workdir={spec.workdir}",
            *(f"--volume={mount.source}:{mount.target}" for mount in spec.mounts),
            *(f"--env={name}={value}" for name, value in environment.items()), image,
            *run.argv(),
        ]
        with (self.home / "logs" / "bare.log").open("ab") as log:
            began = time.monotonic()
            subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True)
            return time.monotonic() - began

    def one_file(self, before: str, after: str, changed: str) -> tuple[float, float, CacheUse]:
        """Seconds of building `after`, which differs from `before` in one file: through the tool, and bare.

        The tool's tree is fresh and its caches hold `before`; the bare make runs in the tree where `before` was built.
        """
        old, new = self.fetch(before), self.fetch(after)
        image = self.workshop.image(old)
        with self.working_copy(old, image) as run:
            self.make(run, image)
            target = run.gopath / SOURCE_SUFFIX / changed
            target.write_bytes((new.path / changed).read_bytes())
            bare = self.make(run, image)
        shutil.rmtree(self.home / DIRECTORY, ignore_errors=True)
        self.cold(old)
        ours = self.cold(new)
        return ours, bare, BuildHistory(self.home / FILE).all()[-1].cache

    def after(self, first: str, second: str) -> tuple[float, float, str]:
        """Builds a release without caches, then another one with what that left.

        Seconds of the second build, the share in percent of its work that the caches spared it, and the counts in words.
        """
        shutil.rmtree(self.home / DIRECTORY, ignore_errors=True)
        self.cold(self.fetch(first))
        seconds = self.cold(self.fetch(second))
        cold, warm = (record.cache for record in BuildHistory(self.home / FILE).all()[-2:])
        done = warm.misses + warm.go_packages
        total = warm.hits + warm.misses + cold.go_packages
        words = f"{warm}; {warm.go_packages} Go packages compiled instead of {cold.go_packages}"
        return seconds, 100 * (1 - done / total), words

    def peak_mib(self, ref: str, home: Path) -> float:
        """The most memory that the tool itself takes over a cold build, from a home where nothing is."""
        tool = Tool(home=home, repositories=self.repositories, docker_host=self.workshop.engine.info().address)
        running = tool.begin("build", ref, "--no-cache")
        peak = peaks(running.pid)[running.pid]
        _, said = running.communicate()
        if running.returncode != 0:
            raise RuntimeError(said)
        return peak / (1 << 20)

    def look_up(self, ref: str, times: int) -> list[float]:
        """Seconds until an upgrade has its build when it was fetched and built before: fetch, find, verify, version."""
        samples = []
        for _ in range(times):
            workshop = Workshop(self.settings, self.console, self.home / "logs")
            prefix, replacement = self.repositories.redirect
            began = time.monotonic()
            workshop.build(
                workshop.fetch(ref, url=str(self.repositories.main), redirects=(f"{prefix}={replacement}",))
            )
            samples.append(time.monotonic() - began)
        return samples
