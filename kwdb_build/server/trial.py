"""A short life of a new version on a scratch store, while the old one serves: what fails here costs no downtime.

The captured command is kept but for what would touch the real server: stores, addresses, --join and every path that is
written to. The scratch directory holds the new binary and libraries as well, since the server's user can rarely read
the place where they were built, and a relative LD_LIBRARY_PATH keeps its meaning there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kwdb_build import files
from kwdb_build.errors import KwdbBuildError, RefusedError, StartError, TrialError
from kwdb_build.model import Address, Deployment, Store
from kwdb_build.server import proc, readiness, start, startflags, stop
from kwdb_build.server.discover import TRIAL_PREFIX
from kwdb_build.sql import Login, Session, SqlError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from kwdb_build.console import Progress
    from kwdb_build.model import Artifact
    from kwdb_build.server.startflags import StartFlags

_MARKER = ".kwdb-build-trial"
_MEMORY_BYTES = 1 << 30
_SPACE_BYTES = 256 << 20
_STOP_S = 30.0
_SERIES_S = 15.0
_POLL_S = 0.2
_KILLABLE = 800
"""oom_score_adj: when memory runs out after all, the trial goes and not the server."""
_OWN = frozenset({
    "store", "listen-addr", "http-addr", "brpc-addr", "certs-dir", "insecure", "cache", "max-sql-memory",
})
_DROPPED = frozenset({
    "join", "background", "host", "port", "http-host", "http-port", "sql-addr", "advertise-addr", "advertise-host",
    "advertise-port", "advertise-sql-addr", "locality-advertise-addr", "cluster-name", "socket-dir",
    "disable-cluster-name-verification", "upgrade-complete", "socket", "cgroup-user", "buffer-pool-size",
    "restful-port", "import-filename", "import-path", "import-password", "extra-startup-item", "max-disk-temp-storage",
})
_PATHS = frozenset({
    "ts-store", "pid-file", "listening-url-file", "log-dir", "external-io-dir", "temp-dir", "sql-audit-dir",
})
_DROPPED_VARIABLES = frozenset({"KWBASE_SOCKET", "KWBASE_SOCKET_DIR"})
_SMALL = (("cache", "64MiB"), ("max-sql-memory", "128MiB"))


@dataclass(frozen=True, kw_only=True)
class Passed:
    """A trial that went well: seconds until ready, and whether SQL was tried ('' or why it was not)."""

    ready_s: float
    without_sql: str = ""


def run(
    deployment: Deployment, artifact: Artifact, *, known: Collection[str], record: Path, log_dir: Path,
    timeout_s: float, progress: Progress,
) -> Passed:
    """Start, wait, write and read, stop, remove. known: flags of the new binary's start-single-node.

    record: a file that names the scratch directory and the process while there are any, for sweep().
    Errors: RefusedError (no memory or space for it), TrialError with the server's last words.
    """
    _require_room()
    scratch = _make_scratch(deployment, artifact, record)
    started: start.Started | None = None
    try:
        progress.update("starting on a scratch store")
        trial = prepare(deployment, scratch, known=known)
        started = start.start(trial.start, log_dir=log_dir, on_launch=lambda pid: _note(record, scratch, pid))
        return _judge(trial, started, timeout_s=timeout_s, progress=progress)
    except (StartError, SqlError) as error:
        raise TrialError(
            f"the new version failed its trial on an empty store: {error.message}", context=error.context,
            hint="the running server was not touched; mend the cause (a build with other options?), or pass --no-trial",
            log=_keep_logs(scratch, log_dir),
        ) from error
    finally:
        if started is None:  # perhaps launched, and cut off before we knew
            sweep([record] if record.exists() else [], progress)
        else:
            stop.abandon(started, [scratch / "store"], grace_s=_STOP_S, progress=progress)
        _remove(scratch)
        record.unlink(missing_ok=True)


def _judge(trial: Deployment, started: start.Started, *, timeout_s: float, progress: Progress) -> Passed:
    login = _login(trial)
    if login is None:
        deadline = time.monotonic() + timeout_s
        while (answer := readiness.health(trial)).status != readiness.OK:
            if not started.processes() or time.monotonic() > deadline:
                raise StartError("it did not become ready", context=f"{answer.text}\n{started.last_words()}")
            time.sleep(_POLL_S)
        return Passed(ready_s=time.monotonic() - started.began, without_sql="certs-dir has no certificate of root")
    ready = readiness.wait_ready(
        deployment=trial, started=started, login=login, expect=None, timeout_s=timeout_s, progress=progress
    )
    progress.update("writing and reading on the scratch store")
    try:
        smoke(login)
    except SqlError as error:
        raise StartError(error.message, context=f"{error.context}\n{started.last_words()}") from error
    if not proc.is_alive(ready.pid, ready.started_at):
        raise StartError("it died after it had answered", context=started.last_words())
    place = trial.start.cwd.parent / "lib"
    for name, path in readiness.loaded_libraries(ready.pid).items():
        if path.parent.resolve() != place.resolve():
            raise StartError(
                f"it loads {name} from {path} and not from beside its own binary", context="an RPATH leads there",
            )
    return Passed(ready_s=ready.ready_s)


def prepare(deployment: Deployment, scratch: Path, *, known: Collection[str]) -> Deployment:
    """The deployment of the trial: the captured one with everything of the real server's replaced. Writes nothing."""
    old = deployment.start
    flags = startflags.parse(old.argv, cwd=str(old.cwd), environ=old.environ)
    loopback = "::1" if deployment.sql.host == "::1" else "127.0.0.1"
    ports = _free_ports(loopback, 3)
    command = dataclasses.replace(
        old, argv=arguments(flags, scratch=scratch, known=known, host=loopback, ports=ports), background=False,
        cwd=scratch / "bin", executable=scratch / "bin" / "kwbase", environ=environment(deployment, scratch),
        stdout="", stderr="", oom_score_adj=max(old.oom_score_adj, _KILLABLE),
        cgroup=(),  # the server's own memory limit is for the server
    )
    # A certificate names a host: it is dialled by that name, but at the loopback.
    host = deployment.sql.host if deployment.secure else loopback
    return dataclasses.replace(
        deployment, start=command, stores=(Store(path=scratch / "store"),), sql=Address(host=host, port=ports[0]),
        http=Address(host=loopback, port=ports[1]),
    )


