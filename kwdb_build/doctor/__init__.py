"""kwdb-build's own surroundings, looked at without changing anything, in words that can be pasted into a bug report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kwdb_build.doctor import home, network, programs
from kwdb_build.doctor.redaction import without_secrets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kwdb_build.config import Settings
    from kwdb_build.model import CheckResult

GROUPS = {
    "tool": "kwdb-build and this system", "programs": "programs", "engines": "where builds can run",
    "network": "networks", "home": "home, caches and locks", "runs": "runs and servers",
}
"""Group of a row -> its title."""


def examine(settings: Settings, *, online: bool) -> tuple[CheckResult, ...]:
    """Every row, without secrets. online: also ask the source's host, the package mirrors and the wheel index."""
    return tuple(without_secrets(row) for row in _rows(settings, online=online))


def _rows(settings: Settings, *, online: bool) -> Iterator[CheckResult]:
    yield from programs.this_system()
    yield from programs.settings_in_force(settings)
    yield from programs.programs()
    yield from programs.engines(settings)
    yield from network.configured(settings)
    yield from network.reachable(settings, online=online)
    yield from home.directory(settings.home)
    yield from home.caches(settings.home)
    yield from home.locks(settings.home)
    yield from home.runs(settings.home)
