"""The certificates that a secure server starts with, and until when they hold (RFC 5280; kwbase's names for files)."""

from __future__ import annotations

import contextlib
import datetime as dt
import ssl
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_UTC_TIME, _GENERALIZED_TIME, _SEQUENCE, _VERSION = 0x17, 0x18, 0x30, 0xA0
_LONG_FORM = 0x80
_CENTURY_TURNS = 50


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """One certificate file. begins and ends are unix seconds, 0 where the file could not be read (`problem` says why).

    exposed_key: the private key beside it, when others than its owner may read it (kwbase refuses such a key).
    """

    path: Path
    begins: float = 0.0
    ends: float = 0.0
    problem: str = ""
    exposed_key: Path | None = None


def read(directory: Path, user: str = "root") -> tuple[Certificate, ...]:
    """CA, node and the given SQL user's certificate, as far as they are there; never raises."""
    names = ("ca.crt", "ca-client.crt", "node.crt", f"client.{user}.crt")
    return tuple(_read(directory / name) for name in names if (directory / name).exists())


def shown_by_node(directory: Path) -> tuple[bytes, ...]:
    """The certificates (DER) that the HTTP port of a node with this directory may show; unreadable ones are left out.

    kwbase takes ui.crt for it where there is one (security/certificate_loader.go), else the node's.
    """
    found = []
    for name in ("ui.crt", "node.crt"):
        with contextlib.suppress(OSError, ValueError):
            found.append(ssl.PEM_cert_to_DER_cert(_first(directory / name)))
    return tuple(found)


def _read(path: Path) -> Certificate:
    exposed = None
    key = path.with_suffix(".key")
    with contextlib.suppress(OSError):
        if key.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            exposed = key
    try:
        begins, ends = validity(ssl.PEM_cert_to_DER_cert(_first(path)))
    except (OSError, ValueError, IndexError) as error:
        return Certificate(path=path, problem=str(error) or type(error).__name__, exposed_key=exposed)
    return Certificate(path=path, begins=begins, ends=ends, exposed_key=exposed)


def _first(path: Path) -> str:
    """The first certificate of a file that may hold a chain, and words in any encoding beside it."""
    text = path.read_text(encoding="utf-8", errors="replace")
    begin = text.index(ssl.PEM_HEADER)
    return text[begin : text.index(ssl.PEM_FOOTER, begin) + len(ssl.PEM_FOOTER)]


def validity(der: bytes) -> tuple[float, float]:
    """The times notBefore and notAfter in unix seconds. ValueError for what is no certificate.

    Certificate -> tbsCertificate: [version] serial, algorithm, issuer, validity (two times), ….
    """
    _, certificate = next(_parts(der))
    _, inner = next(_parts(certificate))
    fields = [part for part in _parts(inner) if part[0] != _VERSION]
    kind, period = fields[3]
    moments = [_moment(kind, content) for kind, content in _parts(period)] if kind == _SEQUENCE else []
    if len(moments) != 2:  # noqa: PLR2004
        raise ValueError("no period of validity found: not a certificate?")
    return moments[0], moments[1]


def _parts(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of the DER values that stand one after the other."""
    while data:
        tag, length, at = data[0], data[1], 2
        if length >= _LONG_FORM:
            at += length - _LONG_FORM
            length = int.from_bytes(data[2:at], "big")
        if at + length > len(data):
            raise ValueError("cut off in the middle")
        yield tag, data[at : at + length]
        data = data[at + length :]


def _moment(tag: int, content: bytes) -> float:
    text = content.decode("ascii")
    if tag == _UTC_TIME:
        text = ("19" if int(text[:2]) >= _CENTURY_TURNS else "20") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError("a period of validity without times")
    return dt.datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=dt.UTC).timestamp()
