"""The journal of a run: append-only JSON lines, each on disk before the world changes.

One `intent` before and one `done` after every apply and undo. A line that a crash (or a full disk) left half written is
cut off: the intent before it still tells what may have happened, and the step's probe tells what did.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from kwdb_build.files import fsync_directory
from kwdb_build.upgrade import room

if TYPE_CHECKING:
    from pathlib import Path


class Phase(StrEnum):
    """Which way a step goes."""

    APPLY = "apply"
    UNDO = "undo"


class Event(StrEnum):
    """What a record says of it."""

    INTENT = "intent"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Record:
    """One line. time is unix seconds; detail holds numbers and words for people, never secrets."""

    number: int
    time: float
    step: str
    phase: Phase
    event: Event
    detail: dict[str, Any] = field(default_factory=dict)


class Journal:
    """Reads what there is, and appends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._records: list[Record] = []
        self._unwritten = b""
        self._cut_at: int | None = None
        if path.exists():
            self._read()
        else:
            path.touch(mode=0o600)
            fsync_directory(path.parent)

    @property
    def records(self) -> tuple[Record, ...]:
        """All lines, oldest first."""
        return tuple(self._records)

    def append(self, step: str, phase: Phase, event: Event, **detail: Any) -> Record:
        """Write one line and wait until it is on disk; OSError when that cannot be done (nothing is recorded then)."""
        record = self._record(step, phase, event, detail)
        self._write(self._unwritten + _line(record))
        self._unwritten = b""
        self._records.append(record)
        return record

    def remember(self, step: str, phase: Phase, event: Event, **detail: Any) -> Record:
        """Like append, but never fails: a line that cannot be written now is kept for the next one that can.

        For the way back: a database must not stay down because its journal's disk is full or gone.
        """
        record = self._record(step, phase, event, detail)
        self._records.append(record)
        self._unwritten += _line(record)
        with contextlib.suppress(OSError):
            self._write(self._unwritten)
            self._unwritten = b""
        return record

    @property
    def whole(self) -> bool:
        """Whether everything is on disk."""
        return not self._unwritten

    def _record(self, step: str, phase: Phase, event: Event, detail: dict[str, Any]) -> Record:
        return Record(
            number=len(self._records) + 1, time=time.time(), step=step, phase=phase, event=event, detail=detail
        )

    def _write(self, data: bytes) -> None:
        room.spending(self._path.parent, lambda: self._write_once(data))

    def _write_once(self, data: bytes) -> None:
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            if self._cut_at is not None:  # by who writes only: a mere reader may look while a line is being written
                os.ftruncate(fd, self._cut_at)
                self._cut_at = None
            size = os.fstat(fd).st_size
            # One write: a crash leaves a whole line or a cut one, which the next reader removes.
            if os.write(fd, data) < len(data):
                # A later line after half of this one would be cut off with it.
                os.ftruncate(fd, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
            os.fsync(fd)
        finally:
            os.close(fd)

    def last(self, step: str, phase: Phase) -> Record | None:
        """Newest record of a step in one direction."""
        return next((r for r in reversed(self._records) if r.step == step and r.phase == phase), None)

    def was(self, step: str, phase: Phase, event: Event) -> bool:
        """Whether such a record was ever written."""
        return any(r.step == step and r.phase == phase and r.event == event for r in self._records)

    def done(self, step: str) -> bool:
        """Whether the step is applied, as far as the journal knows."""
        last = self.last(step, Phase.APPLY)
        return last is not None and last.event == Event.DONE

    def started(self, step: str) -> bool:
        """Whether the step may have changed something."""
        return self.was(step, Phase.APPLY, Event.INTENT)

    def undone(self, step: str) -> bool:
        """Whether the step was taken back completely."""
        last = self.last(step, Phase.UNDO)
        return last is not None and last.event == Event.DONE

    @property
    def rolling_back(self) -> bool:
        """Whether a way back was begun."""
        return any(r.phase == Phase.UNDO for r in self._records)

    def _read(self) -> None:
        raw = self._path.read_bytes()
        whole = 0
        for line in raw.splitlines(keepends=True):
            try:
                values = json.loads(line)
                record = Record(**values | {"phase": Phase(values["phase"]), "event": Event(values["event"])})
            except (ValueError, TypeError, KeyError):
                break
            if not line.endswith(b"\n"):
                break
            self._records.append(record)
            whole += len(line)
        if whole < len(raw):
            self._cut_at = whole


def _line(record: Record) -> bytes:
    return (json.dumps(record.__dict__, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
