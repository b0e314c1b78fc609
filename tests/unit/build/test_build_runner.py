from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kwdb_build.build.history import FILE, BuildHistory
from kwdb_build.build.recipe import recipe_for
from kwdb_build.build.runner import Wishes, build
from kwdb_build.build.store import ArtifactStore
from kwdb_build.config import Settings
from kwdb_build.console import Progress
from kwdb_build.engine.base import EngineInfo, RunResult, RunSpec
from kwdb_build.errors import ArtifactError, BuildError, EngineError, SpaceError
from kwdb_build.files import free_bytes
from kwdb_build.model import BuildOptions, SourceTree, Toolchain
from kwdb_build.source.inspect import read_tree
from tests.unit.build.disks import Mount

if TYPE_CHECKING:
    from collections.abc import Callable

ELF = Path(sys.executable).resolve()
TOOLCHAIN = Toolchain(
    name="t", path=Path("/t"), distribution="debian", release="12", architecture="amd64", base_packages=(),
    packages=(), locked_packages=(), wheels=(), environment={"PATH": "/usr/bin:/bin"}, serves="", lock_digest="d" * 64,
)


class Notes(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def update(self, text: str, *, done: float | None = None, total: float | None = None) -> None:
        self.texts.append(text)


@dataclass
class StandIn:
    """Stands in for the engine at its boundary: installs real files into the mounted copy, as `make install` would."""

    install: dict[str, tuple[Path | bytes, int]] = field(default_factory=dict)
    lines: tuple[str, ...] = ("[100%] Built target kwbase",)
    result: RunResult = field(default_factory=lambda: RunResult(returncode=0))
    version: tuple[str, ...] = ("KaiwuDB Version:  V1.0.0", "Build Time: x")
    version_code: int = 0
    raises: BaseException | None = None
    specs: list[RunSpec] = field(default_factory=list)
    headers: str = "stdio.h\nvector\n"
    said: str = "find: '/root': Permission denied"
    listings: list[RunSpec] = field(default_factory=list)

    def image_id(self, tag: str) -> str | None:
        return f"sha256:{tag}"

    def info(self) -> EngineInfo:
        return EngineInfo(kind="docker", version="20.10", address="unix:///stand-in")

    def remove_leftovers(self, name: str) -> int:
        return 0

    def run(self, spec: RunSpec, *, on_line: Callable[[str], None], log: Path) -> RunResult:
        if spec.argv[0] == "find":
            self.listings.append(spec)
            (spec.mounts[0].source / "headers").write_text(self.headers)
            on_line(self.said)
            return RunResult(returncode=1)
        if spec.argv[0] == "dpkg-query":
            return RunResult(returncode=1)
        self.specs.append(spec)
        with log.open("a", encoding="utf-8") as sink:
            for line in self.lines:
                sink.write(line + "\n")
                on_line(line)
        if self.raises:
            raise self.raises
        gopath = next(mount.source for mount in spec.mounts if mount.target == "/kwdb")
        for name, (content, mode) in self.install.items():
            path = gopath / "install" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                shutil.copy(content, path)
            path.chmod(mode)
        if "KWDB_ASKED" in spec.environment and self.result.returncode == 0:
            scratch = next(mount.source for mount in spec.mounts if mount.target == "/scratch")
            (scratch / "version").write_text("".join(f"{line}\n" for line in (*self.version, self.version_code)))
        return self.result

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


def complete() -> dict[str, tuple[Path | bytes, int]]:
    return {
        "bin/kwbase": (ELF, 0o777), "bin/utils.sh": (b"#!/bin/sh\n", 0o777), "lib/libcommon.so": (ELF, 0o644),
        "lib/libkwdbts2.so": (ELF, 0o644),
    }


@pytest.fixture
def tree(tmp_path: Path) -> SourceTree:
    path = tmp_path / "gopath" / "src" / "gitee.com" / "kwbasedb"
    path.mkdir(parents=True)
    (path / "Makefile").write_text("all:\n")
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(tmp_path), "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.invalid",
        "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@example.invalid",
    }
    for argv in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"], ["tag", "-am", "x", "V1.0.0"]):
        subprocess.run(["git", *argv], cwd=path, env=environment, check=True)
    return read_tree(path, url="file:///x", ref="V1.0.0")


