"""What a source tree holds beside its upstream commits: in words, and as a diff that can be read and applied."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from kwdb_build.errors import SourceError
from kwdb_build.files import write_atomic
from kwdb_build.source.client import GitClient
from kwdb_build.source.inspect import contents

if TYPE_CHECKING:
    from pathlib import Path

    from kwdb_build.console import Progress
    from kwdb_build.model import SourceTree

_SHOWN_FILES = 500
_ORIGINS = {"archive": "the archive", "directory": "the plain directory", "worktree": "the checkout",
            "bundle": "a bundle of"}


def facts(tree: SourceTree) -> tuple[str, ...]:
    """One line for each thing that makes tree another one than a plain fetch of its commit; empty for that."""
    lines = []
    if tree.origin in _ORIGINS:
        lines.append(f"from {_ORIGINS[tree.origin]} {tree.url}, sha256 of its files {tree.content}")
    if tree.signature:
        lines.append(f"signature: {tree.signature}")
    if tree.submodule_mode != "pinned":
        lines.append("submodules at the tips of their branches (--submodules remote)")
    lines += [
        f"submodule {module.path} at {module.commit}, not at its pinned {module.pinned}"
        for module in tree.submodules if module.pinned
    ]
    lines += [f"uncommitted: {change}" for change in tree.changed]
    for number, patch in enumerate(tree.patches, 1):
        where = f" in {patch.directory}" if patch.directory else ""
        lines.append(f"patch {number}: {patch.name}{where}, sha256 {patch.sha256}")
    return tuple(lines)


def difference(tree: SourceTree, *, home: Path, progress: Progress, log: Path) -> str:
    """The diff of tree against its commit and those of its submodules, '' when there is none.

    The diff is kept below home when it is first made, so that it outlives the prepared files.
    """
    if not tree.content:
        return ""
    record = home.absolute() / "source" / "records" / f"{tree.content}.diff"
    if record.is_file():
        return record.read_text(encoding="utf-8", errors="surrogateescape")
    if not tree.path.is_dir():
        raise SourceError(
            f"the files of {tree.version} are no longer in the cache", context=str(tree.path),
            hint="prepare them again with the same source and patches (`kwdb-build fetch …`), then ask again",
        )
    git = GitClient(progress=progress, log=log)
    own = [module.path for module in tree.submodules if (tree.path / module.path / ".git").exists()]
    text = "".join(_of_repository(git, tree.path / place, place) for place in ("", *own))
    record.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(record, text.encode("utf-8", "surrogateescape"))
    return text


def _of_repository(git: GitClient, path: Path, place: str) -> str:
    prefix = f"{place}/" if place else ""
    found = git.text(
        "diff", "--cached", "--binary", "--no-color", "--no-ext-diff", "--no-textconv", "--no-renames",
        "--submodule=short", f"--src-prefix=a/{prefix}", f"--dst-prefix=b/{prefix}", "HEAD", "--", ".", cwd=path,
        what="comparing",
    )
    return f"{found}\n" if found else ""


def between(old: SourceTree, new: SourceTree, *, progress: Progress, log: Path) -> str:
    """The diff between the files of two trees, whatever they come from."""
    git = GitClient(progress=progress, log=log)
    progress.update("comparing all files")
    before, after = contents(old.path), contents(new.path)
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    parts = []
    for name in names[:_SHOWN_FILES]:
        sides = [
            str(tree.path / name) if name in known else os.devnull for tree, known in ((old, before), (new, after))
        ]
        # Exit code 1 says that they differ.
        said = git.run(
            "diff", "--no-index", "--binary", "--no-color", "--no-ext-diff", "--no-textconv", "--", *sides,
            cwd=new.path, what="comparing", check=False,
        ).stdout
        for tree in (old, new):
            said = said.replace(f"{tree.path}/", "/").replace("a//", "a/").replace("b//", "b/")
        parts.append(f"{said}\n")
    if len(names) > _SHOWN_FILES:
        parts += [f"Only named, after {_SHOWN_FILES} files: {name} differs\n" for name in names[_SHOWN_FILES:]]
    return "".join(parts)
