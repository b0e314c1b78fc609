"""Everything that is done while the old server runs on, untouched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kwdb_build.errors import AccessError, ArtifactError, RefusedError, SpaceError
from kwdb_build.files import free_bytes, human_bytes
from kwdb_build.model import Verdict
from kwdb_build.upgrade import gate, service
from kwdb_build.upgrade.context import commands_of, renewed
from kwdb_build.upgrade.lock import hold_stores
from kwdb_build.upgrade.steps.base import Step
from kwdb_build.upgrade.workshop import additions, fetched, require_missing_nothing, summary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kwdb_build.model import CheckResult, SourceTree
    from kwdb_build.upgrade.context import Context


_ROOM_TO_START_BYTES = 64 << 20


class Capture(Step):
    """Find the server and write down how it was started."""

    name = "capture"
    title = "find the server, capture its start command"

    def probe(self, context: Context) -> bool:
        """Whether a capture was written and its process still is the same."""
        return context.run.deployment.exists() and service.old_server_runs(context)

    def apply(self, context: Context) -> dict[str, Any]:
        """Choose, capture, refuse what cannot be restarted as it was."""
        from kwdb_build.server import capture, discover, saved

        request = context.request
        selector = discover.Selector(pid=request.pid, store=request.store, listen=request.listen)
        found = discover.choose(discover.find_servers(), selector)
        deployment = capture.capture(found.pid)
        commands = commands_of(context.settings, context.run.logs)
        gate.require_supported_deployment(deployment, commands)
        gate.require_own_command(renewed(deployment, request), deployment, commands)
        context.held["exit_stack"].enter_context(hold_stores(tuple(store.path for store in deployment.stores)))
        saved.save(deployment, context.run.deployment)
        context.__dict__.pop("deployment", None)
        for name, reason in deployment.start.dropped.items():
            context.console.note(f"  not replayed: {name} ({reason})")
        context.console.update(f"pid {deployment.pid}, {deployment.version}, store {deployment.stores[0].path}")
        return {"pid": deployment.pid, "version": str(deployment.version)}


class Fetch(Step):
    """Get exactly the commit that was asked for."""

    name = "fetch"
    title = "fetch the source"

    def probe(self, context: Context) -> bool:
        """Whether a tree was recorded and is still there."""
        return context.run.source.exists() and (context.tree.path / ".git").exists()

    def apply(self, context: Context) -> dict[str, Any]:
        """Fetch, with submodules at their pinned commits."""
        request = context.request
        tree = context.workshop.fetch(
            request.ref, url=request.url, redirects=request.redirects, choice=request.choice
        )
        context.run.save(context.run.source, tree)
        context.__dict__.pop("tree", None)
        context.console.update(fetched(tree))
        return {"commit": tree.commit, "version": str(tree.version)}


class Gate(Step):
    """Refuse what must not be done, ask for the rest."""

    name = "gate"
    title = "gate: versions, health, space"

    def probe(self, context: Context) -> bool:
        """Always looked at again: the world may have changed."""
        del context
        return False

    def apply(self, context: Context) -> dict[str, Any]:
        """Version rules, health of the server, access to its files, space for the backup; then the confirmation."""
        from kwdb_build.server.readiness import health

        deployment, tree = context.deployment, context.tree
        gate.require_supported_version(deployment.version, tree.version, allow_same=context.request.allow_same)
        gate.require_healthy(ask_server(context), command=deployment.start.command)
        if deployment.http is not None:
            gate.require_ready(health(deployment))
        _require_access(context)
        _require_room_to_start(context)
        if not context.request.no_backup:
            _require_backup_space(context)
        if not context.assume_yes and not context.console.confirm(_question(context)):
            raise RefusedError("not confirmed: nothing was changed", hint="answer y, or pass -y")
        context.console.update(f"{deployment.version} -> {tree.version}")
        return {"from": str(deployment.version), "to": str(tree.version)}


def ask_server(context: Context) -> gate.ServerFacts:
    """Ask the running server what the gate needs."""
    from kwdb_build.sql import Session
    from kwdb_build.verify import probe

    with Session(context.login) as session:
        unavailable, _ = probe.ranges(session)
        return gate.ServerFacts(
            nodes=len(probe.live_nodes(session)), unavailable_ranges=unavailable,
            unfinished_jobs=tuple(
                f"{job.id} {job.type}: {job.status}" for job in probe.jobs(session) if job.status not in probe.FINISHED
            ),
        )


def _require_access(context: Context) -> None:
    """AccessError when this user cannot replace the installed files (found out now, not after the stop)."""
    import os

    for target in context.deployment.replaceable.values():
        if not os.access(target.parent, os.W_OK | os.X_OK):
            raise AccessError(
                f"this user may not replace {target}", hint="run as the user that owns the installation, or as root"
            )
    for store in context.store_paths:
        if not os.access(store, os.R_OK | os.W_OK | os.X_OK):
            raise AccessError(f"this user may not read and restore the store {store}", hint="run as its owner, or root")


def _require_room_to_start(context: Context) -> None:
    """SpaceError when a store's file system is so full that no kwbase could start on it, not even the old one again.

    Seen on V3.1.0: a start on a full file system exits at once, and rows that were acknowledged before are lost.
    """
    for store in context.deployment.stores:
        for place in (store.path, *store.targets):
            if (free := free_bytes(place)) < _ROOM_TO_START_BYTES:
                raise SpaceError(
                    f"the file system of the store {place} is almost full: {human_bytes(free)} free, "
                    f"{human_bytes(_ROOM_TO_START_BYTES)} needed",
                    context="kwbase does not start on a full file system: once stopped, no version would come up",
                    hint="free space there first; the server was not touched",
                )


def _require_backup_space(context: Context) -> None:
    from kwdb_build.data.backup import require_space

    need = require_space(context.deployment.stores, context.backup_dir)
    if need.free_bytes < need.backup_bytes + need.set_aside_bytes:
        context.console.note(
            f"  the backup fits ({human_bytes(need.backup_bytes)}); after a rollback there may be no room to keep what "
            "the new version wrote as well", style="yellow",
        )


def _question(context: Context) -> str:
    deployment = context.deployment
    stores = ", ".join(str(store) for store in context.store_paths)
    backup = "no backup (as you asked)" if context.request.no_backup else f"a verified backup in {context.run.path}"
    return (
        f"Upgrade pid {deployment.pid} from {deployment.version} to {context.tree.version} "
        f"({_named(context.tree)})?\n  It keeps running while the new version is built, then it is restarted once; "
        f"clients at {deployment.sql} are cut off meanwhile.\n  store: {stores}\n  with {backup}"
    )


def _named(tree: SourceTree) -> str:
    return f"{tree.commit[:12]}{''.join(f' with {words}' for words in additions(tree))}"


class Check(Step):
    """Compare what the build image holds with what the tree asks for."""

    name = "check"
    title = "check the compilation dependencies"

    def probe(self, context: Context) -> bool:
        """Whether it was checked and passed."""
        return context.run.checks.exists() and context.run.artifact.exists()

    def apply(self, context: Context) -> dict[str, Any]:
        """Skip for a stored build; otherwise make the image and compare each row.

        What a restart of the server would stumble over is told in any case; it runs, so that stops nothing.
        """
        from kwdb_build.upgrade.examination import examine_server

        workshop, tree = context.workshop, context.tree
        _tell(context, examine_server(context.deployment))
        if workshop.look_up(tree) is not None:
            context.console.update("not needed: this build is already stored")
            context.run.save(context.run.checks, [])
            return {"skipped": "stored build"}
        rows = workshop.check(tree)
        context.run.save(context.run.checks, rows)
        require_missing_nothing(rows, workshop.log("check"))
        _tell(context, rows)
        context.console.update(summary(rows))
        return {"rows": len(rows), "verdicts": summary(rows)}


def _tell(context: Context, rows: Sequence[CheckResult]) -> None:
    for row in rows:
        if row.verdict in {Verdict.WARN, Verdict.UNKNOWN, Verdict.FAIL}:
            context.console.note(f"  {row.verdict}: {row.name}: {row.required} wanted, {row.found}", style="yellow")


class Build(Step):
    """Make (or look up) the artifact."""

    name = "build"
    title = "build"

    def probe(self, context: Context) -> bool:
        """Whether the recorded artifact is stored and whole."""
        if not context.run.artifact.exists():
            return False
        try:
            context.workshop.store.hold(context.artifact)
        except ArtifactError:
            return False
        return True

    def apply(self, context: Context) -> dict[str, Any]:
        """Look up by key, else build in the container; then prove that this host can run the result."""
        artifact = context.workshop.build(context.tree)
        context.run.save(context.run.artifact, artifact)
        context.__dict__.pop("artifact", None)
        return {"key": artifact.key.digest, "version": str(artifact.version)}


class RecordBaseline(Step):
    """Write down what the old server holds."""

    name = "baseline"
    title = "record the baseline"

    def probe(self, context: Context) -> bool:
        """Recorded again by a resume: clients may have written since."""
        del context
        return False

    def apply(self, context: Context) -> dict[str, Any]:
        """Count and checksum every table."""
        from kwdb_build.verify.baseline import record_baseline, save

        baseline = record_baseline(
            context.login, progress=context.console, statement_timeout_s=context.settings.statement_timeout_s
        )
        save(baseline, context.run.baseline)
        context.__dict__.pop("baseline", None)
        context.console.update(f"{len(baseline.tables)} tables, {baseline.rows} rows")
        return {"tables": len(baseline.tables)}
