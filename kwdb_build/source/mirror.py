"""A bare cache of one repository under home/cache/git, asked and filled under a lock.

It holds every branch and tag with full history: `git describe` on a checkout of it then says what a full clone says.
Only heads and tags are taken over; commits that were fetched by hash stay alive under refs/kwdb-build/.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from kwdb_build.errors import LockedError, SourceError, UnreachableSourceError
from kwdb_build.files import read_json, require_space, write_json
from kwdb_build.source.reference import (
    RemoteRefs,
    Target,
    choose,
    is_local,
    local_path,
    may_be_commit,
    parse_ls_remote,
    redact,
    scheme_of,
    unknown_reference,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kwdb_build.console import Progress
    from kwdb_build.source.client import GitClient

LOCK_TIMEOUT_S = 900.0
UNKNOWN_REMOTE_BYTES = 1 << 30
"""Room asked for before the first fetch from a host: git does not tell the size (KWDB's own pack is about 0.1 GiB)."""
MARGIN_BYTES = 64 << 20
_ORPHAN_WAIT_S = 30.0
_REFSPECS = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
_KEEP = "refs/kwdb-build/"


@contextlib.contextmanager
def hold(lock_path: Path, *, what: str, progress: Progress, timeout_s: float) -> Iterator[None]:
    """Hold a lock (flock) on part of the cache; wait up to timeout_s, then LockedError names the holder."""
    from filelock import FileLock, Timeout

    lock_path.parent.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(lock_path), lock_path.with_suffix(".holder")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress.update(f"waiting for {_holder(holder)}")
        try:
            lock.acquire(timeout=timeout_s)
        except Timeout:
            raise LockedError(
                f"another fetch holds {lock_path}", context=_holder(holder),
                hint=f"it was waited for {timeout_s:g} s; run this again when it has ended",
            ) from None
    try:
        with contextlib.suppress(OSError):  # a full disk must not hide the real error behind a courtesy
            write_json(holder, {"pid": os.getpid(), "what": what, "since": time.strftime("%Y-%m-%d %H:%M:%S %z")})
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _holder(path: Path) -> str:
    try:
        values = read_json(path)
        return f"pid {values['pid']}, since {values['since']}: {values['what']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another fetch that has not said who it is"


@dataclass(frozen=True, kw_only=True)
class Mirror:
    """The cache of `url` (without password): client knows the redirects and passwords for it."""

    url: str
    home: Path
    client: GitClient
    lock_timeout_s: float = LOCK_TIMEOUT_S

    @cached_property
    def effective_url(self) -> str:
        """Where git really goes: after our redirects and the user's own insteadOf."""
        return self.client.text("ls-remote", "--get-url", self.url, cwd=self._anywhere(), what="reading redirects")

    @property
    def path(self) -> Path:
        """The bare repository; one for each address really used."""
        digest = hashlib.sha256(redact(self.effective_url).rstrip("/").encode()).hexdigest()
        return self.home / "cache" / "git" / f"{digest[:32]}.git"

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
            yield path

    def _prepare(self, path: Path) -> None:
        if not path.is_dir() or not self.client.run(
            "rev-parse", "--is-bare-repository", cwd=path, what="opening the cache", check=False
        ).ok:
            set_aside(path)
            self.client.run(
                "init", "--quiet", "--bare", "--object-format=sha1", str(path), cwd=self._anywhere(),
                what="making the cache",
            )
        clear_leftovers(path, self.client.progress)

    # ------------------------------------------------------------------ asking

    def ask(self, *patterns: str) -> RemoteRefs:
        """Tags and branches of the other side, or with patterns the refs of exactly these names."""
        which = patterns or ("--heads", "--tags")
        self.client.progress.update(f"asking {redact(self.url)}")
        args = ("ls-remote", "--quiet", self.url, *patterns) if patterns else ("ls-remote", "--quiet", *which, self.url)
        found = self.client.run(*args, cwd=self._anywhere(), what="asking", url=self._shown())
        return parse_ls_remote(found.stdout)

    def ask_exact(self, name: str) -> str:
        """Hash of one full ref name (refs/pull/7/head) on the other side, '' when there is none."""
        found = self.client.run(
            "ls-remote", "--quiet", self.url, name, cwd=self._anywhere(), what="asking", url=self._shown()
        )
        lines = (line.partition("\t") for line in found.stdout.splitlines())
        return next((oid for oid, _, found_name in lines if found_name == name), "")

    def _shown(self) -> str:
        effective = redact(self.effective_url)
        return effective if effective == redact(self.url) else f"{redact(self.url)} (redirected to {effective})"

    def cached_refs(self, path: Path) -> RemoteRefs:
        """Tags and branches as of the last fetch."""
        found = self.client.run("show-ref", "--dereference", cwd=path, what="reading the cache", check=False)
        return parse_ls_remote("\n".join(line.replace(" ", "\t", 1) for line in found.stdout.splitlines()))

    # ----------------------------------------------------------------- fetching

    def resolve(self, path: Path, ref: str) -> Target:
        """Find and fetch what ref means; afterwards its commit and all tags are in the cache at path.

        The other side is asked first, so that a moved branch or tag is noticed. When it cannot be reached, a tag or
        commit that is in the cache is good enough (and said so); a branch is not, as it may have moved.
        """
        try:
            refs = self.ask()
        except UnreachableSourceError as error:
            return self._offline(path, ref, error)
        if not refs.names:
            # A web page that answers 200 to everything looks the same to git, by its old protocol.
            page = ", or a web page and no repository at all" if scheme_of(self.effective_url)[:4] == "http" else ""
            raise SourceError(
                f"{self._shown()} has no branch and no tag: it is an empty repository{page}",
                hint="check the URL: `git ls-remote URL` should list branches and tags", log=self.client.log,
            )
        target = choose(ref, refs, url=self.url) or self._special(ref)
        if target is None:
            raise unknown_reference(ref, refs, url=self.url)
        short = target.kind == "commit" and len(target.commit) < len("0" * 40)
        if short or not self.has_commit(path, target.commit) or self.cached_refs(path).tags != refs.tags:
            self.fetch_all(path)
        if short:
            target = self._expand(path, target, refs)
        self.require_commit(path, target.commit, missing=unknown_reference(ref, refs, url=self.url))
        return target

    def _special(self, ref: str) -> Target | None:
        if not ref.startswith("refs/") or ref.startswith(("refs/heads/", "refs/tags/")):
            return None
        found = self.ask_exact(ref)
        return Target(kind="ref", name=ref, commit=found) if found else None

    def _offline(self, path: Path, ref: str, error: UnreachableSourceError) -> Target:
        refs = self.cached_refs(path)
        target = choose(ref, refs, url=self.url)
        if target is None or target.kind == "branch":
            raise error
        if target.kind == "commit":
            if not may_be_commit(target.commit) or not self.has_commit(path, target.commit):
                raise error
            target = self._expand(path, target, refs)
        self.client.progress.note(
            f"{redact(self.url)} cannot be reached ({error.message.rpartition(': ')[2]}); "
            f"using {target.kind} {target.name} = {target.commit[:12]} from the cache"
        )
        return target

    def _expand(self, path: Path, target: Target, refs: RemoteRefs) -> Target:
        """A short hash to the whole one; ambiguous and unknown ones are refused."""
        found = self.client.run(
            "rev-parse", f"--disambiguate={target.commit}", cwd=path, what="reading the cache", check=False
        ).stdout.split()
        commits = [oid for oid in found if self._kind(path, oid) == "commit"]
        if not commits:
            raise unknown_reference(target.name, refs, url=self.url)
        if len(commits) > 1:
            raise SourceError(
                f"{target.name!r} is the beginning of {len(commits)} commits", context="\n".join(sorted(commits)[:5]),
                hint="give more digits of the hash",
            )
        return Target(kind="commit", name=target.name, commit=commits[0])

    def has_commit(self, path: Path, commit: str) -> bool:
        """Whether the cache holds this commit whole.

        Whole means reachable from a ref: git moves a ref only after it has seen that nothing is missing behind it,
        while a fetch that failed late can leave single objects.
        """
        found = self.client.run(
            "for-each-ref", f"--contains={commit}", "--count=1", "--format=%(refname)", cwd=path,
            what="reading the cache", check=False,
        )
        return found.ok and found.stdout != ""

    def _kind(self, path: Path, oid: str) -> str:
        return self.client.run("cat-file", "-t", oid, cwd=path, what="reading the cache", check=False).stdout

    def fetch_all(self, path: Path) -> None:
        """Bring every branch and tag up to date; ones that are gone over there go here too."""
        require_space(path, self._estimate(path), f"source of {redact(self.url)}")
        self._fetch(path, *_REFSPECS, prune=True)

    def require_commit(self, path: Path, commit: str, *, missing: SourceError) -> None:
        """Have this commit in the cache and keep it: fetch it by its hash where no branch or tag leads to it.

        A repository that does not have it raises `missing`, with what git said added to it.
        """
        kind = self._kind(path, commit)
        if kind not in {"", "commit"}:
            raise SourceError(f"{commit} is a {kind}, not a commit", hint="name a commit or a tag of one")
        if not self.has_commit(path, commit):
            try:
                self._fetch(path, f"{commit}:{_KEEP}{commit}", prune=False)
            except UnreachableSourceError:
                raise
            except SourceError as error:
                missing.context = "\n".join(part for part in (missing.context, error.context) if part)
                missing.log = error.log
                raise missing from error
        self.client.run("update-ref", f"{_KEEP}{commit}", commit, cwd=path, what="keeping the commit")

    def _fetch(self, path: Path, *refspecs: str, prune: bool) -> None:
        self.client.progress.update(f"fetching {redact(self.url)}")
        try:
            self.client.run(
                "fetch", "--progress", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules",
                *(["--prune"] if prune else []), self.url, *refspecs, cwd=path, what="fetching", url=self._shown(),
            )
        except BaseException:
            # A cut or full fetch leaves its half pack: useless to git, and it holds the space that ran out.
            clear_leftovers(path, self.client.progress)
            raise

    def _estimate(self, path: Path) -> int:
        have = directory_bytes(path)
        if is_local(self.effective_url):
            there = Path(local_path(self.effective_url))
            objects = next((p for p in (there / ".git" / "objects", there / "objects") if p.is_dir()), None)
            return MARGIN_BYTES + max(0, (directory_bytes(objects) if objects else 0) - have)
        # After a first fetch only news comes; before it nobody knows.
        return MARGIN_BYTES + (have // 2 if have > MARGIN_BYTES else UNKNOWN_REMOTE_BYTES)


def directory_bytes(path: Path) -> int:
    """Size of all regular files below path."""
    total = 0
    for directory, _, files in os.walk(path):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(directory, name)).st_size  # noqa: PTH118  # many files
    return total


def set_aside(path: Path) -> Path | None:
    """Rename a damaged part of our own cache away; the new name, or None when there was nothing."""
    if not path.exists() and not path.is_symlink():
        return None
    for number in range(1, 1000):
        target = path.with_name(f"{path.name}.aside-{number}")
        if not target.exists():
            path.rename(target)
            return target
    raise SourceError(f"too many damaged copies beside {path}", hint="remove the ones that end in .aside-*")


def clear_leftovers(path: Path, progress: Progress) -> None:
    """Remove lock files and half packs that a killed git left in a cache whose lock we hold.

    A git that outlived its kwdb-build (kill -9) may still be writing: it is waited for, then left alone.
    """
    leftovers = [
        *path.glob("*.lock"), *path.glob("refs/**/*.lock"), *path.glob("objects/pack/tmp_*"),
        *path.glob("objects/pack/.tmp-*"), *path.glob("objects/info/*.lock"), *path.glob("objects/??/tmp_obj_*"),
    ]
    if not leftovers:
        return
    deadline = time.monotonic() + _ORPHAN_WAIT_S
    while _in_use(path):
        if time.monotonic() > deadline:
            raise LockedError(f"a git process of an earlier run still works in {path}", hint="wait until it has ended")
        progress.update("waiting for a git process of an earlier run")
        time.sleep(0.2)
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)


def _in_use(path: Path) -> bool:
    """Whether a process works in path (git starts in its repository)."""
    import psutil

    return any(
        (process.info["name"] or "").startswith("git") and process.info["cwd"] == str(path)
        for process in psutil.process_iter(["name", "cwd"])
    )
