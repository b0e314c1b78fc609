"""Every database, table, column and row that was there is there, and can be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kwdb_build.model import Verdict
from kwdb_build.sql import identifier
from kwdb_build.verify import probe
from kwdb_build.verify.tables import compare_table

if TYPE_CHECKING:
    from kwdb_build.sql import Session
    from kwdb_build.verify.baseline import Baseline
    from kwdb_build.verify.plugin import Check
    from kwdb_build.verify.tables import TableFacts


def test_database(session: Session, database: tuple[str, str], check: Check) -> None:
    """Database."""
    name, engine = database
    check.required = engine
    found = probe.databases(session)
    assert name in found, "the database is gone"
    check.found = found[name]
    assert found[name] == engine, f"it is {found[name]} instead of {engine}"


def test_table(session: Session, table: TableFacts, check: Check) -> None:
    """Table."""
    database, schema, name = table.parts
    kinds = {(place, one): kind for place, one, kind in probe.tables(session, database)}
    now = None
    if (schema, name) in kinds:
        now = probe.table_facts(session, (database, schema, name), kinds[schema, name], summed=table.summed or None)
    result = compare_table(table, now)
    check.required, check.fix = result.required, result.fix
    if result.verdict is Verdict.FAIL:
        pytest.fail(result.found, pytrace=False)
    check.found, check.verdict = result.found, result.verdict


def test_series(session: Session, series: TableFacts, check: Check) -> None:
    """time-series rows read."""
    if not series.rows:
        check.found = f"{series.rows} rows before"
        pytest.skip("there was no row to read" if series.rows == 0 else f"unreadable before: {series.unreadable}")
    table = identifier(*series.parts)
    moment = identifier(series.columns[0].name)
    check.required = "min, max and a row"
    query = f"SELECT min({moment})::STRING, max({moment})::STRING, count({moment}) FROM {table}"  # noqa: S608
    first, last, count = session.rows(query)[0]
    assert first is not None, "min() over the time is NULL: no row is left"
    assert probe.one_row(session, series), "no row can be read though rows are counted"
    check.found = f"{count} rows from {first} to {last}"


def test_no_table_is_unreadable(before: Baseline, check: Check) -> None:
    """Tables that could not be read before."""
    check.required = "none"
    names = [f"{table.name} ({table.unreadable})" for table in before.unreadable]
    check.found = ", ".join(names) or "none"
    if names:
        check.unknown("nothing can be said about them")
