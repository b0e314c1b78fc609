"""Rules that say no before anything is touched. Facts in, refusals out.

KWDB itself refuses none of this: a v3 binary starts on a v2 store without a word and reads its time series as empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kwdb_build.errors import RefusedError
from kwdb_build.server import readiness, supervisor

if TYPE_CHECKING:
    from kwdb_build.model import Deployment, Version
    from kwdb_build.server.script import Commands

_EXPORT_IMPORT = (
    "deploy the new version beside the old one with an empty store, EXPORT each database, the users and the cluster "
    "settings from the old one, and IMPORT them into the new one (documentation: Data Export, Data Import)"
)
_OLDEST_2_IN_PLACE = (2, 1)


@dataclass(frozen=True, kw_only=True)
class ServerFacts:
    """What the gate asks the running server: nodes of the cluster, unfinished jobs, unavailable ranges."""

    nodes: int
    unfinished_jobs: tuple[str, ...] = ()
    unavailable_ranges: int = 0


def require_supported_version(old: Version, new: Version, *, allow_same: bool) -> None:
    """RefusedError unless new may open old's data in place."""
    if new.major != old.major:
        way = "older" if new.major < old.major else "newer"
        raise RefusedError(
            f"{old} cannot be upgraded in place to {new}: the storage of major version {new.major} is another one",
            context=f"the server would start without an error and read its time-series tables as empty ({way} format)",
            hint=_EXPORT_IMPORT,
        )
    if old.major == 2 and old.release[:2] < _OLDEST_2_IN_PLACE:  # noqa: PLR2004
        raise RefusedError(f"{old} cannot be upgraded in place to {new}", hint=_EXPORT_IMPORT)
    if new.same_release(old):
        if not allow_same:
            raise RefusedError(
                f"{new} is not higher than the running {old}",
                hint="for a patched build of the same release add --allow-same",
            )
        return
    if not new > old:
        raise RefusedError(
            f"{new} is lower than the running {old}: a downgrade would open newer data with an older binary",
            hint="install the old version anew and restore a backup that it wrote (`kwdb-build rollback` for a run)",
        )


def require_supported_deployment(deployment: Deployment, commands: Commands, *, running: bool = True) -> None:
    """RefusedError for what this version of the tool cannot restart as it was started."""
    start = deployment.start
    for path in (start.cwd, start.executable, *(store.path for store in deployment.stores)):
        if not _is_text(str(path)):
            raise RefusedError(
                f"a path of the server is no valid UTF-8: {path}", context="its name could not be written down safely",
                hint="rename that directory and start the server from there",
            )
    supervisor.require_supported(deployment, commands, running=running)


def require_own_command(wanted: Deployment, captured: Deployment, commands: Commands) -> None:
    """RefusedError when flags are to be changed and somebody else gives them; the stores must stay the same."""
    if wanted.start.argv == captured.start.argv:
        return
    if captured.supervisor != "none" or commands.start:
        by = "--start-cmd" if commands.start else captured.supervisor
        raise RefusedError(
            f"--drop-flag and --add-flag cannot change a command that {by} gives",
            hint="change the command there (a unit's ExecStart=, a script), without restarting; then upgrade",
        )


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def require_ready(page: readiness.Health) -> None:
    """RefusedError unless the health page says 200: the restarted server will be judged by it."""
    if page.status == readiness.OK:
        return
    seen, hint = "does not call the server ready", "wait until the server is ready"
    if page.stranger:
        seen = "is not known to be the server's"
        hint = "if its certificate was renewed, let the server read it: kill -HUP its process"
    elif page.status == 0:
        seen, hint = "cannot be reached from here", "let this machine reach it (firewall, --http-addr)"
    raise RefusedError(f"the health page {page.url} {seen}", context=page.text, hint=f"{hint}; nothing was changed")


def require_healthy(facts: ServerFacts, *, command: str) -> None:
    """RefusedError when the running server is not in a state to be upgraded."""
    if facts.nodes > 1:
        raise RefusedError(
            f"this server is one of {facts.nodes} nodes ({command}); so far single nodes are upgraded",
            hint="upgrade a cluster node by node by KWDB's guide",
        )
    if facts.unavailable_ranges:
        raise RefusedError(
            f"{facts.unavailable_ranges} ranges are unavailable on the running server",
            hint="repair the server first; kwdb_internal.kv_store_status shows the state",
        )
    if facts.unfinished_jobs:
        raise RefusedError(
            "jobs are running on the server", context="\n".join(facts.unfinished_jobs),
            hint="wait until SHOW JOBS has no running schema change, import or export",
        )
