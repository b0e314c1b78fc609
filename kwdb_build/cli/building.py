"""Verbs from source to artifact; none of them touches a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kwdb_build.cli.options import building, common, source, verb

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kwdb_build.build.runner import Wishes
    from kwdb_build.config import Settings
    from kwdb_build.console import Console


def make_workshop(console: Console, settings: Settings) -> Any:
    """The workshop of one call, with logs of its own below home."""
    from kwdb_build.cli.calllogs import logs_of_call
    from kwdb_build.upgrade.workshop import Workshop

    return Workshop(settings, console, logs_of_call(settings.home))


def fetch_tree(
    workshop: Any, console: Console, settings: Settings, ref: str, step: tuple[int, int], options: Mapping[str, Any]
) -> Any:
    """Have the source of a reference, or what the options put in its place, as one step of a verb."""
    from kwdb_build.cli.source import chosen
    from kwdb_build.upgrade.workshop import fetched

    ref, choice = chosen(settings, ref, options)
    with console.step(*step, f"fetch {ref}"):
        tree = workshop.fetch(ref, url=settings.url, redirects=settings.redirect, choice=choice)
        console.update(fetched(tree))
    return tree


@click.command()
@click.argument("ref", required=False, default="")
@source
@common
@verb
def fetch(console: Console, settings: Settings, *, ref: str, **options: Any) -> int:
    """Fetch the source of REF with its submodules at the pinned commits.

    REF is a tag, a branch, a commit, a pull request (pr/123), or `latest`: the highest release. It can also be an
    archive (./KWDB-V3.2.1.tar.gz), a plain directory or a git checkout: a path begins with / or ./
    """
    from kwdb_build.cli.bundle import opened
    from kwdb_build.source.difference import facts

    settings = opened(console, settings, options)
    tree = fetch_tree(make_workshop(console, settings), console, settings, ref, (1, 1), options)
    if console.as_json:
        console.data({"source": tree})
        return 0
    rows = [("version", str(tree.version)), ("commit", tree.commit), ("path", str(tree.path))]
    rows += [(submodule.path, f"{submodule.commit}  {submodule.url}") for submodule in tree.submodules]
    rows += [("source" if number == 0 else "", line) for number, line in enumerate(facts(tree))]
    console.table("", ("", ""), rows, data=True)
    return 0


def build_artifact(
    workshop: Any, console: Console, settings: Settings, ref: str, total: int, options: Mapping[str, Any],
    wishes: Wishes | None = None,
) -> tuple[Any, Any]:
    """Fetch, check, build (or look up), as the first three of `total` steps of a verb; the tree and its build."""
    from kwdb_build.upgrade.workshop import require_missing_nothing, summary

    workshop.require_sound()
    tree = fetch_tree(workshop, console, settings, ref, (1, total), options)
    with console.step(2, total, "check the compilation dependencies"):
        if workshop.look_up(tree) is not None:
            console.update("not needed: this build is already stored")
        else:
            rows = workshop.check(tree)
            require_missing_nothing(rows, workshop.log("check"))
            console.update(summary(rows))
    with console.step(3, total, "build"):
        return tree, workshop.build(tree, wishes)


@click.command()
@click.argument("ref", required=False, default="")
@click.option("--verify-reproducible", is_flag=True,
              help="Build a second time under other conditions, without caches, and compare every byte.")
@click.option("--test", "tests", multiple=True, type=click.Choice(["kwbase-test", "kwdbts2-test"]),
              help="Run these tests of KWDB's own after the build. Repeatable.")
@click.option("--keep-container", is_flag=True, help="Keep container and working copy of a build that fails.")
@click.option("--shell-on-failure", is_flag=True, help="Open a shell where a build failed.")
@source
@building
@common
@verb
def build(
    console: Console, settings: Settings, *, ref: str, verify_reproducible: bool, tests: tuple[str, ...],
    keep_container: bool, shell_on_failure: bool, **options: Any,
) -> int:
    """Build REF into a stored artifact, or look it up when it was built before."""
    from kwdb_build.build.runner import Wishes
    from kwdb_build.cli.bundle import opened

    if shell_on_failure:
        from kwdb_build.engine.terminal import require_terminal

        require_terminal()
    wishes = Wishes(keep_failed=keep_container, shell_on_failure=shell_on_failure, tests=tuple(dict.fromkeys(tests)))
    steps = 4 if verify_reproducible else 3
    settings = opened(console, settings, options)
    workshop = make_workshop(console, settings)
    tree, artifact = build_artifact(workshop, console, settings, ref, steps, options, wishes)
    verdict = None
    if verify_reproducible:
        with console.step(4, steps, "build again under other conditions, and compare"):
            verdict = workshop.verify_reproducible(tree, artifact, wishes)
            console.update(f"{verdict.files} of {verdict.files} files are the same")
        console.note(f"changed for the second build: {', '.join(verdict.changed)}")
    if console.as_json:
        console.data({"artifact": artifact, **({"reproducible": verdict} if verdict else {})})
        return 0
    rows = [("version", str(artifact.version)), ("key", artifact.key.digest), ("path", str(artifact.path))]
    rows += [(entry.path, f"{entry.sha256}  {entry.size} bytes") for entry in artifact.files]
    console.table("", ("", ""), rows, data=True)
    return 0
