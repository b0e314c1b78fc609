"""Patches on top of a source: read once, kept by digest, applied in order, all of them or none.

A patch is a diff as `git diff`, `git format-patch` or quilt write it. What is given is a file or a directory: one with
a `series` file is a quilt series, any other is taken by name (0001-… before 0002-…).
"""

from __future__ import annotations

import hashlib
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from kwdb_build.errors import PatchError, SpaceError, UsageError
from kwdb_build.files import full_disk_said, write_atomic
from kwdb_build.model import SOURCE_SUFFIX, Patch, SourceTree
from kwdb_build.source.client import GitClient
from kwdb_build.source.inspect import content_digest, copy_tree
from kwdb_build.source.prepared import digest_name, links_out, prepared, printable, stage_everything

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kwdb_build.console import Progress

_MAX_BYTES = 64 << 20
_SUFFIXES = (".patch", ".diff")
_STRIP = re.compile(r"^-p(\d)$")
_SHOWN_LINES = 40
_DIFF = re.compile(rb"^(?:diff --git |--- |GIT binary patch)", re.MULTILINE)
_OUTSIDE = re.compile(r"invalid path|beyond a symbolic link|outside repository")


@dataclass(frozen=True, kw_only=True)
class PatchFile:
    """A patch and its bytes."""

    patch: Patch
    data: bytes


def read_patches(given: Iterable[str]) -> tuple[PatchFile, ...]:
    """Read every `[DIRECTORY=]FILE|DIR` in its order; PatchError for what is no patch, UsageError for no such file."""
    found: list[PatchFile] = []
    for text in given:
        directory, path = _split(text)
        if not path.exists():
            raise UsageError(f"there is no patch {path}", hint="give a patch file, or a directory of patches")
        found += _read_directory(path, directory) if path.is_dir() else [_read_file(path, directory, 1)]
    return tuple(found)


def _split(text: str) -> tuple[str, Path]:
    """`kwbase/vendor=fix.patch` -> the directory and the file; a path that exists is taken as it is."""
    before, equals, after = text.partition("=")
    if not equals or Path(text).expanduser().exists():
        return "", Path(text).expanduser().absolute()
    parts = PurePosixPath(before).parts
    if not before or before.startswith("/") or ".." in parts or ".git" in parts:
        raise UsageError(f"not a directory of the source: {before!r}", hint="write SUBMODULE=FILE, such as "
                         "kwbase/vendor=fix.patch")
    return str(PurePosixPath(before)), Path(after).expanduser().absolute()


def _read_directory(path: Path, directory: str) -> list[PatchFile]:
    series = path / "series"
    if series.is_file():
        entries = list(_series(path, series.read_text(encoding="utf-8", errors="surrogateescape")))
        hint = f"{series} lists none"
    else:
        entries = [(entry, 1) for entry in sorted(path.iterdir()) if entry.name.endswith(_SUFFIXES)]
        hint = f"patches end in {' or '.join(_SUFFIXES)}, or are listed in a file called series"
    if not entries:
        raise PatchError(f"the directory {path} holds no patch", hint=hint)
    return [_read_file(entry, directory, strip) for entry, strip in entries]


def _series(path: Path, text: str) -> Iterator[tuple[Path, int]]:
    """Lines of a quilt series: NAME [-pN], `#` begins a comment."""
    for line in text.splitlines():
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        name, options = words[0], words[1:]
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise PatchError(f"the series of {path} names a patch outside of its directory: {name}")
        strip = 1
        for option in options:
            match = _STRIP.match(option)
            if match is None and option != "-pab":
                raise PatchError(
                    f"the series of {path} asks for {option!r} with {name}", hint="only -pN is supported there"
                )
            strip = int(match[1]) if match else 1
        if not (path / name).is_file():
            raise PatchError(f"the series of {path} names {name}, which is not there")
        yield path / name, strip


def _read_file(path: Path, directory: str, strip: int) -> PatchFile:
    if path.stat().st_size > _MAX_BYTES:
        raise PatchError(f"{path} is larger than {_MAX_BYTES >> 20} MiB: that is no patch")
    data = path.read_bytes()
    if _DIFF.search(data) is None:
        raise PatchError(
            f"{path} holds no diff", hint="export it with `git format-patch` or `git diff --binary`"
        )
    digest = hashlib.sha256(data).hexdigest()
    return PatchFile(patch=Patch(name=printable(path.name), sha256=digest, directory=directory, strip=strip), data=data)


def keep(files: Iterable[PatchFile], home: Path) -> tuple[Patch, ...]:
    """Store the bytes below home by digest: a later process must not depend on where the person's file was."""
    kept = []
    for file in files:
        path = stored(file.patch, home)
        path.parent.mkdir(parents=True, exist_ok=True)
        with full_disk_said(home, "keeping the patches"):
            write_atomic(path, file.data)
        kept.append(file.patch)
    return tuple(kept)


def stored(patch: Patch, home: Path) -> Path:
    """Where the bytes of a patch are kept."""
    return home.absolute() / "source" / "patches" / f"{patch.sha256}.patch"


