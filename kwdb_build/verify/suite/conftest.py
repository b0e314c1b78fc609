"""What every check of the suite starts from: the request, the baseline, a fresh SQL session."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from kwdb_build.server import proc
from kwdb_build.sql import Session
from kwdb_build.verify import baseline as baselines
from kwdb_build.verify import request as requests
from kwdb_build.verify.plugin import REQUEST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kwdb_build.verify.baseline import Baseline
    from kwdb_build.verify.request import VerifyRequest

_wanted_key = pytest.StashKey["VerifyRequest"]()
_before_key = pytest.StashKey["Baseline"]()
_PAUSE_S = 0.5


def pytest_configure(config: pytest.Config) -> None:
    """Read both once; a request or baseline that cannot be read ends the run before any check."""
    wanted = requests.load(config.getoption(REQUEST))
    config.stash[_wanted_key] = wanted
    config.stash[_before_key] = baselines.load(wanted.baseline)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One check a table, database, user or setting, so that the report names each."""
    before = metafunc.config.stash[_before_key]
    lists: dict[str, dict[str, Any]] = {
        "table": {table.name: table for table in before.tables},
        "series": {table.name: table for table in before.time_series},
        "database": before.databases,
        "user": before.users,
        "setting": before.settings,
    }
    for name, values in lists.items():
        if name in metafunc.fixturenames:
            given = list(values.items()) if name in {"database", "user", "setting"} else list(values.values())
            metafunc.parametrize(name, given, ids=list(values))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Nothing of a kind (no user setting, say) is no check, not a skipped one."""
    items[:] = [item for item in items if not (isinstance(item, pytest.Function) and item.name.endswith("[NOTSET]"))]


@pytest.fixture
def wanted(pytestconfig: pytest.Config) -> VerifyRequest:
    """What must be true."""
    return pytestconfig.stash[_wanted_key]


@pytest.fixture
def before(pytestconfig: pytest.Config) -> Baseline:
    """What the old server held."""
    return pytestconfig.stash[_before_key]


@pytest.fixture
def session(wanted: VerifyRequest) -> Iterator[Session]:
    """A connection of this check's own: one that broke spoils no other check."""
    with Session(wanted.login, statement_timeout_s=wanted.statement_timeout_s) as opened:
        yield opened


@pytest.fixture
def eventually(wanted: VerifyRequest) -> Callable[[Callable[[], bool]], bool]:
    """Whether something becomes true in time: liveness lags behind a start by some seconds."""

    def wait(is_so: Callable[[], bool]) -> bool:
        end = time.monotonic() + wanted.retry_s
        while not is_so():
            # A dead server gets no better, and each second of waiting is downtime before the rollback.
            if time.monotonic() > end or (wanted.pid and not proc.is_alive(wanted.pid, wanted.started_at)):
                return False
            time.sleep(_PAUSE_S)
        return True

    return wait
