"""The questions: what a server holds, asked by SQL statements that V2.2.2 to V3.2.1 answer alike (sql.md A and B)."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kwdb_build.model import NodeIdentity
from kwdb_build.sql import SqlError, identifier
from kwdb_build.verify.tables import (
    TIME_SERIES,
    Column,
    TableFacts,
    checksum_expression,
    has_rows,
    normalise_create,
    text_of,
)

if TYPE_CHECKING:
    from kwdb_build.sql import Session

SYSTEM_DATABASES = frozenset({"system"})
"""Databases whose tables are the server's own and change with its version."""
SYSTEM_SCHEMAS = frozenset({"information_schema", "kwdb_internal", "pg_catalog", "pg_extension", "crdb_internal"})
PERMANENT_JOBS = frozenset({"TS TXN", "RESTART HISTORY", "SCHEMA CHANGE GC", "AUTO CREATE STATS", "SYNC META CACHE"})
"""Kinds of jobs that are unfinished on a healthy idle server, or come with each start (sql.md A4)."""
FINISHED = frozenset({"succeeded", "failed", "canceled", "cancelled"})
MANY_TAGS = 2000
_SECRET_WORDS = ("secret", "password", "license", "token", "organization")
_OWN_SETTINGS = frozenset({"version", "cluster.preserve_downgrade_option", "diagnostics.reporting.enabled"})
_STATEMENT_TIMEOUT = "57014"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One row of SHOW JOBS."""

    id: str
    type: str
    status: str
    description: str
    error: str = ""


def version(session: Session) -> str:
    """`KaiwuDB V3.1.0 (x86_64-linux-gnu, built …)`."""
    return str(session.value("SELECT version()"))


def version_word(text: str) -> str:
    """The version out of version()'s sentence: its second word, '' when there is none."""
    words = text.split()
    return words[1] if len(words) > 1 else ""


def identity(session: Session) -> NodeIdentity:
    """Who answers. kwdb_internal.node_build_info is about the node that is asked."""
    rows = session.rows("SELECT node_id, value FROM kwdb_internal.node_build_info WHERE field = 'ClusterID'")
    if not rows:
        raise SqlError("the server does not say which cluster it belongs to")
    return NodeIdentity(cluster_id=str(rows[0][1]), node_id=str(rows[0][0]))


def databases(session: Session) -> dict[str, str]:
    """Database -> RELATIONAL or TIME SERIES."""
    return {str(row["database_name"]): str(row.get("engine_type", "")) for row in session.records("SHOW DATABASES")}


def tables(session: Session, database: str) -> list[tuple[str, str, str]]:
    """Schema, name and kind of all tables, views and sequences of a database, the server's own left out."""
    rows = session.rows(
        "SELECT table_schema, table_name, table_type, table_catalog "  # noqa: S608  (a quoted name)
        f"FROM {identifier(database)}.information_schema.tables"
    )
    return sorted(
        (str(schema), str(name), str(kind)) for schema, name, kind, catalog in rows
        if schema not in SYSTEM_SCHEMAS and catalog == database and kind != "SYSTEM VIEW"
    )


def columns(session: Session, table: str) -> tuple[Column, ...]:
    """Columns and tags in their order. table is a quoted name."""
    return tuple(
        Column(
            name=str(row["column_name"]), type=str(row["data_type"]), is_tag=_true(row.get("is_tag")),
            is_hidden=_true(row.get("is_hidden")),
        )
        for row in session.records(f"SHOW COLUMNS FROM {table}")
    )


def table_facts(session: Session, full_name: tuple[str, str, str], kind: str, *,
                summed: tuple[str, ...] | None = None) -> TableFacts:
    """Everything about one table. What cannot be read is said in the facts; SqlError only when the server is gone.

    summed: the columns that an earlier checksum covered, so that both cover the same.
    """
    table = identifier(*full_name)
    facts = TableFacts(name=".".join(full_name), parts=full_name, kind=kind)
    try:
        facts = dataclasses.replace(facts, columns=columns(session, table), create=_create(session, table, kind))
        if not has_rows(kind):
            return facts
        facts = dataclasses.replace(facts, rows=int(session.value(f"SELECT count(*) FROM {table}")))  # noqa: S608
        facts = _with_checksum(session, table, facts, summed)
        return _with_tags(session, table, facts) if kind == TIME_SERIES else facts
    except SqlError as error:
        still_there(session, error)
        return dataclasses.replace(facts, rows=None, unreadable=error.message)


def quick_look(session: Session, facts: TableFacts, *, again: bool) -> TableFacts:
    """A second look at a table that was read: its count, and (again) its checksum."""
    table = identifier(*facts.parts)
    rows = int(session.value(f"SELECT count(*) FROM {table}"))  # noqa: S608  (quoted names)
    second = dataclasses.replace(facts, rows=rows, checksum="")
    return _with_checksum(session, table, second, facts.summed) if again and facts.checksum else second


def one_row(session: Session, facts: TableFacts) -> bool:
    """Whether a row can be read through, all the columns that a checksum could read."""
    chosen = [text_of(column) for column in facts.columns if column.name in facts.summed] or ["'~'"]
    return bool(session.rows(f"SELECT {', '.join(chosen)} FROM {identifier(*facts.parts)} LIMIT 1"))  # noqa: S608


def still_there(session: Session, error: SqlError) -> None:
    """Raise the error again when the server, and not only this statement, is the problem."""
    try:
        session.value("SELECT 1")
    except SqlError:
        raise error from None


