"""What a person sees of transfers: bytes, speed and time left, of several at once in one line."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kwdb_build.console import Progress
from kwdb_build.files import human_bytes

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(kw_only=True)
class _State:
    """Where one transfer stands: what it does, how much of its objects came, bytes and bytes a second."""

    text: str = ""
    done: float = 0
    total: float = 0
    size_bytes: float = 0
    speed: float = 0
    since: float = field(default_factory=time.monotonic)

    def left_s(self, now: float) -> float | None:
        """Seconds that it takes yet, if it goes on as it did."""
        return (now - self.since) * (self.total - self.done) / self.done if self.done and self.total else None


class Board:
    """Puts several transfers, each in a thread of its own, into one line of progress."""

    def __init__(self, progress: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self._progress = progress
        self._clock = clock
        self._lock = threading.Lock()
        self._states: dict[str, _State] = {}

    def open(self, name: str) -> Channel:
        """A place to report one transfer; close it when it is over."""
        with self._lock:
            self._states[name] = _State(since=self._clock())
        return Channel(self, name)

    def close(self, name: str) -> None:
        """That transfer is over."""
        with self._lock:
            self._states.pop(name, None)

    def note(self, text: str) -> None:
        """Pass on a line that stays."""
        with self._lock:
            self._progress.note(text)

    def report(self, name: str, text: str, done: float, total: float, size_bytes: float, speed: float) -> None:
        """Take one transfer's state and show all of them."""
        with self._lock:
            state = self._states.setdefault(name, _State(since=self._clock()))
            if state.text != text or done < state.done:
                state.since = self._clock()
            state.text, state.done, state.total, state.size_bytes, state.speed = text, done, total, size_bytes, speed
            self._show()

    def _show(self) -> None:
        now = self._clock()
        shares = [state.done / state.total for state in self._states.values() if state.total]
        done, total = (sum(shares), len(self._states)) if shares else (None, None)
        if len(self._states) == 1:
            [(name, state)] = self._states.items()
            text = f"{name}: {state.text}" if name else state.text
        else:
            text = ", ".join(
                f"{name.rpartition('/')[2]} {100 * state.done / state.total:.0f} %" if state.total else name
                for name, state in self._states.items()
            )
        size = sum(state.size_bytes for state in self._states.values())
        speed = sum(state.speed for state in self._states.values() if state.done < state.total)
        left = [seconds for state in self._states.values() if (seconds := state.left_s(now)) is not None]
        # Figures first: a narrow terminal cuts the end of the line.
        words = [*figures(size, speed, max(left) if left and size else None), text]
        self._progress.update(", ".join(words), done=done, total=total)


def figures(size_bytes: float, speed: float, left_s: float | None) -> list[str]:
    """`26.0 MiB`, `5.2 MiB/s`, `12 s left`; what is not known is left out."""
    parts = [human_bytes(size_bytes)] if size_bytes else []
    parts += [f"{human_bytes(speed)}/s"] if speed else []
    parts += [f"{left_s:.0f} s left"] if left_s else []
    return parts


class Channel(Progress):
    """One transfer's way to the person."""

    def __init__(self, board: Board, name: str) -> None:
        self._board = board
        self._name = name
        self._first, self._of, self._arrived = 0.0, 0.0, 0.0

    def within(self, first: float, of: float, arrived_bytes: float) -> None:
        """What comes next is part of something larger: first of `of` objects and these bytes have come already."""
        self._first, self._of, self._arrived = first, of, arrived_bytes

    def update(self, text: str, *, done: float | None = None, total: float | None = None, size_bytes: float = 0,
               speed: float = 0) -> None:
        """Say what goes on now."""
        if self._of and text != "receiving objects":
            return  # counting and deltas of one part: the whole is what counts
        self._board.report(
            self._name, text, self._first + (done or 0), self._of or total or 0, self._arrived + size_bytes, speed
        )

    def note(self, text: str) -> None:
        """Say something that stays on the screen."""
        self._board.note(f"{self._name}: {text}" if self._name else text)

    def close(self) -> None:
        """It is over."""
        self._board.close(self._name)
