"""What the old server held, recorded while it still runs, for comparison afterwards."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from kwdb_build.console import Progress
from kwdb_build.errors import VerifyError
from kwdb_build.files import PRIVATE, read_json, write_json
from kwdb_build.model import NodeIdentity, to_json
from kwdb_build.sql import Session, SqlError
from kwdb_build.verify import probe
from kwdb_build.verify.tables import TableFacts, has_rows, mark_changing, newer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kwdb_build.sql import Login

T = TypeVar("T")
_SCHEMA = 1
_BETWEEN_LOOKS_S = 1.0
"""At least so long after the first look comes the second: a small database is read in milliseconds, and its clients
would seem idle."""
_QUICK_S = 2.0
"""A checksum that took no longer is computed a second time, to notice tables that are written to."""
_COUNTS = 5
_BETWEEN_COUNTS_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """All that must be there again. recorded_at: unix seconds. settings: those an operator set.

    unread: part -> why it could not be read ('users', 'settings', 'jobs', 'ranges'); such a part is not compared.
    """

    recorded_at: float
    version: str
    identity: NodeIdentity
    databases: dict[str, str]
    tables: tuple[TableFacts, ...]
    users: dict[str, str]
    settings: dict[str, str]
    unfinished_jobs: tuple[str, ...]
    unavailable_ranges: int
    underreplicated_ranges: int
    unread: dict[str, str]

    @property
    def rows(self) -> int:
        """All rows of all tables that could be read."""
        return sum(table.rows or 0 for table in self.tables)

    @property
    def time_series(self) -> tuple[TableFacts, ...]:
        """Tables of the time-series engine."""
        return tuple(table for table in self.tables if table.is_time_series)

    @property
    def unreadable(self) -> tuple[TableFacts, ...]:
        """Tables that could not be read."""
        return tuple(table for table in self.tables if has_rows(table.kind) and table.rows is None)


def record_baseline(
    login: Login, *, progress: Progress | None = None, statement_timeout_s: float = 300.0
) -> Baseline:
    """Read every table of the running server. SqlError when the server cannot be asked at all or goes away meanwhile.

    A single table that cannot be read is recorded as such: its check will say unknown, never ok.
    """
    progress = progress or Progress()
    with Session(login, statement_timeout_s=statement_timeout_s) as session:
        found = probe.databases(session)
        names = [
            ((database, schema, name), kind)
            for database in sorted(found) if database not in probe.SYSTEM_DATABASES
            for schema, name, kind in probe.tables(session, database)
        ]
        first_look = time.monotonic()
        facts: list[TableFacts] = []
        quick: list[bool] = []
        for number, (full_name, kind) in enumerate(names):
            progress.update(f"reading {'.'.join(full_name)}", done=number, total=len(names))
            began = time.monotonic()
            facts.append(probe.table_facts(session, full_name, kind))
            quick.append(time.monotonic() - began < _QUICK_S)
        unread: dict[str, str] = {}
        users: dict[str, str] = _part("users", unread, {}, lambda: probe.users(session))
        settings: dict[str, str] = _part("settings", unread, {}, lambda: probe.changed_settings(session))
        jobs: list[probe.Job] = _part("jobs", unread, [], lambda: probe.jobs(session))
        ranges: tuple[int, int] = _part("ranges", unread, (0, 0), lambda: probe.ranges(session))
        if facts:
            progress.update("looking again, for tables that clients write to")
            time.sleep(max(0.0, _BETWEEN_LOOKS_S - (time.monotonic() - first_look)))
        looked = tuple(
            _second_look(session, table, again=is_quick) for table, is_quick in zip(facts, quick, strict=True)
        )
        return Baseline(
            recorded_at=time.time(), version=probe.version(session), identity=probe.identity(session),
            databases=found, tables=looked, users=users, settings=settings,
            unfinished_jobs=tuple(job.id for job in jobs if job.status not in probe.FINISHED),
            unavailable_ranges=ranges[0], underreplicated_ranges=ranges[1], unread=unread,
        )


def look_again(
    baseline: Baseline, login: Login, *, progress: Progress | None = None, statement_timeout_s: float = 300.0
) -> Baseline:
    """The last look, right before the stop: what is there now, and which tables clients wrote to since the first.

    Much time may have passed since the baseline (the copy of the data). Without this, one UPDATE in between would look
    like content that the upgrade spoiled, and a table that clients have dropped like one that it lost. Large tables
    come first, so that the many small ones are read as near to the stop as can be.
    Errors: SqlError when the server cannot be asked at all.
    """
    progress = progress or Progress()
    known = {table.parts: table for table in baseline.tables}
    found: list[TableFacts] = []
    with Session(login, statement_timeout_s=statement_timeout_s) as session:
        databases = probe.databases(session)
        names = [
            ((database, schema, name), kind)
            for database in sorted(databases) if database not in probe.SYSTEM_DATABASES
            for schema, name, kind in probe.tables(session, database)
        ]
        names.sort(key=lambda item: -(known[item[0]].rows or 0) if item[0] in known else 0)
        for number, (parts, kind) in enumerate(names):
            progress.update(f"last look at {'.'.join(parts)}", done=number, total=len(names))
            now = probe.table_facts(session, parts, kind)
            before = known.get(parts)
            found.append(
                dataclasses.replace(now, changing=True) if before is None
                else now if before.rows is None or now.rows is None else newer(before, now)
            )
        looked = tuple(_count_again(session, table) for table in sorted(found, key=lambda table: table.parts))
        return dataclasses.replace(
            baseline, recorded_at=time.time(), databases=databases, tables=looked,
            users=baseline.users if "users" in baseline.unread else probe.users(session),
            settings=baseline.settings if "settings" in baseline.unread else probe.changed_settings(session),
        )


def save(baseline: Baseline, path: Path) -> None:
    """Write it for its owner alone: names of tables, users and settings are nobody else's business."""
    write_json(path, {"schema": _SCHEMA, "baseline": to_json(baseline)}, mode=PRIVATE)


