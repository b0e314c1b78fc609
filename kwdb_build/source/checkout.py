"""A checkout under home/source: made out of the caches in seconds, or found whole and used again.

Its .git holds hard links to the packs of the cache (git never changes a pack) and no way back to it, so that it can be
copied or mounted elsewhere. It is made under a temporary name and renamed when it is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from kwdb_build.errors import SourceError, SpaceError
from kwdb_build.files import free_bytes, fsync_directory, require_space
from kwdb_build.model import SOURCE_SUFFIX, SourceTree
from kwdb_build.source.cachelock import hold, set_aside
from kwdb_build.source.client import CancelledError
from kwdb_build.source.inspect import PINNED, REMOTE_TIPS, changes, holds_store, read_tree
from kwdb_build.source.mirror import MARGIN_BYTES, REMOTE, Mirror, MissingError
from kwdb_build.source.reference import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from threading import Event

    from kwdb_build.source.client import GitClient
    from kwdb_build.source.submodules import Part, SubmoduleFetcher

_T = TypeVar("_T")
_SHOWN_CHANGES = 5
_SHOWN_MISSING = 20
_FULL_BYTES = 1 << 20
_AT_ONCE = 4
DEFAULT_SKIP = ("qa", "kwbase/pkg/cmd/roachtest/fixtures")
"""KWDB's own tests and their fixtures: two thirds of the bytes of a release, and no build reads them (its CMakeLists
enters qa/ only for WITH_TESTS)."""


def place_name(commit: str, *, skip: tuple[str, ...] = DEFAULT_SKIP, tips: dict[str, str] | None = None) -> str:
    """Directory name of a checkout: the commit, and what is unusual about it (files left out, submodules at tips)."""
    name = commit
    if skip != DEFAULT_SKIP:
        name += f"-without-{_digest(*skip)}" if skip else "-full"
    if tips is not None:
        name += f"-remote-{_digest(*(f'{path}={oid}' for path, oid in sorted(tips.items())))}"
    return name


def _digest(*words: str) -> str:
    return hashlib.sha256("\0".join(words).encode("utf-8", "surrogateescape")).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class Checkout:
    """One wanted checkout of the main repository (mirror) and its submodules."""

    commit: str
    ref: str
    url: str
    home: Path
    mirror: Mirror
    submodules: SubmoduleFetcher
    client: GitClient
    lock_timeout_s: float
    skip: tuple[str, ...] = DEFAULT_SKIP

    @property
    def mode(self) -> str:
        """How the submodules were chosen."""
        return REMOTE_TIPS if self.submodules.remote else PINNED

    def make(self) -> SourceTree:
        """The checkout, described."""
        parts = self._gather() if self.submodules.remote else None
        tips = None if parts is None else {inner.shown: inner.commit for part in parts for inner in part.flat()}
        place = self.home / "source" / place_name(self.commit, skip=self.skip, tips=tips)
        with hold(
            place.with_name(f"{place.name}.lock"), what=f"checking out {self.commit[:12]}",
            progress=self.client.progress, timeout_s=self.lock_timeout_s,
        ):
            tree = self._reuse(place)
            if tree is None:
                tree = self._create(place, self._gather() if parts is None else parts)
            os.utime(place)  # `cache list` tells when it was last used
        return tree

    # ----------------------------------------------------------------- again

    def _reuse(self, place: Path) -> SourceTree | None:
        path = place / SOURCE_SUFFIX
        if not place.exists():
            return None
        found: tuple[str, ...] = (f"no checkout at {path}",)
        if (path / ".git").is_dir():
            try:
                if self.mirror.path.is_dir():
                    self._bring_tags(path)
                tree = self._read(path)
                found = changes(self.client, tree) if tree.commit == self.commit else (f"HEAD is {tree.commit}",)
                if not found:
                    return tree
            except SourceError as error:
                found = (error.message,)
        self._discard(place, found)
        return None

    def _read(self, path: Path) -> SourceTree:
        return read_tree(path, url=self.url, ref=self.ref, client=self.client, submodule_mode=self.mode)

    def _bring_tags(self, path: Path) -> None:
        """Take over the cache's tags, which decide the version text, and the length of abbreviated commits in it."""
        with self.mirror.locked() as cache:
            ours, theirs = _refs(self.client, path, "refs/tags"), _refs(self.client, cache, "refs/tags")
            lines = [f"update {name} {oid}\n" for name, oid in theirs.items() if ours.get(name) != oid]
            lines += [f"delete {name}\n" for name in ours.keys() - theirs.keys()]
            if lines:
                _link_objects(cache, path / ".git")
                self.client.run(
                    "update-ref", "--stdin", cwd=path, what="updating the tags of the checkout", stdin="".join(lines)
                )
            self._set_abbreviation(path, cache)

    def _set_abbreviation(self, path: Path, cache: Path) -> None:
        found = self.client.run(
            "describe", "--tags", "--match=V[0-9]*", self.commit, cwd=path, what="describing", check=False
        )
        if "-g" not in found.stdout:
            return
        digits = str(self.mirror.abbreviation(cache, self.commit))
        self.client.run("config", "core.abbrev", digits, cwd=path, what="setting up the checkout")

    def _discard(self, place: Path, found: tuple[str, ...]) -> None:
        """Drop a half or changed checkout: it is our own cache. Never one in which somebody keeps a database."""
        shown = "\n".join(found[:_SHOWN_CHANGES])
        store = holds_store(place)
        if store is not None:
            raise SourceError(
                f"the cached checkout {place} was changed and holds a database store", context=f"{store}\n{shown}",
                hint="stop that server and move its store elsewhere; nothing was touched",
            )
        self.client.progress.note(f"the cached checkout was changed ({found[0]}); it is made again")
        aside = set_aside(place)
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)

    # ----------------------------------------------------------------- anew

    def _gather(self) -> tuple[Part, ...]:
        """Have everything in the caches before a file is written: main repository and submodules at the same time.

        What is missing over there is then known in seconds, and what came stays for the next try.
        """
        with self.mirror.locked() as cache:
            self._missing_together([lambda: self.mirror.fill(cache, self.commit, only=(".gitmodules",))])
            jobs = self.submodules.jobs(cache, self.commit, base_url=self.url)
        results: list[Part | None] = self._missing_together([self._fill_main, *jobs])
        return tuple(part for part in results if part is not None)

    def _missing_together(self, jobs: Sequence[Callable[[], _T]]) -> list[_T]:
        """All results; offline everything that is missing is told in one error."""
        results, errors = together(jobs, self.client.cancelled, patient=self.submodules.sources.offline)
        missing = [error for error in errors if isinstance(error, MissingError)]
        other = [error for error in errors if not isinstance(error, MissingError)]
        if other:
            raise other[0]
        if missing:
            raise missing_error([error.message for error in missing])
        return results

    def _fill_main(self) -> None:
        channel = self.submodules.board.open("main repository")
        try:
            mirror = replace(self.mirror, client=replace(self.client, progress=channel))
            with mirror.locked() as cache:
                mirror.fill(cache, self.commit, skip=self.skip)
        finally:
            channel.close()

    def _create(self, place: Path, parts: tuple[Part, ...]) -> SourceTree:
        temporary = place.with_name(f".{place.name}.new")
        shutil.rmtree(temporary, ignore_errors=True)
        path = temporary / SOURCE_SUFFIX
        path.parent.mkdir(parents=True)
        try:
            tree = self._fill(path, parts)
            # One flush for all: after a power cut the renamed tree must not hold empty files.
            os.sync()
            temporary.rename(place)
            fsync_directory(place.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return replace(tree, path=place / SOURCE_SUFFIX)

    def _fill(self, path: Path, parts: tuple[Part, ...]) -> SourceTree:
        try:
            self._check_out(path, parts)
            for part in parts:
                self._check_out_part(path, path / ".git", part)
            tree = self._read(path)
            self._require_clean(tree)
        except SourceError as error:
            # A checkout that meets a full disk says `unable to write file`, without the reason.
            if free_bytes(path.parent) > _FULL_BYTES:
                raise
            raise SpaceError(
                f"the file system of {self.home} became full: {error.message}", context=error.context, log=error.log,
                hint="free space there, or choose another place with --home, and run it again",
            ) from error
        return tree

    def _check_out(self, path: Path, parts: tuple[Part, ...]) -> None:
        run = self.client.run
        with self.mirror.locked() as cache:
            needed = MARGIN_BYTES + self.mirror.fill(cache, self.commit, skip=self.skip)
            needed += sum(inner.disk_bytes for part in parts for inner in part.flat())
            require_space(path.parent, needed, f"checkout of {self.commit[:12]}")
            run(
                "init", "--quiet", "--object-format=sha1", "--initial-branch=master", str(path), cwd=path.parent,
                what="setting up the checkout",
            )
            set_up(self.client, path, path / ".git", cache, redact(self.url))
            refs = _refs(self.client, cache, "refs/tags")
            refs |= {
                name.replace("refs/heads/", "refs/remotes/origin/", 1): oid
                for name, oid in _refs(self.client, cache, "refs/heads").items()
            }
            lines = "".join(f"create {name} {oid}\n" for name, oid in refs.items())
            run("update-ref", "--stdin", cwd=path, what="setting up the checkout", stdin=lines)
            run("pack-refs", "--all", cwd=path, what="setting up the checkout")
            self._set_abbreviation(path, cache)
        if self.skip:
            (path / ".git" / "info").mkdir(exist_ok=True)
            lines = "".join(f"!/{name}/\n" for name in self.skip)
            (path / ".git" / "info" / "sparse-checkout").write_text(f"/*\n{lines}", encoding="utf-8")
            run("config", "core.sparseCheckout", "true", cwd=path, what="setting up the checkout")
        self.client.progress.update("checking out")
        run("checkout", "--progress", "--detach", "--force", self.commit, cwd=path, what="checking out")

    def _check_out_part(self, tree: Path, gitdir: Path, part: Part) -> None:
        """Lay out a submodule as git itself does: its .git in modules/<name> of the one above it, by relative paths."""
        path, own = tree / part.pin.path, gitdir / "modules" / part.pin.name
        if path.is_symlink() or not path.resolve().is_relative_to(tree.resolve()) or (own / "HEAD").exists():
            raise SourceError(f"submodule {part.shown} cannot be placed at {part.pin.path!r}", log=self.client.log)
        path.mkdir(parents=True, exist_ok=True)
        own.parent.mkdir(parents=True, exist_ok=True)
        run = self.client.run
        run(
            "init", "--quiet", "--object-format=sha1", "--initial-branch=master", f"--separate-git-dir={own}",
            str(path), cwd=tree, what=f"setting up submodule {part.shown}",
        )
        (path / ".git").write_text(f"gitdir: {os.path.relpath(own, path)}\n", encoding="utf-8")
        run("config", "core.worktree", os.path.relpath(path, own), cwd=own, what=f"setting up {part.shown}")
        for key, value in (("url", redact(part.address)), ("active", "true")):
            run("config", f"submodule.{part.pin.name}.{key}", value, cwd=tree, what=f"setting up {part.shown}")
        with part.mirror.locked() as cache:
            set_up(self.client, path, own, cache, redact(part.address))
        self.client.progress.update(f"checking out {part.shown}")
        run("checkout", "--progress", "--detach", "--force", part.commit, cwd=path, what=f"checking out {part.shown}")
        for inner in part.parts:
            self._check_out_part(path, own, inner)

    def _require_clean(self, tree: SourceTree) -> None:
        found = changes(self.client, tree)
        if tree.commit != self.commit or found:
            raise SourceError(
                f"the checkout of {self.commit[:12]} is not clean right after it was made",
                context="\n".join(found[:_SHOWN_CHANGES]), log=self.client.log,
                hint="a .gitattributes of the tree rewrites files, or the file system ignores case or modes",
            )


def missing_error(lines: Sequence[str]) -> MissingError:
    """The error for everything that an offline fetch lacks."""
    more = [f"and {len(lines) - _SHOWN_MISSING} more"] if len(lines) > _SHOWN_MISSING else []
    return MissingError(
        f"offline, and not everything is here: {lines[0]}" if len(lines) == 1
        else f"offline, and {len(lines)} things are not here",
        context="\n".join([*lines[:_SHOWN_MISSING], *more]),
        hint="run it once without --offline (`kwdb-build fetch REF` is enough), on this machine and with this --home",
    )


def together(
    jobs: Sequence[Callable[[], _T]], cancelled: Event, *, patient: bool = False
) -> tuple[list[_T], list[SourceError]]:
    """Run jobs at the same time, a few at once.

    The first failure (or Ctrl-C) ends the others and is raised; with patient, all run to their end, and what was
    wrong with the source comes back as a list.
    """
    from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

    if len(jobs) == 1 and not patient:
        return [jobs[0]()], []
    results: list[_T] = []
    errors: list[SourceError] = []
    with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        futures = [pool.submit(job) for job in jobs]
        try:
            done, _ = wait(futures, return_when="ALL_COMPLETED" if patient else FIRST_EXCEPTION)
            if any(future.exception() is not None for future in done) and not patient:
                cancelled.set()
        except BaseException:
            cancelled.set()
            raise
        finally:
            for future in futures:
                future.cancel()
    ended = [error for future in futures if not future.cancelled() and (error := future.exception()) is not None]
    fatal = [error for error in ended if not isinstance(error, CancelledError)]
    if not patient and ended:
        raise (fatal or ended)[0]
    for future in futures:
        try:
            results.append(future.result())
        except SourceError as error:
            errors.append(error)
    return results, errors


def set_up(client: GitClient, path: Path, gitdir: Path, cache: Path, url: str) -> None:
    """Give a new repository the objects of a cache, its origin, and the marks of a repository that lacks some."""
    _link_objects(cache, gitdir)
    (gitdir / "info").mkdir(exist_ok=True)
    # Above every .gitattributes of the tree: no filter of this machine's configuration runs for it.
    (gitdir / "info" / "attributes").write_text("* -filter\n", encoding="utf-8")
    client.run("remote", "add", "origin", url, cwd=path, what="setting up the checkout")
    partial = client.run(
        "config", "--get", f"remote.{REMOTE}.promisor", cwd=cache, what="reading the cache", check=False
    )
    if partial.stdout == "true":
        client.run("config", "core.repositoryFormatVersion", "1", cwd=path, what="setting up the checkout")
        client.run("config", f"remote.{REMOTE}.promisor", "true", cwd=path, what="setting up the checkout")


def _link_objects(cache: Path, gitdir: Path) -> None:
    target = gitdir / "objects" / "pack"
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted((cache / "objects" / "pack").glob("pack-*")):
        if path.suffix in {".pack", ".idx", ".rev", ".promisor"} and not (target / path.name).exists():
            try:
                os.link(path, target / path.name)
            except OSError:
                shutil.copy2(path, target / path.name)
    with contextlib.suppress(FileNotFoundError):
        shutil.copyfile(cache / "shallow", gitdir / "shallow")


def _refs(client: GitClient, repository: Path, below: str) -> dict[str, str]:
    listing = client.text(
        "for-each-ref", "--format=%(refname) %(objectname)", below, cwd=repository, what="reading tags and branches"
    )
    return {name: oid for name, _, oid in (line.partition(" ") for line in listing.splitlines())}
