"""Everything that `check` looks at: the build image, this host, this machine, and the server that runs on it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from kwdb_build.errors import KwdbBuildError, ServerNotFoundError
from kwdb_build.host import checks, machine
from kwdb_build.host.certificates import check_certificates
from kwdb_build.model import CheckResult, Verdict
from kwdb_build.toolchain.requirements import Phase, read_requirements

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kwdb_build.config import Settings
    from kwdb_build.model import Artifact, Deployment, SourceTree, Toolchain
    from kwdb_build.server.discover import Selector

GROUPS = {
    "image": "build image", "host": "this host, to run KWDB", "links": "this host, to load the stored build",
    "compile": "this host, to compile without a container", "machine": "this machine", "server": "running server",
}
"""Group of a row -> its title."""
_PORTS = {26257: "SQL and nodes", 8080: "HTTP", 27257: "brpc of a cluster"}


def examine_host(
    tree: SourceTree, *, settings: Settings, toolchain: Toolchain, artifact: Artifact | None, compiling: bool,
    deployment: Deployment | None, unknown_server: str = "",
) -> tuple[CheckResult, ...]:
    """All rows but the build image's. unknown_server: why a server's part could not be looked at."""
    rows = [*_running(tree, toolchain, artifact, compiling=compiling), *_machine(tree, settings, deployment)]
    if unknown_server:
        rows.append(CheckResult(name="server", verdict=Verdict.UNKNOWN, found=unknown_server, group="server"))
    if deployment is not None:
        rows += examine_server(deployment)
    elif not unknown_server:
        in_use = machine.ports_in_use(tuple(_PORTS))
        rows += _grouped("machine", checks.check_ports(in_use, _PORTS))
    return tuple(rows)


def _running(
    tree: SourceTree, toolchain: Toolchain, artifact: Artifact | None, *, compiling: bool
) -> list[CheckResult]:
    from kwdb_build.build.host import check_links, foreseen_links, glibc_floor, host_facts
    from kwdb_build.toolchain.check import Subject, check
    from kwdb_build.toolchain.probe import probe_host

    requirements = read_requirements(tree.path)
    facts = probe_host(requirements)
    loads = None if artifact is None else glibc_floor(artifact).libraries
    rows = list(check(requirements.only(Phase.RUN), facts, Subject(group="host", loads=loads)))
    if artifact is not None:
        rows += _grouped("links", check_links(artifact, host_facts()))
    else:
        locked = (package.name for package in toolchain.debian)
        rows += _grouped("links", foreseen_links(locked, host_facts().libraries))
        rows.append(CheckResult(
            name="libraries and C library", verdict=Verdict.SKIP, group="links",
            found="checked on the binaries themselves, once they are built",
        ))
    if compiling:
        rows += check(requirements.only(Phase.COMPILE), facts, Subject(group="compile"))
    return rows


def _machine(tree: SourceTree, settings: Settings, deployment: Deployment | None) -> list[CheckResult]:
    from kwdb_build.build import recipe
    from kwdb_build.files import tree_bytes

    facts = machine.machine_facts(home=settings.home)
    allowed = recipe.parse_size(settings.memory) or facts.memory_bytes
    jobs = settings.jobs or recipe.jobs_for(recipe.cores_for(settings.cpus), min(allowed, facts.memory_bytes))
    needed = recipe.recipe_for(tree.version).needed_bytes(tree_bytes(tree.path))
    texts = {name: path.read_text(encoding="utf-8", errors="replace") for name in checks.CPU_FILES
             if (path := tree.path / name).is_file()}
    limits = deployment.start.limits if deployment is not None else {}
    return _grouped("machine", (
        checks.check_memory(facts, jobs), checks.check_disk(facts, needed, settings.home),
        checks.check_cpu(facts, checks.wanted_cpu_flags(texts)),
        *checks.check_kernel(facts, nofile=limits.get("nofile"), memlock=limits.get("memlock")),
        checks.check_clock(facts.clock),
    ))


def examine_server(deployment: Deployment) -> list[CheckResult]:
    """File systems of a server's stores, and its certificates: what a restart would stumble over."""
    return _grouped("server", _server(deployment))


def _server(deployment: Deployment) -> Iterable[CheckResult]:
    for store in deployment.stores:
        for place in (store.path, *store.targets):
            yield checks.check_file_system(place, machine.file_system(place))
    if deployment.certs_dir is not None:
        yield from check_certificates(deployment.certs_dir, datetime.now(UTC))


def _grouped(group: str, rows: Iterable[CheckResult]) -> list[CheckResult]:
    return [replace(row, group=group) for row in rows]


def running_server(selector: Selector) -> tuple[Deployment | None, str]:
    """The one running server (None when there is none), and why it could not be looked at ('' when it could).

    Errors: ServerNotFoundError when the selector names one that is not there.
    """
    from kwdb_build.server import capture, discover

    found = discover.find_servers()
    named = selector != discover.Selector()
    if not found and not named:
        return None, ""
    if len(found) > 1 and not named:
        return None, f"{len(found)} servers run here: choose one with --pid, --store or --listen-addr"
    try:
        return capture.capture(discover.choose(found, selector).pid), ""
    except KwdbBuildError as error:
        if named and isinstance(error, ServerNotFoundError):
            raise
        return None, f"{error.message} ({error.hint})" if error.hint else error.message
