"""Getting the source: bytes on the wire and seconds, against the commands of KWDB's README.

The miniature's repositories with a generated history on top, smaller than KWDB's and of its shape: more than half of
the bytes of a release are tests in qa/, and the packed history is much larger than a packed release. A smart HTTP server on loopback counts what it sends. It answers in one piece and costs both sides
the same; over a real network the bytes decide.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kwdb_build.console import Console
from kwdb_build.source.fetch import SourceRequest, fetch
from kwdb_build.source.profiles import Profile
from kwdb_build.source.reference import Redirect
from tests.bench.figures import Figure
from tests.minikwdb.repositories import SUBMODULES, UPSTREAM, MiniRepositories, make_repositories
from tests.unit.source.gitserver import Behaviour, http_server

OLD, NEW = "V9.0.0", "V9.1.0"
COMMITS = 250
FILES, TESTS = 700, 300
_WORDS = 4000
_ENVIRONMENT = {
    "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C",
}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What one way to the source cost."""

    bytes: int
    seconds: float


def _git(where: Path, *args: str, config: tuple[tuple[str, str], ...] = (), stdin: bytes | None = None) -> str:
    pairs = {
        f"GIT_CONFIG_{part}_{number}": text
        for number, pair in enumerate(config) for part, text in zip(("KEY", "VALUE"), pair, strict=True)
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_") and "proxy" not in name.lower()}
    environment = kept | _ENVIRONMENT | pairs | {"GIT_CONFIG_COUNT": str(len(config))}
    done = subprocess.run(["git", *args], cwd=where, input=stdin, env=environment, capture_output=True, check=True)
    return done.stdout.decode().strip()


class _Writer:
    """Text that packs about as well as source code does, the same every time."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)
        letters = "abcdefghijklmnopqrstuvwxyz"
        self._words = ["".join(self._random.choices(letters, k=self._random.randint(2, 10))) for _ in range(_WORDS)]

    def line(self) -> bytes:
        return (" ".join(self._random.choices(self._words, k=self._random.randint(3, 12))) + "\n").encode()

    def file(self, lines: int) -> list[bytes]:
        return [self.line() for _ in range(lines)]

    def change(self, content: list[bytes]) -> None:
        for _ in range(self._random.randint(3, 30)):
            content[self._random.randrange(len(content))] = self.line()

    def some(self, names: list[str], count: int) -> list[str]:
        return self._random.sample(names, count)


def _history(path: Path, *, files: dict[str, int], commits: int, links: dict[str, str] | None = None) -> None:
    """Commits on top of master, each with a few changed files; a tag at four fifths and one at the end."""
    writer = _Writer(path.name)
    contents = {name: writer.file(lines) for name, lines in files.items()}
    parts: list[bytes] = []
    for number in range(commits):
        changed = list(contents) if number == 0 else writer.some(list(contents), 6)
        if number:
            for name in changed:
                writer.change(contents[name])
        who = b"bench <bench@example.org> %d +0000" % (1_770_000_000 + number * 60)
        parts += [b"commit refs/heads/master\nauthor ", who, b"\ncommitter ", who, b"\ndata 6\nchange\n"]
        parts += [b"from refs/heads/master^0\n"] if number == 0 else []
        for name in changed:
            data = b"".join(contents[name])
            parts += [b"M 100644 inline %s\ndata %d\n" % (name.encode(), len(data)), data, b"\n"]
        if number == 0:
            parts += [b"M 160000 %s %s\n" % (commit.encode(), name.encode()) for name, commit in (links or {}).items()]
        if number in {commits * 4 // 5, commits - 1}:
            tag = NEW if number == commits - 1 else OLD
            parts += [b"reset refs/tags/%s\nfrom refs/heads/master\n" % tag.encode()]
    _git(path, "fast-import", "--quiet", stdin=b"".join(parts))
    _git(path, "repack", "-adq")


def make_upstream(root: Path) -> MiniRepositories:
    """The repositories as a host would have them, below root."""
    made = make_repositories(root / "kwdb")
    pins = {}
    for name, path in made.submodules.items():
        _history(path, files={f"vendor/p{number}.go": 120 for number in range(120)}, commits=60)
        pins[SUBMODULES[name]] = _git(path, "rev-parse", "master~3")
    files = {f"kwbase/pkg/p{number % 40}/f{number}.go": 90 for number in range(FILES)}
    files |= {f"qa/regression/q{number}.out": 260 for number in range(TESTS)}
    _history(made.main, files=files, commits=COMMITS, links=pins)
    return made


def measure(place: Path, console: Console) -> list[Figure]:
    """All figures; aims are the issue's."""
    place.mkdir(parents=True, exist_ok=True)
    upstream = make_upstream(place / "upstream")
    with http_server(upstream.root.parent) as (base, behaviour):
        behaviour.partial = True
        redirect = (f"url.{base}kwdb/.insteadOf", UPSTREAM)
        readme = _counted(behaviour, lambda: _readme(place / "readme", redirect))
        remote = _counted(behaviour, lambda: _readme(place / "readme-remote", redirect, "--remote"))
        ours = _Ours(place / "home", console, f"{base}kwdb/")
        first = _counted(behaviour, lambda: ours.fetch(OLD))
        second = _counted(behaviour, lambda: ours.fetch(NEW))
        commit = _git(upstream.main, "rev-parse", f"{NEW}^{{commit}}")
        again = [_counted(behaviour, lambda: ours.fetch(commit)) for _ in range(5)]
        behaviour.partial = False
        whole = _counted(behaviour, lambda: _Ours(place / "whole", console, f"{base}kwdb/").fetch(OLD))
    return list(_figures(readme, remote, first, second, again, whole))


def _figures(
    readme: Sample, remote: Sample, first: Sample, second: Sample, again: list[Sample], whole: Sample
) -> Iterator[Figure]:
    mib = 1 << 20
    bare = "git clone, git submodule update --init"
    for name, seen, against, aim, note in (
        ("first fetch, bytes", first, readme, 0.25, f"bare: {bare}"),
        ("first fetch, bytes, against --remote", first, remote, 0.25, f"bare: {bare} --remote"),
        ("second version, bytes", second, first, None, "bare: our first fetch"),
        ("first fetch from a host without partial transfer, bytes", whole, readme, None, f"bare: {bare}"),
    ):
        yield Figure(
            name=name, unit="MiB", ours=seen.bytes / mib, bare=against.bytes / mib, ratio=seen.bytes / against.bytes,
            judged="ratio", aim=aim, note=note,
        )
    for name, seen, against in (("first fetch", first, readme), ("second version", second, readme)):
        yield Figure(
            name=f"{name}, seconds", unit="s", ours=seen.seconds, bare=against.seconds,
            ratio=seen.seconds / against.seconds, note=f"bare: {bare}; no network between",
        )
    seconds = sorted(sample.seconds for sample in again)
    yield Figure(
        name="the same commit again", unit="s", ours=seconds[len(seconds) // 2], aim=1.0,
        note=f"{sum(sample.bytes for sample in again)} bytes from the network", samples={"ours": seconds},
    )


def _counted(behaviour: Behaviour, work: object) -> Sample:
    before, began = behaviour.sent_bytes, time.monotonic()
    assert callable(work)
    work()
    return Sample(bytes=behaviour.sent_bytes - before, seconds=time.monotonic() - began)


def _readme(place: Path, redirect: tuple[str, str], *more: str) -> None:
    """What KWDB's README says to do."""
    place.parent.mkdir(exist_ok=True)
    _git(place.parent, "clone", "--quiet", f"{UPSTREAM}kwdb.git", str(place), config=(redirect,))
    _git(place, "checkout", "--quiet", OLD)
    _git(place, "submodule", "--quiet", "update", "--init", *more, config=(redirect,))
    shutil.rmtree(place)


class _Ours:
    def __init__(self, home: Path, console: Console, base: str) -> None:
        self._home = home
        self._console = console
        self._profile = Profile(name="bench", redirects=(Redirect(prefix=UPSTREAM, replacement=base),))

    def fetch(self, ref: str) -> None:
        request = SourceRequest(url=f"{UPSTREAM}kwdb.git", ref=ref, profiles=(self._profile,))
        fetch(request, home=self._home, progress=self._console, log=self._home / "fetch.log")
