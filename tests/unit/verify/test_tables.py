from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwdb_build.model import Verdict, to_json
from kwdb_build.verify.tables import (
    Column,
    TableFacts,
    checksum_expression,
    compare_table,
    mark_changing,
    newer,
    normalise_create,
    text_of,
)

COLUMNS = (
    Column(name="k_timestamp", type="TIMESTAMPTZ(3)"), Column(name="temp", type="FLOAT8"),
    Column(name="id", type="INT4", is_tag=True),
)
SENSOR = TableFacts(
    name="plant.public.sensor", parts=("plant", "public", "sensor"), kind="TIME SERIES TABLE", columns=COLUMNS,
    rows=1000, checksum="77", summed=("k_timestamp", "temp", "id"), tags=2, tags_digest="aa",
    per_tag={"0": 500, "1": 500}, first_time="2026-11-01", last_time="2026-11-02", create="CREATE TABLE sensor (…)",
)


def changed(**values: object) -> TableFacts:
    return dataclasses.replace(SENSOR, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("after", "verdict", "words"),
    [
        (SENSOR, Verdict.OK, "1000 rows of 2 devices"),
        (None, Verdict.FAIL, "the table is gone"),
        (changed(rows=0, checksum="empty", per_tag={}, tags=0), Verdict.FAIL, "1000 of 1000 rows are missing"),
        (changed(rows=999, checksum="76", per_tag={"0": 499, "1": 500}), Verdict.FAIL, "1 of 1000 rows"),
        (changed(checksum="78"), Verdict.FAIL, "same number of rows, other content"),
        (changed(rows=1001, checksum="79", per_tag={"0": 501, "1": 500}), Verdict.WARN, "1 rows more than before"),
        (changed(rows=1200, checksum="79", per_tag={"1": 1200}, tags=1), Verdict.FAIL, "0: 0 of 500"),
        (changed(rows=None, unreadable="filesystem error"), Verdict.FAIL, "cannot be read: filesystem error"),
        (changed(checksum="", unsummed="timed out"), Verdict.FAIL, "cannot be read through: timed out"),
        (changed(columns=COLUMNS[:2]), Verdict.FAIL, "column id is gone"),
        (changed(kind="BASE TABLE"), Verdict.FAIL, "it is a BASE TABLE instead of a TIME SERIES TABLE"),
        (changed(columns=(COLUMNS[0], Column(name="temp", type="FLOAT4"), COLUMNS[2])), Verdict.WARN, "was FLOAT8"),
        (changed(columns=(*COLUMNS, Column(name="new", type="INT4"))), Verdict.OK, "1000 rows"),
        (changed(create="CREATE TABLE sensor (other)"), Verdict.WARN, "SHOW CREATE"),
    ],
)
def test_what_an_upgrade_may_do_to_a_table(after: TableFacts | None, verdict: Verdict, words: str) -> None:
    result = compare_table(SENSOR, after)
    assert (result.verdict, result.name) == (verdict, "table plant.public.sensor")
    assert words in result.found
    assert bool(result.fix) == (verdict is not Verdict.OK and after is not None)


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (changed(changing=True), changed(checksum="78"), Verdict.WARN),
        (changed(changing=True), changed(rows=999, checksum="78"), Verdict.FAIL),
        (changed(changing=True), changed(rows=1100, checksum="78"), Verdict.WARN),
        (changed(rows=None, unreadable="broken"), SENSOR, Verdict.UNKNOWN),
        (changed(rows=None, unreadable="broken"), changed(rows=None, unreadable="broken"), Verdict.UNKNOWN),
        (changed(checksum="", unsummed="too large"), SENSOR, Verdict.WARN),
        (changed(checksum="", unsummed="too large"), changed(first_time="2026-11-02"), Verdict.FAIL),
        (changed(per_tag={}, tags=5000), changed(per_tag={}, tags=4999), Verdict.FAIL),
    ],
)
def test_what_the_baseline_allows(before: TableFacts, after: TableFacts, verdict: Verdict) -> None:
    assert compare_table(before, after).verdict is verdict


def test_a_view_has_no_rows_to_compare() -> None:
    view = TableFacts(name="shop.public.v", kind="VIEW", create="CREATE VIEW v AS SELECT 1")
    assert compare_table(view, view).verdict is Verdict.OK
    assert compare_table(view, dataclasses.replace(view, kind="BASE TABLE")).verdict is Verdict.FAIL


