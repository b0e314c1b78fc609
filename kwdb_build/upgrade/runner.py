"""Runs the steps in order, keeps the journal, and goes the way back when it must.

No step catches everything; this is the one place that does, so that whatever happens after `stop` ends in one of the
documented outcomes and never in silence.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from kwdb_build.errors import (
    InterruptedByUserError,
    KwdbBuildError,
    NeedsResumeError,
    NotStoppedError,
    RollbackFailedError,
    RolledBackError,
)
from kwdb_build.upgrade import failpoint, room, service
from kwdb_build.upgrade.interrupts import SecondInterruptError
from kwdb_build.upgrade.journal import Event, Journal, Phase
from kwdb_build.upgrade.result import RunResult, write_result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kwdb_build.upgrade.context import Context
    from kwdb_build.upgrade.steps.base import Step


class Outcome(StrEnum):
    """How a run ended. `open` means it was cut off or waits for a person."""

    UPGRADED = "upgraded"
    FAILED = "failed"
    ROLLED_BACK = "rolled-back"
    ROLLBACK_FAILED = "rollback-failed"
    OPEN = "open"


class Runner:
    """One run of the steps, forwards or back."""

    def __init__(self, steps: Sequence[Step], context: Context, journal: Journal) -> None:
        self._steps = tuple(steps)
        self._context = context
        self._journal = journal
        self._at = ""

    def run(self) -> RunResult:
        """Go forwards from where the journal stands; on failure after a change, go back.

        Errors: the step's own error while nothing has changed; RolledBackError, RollbackFailedError, NotStoppedError
        or NeedsResumeError afterwards. Each is written to the run's result before it is raised.
        """
        try:
            return self._forwards()
        except SecondInterruptError as error:
            raise self._cut_off(str(error)) from error

    def _forwards(self) -> RunResult:
        resuming = bool(self._journal.records)
        restarting = self._journal.started("stop")
        for number, step in enumerate(self._steps, 1):
            if self._journal.done(step.name) and ((step.safe and restarting) or step.probe(self._context)):
                continue
            self._context.interrupts.immediate = step.safe
            self._at = step.name
            try:
                self._raise_if_asked()
                self._apply(number, step, resuming=resuming)
            except NotStoppedError as error:
                raise self._finish_open(error, step) from error
            except Exception as error:
                self._journal.remember(step.name, Phase.APPLY, Event.FAILED, error=_words(error))
                self._log_failure(step, error)
                if step.safe or not self._journal.started("stop"):
                    raise self._finish_failed(error, step) from error
                raise self._back(reason=error, failed=step) from error
        return self._finish(Outcome.UPGRADED, None)

    def roll_back(self, *, reason: BaseException | None, failed: Step | None) -> KwdbBuildError:
        """Undo everything that was begun, newest first; return the error that tells how it ended.

        Idempotent: undone steps are skipped, each undo copes with an apply that was cut off anywhere.
        """
        try:
            return self._back(reason=reason, failed=failed)
        except SecondInterruptError as error:
            return self._cut_off(str(error))

    def _back(self, *, reason: BaseException | None, failed: Step | None) -> KwdbBuildError:
        context = self._context
        context.interrupts.immediate = False
        room.release(context.run.path)
        cause = _words(reason) if reason else "asked for"
        title = f"{failed.name} failed: {cause}" if failed else "going back as asked"
        context.console.note(f"{title}\nrolling back to {context.deployment.version} ...", style="bold yellow")
        begun = [step for step in self._steps if not step.safe and self._journal.started(step.name)]
        todo = [step for step in reversed(begun) if not self._journal.undone(step.name)]
        for number, step in enumerate(todo, 1):
            self._at = f"taking back {step.name}"
            try:
                self._undo(number, len(todo), step)
            except NotStoppedError as error:
                return self._finish_open(error, step)
            except Exception as error:  # noqa: BLE001  (a defect here must still end in words that help)
                self._journal.remember(step.name, Phase.UNDO, Event.FAILED, error=_words(error))
                self._log_failure(step, error)
                return self._finish_rollback_failed(error, step, cause)
        return self._verify_old(cause, reason)

    def _verify_old(self, cause: str, reason: BaseException | None) -> KwdbBuildError:
        self._at = "verifying the old version"
        try:
            result = service.verify(self._context, mode="rolled-back")
        except Exception as error:  # noqa: BLE001  (as above)
            return self._finish_rollback_failed(error, None, cause)
        if not result.ok:
            failed = "\n".join(f"{check.name}: {check.found}" for check in result.failures[:10])
            found = KwdbBuildError("the old version runs but its verification failed", context=failed, log=result.log)
            return self._finish_rollback_failed(found, None, cause)
        version = self._context.deployment.version
        data = "with its data restored" if self._data_restored() else "on its untouched data"
        error_out = RolledBackError(
            f"not upgraded: rolled back to {version}, which runs again {data} ({result.passed} checks passed)",
            context="\n".join([f"cause: {cause}{_context_of(reason)}", *self._left_behind()]),
            hint="mend the cause and upgrade again", log=getattr(reason, "log", None) or self._context.run.logs,
        )
        self._finish(Outcome.ROLLED_BACK, error_out)
        return error_out

    def _left_behind(self) -> list[str]:
        """What became of what the new version wrote: clients may have reached it."""
        if not self._data_restored():
            return []
        context = self._context
        record = self._journal.last("start", Phase.UNDO)
        lost = list(record.detail.get("not_set_aside", ())) if record else []
        said = []
        if any(path.is_file() for path in context.run.set_aside.rglob("*")):
            said.append(
                "any rows that clients gave to the new version are no longer served: its files are kept in "
                f"{context.run.set_aside}"
            )
        if lost:
            said.append(f"{len(lost)} files of the new version could not be kept: {', '.join(lost[:5])}")
        if not self._journal.whole:
            said.append(f"the journal in {context.run.path} could not be written to the end")
        return said

    def _data_restored(self) -> bool:
        record = self._journal.last("start", Phase.UNDO)
        return bool(record and record.detail.get("restored"))

    def _apply(self, number: int, step: Step, *, resuming: bool) -> None:
        context = self._context
        with context.console.step(number, len(self._steps), step.title):
            self._journal.append(step.name, Phase.APPLY, Event.INTENT)
            failpoint.reach(step.name, "before")
            began = time.monotonic()
            if resuming and step.probe(context):
                detail: dict[str, Any] = {"found": "already so"}
            else:
                detail = step.apply(context)
            failpoint.reach(step.name, "after")
            self._journal.append(
                step.name, Phase.APPLY, Event.DONE, elapsed_s=round(time.monotonic() - began, 3), **detail
            )

    def _undo(self, number: int, total: int, step: Step) -> None:
        with self._context.console.step(number, total, step.way_back or f"take back: {step.title}"):
            self._journal.remember(step.name, Phase.UNDO, Event.INTENT)
            failpoint.reach(f"undo-{step.name}", "before")
            began = time.monotonic()
            detail = step.undo(self._context)
            failpoint.reach(f"undo-{step.name}", "after")
            self._journal.remember(
                step.name, Phase.UNDO, Event.DONE, elapsed_s=round(time.monotonic() - began, 3), **detail
            )

    def _raise_if_asked(self) -> None:
        if self._context.interrupts.asked:
            raise InterruptedByUserError("stopped on request")

    def _log_failure(self, step: Step, error: BaseException) -> None:
        with contextlib.suppress(OSError), self._context.run.log(step.name).open("a", encoding="utf-8") as log:
            log.write("".join(traceback.format_exception(error)))

    def _cut_off(self, name: str) -> NeedsResumeError:
        error = NeedsResumeError(
            f"stopped at once by a second {name}, in the middle of {self._at}: the server may be down",
            hint=f"`kwdb-build resume {self._context.run.id}` goes on, `kwdb-build rollback {self._context.run.id}` "
            "goes back",
            log=self._context.run.path,
        )
        self._finish(Outcome.OPEN, error)
        return error

    def _finish_open(self, error: KwdbBuildError, step: Step) -> KwdbBuildError:
        self._journal.remember(step.name, Phase.APPLY, Event.FAILED, error=_words(error))
        error.hint = (
            f"{error.hint}; `kwdb-build resume {self._context.run.id}` goes on waiting, "
            f"`kwdb-build rollback {self._context.run.id}` starts the old version again once it has ended"
        )
        self._finish(Outcome.OPEN, error)
        return error

    def _finish_failed(self, error: Exception, step: Step) -> Exception:
        if isinstance(error, KwdbBuildError) and error.log is None and self._context.run.log(step.name).exists():
            error.log = self._context.run.log(step.name)
        self._finish(Outcome.FAILED, error)
        return error

    def _finish_rollback_failed(self, error: Exception, step: Step | None, cause: str) -> RollbackFailedError:
        where = f"taking back {step.name}" if step else "verifying the old version"
        context = self._context
        pid = self._old_pid() if step is None else None
        out = RollbackFailedError(
            f"the upgrade failed; {context.deployment.version} was started again and runs (pid {pid}), but its "
            f"verification did not pass: {_words(error)}" if pid is not None
            else f"the upgrade failed and so did the way back, while {where}: {_words(error)}",
            context=f"first cause: {cause}" + _context_of(error),
            hint=f"mend what is named above, then `kwdb-build rollback {context.run.id}` goes on from there; the old "
            f"files are in {context.run.replaced}, " + (
                "there is no backup (--no-backup): data that the old version cannot read needs the new one again, "
                f"which is in {context.artifact.path}" if context.request.no_backup
                else f"the data of before in {context.backup_dir}"
            ),
            log=context.run.logs,
        )
        self._finish(Outcome.ROLLBACK_FAILED, out)
        return out

    def _old_pid(self) -> int | None:
        with contextlib.suppress(KwdbBuildError, OSError):
            return service.running_pid(self._context)
        return None

    def _finish(self, outcome: Outcome, error: BaseException | None) -> RunResult:
        if outcome in {Outcome.FAILED, Outcome.ROLLED_BACK}:
            self._discard()
        return write_result(self._context, self._journal, outcome=str(outcome), error=error)


    def _discard(self) -> None:
        for step in self._steps:
            try:
                step.discard(self._context)
            except Exception as error:  # noqa: BLE001  (it must not hide how the run ended)
                self._context.console.note(f"  left behind: {_words(error)}", style="yellow")


def _words(error: BaseException | None) -> str:
    if error is None:
        return ""
    if isinstance(error, KwdbBuildError):
        return error.message
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _context_of(error: BaseException | None) -> str:
    context = getattr(error, "context", "")
    return f"\n{context}" if context else ""
