"""Source trees that are more than a fetched commit: home/source/<name>, described by a file beside the files.

What git's hashes cannot vouch for (an archive, patched files, uncommitted changes) is known by one digest over all
files, taken when the tree was made and compared before each use.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kwdb_build.errors import SourceError
from kwdb_build.files import fsync_directory, load_json, write_json
from kwdb_build.model import SOURCE_SUFFIX, SourceTree
from kwdb_build.source.cachelock import LOCK_TIMEOUT_S, hold, set_aside
from kwdb_build.source.inspect import content_digest, holds_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kwdb_build.console import Progress
    from kwdb_build.source.client import GitClient

DESCRIPTION = "source.json"
_RAW = "* -text -eol -ident -filter -working-tree-encoding -export-subst\n"


def prepared(
    home: Path, name: str, make: Callable[[Path], SourceTree], *, progress: Progress,
    changed: Callable[[Path], str] = lambda _: "", lock_timeout_s: float = LOCK_TIMEOUT_S,
) -> SourceTree:
    """The tree called name, made by make(directory) when it is not there whole.

    make fills <directory>/src/gitee.com/kwbasedb under a temporary name and describes it; only then, flushed to disk,
    does it get its name. A tree that was changed since is made again, and so is one for which changed(directory) names
    a change elsewhere that counts: where a symlink leads is none of its bytes.
    """
    place = home / "source" / name
    with hold(place.with_name(f"{name}.lock"), what=f"preparing {name}", progress=progress, timeout_s=lock_timeout_s):
        found = _reuse(place, progress, changed)
        if found is not None:
            return found
        temporary = place.with_name(f".{name}.new")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            (temporary / SOURCE_SUFFIX).mkdir(parents=True)
            return adopt(make(temporary), temporary, place)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def adopt(tree: SourceTree, temporary: Path, place: Path) -> SourceTree:
    """Give a finished temporary tree its name, described and durable."""
    tree = replace(tree, path=place / SOURCE_SUFFIX)
    write_json(temporary / DESCRIPTION, tree)
    os.sync()  # one flush for all: after a power cut the renamed tree must not hold empty files
    temporary.rename(place)
    fsync_directory(place.parent)
    return tree


def _reuse(place: Path, progress: Progress, changed: Callable[[Path], str]) -> SourceTree | None:
    if not place.exists():
        return None
    try:
        tree = load_json(SourceTree, place / DESCRIPTION)
    except (OSError, ValueError):
        found = "it is not whole"
    else:
        progress.update("checking the prepared source")
        whole = tree.path == place / SOURCE_SUFFIX and tree.content == content_digest(tree.path)
        found = changed(place) if whole else "its files were changed"
        if not found:
            os.utime(place)  # `cache list` tells when it was last used
            return tree
    if (store := holds_store(place)) is not None:
        raise SourceError(
            f"the prepared source {place} was changed and holds a database store", context=str(store),
            hint="stop that server and move its store elsewhere; nothing was touched",
        )
    progress.note(f"the prepared source {place.name} is made again: {found}")
    aside = set_aside(place)
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)
    return None


def digest_name(kind: str, *parts: str) -> str:
    """Directory name of a prepared tree: its kind, and a digest of everything that decides its files."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode("utf-8", "surrogateescape") + b"\0")
    return f"{kind}-{digest.hexdigest()[:40]}"


def printable(name: str) -> str:
    """A file's name as it can be printed and written down: what is no text, or steers a terminal, as an escape."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name)


def leads_out(link: str, target: str) -> bool:
    """Whether a symlink at the relative path link, pointing to target, leaves the tree it is in."""
    if target.startswith("/") or not target:
        return True
    depth = len(link.split("/")) - 1
    for part in target.split("/"):
        depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
        if depth < 0:
            return True
    return False


def leads_nowhere(target: str) -> bool:
    """Whether a symlink's target is absolute and nothing stands there, so that it brings nothing of this machine.

    KWDB's vendor directory holds such a link: golang/dep tests itself with /non/existing/file.
    """
    if not target.startswith("/"):
        return False
    try:
        os.lstat(target)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):  # such as a directory that we may not enter: the build's user may
        return False
    return False


def really_leads_out(root: Path, link: str) -> bool:
    """Whether a symlink that exists below root ends outside of it, through whatever other links."""
    end = os.path.realpath(root / link)
    top = os.path.realpath(root)
    return end != top and not end.startswith(f"{top}/")


def links_out(root: Path) -> Iterator[str]:
    """Symlinks below root that lead out of it, as `path -> target`."""
    for directory, names, files in os.walk(root):
        if ".git" in names:
            names.remove(".git")
        for name in (*names, *files):
            path = f"{directory}/{name}"  # a source has ten thousands: no Path for each
            if os.path.islink(path):  # noqa: PTH114
                target = os.readlink(path)  # noqa: PTH115  # Path would tidy the target
                relative = os.path.relpath(path, root)
                if leads_nowhere(target):
                    continue
                if leads_out(relative, target) or really_leads_out(root, relative):
                    yield f"{relative} -> {target}"


def stage_everything(git: GitClient, repository: Path) -> None:
    """Put a prepared repository's files into its index, byte for byte: ignored ones too, and no filter runs.

    The index then says what differs from HEAD, also which commit each submodule is at: KWDB's Makefile calls `git
    submodule update`, which would move it back to another one.
    """
    raw_attributes(git, repository)
    git.run("add", "--all", "--force", "--", ".", cwd=repository, what="reading the files in")


def raw_attributes(git: GitClient, repository: Path) -> None:
    """Let no .gitattributes of the tree change a byte, or call a program, in this repository of ours."""
    directory = Path(git.text("rev-parse", "--absolute-git-dir", cwd=repository, what="finding the repository"))
    (directory / "info").mkdir(exist_ok=True)
    (directory / "info" / "attributes").write_text(_RAW, encoding="ascii")


def copy_plain(source: Path, target: Path) -> None:
    """Copy one file or symlink as git would keep it: content, link, and whether it may be run. Nothing is linked."""
    info = source.lstat()
    target.parent.mkdir(parents=True, exist_ok=True)
    if stat.S_ISLNK(info.st_mode):
        target.symlink_to(os.readlink(source))  # noqa: PTH115  # Path would tidy the target
    elif stat.S_ISREG(info.st_mode):
        with source.open("rb") as reader, target.open("xb") as writer:
            with contextlib.suppress(OSError):
                while os.copy_file_range(reader.fileno(), writer.fileno(), 1 << 30):
                    pass
            reader.seek(writer.seek(0, os.SEEK_END))
            shutil.copyfileobj(reader, writer, 1 << 20)
            os.fchmod(writer.fileno(), 0o755 if info.st_mode & 0o100 else 0o644)
        os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))
    else:
        raise SourceError(
            f"{source} is neither a file nor a symlink", hint="sources hold nothing else: remove it, or leave it out"
        )
