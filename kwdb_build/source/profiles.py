"""Where sources come from: named sets of prefix -> prefix, in an order of fall-back, and what may be talked to. Pure.

A profile changes where git goes, by its own insteadOf in the environment; nothing in a tree is edited.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from kwdb_build.errors import SourceError, UsageError
from kwdb_build.source.reference import (
    LOCAL_SCHEMES,
    SCHEMES,
    Redirect,
    apply_redirects,
    parse_redirect,
    redact,
    scheme_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

GITEE = "https://gitee.com/kwdb/"
GITHUB = "https://github.com/KWDB/"


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One place to fetch from: its name, and where it sends which URLs."""

    name: str
    redirects: tuple[Redirect, ...] = ()


def built_in(home: Path) -> dict[str, dict[str, str]]:
    """Profiles that need no settings file; `local` is home/mirror, with kwdb.git, kw-vendor.git, … in it."""
    return {"gitee": {}, "github": {GITEE: GITHUB}, "local": {GITEE: f"{home}/mirror/"}}


def profiles_of(
    names: Sequence[str], own: Mapping[str, Mapping[str, str]], *, home: Path, redirects: Sequence[Redirect] = ()
) -> tuple[Profile, ...]:
    """The named profiles in their order; own ones (of the settings file) come before built-in ones of the same name.

    redirects: what the person asked for besides. It holds in every profile and wins where both match.
    UsageError for an unknown name or an unusable prefix.
    """
    known = built_in(home) | {name: dict(pairs) for name, pairs in own.items()}
    made = []
    for name in dict.fromkeys(names) or ("gitee",):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            hint += f"known: {', '.join(known)}; own ones are [profiles.NAME] tables of the settings file"
            raise UsageError(f"unknown profile {name!r}", hint=hint)
        pairs = [parse_redirect(f"{prefix}={target}") for prefix, target in known[name].items()]
        kept = [pair for pair in pairs if not any(pair.prefix.startswith(said.prefix) for said in redirects)]
        made.append(Profile(name=name, redirects=(*redirects, *kept)))
    return tuple(made)


def distinct(profiles: Sequence[Profile], url: str) -> tuple[Profile, ...]:
    """Those that lead url to different addresses, the first of each."""
    found: dict[str, Profile] = {}
    for profile in profiles:
        found.setdefault(apply_redirects(url, profile.redirects), profile)
    return tuple(found.values())


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Hosts and kinds of URL that may be talked to. hosts empty: any; `*.example.com` stands for all below it."""

    hosts: tuple[str, ...] = ()
    schemes: tuple[str, ...] = SCHEMES

    def require(self, url: str) -> None:
        """SourceError when url is not allowed; it is where git would really go, after all redirects."""
        scheme = scheme_of(url) or "file"
        if scheme not in self.schemes:
            raise SourceError(
                f"{scheme} is not among the allowed kinds of URL: {redact(url)}",
                context=f"allowed_schemes = {', '.join(self.schemes)}",
                hint="choose another --url or --profile, or allow it by the setting allowed_schemes",
            )
        host = host_of(url)
        if self.hosts and scheme not in LOCAL_SCHEMES and not any(_matches(host, allowed) for allowed in self.hosts):
            raise SourceError(
                f"the host {host} is not among the allowed ones: {redact(url)}",
                context=f"allowed_hosts = {', '.join(self.hosts)}",
                hint="choose another --url or --profile, or allow it by the setting allowed_hosts",
            )


def host_of(url: str) -> str:
    """Host name of a URL or of user@host:path, in small letters; '' for what lies on this machine."""
    if scheme_of(url) in LOCAL_SCHEMES:
        return ""
    if "://" in url:
        return (urlsplit(url).hostname or "").lower()
    return url.partition(":")[0].rpartition("@")[2].lower()


def _matches(host: str, allowed: str) -> bool:
    allowed = allowed.lower()
    return host.endswith(allowed[1:]) if allowed.startswith("*.") else host == allowed
