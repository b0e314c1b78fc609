"""Submodules at the commits that the tree pins (git ls-tree), not at the tip of a branch unless that is asked for.

KWDB's README suggests `git submodule update --remote`, which moves them off what was released together.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kwdb_build.errors import SourceError, SubmoduleError
from kwdb_build.source.mirror import Mirror, MissingError
from kwdb_build.source.reference import (
    apply_redirects,
    basename,
    is_local,
    join_relative,
    local_path,
    redact,
    validate_url,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kwdb_build.source.client import GitClient
    from kwdb_build.source.sources import Sources
    from kwdb_build.source.transfer import Board

_MAX_DEPTH = 5
_GITLINK = "160000"


@dataclass(frozen=True, kw_only=True)
class Pin:
    """One gitlink of a commit with its entry in .gitmodules. url is as written there, '' when there is no entry.

    branch is what README's `git submodule update --remote` would follow, '' for the default branch.
    """

    path: str
    name: str
    url: str
    commit: str
    branch: str = ""


def read_pins(client: GitClient, repository: Path, commit: str) -> tuple[Pin, ...]:
    """Gitlinks of a commit, sorted by path."""
    listing = client.text("ls-tree", "-r", "-z", "--full-tree", commit, cwd=repository, what="reading the tree")
    links, has_file = parse_gitlinks(listing)
    if not links:
        return ()
    entries: dict[str, tuple[str, str, str]] = {}
    if has_file:
        found = client.run(
            "config", "--blob", f"{commit}:.gitmodules", "-z", "--list", cwd=repository, what="reading .gitmodules",
            check=False,
        )
        if not found.ok:
            raise SubmoduleError(
                f".gitmodules of {commit[:12]} cannot be read", context=found.stderr,
                hint="the tree itself is broken: choose another tag or commit",
            )
        entries = parse_gitmodules(found.stdout)
    pins = []
    for path, oid in sorted(links.items()):
        name, url, branch = entries.get(path, ("", "", ""))
        pins.append(Pin(path=path, name=name, url=url, commit=oid, branch=branch))
    return tuple(pins)


def parse_gitlinks(listing: str) -> tuple[dict[str, str], bool]:
    """Read `git ls-tree -r -z`: path -> pinned commit of each submodule, and whether .gitmodules is a file there."""
    links: dict[str, str] = {}
    has_file = False
    for entry in listing.split("\0"):
        meta, tab, path = entry.partition("\t")
        if not tab:
            continue
        mode, _, oid = meta.split()
        if mode == _GITLINK:
            links[path] = oid
        has_file = has_file or (path == ".gitmodules" and mode.startswith("100"))
    return links, has_file


def parse_gitmodules(listing: str) -> dict[str, tuple[str, str, str]]:
    """Read `git config -z --list` of a .gitmodules: path -> (name, url, branch)."""
    values: dict[str, dict[str, str]] = {}
    for entry in listing.split("\0"):
        key, newline, value = entry.partition("\n")
        section, _, rest = key.partition(".")
        name, dot, variable = rest.rpartition(".")
        if newline and section == "submodule" and dot:
            values.setdefault(name, {})[variable] = value
    return {
        found["path"]: (name, found.get("url", ""), found.get("branch", ""))
        for name, found in values.items() if "path" in found
    }


@dataclass(frozen=True, kw_only=True)
class Part:
    """One submodule that is in the cache: where it goes, which commit of it, and what lies in it.

    address is its URL without a password, as .gitmodules means it; disk_bytes what a checkout takes.
    """

    shown: str
    pin: Pin
    address: str
    commit: str
    mirror: Mirror
    disk_bytes: int
    parts: tuple[Part, ...] = ()

    def flat(self) -> tuple[Part, ...]:
        """It and all below it."""
        return (self, *(inner for part in self.parts for inner in part.flat()))


@dataclass(frozen=True, kw_only=True)
class SubmoduleFetcher:
    """Brings submodules into caches: one Mirror a URL, or local repositories beside the main one.

    remote: README's way, the tip of the branch that .gitmodules names instead of the pinned commit.
    """

    client: GitClient
    home: Path
    main_url: str
    lock_timeout_s: float
    sources: Sources
    board: Board
    remote: bool = False

    def jobs(
        self, repository: Path, commit: str, *, base_url: str, prefix: str = "", depth: int = 0
    ) -> list[Callable[[], Part]]:
        """One piece of work for each submodule of a commit; they may run at the same time."""
        pins = read_pins(self.client, repository, commit)
        if pins and depth >= _MAX_DEPTH:
            raise SubmoduleError(f"submodules nest deeper than {_MAX_DEPTH}: {prefix}{pins[0].path}")
        return [
            partial(self._get, pin, f"{prefix}{pin.path}", self._address(pin, f"{prefix}{pin.path}", base_url), depth)
            for pin in pins
        ]

    def _get(self, pin: Pin, shown: str, url: str, depth: int) -> Part:
        """Have one submodule's commit with all its files, and what is in it."""
        channel = self.board.open(shown)
        try:
            client, clean = replace(self.client, progress=channel).with_url(url)
            with self._errors_named(pin, shown, clean):
                return self._get_with(client, pin, shown, clean, depth)
        finally:
            channel.close()

    def _get_with(self, client: GitClient, pin: Pin, shown: str, url: str, depth: int) -> Part:
        source = self._beside(pin, url) if not self.sources.offline else None
        if source is not None:
            client.progress.note(f"taken from {source}, beside the source given")
        mirror = Mirror(
            url=str(source or url), home=self.home, client=client, sources=self.sources,
            lock_timeout_s=self.lock_timeout_s,
        )
        with mirror.locked() as cache:
            commit = self._tip(mirror, pin) if self.remote else pin.commit
            mirror.have(cache, commit, missing=self._missing(mirror, pin, shown, url, commit))
            disk_bytes = mirror.fill(cache, commit)
            jobs = self.jobs(cache, commit, base_url=url, prefix=f"{shown}/", depth=depth + 1)
        return Part(
            shown=shown, pin=pin, address=url, commit=commit, mirror=mirror, disk_bytes=disk_bytes,
            parts=tuple(job() for job in jobs),
        )

    def _tip(self, mirror: Mirror, pin: Pin) -> str:
        if self.sources.offline:
            raise MissingError(
                f"the tip of {pin.branch or 'the default branch'} of {redact(mirror.url)} is known only over there",
                hint="--submodules pinned needs no network",
            )
        if pin.branch == ".":
            raise SubmoduleError(
                f"submodule {pin.path} follows the branch of the main repository, which is not supported",
                hint="use --submodules pinned",
            )
        return mirror.tip(pin.branch)

    def _missing(self, mirror: Mirror, pin: Pin, shown: str, url: str, commit: str) -> SubmoduleError:
        if self.sources.offline:
            return SubmoduleError(f"submodule {shown}: {commit} cannot be had offline")
        word = "pinned commit" if commit == pin.commit else "commit"
        return SubmoduleError(
            f"submodule {shown}: {mirror.address} does not have the {word} {commit}",
            context=f"path    {shown}\nurl     {redact(url)}\nfrom    {mirror.address}\ncommit  {commit}",
            hint=f"redirect it to a complete mirror: --redirect {redact(url)}=URL-OR-PATH",
        )

    @contextlib.contextmanager
    def _errors_named(self, pin: Pin, shown: str, url: str) -> Iterator[None]:
        try:
            yield
        except SubmoduleError:
            raise
        except SourceError as error:
            where = f"path    {shown}\nurl     {redact(url)}\ncommit  {pin.commit}"
            if not isinstance(error, MissingError):
                error.context = "\n".join(part for part in (where, error.context) if part)
            error.message = f"submodule {shown} (pinned commit {pin.commit[:12]}): {error.message}"
            error.args = (error.message,)
            raise

    def _address(self, pin: Pin, shown: str, base_url: str) -> str:
        if not pin.url or not pin.name:
            raise SubmoduleError(
                f"submodule {shown} has no URL in .gitmodules", context=f"pinned commit {pin.commit}",
                hint="the tree itself is broken: choose another tag or commit",
            )
        require_safe_place(pin, shown)
        relative = pin.url.startswith(("./", "../"))
        try:
            url = join_relative(base_url, pin.url)
            validate_url(url)
        except SourceError as error:
            raise SubmoduleError(f"submodule {shown}: {error.message}", hint="the tree asks for something unsafe") \
                from error
        redirected = any(apply_redirects(url, profile.redirects) != url for profile in self.sources.profiles)
        if is_local(url) and not redirected and not (relative and is_local(base_url)):
            raise SubmoduleError(
                f"submodule {shown} asks for a path of this machine: {redact(pin.url)!r}",
                hint=f"if you want that, say so yourself: --redirect {redact(pin.url)}=PATH",
            )
        return url

    def _beside(self, pin: Pin, url: str) -> Path | None:
        """A repository on this machine that holds the pinned commit and lies where a local main repository leads us.

        Only without a redirect for this URL: what the person said comes first. A commit hash names its content, so
        where it comes from makes no difference to what is built.
        """
        first = self.sources.profiles[0].redirects
        if self.remote or not is_local(self.main_url) or apply_redirects(url, first) != url:
            return None
        for candidate in candidates_beside(Path(local_path(self.main_url)), pin.name, basename(url)):
            if candidate.is_dir() and self.client.run(
                "--git-dir", str(_git_directory(candidate)), "cat-file", "-e", f"{pin.commit}^{{commit}}",
                cwd=candidate, what="looking beside the source", check=False,
            ).ok:
                return candidate
        return None


