"""What one table holds: facts, and the rules by which facts before and after an upgrade are compared.

Pure: the queries are in probe.py. Why it is more than a count: a time-series count comes from metadata and proves
nothing about rows (sql.md B), a total can hide one lost device among new rows of others (cluster.md B), and a checksum
must be computed by the server, in full digits, because clients see the same float in other texts after an upgrade.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any

from kwdb_build.model import CheckResult, Verdict
from kwdb_build.sql import identifier

TIME_SERIES = "TIME SERIES TABLE"
_BYTES = re.compile(r"^(BYTES|VARBYTES|BLOB|BYTEA)(\(\d+\))?$", re.IGNORECASE)
_CREATE_NOISE = re.compile(r"\b(activetime|partition interval)\s+\w+", re.IGNORECASE)
_SHOWN_TAGS = 5


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column or tag as SHOW COLUMNS prints it. A hidden one (rowid) is compared by name and not read."""

    name: str
    type: str
    is_tag: bool = False
    is_hidden: bool = False


@dataclass(frozen=True, kw_only=True)
class TableFacts:
    """One table (or view, or sequence) at one moment.

    parts is (database, schema, table), name the same with dots. rows is None when it could not be read, and
    `unreadable` says why. checksum covers the columns in `summed`, '' when it could not be computed (`unsummed` says
    why). per_tag: rows by primary tag values, {} when there are too many, then only tags and tags_digest. changing:
    rows came or went between two looks, so clients write to it. shrinking: rows went, so clients delete from it, and
    `fewest` is the smallest count of all looks.
    """

    name: str
    parts: tuple[str, ...] = ()
    kind: str
    columns: tuple[Column, ...] = ()
    rows: int | None = None
    unreadable: str = ""
    checksum: str = ""
    summed: tuple[str, ...] = ()
    unsummed: str = ""
    tags: int = 0
    tags_digest: str = ""
    per_tag: dict[str, int] = field(default_factory=dict)
    first_time: str = ""
    last_time: str = ""
    create: str = ""
    changing: bool = False
    shrinking: bool = False
    fewest: int | None = None

    @property
    def is_time_series(self) -> bool:
        """Whether the time-series engine holds it."""
        return self.kind == TIME_SERIES

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> TableFacts:
        """The opposite of model.to_json."""
        return cls(**{
            **value, "columns": tuple(Column(**item) for item in value["columns"]),
            "summed": tuple(value["summed"]), "parts": tuple(value["parts"]),
        })


def has_rows(kind: str) -> bool:
    """Whether rows of their own can be expected: a view has none, a sequence has one value."""
    return "VIEW" not in kind and "SEQUENCE" not in kind


def text_of(column: Column) -> str:
    """Expression for a column as text, NULL as '~' (bytes need not be valid text)."""
    name = identifier(column.name)
    text = f"encode({name}, 'hex')" if _BYTES.match(column.type) else f"{name}::STRING"
    return f"coalesce({text}, '~')"


def checksum_expression(columns: tuple[Column, ...]) -> str:
    """`sum(fnv64(...))` over the columns: independent of order, and duplicates count (xor would cancel them)."""
    joined = " || '|' || ".join(text_of(column) for column in columns)
    return f"sum(fnv64({joined}))"


def normalise_create(text: str) -> str:
    """SHOW CREATE without what versions print differently: activetime, partition interval, space, the last ';'."""
    return re.sub(r"\s+", " ", _CREATE_NOISE.sub("", text)).strip().rstrip(";").strip()


def compare_table(before: TableFacts, after: TableFacts | None) -> CheckResult:
    """One row for the report. Fewer rows, other content, a lost tag, column or table fail; more rows warn.

    More rows are never a failure by themselves: clients may write between the baseline and the stop, and again as soon
    as a server answers. Other content only warns where clients were seen to write, and fewer rows where they were seen
    to delete (never down to none, unless it was seen empty). What cannot be compared is unknown, and that is never ok.
    """
    name = f"table {before.name}"
    required = _describe(before)
    if after is None:
        return CheckResult(name=name, verdict=Verdict.FAIL, required=required, found="the table is gone")
    found = _describe(after)
    problems = [*_structure(before, after), *(_content(before, after) if has_rows(before.kind) else [])]
    order = (Verdict.FAIL, Verdict.UNKNOWN, Verdict.WARN)
    for verdict in order:
        texts = [text for kind, text in problems if kind is verdict]
        if texts:
            others = [text for kind, text in problems if kind is not verdict]
            return CheckResult(
                name=name, verdict=verdict, required=required, found="; ".join([found, *texts, *others]),
                fix=_FIXES[verdict],
            )
    return CheckResult(name=name, verdict=Verdict.OK, required=required, found=found)


_FIXES = {
    Verdict.FAIL: "roll back; then compare the table on both versions by hand",
    Verdict.UNKNOWN: "read the table by hand before you trust this server",
    Verdict.WARN: "look whether the application wrote to it meanwhile",
}
Problem = tuple[Verdict, str]


