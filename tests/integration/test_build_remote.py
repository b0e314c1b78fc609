"""A shared compiler cache while kwdb-build has no file descriptor left."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kwdb_build.build.remote import shared
from kwdb_build.console import Progress
from tests.integration.redisbox import KEY, resp, through

GET_NOTHING, NOTHING = resp("GET", KEY), b"$-1\r\n"
_SPARE = 40
"""Descriptors that a child may have beside those it has."""


class Said(Progress):
    """Tells the parent what a person would be told."""

    def note(self, text: str) -> None:
        print(f"note: {text}", flush=True)


class Greed(threading.Thread):
    """Takes every descriptor that is free or becomes free, until it is told to give them back."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._enough = threading.Event()
        self.full = threading.Event()

    def run(self) -> None:
        taken: list[int] = []
        while not self._enough.is_set():
            try:
                taken.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                self.full.set()
                self._enough.wait(0.001)
        for descriptor in taken:
            os.close(descriptor)

    def give_back(self) -> None:
        self._enough.set()
        self.join()


def child(url: str, password_file: str, scratch: str) -> None:
    """Offer the cache, and do with the descriptors what the parent says."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208  # numbers, no paths
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + _SPARE, hard))
    greed = Greed()
    before = set(threading.enumerate())
    with shared(url, Path(password_file), scratch=Path(scratch), progress=Said()):
        for line in sys.stdin:
            if line == "take\n":
                greed = Greed()
                greed.start()
                greed.full.wait()
            elif line == "give back\n":
                greed.give_back()
            else:
                break
            print("done", flush=True)
    serving = set(threading.enumerate()) - before - {greed}
    for thread in serving:
        thread.join(30)
    print(f"left: {sum(thread.is_alive() for thread in serving)}", flush=True)


class Child:
    """The process of child(), by its words."""

    def __init__(self, *words: str) -> None:
        code = f"from tests.integration.test_build_remote import child; child(*{words!r})"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=Path(__file__).parents[2],
        )

    def tell(self, word: str) -> list[str]:
        """Say it; what came until it was done, or until the end."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        said: list[str] = []
        for line in self.process.stdout:
            if line == "done\n":
                break
            said.append(line.rstrip("\n"))
        return said


@pytest.fixture
def place(tmp_path: Path, redis: tuple[int, str]) -> Path:
    (tmp_path / "password").write_text(redis[1])
    return tmp_path


@contextlib.contextmanager
def offering(place: Path, port: int) -> Iterator[Child]:
    made = Child(f"redis://127.0.0.1:{port}", str(place / "password"), str(place))
    try:
        yield made
    finally:
        made.process.kill()
        made.process.communicate()


@contextlib.contextmanager
def waiting(place: Path) -> Iterator[socket.socket]:
    """A compiler's connection that the kernel took and accept() cannot.

    An accept() that was there before the shortage holds a descriptor of its own: who comes to that one is sent away.
    """
    for _ in range(100):
        with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(ConnectionResetError, BrokenPipeError):
            client.settimeout(2)
            client.connect(str(place / "remote" / "redis.sock"))
            client.sendall(GET_NOTHING)
            try:
                assert client.recv(1) == b"", "served without a descriptor"
            except TimeoutError:
                yield client
                return
    pytest.fail("accept() always finds a descriptor: the test shows nothing")


def test_a_compiler_that_finds_no_descriptor_left_is_served_when_there_is_one(
    redis: tuple[int, str], place: Path
) -> None:
    with offering(place, redis[0]) as child:
        assert child.tell("take") == []
        with waiting(place) as client:
            assert child.tell("give back") == [], "nobody gave the cache up for it"
            client.settimeout(60)
            assert client.recv(100) == NOTHING
        assert through(place, GET_NOTHING) == NOTHING
        child.tell("take")
        with waiting(place):
            assert child.tell("end") == ["left: 0"], "the end of a build does not wait for a descriptor"
        assert child.process.wait(60) == 0


def test_a_compiler_that_is_sent_away_for_want_of_a_descriptor_is_the_only_one(
    redis: tuple[int, str], place: Path
) -> None:
    with offering(place, redis[0]) as child:
        child.tell("take")
        assert through(place, GET_NOTHING) == b""
        assert child.tell("give back") == []
        assert through(place, GET_NOTHING) == NOTHING
        assert child.tell("end") == ["left: 0"]
