"""One run of make in a working copy: what is laid out for it, the container it runs in, and what came of it."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kwdb_build.build import caches, conditions, kept, results, shims
from kwdb_build.build import recipe as recipes
from kwdb_build.build.failure import failure
from kwdb_build.build.history import BUILT, FILE, BuildHistory, BuildRecord, CacheUse
from kwdb_build.build.includes import includes_of
from kwdb_build.build.inputs import Dependencies, dependencies_digest, headers_digest
from kwdb_build.build.key import build_key
from kwdb_build.build.watch import Watch, minutes
from kwdb_build.command import quote
from kwdb_build.engine.base import Mount, RunSpec
from kwdb_build.errors import BuildError, SpaceError
from kwdb_build.files import human_bytes
from kwdb_build.scratch import keep
from kwdb_build.source.inspect import copy_tree
from kwdb_build.toolchain.given_base import is_pinned
from kwdb_build.toolchain.headers import image_headers

if TYPE_CHECKING:
    from pathlib import Path

    from kwdb_build.build.conditions import Conditions
    from kwdb_build.build.includes import Includes
    from kwdb_build.build.remote import Remote
    from kwdb_build.build.runner import Bench
    from kwdb_build.console import Progress
    from kwdb_build.engine.base import RunResult
    from kwdb_build.errors import KwdbBuildError

NAME = "build"
"""What all builds' containers are known by."""
_GOPATH = "gopath"


def copy_source(bench: Bench, scratch: Path, surroundings: Conditions, *, uid: int, gid: int) -> None:
    """Copy the tree into a build's scratch directory, for the build's own user.

    Every file gets the time of the commit: which of two files is newer, a checkout leaves to chance, and make goes by
    it, and KWDB's own `uptodate`.
    """
    copy_tree(
        bench.tree, scratch / _GOPATH, uid=uid, gid=gid, progress=bench.progress, mtime=bench.tree.commit_time,
        backwards=surroundings.backwards,
    )