def _structure(before: TableFacts, after: TableFacts) -> list[Problem]:
    problems: list[Problem] = []
    if before.kind != after.kind:
        problems.append((Verdict.FAIL, f"it is a {after.kind} instead of a {before.kind}"))
    now = {column.name: column for column in after.columns}
    for column in before.columns:
        if column.name not in now:
            problems.append((Verdict.FAIL, f"column {column.name} is gone"))
        elif now[column.name].type != column.type:
            problems.append((Verdict.WARN, f"column {column.name} is {now[column.name].type}, was {column.type}"))
    if before.create and after.create and before.create != after.create and not problems:
        problems.append((Verdict.WARN, "SHOW CREATE prints it otherwise"))
    return problems


def _content(before: TableFacts, after: TableFacts) -> list[Problem]:
    if after.rows is None:
        return [(Verdict.FAIL if before.rows is not None else Verdict.UNKNOWN, f"cannot be read: {after.unreadable}")]
    if before.rows is None:
        return [(Verdict.UNKNOWN, f"could not be read before the upgrade: {before.unreadable}")]
    problems = _lost_tags(before, after)
    if after.rows < before.rows:
        why = " (clients were deleting from it)" if before.shrinking else ""
        problems.append((_missing(before, after), f"{before.rows - after.rows} of {before.rows} rows are missing{why}"))
    elif after.rows > before.rows:
        more = after.rows - before.rows
        why = "clients were writing to it" if before.changing else "written after the baseline?"
        problems.append((Verdict.WARN, f"{more} rows more than before: {why}"))
    elif not problems:
        problems += _same_count(before, after)
    return problems


def _missing(before: TableFacts, after: TableFacts) -> Verdict:
    """What missing rows mean: in a table that clients delete from only that none is left is certainly wrong."""
    return Verdict.WARN if before.shrinking and (after.rows or before.fewest == 0) else Verdict.FAIL


def _same_count(before: TableFacts, after: TableFacts) -> list[Problem]:
    changed = Verdict.WARN if before.changing else Verdict.FAIL
    if not before.checksum:
        if (before.first_time, before.last_time) != (after.first_time, after.last_time):
            return [(changed, f"it now spans {after.first_time} to {after.last_time}")]
        return [(Verdict.WARN, f"content was not compared: {before.unsummed}")]
    if not after.checksum:
        return [(Verdict.FAIL, f"its rows cannot be read through: {after.unsummed}")]
    if before.checksum != after.checksum:
        why = " (clients were writing to it)" if before.changing else ""
        return [(changed, f"same number of rows, other content{why}")]
    return []


def _lost_tags(before: TableFacts, after: TableFacts) -> list[Problem]:
    lost = {
        tag: (count, after.per_tag.get(tag, 0)) for tag, count in before.per_tag.items()
        if after.per_tag.get(tag, 0) < count
    }
    if lost and after.per_tag:
        shown = ", ".join(f"{tag}: {now} of {was}" for tag, (was, now) in sorted(lost.items())[:_SHOWN_TAGS])
        more = f" and {len(lost) - _SHOWN_TAGS} more" if len(lost) > _SHOWN_TAGS else ""
        return [(_missing(before, after), f"rows are missing by primary tag ({shown}{more})")]
    if after.tags < before.tags:
        return [(_missing(before, after), f"{before.tags - after.tags} of {before.tags} primary tag values are gone")]
    return []


def _describe(facts: TableFacts) -> str:
    if not has_rows(facts.kind):
        return facts.kind.lower()
    if facts.rows is None:
        return "unreadable"
    text = f"{facts.rows} rows"
    if facts.is_time_series:
        text += f" of {facts.tags} devices"
    return f"{text}, checksum {facts.checksum[:20]}" if facts.checksum else text


def mark_changing(first: TableFacts, second: TableFacts) -> TableFacts:
    """The first look, marked when the second shows that clients write."""
    moved = (first.rows, first.tags) != (second.rows, second.tags) or (
        bool(second.checksum) and second.checksum != first.checksum
    )
    return dataclasses.replace(
        first, changing=first.changing or moved, shrinking=first.shrinking or _went(first, second),
        fewest=_fewest(first, second),
    )


def newer(first: TableFacts, second: TableFacts) -> TableFacts:
    """The later one of two full looks, with what both together tell about the clients."""
    seen = mark_changing(first, second)
    return dataclasses.replace(second, changing=seen.changing, shrinking=seen.shrinking, fewest=seen.fewest)


def _went(first: TableFacts, second: TableFacts) -> bool:
    return first.rows is not None and second.rows is not None and second.rows < first.rows


def _fewest(first: TableFacts, second: TableFacts) -> int | None:
    counts = [count for count in (first.fewest, first.rows, second.rows) if count is not None]
    return min(counts, default=None)
