"""What the verification suite is asked to prove, as it travels to the child process: a private JSON file.

It may name a password file and certificates, and never holds a password.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kwdb_build.errors import VerifyError
from kwdb_build.files import PRIVATE, read_json, write_json
from kwdb_build.model import Address
from kwdb_build.sql import Login
from kwdb_build.verify import logs

Mode = Literal["upgraded", "rolled-back", "check"]
_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class VerifyRequest:
    """A started server and what must be true of it.

    expected_version: the word of version() such as 'V3.2.1' (the old one after a rollback). pid and started_at
    (proc.start_time): the process as it was when it became ready; 0 when it is not visible from here. libraries: path
    -> sha256 of what it must have mapped, as the process names them. log_mark: taken before its start. scratch: name
    stem of the databases that the suite may create; the runner fills it in and removes what a killed suite left.
    http and page_certificates: as server.readiness.ask_health takes them.
    """

    login: Login
    baseline: Path
    expected_version: str
    mode: Mode = "upgraded"
    pid: int = 0
    started_at: float = 0.0
    libraries: dict[str, str] = field(default_factory=dict)
    log_mark: logs.LogMark | None = None
    http: Address | None = None
    page_certificates: Path | None = None
    statement_timeout_s: float = 300.0
    settle_s: float = 5.0
    retry_s: float = 30.0
    scratch: str = ""


def save(request: VerifyRequest, path: Path) -> None:
    """Write it for its owner alone."""
    write_json(path, {"schema": _SCHEMA, "request": request}, mode=PRIVATE)


def load(path: Path) -> VerifyRequest:
    """Read it in the child; VerifyError when it is not one of ours."""
    try:
        body: dict[str, Any] = read_json(path)["request"]
        login = body["login"]
        return VerifyRequest(**{
            **body,
            "login": Login(
                address=Address(**login["address"]), user=login["user"], certs_dir=_path(login["certs_dir"]),
                password_file=_path(login["password_file"]),
            ),
            "baseline": Path(body["baseline"]),
            "http": Address(**body["http"]) if body["http"] else None,
            "page_certificates": _path(body["page_certificates"]),
            "log_mark": logs.from_json(body["log_mark"]) if body["log_mark"] else None,
        })
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VerifyError(f"{path} is no verification request", context=repr(error)) from error


def _path(value: str | None) -> Path | None:
    return Path(value) if value else None
