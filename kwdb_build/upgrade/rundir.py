"""Run directories: all that one upgrade knows, on disk, so that another process can go on with it."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from kwdb_build.errors import UsageError
from kwdb_build.files import PRIVATE, load_json, private_directory, read_json, write_json
from kwdb_build.source.gather import SourceChoice
from kwdb_build.upgrade import room

_T = TypeVar("_T")
_RUN_ID = re.compile(r"^\d{4,}-\d{8}T\d{6}Z$")


@dataclass(frozen=True, kw_only=True)
class UpgradeRequest:
    """What a person asked for; written into the run so that a resume does the same."""

    ref: str
    url: str
    redirects: tuple[str, ...] = ()
    choice: SourceChoice = field(default_factory=SourceChoice)
    pid: int | None = None
    store: Path | None = None
    listen: str | None = None
    allow_same: bool = False
    no_backup: bool = False
    no_trial: bool = False
    drop_flags: tuple[str, ...] = ()
    add_flags: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)


class RunDirectory:
    """Paths of one run. Everything in it is readable by its owner only, as it holds a captured environment."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.id = path.name
        self.logs = path / "logs"
        self.journal = path / "journal.jsonl"
        self.request = path / "request.json"
        self.deployment = path / "deployment.json"
        self.source = path / "source.json"
        self.checks = path / "checks.json"
        self.artifact = path / "artifact.json"
        self.baseline = path / "baseline.json"
        self.replaced = path / "replaced"
        self.set_aside = path / "set-aside"
        self.trial = path / "trial.json"
        self.stopped = path / "stopped.json"
        self.launched = path / "launched.json"
        self.told = path / "told.json"
        self.log_mark = path / "log-mark.json"
        self.started = path / "started.json"
        self.verified = path / "verify"
        self.result = path / "result.json"
        self.report = path / "report.html"

    @classmethod
    def create(cls, home: Path) -> RunDirectory:
        """A new run with the next number (the caller holds the lock)."""
        runs = private_directory(home / "runs")
        numbers = [int(entry.name.split("-")[0]) for entry in runs.iterdir() if _RUN_ID.match(entry.name)]
        name = f"{max(numbers, default=0) + 1:04d}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
        run = cls(runs / name)
        private_directory(run.path)
        private_directory(run.logs)
        return run

    @classmethod
    def all(cls, home: Path) -> tuple[RunDirectory, ...]:
        """All runs, oldest first."""
        runs = home / "runs"
        if not runs.is_dir():
            return ()
        found = [entry for entry in runs.iterdir() if _RUN_ID.match(entry.name)]
        return tuple(cls(entry) for entry in sorted(found, key=lambda entry: int(entry.name.split("-")[0])))

    @classmethod
    def find(cls, home: Path, name: str | None) -> RunDirectory:
        """The named run (its number is enough), or the newest."""
        runs = cls.all(home)
        if not runs:
            raise UsageError(f"there is no run yet under {home}", hint="`kwdb-build upgrade REF` makes one")
        if name is None:
            return runs[-1]
        for run in runs:
            if run.id == name or (name.isdigit() and int(run.id.split("-")[0]) == int(name)):
                return run
        raise UsageError(f"no run {name!r} under {home}", hint=f"the newest is {runs[-1].id}; see `kwdb-build history`")

    def log(self, step: str) -> Path:
        """Log file of a step."""
        return self.logs / f"{step}.log"

    def save(self, path: Path, value: Any) -> None:
        """Write one of the run's files, for the owner only."""
        room.spending(self.path, lambda: write_json(path, value, mode=PRIVATE))

    def load(self, kind: type[_T], path: Path) -> _T:
        """Read one of the run's files."""
        return load_json(kind, path)

    def read_result(self) -> dict[str, Any] | None:
        """The result, when the run ended."""
        return dict(read_json(self.result)) if self.result.exists() else None
