"""Start of a container and of a sandbox against a bare process, and what an image costs, cold and from its lock."""

from __future__ import annotations

import dataclasses
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from kwdb_build.engine.base import Engine, RunSpec
from kwdb_build.engine.choose import choose
from kwdb_build.engine.sandbox import SandboxEngine
from kwdb_build.errors import EngineError
from kwdb_build.toolchain.image import prepare_image
from tests.bench.builds import Bench
from tests.bench.figures import Figure, paired, single

TIMES = 10
_USER = 65532


def measure(bench: Bench, ref: str) -> list[Figure]:
    """Figures of Docker (or what the bench runs on) and of the sandbox; a sandbox that cannot run here has none."""
    toolchain = bench.workshop.toolchain(bench.fetch(ref))
    image = bench.workshop.image(bench.fetch(ref))
    log = bench.home / "logs" / "engines.log"
    figures = [_start(bench.workshop.engine.info().kind, bench.workshop.engine, image, log)]
    with tempfile.TemporaryDirectory(dir=bench.home, prefix="bench-sandbox-", ignore_cleanup_errors=True) as directory:
        try:
            sandbox = choose("sandbox", docker_host="", place=Path(directory))
        except EngineError as error:
            bench.console.note(f"no sandbox here: {error.message}")
            return figures

        def prepare() -> str:
            return prepare_image(
                toolchain, engine=sandbox, settings=bench.settings, progress=bench.console, log=log
            ).image_id

        cold = _seconds(prepare)
        found = [_seconds(prepare) for _ in range(TIMES)]
        figures.append(single(
            "build image of the sandbox, cold", [cold], "s", aim=None, note="packages and base archive were there"
        ))
        figures.append(single("build image from its lock, made before", found, "s", aim=1.0))
        figures.append(_start("sandbox", sandbox, prepare(), log))
        if isinstance(sandbox, SandboxEngine):
            sandbox.remove_image(toolchain.image_tag)
    return figures


def _start(kind: str, engine: Engine, image: str, log: Path) -> Figure:
    spec = RunSpec(image=image, argv=("true",), uid=_USER, gid=_USER, environment={"PATH": "/usr/bin:/bin"}, name="bench")

    def in_engine() -> object:
        return engine.run(dataclasses.replace(spec), on_line=lambda _: None, log=log)

    def bare() -> object:
        return subprocess.run(["true"], check=True, stdin=subprocess.DEVNULL, capture_output=True)

    in_engine()  # the first look at the image's files is not the start
    ours, others = zip(*((_seconds(in_engine), _seconds(bare)) for _ in range(TIMES)), strict=True)
    return paired(f"start and end of `true`, {kind}", ours, others, aim=None, note="bare: the same on this machine")


def _seconds(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began
