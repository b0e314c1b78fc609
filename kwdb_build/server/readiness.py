"""Decides when a started server may be called up: listening, then ready, then SQL, and the same node as before.

Each sign alone lies (seen on KWDB V3.1.0): READY=1 and the exit of --background's parent mean listening, /health
without ready=1 answers before the node can serve, and an SQL answer does not say which node gave it.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kwdb_build import sql
from kwdb_build.errors import StartError
from kwdb_build.model import NodeIdentity
from kwdb_build.server import address, capture, certificates, locks, logs, proc

if TYPE_CHECKING:
    from collections.abc import Callable

    from kwdb_build.console import Progress
    from kwdb_build.model import Address, Deployment
    from kwdb_build.server.start import Started

_PROBE_TIMEOUT_S = 2.0
_FIRST_PAUSE_S = 0.01
_PAUSE_S = 0.1
_LONGER = 1.15
"""Each round waits a little longer: a server that is up at once is noticed at once, a slow one is not pestered."""
_BANNER_GRACE_S = 20.0
"""A cluster node was seen to print its banner seconds after it was ready."""
OK = 200


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A server that is up. Times are seconds since its start; identity is what SQL and the banner agree on.

    banner is None when the server writes it nowhere that we can read.
    """

    pid: int
    started_at: float
    listening_s: float
    ready_s: float
    sql_s: float
    identity: NodeIdentity
    banner: logs.Banner | None = None


@dataclass(frozen=True, kw_only=True)
class Health:
    """One answer of the health page: status 0 when nobody answered, text what was said.

    stranger: somebody answered, with a certificate that is not the server's.
    """

    status: int
    text: str
    url: str = ""
    stranger: bool = False


def wait_ready(
    *,
    deployment: Deployment,
    started: Started,
    login: sql.Login,
    expect: NodeIdentity | None,
    timeout_s: float,
    progress: Progress,
) -> Ready:
    """Wait until the server serves, and prove that it is the node that it was.

    expect: the identity before the stop; None accepts any (its first start). Errors: StartError: it died (with its
    last words), it hangs, it is a new cluster (wrong store, lost volume) or another node. It is left as it is then:
    stop.abandon() ends it.
    """
    waiting = _Waiting(deployment=deployment, started=started, login=login, deadline=started.began + timeout_s,
                       timeout_s=timeout_s, progress=progress)
    try:
        listening_s = waiting.until("the server listens", waiting.listening)
        ready_s = waiting.until("the server is ready", waiting.ready)
        sql_s = waiting.until("SQL answers", waiting.answers)
        banner = waiting.banner(wanted=expect is not None)
        found = waiting.identity()
    finally:
        if started.notify:
            started.notify.close()
    check_identity(found, banner, expect)
    pid = waiting.pid()
    require_addresses(deployment, pid)
    return Ready(pid=pid, started_at=proc.start_time(pid), listening_s=listening_s, ready_s=ready_s, sql_s=sql_s,
                 identity=found, banner=banner)


