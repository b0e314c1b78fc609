"""Stops a server gently, waits until it has really let go of its stores, and kills it only with consent."""

from __future__ import annotations

import contextlib
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kwdb_build import command
from kwdb_build.errors import NotStoppedError
from kwdb_build.server import capture, locks, logs, proc
from kwdb_build.server.drain import Drain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kwdb_build.console import Progress
    from kwdb_build.model import Deployment
    from kwdb_build.server.start import Started

_TICK_S = 0.25
_AFTER_KILL_S = 30.0
_LOCK_GRACE_S = 30.0
"""After its process is gone a lock is free at once; a store that stays taken is somebody else's."""


@dataclass(frozen=True, kw_only=True)
class StopResult:
    """How a stop went. drained: the server itself logged that its drain and shutdown were complete."""

    seconds: float
    forced: bool
    drained: bool


def stop(
    deployment: Deployment,
    *,
    timeout_s: float,
    force_after_s: float = 0,
    progress: Progress,
    ask: Callable[[], bool] | None = None,
    told_already: bool = False,
    tell: Callable[[proc.Watch], None] | None = None,
    nudge: Callable[[proc.Watch], None] | None = None,
) -> StopResult:
    """SIGTERM, then wait for the end of the process and for the lock of every store.

    A drain may take without end, so the wait is bounded: after force_after_s (when > 0) the server is killed, as was
    agreed; else after timeout_s `ask` decides, and without one it is left alone. A server that has ended already is
    no error. told_already: SIGTERM was sent by an earlier call; kwbase takes a second one as an order to stop hard,
    which can lose acknowledged rows, so only the waiting is done. tell: how the process is asked to stop, by a signal
    of ours when not given; nudge: called over and over while it is waited for. Errors: NotStoppedError, AccessError.
    """
    began = time.monotonic()
    stores = tuple(store.path for store in deployment.stores)
    moment = logs.mark(capture.log_directory(deployment), _output_files(deployment))
    forced = False
    with proc.Watch(deployment.pid) as watch:
        # The watch is pinned to the process of this moment: only then is it certain that it is the captured one.
        if proc.is_alive(deployment.pid, deployment.started_at):
            if not told_already:
                (tell or _terminate)(watch)
            progress.update("asked the server to drain and stop")
            forced = _await_end(watch, began, timeout_s=timeout_s, force_after_s=force_after_s,
                                progress=progress, ask=ask, nudge=nudge, drain=Drain(deployment, moment))
            _collect(deployment.pid)
    locks.wait_free(stores, _LOCK_GRACE_S, progress)
    drained = logs.DRAINED in logs.since(moment)
    return StopResult(seconds=time.monotonic() - began, forced=forced, drained=drained and not forced)


def _terminate(watch: proc.Watch) -> None:
    watch.send(signal.SIGTERM)


def _await_end(watch: proc.Watch, began: float, *, timeout_s: float, force_after_s: float, progress: Progress,
               ask: Callable[[], bool] | None, nudge: Callable[[proc.Watch], None] | None, drain: Drain) -> bool:
    """Wait within the agreed bounds; True when it had to be killed."""
    limit = force_after_s if force_after_s > 0 else timeout_s
    while True:
        elapsed = time.monotonic() - began
        if watch.wait(max(0.0, min(_TICK_S, limit - elapsed))):
            return False
        if elapsed >= limit:
            break
        if nudge is not None:
            nudge(watch)
        progress.update("; ".join(filter(None, [f"draining (at most {limit:.0f} s)", drain.words()])))
    if force_after_s <= 0 and (ask is None or not ask()):
        raise _not_stopped(watch.pid, limit)
    if watch.wait(0):
        return False
    progress.note(f"the server (pid {watch.pid}) did not stop within {limit:g} s: killing it, as agreed")
    watch.send(signal.SIGKILL)
    if not watch.wait(_AFTER_KILL_S):
        raise NotStoppedError(
            f"process {watch.pid} did not end even when killed", context="it hangs in the kernel (a disk, NFS?)",
            hint="look at its state with `ps` and at the kernel's log",
        )
    return True


def _not_stopped(pid: int, limit: float) -> NotStoppedError:
    return NotStoppedError(
        f"the server (pid {pid}) did not stop within {limit:g} s", context="it was asked to stop and was not killed",
        hint="it may still drain and end by itself, and refuses clients meanwhile; only a restart undoes a drain. "
        "To allow killing: --force-stop-after",
    )


def _output_files(deployment: Deployment) -> Iterable[Path]:
    return [Path(name) for name in {deployment.start.stdout, deployment.start.stderr} if name.startswith("/")]


def _collect(pid: int) -> None:
    """Take the exit code of a server that this very process started, so that it does not stay as a zombie."""
    with contextlib.suppress(ChildProcessError):
        command.reap(pid, _TICK_S)


def abandon(started: Started, stores: Iterable[Path], *, grace_s: float = 10.0, progress: Progress) -> None:
    """End all that a failed start of ours left behind: SIGTERM, after grace_s SIGKILL, then wait for the locks.

    Only processes of the session that this start opened are touched. Meant for a server that never became ready or
    failed its checks, before its data are put back. Errors: NotStoppedError.
    """
    for signum, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, _AFTER_KILL_S)):
        deadline = time.monotonic() + wait_s
        watches = [proc.Watch(pid) for pid in started.processes()]
        with contextlib.ExitStack() as stack:
            for watch in watches:
                stack.enter_context(watch)
                watch.send(signum)
            for watch in watches:
                progress.update(f"ending the server that was started (pid {watch.pid})")
                watch.wait(deadline - time.monotonic())
    _collect(started.launched)
    if left := started.processes():
        raise NotStoppedError(f"processes {', '.join(map(str, left))} of the failed start could not be ended")
    locks.wait_free(tuple(stores), _LOCK_GRACE_S, progress)
