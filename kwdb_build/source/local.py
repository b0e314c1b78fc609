"""KWDB's source without git: an archive or a plain directory, with its submodules from archives or directories beside.

The files become one commit of kwdb-build's own making, tagged with the version, because KWDB's Makefile asks git for
both. The same files, times and version give the same commit; what names the source is the digest of its files.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from kwdb_build.errors import SourceError, SubmoduleError, UsageError
from kwdb_build.files import full_disk_said, read_json, require_space, sha256_of, tree_bytes, walk_files, write_json
from kwdb_build.model import SOURCE_SUFFIX, SourceTree, Submodule, Version
from kwdb_build.source.archive import is_archive_name, stem, unpack
from kwdb_build.source.client import GitClient
from kwdb_build.source.inspect import content_digest, holds_store
from kwdb_build.source.mirror import MARGIN_BYTES
from kwdb_build.source.prepared import (
    copy_plain,
    digest_name,
    leads_out,
    links_out,
    prepared,
    really_leads_out,
    stage_everything,
)
from kwdb_build.source.reference import basename
from kwdb_build.source.submodules import parse_gitmodules

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kwdb_build.console import Progress

_VERSION_IN_NAME = re.compile(r"(?:^|[-_ ])[Vv]?(?P<numbers>\d+(?:\.\d+){1,3})(?P<rest>_RC\d+)?$")
_MAKER = "kwdb-build <kwdb-build@localhost>"
_MARK = "Makefile"
_USED = "submodules.json"
_MAX_DEPTH = 5


@dataclass(frozen=True, kw_only=True)
class LocalSource:
    """Where the files are (archive or directory), the version they are (''; read from names), and the submodules'.

    submodules: path in the tree -> archive or directory that holds it.
    """

    path: Path
    version: str = ""
    submodules: Mapping[str, Path] = field(default_factory=dict)


def prepare_local(source: LocalSource, *, home: Path, progress: Progress, log: Path) -> SourceTree:
    """The source tree of an archive or a plain directory, made at most once for the same bytes.

    Errors: UsageError (no such file, no version), UnsafeArchiveError, SubmoduleError (lists what is missing),
    SourceError, SpaceError.
    """
    source = replace(source, path=source.path.absolute())
    if not (source.path.is_file() or source.path.is_dir()):
        raise UsageError(f"there is no archive or directory {source.path}")
    if source.path.is_dir() and (store := holds_store(source.path)) is not None:
        raise SourceError(f"{source.path} holds a database store", context=str(store),
                          hint="name the directory of the source alone")
    with full_disk_said(home, f"unpacking {source.path.name}", log=log):
        return _Local(source, home.absolute(), progress, log).prepare()


class _Local:
    def __init__(self, source: LocalSource, home: Path, progress: Progress, log: Path) -> None:
        self.source = source
        self.home = home
        self.progress = progress
        self.git = GitClient(progress=progress, log=log)
        self.newest_s = 0
        self.claimed = ""
        self.used: dict[str, str] = {}
        self.names = [stem(source.path.name)]

    def prepare(self) -> SourceTree:
        self.progress.update(f"reading {self.source.path.name}")
        kind = "directory" if self.source.path.is_dir() else "archive"
        name = digest_name(
            kind, fingerprint(self.source.path), self.source.path.name, self.source.version,
            *(f"{path} {place}" for path, place in sorted(self.source.submodules.items())),
        )
        made = prepared(
            self.home, name, lambda place: self._make(place, kind), changed=_changed, progress=self.progress
        )
        return replace(made, url=str(self.source.path))

    # ------------------------------------------------------------------ making

    def _make(self, temporary: Path, kind: str) -> SourceTree:
        path = temporary / SOURCE_SUFFIX
        self._bring(self.source.path, path)
        if not (path / _MARK).is_file():
            raise SourceError(
                f"{self.source.path} does not look like KWDB's source: it has no {_MARK} at its top",
                hint="name the archive or the directory whose top holds Makefile, kwbase and kwdbts2",
            )
        submodules = self._fill_submodules(path, "")
        write_json(temporary / _USED, self.used)
        if outside := sorted(links_out(path)):
            raise SourceError(
                f"symlinks in {self.source.path} lead out of it", context="\n".join(outside[:5]),
                hint="they could bring files of this machine into the build: remove them",
            )
        version = self._version()
        commit = self._commit(path, version, content := content_digest(path))
        if self.claimed:
            self.progress.note(f"{self.source.path.name} says that it is commit {self.claimed[:12]} (not checked)")
        return SourceTree(
            path=path, url=str(self.source.path), ref=self.source.path.name, commit=commit, version=version,
            commit_time=self.newest_s, submodules=submodules, origin=kind, content=content,
        )

    def _bring(self, source: Path, target: Path) -> None:
        """Unpack or copy source to target, without the directories that only wrap it."""
        if source.is_dir():
            self._copy(source, target)
            return
        stage = target.with_name(f".{target.name}.unpacking")
        stage.mkdir(parents=True)
        unpacked = unpack(source, stage, progress=self.progress)
        if source == self.source.path:
            self.claimed = unpacked.commit if re.fullmatch(r"[0-9a-f]{40}", unpacked.commit) else ""
        self.newest_s = max(self.newest_s, unpacked.newest_s)
        top = stage
        while len(entries := list(top.iterdir())) == 1 and entries[0].is_dir() and not entries[0].is_symlink():
            top = entries[0]
            if source == self.source.path:
                self.names.append(top.name)
        if target.exists():
            target.rmdir()
        top.rename(target)
        if stage.exists():
            shutil.rmtree(stage)

    def _copy(self, source: Path, target: Path) -> None:
        require_space(target.parent, MARGIN_BYTES + tree_bytes(source), "copy of the source")
        for path in walk_files(source):
            relative = path.relative_to(source)
            if ".git" in relative.parts:
                continue
            copy_plain(path, target / relative)
            info = path.lstat()
            if stat.S_ISREG(info.st_mode):
                self.newest_s = max(self.newest_s, int(info.st_mtime))
        for directory, names, files in os.walk(source):
            if ".git" in names:
                names.remove(".git")
            if not names and not files:  # submodules that were never filled
                (target / Path(directory).relative_to(source)).mkdir(parents=True, exist_ok=True)

    # -------------------------------------------------------------- submodules

    def _fill_submodules(self, path: Path, prefix: str, depth: int = 0) -> tuple[Submodule, ...]:
        wanted = self._gitmodules(path)
        if wanted and depth >= _MAX_DEPTH:
            raise SubmoduleError(f"submodules nest deeper than {_MAX_DEPTH}: {prefix}{next(iter(wanted))}")
        unknown = [] if prefix else sorted(
            name for name in self.source.submodules if not any(
                name == known or name.startswith(f"{known}/") for known in wanted
            )
        )
        if unknown:
            raise UsageError(
                f"the source has no submodule {unknown[0]!r}", hint=f"it has: {', '.join(wanted) or 'none'}"
            )
        missing, found = [], []
        for name, url in wanted.items():
            place, shown = path / name, f"{prefix}{name}"
            source = self.source.submodules.get(shown)
            if source is None and not _is_empty(place):
                origin = str(self.source.path)
            elif (source := source or self._beside(url)) is not None:
                self._replace(place, source.absolute(), path, name)
                origin = str(source)
                self.used[str(source.absolute())] = fingerprint(source)
                self.progress.note(f"submodule {shown}: taken from {source}")
            else:
                missing.append(f"{shown}  ({url})")
                continue
            found.append(Submodule(path=shown, url=origin, commit=f"sha256:{content_digest(place)}"))
            found += self._fill_submodules(place, f"{shown}/", depth + 1)
        if missing:
            raise SubmoduleError(
                f"{self.source.path.name} comes without {len(missing)} of its submodules", context="\n".join(missing),
                hint="put their archives or directories beside it under their names (kw-vendor.tar.gz), or name each: "
                "--submodule kwbase/vendor=PATH",
            )
        return tuple(found)

    def _gitmodules(self, path: Path) -> dict[str, str]:
        """Path -> URL of .gitmodules, read by git as plain settings."""
        file = path / ".gitmodules"
        if not file.is_file() or file.is_symlink():
            return {}
        found = self.git.run(
            "config", "--no-includes", "--file", str(file), "-z", "--list", cwd=path, what="reading .gitmodules",
            check=False,
        )
        if not found.ok:
            raise SubmoduleError(f".gitmodules of {self.source.path.name} cannot be read", context=found.stderr)
        entries = {name: url for name, (_, url, _) in parse_gitmodules(found.stdout).items()}
        for name in entries:
            if name.startswith("/") or ".." in PurePosixPath(name).parts or ".git" in PurePosixPath(name).parts:
                raise SubmoduleError(f"a submodule of {self.source.path.name} has an unsafe path: {name!r}")
        return entries

    def _replace(self, place: Path, source: Path, path: Path, name: str) -> None:
        if not source.exists():
            raise UsageError(f"there is no archive or directory {source} for submodule {name}")
        if leads_out(name, ".") or really_leads_out(path, name):
            raise SubmoduleError(f"submodule {name} lies behind a symlink that leads out of the source")
        if place.exists():
            shutil.rmtree(place)
        place.parent.mkdir(parents=True, exist_ok=True)
        self._bring(source, place)

    def _beside(self, url: str) -> Path | None:
        """The one thing beside the source that bears a submodule's name: kw-vendor/, kw-vendor-V3.2.1.zip."""
        base = basename(url)
        if not base:
            return None
        found = sorted(
            path for path in self.source.path.parent.iterdir()
            if path != self.source.path and _names(path, base)
        )
        if len(found) > 1:
            raise SubmoduleError(
                f"several things beside {self.source.path.name} could be the submodule {base}",
                context="\n".join(map(str, found)), hint="say which: --submodule kwbase/vendor=ARCHIVE-OR-DIRECTORY",
            )
        return found[0] if found else None

    # ---------------------------------------------------------- version, commit

    def _version(self) -> Version:
        if self.source.version:
            try:
                return Version.parse(self.source.version)
            except ValueError:
                raise UsageError(
                    f"{self.source.version!r} is no version of KWDB", hint="write it as its tag: V3.2.1"
                ) from None
        read = {name: text for name in self.names if (text := version_in_name(name))}
        if len(set(read.values())) != 1:
            raise UsageError(
                f"which version is {self.source.path.name}?" if not read
                else f"the names around {self.source.path.name} tell different versions",
                context="\n".join(f"{name}: {text}" for name, text in read.items()),
                hint="say it: --source-version V3.2.1",
            )
        return Version.parse(next(iter(read.values())))

    def _commit(self, path: Path, version: Version, content: str) -> str:
        """One commit of all files, the same wherever and whenever it is made."""
        git = self.git.configured(("core.compression", "1"), ("core.symlinks", "true"), ("core.fileMode", "true"))
        git.run("init", "--quiet", "--object-format=sha1", "--initial-branch=source", cwd=path, what="making a commit")
        self.progress.update("making a commit of the files")
        stage_everything(git, path)
        tree = git.text("write-tree", cwd=path, what="making a commit")
        made = path.parent / ".commit"
        made.write_text(
            f"tree {tree}\nauthor {_MAKER} {self.newest_s} +0000\ncommitter {_MAKER} {self.newest_s} +0000\n\n"
            f"KWDB {version}, from files without git\n\nsha256 of the files: {content}\n", encoding="utf-8",
        )
        try:
            commit = git.text("hash-object", "-t", "commit", "-w", str(made), cwd=path, what="making a commit")
        finally:
            made.unlink()
        git.run("update-ref", "refs/heads/source", commit, cwd=path, what="making a commit")
        git.run("update-ref", f"refs/tags/{version.text}", commit, cwd=path, what="making a commit")
        return commit


