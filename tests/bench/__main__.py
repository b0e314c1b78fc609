"""`nox -s bench`: the tool against the bare alternatives, in one run, as ratios. Nothing is asserted.

    python -m tests.bench [--json FILE] [--pairs N] [--builds N] [--ballast MIB] [--images]

The table goes to stderr, one JSON document to stdout (or to FILE).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kwdb_build.console import Console
from tests.bench import artifacts, discovery, downtime, engines, fetching, images
from tests.bench.builds import Bench
from tests.bench.figures import COLUMNS, Figure, paired, single
from tests.integration.tool import TOOLCHAIN, Tool, share_builds
from tests.minikwdb.repositories import make_repositories

OLD, NEW = "V1.0.0", "V1.1.0"
PATCHED_GO, PATCHED_CPP = "patched", "V1.1.6"
ROOT = Path(__file__).parents[2]
_GIB_IN_MIB = 1024


def main(argv: list[str]) -> int:
    """Measure everything and say it."""
    options = _options(argv)
    console = Console()
    # Beside the checkout and not in /tmp, which can be a file system in memory: a disk is part of what is measured.
    home = Path(os.environ.get("TEST_BUILD_CACHE") or ROOT / ".bench").absolute()
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=home) as directory:
        place = Path(directory)
        bench = Bench(
            home=home, store=place / "store", repositories=make_repositories(home / "bench-repositories"),
            console=console,
        )
        figures = [
            *_builds(bench, place, options), *_images(bench, options), *_server(bench, place, options),
            *_source(bench, place), *_artifacts(bench, place), *_cost(), *_search(),
        ]
        _release(place)
    document = {
        "schema": 1, "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "python": platform.python_version(),
        "cores": os.cpu_count(), "load": os.getloadavg(), "figures": [figure.as_json() for figure in figures],
    }
    console.table("Measured (medians; ratio = ours / bare in the same run)", COLUMNS, [f.row() for f in figures])
    text = json.dumps(document, indent=2) + "\n"
    if options.json:
        options.json.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    return 0


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="nox -s bench --", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the JSON document here instead of to stdout")
    parser.add_argument("--pairs", type=int, default=5, metavar="N", help="pairs of restarts (default: 5)")
    parser.add_argument("--builds", type=int, default=2, metavar="N", help="pairs of cold builds (default: 2; 0: none)")
    parser.add_argument("--restarts", type=int, default=20, metavar="N", help="pairs of bare restarts (default: 20)")
    parser.add_argument("--ballast", type=int, default=256, metavar="MIB", help="data for the size figure (0: none)")
    parser.add_argument("--images", action="store_true", help="make a build image of KWDB's from nothing, too (minutes)")
    return parser.parse_args(argv)


def _builds(bench: Bench, place: Path, options: argparse.Namespace) -> list[Figure]:
    figures = []
    with bench.console.step(1, 4, "cold builds, in turns"):
        turns = [bench.turn(OLD, bare_first=bool(number % 2)) for number in range(options.builds)]
    if turns:
        ours, filling, bare = zip(*turns, strict=True)
        note = "both without a cache, after each other: a busy machine shows here"
        figures.append(paired("cold build (--no-cache), bare make install", ours, bare, aim=1.03, note=note))
        note = "bare: make install inside of the very same build"
        figures.append(paired(
            "cold build (--no-cache), its own make install", ours, bench.own_make_s[::2], aim=1.03, note=note
        ))
        note = "ours fills ccache for the next build, the bare one fills nothing"
        figures.append(paired("cold build that fills the caches, bare make install", filling, bare, aim=1.03, note=note))
        with bench.console.step(1, 4, "a release after another, and the tool's memory"):
            seconds, share, words = bench.after(OLD, NEW)
            figures.append(single(
                "second release: work that the caches of the first spare", [share], "%", aim=None,
                note=f"{words}; {seconds:.1f} s",
            ))
            figures.append(single(
                "peak memory of the tool, cold build", [bench.peak_mib(OLD, place / "build-home")], "MiB", aim=100.0
            ))
    with bench.console.step(2, 4, "one file changed"):
        for ref, file, kind in ((PATCHED_GO, "kwbase/pkg/sql/system.go", "Go"),
                                (PATCHED_CPP, "kwdbts2/src/ts_version.cpp", "C++")):
            ours, bare, uses = zip(
                *(bench.one_file(NEW, ref, file) for _ in range(max(1, options.builds))), strict=True
            )
            note = f"{uses[-1]}, {uses[-1].go_packages} Go packages compiled; our tree is fresh, the bare one warm"
            figures.append(paired(f"one {kind} file changed", ours, bare, aim=1.10, note=note))
    with bench.console.step(2, 4, "look-up of a build that is there"):
        for ref in (OLD, NEW):
            bench.ready(ref)
        figures.append(single("look-up of a built key", bench.look_up(NEW, 5), "s", aim=0.5))
        figures += engines.measure(bench, NEW)
    return figures


def _images(bench: Bench, options: argparse.Namespace) -> list[Figure]:
    prefix, replacement = bench.repositories.redirect
    words = [
        OLD, "--home", str(bench.home), "--toolchain", str(TOOLCHAIN), "--url", str(bench.repositories.main),
        "--redirect", f"{prefix}={replacement}",
    ]
    bench.console.note("checks, images by their lock, sizes" + (", cold images" if options.images else ""))
    return images.measure(
        bench.workshop.engine, bench.settings, words, toolchain=str(TOOLCHAIN), cold=options.images
    )


def _server(bench: Bench, place: Path, options: argparse.Namespace) -> list[Figure]:
    old, new = bench.ready(OLD), bench.ready(NEW)
    share_builds(place / "home", [old, new])
    tool = Tool(home=place / "home", repositories=bench.repositories, docker_host=bench.workshop.engine.info().address)
    with bench.console.step(3, 4, f"{options.pairs} upgrades, restarts and bare restarts, in turns"):
        samples = downtime.measure(tool, old, place, ref=NEW, pairs=options.pairs)
        again = downtime.restarts(tool, old, place, pairs=options.restarts)
        captures = downtime.captures(old, place, times=10)
        loaded = downtime.ballast(tool, old, place, ref=NEW, mib=options.ballast) if options.ballast else None
    names = samples.parts[0]
    parts = ", ".join(f"{name} {statistics.median(p[name] for p in samples.parts):.2f}" for name in names)
    figures = []
    for name, seen in (("upgrade", samples.upgrade), ("restart", samples.restart)):
        figures.append(paired(
            f"downtime of {name}, SIGTERM to first answer", [one.from_sigterm_s for one in seen],
            [one.from_sigterm_s for one in samples.bare], aim=1.15, note=parts if name == "upgrade" else "",
        ))
        figures.append(paired(
            f"downtime of {name}, client without answer", [one.silence_s for one in seen],
            [one.silence_s for one in samples.bare], aim=None,
        ))
    if again.bare:
        figures.append(paired(
            f"downtime of restart, {options.restarts} pairs", [one.from_sigterm_s for one in again.restart],
            [one.from_sigterm_s for one in again.bare], aim=1.05, note="one server, nothing but restarts",
        ))
    figures.append(single("capture of a running server", captures, "ms", aim=50.0, note="the version asked beside it"))
    if loaded is not None:
        without = statistics.median(part["backup"] for part in samples.parts)
        figures.append(single(
            "downtime for one GiB more data", [(loaded - without) * _GIB_IN_MIB / options.ballast], "s", aim=None,
            note=f"hashing after the stop; measured with {options.ballast} MiB in the page cache",
        ))
    return [
        *figures,
        single("peak memory of the tool", samples.tool_mib, "MiB", aim=80.0, note="its own process, over an upgrade"),
        single("peak memory of the verification", samples.verification_mib, "MiB", aim=None, note="a pytest of its own"),
    ]


def _source(bench: Bench, place: Path) -> list[Figure]:
    with bench.console.step(4, 4, "fetches, against the commands of the README"):
        return fetching.measure(place / "fetching", bench.console)


def _artifacts(bench: Bench, place: Path) -> list[Figure]:
    room = place / "artifacts"
    room.mkdir()
    with bench.console.step(1, 1, "keep and carry a build"):
        return artifacts.measure(bench.ready(NEW), room)


def _cost(times: int = 10) -> list[Figure]:
    def wall_ms(*arguments: str) -> float:
        began = time.monotonic()
        subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
        return 1000 * (time.monotonic() - began)

    ours, bare = zip(*((wall_ms("-m", "kwdb_build", "--help"), wall_ms("-c", "pass")) for _ in range(times)),
                     strict=True)
    return [single("kwdb-build --help", ours, "ms", bare=bare, aim=200.0, note="bare: python -c pass")]


def _search(others: int = 5000, times: int = 9) -> list[Figure]:
    ours, bare = discovery.measure(others, times)
    note = "bare: reading every /proc/PID/cmdline by pathlib"
    return [single(f"servers found among {others} processes", ours, "ms", bare=bare, aim=100.0, note=note)]


def _release(place: Path) -> None:
    """Stored builds are read-only, directories too: make them removable again."""
    for directory in place.rglob("*"):
        if directory.is_dir() and not directory.is_symlink():
            directory.chmod(0o755)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
