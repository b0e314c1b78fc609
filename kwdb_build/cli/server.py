"""Verbs about a running server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kwdb_build.cli.options import commands, common, password, verb, waits
from kwdb_build.cli.options import server as server_options

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kwdb_build.config import Settings
    from kwdb_build.console import Console
    from kwdb_build.model import Deployment
    from kwdb_build.server.discover import Found
    from kwdb_build.upgrade.restart import Restarted


def server_rows(found: Iterable[Found]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows for a list of servers."""
    from kwdb_build.upgrade.report import seconds_in_words

    columns = ("pid", "version", "mode", "user", "stores", "sql, http", "secure", "run by", "up")
    rows: list[tuple[str, ...]] = [
        (
            str(s.pid), s.version or "?", s.command, s.user, "\n".join(str(path) for path in s.stores) or "?",
            f"{s.listen}\n{s.http}".strip() or "?", "yes" if s.secure else "no",
            s.place or (s.supervisor if s.supervisor != "none" else "-"),
            seconds_in_words(s.uptime_s) if s.uptime_s >= 0 else "?",
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
    from kwdb_build.server.listing import with_versions

    del settings
    found = with_versions(find_servers())
    if console.as_json:
        console.data({"servers": found})
    elif found:
        console.table("", *server_rows(found), data=True)
    else:
        console.text("no running kwbase on this machine")
    return 0


@click.command()
@server_options
@click.option("--as", "form", type=click.Choice(["shell", "systemd", "json"]),
              help="A script to run, a unit file, or everything for a machine.")
@click.option("--output", "-o", type=click.Path(),
              help="Write it here with all values, mode 0600 (without --as: json, which --capture reads again).")
@common
@verb
def capture(console: Console, settings: Settings, *, pid: int | None, store: Path | None, listen: str | None,
            form: str | None, output: str | None) -> int:
    """Show the start command of a running kwbase, and all that belongs to it.

    What may be secret is shown as <redacted>; only a file gets it (-o).
    """
    from kwdb_build.errors import UsageError
    from kwdb_build.server import export

    deployment = _captured(pid, store, listen)
    if output is not None:
        try:
            _write_capture(deployment, settings, form or "json", Path(output).resolve())
        except OSError as error:
            raise UsageError(f"cannot write {output}: {error.strerror}", hint="-o takes the path of a file") from error
        console.note(f"written to {output} (mode 0600: it holds environment values)")
    if form == "systemd":
        console.text(export.unit_text(deployment.start, redact=True))
    elif console.as_json or form == "json":
        console.data(_document(deployment, settings, secrets=False))
    elif form == "shell" or output is None:
        console.text(export.shell_text(deployment.start, redact=True))
    if form is None and not console.as_json:
        _facts(console, deployment, settings)
    return 0


def _write_capture(deployment: Deployment, settings: Settings, form: str, path: Path) -> None:
    from kwdb_build.files import PRIVATE, write_atomic
    from kwdb_build.server import export, saved

    if form == "json":
        saved.save(deployment, path, besides=_document(deployment, settings, secrets=True))
        return
    text = (export.unit_text if form == "systemd" else export.shell_text)(deployment.start, redact=False)
    write_atomic(path, text.encode("utf-8", "surrogateescape"), mode=PRIVATE)


def _document(deployment: Deployment, settings: Settings, *, secrets: bool) -> dict[str, Any]:
    from kwdb_build.server import capture as capturing
    from kwdb_build.server import certificates, export

    certs = certificates.read(deployment.certs_dir, settings.sql_user) if deployment.certs_dir else ()
    return export.document(
        deployment, secrets=secrets, known=capturing.flags_known(deployment), digests=capturing.digests(deployment),
        certificates=certs,
    )


def _facts(console: Console, deployment: Deployment, settings: Settings) -> None:
    """The table below the command."""
    import time

    document = _document(deployment, settings, secrets=False)
    rows = [
        ("pid", str(deployment.pid)), ("version", str(deployment.version)),
        ("stores", ", ".join(str(s.path) for s in deployment.stores)), ("sql", str(deployment.sql)),
        ("http", str(deployment.http)), ("secure", "yes" if deployment.secure else "no"),
        ("supervisor", deployment.supervisor),
    ]
    rows += [("leads out of the store", str(path)) for s in deployment.stores for path in s.targets]
    rows += [(name, f"{path}  sha256 {document['sha256'][str(path)][:16]}…")
             for name, path in deployment.replaceable.items()]
    rows += [
        ("certificate", f"{one['path']}  " + (one["problem"] or time.strftime(
            "until %Y-%m-%d", time.localtime(one["ends"]))))
        for one in document["certificates"]
    ]
    defaults = [f"{name}={value}" for name, value in document["flags"]["default"].items() if value]
    rows += [("in force by default", ", ".join(defaults))] if defaults else []
    rows += [(f"not replayed: {name}", reason) for name, reason in deployment.start.dropped.items()]
    console.table("", ("", ""), rows)


@click.command()
@server_options
@click.option("--capture", "capture_file", type=click.Path(path_type=Path),
              help="A server that is down: start it from this file (of `capture -o`, or written by hand as .toml).")
@commands
@waits
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@common
@verb
@password
def restart(console: Console, settings: Settings, *, pid: int | None, store: Path | None, listen: str | None,
            capture_file: Path | None, yes: bool, **others: Any) -> int:
    """Stop a running kwbase and start it with the same command; or start one that is down (--capture)."""
    from kwdb_build.upgrade import restart as restarting

    del others  # settings, by now
    if capture_file is None:
        result = restarting.restart(_captured(pid, store, listen), settings, console, assume_yes=yes)
    else:
        if pid is not None or store is not None or listen is not None:
            raise click.UsageError("--capture says which server is meant: leave out --pid, --store and --listen-addr")
        result = _from_file(capture_file, settings, console, yes=yes)
    if console.as_json:
        console.data({"restart": result})
        return 0
    parts = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in result.parts.items())
    if result.downtime_s < 0:
        console.note(f"pid {result.pid} answers; it was down ({parts})", style="green")
    else:
        console.note(f"pid {result.pid} answers again; downtime {result.downtime_s:.2f} s ({parts})", style="green")
    return 0


def _from_file(path: Path, settings: Settings, console: Console, *, yes: bool) -> Restarted:
    """Restart the captured server when it runs, start it when it is down or about to be."""
    from kwdb_build.server import capture as capturing
    from kwdb_build.server import described, drain, proc, saved
    from kwdb_build.upgrade import restart as restarting

    known = described.load(path) if path.suffix == ".toml" else saved.load(path)
    alive = known.pid and proc.is_alive(known.pid, known.started_at)
    if alive and not drain.begun(known):
        return restarting.restart(capturing.capture(known.pid), settings, console, assume_yes=yes)
    return restarting.start_stopped(known, settings, console, capture=path, assume_yes=yes, draining=bool(alive))


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