@pytest.fixture
def call(tmp_path: Path, tree: SourceTree) -> Callable[..., Any]:
    def run(
        engine: StandIn, *, progress: Progress | None = None, jobs: int = 2, wishes: Wishes | None = None, **settings: Any
    ) -> Any:
        return build(
            tree, toolchain=TOOLCHAIN, image="t:1", options=BuildOptions(jobs=jobs), engine=engine,
            store=ArtifactStore(tmp_path / "store"), work_dir=tmp_path / "work", log=tmp_path / "build.log",
            progress=progress or Progress(), settings=Settings(**settings), wishes=wishes,
        )

    return run


def left_in_work(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "work").iterdir() if path.name not in {".gate", ".locks"}]


def test_a_build_and_then_a_look_up(call: Callable[..., Any], tmp_path: Path) -> None:
    engine, notes = StandIn(install=complete()), Notes()
    artifact = call(engine)
    [make] = engine.specs
    assert make.argv == (
        "/kwdb-shims/enter", "022", "make", "-j2", "BUILD_TYPE=Release", "INSTALL_PATH=/kwdb/install",
        "BUILDINFO_TAG=V1.0.0", "GOFLAGS=-trimpath -v", "NCPUS=2", "install",
    )
    assert make.uid != 0
    assert make.gid != 0
    assert make.workdir == "/kwdb/src/gitee.com/kwbasedb"
    assert [mount.read_only for mount in make.mounts] == [False, False, True, False]
    assert make.environment["KWDB_ASKED"] == "/kwdb/install/bin"
    assert artifact.kwbase.is_file()
    assert artifact.version.text == "V1.0.0"
    assert left_in_work(tmp_path) == []
    assert call(engine, progress=notes) == artifact
    assert len(engine.specs) == 1, "a look-up starts nothing"
    assert notes.notes
    assert notes.notes[0].startswith("already built: V1.0.0")


def test_a_stored_build_that_was_changed_is_refused(call: Callable[..., Any]) -> None:
    artifact = call(StandIn(install=complete()))
    artifact.kwbase.chmod(0o755)
    engine = StandIn()
    with pytest.raises(ArtifactError) as caught:
        call(engine)
    assert "bin/kwbase" in caught.value.context
    assert engine.specs == []


def failed(call: Callable[..., Any], tmp_path: Path, engine: StandIn, **settings: Any) -> BuildError:
    with pytest.raises(BuildError) as caught:
        call(engine, **settings)
    assert ArtifactStore(tmp_path / "store").list() == ()
    assert left_in_work(tmp_path) == [], "the working copy is gone"
    assert caught.value.log == tmp_path / "build.log"
    return caught.value


def test_a_compile_error_is_shown_with_the_log(call: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "build.log").write_text("old/run.c:1:1: error: of an earlier run\n")
    error = failed(call, tmp_path, StandIn(
        lines=("[ 1%] Building CXX object a.o", "src/a.cpp:1:2: error: boom", "make: *** [x] Error 2"),
        result=RunResult(returncode=2),
    ))
    assert error.context == "src/a.cpp:1:2: error: boom"
    assert "exit code 2" in error.message


@dataclass
class FailsTests(StandIn):
    """Builds well, and then says this of a test target."""

    tests_say: tuple[str, ...] = ()

    def run(self, spec: RunSpec, *, on_line: Callable[[str], None], log: Path) -> RunResult:
        if "kwdbts2-test" in spec.argv:
            self.lines, self.result = self.tests_say, RunResult(returncode=2, kept="start it again", removal="remove it")
        return super().run(spec, on_line=on_line, log=log)


def test_the_headers_of_an_image_are_listed_once_and_a_list_that_is_none_is_said(
    call: Callable[..., Any], tmp_path: Path
) -> None:
    first, second, empty, fails, short = (StandIn(install=complete()) for _ in range(5))
    short.said = "find: '/kwdb-result/headers': No space left on device"
    call(first)
    shutil.rmtree(tmp_path / "store")
    shutil.rmtree(tmp_path / "build-cache")
    call(second)
    assert (len(first.listings), len(second.listings)) == (1, 0)
    assert first.listings[0].listed[-1] == "/usr/include"
    assert first.specs[0].environment["CPATH"] == second.specs[0].environment["CPATH"]
    for engine, said in ((empty, ""), (fails, "std"), (short, short.headers)):
        engine.headers = said
        shutil.rmtree(tmp_path / "store")
        shutil.rmtree(tmp_path / "images", ignore_errors=True)
        notes = Notes()
        call(engine, progress=notes)
        assert any("headers cannot be listed" in note for note in notes.notes)
        assert not (tmp_path / "images").exists()


