"""A developer's checkout as the source: copied as it is, never written to, its own settings and hooks left behind.

What counts: tracked files as they are on disk, and untracked files that .gitignore does not name. Ignored files (old
build results) are left out. Whether something is uncommitted is decided on the copy, with kwdb-build's own git
settings: a checkout that rewrites line ends differs from its commit, whatever its own `git status` says.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from kwdb_build.errors import DirtySourceError, SourceError, SubmoduleError, UsageError
from kwdb_build.files import full_disk_said, require_space
from kwdb_build.model import SOURCE_SUFFIX, SourceTree, Submodule, Version
from kwdb_build.source.cachelock import LOCK_TIMEOUT_S, hold
from kwdb_build.source.client import GitClient
from kwdb_build.source.inspect import content_digest, read_version
from kwdb_build.source.mirror import MARGIN_BYTES
from kwdb_build.source.prepared import copy_plain, digest_name, links_out, prepared, printable, raw_attributes
from kwdb_build.source.reference import redact
from kwdb_build.source.submodules import Pin, read_pins

if TYPE_CHECKING:
    from kwdb_build.console import Progress

_SHOWN = 30


@dataclass(frozen=True, kw_only=True)
class Worktree:
    """Where the checkout is, whether its uncommitted changes are wanted, and its version ('': git describe)."""

    path: Path
    dirty: bool = False
    version: str = ""


def is_worktree(path: Path) -> bool:
    """Whether a directory is a git checkout of its own."""
    return path.is_dir() and (path / ".git").exists()


def prepare_worktree(source: Worktree, *, home: Path, progress: Progress, log: Path) -> SourceTree:
    """A copy of the checkout as it is now, described; the same state is prepared once.

    Submodules that are not at their pinned commits are used as they are, said aloud, and make the version -dirty, as
    `git describe` does.

    Errors: DirtySourceError (with the list), SubmoduleError (one that is not checked out), SourceError, SpaceError.
    """
    path, home = source.path.absolute(), home.absolute()
    if not is_worktree(path):
        raise UsageError(f"{path} is no git checkout", hint="name its top directory, the one that holds .git")
    with full_disk_said(home, f"copying {path}", log=log):
        return _Copying(replace(source, path=path), home, GitClient(progress=progress, log=log)).prepare()


class _Copying:
    def __init__(self, source: Worktree, home: Path, git: GitClient) -> None:
        self.source = source
        self.home = home
        self.git = git
        self.changed: list[str] = []
        self.submodules: list[Submodule] = []

    def prepare(self) -> SourceTree:
        top = self.home / "source"
        name = digest_name("worktree", str(self.source.path))
        with hold(
            top / f"{name}.lock", what=f"copying {self.source.path}", progress=self.git.progress,
            timeout_s=LOCK_TIMEOUT_S,
        ):
            temporary = top / f".{name}.new"
            shutil.rmtree(temporary, ignore_errors=True)
            try:
                return self._name(self._copy(temporary / SOURCE_SUFFIX), temporary)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def _name(self, tree: SourceTree, temporary: Path) -> SourceTree:
        """The same state has the same name: a copy that is there is used, and this one dropped."""
        name = digest_name("worktree", tree.commit, tree.content, tree.version.text, str(tree.path),
                           *(f"{module.path} {module.commit}" for module in tree.submodules))

        def move(place: Path) -> SourceTree:
            shutil.rmtree(place)
            temporary.rename(place)
            return tree

        found = prepared(self.home, name, move, progress=self.git.progress)
        return replace(found, url=tree.url, ref=tree.ref)

    # ----------------------------------------------------------------- copying

    def _copy(self, target: Path) -> SourceTree:
        path = self.source.path
        commit = self._copy_repository(path, target, "")
        self._copy_submodules(path, target, commit, "")
        if self.changed and not self.source.dirty:
            shown = [*self.changed[:_SHOWN]]
            if len(self.changed) > _SHOWN:
                shown.append(f"and {len(self.changed) - _SHOWN} more")
            raise DirtySourceError(
                f"{path} has {len(self.changed)} uncommitted changes", context="\n".join(shown),
                hint="commit or stash them, or add --dirty to build with them (the version then ends in -dirty)",
                log=self.git.log,
            )
        if outside := sorted(links_out(target)):
            raise SourceError(
                f"symlinks in {path} lead out of it", context="\n".join(outside[:5]),
                hint="they could bring other files of this machine into the build: remove them",
            )
        moved = any(module.pinned for module in self.submodules)
        time_text = self.git.text(
            "show", "--no-patch", "--no-show-signature", "--format=%ct", commit, cwd=target, what=f"reading {path}"
        )
        return SourceTree(
            path=target, url=redact(str(path)), ref=self._branch(), commit=commit,
            version=self._version().marked(dirty=moved or bool(self.changed)), commit_time=int(time_text),
            submodules=tuple(self.submodules), origin="worktree", content=content_digest(target),
            changed=tuple(self.changed),
        )

    def _branch(self) -> str:
        found = self.git.run(
            "symbolic-ref", "--quiet", "--short", "HEAD", cwd=self.source.path, what="reading the branch", check=False
        )
        return found.stdout if found.ok else "HEAD"

    def _version(self) -> Version:
        if self.source.version:
            try:
                return Version.parse(self.source.version)
            except ValueError:
                raise UsageError(f"{self.source.version!r} is no version of KWDB", hint="write it as its tag: V3.2.1") \
                    from None
        shallow = self.git.text(
            "rev-parse", "--is-shallow-repository", cwd=self.source.path, what=f"reading {self.source.path}"
        )
        if shallow == "true":
            raise SourceError(
                f"{self.source.path} is a shallow clone: `git describe` gives another version text there",
                hint="complete it with `git fetch --unshallow --tags`, or say the version: --source-version V3.2.1",
            )
        return read_version(self.git, self.source.path, dirty=False)

    def _copy_repository(self, path: Path, target: Path, prefix: str) -> str:
        """Copy one repository's files and the objects of its HEAD; note what differs. Returns the commit."""
        git = self.git
        top = git.run("rev-parse", "--show-prefix", cwd=path, what=f"reading {path}")
        if top.stdout:
            raise SourceError(f"{path} is no git checkout of its own", context=f"it lies inside one, at {top.stdout}")
        commit = git.text("rev-parse", "--verify", "HEAD^{commit}", cwd=path, what=f"reading {path}")
        git.progress.update(f"copying {prefix or path}")
        target.mkdir(parents=True, exist_ok=True)
        git.run("init", "--quiet", "--object-format=sha1", cwd=target, what="making the copy")
        local = git.configured(("protocol.file.allow", "always"))
        local.run(
            "fetch", "--quiet", "--depth=1", "--no-tags", "--no-recurse-submodules", "--no-write-fetch-head",
            f"file://{quote(str(path))}", "HEAD:refs/heads/source", cwd=target, what=f"reading {path}",
        )
        raw_attributes(git, target)
        git.run("update-ref", "--no-deref", "HEAD", commit, cwd=target, what="making the copy")
        git.run("read-tree", "HEAD", cwd=target, what="making the copy")
        listing = git.text(
            "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=path, what=f"listing {path}"
        )
        names = sorted({name for name in listing.split("\0") if name})
        require_space(target, MARGIN_BYTES + sum(_size(path / name) for name in names), "copy of the working tree")
        for name in names:
            source = path / name
            if os.path.lexists(source) and not (source.is_dir() and not source.is_symlink()):
                copy_plain(source, target / name.rstrip("/"))
        pins = {pin.path for pin in read_pins(git, target, commit)}
        status = git.text(
            "status", "--porcelain=v1", "-z", "--untracked-files=all", "--no-renames", "--ignore-submodules=all",
            cwd=target, what="looking for changes",
        )
        self.changed += [
            f"{line[:2]} {prefix}{printable(line[3:])}" for line in status.split("\0")
            if line and line[3:].rstrip("/") not in pins
        ]
        return commit

    def _copy_submodules(self, path: Path, target: Path, commit: str, prefix: str) -> None:
        """Submodules as they are checked out; ones that are not at their pins are used too, aloud."""
        for pin in read_pins(self.git, target, commit):
            shown = f"{prefix}{pin.path}"
            if not (path / pin.path / ".git").exists():
                raise SubmoduleError(
                    f"submodule {shown} of {self.source.path} is not checked out",
                    context=f"pinned commit {pin.commit}",
                    hint=f"git -C {self.source.path} submodule update --init --recursive",
                )
            here = self._copy_repository(path / pin.path, target / pin.path, f"{shown}/")
            self._note(pin, shown, here)
            self._copy_submodules(path / pin.path, target / pin.path, here, f"{shown}/")
        # The index says where each submodule is and what is uncommitted: KWDB's Makefile calls `git submodule update`.
        self.git.run("add", "--all", "--force", "--", ".", cwd=target, what="reading the files in")

    def _note(self, pin: Pin, shown: str, here: str) -> None:
        moved = here != pin.commit
        if moved:
            self.git.progress.note(f"submodule {shown} is at {here[:12]}, not at its pinned commit {pin.commit[:12]}")
        self.submodules.append(
            Submodule(path=shown, url=redact(pin.url), commit=here, pinned=pin.commit if moved else "")
        )


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0
