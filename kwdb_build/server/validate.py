"""Whether the captured command would bring a (new) kwbase up as it brought up the old one: asked before anything stops.

Each function looks at one thing and gives rows; nothing is changed. A row that fails names the way out.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import time
from typing import TYPE_CHECKING

from kwdb_build.errors import KwdbBuildError, RefusedError
from kwdb_build.model import CheckResult, Verdict
from kwdb_build.server import certificates, cgroups, locks, proc, startflags

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping
    from pathlib import Path

    from kwdb_build.model import Deployment
    from kwdb_build.server.startflags import StartFlags

HIDDEN = frozenset({
    "join", "max-offset", "host", "port", "http-host", "http-port", "advertise-host", "advertise-port", "socket",
    "no-redirect-stderr", "help", "background",
})
"""Flags that kwbase takes and its help does not show (cliflags, MarkHidden)."""
_BRPC = "brpc-addr"
_NEEDS_BRPC = frozenset({"start", "start-single-replica"})
_RAFT = "use-raft-store"
_SOON_S = 30 * 86_400
_JOIN_TIMEOUT_S = 1.0
_LONGEST_SOCKET = 107
_WRITTEN = ("pid-file", "listening-url-file")
_DIRECTORIES = ("external-io-dir", "temp-dir", "log-dir", "sql-audit-dir", "socket-dir")


def check(
    deployment: Deployment, *, known: Collection[str], known_before: Collection[str] = (), user: str = "root",
    running: bool = True,
) -> tuple[CheckResult, ...]:
    """All rows. known: flags of the binary that is to be started; known_before: of the one that was captured.

    running: the captured process is there, and must be the one that has the stores open.
    """
    start = deployment.start
    flags = startflags.parse(start.argv, cwd=str(start.cwd), environ=start.environ)
    return (
        *_flags(flags, known=known, before=known_before),
        *_paths(deployment, flags),
        *_stores(deployment, flags, running=running),
        *_addresses(deployment, flags),
        *_certificates(deployment, user),
        *_limits(deployment),
        *_environment(deployment),
        *_company(deployment),
        *_join(flags),
    )


def require(rows: Iterable[CheckResult]) -> None:
    """RefusedError that names every failed row with its remedy."""
    failed = [row for row in rows if row.verdict is Verdict.FAIL]
    if failed:
        raise RefusedError(
            "the captured command would not bring the server up again: " + ", ".join(row.name for row in failed),
            context="\n".join(f"{row.name}: {row.found}" for row in failed),
            hint="; ".join(dict.fromkeys(row.fix for row in failed if row.fix)) + "; nothing was changed",
        )


def _fail(name: str, found: str, fix: str, *, required: str = "") -> CheckResult:
    return CheckResult(name=name, verdict=Verdict.FAIL, required=required, found=found, fix=fix)


def _warn(name: str, found: str, fix: str = "") -> CheckResult:
    return CheckResult(name=name, verdict=Verdict.WARN, found=found, fix=fix)


def _ok(name: str, found: str) -> CheckResult:
    return CheckResult(name=name, verdict=Verdict.OK, found=found)


def _flags(flags: StartFlags, *, known: Collection[str], before: Collection[str]) -> Iterator[CheckResult]:
    unknown = [name for name in flags.values if name not in known and name not in HIDDEN]
    for name in unknown:
        close = _renamed(name, known=known, before=before)
        way = f"--drop-flag {name}" + (f" --add-flag --{close}=…" if close else "")
        yield _fail(
            f"flag --{name}", f"the new version does not know it{f'; --{close} is new in it' if close else ''}",
            f"pass {way} to start the new version without it",
        )
    if not unknown:
        yield _ok("flags", f"{len(flags.values)} given, all known to the new version")
    lacks_brpc = flags.command in _NEEDS_BRPC and _BRPC in known and _BRPC not in flags.values
    if lacks_brpc and before and _BRPC not in before:
        yield _fail(f"flag --{_BRPC}", f"`{flags.command}` of the new version needs it",
                    f"pass --add-flag --{_BRPC}=HOST:27257")
    if flags.last("upgrade-complete") == "true":
        yield _warn("flag --upgrade-complete", "it resets server.time_until_store_dead at each start",
                    "take it out of the start command, or pass --drop-flag upgrade-complete")


def _renamed(name: str, *, known: Collection[str], before: Collection[str]) -> str:
    """A flag that only the new version has and whose name is near: perhaps the new name."""
    import difflib

    new = [one for one in known if one not in before] if before else list(known)
    return next(iter(difflib.get_close_matches(name, new, n=1)), "")


def _paths(deployment: Deployment, flags: StartFlags) -> Iterator[CheckResult]:
    start = deployment.start
    wanted: list[tuple[str, Path]] = [
        ("working directory", start.cwd), ("executable", start.executable),
        *(("store", store.path) for store in deployment.stores),
        *((f"target of a link in {store.path}", path) for store in deployment.stores for path in store.targets),
    ]
    if deployment.certs_dir is not None:
        wanted.append(("certificates", deployment.certs_dir))
    missing = [(name, path) for name, path in wanted if not path.exists()]
    for name, path in missing:
        yield _fail(name, f"{path} is not there", f"bring {path} back (is a file system not mounted?)")
    for name in (*_WRITTEN, *_DIRECTORIES):
        value = flags.last(name)
        if not value:
            continue
        path = start.cwd / value
        place = path.parent if name in _WRITTEN else path
        if not place.is_dir() and not (name in _DIRECTORIES and place.parent.is_dir()):
            yield _fail(f"--{name}", f"{place} is not there", f"make the directory {place}, or --drop-flag {name}")
            missing.append((name, place))
    if not missing:
        yield _ok("paths", f"{len(wanted)} there")


def _stores(deployment: Deployment, flags: StartFlags, *, running: bool) -> Iterator[CheckResult]:
    """The start would open what the running server has open."""
    asked = {os.path.realpath(path) for path in startflags.store_paths(flags)}
    captured = {os.path.realpath(store.path) for store in deployment.stores}
    if asked != captured:
        yield _fail("stores", f"the command names {sorted(asked)}, the server was captured with {sorted(captured)}",
                    "capture the server again")
    for store in deployment.stores:
        holder = locks.holder(store.path) if store.kind == "store" else None
        if running and holder not in {deployment.pid, None, locks.HIDDEN_HOLDER}:
            yield _fail("store", f"{store.path} is open in {locks.describe(holder or 0)}, not in pid {deployment.pid}",
                        "find out which server is meant: `kwdb-build servers`")
        if running and holder is None and store.kind == "store":
            yield _fail("store", f"pid {deployment.pid} has not opened {store.path}",
                        "the command leads to another store than the running server uses: see its log")
    yield from _raft_store(deployment, flags)
    yield _ok("stores", ", ".join(str(store.path) for store in deployment.stores))


def _raft_store(deployment: Deployment, flags: StartFlags) -> Iterator[CheckResult]:
    """--use-raft-store counts at a store's first start and cannot be changed later.

    Its log is in `raftlog` below the time-series directory (KWDB's documentation, RaftLog Store).
    """
    wanted = flags.last(_RAFT, "false") in {"true", "1", "t", "T", "TRUE", "True"}
    there = next((path for store in deployment.stores if (path := store.path / "tsdb" / "raftlog").is_dir()), None)
    if there is not None and not wanted:
        yield _fail(f"--{_RAFT}", f"{there} shows a store that was made with it, and the command lacks it",
                    f"pass --add-flag --{_RAFT}")
    if wanted and there is None:
        yield _warn(f"--{_RAFT}", "the store has no tsdb/raftlog: it was made without it",
                    f"it counts at a store's first start only: --drop-flag {_RAFT}")


def _addresses(deployment: Deployment, flags: StartFlags) -> Iterator[CheckResult]:
    for name, wanted, actual in (("SQL", flags.sql, deployment.sql), ("HTTP", flags.http, deployment.http)):
        if actual is not None and wanted.port == 0:
            yield _warn(f"{name} address", f"the command leaves the port to chance (now {actual.port})",
                        "clients will have to find it again: name a port in the command")
        elif actual is not None and wanted.port != actual.port:
            yield _fail(f"{name} address", f"the command says port {wanted.port}, the server listens on {actual.port}",
                        "the server was not started by this command: capture it again")
    place = flags.last("socket-dir") or deployment.start.environ.get("KWBASE_SOCKET_DIR", "")
    if place and len(os.fsencode(f"{place}/.s.PGSQL.{flags.sql.port}.lock")) > _LONGEST_SOCKET:
        yield _fail("--socket-dir", f"{place} is too long for a Unix socket", "choose a shorter path")
    yield _ok("addresses", f"SQL {deployment.sql}, HTTP {deployment.http}")


def _certificates(deployment: Deployment, user: str) -> Iterator[CheckResult]:
    if deployment.certs_dir is None:
        return
    now, good = time.time(), 0
    for one in certificates.read(deployment.certs_dir, user):
        ends = time.strftime("%Y-%m-%d", time.localtime(one.ends))
        renew = f"renew {one.path} (`kwbase cert create-…`) first"
        if one.problem:
            yield _fail("certificate", f"{one.path} cannot be read: {one.problem}", renew)
        elif one.ends <= now:
            yield _fail("certificate", f"{one.path} expired on {ends}: the server would come up and be refused", renew)
        elif one.begins > now:
            yield _fail("certificate", f"{one.path} is not valid yet", "is the clock right?")
        elif one.ends - now < _SOON_S:
            yield _warn("certificate", f"{one.path} expires on {ends}", renew)
        else:
            good += 1
        if one.exposed_key is not None and one.path.name != "ca.crt":
            yield _fail("private key", f"{one.exposed_key} can be read by others: kwbase refuses it at its next start",
                        f"chmod 600 {one.exposed_key}")
    if good:
        yield _ok("certificates", f"{good} valid")


def _limits(deployment: Deployment) -> Iterator[CheckResult]:
    """Limits that this user cannot give again. Soft ones were tried already, with the question for the version."""
    if os.geteuid() == 0 or deployment.supervisor != "none":
        return
    for name, (_, hard) in deployment.start.limits.items():
        number = getattr(resource, f"RLIMIT_{name.upper()}", None)
        ours = resource.getrlimit(number)[1] if number is not None else hard
        if ours != -1 and (hard == -1 or ours < hard):
            was = "unlimited" if hard == -1 else str(hard)
            yield _warn(f"limit {name}", f"its hard limit was {was} and will be {ours}", "run as root to keep it")


def _environment(deployment: Deployment) -> Iterator[CheckResult]:
    if "KW_FORCE_RECOVER" in deployment.start.dropped:
        yield _warn("KW_FORCE_RECOVER", "the server was started with it; it is left out, as it forces a recovery",
                    "take it out of your own start script, too")


def _company(deployment: Deployment) -> Iterator[CheckResult]:
    """A server that nobody supervises is a child of ours: what ends us and ours must not end it."""
    if deployment.supervisor != "none":
        return
    if company := cgroups.ends_with(cgroups.lines(os.getpid()), deployment.start.cgroup):
        yield _warn(
            "control group", f"the server will end {company}",
            "start kwdb-build by `systemd-run --scope`, or make the server a unit (`kwdb-build capture --as systemd`)",
        )


def _join(flags: StartFlags) -> Iterator[CheckResult]:
    """--join matters at the first start; a dead node is worth a word, as a lone node waits for it."""
    addresses = [one for value in flags.values.get("join", ()) for one in value.split(",") if one]
    dead = []
    for text in addresses:
        with contextlib.suppress(KwdbBuildError):
            target = startflags.parse_host_port(text, startflags.SERVER_PORT)
            try:
                socket.create_connection((target.host or "localhost", target.port), timeout=_JOIN_TIMEOUT_S).close()
            except OSError:
                dead.append(text)
    if dead:
        yield _warn("--join", f"nobody answers at {', '.join(dead)}",
                    "a node of one's own store starts without them; look whether these nodes should be up")


def lower_limits(before: Mapping[str, tuple[int, int]], pid: int) -> tuple[str, ...]:
    """Limits that a started server has lower than the captured one had, in words."""
    now = proc.parse_limits(proc.read_text(pid, "limits"))
    return tuple(
        f"limit {name}: soft {now[name][0]}, was {soft}"
        for name, (soft, _) in before.items()
        if name in now and now[name][0] != -1 and (soft == -1 or now[name][0] < soft)
    )
