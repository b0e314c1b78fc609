"""Which stored builds go: a pure choice over facts, and its execution under the store's locks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kwdb_build.build.store import SET_ASIDE, stored_at
from kwdb_build.errors import UsageError
from kwdb_build.scratch import gate, remove_tree

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kwdb_build.build.store import ArtifactStore
    from kwdb_build.model import Artifact

_AGE = re.compile(r"^(?P<number>\d+)(?P<unit>[hdw])$")
_SECONDS = {"h": 3600, "d": 86_400, "w": 7 * 86_400}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a person asked for: how many of the newest stay, and what of the rest goes.

    keep None: no number protects. older_s and max_bytes None: not asked for; with neither, all of the rest goes.
    """

    keep: int | None = None
    older_s: float | None = None
    max_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One stored build: whether it goes, and why it goes or stays."""

    artifact: Artifact
    remove: bool
    reason: str
    size_bytes: int


def parse_age(text: str) -> float:
    """`12h`, `30d`, `8w` in seconds."""
    match = _AGE.match(text)
    if match is None:
        raise UsageError(f"not an age: {text!r}", hint="hours, days or weeks, such as 12h, 30d or 8w")
    return int(match["number"]) * _SECONDS[match["unit"]]


def size_of(artifact: Artifact) -> int:
    """Bytes of its files, as the manifest has them."""
    return sum(entry.size for entry in artifact.files)


def decide(
    artifacts: Sequence[Artifact], times: Mapping[str, float], wanted: Wanted, *, needed: Mapping[str, str], now: float
) -> tuple[Decision, ...]:
    """Newest first; pure. times: key -> when it was stored; needed: key -> why it must stay, whatever was asked for."""
    found = []
    total = 0
    for number, artifact in enumerate(sorted(artifacts, key=lambda one: times[one.key.digest], reverse=True)):
        size = size_of(artifact)
        age = now - times[artifact.key.digest]
        total += size
        why = _why(wanted, age=age, total=total)
        if artifact.key.digest in needed:
            remove, reason = False, needed[artifact.key.digest]
        elif wanted.keep is not None and number < wanted.keep:
            remove, reason = False, f"one of the {wanted.keep} newest"
        else:
            remove, reason = bool(why), why or "within the limits"
        if remove:
            total -= size
        found.append(Decision(artifact=artifact, remove=remove, reason=reason, size_bytes=size))
    return tuple(found)


def _why(wanted: Wanted, *, age: float, total: int) -> str:
    if wanted.older_s is None and wanted.max_bytes is None:
        return "not one of the newest"
    if wanted.older_s is not None and age > wanted.older_s:
        return f"stored {age / _SECONDS['d']:.0f} days ago"
    if wanted.max_bytes is not None and total > wanted.max_bytes:
        return "beyond the size allowed"
    return ""


def execute(store: ArtifactStore, decisions: Sequence[Decision]) -> tuple[Decision, ...]:
    """Remove what was decided, and what killed processes left; what some process uses now stays, and says so."""
    store.tidy()
    done = []
    for decision in decisions:
        if decision.remove and not store.remove(decision.artifact):
            done.append(Decision(
                artifact=decision.artifact, remove=False, reason="in use by a running kwdb-build",
                size_bytes=decision.size_bytes,
            ))
        else:
            done.append(decision)
    return tuple(done)


def times_of(artifacts: Sequence[Artifact]) -> dict[str, float]:
    """When each was stored."""
    return {artifact.key.digest: stored_at(artifact) for artifact in artifacts}


def remove_set_aside(store: ArtifactStore) -> int:
    """Remove the builds that were set aside as changed or incomplete; return how many."""
    place = store.root / SET_ASIDE
    if not place.is_dir():
        return 0
    with gate(store.root):
        found = [path for path in place.iterdir() if path.is_dir() and not path.is_symlink()]
        for path in found:
            remove_tree(path)
    return len(found)
