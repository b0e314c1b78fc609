"""How long the search for servers takes among many other processes, against one bare read of every command line."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

from kwdb_build.server.discover import find_servers

_CROWD = 'i=0; while [ $i -lt "$1" ]; do sleep 3600 & i=$((i + 1)); done; echo ready; wait'


def measure(others: int, times: int) -> tuple[list[float], list[float]]:
    """Milliseconds of our search and of the bare reads, in turns, with that many processes more on the machine."""
    with subprocess.Popen(
        ["sh", "-c", _CROWD, "sh", str(others)], stdout=subprocess.PIPE, start_new_session=True
    ) as crowd:
        try:
            assert crowd.stdout is not None
            crowd.stdout.readline()
            pairs = [(_ms(find_servers), _ms(_bare)) for _ in range(times)]
        finally:
            os.killpg(crowd.pid, signal.SIGKILL)
    return [ours for ours, _ in pairs], [bare for _, bare in pairs]


def _ms(action: object) -> float:
    began = time.perf_counter()
    action()  # type: ignore[operator]
    return 1000 * (time.perf_counter() - began)


def _bare() -> None:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                (entry / "cmdline").read_bytes()
