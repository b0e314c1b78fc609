"""The verb `check`: what a fetched tree asks for, against the build image, this host and this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kwdb_build.cli.options import building, common, server, source, verb

if TYPE_CHECKING:
    from pathlib import Path

    from kwdb_build.config import Settings
    from kwdb_build.console import Console
    from kwdb_build.model import CheckResult

_TROUBLE = ("fail", "warn", "unknown")


@click.command()
@click.argument("ref", required=False, default="")
@click.option("--host", is_flag=True, help="Also whether this host could compile it without a container.")
@source
@building
@server
@common
@verb
def check(
    console: Console, settings: Settings, *, ref: str, host: bool = False, pid: int | None = None,
    store: Path | None = None, listen: str | None = None, **options: Any,
) -> int:
    """Check what the source of REF asks for: against the build image, and against this host to run it."""
    from kwdb_build.cli.building import fetch_tree, make_workshop
    from kwdb_build.cli.bundle import opened
    from kwdb_build.errors import DependencyError
    from kwdb_build.server.discover import Selector
    from kwdb_build.upgrade.examination import examine_host, running_server
    from kwdb_build.upgrade.workshop import require_missing_nothing, summary

    settings = opened(console, settings, options)
    workshop = make_workshop(console, settings)
    workshop.require_sound()  # what is wrong with options and selectors is said before anything is fetched or made
    deployment, unknown = running_server(Selector(pid=pid, store=store, listen=listen))
    tree = fetch_tree(workshop, console, settings, ref, (1, 3), options)
    with console.step(2, 3, "check the build image"):
        rows = workshop.check(tree)
        console.update(summary(rows))
    with console.step(3, 3, "check this host"):
        toolchain = workshop.toolchain(tree)
        on_host = examine_host(
            tree, settings=settings, toolchain=toolchain, artifact=workshop.find(tree), compiling=host,
            deployment=deployment, unknown_server=unknown,
        )
        console.update(summary(on_host))
    rows += on_host
    answer = {"toolchain": toolchain.name, "version": str(tree.version), "checks": rows}
    if not console.as_json:
        _show(console, rows, f"{tree.version} with {toolchain.name}")
    try:
        require_missing_nothing(rows, workshop.log("check"))
    except DependencyError as error:
        error.result = answer  # type: ignore[attr-defined]  # shown inside of the one answer that a failure gives
        raise
    if console.as_json:
        console.data(answer)
    return 0


def _show(console: Console, rows: tuple[CheckResult, ...], title: str) -> None:
    """A table for each group; below it what to do, and where the tree contradicts itself."""
    from kwdb_build.upgrade.examination import GROUPS

    columns = ("dependency", "verdict", "required", "found", "asked for by")
    for group, words in GROUPS.items():
        chosen = [row for row in rows if row.group == group]
        if not chosen:
            continue
        cells = [(row.name, str(row.verdict), row.required, row.found, row.where) for row in chosen]
        console.table(f"{title}: {words}", columns, cells, data=True)
        for row in chosen:
            if row.verdict in _TROUBLE and (row.fix or row.fixes):
                console.text(f"  {row.name}: {row.fix}")
                for other in row.fixes:
                    if other not in row.fix:
                        console.text(f"      or: {other}")
        for row in chosen:
            if row.note:
                where = "" if row.where in row.note else f"{row.where}; "
                console.text(f"  {row.name}: the tree's own words differ: {where}{row.note}")
