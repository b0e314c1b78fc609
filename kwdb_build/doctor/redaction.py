"""No secret leaves in a report: passwords of URLs and proxies, and values that are called secret."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

from kwdb_build.source.reference import redact

if TYPE_CHECKING:
    from kwdb_build.model import CheckResult

# A proxy is often written without a scheme: user:password@host:3128.
_BARE = re.compile(r"(?<![\w/@.:-])[^\s/@:'\"=,]+:(?!//)[^\s@'\"]+@(?=[\w\[])")


def redacted(text: str) -> str:
    """Text with what stands before the @ of every URL or proxy, and every secret of a query, hidden."""
    return _BARE.sub("***@", redact(text))


def without_secrets(row: CheckResult) -> CheckResult:
    """The row with every text redacted."""
    changed: dict[str, Any] = {
        field.name: redacted(value) for field in dataclasses.fields(row)
        if isinstance(value := getattr(row, field.name), str) and field.name != "verdict"
    }
    return dataclasses.replace(row, **changed, fixes=tuple(redacted(fix) for fix in row.fixes))
