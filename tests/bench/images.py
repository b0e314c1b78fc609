"""Build images: how long from a lock, how large against the obvious one; and how long a check takes."""

from __future__ import annotations

import dataclasses
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kwdb_build import command
from kwdb_build.config import Settings
from kwdb_build.console import Progress
from kwdb_build.engine.base import Engine
from kwdb_build.toolchain import apt, base_image
from kwdb_build.toolchain.image import ensure_image, prepare_image
from kwdb_build.toolchain.load import load, toolchains_root
from tests.bench.figures import Figure, single
from tests.integration.tool import clean_environment

# Everything that KWDB's README names (V3.2.1), as a distribution's own image would get it: with recommended packages.
OBVIOUS = (
    "ca-certificates", "golang-go", "cmake", "autoconf", "dpkg-dev", "devscripts", "build-essential", "checkinstall",
    "libssl-dev", "libprotobuf-dev", "liblzma-dev", "libncurses5-dev", "libatomic1", "protobuf-compiler", "git",
    "libprotoc-dev", "libgflags-dev", "liblz4-dev", "openssl", "libgeos-c1v5", "xz-utils", "squashfs-tools", "mount",
    "squashfuse",
)
TOOLCHAIN = "kwdb-3.2"


def check_s(words: list[str], times: int) -> tuple[list[float], list[float]]:
    """Seconds of `kwdb-build check REF` on a tree that is fetched, with an image that is there: by clock, by processor.

    The processor's are those of the tool and the programs it calls; a busy machine does not change them much.
    """
    clock, processor = [], []
    for _ in range(times):
        began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "kwdb_build", "check", *words], stdin=subprocess.DEVNULL, check=False,
                       capture_output=True, env=clean_environment({"PYTHONDONTWRITEBYTECODE": ""}))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        clock.append(time.monotonic() - began)
        processor.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return clock, processor


def look_up_s(engine: Engine, settings: Settings, toolchain: str, times: int) -> list[float]:
    """Seconds until an image that was made before is found by its lock."""
    log = settings.home / "logs" / "image.log"
    samples = []
    for _ in range(times):
        began = time.monotonic()
        found = load(toolchain, search=toolchains_root(), home=settings.home)
        prepare_image(found, engine=engine, settings=settings, progress=Progress(), log=log)
        samples.append(time.monotonic() - began)
    return samples


def cold_s(engine: Engine, settings: Settings) -> tuple[float, float]:
    """Seconds to make an image: with its packages still to be fetched, and with all of them there."""
    toolchain = load(TOOLCHAIN, search=toolchains_root())
    taken = []
    with tempfile.TemporaryDirectory(dir=settings.home) as directory:
        mine = settings.model_copy(update={"home": Path(directory)})
        (mine.home / "logs").mkdir()
        for turn in ("first", "second"):
            for archive in (mine.home / "images").glob("base-*.tar"):
                archive.unlink()
            # Names of its own for base and image: what others have is neither used nor removed.
            base = f"kwdb-build-bench/base:{os.getpid()}-{turn}"
            own = dataclasses.replace(
                toolchain, name=f"bench-{os.getpid()}", lock_digest=f"{turn:0<64}", base_image=base
            )
            log = mine.home / "logs" / "image.log"
            began = time.monotonic()
            archive = base_image.bootstrap(toolchain, settings=mine, progress=Progress(), log=log)
            engine.import_base(archive, base, environment={})
            ensure_image(own, engine=engine, settings=mine, progress=Progress(), log=log)
            taken.append(time.monotonic() - began)
            engine.remove_image(own.image_tag)
            engine.remove_image(base)
    return taken[0], taken[1]


def installed_mib(release: str, packages: tuple[str, ...], *, recommended: bool) -> float:
    """MiB that an empty Debian takes with these packages, by what they say of themselves (Installed-Size)."""
    sources, only_debian = apt.sources_for(release, chosen="")
    with tempfile.TemporaryDirectory() as directory:
        private = apt.PrivateApt.create(Path(directory), sources, architecture="amd64", only_debian=only_debian)
        printed = private._get(
            "install", "-q", "-y", "--install-recommends" if recommended else "--no-install-recommends", "--print-uris",
            "-o", "Acquire::ForceHash=SHA256", "?essential", *packages, what="resolve",
        )
        names = [f"{entry.name}={entry.version}" for entry in apt.parse_printed(printed.stdout)]
        shown = command.run(["apt-cache", "show", *names], env=private._environment).stdout
    sizes = [int(line.split()[1]) for line in shown.splitlines() if line.startswith("Installed-Size:")]
    return sum(sizes) / 1024


def sizes() -> Figure:
    """Our packages against the obvious ones; Go's own 200 MiB are in ours as a wheel, and in the other as packages."""
    toolchain = load(TOOLCHAIN, search=toolchains_root())
    ours = installed_mib(toolchain.release, toolchain.packages, recommended=False)
    obvious = installed_mib(toolchain.release, OBVIOUS, recommended=True)
    return Figure(
        name=f"packages of {TOOLCHAIN}'s image, against everything README names", unit="MiB", ours=ours, bare=obvious,
        ratio=ours / obvious, note="Installed-Size; Go comes beside ours as a wheel",
    )


def measure(engine: Engine, settings: Settings, words: list[str], *, toolchain: str, cold: bool) -> list[Figure]:
    """All figures of this part; cold ones take minutes."""
    clock, processor = check_s(words, 4)
    figures = [
        single("check on a fetched tree", clock[1:], "s", aim=2.0, note="image, host and machine"),
        single("check on a fetched tree, processor time", processor[1:], "s", aim=None, note="of the tool and its children"),
        single("look-up of an image by its lock", look_up_s(engine, settings, toolchain, 3), "s", aim=1.0),
        sizes(),
    ]
    if cold:
        first, second = cold_s(engine, settings)
        figures += [
            single(f"image of {TOOLCHAIN}, nothing there", [first], "s", aim=None, note="with the download of all packages"),
            single(f"image of {TOOLCHAIN}, packages there", [second], "s", aim=None),
        ]
    return figures
