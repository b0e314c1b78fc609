"""Verbs about the source cache: what it holds, and making it smaller."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from kwdb_build.cli.options import common, verb

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from kwdb_build.config import Settings
    from kwdb_build.console import Console
    from kwdb_build.source.cache import Entry

_COLUMNS = ("kind", "what", "size", "last used", "path")


@click.group()
def cache() -> None:
    """Fetched sources: what is there and how large; remove what is no longer used.

    Runs, backups, stored builds and stores are never touched.
    """


def _rows(found: Iterable[Entry]) -> list[tuple[str, ...]]:
    from kwdb_build.files import human_bytes

    return [
        (
            entry.kind, entry.what, human_bytes(entry.size_bytes),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_used)), str(entry.path),
        )
        for entry in found
    ]


@cache.command("list")
@common
@verb
def cache_list(console: Console, settings: Settings) -> int:
    """What the source cache holds, the longest unused first."""
    from kwdb_build.files import human_bytes
    from kwdb_build.source.cache import entries

    found = entries(settings.home.absolute())
    if console.as_json:
        console.data({"cache": found, "size_bytes": sum(entry.size_bytes for entry in found)})
        return 0
    if found:
        console.table("", _COLUMNS, _rows(found), data=True)
    total = human_bytes(sum(entry.size_bytes for entry in found))
    console.note(f"{len(found)} entries, {total}" if found else "the source cache is empty")
    return 0


@cache.command("prune")
@click.option("--older-than", metavar="AGE", help="Remove what was not used for so long, such as 12h, 30d or 4w.")
@click.option("--max-size", metavar="SIZE", help="Remove the longest unused until the rest is this small, such as 2g.")
@click.option("--all", "everything", is_flag=True, help="Remove everything that is not in use.")
@click.option("--dry-run", "-n", is_flag=True, help="Only say what would be removed.")
@common
@verb
def cache_prune(
    console: Console, settings: Settings, *, older_than: str | None, max_size: str | None, everything: bool,
    dry_run: bool,
) -> int:
    """Remove fetched sources by age or size. Damaged and unfinished ones go in any case.

    So does what is remembered of build images that the engine has no more.
    """
    from kwdb_build.files import human_bytes
    from kwdb_build.source import cache as source_cache
    from kwdb_build.upgrade.needed import needed_sources

    home = settings.home.absolute()
    chosen = source_cache.choose(
        source_cache.entries(home),
        older_than_s=None if older_than is None else source_cache.parse_age(older_than),
        max_bytes=None if max_size is None else source_cache.parse_size(max_size), everything=everything,
    )
    done = source_cache.prune(chosen, progress=console, needed=needed_sources(home), dry_run=dry_run)
    answers = _useless_answers(console, settings)
    for answer in () if dry_run else answers:
        answer.unlink(missing_ok=True)
    if console.as_json:
        console.data({"pruned": done, "image_answers": answers, "dry_run": dry_run})
        return 0
    if done.removed:
        console.table("", _COLUMNS, _rows(done.removed), data=True)
    for path, reason in done.kept.items():
        console.note(f"kept {path}: {reason}")
    word = "would be removed" if dry_run else "removed"
    console.note(f"{len(done.removed)} entries {word}, {human_bytes(done.freed_bytes)}")
    if answers:
        console.note(f"{len(answers)} answers of build images that are gone {word}")
    return 0


def _useless_answers(console: Console, settings: Settings) -> tuple[Path, ...]:
    """What is remembered of images that are gone. An engine is asked only when there is something, and may be down."""
    from kwdb_build.engine.choose import choose
    from kwdb_build.errors import EngineError
    from kwdb_build.toolchain.probe import kept_answers, useless_answers

    known = settings.home.absolute() / "images"
    if not kept_answers(known):
        return ()
    try:
        engine = choose(settings.engine, docker_host=settings.docker_host, place=settings.home / "sandbox")
        try:
            return useless_answers(known, engine)
        finally:
            engine.close()
    except EngineError as error:
        console.note(f"what build images answered stays: {error.message}")
        return ()
