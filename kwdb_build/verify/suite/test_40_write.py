"""It can write: a row goes in, is read, and is deleted again, in a database that is gone afterwards."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from kwdb_build.sql import Session, SqlError, identifier

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kwdb_build.verify.baseline import Baseline
    from kwdb_build.verify.plugin import Check
    from kwdb_build.verify.request import VerifyRequest

_MOMENT = "2026-01-01 00:00:00+00:00"
_UNSUPPORTED = {"0A000", "42601"}


@contextlib.contextmanager
def scratch(wanted: VerifyRequest, session: Session, kind: str, suffix: str) -> Iterator[str]:
    """A database for one check; dropped by a connection of its own, as the check's may be broken by then."""
    name = identifier(f"{wanted.scratch}_{suffix}")
    session.execute(f"CREATE {kind} {name}")
    try:
        yield name
    finally:
        with contextlib.suppress(SqlError), Session(wanted.login, statement_timeout_s=60) as cleaner:
            cleaner.execute(f"DROP DATABASE IF EXISTS {name} CASCADE")


def test_relational(wanted: VerifyRequest, session: Session, check: Check) -> None:
    """write, read, delete: relational."""
    check.required = "insert, read, update, delete"
    with scratch(wanted, session, "DATABASE", "r") as database:
        table = f"{database}.public.probe"
        session.execute(f"CREATE TABLE {table} (id INT4 PRIMARY KEY, word VARCHAR(32))")
        session.execute(f"INSERT INTO {table} VALUES (1, 'before'), (2, 'other')")  # noqa: S608
        session.execute(f"UPDATE {table} SET word = 'after' WHERE id = 1")  # noqa: S608
        rows = session.rows(f"SELECT id, word FROM {table} ORDER BY id")  # noqa: S608
        assert rows == [(1, "after"), (2, "other")], f"read back {rows}"
        session.execute(f"DELETE FROM {table} WHERE id = 2")  # noqa: S608
        left = session.value(f"SELECT count(*) FROM {table}")  # noqa: S608
        assert left == 1, f"{left} rows after the deletion instead of 1"
    check.found = "all done"


def test_time_series(wanted: VerifyRequest, before: Baseline, session: Session, check: Check) -> None:
    """write, read, delete: time series."""
    check.required = "insert, aggregate, read, delete"
    try:
        with scratch(wanted, session, "TS DATABASE", "t") as database:
            _series(session, f"{database}.public.probe")
    except SqlError as error:
        if error.sqlstate in _UNSUPPORTED and not before.time_series:
            pytest.skip(f"this server has no time series: {error.message}")
        raise
    check.found = "all done"


def _series(session: Session, table: str) -> None:
    session.execute(
        f"CREATE TABLE {table} (k_timestamp TIMESTAMPTZ NOT NULL, v FLOAT8) TAGS (device INT4 NOT NULL) "
        "PRIMARY TAGS (device)"
    )
    session.execute(f"INSERT INTO {table} VALUES ('{_MOMENT}', 1.5, 1), ('{_MOMENT}', 2.5, 2)")  # noqa: S608
    rows = session.rows(f"SELECT device, max(v) FROM {table} GROUP BY device ORDER BY device")  # noqa: S608
    assert rows == [(1, 1.5), (2, 2.5)], f"aggregated {rows}"
    session.execute(f"DELETE FROM {table} WHERE device = 2")  # noqa: S608
    rows = session.rows(f"SELECT device, v FROM {table}")  # noqa: S608
    assert rows == [(1, 1.5)], f"after the deletion {rows}"
