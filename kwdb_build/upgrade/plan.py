"""The plan of an upgrade: what each step would do and why. Reads the world, writes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kwdb_build.errors import EngineError
from kwdb_build.files import human_bytes
from kwdb_build.model import Verdict
from kwdb_build.upgrade import gate
from kwdb_build.upgrade.context import commands_of, renewed

if TYPE_CHECKING:
    from kwdb_build.config import Settings
    from kwdb_build.model import Artifact, Deployment, SourceTree
    from kwdb_build.upgrade.rundir import UpgradeRequest


@dataclass(frozen=True, kw_only=True)
class Action:
    """What would happen in one step. action is 'run', 'skip', 'reuse' or 'ask'."""

    step: str
    action: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All actions in order. new_version is '' when it is known only after the fetch."""

    old_version: str
    new_version: str
    actions: tuple[Action, ...]


def make_plan(request: UpgradeRequest, settings: Settings) -> Plan:
    """Look at the server, the source host and the caches; refuse here what the gate would refuse later."""
    from kwdb_build.server import capture, discover
    from kwdb_build.source.preview import preview
    from kwdb_build.upgrade.workshop import source_request

    selector = discover.Selector(pid=request.pid, store=request.store, listen=request.listen)
    deployment = capture.capture(discover.choose(discover.find_servers(), selector).pid)
    gate.require_supported_deployment(deployment, commands_of(settings, settings.home / "logs"))
    commit, tree = "", None
    if request.choice.local is None and request.choice.bundle is None:
        source = source_request(settings, request.ref, url=request.url, redirects=request.redirects)
        seen = preview(source, home=settings.home)
        commit, tree = seen.commit, seen.tree if not request.choice.patches else None
    if tree is not None:
        gate.require_supported_version(deployment.version, tree.version, allow_same=request.allow_same)
    return Plan(
        old_version=str(deployment.version), new_version=str(tree.version) if tree else "",
        actions=(
            *_before_the_stop(request, settings, deployment, commit, tree),
            *_the_restart(request, settings, deployment),
        ),
    )


def _before_the_stop(
    request: UpgradeRequest, settings: Settings, deployment: Deployment, commit: str, tree: SourceTree | None
) -> tuple[Action, ...]:
    stores = ", ".join(str(store.path) for store in deployment.stores)
    fetched = _source_in_words(request, commit, tree)
    artifact = _stored(settings, tree) if tree is not None else False
    return (
        Action(step="capture", action="run", reason=f"pid {deployment.pid} runs {deployment.version} on {stores}"),
        Action(step="fetch", action="reuse" if tree else "run", reason=fetched),
        Action(step="gate", action="run",
               reason=f"{deployment.version} -> {tree.version} is allowed" if tree else "asked after the fetch"),
        Action(step="check", action="skip" if artifact else "run",
               reason="the build is already stored" if artifact else "build image against what the tree asks for"),
        Action(step="build", action="reuse" if artifact else "run",
               reason="the build is already stored" if artifact
               else f"no stored build has this key yet: {_engine_in_words(settings)}"),
        Action(step="validate", action="run", reason=_validated(settings, renewed(deployment, request), tree)),
        Action(step="trial", action="skip" if request.no_trial else "run",
               reason="--no-trial" if request.no_trial else "the new version with this command on a scratch store"),
        Action(step="stage", action="run",
               reason="keep the old files, write the new ones beside them under temporary names"),
        Action(step="baseline", action="run", reason=f"count and checksum every table at {deployment.sql}"),
    )


def _engine_in_words(settings: Settings) -> str:
    """Where it would be built; a plan also tells that it could not be."""
    from kwdb_build.engine.choose import choose, named

    try:
        with choose(
            settings.engine, docker_host=settings.docker_host, place=settings.home / "sandbox"
        ) as engine:
            return f"in {named(engine.info())}"
    except EngineError as error:
        return f"but {error.message}"


def _source_in_words(request: UpgradeRequest, commit: str, tree: SourceTree | None) -> str:
    choice = request.choice
    patched = "".join(f", then patch {patch.name}" for patch in choice.patches)
    if choice.local is not None or choice.bundle is not None:
        return f"taken from {choice.local or choice.bundle}{patched}"
    if tree is not None:
        return f"{request.ref} is {commit[:12]}, already fetched"
    return f"{request.ref} is {commit[:12]}, to be fetched from {request.url}{patched}"


def _the_restart(request: UpgradeRequest, settings: Settings, deployment: Deployment) -> tuple[Action, ...]:
    from kwdb_build.data.stores import usage
    from kwdb_build.server.export import command_line

    needed = human_bytes(usage(deployment.stores).allocated_bytes)
    size = "--no-backup" if request.no_backup else f"{needed} under {settings.home}"
    backup = "skip" if request.no_backup else "run"
    targets = ", ".join(str(path) for path in deployment.replaceable.values())
    return (
        Action(step="precopy", action=backup, reason=f"first copy while the server runs: {size}"),
        Action(step="stop", action="run",
               reason=f"SIGTERM to pid {deployment.pid}, wait up to {settings.stop_timeout_s:g} s for its drain"),
        Action(step="backup", action=backup, reason=f"copy what changed, verify all: {size}"),
        Action(step="switch", action="run", reason=f"rename the new files over {targets}"),
        Action(step="start", action="run", reason=command_line(renewed(deployment, request).start)),
        Action(step="verify", action="run", reason="suite against the baseline; any failure rolls back"),
        Action(step="keep", action="run", reason="backup and old files stay in the run's directory"),
    )


def _validated(settings: Settings, deployment: Deployment, tree: SourceTree | None) -> str:
    """What is known of the start command: before a build all but the flags of the new version."""
    from kwdb_build.server import capture, validate
    from kwdb_build.upgrade.steps.rehearse import flags_of

    before = capture.flags_known(deployment)
    artifact = _find(settings, tree) if tree is not None else None
    known = flags_of(artifact, deployment.start.command) if artifact is not None else before.keys()
    rows = validate.check(deployment, known=known, known_before=before, user=settings.sql_user)
    bad = [f"{row.verdict}: {row.name}: {row.found}. {row.fix}" for row in rows if row.verdict != Verdict.OK]
    words = "the captured command against the new version" + ("" if artifact else " (its flags: after the build)")
    return "\n".join([words, *bad])


def _stored(settings: Settings, tree: SourceTree) -> bool:
    return _find(settings, tree) is not None


def _find(settings: Settings, tree: SourceTree) -> Artifact | None:
    from kwdb_build.build.key import build_key
    from kwdb_build.build.store import ArtifactStore
    from kwdb_build.model import BuildOptions
    from kwdb_build.upgrade.workshop import choose_toolchain

    key = build_key(tree, choose_toolchain(settings, tree), BuildOptions(build_type=settings.build_type))
    return ArtifactStore(settings.home / "artifacts").find(key)
