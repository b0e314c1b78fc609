"""What the steps of one run share. Every result is a file of the run, so that a later process finds the same."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kwdb_build.files import load_json
from kwdb_build.model import Artifact, Deployment, NodeIdentity, SourceTree
from kwdb_build.server import saved, startflags, supervisor
from kwdb_build.server.script import Commands, parse
from kwdb_build.sql import Login
from kwdb_build.upgrade.workshop import Workshop
from kwdb_build.verify import baseline as baselines

if TYPE_CHECKING:
    from pathlib import Path

    from kwdb_build.config import Settings
    from kwdb_build.console import Console
    from kwdb_build.upgrade.interrupts import Interrupts
    from kwdb_build.upgrade.journal import Journal
    from kwdb_build.upgrade.rundir import RunDirectory, UpgradeRequest


@dataclass(kw_only=True)
class Context:
    """One run in one process."""

    settings: Settings
    request: UpgradeRequest
    run: RunDirectory
    console: Console
    interrupts: Interrupts
    journal: Journal
    assume_yes: bool = False
    held: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def deployment(self) -> Deployment:
        """The server as captured before anything changed."""
        return saved.load(self.run.deployment)

    @property
    def renewed(self) -> Deployment:
        """The server as the new version is started: the captured one, but for flags that a person changed."""
        return renewed(self.deployment, self.request)

    @cached_property
    def supervisor(self) -> supervisor.Supervisor:
        """Who stops and starts the server."""
        return supervisor.of(self.deployment, commands_of(self.settings, self.run.logs))

    @cached_property
    def tree(self) -> SourceTree:
        """The fetched source."""
        return load_json(SourceTree, self.run.source)

    @cached_property
    def artifact(self) -> Artifact:
        """The build that goes in."""
        return load_json(Artifact, self.run.artifact)

    @cached_property
    def baseline(self) -> baselines.Baseline:
        """What the old server held."""
        return baselines.load(self.run.baseline)

    @cached_property
    def workshop(self) -> Workshop:
        """Source to artifact."""
        return Workshop(self.settings, self.console, self.run.logs)

    @property
    def login(self) -> Login:
        """How our own checks reach SQL."""
        return Login(
            address=self.deployment.sql, user=self.settings.sql_user, certs_dir=self.deployment.certs_dir,
            password_file=self.settings.sql_password_file,
        )

    @property
    def identity(self) -> NodeIdentity:
        """Who the server was before."""
        return self.baseline.identity

    @property
    def store_paths(self) -> tuple[Path, ...]:
        """All store directories."""
        return tuple(store.path for store in self.deployment.stores)

    @property
    def backup_dir(self) -> Path:
        """Where this run's copy of the data is."""
        return self.run.path / "backup"


def renewed(deployment: Deployment, request: UpgradeRequest) -> Deployment:
    """The deployment with the flags of its start command changed as asked for. Errors: UsageError."""
    if not request.drop_flags and not request.add_flags:
        return deployment
    argv = startflags.edited(deployment.start.argv, drop=request.drop_flags, add=request.add_flags)
    return dataclasses.replace(deployment, start=dataclasses.replace(deployment.start, argv=argv))


def commands_of(settings: Settings, logs: Path) -> Commands:
    """The user's own commands for a stop and a start, as the settings have them. Errors: UsageError."""
    return Commands(
        stop=parse(settings.stop_cmd, "--stop-cmd"), start=parse(settings.start_cmd, "--start-cmd"), log_dir=logs,
        start_timeout_s=settings.start_timeout_s,
    )
