"""The only room that imports psycopg: one connection to a kwbase, with the settings that KWDB needs.

Each statement runs by the simple protocol (a binary int2 parameter kills a V2.2.2 server), with a time limit set
after connecting (KWDB ignores `options=-c statement_timeout`), and floats in full digits so that checksums compare
across versions.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from kwdb_build.errors import KwdbBuildError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kwdb_build.model import Address

_PG_PREFIX = "PG"


class SqlError(KwdbBuildError):
    """The server did not answer, or answered with an error."""

    reference = "sql"

    def __init__(self, message: str, *, sqlstate: str = "", context: str = "", hint: str = "") -> None:
        super().__init__(message, context=context, hint=hint)
        self.sqlstate = sqlstate


@dataclass(frozen=True, kw_only=True)
class Login:
    """How to reach SQL: insecure as root, or with the certificates in certs_dir, or with a password from a file.

    dial: the numeric address to connect to, when the host is only the name that the certificate must show.
    """

    address: Address
    user: str = "root"
    certs_dir: Path | None = None
    password_file: Path | None = field(default=None, repr=False)
    dial: str = ""

    def parameters(self) -> dict[str, Any]:
        """Keyword arguments of psycopg.connect (never logged)."""
        found: dict[str, Any] = {
            "host": self.address.host, "port": self.address.port, "user": self.user, "dbname": "defaultdb",
            "gssencmode": "disable", "application_name": "kwdb-build",
        }
        if self.dial:
            found["hostaddr"] = self.dial
        if self.certs_dir is None:
            found["sslmode"] = "disable"
        else:
            found["sslmode"] = "verify-full"
            found["sslrootcert"] = str(self.certs_dir / "ca.crt")
            certificate = self.certs_dir / f"client.{self.user}.crt"
            if certificate.exists():
                found["sslcert"] = str(certificate)
                found["sslkey"] = str(certificate.with_suffix(".key"))
        if self.password_file is not None:
            try:
                found["password"] = self.password_file.read_text(encoding="utf-8").rstrip("\n")
            except OSError as error:
                raise SqlError(
                    f"cannot read the password of {self.user}: {error.strerror}", context=str(self.password_file),
                    hint="name its file by --sql-password-file, or type it: --ask-sql-password",
                ) from error
        return found


class Session:
    """One open connection; use as a context manager."""

    def __init__(self, login: Login, *, connect_timeout_s: int = 5, statement_timeout_s: float = 60.0) -> None:
        import psycopg

        self._error = psycopg.Error
        with _without_pg_environment():
            try:
                self._connection = psycopg.connect(
                    **login.parameters(), connect_timeout=connect_timeout_s, autocommit=True, prepare_threshold=None,
                    cursor_factory=psycopg.ClientCursor,
                )
            except psycopg.Error as error:
                raise SqlError(f"cannot connect to SQL at {login.address}", context=str(error).strip()) from error
        try:
            self.execute(f"SET statement_timeout = {int(statement_timeout_s * 1000)}")
            self.execute("SET extra_float_digits = 3")
        except SqlError:
            self._connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def execute(self, statement: str, parameters: tuple[Any, ...] = ()) -> int:
        """Run a statement without interest in rows; return the number of affected rows."""
        with self._cursor(statement) as cursor:
            cursor.execute(statement, parameters or None)
            return int(cursor.rowcount)

    def rows(self, statement: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        with self._cursor(statement) as cursor:
            cursor.execute(statement, parameters or None)
            return list(cursor.fetchall())

    def records(self, statement: str) -> list[dict[str, Any]]:
        """All rows of a query, by column name."""
        with self._cursor(statement) as cursor:
            cursor.execute(statement)
            names = [column.name for column in cursor.description or ()]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def value(self, statement: str) -> Any:
        """First column of the first row; SqlError when there is none."""
        rows = self.rows(statement)
        if not rows:
            raise SqlError("the query gave no row", context=statement)
        return rows[0][0]

    @contextlib.contextmanager
    def _cursor(self, statement: str) -> Iterator[Any]:
        try:
            with self._connection.cursor() as cursor:
                yield cursor
        except self._error as error:
            raise SqlError(
                f"SQL failed: {str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}",
                sqlstate=getattr(error, "sqlstate", None) or "", context=f"{error}\nstatement: {statement}",
            ) from error


def identifier(*names: str) -> str:
    """A quoted SQL name of several parts, such as database, schema and table, joined by dots."""
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


@contextlib.contextmanager
def _without_pg_environment() -> Iterator[None]:
    """Libpq reads PGHOST, PGSERVICE, PGPASSFILE …: a user's own must not misdirect our call."""
    saved = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(_PG_PREFIX)}
    try:
        yield
    finally:
        os.environ.update(saved)
