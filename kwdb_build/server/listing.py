"""What a list of servers tells beside what processes say of themselves: the version of each."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import re
import ssl
from typing import TYPE_CHECKING

from kwdb_build.errors import KwdbBuildError
from kwdb_build.server import capture, startflags

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kwdb_build.server.discover import Found

_TIMEOUT_S = 2.0
_LIMIT = 4 << 20
_TAG = re.compile(r'^build_timestamp\{[^}]*\btag="(?P<tag>[^"]+)"', re.MULTILINE)


def with_versions(found: Iterable[Found]) -> tuple[Found, ...]:
    """The servers with their versions, '' for those that do not tell: by HTTP, else by their own binaries."""
    return tuple(dataclasses.replace(server, version=_version(server)) for server in found)


def parse_version(page: str) -> str:
    """The tag in /_status/vars, '' when there is none."""
    match = _TAG.search(page)
    return match["tag"] if match else ""


def _version(server: Found) -> str:
    if server.container:
        return ""  # its addresses may be those of another network
    with contextlib.suppress(OSError, http.client.HTTPException, KwdbBuildError):
        if said := parse_version(_page(server)):
            return said
    with contextlib.suppress(KwdbBuildError, OSError):
        return str(capture.capture(server.pid).version)
    return ""


def _page(server: Found) -> str:
    """/_status/vars needs no login. Nothing is sent there, so that nothing depends on the server's certificate."""
    address = startflags.parse_host_port(server.http, startflags.HTTP_PORT)
    host = "localhost" if address.wildcard else address.host
    connection: http.client.HTTPConnection
    if server.secure:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(host, address.port, timeout=_TIMEOUT_S, context=context)
    else:
        connection = http.client.HTTPConnection(host, address.port, timeout=_TIMEOUT_S)
    with contextlib.closing(connection):
        connection.request("GET", "/_status/vars")
        return connection.getresponse().read(_LIMIT).decode("utf-8", "replace")
