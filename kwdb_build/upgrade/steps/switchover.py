"""From the copy of the data to the verdict: what restarts the server, and its way back.

The point of no return for the data is the first start of the new binary: from then on the way back restores the data
as well, since an old binary opens newer data without a word.
"""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING, Any

from kwdb_build.errors import BackupError, NotStoppedError, StartError, VerifyError
from kwdb_build.files import human_bytes, read_json
from kwdb_build.server.supervisor import give_back
from kwdb_build.upgrade import room, service
from kwdb_build.upgrade.steps.base import Step

_FIRST_ANSWER_S = 5.0

if TYPE_CHECKING:
    from collections.abc import Callable

    from kwdb_build.server.stop import StopResult
    from kwdb_build.upgrade.context import Context


class Stage(Step):
    """Do all of the switch that can be done while the old server runs on."""

    name = "stage"
    title = "put the new files beside the old ones"

    def probe(self, context: Context) -> bool:
        """Whether they lie there, untouched."""
        from kwdb_build.data import replace

        record = service.switch_record(context)
        return record is not None and replace.staged(record)

    def apply(self, context: Context) -> dict[str, Any]:
        """Check the artifact against its manifest once more, keep the old files, write the new ones beside them."""
        from kwdb_build.build.inspection import attestation_of
        from kwdb_build.data import replace

        context.workshop.store.hold(context.artifact)
        attested = attestation_of(context.artifact)
        if not attested.provenance:
            context.console.note(f"  provenance of the build: {attested.in_words()}", style="yellow")
        plan = service.replacement_plan(context.deployment, context.artifact)
        record = replace.stage(replace.prepare(plan, keep=context.run.replaced))
        context.held["switch"] = record
        for note in record.notes:
            context.console.note(f"  {note}", style="yellow")
        context.console.update(f"{len(plan)} files")
        return {"files": [str(item.target) for item in record.files], "provenance": attested.in_words()}

    def discard(self, context: Context) -> None:
        """Remove what was staged and is not used."""
        service.discard_staged(context.run)


class Precopy(Step):
    """Copy the data once while the server still runs, so that little is left for the downtime."""

    name = "precopy"
    title = "first copy of the data (server runs on)"

    def probe(self, context: Context) -> bool:
        """Copied again after a cut: cheap, and the content is compared anyway."""
        del context
        return False

    def apply(self, context: Context) -> dict[str, Any]:
        """Hot copy; not trusted before it was compared with the stopped store."""
        from kwdb_build.data.backup import precopy

        if context.request.no_backup:
            words = "skipped: --no-backup"
            done: dict[str, Any] = {"skipped": "--no-backup"}
        else:
            result = precopy(context.deployment.stores, context.backup_dir, progress=context.console)
            done = {"files": result.files, "bytes": result.size_bytes}
            words = f"{result.files} files, {human_bytes(result.size_bytes)}"
        service.watcher(context)  # from here on somebody asks all the time
        changing = _last_look(context)
        room.reserve(context.run.path)
        context.console.update(f"{words}; clients write to {changing} tables" if changing else words)
        return done | {"changing": changing}


def _last_look(context: Context) -> int:
    """Bring the baseline up to this moment; the number of tables that clients were seen to write to."""
    from kwdb_build.verify.baseline import look_again, save

    looked = look_again(
        context.baseline, context.login, progress=context.console,
        statement_timeout_s=context.settings.statement_timeout_s,
    )
    save(looked, context.run.baseline)
    context.__dict__["baseline"] = looked  # read no more: the way back must know the node also without the home
    return sum(table.changing for table in looked.tables)