@dataclass(kw_only=True)
class _Waiting:
    """One wait: what is known, and the deadline that all its phases share."""

    deployment: Deployment
    started: Started
    login: sql.Login
    deadline: float
    timeout_s: float
    progress: Progress
    seen: str = ""

    def until(self, what: str, sign: Callable[[], bool]) -> float:
        """Poll a sign until it is there; seconds since the start. A death is noticed at each round."""
        pause = _FIRST_PAUSE_S
        while not sign():
            self._require_life()
            if time.monotonic() >= self.deadline:
                raise self._late(what)
            self.progress.update(f"waiting: {what}" + (f" (now: {self.seen})" if self.seen else ""))
            time.sleep(pause)
            pause = min(_PAUSE_S, pause * _LONGER)
        return time.monotonic() - self.started.began

    def listening(self) -> bool:
        """READY=1, the end of the background parent, or any answer on the health page."""
        if self.started.background:
            return self.started.exit_code() == 0
        return bool(self.started.notify and self.started.notify.poll()) or self._health().status > 0

    def ready(self) -> bool:
        """/health?ready=1 says 200; a server without HTTP is judged by SQL alone."""
        return self.deployment.http is None or self._health().status == OK

    def answers(self) -> bool:
        """`SELECT 1` comes back."""
        try:
            with sql.Session(self.login, connect_timeout_s=2, statement_timeout_s=5) as session:
                return bool(session.value("SELECT 1") == 1)
        except sql.SqlError as error:
            self.seen = (error.context or error.message).splitlines()[0]
            return False

    def banner(self, *, wanted: bool) -> logs.Banner | None:
        """The banner of this start; a server can be told to log it nowhere, so that its absence is no error."""
        grace = time.monotonic() + (_BANNER_GRACE_S if wanted else 0.0)
        while (found := logs.parse_banner(logs.since(self.started.mark))) is None:
            self._require_life()
            if time.monotonic() >= grace:
                return None
            time.sleep(_PAUSE_S)
        return found

    def identity(self) -> NodeIdentity:
        """Who answers; a server that has died meanwhile is told as such."""
        try:
            return identity(self.login)
        except sql.SqlError as error:
            self._require_life()
            raise StartError(f"the server answers no more: {error.message}", context=error.context) from error

    def pid(self) -> int:
        """The server's own pid."""
        found = self.started.server_pid()
        if found is None:
            raise self._died(None)
        return found

    def _health(self) -> Health:
        answer = health(self.deployment)
        self.seen = answer.text
        return answer

    def _require_life(self) -> None:
        code = self.started.exit_code()
        if code is None and not self.started.background:
            return
        if self.started.background and (code is None or (code == 0 and self.started.server_pid() is not None)):
            return
        raise self._died(code)

    def _died(self, code: int | None) -> StartError:
        how = f"exit code {code}" if code is not None and code >= 0 else f"signal {-code}" if code else "no exit code"
        return StartError(
            f"the server ended before it was ready ({how})", context=self.started.last_words(),
            hint="its last lines above say why", log=self._log(),
        )

    def _late(self, what: str) -> StartError:
        return StartError(
            f"gave up after {self.timeout_s:g} s, still waiting until {what}",
            context="\n".join(filter(None, [f"last answer: {self.seen}" if self.seen else "",
                                            self.started.last_words()])),
            hint="look into its log; a large store may need --start-timeout", log=self._log(),
        )

    def _log(self) -> Path | None:
        directory = self.started.mark.logs
        return directory / "kwbase.log" if directory else self.started.stderr_log


def check_identity(found: NodeIdentity, banner: logs.Banner | None, expect: NodeIdentity | None) -> None:
    """StartError unless the started server is the node that is expected (None: any)."""
    if expect is None:
        return
    if banner is not None and banner.status != logs.RESTARTED:
        raise StartError(
            f"the server came up with '{banner.status}' instead of '{logs.RESTARTED}'",
            context=f"expected cluster {expect.cluster_id}, node {expect.node_id}; "
            f"this is cluster {banner.cluster_id}, node {banner.node_id}",
            hint="it does not run on its old store: a wrong --store or working directory, or a volume is not mounted",
        )
    said = [found] if banner is None else [found, NodeIdentity(cluster_id=banner.cluster_id, node_id=banner.node_id)]
    for one in said:
        if one != expect:
            raise StartError(
                "another node came up than the one that was stopped",
                context=f"expected cluster {expect.cluster_id}, node {expect.node_id}; "
                f"this is cluster {one.cluster_id}, node {one.node_id}",
                hint="it runs on another store: check --store, the working directory and the mounts",
            )


def health(deployment: Deployment) -> Health:
    """ask_health of a captured server."""
    if deployment.http is None:
        return Health(status=0, text="no HTTP address")
    return ask_health(deployment.http, page_certificates(deployment), name=deployment.sql.host)


def page_certificates(deployment: Deployment) -> Path | None:
    """Where the certificates are that a server's health page is known by; None where it is asked by plain http."""
    return None if capture.flags_of(deployment).plain_http else deployment.certs_dir


def ask_health(
    page: Address, certs_dir: Path | None, *, name: str, path: str = "/health?ready=1",
    timeout_s: float = _PROBE_TIMEOUT_S,
) -> Health:
    """Ask the health page once. Never raises: who does not answer has status 0.

    So has who does not show a secure server's own certificate: somebody else has the port, and a server of KWDB answers
    plain http beside TLS, whoever asks. certs_dir: as page_certificates says; name: the host in the certificate.
    """
    url = f"{'https' if certs_dir else 'http'}://{page}{path}"
    try:
        if certs_dir is None:
            return _ask(http.client.HTTPConnection(page.host, page.port, timeout=timeout_s), url, path)
        connection = http.client.HTTPSConnection(page.host, page.port, timeout=timeout_s, context=_any_certificate())
        with contextlib.closing(connection):
            connection.connect()
            shown = connection.sock.getpeercert(binary_form=True)
            if shown in certificates.shown_by_node(certs_dir) or _of_its_authority(page, certs_dir, name, timeout_s):
                return _ask(connection, url, path)
            return Health(
                status=0, url=url, stranger=True,
                text=f"the certificate shown at {page} is not this server's ({certs_dir}): "
                "another server has that port",
            )
    except OSError as error:
        return Health(status=0, url=url, text=str(error))


