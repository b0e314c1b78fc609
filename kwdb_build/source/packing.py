"""A checkout as packs of git objects, and back: one pack a repository, holding one commit and no history.

Objects are named by their content, so that a pack says itself whether it is whole; no settings and no hooks travel
along. Files that a checkout leaves out (sparse-checkout) are left out of its pack.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kwdb_build.errors import BundleError, SourceError
from kwdb_build.source.inspect import content_digest
from kwdb_build.source.prepared import raw_attributes
from kwdb_build.source.submodules import read_pins

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kwdb_build.model import SourceTree
    from kwdb_build.source.client import GitClient


@dataclass(frozen=True, kw_only=True)
class PackedRepository:
    """One repository of a tree: its path in it ('' for the main one), its commit, its pack's file name, what is sparse.

    sparse: lines of git's sparse-checkout file, empty when everything is checked out.
    """

    path: str
    commit: str
    pack: str
    sparse: tuple[str, ...] = ()


def pack(git: GitClient, tree: SourceTree, target: Path) -> tuple[PackedRepository, ...]:
    """Write the packs of tree and its submodules into the directory target."""
    if tree.changed:
        raise SourceError(
            f"{tree.url} has {len(tree.changed)} uncommitted changes", context="\n".join(tree.changed[:20]),
            hint="commit them, or give them as a --patch: a bundle holds commits and patches",
        )
    target.mkdir(parents=True)
    places = ["", *(module.path for module in tree.submodules if (tree.path / module.path / ".git").exists())]
    return tuple(_pack(git, tree.path / place, place, target, number) for number, place in enumerate(places))


def _pack(git: GitClient, repository: Path, place: str, target: Path, number: int) -> PackedRepository:
    git.progress.update(f"packing {place or 'the main repository'}")
    directory = Path(git.text("rev-parse", "--absolute-git-dir", cwd=repository, what="packing"))
    commit = git.text("rev-parse", "--verify", "HEAD^{commit}", cwd=repository, what="packing")
    bare = target / "bare"
    try:
        git.run("init", "--quiet", "--bare", "--object-format=sha1", str(bare), cwd=target, what="packing")
        (bare / "objects" / "info" / "alternates").write_text(f"{directory / 'objects'}\n", encoding="utf-8")
        (bare / "shallow").write_text(f"{commit}\n", encoding="ascii")
        git.run("update-ref", "refs/heads/source", commit, cwd=bare, what="packing")
        said = git.text(
            "pack-objects", "--all", "--missing=allow-any", "--delta-base-offset", "--threads=0", str(target / "new"),
            cwd=bare, what="packing",
        )
    finally:
        shutil.rmtree(bare, ignore_errors=True)
    name = f"{number}.pack"
    (target / f"new-{said}.pack").rename(target / name)
    for left in target.glob("new-*"):
        left.unlink()
    sparse = directory / "info" / "sparse-checkout"
    wanted = git.run("config", "--bool", "core.sparseCheckout", cwd=repository, what="packing", check=False).stdout
    lines = sparse.read_text(encoding="utf-8").splitlines() if wanted == "true" and sparse.is_file() else []
    return PackedRepository(path=place, commit=commit, pack=name, sparse=tuple(lines))


def unpack_repositories(
    git: GitClient, packed: Iterable[PackedRepository], source: Path, tree: SourceTree, path: Path
) -> SourceTree:
    """Check the packed repositories out below path, which is empty; BundleError when they are not what is written."""
    moved = {module.path: module.commit for module in tree.submodules if module.pinned}
    for repository in sorted(packed, key=lambda one: one.path):
        place = path / repository.path
        if not place.resolve().is_relative_to(path.resolve()):
            raise BundleError(f"the bundle's submodule {repository.path!r} lies behind a symlink")
        _check_out(git, repository, source / repository.pack, place, raw=tree.origin in {"archive", "directory"})
        if repository.path in moved:
            _move_pin(git, path, repository)
    _require_pins(git, tree, path, moved)
    return replace(tree, path=path, content=content_digest(path))


def _check_out(git: GitClient, repository: PackedRepository, file: Path, place: Path, *, raw: bool) -> None:
    what = f"unpacking {repository.path or 'the main repository'}"
    git.progress.update(what)
    place.mkdir(parents=True, exist_ok=True)
    git.run("init", "--quiet", "--object-format=sha1", "--initial-branch=source", cwd=place, what=what)
    if raw:
        raw_attributes(git, place)
    packs = place / ".git" / "objects" / "pack"
    copy = packs / "bundle.pack"
    shutil.copyfile(file, copy)
    try:
        found = git.text("index-pack", "--fsck-objects", str(copy), cwd=place, what=what).split()[-1]
    except SourceError as error:
        raise BundleError(
            f"the objects of {repository.path or 'the main repository'} in the bundle are damaged", log=git.log,
            context=error.context, hint="make the bundle again",
        ) from error
    for part in (copy, copy.with_suffix(".idx"), copy.with_suffix(".rev")):
        if part.exists():
            part.rename(packs / f"pack-{found}{part.suffix}")
    (place / ".git" / "shallow").write_text(f"{repository.commit}\n", encoding="ascii")
    if repository.sparse:
        (place / ".git" / "info").mkdir(exist_ok=True)
        lines = "".join(f"{line}\n" for line in repository.sparse)
        (place / ".git" / "info" / "sparse-checkout").write_text(lines, encoding="utf-8")
        git.run("config", "core.sparseCheckout", "true", cwd=place, what=what)
    git.run("checkout", "--quiet", "--detach", "--force", repository.commit, cwd=place, what=what)


def _move_pin(git: GitClient, path: Path, repository: PackedRepository) -> None:
    """Let the index say where a submodule is: KWDB's Makefile would move it back otherwise."""
    above = path / repository.path
    while above != path:
        above = above.parent
        if (above / ".git").exists():
            inner = (path / repository.path).relative_to(above)
            git.run("update-index", "--cacheinfo", f"160000,{repository.commit},{inner}", cwd=above, what="unpacking")
            return


def _require_pins(git: GitClient, tree: SourceTree, path: Path, moved: dict[str, str]) -> None:
    """Every submodule that a commit names is there, at the commit it names (or where the contents say it was moved)."""
    for place in ("", *(module.path for module in tree.submodules)):
        if not (path / place / ".git").exists():
            continue
        head = git.text("rev-parse", "HEAD", cwd=path / place, what="checking")
        for pin in read_pins(git, path / place, head):
            shown = f"{place}/{pin.path}" if place else pin.path
            inner = path / shown
            here = git.text("rev-parse", "HEAD", cwd=inner, what="checking") if (inner / ".git").exists() else "nothing"
            if here != moved.get(shown, pin.commit):
                raise BundleError(
                    f"the bundle's submodule {shown} is not at its pinned commit",
                    context=f"pinned {pin.commit}\nfound  {here}", hint="make the bundle again",
                )
