"""The order in which addresses are tried: profile by profile, a host that failed comes last from then on."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from kwdb_build.errors import SourceError, UnknownReferenceError
from kwdb_build.source.profiles import Policy, Profile, distinct, host_of
from kwdb_build.source.reference import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from kwdb_build.source.client import GitClient

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One way to a repository: the profile, a client that goes there, and the address that this really is."""

    profile: str
    client: GitClient
    url: str
    address: str

    @property
    def shown(self) -> str:
        """For messages: the URL, and where it leads when that is elsewhere."""
        address = redact(self.address)
        return address if address == redact(self.url) else f"{redact(self.url)} (redirected to {address})"


class Sources:
    """All profiles of one fetch, shared by its threads."""

    def __init__(
        self, profiles: Sequence[Profile] = (), *, policy: Policy | None = None, offline: bool = False
    ) -> None:
        self.profiles = tuple(profiles) or (Profile(name="gitee"),)
        self.offline = offline
        self._policy = policy or Policy()
        self._failed: set[str] = set()
        self._lock = threading.Lock()
        self.fetched_bytes = 0
        self.used: set[Path] = set()
        """Caches that were opened."""

    def count(self, size_bytes: int) -> None:
        """Add to what was fetched."""
        with self._lock:
            self.fetched_bytes += size_bytes

    def of(self, client: GitClient, url: str, cwd: Path) -> tuple[Source, ...]:
        """Ways to url, best first; SourceError when none of them is allowed."""
        found, refused = [], []
        for profile in distinct(self.profiles, url):
            led = replace(client, redirects=profile.redirects)
            # Asked of git itself: the person's own configuration may redirect as well.
            address = led.text("ls-remote", "--get-url", url, cwd=cwd, what="reading redirects")
            try:
                self._policy.require(address)
            except SourceError as error:
                refused.append(error)
                continue
            found.append(Source(profile=profile.name, client=led, url=url, address=address))
        if not found:
            raise refused[0]
        with self._lock:
            return tuple(sorted(found, key=lambda source: _host(source) in self._failed))

    def each(self, ways: Sequence[Source], doing: Callable[[Source], _T]) -> _T:
        """What doing gives for the first way where it works; the error of the first one when it works nowhere.

        An unknown reference is an answer and no failure: it ends the search.
        """
        errors: list[SourceError] = []
        for number, source in enumerate(ways):
            try:
                return doing(source)
            except UnknownReferenceError:
                raise
            except SourceError as error:
                errors.append(error)
                with self._lock:
                    self._failed.add(_host(source))
                after = ways[number + 1] if number + 1 < len(ways) else None
                onward = f"; trying {redact(after.address)} ({after.profile})" if after is not None else ""
                if len(ways) > 1:
                    source.client.progress.note(f"{error.message}{onward}")
        first = errors[0]
        if len(errors) > 1:
            tried = [f"{way.profile}: {error.message}" for way, error in zip(ways, errors, strict=True)]
            first.context = "\n".join([*tried, *filter(None, [first.context])])
        raise first


def _host(source: Source) -> str:
    return host_of(source.address) or source.address