class Stop(Step):
    """Stop the old server, or start it again."""

    name = "stop"
    title = "stop the old server (downtime begins)"
    way_back = "start the old version again"
    safe = False

    def probe(self, context: Context) -> bool:
        """Whether the captured process is gone (who else may hold the stores is asked before a resume)."""
        return not service.old_server_runs(context)

    def apply(self, context: Context) -> dict[str, Any]:
        """Drain, end, free stores; nobody is killed without consent."""
        supervisor = context.supervisor
        supervisor.prepare()
        draining = service.draining(context)
        if not draining and (watcher := service.watcher(context)) is not None:
            watcher.answered_after(0.0, wait_s=_FIRST_ANSWER_S)
        began = read_json(context.run.stopped)["began"] if draining else time.time()
        context.run.save(context.run.stopped, {"began": began})
        result = _stop_old(context, told_already=draining)
        context.run.save(context.run.stopped, {"began": began, "ended": time.time(), "forced": result.forced})
        words = "killed (as agreed)" if result.forced else "drained" if result.drained else "ended"
        context.console.update(f"{words} in {result.seconds:.1f} s")
        return {"seconds": result.seconds, "forced": result.forced, "drained": result.drained}

    def undo(self, context: Context) -> dict[str, Any]:
        """Start the old server again and wait until it answers, unless it never stopped."""
        if service.old_server_runs(context):
            draining = service.draining(context)
            if not draining:
                with contextlib.suppress(NotStoppedError):  # systemd has begun to stop it, and will not be called back
                    context.supervisor.release()
                    return {"still_running": context.deployment.pid}
            _stop_old(context, told_already=draining)  # only its end and a start undo a drain
        running = service.running_pid(context)
        if running is None:
            ready = service.start_server(context, label="old")
            context.console.update(f"pid {ready.pid} answers again")
            running = ready.pid
        give_back(context.supervisor, context.console)
        return {"pid": running}


def _stop_old(context: Context, *, told_already: bool) -> StopResult:
    settings = context.settings
    return context.supervisor.stop(
        context.deployment, timeout_s=settings.stop_timeout_s, force_after_s=settings.force_stop_after_s,
        progress=context.console, told_already=told_already, ask=_ask_to_kill(context),
    )


def _ask_to_kill(context: Context) -> Callable[[], bool] | None:
    """The question to a person who watches, None when nobody can answer. -y never means this."""
    if not sys.stdin.isatty():
        return None
    return lambda: context.console.confirm(
        "The server still drains. Kill it? KWDB (seen: V3.1.0) can lose acknowledged rows; "
        "No leaves it alone and ends this run, to be resumed later."
    )


class Backup(Step):
    """The verified copy of the stopped stores."""

    name = "backup"
    title = "back up the stopped store and verify the copy"
    way_back = "keep the backup"
    safe = False

    def probe(self, context: Context) -> bool:
        """Whether the new version was begun to be started: from then on the backup must not be written any more."""
        return context.journal.started("start")

    def apply(self, context: Context) -> dict[str, Any]:
        """Copy what changed since the first copy, hash all of it, re-read the copy."""
        from kwdb_build.data.backup import backup, check

        service.require_free_stores(context)
        if context.request.no_backup:
            context.console.update("skipped: --no-backup")
            return {"skipped": "--no-backup"}
        service.drop_stale_backup(context)
        manifest = backup(context.deployment.stores, context.backup_dir, progress=context.console)
        # Files of the first copy were read back then and compared by content now: only new ones are read again.
        check(manifest, progress=context.console, everything=False)
        context.console.update(f"{manifest.files} files, {human_bytes(manifest.size_bytes)}, verified")
        return {"files": manifest.files, "bytes": manifest.size_bytes}


class Switch(Step):
    """Put the new binary and libraries in the place of the old ones, as one unit."""

    name = "switch"
    title = "switch binary and libraries"
    way_back = "put the old binary and libraries back"
    safe = False

    def probe(self, context: Context) -> bool:
        """Whether all new files are in place."""
        from kwdb_build.data import replace

        record = service.switch_record(context)
        return record is not None and replace.state(record) == "new"

    def apply(self, context: Context) -> dict[str, Any]:
        """Rename the staged files over the old ones; what is not as it was staged is written anew."""
        from kwdb_build.data import replace

        plan = service.replacement_plan(context.deployment, context.artifact)
        prepared = replace.prepare(plan, keep=context.run.replaced)
        if not replace.staged(prepared):
            context.workshop.store.hold(context.artifact)
        record = replace.apply(prepared)
        for note in record.notes:
            context.console.note(f"  {note}", style="yellow")
        context.console.update(f"{len(plan)} files")
        return {"files": [str(item.target) for item in record.files]}

    def undo(self, context: Context) -> dict[str, Any]:
        """Put the old files back, from whatever was replaced so far."""
        from kwdb_build.data import replace

        record = service.switch_record(context) or context.held.get("switch")
        if record is None:
            # Never say "nothing to put back" here: the new binary would be started as if it were the old one.
            raise BackupError(
                f"the record of the switch is gone from {context.run.replaced}, and the old files with it",
                hint=f"install {context.deployment.version} again by hand and start it; nothing was started",
            )
        replace.undo(record)
        context.console.update(f"{len(record.files)} files")
        return {"files": len(record.files)}