def arguments(
    flags: StartFlags, *, scratch: Path, known: Collection[str], host: str, ports: tuple[int, ...]
) -> tuple[str, ...]:
    """The command line of the trial. Always start-single-node: a lone node of another kind would wait for a cluster."""
    shown = f"[{host}]" if ":" in host else host
    words = [
        "./kwbase", "start-single-node", f"--store={scratch / 'store'}", f"--listen-addr={shown}:{ports[0]}",
        f"--http-addr={shown}:{ports[1]}", "--insecure" if flags.insecure else f"--certs-dir={flags.certs_dir}",
    ]
    if "brpc-addr" in flags.values and "brpc-addr" in known:
        words.append(f"--brpc-addr={shown}:{ports[2]}")
    words += [f"--{name}={value}" for name, value in _SMALL if name in known]
    for name, values in flags.values.items():
        if name in _OWN or name in _DROPPED or name not in known:
            continue
        if name in _PATHS:
            words.append(f"--{name}={scratch / name}")
        else:
            words += [f"--{name}={value}" for value in values]
    return tuple(words)


def environment(deployment: Deployment, scratch: Path) -> dict[str, str]:
    """The captured environment; variables of KWDB that name a directory name one of the scratch's instead."""
    found = {}
    for name, value in deployment.start.environ.items():
        if name in _DROPPED_VARIABLES:
            continue
        directory = name.startswith("KW") and "/" in value and not (deployment.start.cwd / value).is_file()
        found[name] = str(scratch / "environment" / name) if directory else value
    searched = [str(scratch / "lib"), *filter(None, [deployment.start.environ.get("LD_LIBRARY_PATH")])]
    return found | {"LD_LIBRARY_PATH": os.pathsep.join(searched)}


def smoke(login: Login) -> None:
    """One relational and one time-series table: made, written, read. Errors: SqlError.

    The time-series engine opens a moment after SQL does, so that its part is tried again for a while.
    """
    with Session(login, statement_timeout_s=60) as session:
        session.execute("CREATE DATABASE kwdb_build_trial")
        session.execute("CREATE TABLE kwdb_build_trial.public.r (id INT4 PRIMARY KEY, word VARCHAR(32))")
        session.execute("INSERT INTO kwdb_build_trial.public.r VALUES (1, 'one'), (2, 'two')")
        _expect(session, "SELECT id, word FROM kwdb_build_trial.public.r ORDER BY id", [(1, "one"), (2, "two")])
        _patiently(lambda: session.execute("CREATE TS DATABASE kwdb_build_trial_ts"))
        _patiently(lambda: session.execute(
            "CREATE TABLE kwdb_build_trial_ts.public.t (k_timestamp TIMESTAMPTZ NOT NULL, v FLOAT8) "
            "TAGS (device INT4 NOT NULL) PRIMARY TAGS (device)"
        ))
        session.execute(
            "INSERT INTO kwdb_build_trial_ts.public.t VALUES ('2026-01-01 00:00:00+00:00', 1.5, 1), "
            "('2026-01-01 00:00:01+00:00', 2.5, 2)"
        )
        _expect(session, "SELECT device, v FROM kwdb_build_trial_ts.public.t ORDER BY device", [(1, 1.5), (2, 2.5)])


def _expect(session: Session, query: str, rows: list[tuple[object, ...]]) -> None:
    if (found := session.rows(query)) != rows:
        raise SqlError("what was written is not what is read", context=f"{query}: {found} instead of {rows}")


