"""From git's words to an error that a person can act on. Pure; git runs with LC_ALL=C, so its words are English."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kwdb_build.errors import SourceError, SpaceError, UnreachableSourceError
from kwdb_build.source.reference import redact

if TYPE_CHECKING:
    from pathlib import Path

_TAIL_LINES = 12
_PROGRESS = re.compile(r"^(?:remote: )?(?P<what>[A-Z][A-Za-z ]+): +(?P<percent>\d+)% \((?P<done>\d+)/(?P<total>\d+)\)")

_SPEED = re.compile(
    r", (?P<size>[\d.]+) (?P<unit>bytes|[KMG]iB)(?: \| (?P<speed>[\d.]+) (?P<per>bytes|[KMG]iB)/s)?"
)
_UNITS = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


@dataclass(frozen=True, kw_only=True)
class Cause:
    """A known failure: the pattern in git's output, what it means, and the way out."""

    pattern: re.Pattern[str]
    error: type[SourceError | SpaceError]
    words: str
    hint: str


def _cause(pattern: str, error: type[SourceError | SpaceError], words: str, hint: str) -> Cause:
    return Cause(pattern=re.compile(pattern, re.IGNORECASE), error=error, words=words, hint=hint)


_NETWORK = "check the network and the proxy (git config http.proxy, https_proxy), or a mirror: --profile, --redirect"
CAUSES = (
    _cause(
        r"no space left on device|out of diskspace|disk quota exceeded|file system is full", SpaceError,
        "the file system became full", "free space there, or choose another place with --home, and run it again",
    ),
    _cause(
        r"could not resolve (?:host|proxy)|name or service not known|temporary failure in name resolution|"
        r"unable to look up|no address associated", UnreachableSourceError,
        "the host name cannot be resolved (DNS)", _NETWORK,
    ),
    _cause(
        r"certificate|ssl[_ ]connect|ssl routines|tls handshake|gnutls_handshake|wrong version number|ssl peer",
        UnreachableSourceError, "no trusted TLS connection",
        "for a company's own authority set git config http.sslCAInfo; check this machine's clock",
    ),
    _cause(
        r"authentication failed|could not read (?:username|password)|terminal prompts disabled|permission denied \(|"
        r"host key verification failed|returned error: 40[13]|access denied(?! or repository not exported)",
        SourceError, "the host refused the login",
        "set up git's credential helper or an ssh key for this host, and try `git ls-remote` with the same URL",
    ),
    _cause(
        r"unsafe repository|dubious ownership", SourceError, "the repository belongs to another user",
        "if you trust it: git config --global --add safe.directory PATH",
    ),
    _cause(
        r"transport '.*' not allowed", SourceError, "this kind of URL is not allowed",
        "use https, ssh, git or a local path",
    ),
    _cause(
        r"shallow update not allowed|does not allow fetching from shallow", SourceError,
        "the source is a shallow clone", "complete it there with `git fetch --unshallow --tags`",
    ),
    _cause(
        r"unable to read [0-9a-f]{40}|repository corruption|missing (?:blob|tree|commit)|bad object|"
        r"did not send all necessary objects|remote error: .*corrupt|could not open pack",
        SourceError, "the repository lacks objects that its own commits name",
        "it is damaged or an incomplete copy: check it with `git fsck`, or fetch from another mirror",
    ),
    _cause(
        r"could not fetch .* from promisor|lazy fetching disabled", SourceError,
        "the repository lacks objects that it had promised", "run it again: what is missing is fetched",
    ),
    _cause(
        r"not our ref|unadvertised object|no such remote ref|couldn't find remote ref", SourceError,
        "the repository does not have this commit", "check the commit hash, or fetch from another mirror",
    ),
    _cause(
        r"connection refused|couldn't connect|failed to connect|could not connect|no route to host|"
        r"network is unreachable|unable to connect", UnreachableSourceError,
        "nobody answers at that address (connection refused or no route)", _NETWORK,
    ),
    _cause(
        r"timed? ?out|operation too slow|less than \d+ bytes/sec", UnreachableSourceError,
        "the host was too slow or silent", _NETWORK,
    ),
    _cause(
        r"returned error: 5\d\d|returned error: 429", UnreachableSourceError, "the host is overloaded or broken",
        "try again later, or use --redirect to a mirror",
    ),
    _cause(
        r"does not appear to be a git repository|repository .* not found|not valid: is this a git repository|"
        r"returned error: 404|not a git repository|repository not exported|no such (?:repository|project)|"
        r"invalid gitfile|dumb http transport|expected flush|bad line length",
        SourceError, "there is no git repository at that address",
        "check the URL: `git ls-remote URL` should list tags and branches",
    ),
    _cause(
        r"early eof|unexpected disconnect|hung up|rpc failed|connection (?:was )?reset|transfer closed|"
        r"recv failure|connection closed|broken pipe|unexpected end|invalid index-pack output|bad pack header|"
        r"non-properly terminated",
        UnreachableSourceError, "the connection was cut in the middle", "run it again: what has arrived whole is kept",
    ),
)


def explain(
    stderr: str, *, what: str, url: str = "", log: Path | None = None, seen: str = ""
) -> SourceError | SpaceError:
    """The error for a failed git: what was tried, the cause if it is a known one, and git's last lines."""
    text = redact(stderr)
    lines = [line for line in text.splitlines() if line.strip() and parse_progress(line) is None]
    context = "\n".join([*([seen] if seen else []), *lines[-_TAIL_LINES:]])
    where = f" {redact(url)}" if url else ""
    for cause in CAUSES:
        if cause.pattern.search(stderr):
            return cause.error(f"{what}{where} failed: {cause.words}", context=context, hint=cause.hint, log=log)
    return SourceError(
        f"{what}{where} failed", context=context, hint="git's own words above and in the log say why", log=log
    )


def stalled(*, what: str, url: str, seconds: float, log: Path | None) -> UnreachableSourceError:
    """The error for a git that said nothing for too long."""
    where = f" {redact(url)}" if url else ""
    return UnreachableSourceError(
        f"{what}{where} failed: nothing arrived for {seconds:g} s", hint=_NETWORK, log=log
    )


def parse_progress(line: str) -> tuple[str, int, int] | None:
    """`Receiving objects:  24% (16038/66823), 26 MiB` -> ('receiving objects', 16038, 66823); None for other lines."""
    match = _PROGRESS.match(line.strip())
    return (match["what"].lower(), int(match["done"]), int(match["total"])) if match else None


def parse_speed(line: str) -> tuple[float, float]:
    """Bytes and bytes a second of `Receiving objects: 24% (…), 26.00 MiB | 5.20 MiB/s`; 0 for what it does not say."""
    match = _SPEED.search(line)
    if match is None:
        return 0.0, 0.0
    speed = float(match["speed"]) * _UNITS[match["per"]] if match["speed"] else 0.0
    return float(match["size"]) * _UNITS[match["unit"]], speed
