"""Submodules at the commits that the tree pins (git ls-tree), never at the tip of a branch.

KWDB's README suggests `git submodule update --remote`, which moves them off what was released together.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kwdb_build.errors import SourceError, SubmoduleError
from kwdb_build.files import require_space
from kwdb_build.source.mirror import MARGIN_BYTES, Mirror
from kwdb_build.source.reference import (
    apply_redirects,
    basename,
    is_local,
    join_relative,
    local_path,
    redact,
    split_credentials,
    validate_url,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kwdb_build.source.client import GitClient

_MAX_DEPTH = 5
_BLOCK_BYTES = 4096
_GITLINK = "160000"


@dataclass(frozen=True, kw_only=True)
class Pin:
    """One gitlink of a commit with its entry in .gitmodules. url is as written there, '' when there is no entry."""

    path: str
    name: str
    url: str
    commit: str


def read_pins(client: GitClient, repository: Path, commit: str) -> tuple[Pin, ...]:
    """Gitlinks of a commit, sorted by path."""
    listing = client.text("ls-tree", "-r", "-z", "--full-tree", commit, cwd=repository, what="reading the tree")
    links, has_file = parse_gitlinks(listing)
    if not links:
        return ()
    entries: dict[str, tuple[str, str]] = {}
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
    return tuple(
        Pin(path=path, name=entries.get(path, ("", ""))[0], url=entries.get(path, ("", ""))[1], commit=oid)
        for path, oid in sorted(links.items())
    )


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


def parse_gitmodules(listing: str) -> dict[str, tuple[str, str]]:
    """Read `git config -z --list` of a .gitmodules: path -> (name, url)."""
    values: dict[str, dict[str, str]] = {}
    for entry in listing.split("\0"):
        key, newline, value = entry.partition("\n")
        section, _, rest = key.partition(".")
        name, dot, variable = rest.rpartition(".")
        if newline and section == "submodule" and dot:
            values.setdefault(name, {})[variable] = value
    return {found["path"]: (name, found.get("url", "")) for name, found in values.items() if "path" in found}


def tree_bytes(client: GitClient, repository: Path, commit: str) -> int:
    """What a checkout of commit takes on disk, rounded up to blocks."""
    listing = client.text("ls-tree", "-r", "-l", "-z", "--full-tree", commit, cwd=repository, what="reading the tree")
    sizes = (entry.partition("\t")[0].split()[-1] for entry in listing.split("\0") if entry)
    return sum(-(-int(size) // _BLOCK_BYTES) * _BLOCK_BYTES + _BLOCK_BYTES // 4 for size in sizes if size.isdigit())


@dataclass(frozen=True, kw_only=True)
class SubmoduleFetcher:
    """Fills the submodules of a checkout from caches: one Mirror a URL, or local repositories beside the main one."""

    client: GitClient
    home: Path
    main_url: str
    lock_timeout_s: float

    def prefetch(self, repository: Path, commit: str) -> None:
        """Have the pinned commits of the first level in the caches, before anything is checked out.

        What is missing over there is then known in seconds, and what came stays for the next try.
        """
        for pin in read_pins(self.client, repository, commit):
            url = self._address(pin, pin.path, self.main_url)
            self.client.progress.update(f"submodule {pin.path}")
            with self._cache_with(pin, pin.path, url, announce=True):
                pass

    def fill(self, tree: Path, commit: str, *, base_url: str, prefix: str = "", depth: int = 0) -> None:
        """Check out every submodule of tree (at commit) and theirs, each at its pinned commit."""
        pins = read_pins(self.client, tree, commit)
        if pins and depth >= _MAX_DEPTH:
            raise SubmoduleError(f"submodules nest deeper than {_MAX_DEPTH}: {prefix}{pins[0].path}")
        for pin in pins:
            shown = f"{prefix}{pin.path}"
            url = self._address(pin, shown, base_url)
            self.client.progress.update(f"submodule {shown}")
            with self._cache_with(pin, shown, url, announce=depth > 0) as cache:
                needed = MARGIN_BYTES + tree_bytes(self.client, cache, pin.commit)
                require_space(tree, needed, f"submodule {shown}")
                self._check_out(tree, pin, cache, split_credentials(url)[0])
            verify_head(self.client, tree / pin.path, pin.commit, shown)
            self.fill(tree / pin.path, pin.commit, base_url=url, prefix=f"{shown}/", depth=depth + 1)

    def _address(self, pin: Pin, shown: str, base_url: str) -> str:
        if not pin.url or not pin.name:
            raise SubmoduleError(
                f"submodule {shown} has no URL in .gitmodules", context=f"pinned commit {pin.commit}",
                hint="the tree itself is broken: choose another tag or commit",
            )
        relative = pin.url.startswith(("./", "../"))
        try:
            url = join_relative(base_url, pin.url)
            validate_url(url)
        except SourceError as error:
            raise SubmoduleError(f"submodule {shown}: {error.message}", hint="the tree asks for something unsafe") \
                from error
        redirected = apply_redirects(url, self.client.redirects) != url
        if is_local(url) and not redirected and not (relative and is_local(base_url)):
            raise SubmoduleError(
                f"submodule {shown} asks for a path of this machine: {redact(pin.url)!r}",
                hint=f"if you want that, say so yourself: --redirect {redact(pin.url)}=PATH",
            )
        return url

    @contextlib.contextmanager
    def _cache_with(self, pin: Pin, shown: str, url: str, *, announce: bool) -> Iterator[Path]:
        """Hold the cache of this submodule's URL, with the pinned commit in it."""
        client, clean = self.client.with_url(url)
        source = self._beside(pin, clean)
        if source is not None and announce:
            client.progress.note(f"submodule {shown}: taken from {source}, beside the source given")
        mirror = Mirror(url=str(source or clean), home=self.home, client=client, lock_timeout_s=self.lock_timeout_s)
        address = redact(mirror.effective_url)
        missing = SubmoduleError(
            f"submodule {shown}: {address} does not have the pinned commit {pin.commit}",
            context=f"path    {shown}\nurl     {redact(clean)}\nfrom    {address}\ncommit  {pin.commit}",
            hint=f"redirect it to a complete mirror: --redirect {redact(clean)}=URL-OR-PATH",
        )
        try:
            with mirror.locked() as cache:
                if not mirror.has_commit(cache, pin.commit):
                    mirror.fetch_all(cache)
                mirror.require_commit(cache, pin.commit, missing=missing)
                yield cache
        except SubmoduleError:
            raise
        except SourceError as error:
            error.context = "\n".join(part for part in (missing.context, error.context) if part)
            error.message = f"submodule {shown} (pinned commit {pin.commit[:12]}): {error.message}"
            error.args = (error.message,)
            raise

    def _check_out(self, tree: Path, pin: Pin, cache: Path, url: str) -> None:
        """Let git itself set the submodule up, with our cache as its origin for that moment.

        protocol.file.allow is for this one call, whose address we wrote ourselves.
        """
        key = f"submodule.{pin.name}.url"
        run = self.client.configured(("protocol.file.allow", "always")).run
        run("config", key, str(cache), cwd=tree, what=f"setting up {pin.path}")
        run(
            "submodule", "update", "--init", "--checkout", "--force", "--no-recommend-shallow", "--progress", "--",
            pin.path, cwd=tree, what=f"checking out submodule {pin.path}",
        )
        shown = redact(url)
        run("config", key, shown, cwd=tree, what=f"setting up {pin.path}")
        run("remote", "set-url", "origin", shown, cwd=tree / pin.path, what=f"setting up {pin.path}")

    def _beside(self, pin: Pin, url: str) -> Path | None:
        """A repository on this machine that holds the pinned commit and lies where a local main repository leads us.

        Only without a redirect for this URL: what the person said comes first. A commit hash names its content, so
        where it comes from makes no difference to what is built.
        """
        if not is_local(self.main_url) or apply_redirects(url, self.client.redirects) != url:
            return None
        for candidate in candidates_beside(Path(local_path(self.main_url)), pin.name, basename(url)):
            if candidate.is_dir() and self.client.run(
                "--git-dir", str(_git_directory(candidate)), "cat-file", "-e", f"{pin.commit}^{{commit}}",
                cwd=candidate, what="looking beside the source", check=False,
            ).ok:
                return candidate
        return None


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


def verify_head(client: GitClient, path: Path, commit: str, shown: str) -> None:
    """SubmoduleError when the checkout at path is not exactly at commit."""
    found = client.run("rev-parse", "--show-prefix", "HEAD", cwd=path, what="reading a submodule", check=False) \
        if path.is_dir() else None
    lines = found.stdout.split("\n") if found is not None and found.ok else []
    # A prefix means that path is no repository of its own: git then answers for the one around it.
    here = lines[-1] if lines and not lines[0] else ""
    if here != commit:
        raise SubmoduleError(
            f"submodule {shown} is not at its pinned commit",
            context=f"pinned {commit}\nfound  {here or 'no checkout'}",
            hint="git submodule update --init --recursive (without --remote) puts it there",
        )
