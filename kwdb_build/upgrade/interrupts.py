"""Ctrl-C, SIGTERM and a closed terminal: never in the middle of something that cannot be left in the middle."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Self

from kwdb_build.errors import InterruptedByUserError

if TYPE_CHECKING:
    from types import FrameType

    from kwdb_build.console import Console

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_BACK = (
    "finishing this step, then going back to the old version "
    "(once more: stop now and leave the rest to `kwdb-build resume` or `kwdb-build rollback`)"
)


class SecondInterruptError(BaseException):
    """The person asked twice: stop now, the journal knows the rest. No step may catch it."""


class Interrupts:
    """Signal handlers for the length of a run. meanwhile: what is said to the first signal that is only noted.

    While `immediate` is true (nothing has changed yet) the first signal ends the step at once. Later the first one is
    only noted, so that the runner goes to a safe point; the second one ends the tool, and the journal tells the rest.
    """

    def __init__(self, console: Console, *, meanwhile: str = _BACK) -> None:
        self._console = console
        self._meanwhile = meanwhile
        self._previous: dict[signal.Signals, object] = {}
        self.immediate = True
        self.asked = False
        self._ended = False

    def __enter__(self) -> Self:
        for signum in _SIGNALS:
            if signum == signal.SIGHUP and signal.getsignal(signum) == signal.SIG_IGN:
                continue  # started by nohup: a closed terminal is no reason to go back
            self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]
        if isinstance(error, SecondInterruptError):  # while the first one was cleaned up after
            raise InterruptedByUserError(
                f"stopped at once by a second {error}",
                hint="`kwdb-build status` and `kwdb-build doctor` tell whether something was left, such as a held unit",
            ) from error

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        name = signal.Signals(signum).name
        if self._ended or (self.asked and signum == signal.SIGHUP):
            return
        if self.asked:
            self._ended = True  # what is left is only to write down how it stands
            raise SecondInterruptError(name)
        self.asked = True
        if self.immediate:
            raise InterruptedByUserError(
                f"stopped by {name}: nothing was changed, the server was not touched",
                hint="run the same command again; what an upgrade has fetched and built is kept",
            )
        self._console.note(f"{name} received: {self._meanwhile}", style="yellow")
