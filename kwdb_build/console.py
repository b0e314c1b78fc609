"""The only room that prints.

People's text goes to stderr, data (--json, tables asked for) to stdout. On a terminal a live line shows what goes on;
off a terminal there are plain lines, and one every 30 s while a step is busy, so that a log shows life.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, NoReturn

from kwdb_build.errors import KwdbBuildError
from kwdb_build.model import to_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HEARTBEAT_S = 30.0
_FILE_WIDTH = 200
_SHORT = 20
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
SCHEMA_VERSION = 1


class Progress:
    """What a busy room reports: a word on what goes on, and how much of it is done when that is known.

    This base swallows everything: for tests and for calls without a person.
    """

    def update(self, text: str, *, done: float | None = None, total: float | None = None) -> None:
        """Say what goes on now."""

    def note(self, text: str) -> None:
        """Say something that stays on the screen."""

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the screen to somebody else for a while."""
        yield


class Console(Progress):
    """The person's terminal (or a log file that stands for it)."""

    def __init__(self, *, as_json: bool = False, verbose: bool = False) -> None:
        from rich.console import Console as RichConsole

        self.as_json = as_json
        self.verbose = verbose
        self._err = RichConsole(stderr=True, highlight=False, soft_wrap=True)
        self._out = RichConsole(highlight=False, soft_wrap=True)
        for console in (self._err, self._out):
            # Rich would end the whole program, with SystemExit, when a pager or a `tee` has gone: not in an upgrade.
            console.on_broken_pipe = _tell_broken_pipe  # type: ignore[method-assign]
            if not console.is_terminal:
                console.width = _FILE_WIDTH  # a path folded in a log file cannot be copied from it
        self._ascii = (getattr(sys.stderr, "encoding", "") or "").lower().replace("-", "") != "utf8"
        self._status: Any = None
        self._text = ""
        self._share = ""
        self._step = ""
        self._began = time.monotonic()
        self._lock = threading.Lock()

    @property
    def live(self) -> bool:
        """Whether a person watches a terminal that a line can be drawn anew on."""
        return self._err.is_terminal and not self._err.is_dumb_terminal

    def note(self, text: str, *, style: str = "") -> None:
        """One line for people."""
        with _unheard():
            # Prose is folded between words; what holds a path or a command is left to the terminal, to be copied whole.
            whole = "/" in text or "`" in text
            self._err.print(self._plain(text), style=style, markup=False, soft_wrap=whole)

    def update(self, text: str, *, done: float | None = None, total: float | None = None) -> None:
        """Change the live line; off a terminal the heartbeat prints it."""
        share = f"{100 * min(done / total, 1.0):.0f} %" if done is not None and total else ""
        with self._lock:
            self._text, self._share = text, share
            if self._status is not None:
                with _unheard():
                    self._status.update(self._label())

    def _label(self) -> Any:
        from rich.text import Text

        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        parts = [f"{minutes}:{seconds:02}", *filter(None, [f"{self._share:>5}" if self._share else "", self._text])]
        words = Text.assemble((self._plain(self._step), "bold"), "  ", self._plain("  ".join(parts)))
        words.truncate(max(20, self._err.width - 3))
        return words

    @contextlib.contextmanager
    def step(self, number: int, total: int, title: str) -> Iterator[None]:
        """Frame one phase: announce it, show life while it runs, and say how long it took."""
        began = self._began = time.monotonic()
        self._step, self._text, self._share = f"[{number}/{total}] {title}", "", ""
        stop = threading.Event()
        beat = threading.Thread(target=self._beat, args=(stop, began), daemon=True)
        if self.live:
            self._status = self._err.status(self._label(), spinner="line" if self._ascii else "dots")
            with _unheard():
                self._status.start()
        else:
            self.note(f"{self._step} ...")
        beat.start()
        done = False
        try:
            yield
            done = True
        finally:
            stop.set()
            beat.join()
            if self._status is not None:
                with _unheard():
                    self._status.stop()
                self._status = None
            self._close_step(f"[{number}/{total}]", title, time.monotonic() - began, done=done)

    def _close_step(self, number: str, title: str, seconds: float, *, done: bool) -> None:
        """The line that stays: outcome, title, time, and what came out of it, below when it is too long."""
        from rich.text import Text

        marks = ("ok", "x") if self._ascii else ("✓", "✗")
        style = "green" if done else "bold red"
        line = Text.assemble(f"{number} ", (f"{marks[0] if done else marks[1]} {self._plain(title)}", style))
        line.append(f"  ({seconds:.1f} s)", "dim")
        if self._text and done:
            fits = line.cell_len + len(self._text) + 2 <= self._err.width
            line.append("  " if fits else "\n" + " " * (len(number) + 3))
            line.append(self._plain(self._text))
        with _unheard():
            self._err.print(line)

    def _beat(self, stop: threading.Event, began: float) -> None:
        while not stop.wait(1.0 if self.live else HEARTBEAT_S):
            elapsed = time.monotonic() - began
            if self._status is not None:
                with self._lock, _unheard():
                    self._status.update(self._label())
            elif not self.live:
                words = "  ".join(filter(None, [self._text or "working", self._share]))
                self.note(f"{self._step}: {words} ({elapsed:.0f} s)")

    def facts(self, title: str, rows: Sequence[tuple[str, str]], *, style: str = "") -> None:
        """Names and values, one a line and never folded by us: paths and commands can be copied whole.

        A value of several lines goes on below its first one.
        """
        from rich.text import Text

        width = max((len(name) for name, _ in rows), default=0)
        with _unheard():
            self._err.print()
            self._err.print(Text(self._plain(title), style=f"bold {style}".strip()))
            for name, value in rows:
                shown = self._plain(value).replace("\n", "\n" + " " * (width + 4))
                self._err.print(Text.assemble((f"  {self._plain(name):<{width}}  ", "dim"), shown))

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, data: bool = False) -> None:
        """A table for people on stderr; with data=True it is the answer itself and goes to stdout.

        On a terminal that is too narrow for it, a table that holds paths becomes one block a row: a path that is
        folded in a cell cannot be copied.
        """
        from rich import box
        from rich.table import Table
        from rich.text import Text

        console = self._out if data else self._err
        cells = [[self._plain(cell) for cell in row] for row in rows]
        needed = sum(max(map(len, column)) + 3 for column in zip(columns, *cells, strict=True)) + 1
        if needed > console.width and any("/" in cell and len(cell) > _SHORT for row in cells for cell in row):
            self._blocks(title, columns, cells, data=data)
            return
        headed = any(columns)
        table = Table(
            title=title or None, box=box.ASCII if self._ascii else box.ROUNDED, title_justify="left",
            show_header=headed,
        )
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in cells:
            table.add_row(*(Text(cell) for cell in row))
        self._print(table, data=data)

    def _blocks(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, data: bool) -> None:
        width = max(len(column) for column in columns) if any(columns) else max(len(row[0]) for row in rows)
        lines = [title] if title else []
        for row in rows:
            if any(columns):
                lines += [f"{column:<{width}}  {cell}" for column, cell in zip(columns, row, strict=True) if cell]
                lines.append("")
            else:
                lines.append(f"{row[0]:<{width}}  " + "  ".join(row[1:]))
        from rich.text import Text

        self._print(Text("\n".join(lines).rstrip("\n")), data=data)

    def _print(self, what: Any, *, data: bool) -> None:
        if data:
            with _answering():
                self._out.print(what)
                self._out.file.flush()
        else:
            with _unheard():
                self._err.print(what)

    def data(self, value: Any) -> None:
        """The machine's answer: one JSON document on stdout."""
        document = {"schema": SCHEMA_VERSION, **to_json(value)}
        utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        self.text(json.dumps(document, indent=2, ensure_ascii=not utf8))

    def text(self, value: str) -> None:
        """Plain data for stdout."""
        encoding = sys.stdout.encoding or "ascii"
        shown = value.encode(encoding, "backslashreplace").decode(encoding)
        with _answering():
            sys.stdout.write(shown if shown.endswith("\n") else shown + "\n")
            sys.stdout.flush()

    def error(self, error: KwdbBuildError) -> None:
        """What failed, what was seen, what to do, where the log is."""
        self.note(f"error: {error.message}", style="bold red")
        for line in error.context.splitlines():
            self.note(f"  | {line}")
        if error.hint:
            self.note(f"  what to do: {error.hint}")
        if error.log:
            self.note(f"  full log: {error.log}")
        self.note(f"  [{error.reference}, exit code {int(error.exit_code)}]", style="dim")

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the screen to somebody else for a while: the live line is not drawn meanwhile."""
        status, self._status = self._status, None
        if status is not None:
            with _unheard():
                status.stop()
        try:
            yield
        finally:
            self._status = status
            if status is not None:
                with _unheard():
                    status.start()

    def confirm(self, question: str) -> bool:
        """Ask; the default is No."""
        status = self._status
        if status is not None:
            with _unheard():
                status.stop()  # or its line is drawn over what is typed
        with _unheard():
            self._err.print(self._plain(f"{question} [y/N] "), markup=False, end="")
        try:
            return sys.stdin is not None and sys.stdin.readline().strip().lower() in {"y", "yes"}
        finally:
            if status is not None:
                with _unheard():
                    status.start()

    def _plain(self, text: str) -> str:
        # A name on a disk need not be valid text: what cannot be shown is shown as '?'. What would move the cursor or
        # change colours comes from there, too, or from an archive that somebody sent: it is shown, not obeyed.
        shown = _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
        return shown.encode("ascii" if self._ascii else "utf-8", "replace").decode()


def _tell_broken_pipe() -> NoReturn:
    raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Words for a person must never end a run: the terminal may be closed and the log's disk full by now."""
    with contextlib.suppress(OSError, ValueError):
        yield


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    """OutputError when the answer itself cannot be written; what is left in the stream is dropped."""
    try:
        yield
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError, ValueError):
            # The interpreter flushes once more at its end, and would complain again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OutputError(
            f"the answer could not be written to standard output: {error}",
            hint="what was done is done; `kwdb-build status --json` tells how the last run ended",
        ) from error


class OutputError(KwdbBuildError):
    """Standard output is closed, full, or its reader has gone."""

    reference = "output"