def load(patch: Patch, home: Path) -> PatchFile:
    """A kept patch, compared with its digest."""
    path = stored(patch, home)
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != patch.sha256:
        raise PatchError(
            f"the kept copy of patch {patch.name} is gone or was changed", context=str(path),
            hint="begin anew and name the patch file again",
        )
    return PatchFile(patch=patch, data=data)


def set_digest(patches: Iterable[Patch]) -> str:
    """Digest of patches in their order: what `-patched-…` in a version text is the beginning of."""
    digest = hashlib.sha256()
    for patch in patches:
        digest.update(f"{patch.directory}\0{patch.strip}\0{patch.sha256}\n".encode())
    return digest.hexdigest()


def apply_patches(
    base: SourceTree, patches: tuple[Patch, ...], *, home: Path, progress: Progress, log: Path
) -> SourceTree:
    """A tree of its own with the patches on top of base; base stays as it is.

    Nothing of it remains when one does not apply: PatchError then shows the hunk. Errors: PatchError, SpaceError.
    """
    if not patches:
        return base
    files = [load(patch, home) for patch in patches]
    name = digest_name(
        "patched", base.origin, base.commit, base.content, base.version.text, set_digest(patches),
        *(f"{module.path} {module.commit}" for module in base.submodules),
    )

    def make(temporary: Path) -> SourceTree:
        shutil.rmtree(temporary)
        tree = copy_tree(base, temporary, progress=progress)
        git = GitClient(progress=progress, log=log)
        before = set(links_out(tree.path))
        for number, file in enumerate(files, 1):
            progress.update(f"applying {file.patch.name}", done=number, total=len(files))
            _apply(git, tree.path, file, number, len(files))
        _require_inside(tree.path, before)
        for place in (*_repositories(tree), ""):
            stage_everything(git, tree.path / place)
        return replace(
            tree, ref=base.ref, patches=(*base.patches, *patches), content=content_digest(tree.path),
            version=base.version.marked(patched=set_digest((*base.patches, *patches))[:8]),
        )

    def changed(place: Path) -> str:
        new = set(links_out(place / SOURCE_SUFFIX)) - set(links_out(base.path))
        return "a symlink that led nowhere leads out of it now" if new else ""

    with full_disk_said(home, "applying the patches", log=log):
        tree = prepared(home, name, make, changed=changed, progress=progress)
    # Names are for people and no part of the identity: those given now count.
    return replace(tree, url=base.url, ref=base.ref, patches=(*base.patches, *patches))


def _repositories(tree: SourceTree) -> tuple[str, ...]:
    """Submodules that are repositories of their own, inner ones first."""
    paths = [module.path for module in tree.submodules if (tree.path / module.path / ".git").exists()]
    return tuple(sorted(paths, key=len, reverse=True))


def _apply(git: GitClient, path: Path, file: PatchFile, number: int, total: int) -> None:
    """Apply one patch to the files; git itself refuses ../, absolute paths, .git and paths through symlinks."""
    patch = file.patch
    _require_directory(path, patch)
    place = path.parents[len(SOURCE_SUFFIX.parts) - 1] / "current.patch"  # of this temporary tree alone
    place.write_bytes(file.data)
    try:
        done = git.run(
            "apply", "--verbose", "--whitespace=nowarn", "--no-ignore-whitespace", f"-p{patch.strip}",
            *([f"--directory={patch.directory}"] if patch.directory else []), str(place), cwd=path,
            what=f"applying {patch.name}", check=False,
        )
    finally:
        place.unlink()
    if done.ok:
        return
    said = [line for line in done.stderr.splitlines() if not line.startswith(("Checking patch", "Applied patch"))]
    if any("No space left" in line for line in said):
        raise SpaceError(f"the file system of {path} became full while applying {patch.name}", log=git.log)
    where = f" (patch {number} of {total})" if total > 1 else ""
    if any(_OUTSIDE.search(line) for line in said):
        raise PatchError(
            f"patch {patch.name}{where} wants to change files outside of the source", context="\n".join(said),
            log=git.log, hint="nothing was applied; its paths must lie inside the tree and not go through symlinks",
        )
    raise PatchError(
        f"patch {patch.name}{where} does not apply", context="\n".join(said[:_SHOWN_LINES]), log=git.log,
        hint="nothing was applied; rebase it onto the version you build, or name the submodule that it belongs to: "
        "--patch SUBMODULE=FILE",
    )


def _require_directory(path: Path, patch: Patch) -> None:
    if not patch.directory:
        return
    place = path / patch.directory
    if not place.is_dir() or place.resolve() != path.resolve() / patch.directory:
        raise PatchError(
            f"patch {patch.name} is for {patch.directory}, which is no directory of this source",
            hint="write --patch SUBMODULE=FILE with the submodule's path in the tree, such as kwbase/vendor",
        )


def _require_inside(path: Path, before: set[str]) -> None:
    new = sorted(set(links_out(path)) - before)
    if new:
        raise PatchError(
            "a patch makes symlinks that lead out of the source", context="\n".join(new[:5]),
            hint="nothing was applied; such a link could bring files of this machine into the build",
        )
