"""Pure readers of what an engine sends: raw output to lines, build events to progress and errors."""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Any

from kwdb_build.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

TAIL_LINES = 30
_STEP = re.compile(r"^Step \d+/\d+ : ")
_INTERMEDIATE = re.compile(r"^ ---> ([0-9a-f]{12,64})$")
_BREAK = re.compile(rb"\r\n|\n|\r")


class LineSplitter:
    """Bytes in any pieces -> text lines; a bare carriage return (progress bars) ends a line too."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[str]:
        """Lines that are complete now."""
        data = self._rest + chunk
        held = b""
        if data.endswith(b"\r"):  # may be the first half of \r\n
            data, held = data[:-1], b"\r"
        *lines, rest = _BREAK.split(data)
        self._rest = rest + held
        return [line.decode("utf-8", "replace") for line in lines]

    def flush(self) -> list[str]:
        """The last line when it had no line end."""
        rest, self._rest = self._rest, b""
        return [rest.removesuffix(b"\r").decode("utf-8", "replace")] if rest else []


class Sink:
    """Where lines of a run go; stdout and stderr are split apart so that neither cuts the other's lines."""

    def __init__(self, write: Callable[[str], Any], on_line: Callable[[str], None]) -> None:
        self._write = write
        self._on_line = on_line
        self._splitters = (LineSplitter(), LineSplitter())

    def feed(self, *chunks: bytes | None) -> None:
        """Take the next piece of (stdout, stderr)."""
        for splitter, chunk in zip(self._splitters, chunks, strict=True):
            self.emit(splitter.feed(chunk or b""))

    def flush(self) -> None:
        """Take the last lines, which had no line end."""
        for splitter in self._splitters:
            self.emit(splitter.flush())

    def emit(self, lines: Iterable[str]) -> None:
        """Whole lines, of whatever origin."""
        for line in lines:
            self._write(line + "\n")
            self._on_line(line)


class BuildEvents:
    """Reads the classic builder's events: lines for people, the image's identity, and the error inside HTTP 200."""

    def __init__(self) -> None:
        self.image_id = ""
        self.instruction = ""
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.error = ""
        self.intermediate: list[str] = []

    def feed(self, event: dict[str, Any]) -> list[str]:
        """Lines of one event."""
        if "error" in event or "errorDetail" in event:
            self.error = str((event.get("errorDetail") or {}).get("message") or event.get("error"))
            return []
        if isinstance(aux := event.get("aux"), dict) and "ID" in aux:
            self.image_id = str(aux["ID"])
        lines = [line for line in str(event.get("stream", "")).splitlines() if line.strip()]
        for line in lines:
            if match := _INTERMEDIATE.match(line):
                self.intermediate.append(match[1])
            if _STEP.match(line):
                self.instruction = line
                self.tail.clear()
            else:
                self.tail.append(line)
        return lines

    def finish(self, *, tag: str, log: Path) -> str:
        """Identity of the finished image; EngineError with the failed instruction and its last lines."""
        if self.error:
            seen = "\n".join([self.instruction, *self.tail, self.error]).strip()
            hint = "make room in the engine's storage" if "no space left" in self.error else "see the log"
            raise EngineError(f"building the image {tag} failed", context=seen, hint=hint, log=log)
        if not self.image_id:
            raise EngineError(
                f"the engine ended the build of {tag} without a result", context="\n".join(self.tail),
                hint="the engine may have been stopped; see its own log (journalctl -u docker), then run again",
                log=log,
            )
        return self.image_id
