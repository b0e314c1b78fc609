"""A bare cache of one repository under home/cache/git, asked and filled under a lock.

It holds every commit and tree of all branches and tags, so that `git describe` can say what a full clone says, but of
the files only those that somebody needed: a host that can, sends commits and trees alone, and files by their hash.
Submodules, which nobody describes, come without history. Objects are told by their content, so all profiles share one
cache. Commits that were fetched by hash stay alive under refs/kwdb-build/.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from kwdb_build.errors import SourceError, UnreachableSourceError
from kwdb_build.files import read_json, require_space, tree_bytes, write_json
from kwdb_build.source import objects
from kwdb_build.source.cachelock import LOCK_TIMEOUT_S, clear_leftovers, hold, set_aside
from kwdb_build.source.reference import (
    RemoteRefs,
    is_local,
    local_path,
    parse_ls_remote,
    redact,
    scheme_of,
)
from kwdb_build.source.sources import Source, Sources
from kwdb_build.source.transfer import Channel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kwdb_build.source.client import GitClient

UNKNOWN_REMOTE_BYTES = 1 << 30
"""Room asked for before the first fetch from a host: git does not tell the size (KWDB's own pack is about 0.1 GiB)."""
MARGIN_BYTES = 64 << 20
REMOTE = "kwdb-build"
"""Name of the remote in our caches and checkouts. Its address is set for the length of one fetch and stands in no file,
so that no git goes to a network for a file that was left out."""
RECORD = "kwdb-build.json"
FILES_A_REQUEST = 1500
"""Files come in requests of so many: what a killed or cut fetch has already received is kept."""
_REFSPECS = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
_KEEP = "refs/kwdb-build/"
_EVERYTHING = str((1 << 31) - 1)
"""What git takes as a depth without end."""


class MissingError(SourceError):
    """Something is not in the cache, and nothing may be fetched."""

    reference = "offline"


@dataclass(frozen=True, kw_only=True)
class Mirror:
    """The cache of `url` (without password). sources knows the ways to it."""

    url: str
    home: Path
    client: GitClient
    sources: Sources = field(default_factory=Sources)
    lock_timeout_s: float = LOCK_TIMEOUT_S
    _said: set[str] = field(default_factory=set, repr=False, compare=False)

    @property
    def path(self) -> Path:
        """The bare repository; one for each URL, wherever its objects came from."""
        digest = hashlib.sha256(redact(self.url).rstrip("/").encode()).hexdigest()
        return self.home / "cache" / "git" / f"{digest[:32]}.git"

    @cached_property
    def ways(self) -> tuple[Source, ...]:
        """Where it can be fetched from, best first."""
        return self.sources.of(self.client, self.url, self._anywhere())

    @property
    def address(self) -> str:
        """Where git goes first, for messages."""
        return redact(self.ways[0].address)

    def _anywhere(self) -> Path:
        """A directory to start git in that is no repository of somebody else."""
        path = self.home / "cache" / "git"
        path.mkdir(parents=True, exist_ok=True)
        return path

    @contextlib.contextmanager
    def locked(self) -> Iterator[Path]:
        """Hold the cache, made if it is not there, cleared of what a killed git left."""
        path = self.path
        with hold(
            path.with_suffix(".lock"), what=f"fetching {redact(self.url)}", progress=self.client.progress,
            timeout_s=self.lock_timeout_s,
        ):
            self._prepare(path)
            self.sources.used.add(path)
            yield path

    def _prepare(self, path: Path) -> None:
        if not self._sound(path):
            if (aside := set_aside(path)) is not None:
                self.client.progress.note(f"the cache of {redact(self.url)} was damaged; it was set aside as {aside}")
            if self.sources.offline:
                raise MissingError(f"nothing of {redact(self.url)} is in the cache")
            self.client.run(
                "init", "--quiet", "--bare", "--object-format=sha1", "--initial-branch=master", str(path),
                cwd=self._anywhere(), what="making the cache",
            )
        clear_leftovers(path, self.client.progress)
        if not (path / RECORD).exists():
            self.write(path, {"url": redact(self.url)})
        with contextlib.suppress(OSError):
            os.utime(path / RECORD)  # `cache list` tells when it was last used

    def _sound(self, path: Path) -> bool:
        """Whether there is a cache that can be trusted: what every pack's checksum says is looked at once a run."""
        if not path.is_dir() or not self.client.run(
            "rev-parse", "--is-bare-repository", cwd=path, what="opening the cache", check=False
        ).ok:
            return False
        return path in self.sources.used or not objects.damaged_packs(path)

    def record(self, path: Path) -> dict[str, object]:
        """What we wrote down about this cache; empty when it cannot be read."""
        try:
            return dict(read_json(path / RECORD))
        except (OSError, ValueError, TypeError):
            return {}

    def write(self, path: Path, values: dict[str, object]) -> None:
        """Add to what is written down."""
        with contextlib.suppress(OSError):  # a convenience: a full disk has its own error elsewhere
            write_json(path / RECORD, self.record(path) | values)

    # ------------------------------------------------------------------ asking

    def ask(self, source: Source | None = None) -> RemoteRefs:
        """Tags and branches of the other side: the first that answers, or the one given."""
        if source is None:
            return self.sources.each(self.ways, self.ask)
        self.client.progress.update(f"asking {redact(source.address)}")
        found = source.client.run(
            "ls-remote", "--quiet", "--heads", "--tags", self.url, cwd=self._anywhere(), what="asking",
            url=source.shown,
        )
        refs = parse_ls_remote(found.stdout)
        if not refs.names:
            # A web page that answers 200 to everything looks the same to git, by its old protocol.
            page = ", or a web page and no repository at all" if scheme_of(source.address)[:4] == "http" else ""
            raise SourceError(
                f"{source.shown} has no branch and no tag: it is an empty repository{page}",
                hint="check the URL: `git ls-remote URL` should list branches and tags", log=source.client.log,
            )
        return refs

    def ask_exact(self, source: Source, name: str) -> str:
        """Hash of one full ref name (refs/pull/7/head, HEAD) on the other side, '' when there is none."""
        found = source.client.run(
            "ls-remote", "--quiet", self.url, name, cwd=self._anywhere(), what="asking", url=source.shown
        )
        lines = (line.partition("\t") for line in found.stdout.splitlines())
        return next((oid for oid, _, found_name in lines if found_name == name), "")

    def tip(self, branch: str) -> str:
        """Commit that a branch over there is at now ('': its default branch); SourceError when there is none."""
        wanted = f"refs/heads/{branch}" if branch else "HEAD"

        def look(source: Source) -> str:
            found = self.ask_exact(source, wanted)
            if not found:
                raise SourceError(f"{source.shown} has no {wanted}", hint="--submodules pinned needs no branch")
            return found

        return self.sources.each(self.ways, look)

    def cached_refs(self, path: Path) -> RemoteRefs:
        """Tags and branches as of the last fetch."""
        found = self.client.run("show-ref", "--dereference", cwd=path, what="reading the cache", check=False)
        return parse_ls_remote("\n".join(line.replace(" ", "\t", 1) for line in found.stdout.splitlines()))

    def has_commit(self, path: Path, commit: str) -> bool:
        """Whether the cache holds this commit with its history (a submodule's: without).

        Whole means reachable from a ref: git moves a ref only after it has seen that nothing is missing behind it,
        while a fetch that failed late can leave single objects.
        """
        found = self.client.run(
            "for-each-ref", f"--contains={commit}", "--count=1", "--format=%(refname)", cwd=path,
            what="reading the cache", check=False,
        )
        return found.ok and found.stdout != ""

    def kind(self, path: Path, oid: str) -> str:
        """commit, tree, blob or tag; '' when the cache does not hold it."""
        return self.client.run("cat-file", "-t", oid, cwd=path, what="reading the cache", check=False).stdout

    def require_kind(self, path: Path, commit: str) -> None:
        """SourceError when that hash is another object's than a commit's."""
        kind = self.kind(path, commit)
        if kind not in {"", "commit"}:
            raise SourceError(f"{commit} is a {kind}, not a commit", hint="name a commit or a tag of one")

    def keep(self, path: Path, commit: str) -> None:
        """Hold a commit alive, whatever becomes of the branches."""
        self.client.run("update-ref", f"{_KEEP}{commit}", commit, cwd=path, what="keeping the commit")

    # ----------------------------------------------------------------- fetching

    def fetch_all(self, path: Path, source: Source, *, whole: bool = False) -> None:
        """Bring every branch and tag up to date; ones that are gone over there go here too.

        whole also asks for the history of commits that came without theirs.
        """
        require_space(path, self._estimate(path, source), f"source of {redact(self.url)}")
        more = ("--depth", _EVERYTHING) if whole and (path / "shallow").exists() else ()
        self._fetch(path, source, "--prune", *more, refspecs=_REFSPECS)

    def have(self, path: Path, commit: str, *, missing: SourceError) -> None:
        """Have one commit, without its history. A repository that does not have it raises `missing`."""
        self.require_kind(path, commit)
        if self.has_commit(path, commit):
            return
        if self.sources.offline:
            raise MissingError(f"commit {commit} of {redact(self.url)} is not in the cache")

        def get(source: Source) -> None:
            require_space(path, self._estimate(path, source), f"source of {redact(self.url)}")
            self.fetch_alone(path, source, commit, missing=missing, depth=1)

        self.sources.each(self.ways, get)

    def fetch_alone(
        self, path: Path, source: Source, commit: str, *, missing: SourceError, depth: int = 0
    ) -> None:
        """Fetch a commit by its hash; from a host that gives only branches and tags, by way of all of these."""
        try:
            try:
                self._fetch(
                    path, source, *(("--depth", str(depth)) if depth else ()), refspecs=(f"{commit}:{_KEEP}{commit}",)
                )
            except UnreachableSourceError:
                raise
            except SourceError as error:
                if not depth or not objects.gives_no_single(error.context):
                    raise
                source.client.progress.note(
                    f"{redact(source.address)} gives no single commits: its whole history is fetched"
                )
                self.fetch_all(path, source, whole=True)
                if not self.has_commit(path, commit):
                    raise
                self.keep(path, commit)
        except UnreachableSourceError:
            raise
        except SourceError as error:
            missing.context = "\n".join(part for part in (missing.context, error.context) if part)
            missing.log = error.log
            raise missing from error

    def _fetch(self, path: Path, source: Source, *options: str, refspecs: tuple[str, ...], stdin: str = "") -> None:
        self.client.progress.update("fetching")
        before = objects.pack_bytes(path)
        # A repository on this machine costs no transfer, and seldom allows a partial one.
        part = "--no-filter" if is_local(source.address) or "--refetch" in options else "--filter=blob:none"
        client = source.client.configured((f"remote.{REMOTE}.url", self.url))
        if stdin:
            # Single files: the host must not conclude from our commits that we have theirs.
            client = client.configured(("fetch.negotiationAlgorithm", "noop"))
        try:
            said = client.run(
                "fetch", "--progress", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules", part, *options,
                REMOTE, *refspecs, cwd=path, what="fetching", url=source.shown, stdin=stdin,
            ).stderr
        except BaseException:
            # A cut or full fetch leaves its half pack: useless to git, and it holds the space that ran out.
            clear_leftovers(path, self.client.progress)
            raise
        self.sources.count(objects.pack_bytes(path) - before)
        self.write(path, {"from": redact(source.address)})
        if objects.ignores_filter(said) and "filter" not in self._said:
            self._said.add("filter")
            source.client.progress.note(
                f"{redact(source.address)} cannot send a part of a repository: everything of it was fetched"
            )

    def fill(self, path: Path, commit: str, *, skip: tuple[str, ...] = (), only: tuple[str, ...] = ()) -> int:
        """Have every file of commit (but below skip, or only these) in the cache, and see that all are there.

        Returns what they take on a disk, in bytes. Files come in several requests, each kept as it arrives.
        """
        wanted = objects.files_of(self.client, path, commit, skip=skip, only=only)
        missing = objects.absent(self.client, path, wanted)
        if missing and self.sources.offline:
            raise MissingError(f"{len(missing)} files of {commit} of {redact(self.url)} are not in the cache")
        if missing:
            self.sources.each(self.ways, lambda source: self._fetch_files(path, source, wanted))
        return objects.disk_bytes(self.client, path, wanted)

    def _fetch_files(self, path: Path, source: Source, wanted: tuple[objects.File, ...]) -> None:
        missing = objects.absent(self.client, path, wanted)
        client, arrived = self.client, 0
        for first in range(0, len(missing), FILES_A_REQUEST):
            some = missing[first:first + FILES_A_REQUEST]
            if isinstance(client.progress, Channel):
                client.progress.within(first, len(missing), arrived)
            before = objects.pack_bytes(path)
            try:
                self._fetch(path, source, "--stdin", refspecs=(), stdin="".join(f"{file.oid}\n" for file in some))
            except UnreachableSourceError:
                raise
            except SourceError as error:
                if not objects.gives_no_single(error.context):
                    raise
                self._refetch(path, source)
                break
            arrived += objects.pack_bytes(path) - before
        if isinstance(client.progress, Channel):
            client.progress.within(0, 0, 0)
        if left := objects.absent(self.client, path, wanted):
            raise SourceError(
                f"{source.shown} did not send {len(left)} files that its own commits name",
                context="\n".join(f"{file.oid}  {file.path}" for file in left[:5]), log=source.client.log,
                hint="it is damaged or an incomplete copy: fetch from another mirror by --profile or --redirect",
            )

    def _refetch(self, path: Path, source: Source) -> None:
        source.client.progress.note(f"{redact(source.address)} gives no single files: everything of it is fetched")
        more = ("--depth", "1") if (path / "shallow").exists() else ()
        kept = self.client.run(
            "for-each-ref", "--format=%(refname)", _KEEP, cwd=path, what="reading the cache"
        ).stdout.split() if more else []
        self._fetch(
            path, source, "--refetch", *more,
            refspecs=tuple(f"{name.removeprefix(_KEEP)}:{name}" for name in kept) if more else _REFSPECS,
        )

    def abbreviation(self, path: Path, commit: str) -> int:
        """Digits of commit in a version text; counted once for each state of the branches and tags."""
        listing = self.client.text(
            "for-each-ref", "--format=%(objectname)", "refs/heads", "refs/tags", cwd=path, what="reading the cache"
        )
        state = hashlib.sha256(f"{listing}\n{commit}".encode()).hexdigest()
        known = self.record(path).get("abbreviations")
        if isinstance(known, dict) and isinstance(known.get(state), int):
            return int(known[state])
        digits = objects.abbreviation(self.client, path, commit)
        self.write(path, {"abbreviations": {state: digits}})
        return digits

    def _estimate(self, path: Path, source: Source) -> int:
        have = tree_bytes(path)
        if is_local(source.address):
            there = Path(local_path(source.address))
            found = next((p for p in (there / ".git" / "objects", there / "objects") if p.is_dir()), None)
            return MARGIN_BYTES + max(0, (tree_bytes(found) if found else 0) - have)
        # After a first fetch only news comes; before it nobody knows.
        return MARGIN_BYTES + (have // 2 if have > MARGIN_BYTES else UNKNOWN_REMOTE_BYTES)
