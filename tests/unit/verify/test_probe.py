"""How one table is read when something about it cannot be read; a session stands in that answers as recorded."""

from __future__ import annotations

from typing import Any

import pytest

from kwdb_build.sql import SqlError
from kwdb_build.verify import probe


class Scripted:
    """Answers by the first fragment found in a statement; an exception is raised."""

    def __init__(self, **changes: Any) -> None:
        self.asked: list[str] = []
        self.answers: dict[str, Any] = {
            "SELECT 1": [(1,)],
            "SHOW COLUMNS": [
                {"column_name": "ts", "data_type": "TIMESTAMPTZ(3)", "is_hidden": False, "is_tag": False},
                {"column_name": "v", "data_type": "GEOMETRY", "is_hidden": "f", "is_tag": "f"},
                {"column_name": "dev", "data_type": "VARBYTES(4)", "is_hidden": False, "is_tag": True},
                {"column_name": "rowid", "data_type": "INT8", "is_hidden": True, "is_tag": False},
            ],
            "SHOW CREATE": [("t", "CREATE TABLE t (…) activetime 1d")],
            "SHOW TAGS": [{"tag": "dev", "is_primary": "true"}, {"tag": "site", "is_primary": "false"}],
            "GROUP BY": [(b"\x00\xff", 3), (b"\x01", 4)],
            "min(": [("2026-11-01", "2026-11-02")],
            "sum(fnv64": [(12345678901234567890123,)],
            "count(*)": [(7,)],
            **changes,
        }

    def rows(self, statement: str) -> Any:
        self.asked.append(statement)
        for fragment, answer in self.answers.items():
            if fragment in statement:
                found = answer(statement) if callable(answer) else answer
                if isinstance(found, Exception):
                    raise found
                return found
        raise AssertionError(statement)

    records = rows

    def value(self, statement: str) -> Any:
        return self.rows(statement)[0][0]


def facts(session: Scripted) -> Any:
    return probe.table_facts(session, ("plant", "public", "t"), "TIME SERIES TABLE")  # type: ignore[arg-type]


def test_a_time_series_table_is_read_whole() -> None:
    found = facts(Scripted())
    assert (found.rows, found.checksum, found.tags) == (7, "12345678901234567890123", 2)
    assert found.per_tag == {"00ff": 3, "01": 4}
    assert found.summed == ("ts", "v", "dev"), "hidden columns are not read"
    assert found.create == "CREATE TABLE t (…)"
    assert (found.first_time, found.last_time) == ("2026-11-01", "2026-11-02")


def test_a_column_that_is_no_text_is_left_out_and_the_others_are_compared() -> None:
    session = Scripted(**{
        "sum(fnv64": lambda text: SqlError("invalid cast", sqlstate="42846") if '"v"' in text else [(5,)],
    })
    found = facts(session)
    assert (found.checksum, found.summed, found.rows) == ("5", ("ts", "dev"), 7)


def test_a_checksum_that_takes_too_long_is_said_and_the_count_stays() -> None:
    found = facts(Scripted(**{"sum(fnv64": SqlError("SQL failed: timeout", sqlstate="57014")}))
    assert (found.rows, found.checksum, found.unsummed) == (7, "", "SQL failed: timeout")


def test_rows_that_cannot_be_read_make_the_table_unreadable_though_it_can_be_counted() -> None:
    """count(*) of a time-series table comes from metadata: it works while the files are gone (cluster.md E)."""
    found = facts(Scripted(**{"sum(fnv64": SqlError("filesystem error: Permission denied", sqlstate="XX000")}))
    assert (found.rows, found.unreadable) == (None, "filesystem error: Permission denied")


def test_a_server_that_goes_away_is_an_error_and_not_an_unreadable_table() -> None:
    gone = SqlError("server closed the connection unexpectedly")
    with pytest.raises(SqlError, match="closed the connection"):
        facts(Scripted(**{"sum(fnv64": gone, "SELECT 1": gone}))


def test_many_devices_are_counted_and_not_listed() -> None:
    many = [(str(number), 1) for number in range(probe.MANY_TAGS + 1)]
    found = facts(Scripted(**{"GROUP BY": many}))
    assert (found.tags, found.per_tag) == (probe.MANY_TAGS + 1, {})
    assert len(found.tags_digest) == 64


def test_an_empty_table_has_a_checksum() -> None:
    assert facts(Scripted(**{"sum(fnv64": [(None,)], "count(*)": [(0,)], "GROUP BY": []})).checksum == "empty"


def test_only_what_an_operator_set_is_compared_and_no_secret() -> None:
    session = Scripted(**{
        "system.settings": [("version",), ("cluster.secret",), ("ts.compress.stage",), ("removed.one",)],
        "SHOW CLUSTER SETTINGS": [
            {"variable": "version", "value": "20.1-3"}, {"variable": "cluster.secret", "value": "s3cret"},
            {"variable": "ts.compress.stage", "value": "1"}, {"variable": "ts.raft_log.sync_period", "value": "10s"},
        ],
    })
    assert probe.changed_settings(session) == {"ts.compress.stage": "1"}  # type: ignore[arg-type]


def test_permanent_jobs_are_no_news() -> None:
    row = {"description": None, "error": None}
    session = Scripted(**{
        "SHOW JOBS": [
            {**row, "job_id": 1, "job_type": "TS TXN", "status": "running"},
            {**row, "job_id": 2, "job_type": "RESTART HISTORY", "status": "succeeded"},
            {**row, "job_id": 3, "job_type": "SCHEMA CHANGE GC", "status": "running"},
            {**row, "job_id": 4, "job_type": "SCHEMA CHANGE", "status": "running"},
        ],
    })
    assert [job.id for job in probe.jobs(session)] == ["4"]  # type: ignore[arg-type]


def test_only_a_databases_own_tables_are_listed() -> None:
    session = Scripted(**{
        "information_schema.tables": [
            ("public", "t", "BASE TABLE", "shop"), ("s2", "inner", "BASE TABLE", "shop"),
            ("public", "other", "BASE TABLE", "elsewhere"), ("pg_catalog", "pg_class", "SYSTEM VIEW", "shop"),
        ],
    })
    assert probe.tables(session, "shop") == [  # type: ignore[arg-type]
        ("public", "t", "BASE TABLE"), ("s2", "inner", "BASE TABLE"),
    ]


@pytest.mark.parametrize(
    ("text", "word"),
    [("KaiwuDB V3.2.1 (x86_64-linux-gnu, built …)", "V3.2.1"), ("KaiwuDB", ""), ("", "")],
)
def test_the_version_is_the_second_word(text: str, word: str) -> None:
    assert probe.version_word(text) == word