def _any_certificate() -> ssl.SSLContext:
    """What is shown is compared afterwards: a certificate names hosts that we may not dial."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _of_its_authority(page: Address, certs_dir: Path, name: str, timeout_s: float) -> bool:
    """Whether the certificate that is shown (renewed on disk since it was read) is one of its CA for its name."""
    for authority in ("ca-ui.crt", "ca.crt"):
        with contextlib.suppress(OSError, ValueError):
            context = ssl.create_default_context(cafile=str(certs_dir / authority))
            with (
                socket.create_connection((page.host, page.port), timeout=timeout_s) as plain,
                context.wrap_socket(plain, server_hostname=name),
            ):
                return True
    return False


def _ask(connection: http.client.HTTPConnection, url: str, path: str) -> Health:
    with contextlib.closing(connection):
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            body = " ".join(answer.read(4096).decode("utf-8", "replace").split())
        except http.client.HTTPException as error:
            return Health(status=0, url=url, text=f"no HTTP: {error!r}")
        return Health(status=answer.status, url=url, text=f"HTTP {answer.status} {body}")


def serves(deployment: Deployment, login: sql.Login | None = None) -> bool:
    """Whether a server takes clients just now: one that drains does not.

    By its health page; where nobody answers that, by SQL (login: root's without a password when None).
    """
    if (status := health(deployment).status) != 0:
        return status == OK
    login = login or sql.Login(address=deployment.sql, certs_dir=deployment.certs_dir)
    with (
        contextlib.suppress(sql.SqlError),
        sql.Session(login, connect_timeout_s=2, statement_timeout_s=5) as session,
    ):
        return bool(session.value("SELECT 1") == 1)
    return False


def identity(login: sql.Login) -> NodeIdentity:
    """Cluster and node id as the server itself says by SQL. Errors: sql.SqlError.

    kwdb_internal.node_build_info is about the node that answers, in V2.2.2 to V3.2.1 alike.
    """
    with sql.Session(login, connect_timeout_s=5, statement_timeout_s=30) as session:
        rows = session.rows("SELECT node_id, value FROM kwdb_internal.node_build_info WHERE field = 'ClusterID'")
        if not rows:
            raise sql.SqlError("the server does not say which cluster it belongs to")
        return NodeIdentity(cluster_id=str(rows[0][1]), node_id=str(rows[0][0]))


def require_still_well(deployment: Deployment, ready: Ready, login: sql.Login) -> None:
    """A second look: the same process, ready, the same node, the captured libraries and addresses. Errors: StartError.

    A process that has changed was restarted by somebody: under a supervisor with Restart= that is a crash loop.
    """
    if not proc.is_alive(ready.pid, ready.started_at):
        others = [pid for store in deployment.stores if (pid := locks.holder(store.path))]
        raise StartError(
            f"the server (pid {ready.pid}) died after it had answered",
            context=f"now pid {others[0]} has the store open: a crash loop?" if others else "nobody has the store open",
            hint="its log says why; the last start was by the captured command",
            log=(directory / "kwbase.log") if (directory := capture.log_directory(deployment)) else None,
        )
    if deployment.http is not None and (page := health(deployment)).status != OK:
        raise StartError("the server was ready and is not any more", context=page.text)
    try:
        found = identity(login)
    except sql.SqlError as error:
        raise StartError(f"the server answers no more: {error.message}", context=error.context) from error
    check_identity(found, None, ready.identity)
    require_addresses(deployment, ready.pid)
    loaded = {name: path.resolve() for name, path in loaded_libraries(ready.pid).items()}
    for name, path in deployment.libraries.items():
        if loaded.get(name) != path.resolve():
            raise StartError(f"{name} is loaded from {loaded.get(name)} and no longer from {path}")


def require_addresses(deployment: Deployment, pid: int) -> None:
    """StartError unless a process itself listens where the captured server did."""
    place = capture.flags_of(deployment).socket
    if place and Path(place) not in address.unix_sockets(pid):
        raise StartError(
            f"the server does not listen on its Unix socket {place}", hint="is its --socket-dir there, and writable?"
        )
    sockets = address.listening(pid)
    for name, wanted in (("SQL", deployment.sql), ("HTTP", deployment.http)):
        if wanted is not None and all(one.port != wanted.port for one in sockets):
            raise StartError(
                f"the server does not listen on its {name} port {wanted.port}",
                context="it listens on: " + (", ".join(map(str, sockets)) or "nothing"),
                hint="who answers there is somebody else: look with `ss -ltnp`",
            )


def loaded_libraries(pid: int) -> dict[str, Path]:
    """Name -> file of KWDB's own libraries that a process really maps; a removed file keeps its ' (deleted)'."""
    return {name: Path(path) for name, path in proc.mapped_libraries(pid, capture.LIBRARIES).items()}
