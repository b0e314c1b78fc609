"""What the source cache holds and how to make it smaller. Runs, backups, builds and stores are not among it."""

from __future__ import annotations

import contextlib
import shutil
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kwdb_build.errors import LockedError, UsageError
from kwdb_build.files import read_json, tree_bytes
from kwdb_build.source.bundle import CONTENTS
from kwdb_build.source.cachelock import hold, set_aside
from kwdb_build.source.inspect import holds_store
from kwdb_build.source.mirror import RECORD

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from kwdb_build.console import Progress

DAY_S = 86_400.0
_SHORT = 12


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One thing in the cache. kind: repository, checkout, bundle, damaged or unfinished. last_used is a unix time.

    size_bytes counts a file that several entries share (a checkout links the packs of its repository) in each of them.
    """

    kind: str
    path: Path
    what: str
    size_bytes: int
    last_used: float


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What a prune did (or would do): entries removed, entries kept although they were chosen, with the reason."""

    removed: tuple[Entry, ...] = ()
    kept: dict[str, str] = field(default_factory=dict)
    freed_bytes: int = 0


def entries(home: Path) -> tuple[Entry, ...]:
    """Everything in the source cache of a home, the longest unused first."""
    repositories, checkouts = home / "cache" / "git", home / "source"
    found = [_entry(path, "repository") for path in _directories(repositories) if path.suffix == ".git"]
    found += [_entry(path, "checkout") for path in _directories(checkouts) if _is_checkout(path)]
    found += [_entry(path, "bundle") for path in _directories(home / "bundles") if (path / CONTENTS).is_file()]
    for place in (repositories, checkouts):
        found += [_entry(path, "damaged") for path in _directories(place) if ".aside-" in path.name]
    found += [
        _entry(path, "unfinished") for path in _directories(checkouts)
        if path.name.startswith(".") and path.name.endswith(".new")
    ]
    return tuple(sorted(found, key=lambda entry: (entry.last_used, str(entry.path))))


def _directories(place: Path) -> list[Path]:
    return sorted(path for path in place.iterdir() if path.is_dir() and not path.is_symlink()) if place.is_dir() else []


def _is_checkout(path: Path) -> bool:
    return not path.name.startswith(".") and ".aside-" not in path.name and (path / "src").is_dir()


def _entry(path: Path, kind: str) -> Entry:
    stamp = path / RECORD if kind == "repository" and (path / RECORD).exists() else path
    return Entry(
        kind=kind, path=path, what=_what(path, kind), size_bytes=tree_bytes(path), last_used=stamp.stat().st_mtime
    )


def _what(path: Path, kind: str) -> str:
    if kind in {"damaged", "unfinished"}:
        return "set aside as damaged" if kind == "damaged" else "left by a run that was cut off"
    if kind == "bundle":
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return f"{read_json(path / CONTENTS)['source']['version']['text']} and its toolchain"
    if kind == "checkout":
        described = path / "source.json"  # of archives, patched trees and the like
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return str(read_json(described)["version"]["text"])
        commit, _, rest = path.name.partition("-")
        return f"commit {commit[:_SHORT]}" + (f" ({rest})" if rest else "")
    try:
        return str(read_json(path / RECORD)["url"])
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown repository"


def choose(
    found: Sequence[Entry], *, older_than_s: float | None = None, max_bytes: int | None = None,
    everything: bool = False, now: float | None = None,
) -> tuple[Entry, ...]:
    """Which entries go: those unused for longer, then the longest unused until the rest is small enough. Pure.

    Damaged and unfinished ones go in any case. Without any rule nothing else is chosen.
    """
    now = time.time() if now is None else now
    gone = [
        entry for entry in found
        if everything or entry.kind in {"damaged", "unfinished"}
        or (older_than_s is not None and now - entry.last_used > older_than_s)
    ]
    if max_bytes is not None:
        left = sum(entry.size_bytes for entry in found if entry not in gone)
        for entry in sorted((e for e in found if e not in gone), key=lambda entry: entry.last_used):
            if left <= max_bytes:
                break
            gone.append(entry)
            left -= entry.size_bytes
    return tuple(gone)


def prune(chosen: Iterable[Entry], *, progress: Progress, needed: Iterable[Path] = (), dry_run: bool = False) -> Pruned:
    """Remove the chosen entries; one that is in use, needed by an unfinished run, or holds a store is kept.

    needed: paths that somebody still wants; an entry that holds one of them stays.
    """
    wanted = tuple(needed)
    removed: list[Entry] = []
    kept: dict[str, str] = {}
    for entry in chosen:
        progress.update(f"removing {entry.what}")
        reason = _why_kept(entry, wanted) or ("" if dry_run else _remove(entry, progress))
        if reason:
            kept[str(entry.path)] = reason
        else:
            removed.append(entry)
    return Pruned(removed=tuple(removed), kept=kept, freed_bytes=sum(entry.size_bytes for entry in removed))


def _why_kept(entry: Entry, wanted: tuple[Path, ...]) -> str:
    if any(path == entry.path or path.is_relative_to(entry.path) for path in wanted):
        return "a run that is not finished needs it"
    store = holds_store(entry.path)
    return f"it holds a database store: {store}" if store is not None else ""


def _remove(entry: Entry, progress: Progress) -> str:
    """Remove one entry; why it was not removed, '' when it was. First renamed: a half removed one is never found."""
    try:
        with hold(lock_of(entry), what=f"removing {entry.path.name}", progress=progress, timeout_s=0):
            aside = entry.path if entry.kind in {"damaged", "unfinished"} else set_aside(entry.path)
            if aside is not None:
                shutil.rmtree(aside)
    except LockedError:
        return "it is in use"
    except OSError as error:
        return f"it cannot be removed: {error.strerror}: {error.filename}"
    return ""


def lock_of(entry: Entry) -> Path:
    """The lock that a fetch holds while it works on this entry."""
    name = entry.path.name.partition(".aside-")[0]
    if entry.kind == "unfinished":
        name = name.removeprefix(".").removesuffix(".new")
    place = entry.path.with_name(name)
    return place.with_suffix(".lock") if place.suffix == ".git" else place.with_name(f"{name}.lock")


_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SPANS = {"h": 3600.0, "d": DAY_S, "w": 7 * DAY_S}


def parse_size(text: str) -> int:
    """`500m`, `2g`, `1024` (bytes) -> bytes; UsageError for anything else."""
    number, unit = (text[:-1], _UNITS[text[-1].lower()]) if text[-1:].lower() in _UNITS else (text, 1)
    if not number.isdigit():
        raise UsageError(f"not a size: {text!r}", hint="such as 500m or 2g")
    return int(number) * unit


def parse_age(text: str) -> float:
    """`12h`, `30d`, `4w` -> seconds; UsageError for anything else."""
    if text[-1:].lower() not in _SPANS or not text[:-1].isdigit():
        raise UsageError(f"not an age: {text!r}", hint="such as 12h, 30d or 4w")
    return int(text[:-1]) * _SPANS[text[-1].lower()]