def test_compilers_of_another_image_are_never_asked_for_what_these_made(tmp_path: Path, tree: SourceTree) -> None:
    def namespace(image: str, base_image: str) -> str:
        engine = StandIn(install=complete())
        toolchain = replace(TOOLCHAIN, base_image=base_image)
        build(
            tree, toolchain=toolchain, image=image, options=BuildOptions(jobs=1), engine=engine,
            store=ArtifactStore(tmp_path / image / base_image.replace("/", "_")), work_dir=tmp_path / "work",
            log=tmp_path / "log", progress=Progress(), settings=Settings(),
        )
        return engine.specs[0].environment["CCACHE_NAMESPACE"]

    pinned = f"debian@sha256:{'1' * 64}"
    assert namespace("one", "") == namespace("two", pinned) == "d" * 16, "the lock says all that is in the image"
    assert len({namespace("three", "debian:12"), namespace("four", "debian:12"), "d" * 16}) == 3


CTEST = ("1/1 Test #1: tag_test ...***Failed    0.02 sec", "row 3: expected 7, got 8", "make: *** [test] Error 8")


def test_a_failed_test_of_kwdbs_own_is_shown_and_kept_when_it_was_asked_for(
    call: Callable[..., Any], tmp_path: Path
) -> None:
    engine, notes = FailsTests(install=complete(), tests_say=CTEST), Notes()
    with pytest.raises(BuildError) as caught:
        call(engine, progress=notes, wishes=Wishes(tests=("kwdbts2-test",), keep_failed=True))
    assert "make kwdbts2-test ended with exit code 2" in caught.value.message
    assert "row 3: expected 7, got 8" in caught.value.context
    assert [spec.environment.get("CTEST_OUTPUT_ON_FAILURE") for spec in engine.specs] == [None, "1"]
    assert ["KWDB_ASKED" in spec.environment for spec in engine.specs] == [True, False]
    assert len(ArtifactStore(tmp_path / "store").list()) == 1, "the build itself is good"
    [copy] = left_in_work(tmp_path)
    assert any(f"{copy}/gopath" in note for note in notes.notes)
    assert any("`start it again`" in note for note in notes.notes)
    assert any(f"`remove it`, then `rm -rf {tmp_path / 'work' / copy}`" in note for note in notes.notes)


def test_own_tests_show_the_time_left_as_the_last_run_that_passed_took_it(
    call: Callable[..., Any], tmp_path: Path
) -> None:
    @dataclass
    class Tests(FailsTests):
        code: int = 0

        def run(self, spec: RunSpec, *, on_line: Callable[[str], None], log: Path) -> RunResult:
            super().run(spec, on_line=on_line, log=log)
            return RunResult(returncode=self.code if "kwdbts2-test" in spec.argv else 0)

    def shown(code: int = 0) -> list[str]:
        notes = Notes()
        engine = Tests(install=complete(), tests_say=("1/2 Test #1: tag_test ... Passed",), code=code)
        engine.lines = ()
        with contextlib.suppress(BuildError):
            call(engine, progress=notes, wishes=Wishes(tests=("kwdbts2-test",)))
        return [text for text in notes.texts if "tag_test" in text]

    assert shown(code=1) == shown() == ["kwdbts2-test: 1/2 Test #1: tag_test ... Passed"], "none has passed before"
    file = tmp_path / FILE
    records = BuildHistory(file).all()
    assert [record.outcome for record in records] == ["built", "built", "kwdbts2-test passed"]
    file.unlink()
    for record in (*records, dataclasses.replace(records[-1], outcome="kwbase-test passed", seconds=9000.0)):
        long = record.outcome == "kwdbts2-test passed"
        BuildHistory(file).add(dataclasses.replace(record, seconds=600.0) if long else record)
    [text] = shown()
    assert text.startswith(("about 10:00 left  kwdbts2-test: 1/2", "about 9:59 left  kwdbts2-test: 1/2"))
    assert BuildHistory(file).all()[-1].seconds < 100, "this one was quick: the next one is told so"
    assert not shown()[0].startswith(("about 10:", "about 9:"))


