"""Verbs that make or finish a run."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from kwdb_build.cli.options import building, commands, common, password, server, source, stack, verb, waits

if TYPE_CHECKING:
    from pathlib import Path

    from kwdb_build.config import Settings
    from kwdb_build.console import Console

_GATE = (
    click.option("--allow-same", is_flag=True, help="Allow a patched build of the version that runs."),
    click.option("--no-backup", is_flag=True, help="Make no backup: a rollback then has no data to go back to."),
    click.option("--drop-flag", "drop_flags", multiple=True, metavar="NAME",
                 help="Start the new version without this flag of the captured command. Repeatable."),
    click.option("--add-flag", "add_flags", multiple=True, metavar="--NAME=VALUE",
                 help="Start the new version with this flag as well. Repeatable."),
    click.option("--no-trial", is_flag=True, help="Do not try the new version on an empty store before the stop."),
    waits,
)


_gate_options = stack(_GATE)


def _request(settings: Settings, ref: str, options: dict[str, Any], *, keep: bool) -> Any:
    from kwdb_build.cli.source import chosen
    from kwdb_build.model import to_json
    from kwdb_build.upgrade.rundir import UpgradeRequest

    store: Path | None = options["store"]
    ref, choice = chosen(settings, ref, options, keep=keep)
    return UpgradeRequest(
        ref=ref, choice=choice, url=settings.url, redirects=settings.redirect, pid=options["pid"],
        store=store.absolute() if store else None, listen=options["listen"], allow_same=options["allow_same"],
        no_backup=options["no_backup"], no_trial=options["no_trial"],
        drop_flags=options["drop_flags"], add_flags=options["add_flags"],
        settings=to_json(settings.model_dump(mode="json", exclude={"home"})),
    )


@click.command()
@click.argument("ref", required=False, default="")
@source
@server
@building
@commands
@_gate_options
@click.option("--dry-run", "-n", is_flag=True, help="Print the plan with its reasons; write nothing.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask before the restart.")
@common
@verb
@password
def upgrade(console: Console, settings: Settings, *, ref: str, dry_run: bool, yes: bool, **options: Any) -> int:
    """Upgrade a running kwbase to REF (tag, branch, commit; or an archive, directory or checkout by its path).

    The old server runs on while the new version is fetched, checked and built. Then it is stopped, its data is backed
    up and verified, binary and libraries are switched, and it is started with the same command. A failed start or
    verification rolls back binary, libraries and data.
    """
    if dry_run:
        return _plan(console, settings, ref, options)
    from kwdb_build.cli import render
    from kwdb_build.cli.bundle import opened
    from kwdb_build.errors import KwdbBuildError, RefusedError
    from kwdb_build.upgrade import session
    from kwdb_build.upgrade.workshop import Workshop

    if not yes and not sys.stdin.isatty():
        raise RefusedError("an upgrade restarts a server and nobody is here to confirm it",
                           hint="pass -y, or look at the plan first with -n")
    settings = opened(console, settings, options)
    Workshop(settings, console, settings.home / "logs").require_sound()
    try:
        result = session.upgrade(_request(settings, ref, options, keep=True), settings, console, assume_yes=yes)
    except KwdbBuildError:
        render.ended(console, settings)
        raise
    render.result(console, result)
    return 0


@click.command()
@click.argument("ref", required=False, default="")
@source
@server
@building
@commands
@_gate_options
@common
@verb
@password
def plan(console: Console, settings: Settings, *, ref: str, **options: Any) -> int:
    """Show what an upgrade to REF would do, and why; change nothing."""
    return _plan(console, settings, ref, options)


def _plan(console: Console, settings: Settings, ref: str, options: dict[str, Any]) -> int:
    from kwdb_build.cli.bundle import opened
    from kwdb_build.upgrade.plan import make_plan
    from kwdb_build.upgrade.workshop import Workshop

    settings = opened(console, settings, options, unpack=False)
    Workshop(settings, console, settings.home / "logs").require_sound()
    request = _request(settings, ref, options, keep=False)
    made = make_plan(request, settings)
    if console.as_json:
        console.data({"plan": made})
        return 0
    rows = [(str(n), a.step, a.action, a.reason) for n, a in enumerate(made.actions, 1)]
    console.table(f"Plan: {made.old_version} -> {request.ref}", ("", "step", "action", "reason"), rows, data=True)
    console.note("nothing was written or changed")
    return 0


def _set(given: dict[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in given.items() if value is not None}


@click.command()
@click.argument("run", required=False)
@waits
@common
@verb
@password
def resume(console: Console, settings: Settings, *, run: str | None, **given: float | None) -> int:
    """Go on with a run that was cut off (default: the newest), forwards or back."""
    from kwdb_build.cli import render
    from kwdb_build.upgrade import session

    result = session.resume(run, settings, console, overrides=_set(given))
    render.result(console, result)
    return 0


@click.command()
@click.argument("run", required=False)
@click.option("--yes", "-y", is_flag=True, help="Do not ask, also when data written since the upgrade is given up.")
@waits
@common
@verb
@password
def rollback(console: Console, settings: Settings, *, run: str | None, yes: bool, **given: float | None) -> int:
    """Take a run back (default: the newest): old binary, old libraries, old data.

    Exits 0 when the old version runs again and was verified.
    """
    from kwdb_build.cli import render
    from kwdb_build.errors import RefusedError, RolledBackError
    from kwdb_build.upgrade import session

    if not yes and not sys.stdin.isatty():
        raise RefusedError("a rollback restarts a server and nobody is here to confirm it", hint="pass -y")
    try:
        session.roll_back(run, settings, console, assume_yes=yes, overrides=_set(given))
    except RolledBackError as done:
        render.ended(console, settings, run)
        console.note(done.message.replace("not upgraded: ", ""), style="green")
        for line in done.context.splitlines()[1:]:  # the first is the cause: it was asked for
            console.note(f"  {line}")
    return 0


@click.command()
@click.argument("run", required=False)
@common
@verb
def abandon(console: Console, settings: Settings, *, run: str | None) -> int:
    """Close a cut-off run (default: the newest) without doing anything: things were set right by hand."""
    from kwdb_build.upgrade import session

    result = session.abandon(run, settings, console)
    console.note(f"run {result.run} is closed; its backup and old files stay in {result.run_dir}")
    return 0