def _create(session: Session, table: str, kind: str) -> str:
    word = "VIEW" if "VIEW" in kind else "SEQUENCE" if "SEQUENCE" in kind else "TABLE"
    rows = session.rows(f"SHOW CREATE {word} {table}")
    return normalise_create(str(rows[0][1])) if rows else ""


def _with_checksum(session: Session, table: str, facts: TableFacts, summed: tuple[str, ...] | None) -> TableFacts:
    """Checksum over the visible columns; over those that can be read as text when one of them cannot."""
    chosen = tuple(
        column for column in facts.columns
        if (column.name in summed if summed is not None else not column.is_hidden)
    )
    for attempt in range(2):
        if not chosen:
            return dataclasses.replace(facts, unsummed="no column can be read as text")
        try:
            value = session.value(f"SELECT {checksum_expression(chosen)} FROM {table}")  # noqa: S608  (quoted names)
            names = tuple(column.name for column in chosen)
            return dataclasses.replace(facts, checksum="empty" if value is None else str(value), summed=names)
        except SqlError as error:
            still_there(session, error)
            if attempt or error.sqlstate == _STATEMENT_TIMEOUT:
                return dataclasses.replace(facts, unsummed=error.message)
            readable = tuple(column for column in chosen if _readable(session, table, column))
            if readable == chosen or not readable:
                # Not one odd column: the rows themselves cannot be read. A count from metadata must not hide that.
                raise
            chosen = readable
    return facts


def _readable(session: Session, table: str, column: Column) -> bool:
    try:
        session.rows(f"SELECT {checksum_expression((column,))} FROM {table}")  # noqa: S608  (quoted names)
    except SqlError as error:
        still_there(session, error)
        return False
    return True


def _with_tags(session: Session, table: str, facts: TableFacts) -> TableFacts:
    """Rows by primary tag values, and the span of time: both read the rows' own index, not only the total."""
    primary = [
        str(row["tag"]) for row in session.records(f"SHOW TAGS FROM {table}") if _true(row.get("is_primary"))
    ]
    moment = identifier(facts.columns[0].name)
    spans = session.rows(f"SELECT min({moment})::STRING, max({moment})::STRING FROM {table}")  # noqa: S608
    first, last = spans[0] if spans else (None, None)
    facts = dataclasses.replace(facts, first_time=str(first or ""), last_time=str(last or ""))
    if not primary:
        return facts
    names = ", ".join(identifier(name) for name in primary)
    rows = session.rows(f"SELECT {names}, count(*) FROM {table} GROUP BY {names}")  # noqa: S608  (quoted names)
    counted = {"/".join(_text(value) for value in row[:-1]): int(row[-1]) for row in rows}
    joined = "\n".join(f"{tag}\t{count}" for tag, count in sorted(counted.items()))
    return dataclasses.replace(
        facts, tags=len(counted), tags_digest=hashlib.sha256(joined.encode()).hexdigest(),
        per_tag=counted if len(counted) <= MANY_TAGS else {},
    )


def users(session: Session) -> dict[str, str]:
    """User or role -> options and memberships as text."""
    found = {}
    for row in session.records("SHOW USERS"):
        options, roles = (_text(row.get(name)).strip("{}") for name in ("options", "member_of"))
        found[str(row["username"])] = f"options: {options or 'none'}; member of: {roles or 'none'}"
    return found


def changed_settings(session: Session) -> dict[str, str]:
    """Public settings that an operator set, with their values; secrets left out.

    system.settings has one row for each setting that was ever set. Defaults change between versions, so the others
    say nothing about an upgrade (sql.md C).
    """
    ever_set = {str(row[0]) for row in session.rows("SELECT name FROM system.settings")}
    return {
        name: str(row["value"]) for row in session.records("SHOW CLUSTER SETTINGS")
        if (name := str(row["variable"])) in ever_set and name not in _OWN_SETTINGS
        and not any(word in name for word in _SECRET_WORDS)
    }


def jobs(session: Session) -> list[Job]:
    """Jobs that tell something: the permanent kinds left out."""
    return [
        Job(
            id=str(row["job_id"]), type=str(row["job_type"]), status=str(row["status"]),
            description=str(row.get("description") or ""), error=str(row.get("error") or ""),
        )
        for row in session.records("SHOW JOBS") if str(row["job_type"]) not in PERMANENT_JOBS
    ]


def ranges(session: Session) -> tuple[int, int]:
    """Unavailable and under-replicated ranges, as the upgrade guide asks for them."""
    rows = session.rows(
        "SELECT sum((metrics->>'ranges.unavailable')::DECIMAL)::INT, "
        "sum((metrics->>'ranges.underreplicated')::DECIMAL)::INT FROM kwdb_internal.kv_store_status"
    )
    unavailable, under = rows[0]
    return int(unavailable or 0), int(under or 0)


def live_nodes(session: Session) -> dict[str, bool]:
    """Node id -> whether gossip calls it live."""
    return {
        str(row[0]): _true(row[1]) for row in session.rows("SELECT node_id, is_live FROM kwdb_internal.gossip_nodes")
    }




def _true(value: Any) -> bool:
    return str(value).lower() in {"true", "t", "yes", "1"}


def _text(value: Any) -> str:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, list | tuple | set):
        return ",".join(sorted(_text(item) for item in value))
    return "" if value is None else str(value)
