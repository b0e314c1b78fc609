"""Reading a checkout: which commit, which version text, which submodules; and a working copy of it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kwdb_build.console import Progress
from kwdb_build.errors import SourceError
from kwdb_build.files import full_disk_said, require_space, sha256_of, tree_bytes
from kwdb_build.model import SOURCE_SUFFIX, SourceTree, Submodule, Version
from kwdb_build.source.client import GitClient
from kwdb_build.source.mirror import MARGIN_BYTES
from kwdb_build.source.reference import redact
from kwdb_build.source.submodules import head_of, read_pins, verify_head

if TYPE_CHECKING:
    from collections.abc import Iterator

DESCRIBE = ("describe", "--tags", "--dirty", "--match=V[0-9]*")
"""Exactly what KWDB's Makefile asks for its version text."""
PINNED, REMOTE_TIPS = "pinned", "remote"
"""How submodules were chosen: as the tree pins them, or README's way, the tips of their branches."""
_STORE_FILES = frozenset({"KWBASEDB_VERSION", "kwbase.start_mode"})
_COPY_CHUNK = 1 << 30
_SHOWN_CHANGES = 10


def read_tree(
    path: Path, *, url: str, ref: str, client: GitClient | None = None, submodule_mode: str = PINNED
) -> SourceTree:
    """Describe an existing checkout.

    With submodule_mode 'remote' the submodules may be at other commits than the pinned ones; the version text is then
    -dirty, as git says it of such a tree.

    SourceError when path is no checkout of its own, is shallow (its version text would be wrong) or has no version
    tag in its history; SubmoduleError when a submodule is not at the commit that HEAD pins. A changed tree is read
    too: its version then ends in -dirty.
    """
    git = client or GitClient()
    path = path.absolute()
    if path.parts[-len(SOURCE_SUFFIX.parts):] != SOURCE_SUFFIX.parts:
        raise SourceError(
            f"{path} does not end in {SOURCE_SUFFIX}", hint="KWDB's Makefile builds nowhere else: check it out there"
        )
    if not path.is_dir():
        raise SourceError(f"there is no checkout at {path}")
    top = git.run("rev-parse", "--show-prefix", "--is-shallow-repository", cwd=path, what=f"reading {path}")
    prefix, _, shallow = top.stdout.partition("\n")
    if prefix:
        raise SourceError(f"{path} is no git checkout of its own", context=f"it lies inside one, at {prefix}")
    if shallow == "true":
        raise SourceError(
            f"{path} is a shallow clone: `git describe` gives another version text there",
            hint="complete it with `git fetch --unshallow --tags`",
        )
    commit = git.text("rev-parse", "--verify", "HEAD^{commit}", cwd=path, what=f"reading {path}")
    time_text = git.text(
        "log", "-1", "--no-show-signature", "--format=%ct", "HEAD", cwd=path, what=f"reading {path}"
    )
    return SourceTree(
        path=path, url=redact(url), ref=ref, commit=commit, version=read_version(git, path),
        commit_time=int(time_text), submodules=read_submodules(git, path, commit, mode=submodule_mode),
        submodule_mode=submodule_mode,
    )


def read_version(git: GitClient, path: Path, *, dirty: bool = True) -> Version:
    """The version text that a build in path would carry; on request without -dirty and without a look at the files."""
    describe = DESCRIBE if dirty else tuple(word for word in DESCRIBE if word != "--dirty")
    # `git describe` abbreviates by the number of objects unless a length is set: our own checkouts have it set, as they
    # do not hold all objects; a person's own setting must not change the version text.
    own = git.run("config", "--local", "core.abbrev", cwd=path, what="reading the configuration", check=False).stdout
    digits = ("core.abbrev", own if own.isdigit() else "auto")
    found = git.configured(digits).run(*describe, cwd=path, what="describing the version", check=False)
    if not found.ok:
        raise SourceError(
            "no version tag (V and a number) in the history of this commit", context=redact(found.stderr),
            hint="fetch from a repository that has KWDB's tags, or set a tag such as V3.1.0 on its release",
        )
    try:
        return Version.parse(found.stdout)
    except ValueError:
        raise SourceError(
            f"the nearest tag gives {found.stdout!r}, which is no version",
            hint="choose a release tag such as V3.1.0, or a commit after one",
        ) from None