@given(
    rows=st.integers(0, 10), more=st.integers(-10, 10), same=st.booleans(), changing=st.booleans(),
    unreadable=st.booleans(),
)
def test_fewer_rows_or_unreadable_rows_are_never_good(
    rows: int, more: int, same: bool, changing: bool, unreadable: bool
) -> None:
    before = TableFacts(name="d.s.t", kind="BASE TABLE", rows=rows, checksum="1", changing=changing)
    now = None if unreadable else max(0, rows + more)
    after = TableFacts(name="d.s.t", kind="BASE TABLE", rows=now, checksum="1" if same else "2", unreadable="x")
    verdict = compare_table(before, after).verdict
    if now is None or now < rows or (now == rows and not same and not changing):
        assert verdict is Verdict.FAIL
    elif verdict is Verdict.OK:
        assert now == rows
        assert same


def test_the_checksum_reads_every_column_as_text() -> None:
    columns = (
        Column(name='odd"name', type="INT4"), Column(name="b", type="VARBYTES(10)"), Column(name="l", type="BYTES[]"),
    )
    assert checksum_expression(columns) == (
        "sum(fnv64(coalesce(\"odd\"\"name\"::STRING, '~') || '|' || coalesce(encode(\"b\", 'hex'), '~') || '|' || "
        "coalesce(\"l\"::STRING, '~')))"
    )
    assert "encode" in text_of(Column(name="x", type="BLOB"))


@pytest.mark.parametrize(
    "text",
    [
        "CREATE TABLE s ( t TIMESTAMPTZ ) TAGS ( id INT4 ) PRIMARY TAGS(id) retentions 0s activetime 1d",
        (
            "CREATE TABLE s (\n\tt TIMESTAMPTZ\n) TAGS (\n\tid INT4 ) PRIMARY TAGS(id)\n\tretentions 0s\n"
            "\tactivetime 1d\n\tpartition interval 10d;"
        ),
        "CREATE TABLE s ( t TIMESTAMPTZ ) TAGS ( id INT4 ) PRIMARY TAGS(id) retentions 0s\n;",
    ],
)
def test_versions_print_the_same_table_in_other_words(text: str) -> None:
    wanted = "CREATE TABLE s ( t TIMESTAMPTZ ) TAGS ( id INT4 ) PRIMARY TAGS(id) retentions 0s"
    assert normalise_create(text).replace("(t", "( t") == wanted


def test_a_table_that_moves_between_two_looks_is_marked() -> None:
    assert not mark_changing(SENSOR, SENSOR).changing
    assert not mark_changing(SENSOR, changed(checksum="")).changing
    assert mark_changing(SENSOR, changed(rows=1001)).changing
    assert mark_changing(SENSOR, changed(checksum="78")).changing


@pytest.mark.parametrize(
    ("rows", "fewest", "verdict"),
    [(990, 995, Verdict.WARN), (0, 995, Verdict.FAIL), (0, 0, Verdict.WARN), (1000, 0, Verdict.WARN)],
)
def test_a_table_that_clients_delete_from(rows: int, fewest: int, verdict: Verdict) -> None:
    queue = TableFacts(name="d.s.queue", kind="BASE TABLE", rows=1000, checksum="1", changing=True, shrinking=True,
                       fewest=fewest)
    after = TableFacts(name="d.s.queue", kind="BASE TABLE", rows=rows, checksum="2")
    assert compare_table(queue, after).verdict is verdict


def test_the_last_look_counts_and_remembers_what_the_first_saw() -> None:
    seen = newer(changed(rows=1005, changing=True), changed(rows=1001, checksum="80"))
    assert (seen.rows, seen.checksum, seen.changing, seen.shrinking, seen.fewest) == (1001, "80", True, True, 1001)
    idle = newer(SENSOR, SENSOR)
    assert not idle.changing
    assert not idle.shrinking
    updated = newer(SENSOR, changed(checksum="81"))
    assert updated.changing
    assert compare_table(updated, changed(checksum="82")).verdict is Verdict.WARN


def test_facts_survive_json() -> None:
    assert TableFacts.from_json(json.loads(json.dumps(to_json(SENSOR)))) == SENSOR