def require_safe_place(pin: Pin, shown: str) -> None:
    """SubmoduleError when a submodule's path or name would lead out of the tree or into a .git directory."""
    for word, text in (("path", pin.path), ("name", pin.name)):
        parts = text.split("/")
        if any(part in {"", ".", ".."} or part.casefold() in {".git", "git~1"} for part in parts) or "\\" in text:
            raise SubmoduleError(
                f"submodule {shown} has an unsafe {word}: {text!r}", hint="the tree asks for something unsafe"
            )


def candidates_beside(main: Path, name: str, base: str) -> tuple[Path, ...]:
    """Where a submodule's repository may lie when the main one is the local path `main`.

    Inside a clone (.git/modules), beside it (kw-vendor.git, kw-vendor), or one directory each with the same last
    name (mirrors/kwdb/repo and mirrors/kw-vendor/repo, also with the owner before a `+`).
    """
    inside = () if ".." in Path(name).parts else (main / ".git" / "modules" / name, main / "modules" / name)
    uncle = main.parent.parent
    apart = [uncle / base / main.name]
    if uncle.is_dir():
        apart += [entry / main.name for entry in sorted(uncle.glob("*+*")) if entry.name.endswith(f"+{base}")]
    beside = (main.parent / f"{base}.git", main.parent / base, *apart)
    return tuple(path for path in (*inside, *beside) if path != main)


def _git_directory(path: Path) -> Path:
    return path / ".git" if (path / ".git").exists() else path


def head_of(client: GitClient, path: Path) -> str:
    """Commit of the checkout at path, '' when there is none of its own."""
    found = client.run("rev-parse", "--show-prefix", "HEAD", cwd=path, what="reading a submodule", check=False) \
        if path.is_dir() else None
    lines = found.stdout.split("\n") if found is not None and found.ok else []
    # A prefix means that path is no repository of its own: git then answers for the one around it.
    return lines[-1] if lines and not lines[0] else ""


def verify_head(client: GitClient, path: Path, commit: str, shown: str) -> None:
    """SubmoduleError when the checkout at path is not exactly at commit."""
    here = head_of(client, path)
    if here != commit:
        raise SubmoduleError(
            f"submodule {shown} is not at its pinned commit",
            context=f"pinned {commit}\nfound  {here or 'no checkout'}",
            hint="git submodule update --init --recursive (without --remote) puts it there",
        )
