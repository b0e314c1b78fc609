"""What a person sees of a running build: phase, target, time left, cache, memory."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

from kwdb_build.build.history import TYPICAL, CacheUse, Pace, mark_of
from kwdb_build.build.progress import Tracker
from kwdb_build.files import human_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from kwdb_build.build.history import BuildRecord
    from kwdb_build.build.progress import Step
    from kwdb_build.console import Progress

_LOOK_EVERY_S = 2.0
_LOOK_ALONE_S = 5.0
_ALMOST = 0.99
"""The largest share that is shown: a build that takes longer than the last one has not ended."""


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
    """Follows one build: lines of its output come in, and what the container notes in its scratch directory.

    Between them it looks by itself: a link can say nothing for minutes, while its memory and the clock go on. That ends
    with finish(), and when the scratch directory is gone, as after a build that was cancelled.
    """

    def __init__(self, scratch: Path, progress: Progress, past: Sequence[BuildRecord]) -> None:
        self._scratch = scratch
        self._progress = progress
        self._pace = Pace(*past)
        self._past: BuildRecord | None = None
        self._tracker = Tracker()
        self._began = time.monotonic()
        self._looked = 0.0
        self._aside = ""
        self._step: Step | None = None
        self._share = 0.0
        self._lock = threading.Lock()
        self._over = threading.Event()
        self.memory_bytes = 0
        threading.Thread(target=self._keep_looking, daemon=True).start()

    @property
    def marks(self) -> dict[str, float]:
        """How far the build was -> seconds since its begin."""
        return self._pace.marks

    def line(self, text: str) -> None:
        """One line of output."""
        step = self._tracker.feed(text)
        if step is None:
            return
        with self._lock:
            self._step = step
            mark = mark_of(step, packages=self._tracker.packages, inner=self._tracker.inner)
            self._pace.reach(mark, time.monotonic() - self._began)
            if time.monotonic() - self._looked > _LOOK_EVERY_S:
                self._look()
            self._show(step)

    def finish(self) -> None:
        """Look a last time; what is looked at alone is not shown any more."""
        with self._lock:
            self._over.set()
            self._look()

    def _keep_looking(self) -> None:
        while not self._over.wait(_LOOK_ALONE_S) and self._scratch.is_dir():
            with self._lock:
                if self._over.is_set():
                    return
                self._look()
                if self._step is not None:
                    self._show(self._step)

    def _show(self, step: Step) -> None:
        """The share is one of time when another build tells how long this one takes, else CMake's share of its targets.

        CMake's own stands still for minutes while a build inside goes on, and knows nothing of Go.
        """
        elapsed = time.monotonic() - self._began
        known = self._pace.left(elapsed)
        if known is None:
            self._update(step, "", done=step.done or None, total=step.total or None)
            return
        past, left = known
        if past is not self._past:
            self._past, self._share = past, 0.0
        about = "perhaps" if past.outcome == TYPICAL else "about"
        self._share = max(self._share, min(elapsed / max(elapsed + left, 1.0), _ALMOST))
        self._update(step, f"{about} {minutes(left)} left", done=self._share, total=1.0)

    def _update(self, step: Step, ahead: str, *, done: float | None, total: float | None) -> None:
        # The time first: a narrow terminal cuts the end off.
        self._progress.update("  ".join(filter(None, [ahead, step.text, self._aside])), done=done, total=total)

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


def minutes(seconds: float) -> str:
    """75.2 -> '1:15'."""
    whole, rest = divmod(round(seconds), 60)
    return f"{whole}:{rest:02}"
