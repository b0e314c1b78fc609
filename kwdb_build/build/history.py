"""Builds of this machine, a line each, and what they tell about the time that the next one takes.

The first build of a machine goes by typical.jsonl beside this file: real builds of KWDB's releases, without any cache.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kwdb_build.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kwdb_build.build.progress import Step

FILE = "builds.jsonl"
BUILT = "built"
TYPICAL = "typical"
"""Outcome of a build that somebody else made."""
_TYPICAL = Path(__file__).with_name("typical.jsonl")
_KEPT = 200
_MARK_EVERY = 10
_GO_MARK_EVERY = 50
_INNER_MARK_EVERY = 25
_TRUSTED_S = 20.0
"""From here on the speed of this build against the last one is worth something."""
_AS_FAST = 2.0


@dataclass(frozen=True, kw_only=True)
class CacheUse:
    """What came from caches: compilations answered by ccache and done by the compiler, and Go packages compiled.

    shared counts the hits that came from another machine. files names what the compiler had to do.
    """

    hits: int = 0
    misses: int = 0
    shared: int = 0
    go_packages: int = 0
    files: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.hits + self.misses:
            return ""
        return f"{self.hits} of {self.hits + self.misses} C/C++ files from the cache"


@dataclass(frozen=True, kw_only=True)
class BuildRecord:
    """One build, or a run of KWDB's own tests after one.

    marks: how far it was -> seconds since its begin; memory_bytes: the most that was seen at once.
    """

    when: str
    key: str
    version: str
    recipe: str
    toolchain: str
    build_type: str
    jobs: int
    outcome: str
    seconds: float
    warm: bool
    memory_bytes: int = 0
    cache: CacheUse = field(default_factory=CacheUse)
    marks: dict[str, float] = field(default_factory=dict)

    def like(self, other: BuildRecord) -> tuple[bool, bool, bool, bool]:
        """How much alike, the most important first."""
        return (self.warm == other.warm, self.recipe == other.recipe and self.build_type == other.build_type,
                self.jobs == other.jobs, self.version == other.version)


def mark_of(step: Step, *, packages: int, inner: int) -> str:
    """A name for how far a build is, coarse enough to be met again.

    packages: Go packages so far; inner: objects of the builds inside so far. In both of them no share is known.
    """
    if step.phase == "go":
        return f"go:{packages // _GO_MARK_EVERY}"
    if step.phase == "native":
        return f"native:{inner // _INNER_MARK_EVERY}"
    share = step.done * 100 // step.total // _MARK_EVERY if step.total else 0
    return f"{step.phase}:{share}"


class Pace:
    """What past builds, the most alike first, tell about the time that this one still takes.

    How much of a build its caches spare shows only while it runs: a new release takes ten times as long as a patch did.
    So the first of the past ones counts for as long as this one keeps to its times, and else the one that fits best.
    marks: how far this one was -> seconds since its begin.
    """

    def __init__(self, *past: BuildRecord) -> None:
        self._past = past
        self._times: dict[int, tuple[float, float, float]] = {}
        """By the number of a past build: when it was at the farthest mark that both know, when this one was, and when
        that one came to its next."""
        self.marks: dict[str, float] = {}

    def reach(self, mark: str, elapsed_s: float) -> None:
        """This build is at a mark."""
        if mark in self.marks:
            return
        self.marks[mark] = round(elapsed_s, 1)
        for number, past in enumerate(self._past):
            then = past.marks.get(mark, -1.0)
            if then >= self._times.get(number, (0.0,))[0]:
                following = min((seconds for seconds in past.marks.values() if seconds > then), default=past.seconds)
                self._times[number] = (then, self.marks[mark], following)

    def left(self, elapsed_s: float) -> tuple[BuildRecord, float] | None:
        """The past build that this one is like by now, and the seconds to go; None when that cannot be said.

        From the farthest mark that the past build knows too it goes on as that one went on, at the speed of this one;
        but not beyond the past build's next mark before this one has reached that, too.
        """
        number = min(sorted(self._times), key=lambda number: self._misfit(number, elapsed_s), default=None)
        if number is None:
            return None
        past, (then, reached, following) = self._past[number], self._times[number]
        speed = min(3.0, max(0.3, reached / then)) if then > _TRUSTED_S else 1.0
        now = min(then + (elapsed_s - reached) / speed, following)
        return past, max(0.0, (past.seconds - now) * speed)

    def _misfit(self, number: int, elapsed_s: float) -> float:
        """By how much more than a factor of _AS_FAST this build is faster or slower than a past one; from 1."""
        then, reached, following = self._times[number]
        slower = (max(reached, elapsed_s) + _TRUSTED_S) / (following + _TRUSTED_S)
        faster = (then + _TRUSTED_S) / (reached + _TRUSTED_S)
        return max(slower, faster, _AS_FAST) / _AS_FAST


class BuildHistory:
    """The file of all builds below a home."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, record: BuildRecord) -> None:
        """Append; a disk that is full or a file that cannot be written never spoils a build."""
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            line = json.dumps(asdict(record), ensure_ascii=False) + "\n"
            fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                size = os.fstat(fd).st_size
                # A line that a full disk cut off must not take this one along.
                cut_off = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
                os.write(fd, (f"\n{line}" if cut_off else line).encode())
            finally:
                os.close(fd)
            lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            if len(lines) > 2 * _KEPT:
                write_atomic(self._path, "".join(lines[-_KEPT:]))

    def all(self) -> tuple[BuildRecord, ...]:
        """All that can be read, the oldest first."""
        return _records(self._path)

    def alike(self, new: BuildRecord, outcome: str = BUILT) -> tuple[BuildRecord, ...]:
        """The successful builds (or what else ended so), first what tells most about a new one, the newest of equals.

        For builds a TYPICAL one by the same recipe comes last, if one is known: a new machine has no other.
        """
        own = [record for record in self.all() if record.outcome == outcome]
        typical = [record for record in _records(_TYPICAL) if record.recipe == new.recipe and outcome == BUILT]
        return (*_sorted(own, new), *_sorted(typical, new))


def _records(path: Path) -> tuple[BuildRecord, ...]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    return tuple(record for line in text.splitlines() if (record := _read(line)) is not None)


def _sorted(records: Sequence[BuildRecord], new: BuildRecord) -> list[BuildRecord]:
    return [record for _, record in sorted(
        enumerate(records), key=lambda pair: (*pair[1].like(new), pair[0]), reverse=True
    )]


def _read(line: str) -> BuildRecord | None:
    """A line, None when it is cut off or of another time."""
    try:
        data: dict[str, Any] = json.loads(line)
        cache = data.pop("cache")
        return BuildRecord(**data, cache=CacheUse(**{**cache, "files": tuple(cache["files"])}))
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
