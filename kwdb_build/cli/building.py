"""Verbs from source to artifact; none of them touches a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kwdb_build.cli.options import building, common, source, verb

if TYPE_CHECKING:
    from kwdb_build.config import Settings
    from kwdb_build.console import Console


def make_workshop(console: Console, settings: Settings) -> Any:
    """The workshop of one call, with its logs below home."""
    from kwdb_build.files import private_directory
    from kwdb_build.upgrade.workshop import Workshop

    return Workshop(settings, console, private_directory(settings.home / "logs"))


def fetch_tree(workshop: Any, console: Console, settings: Settings, ref: str, step: tuple[int, int]) -> Any:
    """Fetch a reference as one step of a verb."""
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
    tree = fetch_tree(make_workshop(console, settings), console, settings, ref, (1, 1))
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
def build(console: Console, settings: Settings, *, ref: str, **_: Any) -> int:
    """Build REF into a stored artifact, or look it up when it was built before."""
    from kwdb_build.upgrade.workshop import require_missing_nothing, summary

    workshop = make_workshop(console, settings)
    tree = fetch_tree(workshop, console, settings, ref, (1, 3))
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