def _patiently(action: Callable[[], object]) -> None:
    deadline = time.monotonic() + _SERIES_S
    while True:
        try:
            action()
        except SqlError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_S)
        else:
            return


def _login(trial: Deployment) -> Login | None:
    """Root on the scratch cluster, who is there from its start; None when that needs a certificate that is not here."""
    if trial.certs_dir is None:
        return Login(address=trial.sql)
    if not (trial.certs_dir / "client.root.crt").exists():
        return None
    loopback = trial.http.host if trial.http else "127.0.0.1"
    return Login(address=trial.sql, certs_dir=trial.certs_dir, dial=loopback)


def _free_ports(host: str, count: int) -> tuple[int, ...]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket(family, socket.SOCK_STREAM)) for _ in range(count)]
        for probe in probes:
            probe.bind((host, 0))
        return tuple(int(probe.getsockname()[1]) for probe in probes)


def _require_room() -> None:
    import psutil

    available = int(psutil.virtual_memory().available)
    if available < _MEMORY_BYTES:
        raise RefusedError(
            f"too little free memory to try the new version beside the running one: {files.human_bytes(available)}, "
            f"{files.human_bytes(_MEMORY_BYTES)} needed",
            hint="free memory, or pass --no-trial to go without; nothing was changed",
        )
    files.require_space(Path(tempfile.gettempdir()), _SPACE_BYTES, "trial of the new version")


def _make_scratch(deployment: Deployment, artifact: Artifact, record: Path) -> Path:
    scratch = Path(tempfile.mkdtemp(prefix=TRIAL_PREFIX))
    files.write_json(record, {"scratch": str(scratch), "pid": 0, "started_at": 0.0}, mode=files.PRIVATE)
    (scratch / _MARKER).touch()
    for directory in ("bin", "lib", "store", "environment"):
        (scratch / directory).mkdir(mode=0o755)
    for name in ("external-io-dir", "temp-dir", "log-dir", "sql-audit-dir", "socket-dir", "ts-store"):
        (scratch / name).mkdir(mode=0o755)
    for name in deployment.start.environ:
        if name.startswith("KW") and "/" not in name:
            (scratch / "environment" / name).mkdir(exist_ok=True)
    for entry in artifact.files:
        if entry.path == "bin/kwbase" or (entry.path.startswith("lib/") and entry.path.count("/") == 1):
            shutil.copyfile(artifact.path / entry.path, scratch / entry.path, follow_symlinks=False)
            if not entry.link:
                (scratch / entry.path).chmod(0o755)
    if deployment.start.uid != os.geteuid():
        for path in (scratch, *files.walk_all(scratch)):
            os.chown(path, deployment.start.uid, deployment.start.gid, follow_symlinks=False)
    return scratch


def _note(record: Path, scratch: Path, pid: int) -> None:
    """Before the program is executed: whoever comes after a kill -9 of ours must know it again."""
    files.write_json(
        record, {"scratch": str(scratch), "pid": pid, "started_at": proc.start_time(pid)}, mode=files.PRIVATE
    )


def _keep_logs(scratch: Path, log_dir: Path) -> Path | None:
    """The server's own log, which would go with the scratch directory."""
    kept: list[Path] = []
    with contextlib.suppress(OSError):
        log_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        for place in (scratch / "store" / "logs", scratch / "log-dir"):
            for path in sorted(place.glob("kwbase.*.log")):
                target = log_dir / path.name
                with path.open("rb") as source, target.open("wb") as copy:
                    shutil.copyfileobj(source, copy)
                kept.append(target)
    return kept[-1] if kept else next(iter(sorted(log_dir.glob("server-*.log"))), None)


def sweep(records: Iterable[Path], progress: Progress) -> None:
    """End what trials of killed runs left behind, and remove their scratch directories.

    Only a process that is the recorded one (pid and start) and still runs on the recorded scratch store is ended.
    """
    for record in records:
        with contextlib.suppress(OSError, ValueError, KeyError):
            left = files.read_json(record)
            scratch = Path(left["scratch"])
            if left["pid"] and proc.is_alive(int(left["pid"]), float(left["started_at"])):
                _end(int(left["pid"]), scratch, progress)
            _remove(scratch)
            record.unlink()


def _end(pid: int, scratch: Path, progress: Progress) -> None:
    with contextlib.suppress(KwdbBuildError), proc.Watch(pid) as watch:
        if f"--store={scratch / 'store'}" not in proc.parse_cmdline(proc.read_bytes(pid, "cmdline")):
            return
        progress.note(f"ending the trial of a run that was cut off (pid {pid})")
        watch.send(signal.SIGKILL)
        watch.wait(_STOP_S)


def _remove(scratch: Path) -> None:
    """Only what this module has made: by its name and by the mark in it."""
    if scratch.name.startswith(TRIAL_PREFIX) and (scratch / _MARKER).exists() and not scratch.is_symlink():
        shutil.rmtree(scratch, ignore_errors=True)
