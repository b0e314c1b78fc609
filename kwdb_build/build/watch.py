"""What a person sees of a running build: phase, target, time left, cache, memory."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from kwdb_build.build.history import CacheUse, left_s, mark_of
from kwdb_build.build.progress import Tracker
from kwdb_build.files import human_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from kwdb_build.build.history import BuildRecord
    from kwdb_build.console import Progress

_LOOK_EVERY_S = 2.0


def parse_stats(lines: Iterable[str]) -> CacheUse:
    """Ccache's log of one build: `# FILE`, then a line for each thing that happened with it. Pure."""
    hits = shared = 0
    missed: list[str] = []
    name = ""
    for line in lines:
        word = line.strip()
        if word.startswith("# "):
            name = word[2:]
        elif word in {"direct_cache_hit", "preprocessed_cache_hit"}:
            hits += 1
        elif word == "cache_miss":
            missed.append(name)
        elif word == "remote_storage_hit":
            shared += 1
    return CacheUse(hits=hits, misses=len(missed), shared=shared, files=tuple(missed))


class Watch:
    """Follows one build: lines of its output come in, and what the container notes in its scratch directory."""

    def __init__(self, scratch: Path, progress: Progress, past: BuildRecord | None) -> None:
        self._scratch = scratch
        self._progress = progress
        self._past = past
        self._tracker = Tracker()
        self._began = time.monotonic()
        self._looked = 0.0
        self._aside = ""
        self.marks: dict[str, float] = {}
        self.memory_bytes = 0

    def line(self, text: str) -> None:
        """One line of output."""
        step = self._tracker.feed(text)
        if step is None:
            return
        elapsed = time.monotonic() - self._began
        mark = mark_of(step, self._tracker.packages)
        self.marks.setdefault(mark, round(elapsed, 1))
        if time.monotonic() - self._looked > _LOOK_EVERY_S:
            self._look()
        left = left_s(self._past, mark, elapsed)
        ahead = f"about {_minutes(left)} left" if left is not None else ""
        self._progress.update(
            "  ".join(filter(None, [step.text, ahead, self._aside])), done=step.done or None, total=step.total or None
        )

    def cache_use(self) -> CacheUse:
        """What the caches gave so far."""
        try:
            with (self._scratch / "ccache.log").open(encoding="utf-8", errors="replace") as lines:
                use = parse_stats(lines)
        except OSError:
            use = CacheUse()
        return CacheUse(
            hits=use.hits, misses=use.misses, shared=use.shared, files=use.files, go_packages=self._tracker.packages
        )

    def finish(self) -> None:
        """Look a last time."""
        self._look()

    def _look(self) -> None:
        self._looked = time.monotonic()
        now, self.memory_bytes = _memory(self._scratch / "memory", self.memory_bytes)
        use = self.cache_use()
        hits = f"cache {use.hits}/{use.hits + use.misses}" if use.hits + use.misses else ""
        self._aside = "  ".join(filter(None, [hits, human_bytes(now) if now else ""]))


def _memory(note: Path, most: int) -> tuple[int, int]:
    """Bytes now and at most, of pages as noted inside; 0 for now when it cannot be read."""
    try:
        now, peak = (int(word) * os.sysconf("SC_PAGE_SIZE") for word in note.read_text(encoding="ascii").split())
    except (OSError, ValueError):
        return 0, most
    return now, max(most, peak)


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