def load(path: Path) -> Baseline:
    """Read a baseline; VerifyError when there is none or it is not one of ours."""
    try:
        document: dict[str, Any] = read_json(path)
        body = document["baseline"]
        return Baseline(**{
            **body,
            "identity": NodeIdentity(**body["identity"]),
            "tables": tuple(TableFacts.from_json(table) for table in body["tables"]),
            "unfinished_jobs": tuple(body["unfinished_jobs"]),
        })
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VerifyError(
            f"there is no usable baseline at {path}", context=repr(error),
            hint="without a record of what was there before, nothing can be verified",
        ) from error


def _second_look(session: Session, table: TableFacts, *, again: bool) -> TableFacts:
    if table.rows is None:
        return table
    try:
        return mark_changing(table, probe.quick_look(session, table, again=again))
    except SqlError as error:
        probe.still_there(session, error)
        return table


def _count_again(session: Session, table: TableFacts) -> TableFacts:
    """Whether rows go as well as come in a table that clients write to (a queue): a few counts in a moment tell."""
    if not table.changing or table.rows is None:
        return table
    low, last, shrinking = table.rows, table.rows, table.shrinking
    try:
        for _ in range(_COUNTS):
            time.sleep(_BETWEEN_COUNTS_S)
            rows = probe.quick_look(session, table, again=False).rows or 0
            low, last, shrinking = min(low, rows), rows, shrinking or rows < last
    except SqlError as error:
        probe.still_there(session, error)
    fewest = low if table.fewest is None else min(low, table.fewest)
    return dataclasses.replace(table, shrinking=shrinking, fewest=fewest)


def _part(name: str, unread: dict[str, str], empty: T, read: Callable[[], T]) -> T:
    """A part that an ordinary user may not be allowed to read."""
    try:
        return read()
    except SqlError as error:
        unread[name] = error.message
        return empty
