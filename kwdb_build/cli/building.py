"""Verbs from source to artifact; none of them touches a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kwdb_build.cli.options import building, common, source, verb

if TYPE_CHECKING:
    from kwdb_build.config import Settings
    from kwdb_build.console import Console


def _workshop(console: Console, settings: Settings) -> Any:
    from kwdb_build.files import private_directory
    from kwdb_build.upgrade.workshop import Workshop

    return Workshop(settings, console, private_directory(settings.home / "logs"))


def _fetch(workshop: Any, console: Console, settings: Settings, ref: str, step: tuple[int, int]) -> Any:
    with console.step(*step, f"fetch {ref}"):
        tree = workshop.fetch(ref, url=settings.url, redirects=settings.redirect)
        console.update(f"{tree.version} at {tree.commit[:12]}, {len(tree.submodules)} submodules pinned")
    return tree


@click.command()
@click.argument("ref")
@source
@common
@verb
def fetch(console: Console, settings: Settings, *, ref: str, **_: Any) -> int:
    """Fetch the source of REF (tag, branch or commit) with its submodules at the pinned commits."""
    tree = _fetch(_workshop(console, settings), console, settings, ref, (1, 1))
    if console.as_json:
        console.data({"source": tree})
        return 0
    rows = [("version", str(tree.version)), ("commit", tree.commit), ("path", str(tree.path))]
    rows += [(submodule.path, f"{submodule.commit}  {submodule.url}") for submodule in tree.submodules]
    console.table("", ("", ""), rows, data=True)
    return 0


@click.command()
@click.argument("ref")
@source
@building
@common
@verb
def check(console: Console, settings: Settings, *, ref: str, **_: Any) -> int:
    """Check that the build image holds what the source of REF asks for."""
    from kwdb_build.upgrade.workshop import require_missing_nothing, summary

    workshop = _workshop(console, settings)
    tree = _fetch(workshop, console, settings, ref, (1, 2))
    with console.step(2, 2, "check the compilation dependencies"):
        rows = workshop.check(tree)
        console.update(summary(rows))
    if console.as_json:
        console.data({"toolchain": workshop.toolchain(tree).name, "checks": rows})
    else:
        cells = [(row.name, str(row.verdict), row.required, row.found, row.where, row.fix) for row in rows]
        console.table(
            f"{tree.version} in {workshop.toolchain(tree).name}",
            ("dependency", "verdict", "required", "found", "asked for by", "what to do"), cells, data=True,
        )
    require_missing_nothing(rows, workshop.log("check"))
    return 0


@click.command()
@click.argument("ref")
@source
@building
@common
@verb
def build(console: Console, settings: Settings, *, ref: str, **_: Any) -> int:
    """Build REF into a stored artifact, or look it up when it was built before."""
    from kwdb_build.upgrade.workshop import require_missing_nothing, summary

    workshop = _workshop(console, settings)
    tree = _fetch(workshop, console, settings, ref, (1, 3))
    with console.step(2, 3, "check the compilation dependencies"):
        if workshop.find(tree) is not None:
            console.update("not needed: this build is already stored")
        else:
            rows = workshop.check(tree)
            require_missing_nothing(rows, workshop.log("check"))
            console.update(summary(rows))
    with console.step(3, 3, "build"):
        artifact = workshop.build(tree)
    if console.as_json:
        console.data({"artifact": artifact})
        return 0
    rows = [("version", str(artifact.version)), ("key", artifact.key.digest), ("path", str(artifact.path))]
    rows += [(entry.path, f"{entry.sha256}  {entry.size} bytes") for entry in artifact.files]
    console.table("", ("", ""), rows, data=True)
    return 0


@click.group()
def toolchain() -> None:
    """Toolchains: what a build image holds."""


@toolchain.command("list")
@common
@verb
def toolchain_list(console: Console, settings: Settings) -> int:
    """Known toolchains and the KWDB versions they serve."""
    from kwdb_build.toolchain import load

    root = load.toolchains_root()
    found = [load.load(name, search=root, home=settings.home) for name in load.names(root)]
    if console.as_json:
        console.data({"toolchains": found})
        return 0
    rows = [(t.name, t.serves, f"{t.distribution} {t.release}", str(len(t.locked_packages)), t.lock_digest[:16])
            for t in found]
    console.table("", ("name", "serves", "distribution", "packages", "lock"), rows, data=True)
    return 0


@toolchain.command("lock")
@click.argument("folder")
@common
@verb
def toolchain_lock(console: Console, settings: Settings, *, folder: str) -> int:
    """Resolve a toolchain's packages and wheels anew and write its lock."""
    from kwdb_build.toolchain import load
    from kwdb_build.toolchain.lock import differences, lock

    place = load.find(folder, search=load.toolchains_root())
    old = load.read_lock(place / load.LOCK_FILE, name=place.name) if (place / load.LOCK_FILE).is_file() else None
    with console.step(1, 1, f"lock {place.name}"):
        new = lock(place, settings=settings, progress=console)
    changes = differences(old, new) if old is not None else [f"locked {len(new.packages)} packages"]
    for line in changes:
        console.text(line)
    console.note(f"{len(changes)} changes" if changes else "nothing changed")
    return 0
