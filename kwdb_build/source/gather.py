"""The one door to a source tree, whatever it comes from: git, an archive, a directory, a checkout or a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kwdb_build.errors import SourceError, UsageError
from kwdb_build.model import Patch
from kwdb_build.source.archive import is_archive_name
from kwdb_build.source.prepared import printable

if TYPE_CHECKING:
    from kwdb_build.console import Progress
    from kwdb_build.model import SourceTree
    from kwdb_build.source.fetch import SourceRequest

_BEGINS_PATH = ("/", "./", "../", "~")


@dataclass(frozen=True, kw_only=True)
class SourceChoice:
    """What a person said about the source besides URL and reference; a run keeps it, so that a resume does the same.

    local: archive, directory or checkout instead of a git URL. version: what it is, when its name does not say it.
    dirty: uncommitted changes of a checkout are wanted. submodules: path in the tree and what holds it. patches: in
    order, their bytes kept below home. bundle: directory of an opened bundle.
    """

    local: Path | None = None
    version: str = ""
    dirty: bool = False
    submodules: tuple[tuple[str, Path], ...] = ()
    patches: tuple[Patch, ...] = ()
    bundle: Path | None = None


def names_local(ref: str) -> bool:
    """Whether what stands in a reference's place is a path. No tag or branch begins so, or ends like an archive."""
    return ref.startswith(_BEGINS_PATH) or ref in {".", ".."} or is_archive_name(ref)


def gather(
    request: SourceRequest, choice: SourceChoice, *, home: Path, progress: Progress, log: Path
) -> SourceTree:
    """The source tree of a request, patched as chosen. Errors: those of fetch, local, worktree, bundle and patches."""
    from kwdb_build.source.patches import apply_patches

    try:
        tree = _base(request, choice, home=home, progress=progress, log=log)
    except OSError as error:
        raise SourceError(
            f"the source cannot be read or copied: {error.strerror or error}", context=printable(str(error.filename)),
            hint="look at the rights of that file and of --home", log=log,
        ) from error
    return apply_patches(tree, choice.patches, home=home, progress=progress, log=log)


def _base(request: SourceRequest, choice: SourceChoice, *, home: Path, progress: Progress, log: Path) -> SourceTree:
    if choice.bundle is not None:
        from kwdb_build.source.bundle import prepare_bundled

        return prepare_bundled(choice.bundle, home=home, progress=progress, log=log)
    if choice.local is None:
        from kwdb_build.source.fetch import fetch

        return fetch(request, home=home, progress=progress, log=log)
    from kwdb_build.source.worktree import Worktree, is_worktree, prepare_worktree

    path = choice.local.expanduser().absolute()
    if path.is_dir() and home.resolve().is_relative_to(path.resolve()):
        raise UsageError(
            f"home {home} lies inside of the source {path}, and would be copied too",
            hint="choose another place with --home",
        )
    if str(path) != printable(str(path)):
        raise UsageError(f"this path cannot be written down safely: {printable(str(path))}", hint="rename it")
    if is_worktree(path):
        if choice.submodules:
            raise UsageError(
                "--submodule is for archives and plain directories",
                hint=f"{path} is a git checkout: check its submodules out there",
            )
        return prepare_worktree(
            Worktree(path=path, dirty=choice.dirty, version=choice.version), home=home, progress=progress, log=log
        )
    if choice.dirty:
        raise UsageError("--dirty is for a git checkout", hint=f"{path} is none: there is nothing to be uncommitted")
    from kwdb_build.source.local import LocalSource, prepare_local

    source = LocalSource(path=path, version=choice.version, submodules=dict(choice.submodules))
    return prepare_local(source, home=home, progress=progress, log=log)