class Run:
    """The parts of one build that share its working copy, in which the source is there already (see copy_source)."""

    def __init__(
        self, bench: Bench, scratch: Path, *, uid: int, gid: int, cache: Path | None, shared: Remote,
        surroundings: Conditions,
    ) -> None:
        self._bench = bench
        self._scratch = scratch
        self._uid, self._gid = uid, gid
        self._lasting = cache is not None
        self._cache = cache or scratch / "cache"
        self._warm = cache is not None and any((cache / "go").iterdir())
        self._shared = shared
        self._surroundings = surroundings
        self._jobs = surroundings.jobs or bench.jobs
        self._watch: Watch | None = None
        self._includes: Includes | None = None
        self.gopath = scratch / _GOPATH
        self.shims = scratch / "shims"

    @property
    def installed(self) -> Path:
        """Where the results lie on this side."""
        return self.gopath / recipes.INSTALL.relative_to(recipes.GOPATH)

    @property
    def _scratch_inside(self) -> Path:
        return self._scratch / "inside"

    def prepare(self) -> None:
        """Lay out, beside the copy of the source, what the build writes to and what it has of earlier ones."""
        tree = self._bench.tree
        owned = [self._scratch_inside, *(self.gopath / name for name in recipes.DIRECTORIES)]
        if self._cache.parent == self._scratch:
            owned += [self._cache, *(self._cache / part for part in caches.PARTS)]
        for directory in owned:
            directory.mkdir(parents=True, exist_ok=True)
        for directory in (*owned, self.gopath):
            os.chown(directory, self._uid, self._gid)
        self.shims.mkdir()
        for name, text in shims.FILES.items():
            (self.shims / name).write_text(text, encoding="utf-8")
            (self.shims / name).chmod(0o755)
        self.shims.chmod(0o755)
        if self._lasting:
            self._includes = includes_of(tree.path, self._system_headers())
        digests = self._dependencies if self._keeps else Dependencies()
        if any(
            kept.take(
                self._kept, digest, self.gopath, uid=self._uid, gid=self._gid, newer_than=tree.commit_time,
                progress=self._bench.progress,
            ) for digest in (digests.narrow, digests.wide) if digest
        ):
            self._bench.progress.note("the libraries that come with this source are there from an earlier build")
        if self._surroundings.library:
            self._make_library()

    def leave(self) -> None:
        """Keep for other builds what they may have of this one, which succeeded. The working copy is done with."""
        # KWDB's own tests build these libraries once more, elsewhere, and install them over the others.
        if not self._keeps or self._bench.wishes.tests:
            return
        try:
            reason = kept.keep(
                self._kept, self._dependencies, self.gopath, self._scratch_inside, self._bench.tree,
                self._bench.progress, limit_bytes=self._bench.cache_bytes // caches.KEPT_SHARE,
            )
            if reason:
                with self._bench.log.open("a", encoding="utf-8") as log:
                    log.write(f"kept: a change of any header of KWDB's own builds its libraries anew: {reason}\n")
        except (OSError, ValueError) as error:
            # The build is stored: it must not fail for what only spares the next one time.
            self._bench.progress.note(f"{kept.NOT_KEPT}: {error}")

    @property
    def _keeps(self) -> bool:
        return self._lasting and bool(self._dependencies.wide)

    @property
    def _kept(self) -> Path:
        return self._cache.parent / kept.DIRECTORY

    @cached_property
    def _headers(self) -> str:
        return headers_digest(self._bench.tree.path)

    def _system_headers(self) -> frozenset[bytes] | None:
        """Names of all headers in the build image; None when it cannot be listed, which is said."""
        bench = self._bench
        found = image_headers(
            bench.engine, bench.engine.image_id(bench.image) or bench.image, bench.log, toolchain=bench.toolchain,
            known=bench.work_dir.parent / "images", place=self._scratch / "listing", uid=self._uid, gid=self._gid,
        )
        if found is None:
            bench.progress.note("the build image's headers cannot be listed: a new header in the source will make all "
                                "C and C++ be compiled anew")
        return found

    @cached_property
    def _dependencies(self) -> Dependencies:
        return dependencies_digest(
            self._bench.tree, self._bench.options, self._headers, image=self._moving_image
        )

    @cached_property
    def _moving_image(self) -> str:
        """Identity of the build image when its base goes by a name that can mean another one tomorrow; else ''."""
        bench = self._bench
        if not bench.toolchain.base_image or is_pinned(bench.toolchain.base_image):
            return ""
        return bench.engine.image_id(bench.image) or bench.image

    def _make_library(self) -> None:
        """Compile, in the image, what makes programs see another time and another order."""
        place = self._scratch / "otherwise"
        place.mkdir()
        os.chown(place, self._uid, self._gid)
        (place / "elsewhere.c").write_text(conditions.ELSEWHERE_C, encoding="utf-8")
        (place / "elsewhere.c").chmod(0o644)
        argv = ("gcc", "-shared", "-fPIC", "-O1", *self._surroundings.library, "-o", conditions.LIBRARY, "elsewhere.c",
                "-ldl", "-lpthread")
        mount = Mount(source=place, target=str(conditions.PRELOAD), read_only=False)
        path = self._bench.toolchain.environment.get("PATH", "/usr/bin:/bin")
        spec = self.spec(argv, mounts=(mount,), environment={"PATH": path}, workdir=str(conditions.PRELOAD),
                         name="otherwise")
        if self._bench.engine.run(spec, on_line=lambda _line: None, log=self._bench.log).returncode != 0:
            raise BuildError("the image's gcc cannot compile what changes clock and order", log=self._bench.log)

    def make(self) -> None:
        """Run make in the container; BuildError with the first error when it fails."""
        bench = self._bench
        record = self._record("failed", 0.0)
        history = BuildHistory(bench.work_dir.parent / FILE)
        self._watch = Watch(self._scratch_inside, bench.progress, history.alike(record))
        log_start = bench.log.stat().st_size if bench.log.exists() else 0
        bench.progress.update(f"starting the build with {self._jobs} jobs")
        began = time.monotonic()
        result = bench.engine.run(self.make_spec(), on_line=self._watch.line, log=bench.log)
        self._watch.finish()
        history.add(self._record(BUILT if result.returncode == 0 else "failed", time.monotonic() - began))
        if result.returncode != 0:
            error = self._failure(result, log_start)
            self._leave(error, result)
            raise error
        said = [str(self.cache_use), f"{self.cache_use.go_packages} Go packages compiled",
                f"{human_bytes(self._watch.memory_bytes)} of memory at most"]
        bench.progress.note(", ".join(filter(None, said)))

    @property
    def cache_use(self) -> CacheUse:
        """What the caches gave to make."""
        assert self._watch is not None  # noqa: S101 make() went before
        return self._watch.cache_use()

    def make_spec(self, target: str = "") -> RunSpec:
        """The container that make runs in."""
        bench = self._bench
        argv = recipes.make_argv(bench.recipe, bench.tree, bench.options, self._jobs, target)
        mounts = [
            Mount(source=self.gopath, target=str(recipes.GOPATH), read_only=False),
            Mount(source=self._scratch_inside, target=str(recipes.SCRATCH), read_only=False),
            Mount(source=self.shims, target=str(recipes.SHIMS)),
            Mount(source=self._cache, target=str(recipes.CACHE), read_only=False),
            *self._shared.mounts,
        ]
        environment = {
            **recipes.environment(
                bench.tree, bench.toolchain.environment, self._headers, self._includes
            ),
            **recipes.cmake_environment(bench.options),
            # A cache that machines share holds what several toolchains made: they differ in more than the compiler.
            "CCACHE_NAMESPACE": f"{bench.toolchain.lock_digest[:16]}{self._moving_image}",
            "CCACHE_MAXSIZE": f"{bench.cache_bytes // caches.CCACHE_SHARE >> 20}M",
            **self._shared.environment,
            **self._surroundings.environment,
            # What a failed test said would else be in a file of the working copy only.
            **({"CTEST_OUTPUT_ON_FAILURE": "1"} if target else recipes.question(bench.options)),
        }
        if self._surroundings.library:
            mounts.append(Mount(source=self._scratch / "otherwise", target=str(conditions.PRELOAD)))
            environment["LD_PRELOAD"] = str(conditions.PRELOAD / conditions.LIBRARY)
        return self.spec(
            self._surroundings.wrap(argv), mounts=tuple(mounts), environment=environment,
            workdir=str(recipes.SOURCE), name=NAME, keep_failed=bench.wishes.keep_failed,
            timeout_s=conditions.TIMEOUT_S if self._surroundings.library else None,
        )

    def _record(self, outcome: str, seconds: float) -> BuildRecord:
        bench = self._bench
        watched: dict[str, Any] = {}
        if self._watch is not None:
            watched = {
                "memory_bytes": self._watch.memory_bytes, "marks": self._watch.marks, "cache": self.cache_use
            }
        return BuildRecord(
            when=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), outcome=outcome, seconds=round(seconds, 1),
            key=build_key(bench.tree, bench.toolchain, bench.options).short, version=bench.tree.version.text,
            recipe=bench.recipe.name, toolchain=bench.toolchain.name, build_type=bench.options.build_type,
            jobs=self._jobs, warm=self._warm, **watched,
        )

    def _failure(self, result: RunResult, log_start: int) -> KwdbBuildError:
        bench = self._bench
        return failure(
            bench.tree.version, result, jobs=self._jobs, memory_bytes=bench.memory_bytes, wishes=bench.wishes,
            place=self._scratch, log=bench.log, log_start=log_start,
        )

    def _leave(self, error: KwdbBuildError, result: RunResult, target: str = "") -> None:
        """What a person asked for to look into a failure of a target: the working copy, or a shell in it."""
        bench = self._bench
        if bench.wishes.keep_failed:
            keep(self._scratch)
            bench.progress.note(f"kept: the working copy {self.gopath}")
            if result.kept:
                bench.progress.note(f"kept: the container; this runs make again in it: `{result.kept}`")
            # The container first: the working copy is mounted in it.
            removal = [*filter(None, (result.removal,)), quote(["rm", "-rf", str(self._scratch)])]
            bench.progress.note(f"nothing removes them but you: {', then '.join(f'`{line}`' for line in removal)}")
        if bench.wishes.shell_on_failure:
            bench.progress.note(f"error: {error.message}\n{error.context}")
            asked = " ".join(self.argv(target))
            bench.progress.note(f"a shell where the build failed; what make was asked for: `{asked}`")
            with bench.progress.paused():
                bench.engine.run(self._shell_spec(), on_line=bench.progress.note, log=bench.log)

    def argv(self, target: str = "") -> tuple[str, ...]:
        """The command line of the build, or of another target, as a person would type it inside."""
        return self.make_spec(target).argv[2:]

    def _shell_spec(self) -> RunSpec:
        spec = self.make_spec()
        prompt = {"PS1": f"{self._bench.tree.version} {recipes.SOURCE}$ ", "TERM": os.environ.get("TERM", "dumb")}
        return replace(
            spec, argv=("/bin/sh",), environment={**spec.environment, **prompt}, interactive=True, keep_failed=False,
            name=f"shell-{self._bench.tree.version}",
        )

    def own_tests(self, target: str) -> None:
        """Run one of KWDB's own test targets in the working copy; BuildError with the first failure."""
        bench = self._bench
        bench.progress.update(f"running make {target}")
        log_start = bench.log.stat().st_size
        history, passed, began = BuildHistory(bench.work_dir.parent / FILE), f"{target} passed", time.monotonic()
        past = history.alike(self._record(passed, 0.0), passed)
        said = _Said(bench.progress, target, past[0].seconds if past else 0.0)
        result = bench.engine.run(self.make_spec(target), on_line=said, log=bench.log)
        if result.returncode != 0:
            error = self._failure(result, log_start)
            if not isinstance(error, SpaceError):
                error = BuildError(
                    f"KWDB's own tests failed: make {target} ended with exit code {result.returncode}",
                    context=error.context, log=bench.log,
                    hint="the build itself succeeded and is stored; the log has the whole output of the tests",
                )
            self._leave(error, result, target)
            raise error
        # Not what the build took of memory and caches.
        history.add(replace(self._record(passed, time.monotonic() - began), memory_bytes=0, marks={}, cache=CacheUse()))
        bench.progress.note(f"make {target}: passed")

    def outcome(self) -> dict[str, Any]:
        """Check the results, and what they said when they were run; what is worth recording about the build."""
        bench = self._bench
        bench.progress.update("checking the results")
        found = results.inspect(self.installed, bench.recipe, log=bench.log, progress=bench.progress)
        results.check_answer(self._scratch_inside / shims.ANSWER, bench.tree.version, log=bench.log)
        return found

    def spec(
        self, argv: tuple[str, ...], *, mounts: tuple[Mount, ...], environment: dict[str, str], workdir: str, name: str,
        keep_failed: bool = False, timeout_s: float | None = None,
    ) -> RunSpec:
        """A run in the build's image, as its user and within its limits."""
        bench = self._bench
        return RunSpec(
            image=bench.image, argv=argv, mounts=mounts, environment=environment, workdir=workdir, uid=self._uid,
            gid=self._gid, memory_bytes=bench.memory_bytes, cpus=bench.cpus, name=name,
            hostname=self._surroundings.hostname, keep_failed=keep_failed, timeout_s=timeout_s,
            listed=tuple(filter(None, (bench.toolchain.environment.get("GOROOT"),))),
        )


class _Said:
    """Shows what a test run says, prefixed by its target, and the time left as an earlier run took it (0: none)."""

    def __init__(self, progress: Progress, target: str, past_s: float) -> None:
        self._progress = progress
        self._target = target
        self._past_s = past_s
        self._began = time.monotonic()

    def __call__(self, line: str) -> None:
        if line.strip():
            left = self._past_s - (time.monotonic() - self._began)
            ahead = f"about {minutes(left)} left  " if left > 0 else ""  # one that takes longer: nobody knows
            self._progress.update(f"{ahead}{self._target}: {line.strip()[:80]}")