def test_a_disk_that_becomes_full_in_a_test_is_no_failed_test(call: Callable[..., Any], tmp_path: Path) -> None:
    engine = FailsTests(install=complete(), tests_say=("/bin/sh: 1: cannot create x: No space left on device",))
    with pytest.raises(SpaceError):
        call(engine, wishes=Wishes(tests=("kwdbts2-test",)))
    assert left_in_work(tmp_path) == []


@pytest.mark.parametrize(
    ("result", "lines"),
    [
        (RunResult(returncode=2, oom_killed=True), ("make: *** [x] Error 2",)),
        (RunResult(returncode=2), ("g++: fatal error: Killed signal terminated program cc1plus",)),
    ],
)
def test_too_little_memory_is_called_so(
    call: Callable[..., Any], tmp_path: Path, result: RunResult, lines: tuple[str, ...]
) -> None:
    error = failed(call, tmp_path, StandIn(lines=lines, result=result), jobs=8)
    assert "out of memory with 8 jobs" in error.message
    assert "--jobs 4" in error.hint
    assert "more memory or swap" in error.hint
    assert "--memory" not in error.hint, "there was no limit to raise"

    limited = failed(call, tmp_path, StandIn(lines=lines, result=result), jobs=1, memory="3g")
    assert "more memory than 3.0 GiB (--memory)" in limited.hint
    assert "--jobs" not in limited.hint


@pytest.mark.parametrize("taken", [(), ("--keep-container",), ("--shell-on-failure",), ("--keep-container", "--shell-on-failure")])
def test_the_hint_of_a_failure_names_only_what_was_not_asked_for(call: Callable[..., Any], taken: tuple[str, ...]) -> None:
    wishes = Wishes(keep_failed="--keep-container" in taken, shell_on_failure="--shell-on-failure" in taken)
    with pytest.raises(BuildError) as caught:
        call(StandIn(lines=("a.c:1:2: error: boom",), result=RunResult(returncode=2)), wishes=wishes)
    for option in ("--keep-container", "--shell-on-failure"):
        assert (option in caught.value.hint) is (option not in taken)


def test_a_container_that_somebody_killed_is_not_called_too_little_memory(
    call: Callable[..., Any], tmp_path: Path
) -> None:
    error = failed(call, tmp_path, StandIn(lines=("[ 1%] Building",), result=RunResult(returncode=137)), jobs=8)
    assert "killed from outside" in error.message
    assert "kernel" in error.hint
    assert "--jobs 4" in error.hint
    alone = failed(call, tmp_path, StandIn(lines=("[ 1%] Building",), result=RunResult(returncode=137)), jobs=1)
    assert "--jobs" not in alone.hint


