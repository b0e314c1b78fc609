"""Reads everything that decides how a running kwbase came up, so that it can be started in just the same way."""

from __future__ import annotations

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from kwdb_build import files
from kwdb_build.errors import AccessError, RefusedError, StartError
from kwdb_build.model import Deployment, StartCommand, Store, Version
from kwdb_build.server import address, cgroups, proc, scheduling, spawn, startflags, usage
from kwdb_build.server.discover import supervisor_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kwdb_build.server.startflags import StartFlags

LIBRARIES = ("libcommon.so", "libkwdbts2.so")
BACKGROUND_VARIABLE = "KWBASE_BACKGROUND_RESTART"
CLIENT_VARIABLES = frozenset(
    f"KWBASE_{name}" for name in ("HOST", "PORT", "URL", "USER", "DATABASE", "INSECURE", "CERTS_DIR", "CA_KEY")
)
"""They steer kwbase's client commands: the server keeps them if it had them, our own calls never see them."""
_NOT_REPLAYED = {
    BACKGROUND_VARIABLE: "set by kwbase itself for its background child",
    "NOTIFY_SOCKET": "belongs to whoever waited for that start; gone by now",
    "INVOCATION_ID": "names one run of a systemd unit",
    "JOURNAL_STREAM": "names an output stream of that run",
    "SYSTEMD_EXEC_PID": "names that run's process",
    "MAINPID": "names that run's process",
    "WATCHDOG_PID": "names that run's process",
    "KW_FORCE_RECOVER": "would force a recovery at every start",
    "KWBASE_TESTING_VERSION_TAG": "fakes the version",
}
_SKIPPED_LINKS = ("logs", "kwbase-temp")
_UNKNOWN = Version(text="", release=(0,))
_VERSION_TIMEOUT_S = 60.0
_VERSION_LABELS = ("KaiwuDB Version:", "KWDB Version:")


def capture(pid: int) -> Deployment:
    """The deployment behind a running server.

    Errors: ServerNotFoundError (gone), AccessError (another user's), RefusedError (in-memory store, nothing to
    upgrade), StartError (the files it runs from were replaced or removed, it is not up, or has no readable version).
    """
    started_at = proc.start_time(pid)
    argv = proc.parse_cmdline(proc.read_bytes(pid, "cmdline"))
    cwd = _cwd(pid)
    environment = proc.parse_environ(proc.read_bytes(pid, "environ"))
    flags = startflags.parse(argv, cwd=str(cwd), environ=environment.variables)
    start = _start_command(pid, argv, cwd, environment)
    with ThreadPoolExecutor(max_workers=1) as elsewhere:
        asked = elsewhere.submit(read_version, pid, start)  # a program is run: the longest part by far
        found = _surroundings(pid, started_at, start, flags)
        return dataclasses.replace(found, version=asked.result())


def _surroundings(pid: int, started_at: float, start: StartCommand, flags: StartFlags) -> Deployment:
    libraries = _libraries(pid)
    stores = stores_of(flags)
    sql, http = address.resolve(flags, [store.path for store in stores], address.listening(pid))
    certs_dir = None if flags.insecure else Path(flags.certs_dir)
    if certs_dir is not None:
        advertised = address.recorded(stores[0].path, "advertise-sql")
        sql = address.certified(sql, certs_dir, [advertised.host if advertised else "", flags.sql.host])
    if not proc.is_alive(pid, started_at):
        raise proc.gone(pid, ProcessLookupError("it ended while it was being read"))
    return Deployment(
        pid=pid, started_at=started_at, start=start, stores=stores, sql=sql, http=http, secure=not flags.insecure,
        certs_dir=certs_dir, libraries=libraries, version=_UNKNOWN, supervisor=supervisor_of(pid),
    )


def flags_of(deployment: Deployment) -> StartFlags:
    """The start flags of a captured server, understood."""
    start = deployment.start
    return startflags.parse(start.argv, cwd=str(start.cwd), environ=start.environ)


def log_directory(deployment: Deployment) -> Path | None:
    """Where the server writes kwbase.log; None when it writes none."""
    directory = flags_of(deployment).log_dir
    return Path(directory) if directory else None


def _cwd(pid: int) -> Path:
    cwd = proc.read_link(pid, "cwd")
    if cwd.endswith(proc.DELETED):
        raise StartError(
            "the working directory of the running server was removed", context=cwd,
            hint="its relative paths lead nowhere now: restart the server from an existing directory first",
        )
    return Path(cwd)


def _start_command(pid: int, argv: tuple[str, ...], cwd: Path, environment: proc.Environment) -> StartCommand:
    environ, dropped = filter_environment(environment)
    background = BACKGROUND_VARIABLE in environment.variables
    status = proc.read_status(pid)
    stat = proc.read_stat(pid)
    share = scheduling.read(pid)
    return StartCommand(
        argv=startflags.with_background(argv) if background else argv,
        background=background,
        cwd=cwd,
        executable=_executable(pid),
        environ=environ,
        dropped=dropped,
        uid=status.uid,
        gid=status.gid,
        groups=status.groups,
        limits=proc.parse_limits(proc.read_text(pid, "limits")),
        oom_score_adj=int(proc.read_text(pid, "oom_score_adj")),
        nice=stat.nice if stat else 0,
        stdout=proc.read_link(pid, "fd/1"),
        stderr=proc.read_link(pid, "fd/2"),
        umask=status.umask,
        capabilities=status.capabilities,
        no_new_privileges=status.no_new_privileges,
        ionice=share.ionice,
        scheduling=share.scheduling,
        affinity=share.affinity,
        cgroup=cgroups.lines(pid),
    )