def read_submodules(
    git: GitClient, path: Path, commit: str, *, prefix: str = "", mode: str = PINNED
) -> tuple[Submodule, ...]:
    """Submodules and theirs, each checked to be where the commit above it pins it (unless mode is 'remote')."""
    result: list[Submodule] = []
    for pin in read_pins(git, path, commit):
        shown = f"{prefix}{pin.path}"
        head = pin.commit
        if mode == REMOTE_TIPS:
            head = head_of(git, path / pin.path) or pin.commit
        verify_head(git, path / pin.path, head, shown)
        moved = pin.commit if head != pin.commit else ""
        result.append(Submodule(path=shown, url=redact(pin.url), commit=head, pinned=moved))
        result.extend(read_submodules(git, path / pin.path, head, prefix=f"{shown}/", mode=mode))
    return tuple(result)


def changes(git: GitClient, tree: SourceTree) -> tuple[str, ...]:
    """Everything in a checkout and its submodules that is not its commits, ignored files included."""
    found: list[str] = []
    for place in ("", *(submodule.path for submodule in tree.submodules)):
        status = git.text(
            "status", "--porcelain=v1", "-z", "--untracked-files=all", "--ignored=traditional",
            "--ignore-submodules=all" if tree.submodule_mode == REMOTE_TIPS else "--ignore-submodules=dirty",
            "--no-renames", cwd=tree.path / place, what="checking for changes",
        )
        found += [f"{line[:2]} {Path(place) / line[3:]}" for line in status.split("\0") if line]
    return tuple(found)


def holds_store(path: Path) -> Path | None:
    """A directory below path that looks like a database's store, if there is one."""
    for directory, _, files in os.walk(path):
        if _STORE_FILES.intersection(files):
            return Path(directory)
    return None


def content_digest(path: Path) -> str:
    """Sha256 over path, mode (100644, 100755, 120000) and content of every file below path, `.git` left out.

    Nothing else counts: not times, owners, empty directories, or what umask made of the mode.
    """
    total = hashlib.sha256()
    for name, (mode, digest) in sorted(contents(path).items()):
        total.update(f"{mode} {digest} ".encode() + os.fsencode(name) + b"\0")
    return total.hexdigest()


def contents(path: Path) -> dict[str, tuple[str, str]]:
    """Relative name -> mode and sha256 of every file below path, `.git` left out."""
    return {name: (mode, digest) for name, mode, digest in _contents(path, "")}


def _contents(directory: Path, prefix: str) -> Iterator[tuple[str, str, str]]:
    with os.scandir(directory) as entries:
        for entry in entries:
            name = f"{prefix}{entry.name}"
            if entry.name == ".git":
                continue
            if entry.is_symlink():
                target = os.readlink(entry.path)  # noqa: PTH115  # Path would tidy the target
                yield name, "120000", hashlib.sha256(os.fsencode(target)).hexdigest()
            elif entry.is_dir():
                yield from _contents(Path(entry.path), f"{name}/")
            elif entry.is_file():
                mode = "100755" if entry.stat().st_mode & 0o100 else "100644"
                yield name, mode, sha256_of(Path(entry.path))


