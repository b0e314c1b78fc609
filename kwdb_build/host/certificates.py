"""When the certificates of a node expire, and whether its keys are private."""

from __future__ import annotations

import base64
import re
import stat
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from kwdb_build.model import CheckResult, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)
_SEQUENCE, _EXPLICIT_0, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0xA0, 0x17, 0x18
_LONG_FORM = 0x80
_WARN_BEFORE = timedelta(days=30)
_OTHERS_MAY = stat.S_IRWXG | stat.S_IRWXO


def check_certificates(directory: Path, now: datetime) -> tuple[CheckResult, ...]:
    """A row for each certificate of a --certs-dir, and one for keys that others may read."""
    rows = [_expiry(path, now) for path in sorted(directory.glob("*.crt"))]
    if not rows:
        rows = [CheckResult(
            name="certificates", verdict=Verdict.UNKNOWN, required="ca.crt, node.crt", found="none that can be seen",
            where=str(directory), fix="run as the user of the server, or as root",
        )]
    open_keys = [path for path in sorted(directory.glob("*.key")) if _is_open(path)]
    if open_keys:
        names = " ".join(str(path) for path in open_keys)
        rows.append(CheckResult(
            name="private keys", verdict=Verdict.FAIL, required="mode 0600: kwbase refuses others",
            found=", ".join(path.name for path in open_keys), where=str(directory), fix=f"chmod 0600 {names}",
        ))
    return tuple(rows)


def _is_open(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & _OTHERS_MAY)
    except OSError:
        return False


def _expiry(path: Path, now: datetime) -> CheckResult:
    name, required = f"certificate {path.name}", f"valid for more than {_WARN_BEFORE.days} days"
    fix = "make new ones: kwbase cert create-node, create-client (and create-ca when the authority itself ends)"
    try:
        ends = [end for _, end in validity(path.read_bytes())]
    except (OSError, ValueError) as error:
        return CheckResult(
            name=name, verdict=Verdict.UNKNOWN, required=required, found=f"cannot be read: {error}", where=str(path)
        )
    end = min(ends)
    found = f"until {end:%Y-%m-%d}"
    if end <= now:
        return CheckResult(name=name, verdict=Verdict.FAIL, required=required, found=f"expired on {end:%Y-%m-%d}",
                           where=str(path), fix=fix)
    if end - now < _WARN_BEFORE:
        days = (end - now).days
        return CheckResult(name=name, verdict=Verdict.WARN, required=required, found=f"{found}: {days} days left",
                           where=str(path), fix=fix)
    return CheckResult(name=name, verdict=Verdict.OK, required=required, found=found, where=str(path))


@dataclass(frozen=True)
class _Element:
    """One element of DER: its tag and its content."""

    tag: int
    content: bytes


def validity(pem: bytes) -> list[tuple[datetime, datetime]]:
    """(not before, not after) of every certificate of a PEM file (RFC 5280, 4.1.2.5); ValueError when it has none."""
    found = []
    for match in _PEM.finditer(pem):
        signed = _first(_first(base64.b64decode(match[1])).content)
        fields = [element for element in _elements(signed.content) if element.tag != _EXPLICIT_0]
        times = list(_elements(fields[3].content)) if len(fields) > 3 else []  # noqa: PLR2004 - after serial, algorithm, issuer
        if len(times) != 2:  # noqa: PLR2004
            msg = "no validity where a certificate has it"
            raise ValueError(msg)
        found.append((_time(times[0]), _time(times[1])))
    if not found:
        msg = "no certificate in it"
        raise ValueError(msg)
    return found


def _first(data: bytes) -> _Element:
    element = next(_elements(data), None)
    if element is None or element.tag != _SEQUENCE:
        msg = "no certificate inside"
        raise ValueError(msg)
    return element


def _elements(data: bytes) -> Iterator[_Element]:
    position = 0
    while position + 2 <= len(data):
        tag, length = data[position], data[position + 1]
        position += 2
        if length & _LONG_FORM:
            size = length & ~_LONG_FORM
            length = int.from_bytes(data[position:position + size], "big")
            position += size
        if position + length > len(data):
            break
        yield _Element(tag, data[position:position + length])
        position += length
    if position != len(data):
        msg = "cut off"
        raise ValueError(msg)


def _time(element: _Element) -> datetime:
    text = element.content.decode("ascii")
    if element.tag == _UTC_TIME:  # two digits of a year: 50 to 99 are of the last century
        text = ("19" if int(text[:2]) >= 50 else "20") + text  # noqa: PLR2004
    elif element.tag != _GENERALIZED_TIME:
        msg = "no time where a certificate has it"
        raise ValueError(msg)
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
