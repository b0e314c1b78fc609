"""A progress display that only remembers what a person was told."""

from __future__ import annotations

from kwdb_build.console import Progress


class Notes(Progress):
    """Its notes, in order."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Remember it."""
        self.notes.append(text)