def copy_tree(
    tree: SourceTree,
    destination_gopath: Path,
    *,
    uid: int | None = None,
    gid: int | None = None,
    progress: Progress | None = None,
    mtime: int | None = None,
    backwards: bool = False,
) -> SourceTree:
    """Make a working copy at destination_gopath/src/gitee.com/kwbasedb, owned by uid:gid, and describe it.

    mtime is the time that every file gets (unix seconds; None: each its own). backwards: the names in a directory are
    made in the other order.

    KWDB's generators write into the tree, so a build gets its own. Blocks are shared where the file system can
    (copy_file_range), files never are: no hard link leads back. The .git directories come along, so that
    `git describe` in the copy gives the same text.

    A git run by anyone but the owner refuses the copy as `dubious ownership`. The copy's own configuration cannot
    lift that (git ignores safe.directory there on purpose): a build that runs as another user than uid, or as root,
    sets GIT_CONFIG_COUNT=1, GIT_CONFIG_KEY_0=safe.directory, GIT_CONFIG_VALUE_0=* in its environment.
    """
    say = progress or Progress()
    target = destination_gopath.absolute() / SOURCE_SUFFIX
    if target.exists() or target.is_symlink():
        raise SourceError(f"{target} exists already", hint="give each build a directory of its own")
    _make_parents(target.parent, uid, gid)
    require_space(target.parent, MARGIN_BYTES + tree_bytes(tree.path), "working copy of the source")
    temporary = target.with_name(f".{target.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    say.update("copying the source")
    try:
        with full_disk_said(target.parent, "copying the source"):
            _copy_directory(tree.path, temporary, uid, gid, mtime, backwards=backwards)
        git = GitClient(config=(("safe.directory", "*"),), progress=say)
        for place in ("", *(submodule.path for submodule in tree.submodules)):
            _refresh_index(git, temporary / place)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if tree.content:
        same, copied = content_digest(target) == tree.content, replace(tree, path=target)
    else:
        copied = read_tree(target, url=tree.url, ref=tree.ref, client=git, submodule_mode=tree.submodule_mode)
        same = (copied.commit, copied.version, copied.submodules) == (tree.commit, tree.version, tree.submodules)
    for place in ("", *(submodule.path for submodule in tree.submodules)):
        # Last, as `git describe --dirty` may write the index anew, owned by whoever runs it.
        _own(_index(git, target / place), uid, gid)
    if not same:
        names = [] if tree.content else changes(git, copied)
        shown = [*names[:_SHOWN_CHANGES], *([f"and {more} more"] if (more := len(names) - _SHOWN_CHANGES) > 0 else [])]
        raise SourceError(
            "the working copy is not what was copied",
            context="\n".join((f"{tree.version} {tree.commit}", f"{copied.version} {copied.commit}", *shown)),
            hint="something changed the fetched tree meanwhile: run it again. If it says so again, it is a defect of "
            "kwdb-build: please report the lines above",
        )
    return copied


def _make_parents(path: Path, uid: int | None, gid: int | None) -> None:
    missing = [parent for parent in (path, *path.parents) if not parent.exists()]
    for parent in reversed(missing):
        parent.mkdir(exist_ok=True)
        _own(parent, uid, gid)


def _own(path: Path, uid: int | None, gid: int | None) -> None:
    if uid is not None or gid is not None:
        os.chown(path, -1 if uid is None else uid, -1 if gid is None else gid, follow_symlinks=False)


def _copy_directory(
    source: Path, target: Path, uid: int | None, gid: int | None, mtime: int | None, *, backwards: bool
) -> None:
    """Directories and links first, then what lies in them, several directories at a time.

    Making a file is mostly work of the file system, which two can ask for at once.
    """
    directories: list[tuple[Path, Path, list[str]]] = []

    def make(source: Path, target: Path) -> None:
        target.mkdir()
        files = []
        with os.scandir(source) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name, reverse=backwards):
                if entry.is_symlink():
                    (target / entry.name).symlink_to(os.readlink(entry.path))  # noqa: PTH115  # Path would tidy it
                    _own(target / entry.name, uid, gid)
                elif entry.is_dir():
                    make(source / entry.name, target / entry.name)
                elif entry.is_file():
                    files.append(entry.name)
        directories.append((source, target, files))

    def fill(job: tuple[Path, Path, list[str]]) -> None:
        source, target, files = job
        for name in files:
            _copy_file(source / name, target / name, mtime)
            _own(target / name, uid, gid)
        _own(target, uid, gid)
        shutil.copystat(source, target)
        if mtime is not None:
            os.utime(target, (mtime, mtime))

    make(source, target)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(fill, directories))


def _copy_file(source: Path, target: Path, mtime: int | None) -> None:
    with source.open("rb") as reader, target.open("xb") as writer:
        info = os.fstat(reader.fileno())
        left = info.st_size
        with contextlib.suppress(OSError):  # other file systems refuse: then the ordinary way below
            while left and (done := os.copy_file_range(reader.fileno(), writer.fileno(), min(left, _COPY_CHUNK))):
                left -= done
        if left:
            reader.seek(info.st_size - left)
            writer.seek(info.st_size - left)
            shutil.copyfileobj(reader, writer, 1 << 20)
        os.fchmod(writer.fileno(), stat.S_IMODE(info.st_mode))
    if mtime is None:
        os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))
    else:
        os.utime(target, (mtime, mtime))


def _refresh_index(git: GitClient, path: Path) -> None:
    """Write the copy's own inode numbers into its index, or each later `git describe --dirty` reads every file."""
    git.run("update-index", "-q", "--refresh", cwd=path, what="refreshing the copy's index", check=False)


def _index(git: GitClient, path: Path) -> Path:
    return Path(git.text("rev-parse", "--absolute-git-dir", cwd=path, what="finding the copy's index")) / "index"
