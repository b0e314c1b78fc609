"""Ports for servers of tests: two that ask at the same time do not get the same one."""

from __future__ import annotations

import itertools
import os
import socket

# Below the range that the kernel gives to outgoing connections, so that none of those takes a port between the moment
# it was found free and the moment a server listens. Each worker of pytest-xdist has a slice of its own.
_FIRST, _SLICE, _SLICES = 12_000, 2_000, 10
_worker = int("".join(filter(str.isdigit, os.environ.get("PYTEST_XDIST_WORKER", "9"))) or 9) % _SLICES
_turn = itertools.count(os.getpid() * 7)  # the pid keeps apart runs of the suite at the same time


def free_port() -> int:
    """A port of loopback that nobody listens on, and that this process was not given lately."""
    for _ in range(_SLICE):
        port = _FIRST + _worker * _SLICE + next(_turn) % _SLICE
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("every port of this worker's slice is taken")
