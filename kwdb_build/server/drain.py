"""What a draining server still waits for: its clients, and its own last words.

The HTTP port is gone a moment after SIGTERM and new SQL clients are refused (recordings), so that the connections are
counted where the kernel keeps them, and the rest is read in the server's log.
"""

from __future__ import annotations

import contextlib
import re
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kwdb_build.server import capture, logs, proc, readiness

if TYPE_CHECKING:
    from collections.abc import Callable

    from kwdb_build.model import Deployment

_EVERY_S = 1.0
_LOG_HEAD = re.compile(r"^[IWEF]\d{6} \S+ +\d+ +\S+:\d+ +(?:\[\S*\] +)?")
_WORTH = re.compile(r"drain|quiesc|shut|lease|waiting", re.IGNORECASE)
_LONGEST = 80
_SERVES_S = 5.0
"""A server that serves this long after the stop commands of others was not told by them."""


class Drain:
    """One drain under way. words() is cheap enough to be asked at each tick."""

    def __init__(self, deployment: Deployment, moment: logs.Mark) -> None:
        self._deployment = deployment
        self._moment = moment
        self._words = ""
        self._asked = float("-inf")

    def words(self) -> str:
        """Such as '3 client connections open; initiating graceful shutdown of server'; '' when nothing is known."""
        if time.monotonic() - self._asked >= _EVERY_S:
            self._asked = time.monotonic()
            clients = connections(self._deployment.pid, self._deployment.sql.port)
            told = last_line(logs.since(self._moment))
            self._words = "; ".join(filter(None, [count_in_words(clients), told]))
        return self._words


def begun(deployment: Deployment) -> bool | None:
    """Whether a server has been told to stop, whoever did it, by its own log; None when it has none to be read.

    kwbase names the pid in the name of each log file; another process may have had it before.
    """
    directory = capture.log_directory(deployment)
    since = time.time() - (proc.now() - deployment.started_at) - 1
    known = None
    for path in directory.glob(f"kwbase.*.{deployment.pid:06}.log") if directory else ():
        with contextlib.suppress(OSError):
            if path.stat().st_mtime >= since:
                if logs.DRAINING in path.read_text(encoding="utf-8", errors="replace"):
                    return True
                known = False
    return known


@dataclass(kw_only=True)
class AfterOthers:
    """Sends SIGTERM once the stop commands of others have ended, if they have not. ended: whether they have.

    Only to a server that goes on serving: a second SIGTERM would end the drain, and one whose drain cannot be seen
    (logs elsewhere, no answer) is rather waited for.
    """

    ended: Callable[[], bool]
    server: Deployment
    moment: logs.Mark
    quiet_at: float | None = None
    done: bool = False

    def __call__(self, watch: proc.Watch) -> None:
        """At each tick of the wait."""
        if self.done or not self.ended():
            return
        now = time.monotonic()
        if self.quiet_at is None or logs.DRAINING in logs.since(self.moment) or not readiness.serves(self.server):
            self.quiet_at = now
        elif now - self.quiet_at >= _SERVES_S:
            self.done = True
            watch.send(signal.SIGTERM)


def connections(pid: int, port: int) -> int | None:
    """Established connections of clients to a server's SQL port; None when this user may not know."""
    import psutil

    with contextlib.suppress(psutil.Error):
        return sum(
            one.status == psutil.CONN_ESTABLISHED and bool(one.laddr) and one.laddr.port == port
            for one in psutil.Process(pid).net_connections(kind="tcp")
        )
    return None


def count_in_words(clients: int | None) -> str:
    """3 -> '3 client connections open'; nothing for None."""
    if clients is None:
        return ""
    return f"{clients or 'no'} client connection{'' if clients == 1 else 's'} open"


def last_line(text: str) -> str:
    """The last line of a log that is about the drain, without its time and place."""
    for line in reversed(text.splitlines()):
        said = _LOG_HEAD.sub("", line).strip()
        if _WORTH.search(said):
            return said[:_LONGEST]
    return ""
