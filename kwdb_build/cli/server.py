"""Verbs about a running server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kwdb_build.cli.options import common, verb
from kwdb_build.cli.options import server as server_options

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from kwdb_build.config import Settings
    from kwdb_build.console import Console
    from kwdb_build.model import Deployment
    from kwdb_build.server.discover import Found


def server_rows(found: Iterable[Found]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows for a list of servers."""
    columns = ("pid", "command", "user", "store", "listen", "executable", "supervisor")
    rows: list[tuple[str, ...]] = [
        (
            str(s.pid), s.command, s.user, ", ".join(str(path) for path in s.stores), s.listen, str(s.executable),
            s.supervisor,
        )
        for s in found
    ]
    return columns, rows


def _captured(pid: int | None, store: Path | None, listen: str | None) -> Deployment:
    from kwdb_build.server import capture as capturing
    from kwdb_build.server import discover

    selector = discover.Selector(pid=pid, store=store.absolute() if store else None, listen=listen)
    return capturing.capture(discover.choose(discover.find_servers(), selector).pid)


@click.command()
@common
@verb
def servers(console: Console, settings: Settings) -> int:
    """List kwbase servers on this machine."""
    from kwdb_build.server.discover import find_servers

    del settings
    found = find_servers()
    if console.as_json:
        console.data({"servers": found})
    elif found:
        console.table("", *server_rows(found), data=True)
    else:
        console.text("no running kwbase on this machine")
    return 0


@click.command()
@server_options
@click.option("--output", "-o", type=click.Path(), help="Also write the whole capture (with values) here, mode 0600.")
@common
@verb
def capture(console: Console, settings: Settings, *, pid: int | None, store: Path | None, listen: str | None,
            output: str | None) -> int:
    """Show the start command of a running kwbase (environment values are not shown)."""
    from pathlib import Path as RealPath

    from kwdb_build.server.saved import redacted, save, shell_text

    del settings
    deployment = _captured(pid, store, listen)
    if output is not None:
        save(deployment, RealPath(output).absolute())
        console.note(f"written to {output} (mode 0600: it holds environment values)")
    if console.as_json:
        console.data({"deployment": redacted(deployment)})
        return 0
    console.text(shell_text(deployment.start, redact=True))
    rows = [
        ("pid", str(deployment.pid)), ("version", str(deployment.version)),
        ("stores", ", ".join(str(s.path) for s in deployment.stores)), ("sql", str(deployment.sql)),
        ("http", str(deployment.http)), ("secure", "yes" if deployment.secure else "no"),
        ("supervisor", deployment.supervisor),
    ]
    rows += [(name, str(path)) for name, path in deployment.replaceable.items()]
    rows += [(f"not replayed: {name}", reason) for name, reason in deployment.start.dropped.items()]
    console.table("", ("", ""), rows)
    return 0


@click.command()
@server_options
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@common
@verb
def restart(console: Console, settings: Settings, *, pid: int | None, store: Path | None, listen: str | None,
            yes: bool) -> int:
    """Stop a running kwbase and start it with the same command."""
    from kwdb_build.upgrade.restart import restart as do_restart

    result = do_restart(_captured(pid, store, listen), settings, console, assume_yes=yes)
    if console.as_json:
        console.data({"restart": result})
    else:
        console.note(f"pid {result.pid} answers again; downtime {result.downtime_s:.2f} s", style="green")
    return 0


@click.command()
@click.argument("run", required=False)
@common
@verb
def verify(console: Console, settings: Settings, *, run: str | None) -> int:
    """Run the verification suite on the running server, against the baseline of a run (default: the newest)."""
    from kwdb_build.upgrade.reverify import reverify

    result = reverify(run, settings, console)
    if console.as_json:
        console.data({"verify": result})
    else:
        rows = [(c.name, str(c.verdict), c.found) for c in result.checks]
        console.table("", ("check", "verdict", "found"), rows, data=True)
    return 0
