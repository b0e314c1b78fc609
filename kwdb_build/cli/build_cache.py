"""Verbs about what builds leave for the next one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from kwdb_build.cli.options import common, verb

if TYPE_CHECKING:
    from kwdb_build.build.caches import CacheFacts
    from kwdb_build.build.history import BuildRecord
    from kwdb_build.config import Settings
    from kwdb_build.console import Console


@click.group("build-cache")
def build_cache() -> None:
    """Caches of builds: list, prune."""


@build_cache.command("list")
@common
@verb
def cache_list(console: Console, settings: Settings) -> int:
    """Caches of each toolchain with their sizes, and what they gave to the last builds."""
    from kwdb_build.build import caches
    from kwdb_build.build.history import FILE, BuildHistory
    from kwdb_build.files import human_bytes

    found = caches.listed(settings.home / caches.DIRECTORY)
    builds = BuildHistory(settings.home / FILE).all()[-10:]
    if console.as_json:
        console.data({"caches": found, "builds": builds})
        return 0
    rows = [
        (one.name, *map(human_bytes, (one.ccache_bytes, one.go_bytes, one.kept_bytes)), _date(one.used_at),
         str(one.path))
        for one in found
    ]
    console.table("", ("toolchain", "ccache", "Go", "libraries", "last used", "path"), rows, data=True)
    if builds:
        console.table(
            "The last builds", ("when", "version", "outcome", "time", "C/C++ from cache", "Go compiled", "memory"),
            [_row(build, human_bytes(build.memory_bytes)) for build in builds], data=True,
        )
    return 0


def _row(build: BuildRecord, memory: str) -> tuple[str, ...]:
    use = build.cache
    hits = f"{use.hits} of {use.hits + use.misses}" if use.hits + use.misses else ""
    return (build.when, build.version, build.outcome, f"{build.seconds:.0f} s", hits, str(use.go_packages), memory)


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


@build_cache.command("prune")
@click.option("--unused-for", "days", type=click.IntRange(min=0), default=30, show_default=True, metavar="DAYS",
              help="Remove caches that no build used for so many days; 0: all.")
@click.option("--dry-run", "-n", is_flag=True, help="Only say what would go.")
@common
@verb
def cache_prune(console: Console, settings: Settings, *, days: int, dry_run: bool) -> int:
    """Remove the caches of toolchains that are not used any more. Stored builds stay."""
    from kwdb_build.build import caches
    from kwdb_build.files import human_bytes

    removed: list[CacheFacts] = []
    kept: list[CacheFacts] = []
    for one in caches.listed(settings.home / caches.DIRECTORY):
        if days and time.time() - one.used_at < days * 86_400:
            continue
        gone = not caches.in_use(one.path) if dry_run else caches.remove(one.path)
        if gone:
            removed.append(one)
        elif one.path.exists():
            kept.append(one)
    for one in kept:
        console.note(f"{one.name}: a build uses it, {'would be ' if dry_run else ''}left alone")
    freed = sum(one.ccache_bytes + one.go_bytes + one.kept_bytes for one in removed)
    if console.as_json:
        console.data({"dry_run": dry_run, "removed": removed, "in_use": kept, "freed_bytes": freed})
    else:
        for one in removed:
            console.note(f"{'would go' if dry_run else 'gone'}: {one.name}, last used {_date(one.used_at)}")
        console.note(f"{human_bytes(freed)} {'would be freed' if dry_run else 'freed'}")
    return 0
