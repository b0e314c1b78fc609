"""From a URL and a reference to a checkout with its submodules, under home/source."""

from __future__ import annotations

import os
import re
import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from kwdb_build.errors import DependencyError, SourceError, UnknownReferenceError, UnreachableSourceError
from kwdb_build.files import full_disk_said, human_bytes
from kwdb_build.source.cachelock import LOCK_TIMEOUT_S, hold, set_aside
from kwdb_build.source.checkout import DEFAULT_SKIP, Checkout, missing_error
from kwdb_build.source.client import STALL_TIMEOUT_S, GitClient
from kwdb_build.source.mirror import Mirror, MissingError
from kwdb_build.source.profiles import Policy, Profile
from kwdb_build.source.reference import Redirect, scheme_of, validate_ref, validate_url
from kwdb_build.source.resolve import Resolver
from kwdb_build.source.signature import SignatureRule, require_signed
from kwdb_build.source.sources import Sources
from kwdb_build.source.submodules import SubmoduleFetcher
from kwdb_build.source.transfer import Board

if TYPE_CHECKING:
    from pathlib import Path

    from kwdb_build.console import Progress
    from kwdb_build.model import SourceTree
    from kwdb_build.source.reference import Target

_OLDEST_GIT = (2, 31)
"""First git that reads settings from GIT_CONFIG_COUNT."""


@dataclass(frozen=True, kw_only=True)
class SourceRequest:
    """What a person asked for: where, which reference, and how.

    profiles: places to fetch from, in the order of fall-back; redirects hold in all of them. remote_submodules: the
    tips of their branches instead of the pinned commits. skip: directories whose files are left out. A host that is
    silent for stall_timeout_s is given up.
    """

    url: str
    ref: str
    redirects: tuple[Redirect, ...] = ()
    profiles: tuple[Profile, ...] = ()
    policy: Policy = field(default_factory=Policy)
    remote_submodules: bool = False
    offline: bool = False
    skip: tuple[str, ...] = DEFAULT_SKIP
    signature: SignatureRule = field(default_factory=SignatureRule)
    stall_timeout_s: float = STALL_TIMEOUT_S

    def ways(self) -> tuple[Profile, ...]:
        """The profiles with absolute local paths; one with the redirects alone when none was named."""
        given = self.profiles or (Profile(name="redirect", redirects=self.redirects),)
        return tuple(
            replace(
                profile, redirects=tuple(
                    replace(entry, replacement=absolute_url(entry.replacement)) for entry in profile.redirects
                ),
            )
            for profile in given
        )


def fetch(
    request: SourceRequest,
    *,
    home: Path,
    progress: Progress,
    log: Path,
    lock_timeout_s: float = LOCK_TIMEOUT_S,
) -> SourceTree:
    """Have the commit that request.ref names now, with its submodules, and describe the checkout.

    log gets everything git says. A host that is silent for too long is given up; another fetch at the same
    thing is waited for up to lock_timeout_s. A cache that turns out to be damaged is set aside and fetched again, once.
    Errors: SourceError and its kinds, SpaceError, LockedError; what had arrived whole stays for the next run.
    """
    validate_ref(request.ref)
    validate_url(request.url)
    work = _Fetch(request, home.absolute(), progress, log, lock_timeout_s)
    try:
        return work.run()
    except (UnreachableSourceError, UnknownReferenceError, MissingError):
        raise
    except SourceError as error:
        if not work.set_damaged_aside() or request.offline:
            raise
        progress.note(f"trying once more: {error.message}")
        return _Fetch(request, home.absolute(), progress, log, lock_timeout_s).run()


class _Fetch:
    """One try."""

    def __init__(
        self, request: SourceRequest, home: Path, progress: Progress, log: Path, lock_timeout_s: float
    ) -> None:
        self.request = request
        self.home = home
        self.progress = progress
        self.lock_timeout_s = lock_timeout_s
        self.sources = Sources(request.ways(), policy=request.policy, offline=request.offline)
        client = GitClient(
            redirects=self.sources.profiles[0].redirects, progress=progress, log=log,
            stall_timeout_s=request.stall_timeout_s,
        )
        self.client, self.url = client.with_url(absolute_url(request.url))

    def run(self) -> SourceTree:
        """Resolve, gather, check out."""
        began = time.monotonic()
        with full_disk_said(self.home, "fetching", log=self.client.log):
            _require_git(self.client, self.home)
            board = Board(self.progress)
            mirror = Mirror(
                url=self.url, home=self.home, client=self.client, sources=self.sources,
                lock_timeout_s=self.lock_timeout_s,
            )
            target, signed = self._resolve(mirror, board)
            submodules = SubmoduleFetcher(
                client=self.client, home=self.home, main_url=self.url, lock_timeout_s=self.lock_timeout_s,
                sources=self.sources, board=board, remote=self.request.remote_submodules,
            )
            tree = Checkout(
                commit=target.commit, ref=self.request.ref, url=self.url, home=self.home, mirror=mirror,
                submodules=submodules, client=self.client, lock_timeout_s=self.lock_timeout_s,
                skip=self.request.skip,
            ).make()
        if self.sources.fetched_bytes:
            seconds = time.monotonic() - began
            self.progress.note(f"fetched {human_bytes(self.sources.fetched_bytes)} in {seconds:.1f} s")
        self.progress.update(f"{tree.version} at {tree.commit[:12]}, {len(tree.submodules)} submodules")
        return replace(tree, signature=signed)

    def _resolve(self, mirror: Mirror, board: Board) -> tuple[Target, str]:
        """What the reference means, with its history in the cache, and who signed it."""
        channel = board.open("")
        try:
            seen = replace(mirror, client=replace(self.client, progress=channel))
            with seen.locked() as cache:
                resolver = Resolver(mirror=seen, path=cache)
                target = resolver.resolve(self.request.ref)
                resolver.remember(target)
                return target, require_signed(self.client, cache, target, self.request.signature)
        except MissingError as error:
            raise missing_error([error.message]) from error
        finally:
            channel.close()

    def set_damaged_aside(self) -> bool:
        """Look at the caches that were used; move damaged ones away. Whether there was one."""
        found = False
        client = replace(self.client, cancelled=threading.Event())  # a failure has cancelled the other one
        for path in sorted(self.sources.used):
            if not path.is_dir():
                continue
            with hold(
                path.with_suffix(".lock"), what="checking the cache", progress=self.progress,
                timeout_s=self.lock_timeout_s,
            ):
                if not client.run(
                    "fsck", "--connectivity-only", "--no-dangling", "--no-progress", cwd=path,
                    what="checking the cache", check=False,
                ).ok:
                    aside = set_aside(path)
                    self.progress.note(f"the cache {path} is damaged: it was set aside as {aside}")
                    found = True
        return found


def absolute_url(url: str) -> str:
    """A local path as an absolute one (git runs elsewhere); other URLs as they are. A last / is kept: it matters."""
    if scheme_of(url):
        return url
    path = os.path.abspath(os.path.expanduser(url))  # noqa: PTH100, PTH111  # without resolving symlinks
    return path + "/" if url.endswith("/") and path != "/" else path


def _require_git(client: GitClient, home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    text = client.text("version", cwd=home, what="asking git for its version")
    match = re.search(r"(\d+)\.(\d+)", text)
    if match is None or (int(match[1]), int(match[2])) < _OLDEST_GIT:
        raise DependencyError(
            f"{text or 'git'} is too old", hint=f"git {'.'.join(map(str, _OLDEST_GIT))} or newer is needed"
        )