def version_in_name(name: str) -> str:
    """`KWDB-V3.2.1` -> 'V3.2.1', '' when a name does not end in a version."""
    match = _VERSION_IN_NAME.search(name)
    return f"V{match['numbers']}{match['rest'] or ''}" if match else ""


def fingerprint(path: Path) -> str:
    """What an archive (its bytes) or a directory (its files' bytes, and their newest time) is known by."""
    if path.is_file():
        return sha256_of(path)
    return f"{content_digest(path)} {_newest(path)}"


def _changed(place: Path) -> str:
    """What counts beside a tree's own bytes and is another now: what its submodules came from, where symlinks lead."""
    used: dict[str, str] = read_json(place / _USED)
    if not all(Path(path).exists() and fingerprint(Path(path)) == known for path, known in used.items()):
        return "what its submodules came from is another now"
    return "a symlink that led nowhere leads out of it now" if any(links_out(place / SOURCE_SUFFIX)) else ""


def _newest(path: Path) -> int:
    times = (file.lstat() for file in walk_files(path) if ".git" not in file.relative_to(path).parts)
    return max((int(info.st_mtime) for info in times if stat.S_ISREG(info.st_mode)), default=0)


def _is_empty(path: Path) -> bool:
    return not path.is_dir() or not any(path.iterdir())


def _names(path: Path, base: str) -> bool:
    if path.is_dir():
        return path.name == base
    name = stem(path.name)
    return is_archive_name(path.name) and (name == base or name.startswith((f"{base}-", f"{base}_")))