def filter_environment(environment: proc.Environment) -> tuple[dict[str, str], dict[str, str]]:
    """What is replayed, and what is not with the reason (name -> reason)."""
    environ, dropped = {}, {}
    for name, value in environment.variables.items():
        reason = _NOT_REPLAYED.get(name) or ("sockets handed over for one run" if name.startswith("LISTEN_") else "")
        if reason:
            dropped[name] = reason
        else:
            environ[name] = value
    return environ, dropped


def _executable(pid: int) -> Path:
    executable = proc.read_link(pid, "exe")
    return _present(executable, "the executable of the running server")


def _libraries(pid: int) -> dict[str, Path]:
    """Name -> file of KWDB's own libraries as the process maps them; a static build maps none."""
    mapped = proc.mapped_libraries(pid, LIBRARIES)
    return {
        name: _link_to(_present(path, f"{name} of the running server"), name) for name, path in sorted(mapped.items())
    }


def _link_to(path: Path, name: str) -> Path:
    """The link by which a library was found (libcommon.so -> libcommon.so.3.1.0): what a switch has to replace."""
    link = path.with_name(name)
    return link if link.is_symlink() and link.resolve() == path.resolve() else path


def _present(path: str, what: str) -> Path:
    """A file that is still the one on disk: without it a rollback would have nothing to go back to."""
    if path.endswith(proc.DELETED):
        raise StartError(
            f"{what} was replaced or removed since the server started", context=path,
            hint="what runs is not what a restart would start: put the file back, or restart the server first",
        )
    return Path(path)


def stores_of(flags: StartFlags) -> tuple[Store, ...]:
    """Every --store and --ts-store directory with the outside directories that links in it lead to."""
    specs = [("store", spec) for spec in flags.stores] + [("ts-store", spec) for spec in flags.ts_stores]
    if any(spec.in_memory for _, spec in specs):
        raise RefusedError(
            "the server keeps a store in memory (type=mem): a restart would lose it, so there is nothing to upgrade",
            hint="export its data, start the new version by hand and import",
        )
    stores: dict[Path, Store] = {}
    for kind, spec in specs:
        path = Path(spec.path)
        stores.setdefault(path, Store(path=path, kind=kind, targets=outside_targets(path)))
    return tuple(stores.values())


def outside_targets(store: Path) -> tuple[Path, ...]:
    """Directories outside a store that symlinks inside it lead to (time-series groups on other disks).

    Links within such directories are followed as well. logs and temporary directories hold no data and are left out.
    Errors: AccessError.
    """
    root = store.resolve()
    targets: dict[Path, None] = {}
    pending = [root]
    while pending:
        for directory, names, _ in os.walk(pending.pop(), onerror=_raise_access):
            here = Path(directory)
            if here == root:
                names[:] = [name for name in names if not name.startswith(_SKIPPED_LINKS)]
            for target in (Path(os.path.realpath(here / name)) for name in names if (here / name).is_symlink()):
                known = [root, *targets]
                if target.is_dir() and not any(target.is_relative_to(one) for one in known):
                    targets[target] = None
                    pending.append(target)
    return tuple(sorted(targets))


def _raise_access(error: OSError) -> None:
    if isinstance(error, FileNotFoundError):
        return  # temporary directories come and go while the server runs
    raise AccessError(
        f"not allowed to read the store: {error.filename}", context=str(error),
        hint="run kwdb-build as the server's user or as root",
    ) from error


def read_version(pid: int, start: StartCommand) -> Version:
    """Version of the running program: `<executable> version`, run as the server's user with its environment.

    By the process's own executable, so that the answer is about what runs. Errors: StartError.
    """
    try:
        fd = os.open(proc.PROC / str(pid) / "exe", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise proc.gone(pid, error) from error
    try:
        return _ask_version(start, fd)
    finally:
        os.close(fd)


def digests(deployment: Deployment) -> dict[str, str]:
    """Hex sha256 of the binary and the libraries that the server runs from, by their paths."""
    return {str(path): files.sha256_of(path) for path in deployment.replaceable.values()}


def flags_known(deployment: Deployment) -> dict[str, usage.Flag]:
    """Flags that the server's own program knows, with their defaults."""
    return usage.ask(
        deployment.start, deployment.start.executable, own_call_environment(deployment.start.environ)
    )


def version_of(start: StartCommand, executable: Path) -> Version:
    """Version of another kwbase binary in the same surroundings (after a switch)."""
    return _ask_version(start, executable)


def _ask_version(start: StartCommand, executable: Path | int) -> Version:
    wanted = spawn.specification(
        start, argv=(start.argv[0], "version"), executable=executable, environ=own_call_environment(start.environ)
    )
    code, output = spawn.run_as(wanted, timeout_s=_VERSION_TIMEOUT_S)
    if code != 0:
        raise StartError(
            f"`{start.argv[0]} version` failed" if code is not None else f"`{start.argv[0]} version` did not end",
            context=output[-2000:], hint="the captured environment (LD_LIBRARY_PATH, working directory) must fit it",
        )
    return parse_version(output)


def parse_version(text: str) -> Version:
    """Version from the output of `kwbase version`; StartError when it names none that can be compared."""
    for line in text.splitlines():
        for label in _VERSION_LABELS:
            if line.strip().startswith(label):
                return _version(line.strip().removeprefix(label).strip())
    raise StartError("`kwbase version` names no version", context=text[-2000:], hint="is this executable a kwbase?")


def _version(text: str) -> Version:
    try:
        return Version.parse(text)
    except ValueError as error:
        raise StartError(
            f"the running server calls its version {text!r}, which cannot be compared with another",
            context=str(error), hint="versions look like V3.1.0; a build without git tags must set BUILDINFO_TAG",
        ) from error


def own_call_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment for our own calls of kwbase: nothing that redirects a client."""
    return {name: value for name, value in environ.items() if name not in CLIENT_VARIABLES}
