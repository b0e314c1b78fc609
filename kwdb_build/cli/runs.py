"""Verbs that read the runs; none of them changes anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kwdb_build.cli.options import common, verb

if TYPE_CHECKING:
    from kwdb_build.config import Settings
    from kwdb_build.console import Console


@click.command()
@common
@verb
def status(console: Console, settings: Settings) -> int:
    """What runs here, and how the last run stands."""
    from kwdb_build.cli.server import server_rows
    from kwdb_build.server.discover import find_servers
    from kwdb_build.server.listing import with_versions
    from kwdb_build.upgrade.overview import overview

    found = with_versions(find_servers())
    view = overview(settings.home)
    if console.as_json:
        console.data({"servers": found, "status": view})
        return 0
    if found:
        console.table("Servers", *server_rows(found), data=True)
    else:
        console.text("no running kwbase on this machine")
    console.text(view.sentence)
    return 0


@click.command()
@common
@verb
def history(console: Console, settings: Settings) -> int:
    """All runs, newest last."""
    from kwdb_build.upgrade.overview import all_results

    results = all_results(settings.home)
    if console.as_json:
        console.data({"runs": results})
        return 0
    rows = [
        (
            r.run, r.outcome, str(r.exit_code), f"{r.old_version} -> {r.new_version or r.ref}",
            f"{r.downtime_s:.2f} s" if r.downtime_s >= 0 else "-",
        )
        for r in results
    ]
    # The name of a run says when it began; with one more column the table would not fit into 80.
    console.table("", ("run", "outcome", "exit", "versions", "downtime"), rows, data=True)
    return 0


@click.command()
@click.argument("run", required=False)
@click.option("--step", help="Print the log of this step.")
@common
@verb
def logs(console: Console, settings: Settings, *, run: str | None, step: str | None) -> int:
    """Log files of a run (default: the newest), or one of them."""
    from kwdb_build.errors import UsageError
    from kwdb_build.files import human_bytes
    from kwdb_build.upgrade.rundir import RunDirectory

    directory = RunDirectory.find(settings.home, run)
    found = sorted([*directory.logs.glob("*.log"), *directory.verified.glob("*.log")])
    if step is not None:
        path = next((path for path in found if path.stem == step), None)
        if path is None:
            raise UsageError(
                f"run {directory.id} has no log of {step!r}", hint="it has: " + ", ".join(p.stem for p in found)
            )
        console.text(path.read_text(encoding="utf-8", errors="replace"))
        return 0
    if console.as_json:
        console.data({"run": directory.id, "logs": found})
        return 0
    rows = [(path.stem, human_bytes(path.stat().st_size), str(path)) for path in found]
    console.table(directory.id, ("step", "size", "file"), rows, data=True)
    return 0


@click.command()
@click.argument("run", required=False)
@common
@verb
def report(console: Console, settings: Settings, *, run: str | None) -> int:
    """Summary of a run (default: the newest), and where its report is."""
    from kwdb_build.cli import render
    from kwdb_build.errors import UsageError
    from kwdb_build.upgrade.result import load_result
    from kwdb_build.upgrade.rundir import RunDirectory

    directory = RunDirectory.find(settings.home, run)
    found: Any = load_result(directory)
    if found is None:
        raise UsageError(f"run {directory.id} has no result yet", hint="`kwdb-build status` says how it stands")
    render.result(console, found)
    return 0