@pytest.mark.parametrize("name", ["bin/kwbase", "lib/libcommon.so", "lib/libkwdbts2.so"])
def test_a_missing_result_is_named(call: Callable[..., Any], tmp_path: Path, name: str) -> None:
    install = complete()
    del install[name]
    error = failed(call, tmp_path, StandIn(install=install))
    assert name in error.message
    assert "bin/utils.sh" in error.context


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lib/libcommon.so": (b"not elf", 0o644)}, "no ELF file"),
        ({"bin/utils.sh": (b"#!/bin/sh\n", 0o644)}, "bin/utils.sh was installed but cannot be executed"),
    ],
)
def test_results_that_are_no_good(
    call: Callable[..., Any], tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    assert said in failed(call, tmp_path, StandIn(install={**complete(), **changes})).message


@pytest.mark.parametrize(
    ("version", "code", "said"),
    [
        (("KWDB Version: V9.9.9",), 0, "says it is V9.9.9, not V1.0.0"),
        (("./kwbase: error while loading shared libraries: libx.so",), 127, "does not run"),
        ((), 0, "does not run"),
        (("KaiwuDB Version:  V1.0.0",), 124, "did not end within 120 s"),
        (("KaiwuDB Version:  V1.0.0",), 137, "was killed: it did not end within 120 s, or there was too little memory"),
        (("KaiwuDB Version:  V1.0.0",), 1, "does not run"),
    ],
)
def test_a_kwbase_that_is_not_the_one_wanted(
    call: Callable[..., Any], tmp_path: Path, version: tuple[str, ...], code: int, said: str
) -> None:
    error = failed(call, tmp_path, StandIn(install=complete(), version=version, version_code=code))
    assert said in error.message


def test_a_kwbase_that_panics_is_shown_with_its_first_words(call: Callable[..., Any], tmp_path: Path) -> None:
    said = ("panic: runtime error: slice bounds out of range", "", "goroutine 1 [running]:", *["main.f()"] * 40)
    error = failed(call, tmp_path, StandIn(install=complete(), version=said, version_code=2))
    assert error.context.startswith("panic: runtime error: slice bounds out of range")
    assert error.hint


def test_an_answer_that_could_not_be_written_is_not_the_sources_fault(
    call: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass
    class Answers(StandIn):
        leaves: Callable[[Path], object] = Path.touch

        def run(self, spec: RunSpec, *, on_line: Callable[[str], None], log: Path) -> RunResult:
            result = super().run(spec, on_line=on_line, log=log)
            if "KWDB_ASKED" in spec.environment:
                answer = next(mount.source for mount in spec.mounts if mount.target == "/scratch") / "version"
                answer.unlink()
                self.leaves(answer)
            return result

    for leaves, said in (
        (Path.touch, "was not asked"), (Path.mkdir, "is no regular file"), (os.mkfifo, "is no regular file"),
        (lambda path: path.symlink_to(path), "cannot be read"), (lambda path: None, "was not asked"),
        (lambda path: path.write_text("x" * (3 << 20)), "more than 2.0 MiB"),
        (lambda path: path.write_text("Version: V1\nGo Ver"), "was not asked"),
    ):
        error = failed(call, tmp_path, Answers(install=complete(), leaves=leaves))
        assert said in error.message
    monkeypatch.setattr("kwdb_build.build.failure.free_bytes", lambda _: 1 << 20)
    with pytest.raises(SpaceError, match="the disk became full"):
        call(Answers(install=complete()))


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), EngineError("gone")])
def test_a_cancelled_build_leaves_nothing(call: Callable[..., Any], tmp_path: Path, raised: BaseException) -> None:
    with pytest.raises(type(raised)):
        call(StandIn(raises=raised))
    assert left_in_work(tmp_path) == []
    assert ArtifactStore(tmp_path / "store").list() == ()


def test_memory_and_jobs_of_the_settings(call: Callable[..., Any]) -> None:
    engine = StandIn(install=complete())
    call(engine, jobs=0, memory="3g")
    assert engine.specs[0].memory_bytes == 3 << 30
    assert engine.specs[0].argv[3] == "-j1", "3 GiB are enough for one compiler beside Go's link"


@pytest.mark.parametrize(("asked", "given"), [(0.5, 0.5), (1000, os.cpu_count()), (0, 0)])
def test_a_part_of_the_processors_is_limit_and_measure_for_jobs(
    call: Callable[..., Any], asked: float, given: float
) -> None:
    engine = StandIn(install=complete())
    call(engine, jobs=0, cpus=asked)
    assert {spec.cpus for spec in engine.specs} == {given}
    assert asked != 0.5 or engine.specs[0].argv[3] == "-j1"


def test_too_little_space_is_said_before_anything_is_copied(
    call: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kwdb_build.files.free_bytes", lambda _path: 1 << 20)
    engine = StandIn(install=complete())
    with pytest.raises(SpaceError):
        call(engine)
    assert engine.specs == []
    assert left_in_work(tmp_path) == []


def test_what_killed_builds_left_is_no_reason_to_refuse_the_next(
    call: Callable[..., Any], tmp_path: Path, mount: Mount, tree: SourceTree
) -> None:
    place = mount(image_mb=1100)
    for name in ("work", "store"):
        (place / name).mkdir()
        (tmp_path / name).symlink_to(place / name)
    left = [place / "work/build-of-a-killed-one", place / "store/.adding-by-a-killed-one", place / "store/.pruning-x"]
    for directory in left:
        (directory / "lib").mkdir(parents=True)
        with (directory / "lib/libkwdbts2.so").open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, 200 << 20)
        (directory / "lib").chmod(0o555)
    needed = recipe_for(tree.version).needed_bytes(0)
    assert free_bytes(place) < needed < free_bytes(place) + 3 * (200 << 20)
    artifact = call(StandIn(install=complete()))
    assert artifact.kwbase.is_file()
    assert [directory for directory in left if directory.exists()] == []
