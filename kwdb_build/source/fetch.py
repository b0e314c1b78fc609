"""From a URL and a reference to a checkout with its pinned submodules, under home/source/<commit>.

A checkout is made under a temporary name and renamed when it is whole; one that is there is checked and used again.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kwdb_build.errors import DependencyError, SourceError, SpaceError
from kwdb_build.files import free_bytes, fsync_directory, require_space
from kwdb_build.model import SOURCE_SUFFIX, SourceTree
from kwdb_build.source.client import STALL_TIMEOUT_S, GitClient
from kwdb_build.source.inspect import changes, full_disk_said, holds_store, read_tree
from kwdb_build.source.mirror import LOCK_TIMEOUT_S, MARGIN_BYTES, Mirror, hold, set_aside
from kwdb_build.source.reference import Redirect, redact, scheme_of, validate_ref, validate_url
from kwdb_build.source.submodules import SubmoduleFetcher, tree_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from kwdb_build.console import Progress

_OLDEST_GIT = (2, 31)
"""First git that reads settings from GIT_CONFIG_COUNT."""
_SHOWN_CHANGES = 5
_FULL_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class SourceRequest:
    """What a person asked for: where, which tag, branch or commit, and redirects for it and the submodules."""

    url: str
    ref: str
    redirects: tuple[Redirect, ...] = ()


def fetch(
    request: SourceRequest,
    *,
    home: Path,
    progress: Progress,
    log: Path,
    stall_timeout_s: float = STALL_TIMEOUT_S,
    lock_timeout_s: float = LOCK_TIMEOUT_S,
) -> SourceTree:
    """Have the commit that request.ref names now, with its submodules, and describe the checkout.

    log gets everything git says. A git that is silent for stall_timeout_s is given up; another fetch at the same
    thing is waited for up to lock_timeout_s.
    Errors: SourceError and its kinds, SpaceError, LockedError; what had arrived whole stays for the next run.
    """
    ref = validate_ref(request.ref)
    url = absolute_url(validate_url(request.url))
    redirects = tuple(replace(entry, replacement=absolute_url(entry.replacement)) for entry in request.redirects)
    client, clean = GitClient(
        redirects=redirects, progress=progress, log=log, stall_timeout_s=stall_timeout_s
    ).with_url(url)
    home = home.absolute()
    with full_disk_said(home, "fetching", log=log):
        _require_git(client, home)
        mirror = Mirror(url=clean, home=home, client=client, lock_timeout_s=lock_timeout_s)
        with mirror.locked() as cache:
            commit = mirror.resolve(cache, ref).commit
        submodules = SubmoduleFetcher(client=client, home=home, main_url=clean, lock_timeout_s=lock_timeout_s)
        checkout = Checkout(
            commit=commit, ref=ref, url=clean, mirror=mirror, submodules=submodules, client=client,
            place=home / "source" / commit, lock_timeout_s=lock_timeout_s,
        )
        tree = checkout.make()
    progress.update(f"{tree.version} at {tree.commit[:12]}, {len(tree.submodules)} submodules")
    return tree


@dataclass(frozen=True, kw_only=True)
class Checkout:
    """home/source/<commit>: made, or found whole and used again."""

    commit: str
    ref: str
    url: str
    mirror: Mirror
    submodules: SubmoduleFetcher
    client: GitClient
    place: Path
    lock_timeout_s: float

    def make(self) -> SourceTree:
        """The checkout, described."""
        with hold(
            self.place.with_name(f"{self.place.name}.lock"), what=f"checking out {self.commit[:12]}",
            progress=self.client.progress, timeout_s=self.lock_timeout_s,
        ):
            return self._reuse() or self._create()

    def _reuse(self) -> SourceTree | None:
        path = self.place / SOURCE_SUFFIX
        if not self.place.exists():
            return None
        try:
            self._update_tags(path)
            tree = read_tree(path, url=self.url, ref=self.ref, client=self.client)
            found = changes(self.client, tree) if tree.commit == self.commit else (f"HEAD is {tree.commit}",)
        except SourceError as error:
            found = (error.message,)
        else:
            if not found:
                return tree
        self._discard(found)
        return None

    def _update_tags(self, path: Path) -> None:
        """Take over tags that came after the checkout: they decide the version text."""
        if not (path / ".git").is_dir():
            raise SourceError(f"no checkout at {path}")
        with self.mirror.locked() as cache:
            self.client.run(
                "fetch", "--quiet", "--prune", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules",
                str(cache), "+refs/tags/*:refs/tags/*", cwd=path, what="updating the tags of the checkout",
            )

    def _discard(self, found: tuple[str, ...]) -> None:
        """Drop a half or changed checkout: it is our own cache. Never one in which somebody keeps a database."""
        shown = "\n".join(found[:_SHOWN_CHANGES])
        store = holds_store(self.place)
        if store is not None:
            raise SourceError(
                f"the cached checkout {self.place} was changed and holds a database store", context=f"{store}\n{shown}",
                hint="stop that server and move its store elsewhere; nothing was touched",
            )
        self.client.progress.note(f"the cached checkout was changed ({found[0]}); it is made again")
        aside = set_aside(self.place)
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)

    def _create(self) -> SourceTree:
        temporary = self.place.with_name(f".{self.place.name}.new")
        shutil.rmtree(temporary, ignore_errors=True)
        path = temporary / SOURCE_SUFFIX
        path.parent.mkdir(parents=True)
        try:
            tree = self._fill(path)
            # One flush for all: after a power cut the renamed tree must not hold empty files.
            os.sync()
            temporary.rename(self.place)
            fsync_directory(self.place.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return replace(tree, path=self.place / SOURCE_SUFFIX)

    def _fill(self, path: Path) -> SourceTree:
        try:
            self._clone(path)
            self.submodules.fill(path, self.commit, base_url=self.url)
            tree = read_tree(path, url=self.url, ref=self.ref, client=self.client)
            self._require_clean(tree)
        except SourceError as error:
            # A checkout that meets a full disk says `unable to write file`, without the reason.
            if free_bytes(path.parent) > _FULL_BYTES:
                raise
            raise SpaceError(
                f"the file system of {self.place} became full: {error.message}", context=error.context, log=error.log,
                hint="free space there, or choose another place with --home, and run it again",
            ) from error
        return tree

    def _clone(self, path: Path) -> None:
        """A clone of the cache (hard links to its packs: git never changes a pack), at exactly the commit."""
        with self.mirror.locked() as cache:
            needed = MARGIN_BYTES + tree_bytes(self.client, cache, self.commit)
            require_space(path.parent, needed, f"checkout of {self.commit[:12]}")
            run = self.client.run
            run(
                "clone", "--quiet", "--no-checkout", "--local", "--no-recurse-submodules", str(cache), str(path),
                cwd=path.parent, what="cloning the cache",
            )
        run("remote", "set-url", "origin", redact(self.url), cwd=path, what="setting up the checkout")
        self.submodules.prefetch(path, self.commit)
        self.client.progress.update("checking out")
        run("checkout", "--progress", "--detach", "--force", self.commit, cwd=path, what="checking out")

    def _require_clean(self, tree: SourceTree) -> None:
        found = changes(self.client, tree)
        if tree.commit != self.commit or found:
            raise SourceError(
                f"the checkout of {self.commit[:12]} is not clean right after it was made",
                context="\n".join(found[:_SHOWN_CHANGES]), log=self.client.log,
                hint="a .gitattributes of the tree rewrites files, or the file system ignores case or modes",
            )


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