class Start(Step):
    """First start of the new binary on the data: the point of no return."""

    name = "start"
    title = "start the new version with the same command"
    way_back = "end the new version, restore the data"
    safe = False

    def probe(self, context: Context) -> bool:
        """Whether a server runs on the stores with the new files loaded."""
        pid = service.running_pid(context)
        return pid is not None and context.run.started.exists() and service.wrong_libraries(context, pid) == ()

    def apply(self, context: Context) -> dict[str, Any]:
        """Start, wait until SQL answers, and make sure that it is the same node with the new libraries."""
        ready = service.start_server(context, label="new")
        if wrong := service.wrong_libraries(context, ready.pid):
            raise StartError(
                f"pid {ready.pid} did not load the new files", context="\n".join(wrong),
                hint="LD_LIBRARY_PATH or RUNPATH of the installation leads elsewhere; the old version is started again",
            )
        context.console.update(f"pid {ready.pid} answers SQL after {ready.sql_s:.1f} s")
        return {"pid": ready.pid, "ready_s": ready.ready_s, "sql_s": ready.sql_s}

    def undo(self, context: Context) -> dict[str, Any]:
        """End the new server and bring the data back to what the old one left."""
        from kwdb_build.data.restore import restore

        service.hold_again(context)
        pid = service.running_pid(context)
        if pid is not None:
            service.end_failed_server(context, pid, ask=_ask_to_kill(context))
        context.supervisor.keep_down()
        if context.request.no_backup:
            context.console.note(
                "  --no-backup: the data stays as the new version left it; an old binary may misread it", style="yellow"
            )
            return {"restored": False}
        result = restore(service.backup_manifest(context), set_aside=context.run.set_aside, progress=context.console)
        context.console.update(
            f"{result.files_restored} files restored, {result.files_set_aside} of the new version set aside"
        )
        for note in result.notes:
            context.console.note(f"  {note}", style="yellow")
        return {
            "restored": True, "files_restored": result.files_restored, "set_aside": str(context.run.set_aside),
            "not_set_aside": list(result.not_set_aside),
        }


class Verify(Step):
    """Find out whether everything is still there and works."""

    name = "verify"
    title = "verify the new version"
    way_back = "give the new version up"
    safe = False

    def probe(self, context: Context) -> bool:
        """Always asked again."""
        del context
        return False

    def apply(self, context: Context) -> dict[str, Any]:
        """Run the suite against the baseline; a failed check is a failed upgrade."""
        result = service.verify(context, mode="upgraded")
        if not result.ok:
            raise VerifyError(
                f"verification failed: {len(result.failures)} of {len(result.checks)} checks",
                context="\n".join(f"{check.name}: {check.found}" for check in result.failures[:10]), log=result.log,
            )
        for check in result.warnings:
            context.console.note(f"  look at: {check.name}: {check.found}", style="yellow")
        context.console.update(f"{result.passed} checks passed")
        return {"passed": result.passed, "checks": len(result.checks)}


class Keep(Step):
    """The new version has proved itself; the old one and the backup stay in the run's directory."""

    name = "keep"
    title = "keep the new version"
    safe = False

    def probe(self, context: Context) -> bool:
        """Nothing to see in the world."""
        del context
        return False

    def apply(self, context: Context) -> dict[str, Any]:
        """Look once more that the verified process lives."""
        pid = service.running_pid(context)
        if pid is None:
            raise StartError("the new server ended after its verification", log=service.server_log(context))
        give_back(context.supervisor, context.console)
        context.console.update(f"backup and old files: {context.run.path}")
        return {"pid": pid}
