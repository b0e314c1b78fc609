"""How long a database is down: a bare SIGTERM and start, `kwdb-build restart`, `kwdb-build upgrade`.

One outside client watches all three alike. Two numbers each: from SIGTERM to the client's first answer (what the tool
calls downtime), and how long the client itself was without an answer (shorter: a server answers while it drains).

What the tool adds to a bare restart is the verified backup, the renames, journal records on disk, and a launcher that
makes the new process what the old one was: some 50 ms with next to no data. The miniature is up again after 0.13 s,
where that shows as a large ratio of the second number; a KWDB takes seconds.

What scales with the size of the data: after the stop the backup reads and hashes every file of the store once, and
compares it with the copy that was made while the server still ran (size and time of a file prove nothing: time-series
files change through shared mappings without either changing). Everything else, the copying itself included, is done
before the stop or does not depend on the data; the figure "one GiB more data" says what a GiB costs on this machine.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from kwdb_build.model import Artifact
from kwdb_build.server import capture
from tests.integration.tool import Tool
from tests.minikwdb.instance import Instance

_TICK_S = 0.02
_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Down:
    """One restart as the client saw it. from_sigterm_s: SIGTERM to the first answer; silence_s: without an answer."""

    from_sigterm_s: float
    silence_s: float


@dataclass(kw_only=True)
class Samples:
    """What was seen of each kind, and peak memory in MiB of the tool's processes."""

    bare: list[Down] = field(default_factory=list)
    restart: list[Down] = field(default_factory=list)
    upgrade: list[Down] = field(default_factory=list)
    parts: list[dict[str, float]] = field(default_factory=list)
    tool_mib: list[float] = field(default_factory=list)
    verification_mib: list[float] = field(default_factory=list)


@contextmanager
def watched(instance: Instance, into: list[Down]) -> Iterator[list[float]]:
    """Watch what happens in the block, which appends the unix time of its SIGTERM to the list that it gets."""
    client = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.client", str(instance.sql_port)], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    )
    assert client.stdout is not None
    told: list[float] = []
    try:
        client.stdout.readline()  # the first answer
        yield told
        out, _ = client.communicate(timeout=30)
        seen = json.loads(out)
        into.append(Down(from_sigterm_s=seen["again"] - told[0], silence_s=seen["longest_s"]))
    finally:
        client.kill()
        client.wait()


def bare(instance: Instance) -> float:
    """SIGTERM, wait for the end of the process, execute, wait for SQL; the time of SIGTERM."""
    pid = instance.pid()
    assert pid is not None
    watch = os.pidfd_open(pid)
    told = time.time()
    try:
        os.kill(pid, signal.SIGTERM)
        select.select([watch], [], [])
    finally:
        os.close(watch)
    instance.start()
    return told


def measure(tool: Tool, old: Artifact, root: Path, *, ref: str, pairs: int) -> Samples:
    """In each pair one upgrade, one restart by the tool and one bare one, the last two in turns."""
    samples = Samples()
    for number in range(pairs):
        with server(old, root / f"server-{number}") as instance:
            upgrade(tool, instance, ref, samples)
            kinds = [(samples.bare, lambda: bare(instance)), (samples.restart, lambda: restart(tool, instance))]
            for into, action in kinds if number % 2 else reversed(kinds):
                with watched(instance, into) as told:
                    told.append(action())
    return samples


def restarts(tool: Tool, old: Artifact, root: Path, *, pairs: int) -> Samples:
    """One running server, restarted by the tool and bare in turns, the order changed with each pair."""
    samples = Samples()
    with server(old, root / "server-restarts") as instance:
        for number in range(pairs):
            kinds = [(samples.bare, lambda: bare(instance)), (samples.restart, lambda: restart(tool, instance))]
            for into, action in kinds if number % 2 else reversed(kinds):
                with watched(instance, into) as told:
                    told.append(action())
    return samples


def captures(old: Artifact, root: Path, *, times: int) -> list[float]:
    """Milliseconds of a capture in a process that has loaded what it needs (the first one is not counted)."""
    with server(old, root / "server-captures") as instance:
        pid = instance.pid()
        assert pid is not None
        found = []
        for _ in range(times + 1):
            began = time.monotonic()
            capture.capture(pid)
            found.append(1000 * (time.monotonic() - began))
    return found[1:]


def ballast(tool: Tool, old: Artifact, root: Path, *, ref: str, mib: int) -> float:
    """Seconds of the backup part of the downtime with so much more data in the store."""
    samples = Samples()
    with server(old, root / "server-ballast") as instance:
        with (instance.store / "ballast").open("wb") as stream:
            for _ in range(mib):
                stream.write(os.urandom(_MIB))
        upgrade(tool, instance, ref, samples)
    return samples.parts[0]["backup"]


@contextmanager
def server(old: Artifact, root: Path) -> Iterator[Instance]:
    """A running old release with rows."""
    instance = Instance(root=root)
    instance.root.mkdir(parents=True)
    instance.install(old.path)
    try:
        instance.start()
        instance.write_rows()
        yield instance
    finally:
        instance.stop()


def restart(tool: Tool, instance: Instance) -> float:
    """`kwdb-build restart`; the time of its SIGTERM."""
    # The second look comes after the downtime.
    answer = tool("restart", "--store", str(instance.store), "-y", "--json", KWDB_BUILD_SETTLE_S="0.1")
    if answer.code != 0:
        raise RuntimeError(answer.err)
    return float(answer.json["restart"]["began"])


def upgrade(tool: Tool, instance: Instance, ref: str, samples: Samples) -> None:
    """`kwdb-build upgrade` to a build that is there, with the memory of its processes."""
    with watched(instance, samples.upgrade) as told:
        running = tool.begin("upgrade", ref, "--store", str(instance.store), "-y", "--json")
        seen = peaks(running.pid)
        out, err = running.communicate()
        if running.returncode != 0:
            raise RuntimeError(err)
        told.append(float(json.loads((tool.newest_run() / "stopped.json").read_text(encoding="utf-8"))["began"]))
    result: dict[str, Any] = json.loads(out)["result"]
    samples.parts.append(result["downtime_parts"])
    samples.tool_mib.append(seen.pop(running.pid) / _MIB)
    samples.verification_mib.append(max(seen.values(), default=0) / _MIB)


def peaks(pid: int) -> dict[int, int]:
    """High-water marks, in bytes, of the tool and of the Pythons it starts; returns when the tool has ended.

    Polled, as the kernel's own account of an ended process includes the processes that it waited for. A mark only
    grows, so that a poll late in a process's life has it.
    """
    seen: dict[int, int] = {pid: 0}
    tool = psutil.Process(pid)
    while True:
        try:
            if tool.status() == psutil.STATUS_ZOMBIE:
                return seen
            for process in (tool, *tool.children(recursive=True)):
                if process.pid == pid or Path(process.exe()).name.startswith("python"):
                    seen[process.pid] = max(seen.get(process.pid, 0), _high_water(process.pid))
        except (psutil.Error, OSError, StopIteration):
            if not tool.is_running():
                return seen
        select.select([], [], [], _TICK_S)


def _high_water(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmHWM:"))
