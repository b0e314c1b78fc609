"""Make the repositories of minikwdb: bare, with history and tags, the same ids every time."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import git

from .releases import RELEASES, Release

SOURCE = Path(__file__).parent / "source"
UPSTREAM = "https://gitee.com/kwdb/"
SUBMODULES = {"kw-vendor": "kwbase/vendor", "kw-cdeps": "kwbase/c-deps", "kw-third_party": "kwdbts2/third_party"}
MISSING_COMMIT = "dead" * 10
_WHO = b"minikwdb <minikwdb@example.org>"
_FIRST_TIME = 1_760_000_000
_DAY_S = 86_400

# No setting of this machine or this user may change an id, ask for a signature or run a hook.
_ENVIRONMENT = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
}

# What the next commit of a submodule changes. The last one of each is past what any release pins:
# `git submodule update --remote` would take it, and get other code.
_MOVED_ON: Mapping[str, tuple[str, str, str]] = {
    "kw-vendor": ("minikw.example/pgwire/message.go", "maxBodySize = 64 << 20", "maxBodySize = 1 << 20"),
    "kw-cdeps": ("rowstore/rowstore.cc", "synchronous=FULL", "synchronous=OFF"),
    "kw-third_party": ("checksum/src/checksum.cpp", "14695981039346656037ull", "14695981039346656039ull"),
}

# Links as kw-vendor has them (go-bindata's and dep's test data): with a slash at the end, to where they lie in, to
# nothing. Not below source/, where this project's own checkout would have to have them.
_SYMLINKS: Mapping[str, Mapping[str, str]] = {
    "kw-vendor": {
        "minikw.example/testdata/symlinkFile/link.txt": "../symlinkSrc/file.txt",
        "minikw.example/testdata/symlinkParent/symlinkTarget": "../symlinkSrc/",
        "minikw.example/testdata/symlinkRecursiveParent/symlinkTarget": "../symlinkRecursiveParent/",
        "minikw.example/testdata/symlinks/invalid-symlink": "/non/existing/file",
        "minikw.example/testdata/symlinks/windows-file-symlink": "C:/Users/nobody/go/src/test.file",
    },
}


@dataclass(frozen=True, kw_only=True)
class MiniRepositories:
    """Where the repositories are, and the URL prefix that has to be redirected to them."""

    root: Path
    main: Path
    submodules: dict[str, Path]
    redirect: tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class _File:
    path: str
    mode: bytes
    data: bytes


def _read_tree(root: Path) -> list[_File]:
    """All files, sorted: the order of a directory listing must not matter."""
    files = []
    for path in sorted(root.rglob("*")):
        if path.is_file():
            mode = b"100755" if path.suffix == ".sh" else b"100644"
            files.append(_File(path=path.relative_to(root).as_posix(), mode=mode, data=path.read_bytes()))
    return files


def _edited(files: list[_File], path: str, old: str, new: str) -> list[_File]:
    [file] = [file for file in files if file.path == path]
    if file.data.count(old.encode()) != 1:
        raise ValueError(f"{path} must hold {old!r} exactly once")
    changed = _File(path=path, mode=file.mode, data=file.data.replace(old.encode(), new.encode()))
    return [changed if file.path == path else file for file in files]


class _Stream:
    """The input of `git fast-import`, which makes hundreds of objects in one process."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._marks = 0

    def commit(
        self, branch: str, message: str, files: list[_File], links: Mapping[str, str], parent: int | None
    ) -> int:
        self._marks += 1
        when = b"%s %d +0000" % (_WHO, _FIRST_TIME + self._marks * _DAY_S)
        add = self._parts.append
        add(b"reset refs/heads/%s\n" % branch.encode())
        add(b"commit refs/heads/%s\nmark :%d\n" % (branch.encode(), self._marks))
        add(b"author %s\ncommitter %s\n" % (when, when))
        self._data(message.encode() + b"\n")
        if parent is not None:
            add(b"from :%d\n" % parent)
        add(b"deleteall\n")
        for file in files:
            add(b"M %s inline %s\n" % (file.mode, file.path.encode()))
            self._data(file.data)
        for path, commit in links.items():
            add(b"M 160000 %s %s\n" % (commit.encode(), path.encode()))
        add(b"\n")
        return self._marks

    def tag(self, name: str, mark: int, message: str | None) -> None:
        if message is None:
            self._parts.append(b"reset refs/tags/%s\nfrom :%d\n\n" % (name.encode(), mark))
            return
        when = b"%s %d +0000" % (_WHO, _FIRST_TIME + mark * _DAY_S)
        self._parts.append(b"tag %s\nfrom :%d\ntagger %s\n" % (name.encode(), mark, when))
        self._data(message.encode() + b"\n")

    def branch(self, name: str, mark: int) -> None:
        self._parts.append(b"reset refs/heads/%s\nfrom :%d\n\n" % (name.encode(), mark))

    def _data(self, data: bytes) -> None:
        self._parts.append(b"data %d\n%s\n" % (len(data), data))

    def load(self, path: Path) -> git.Repo:
        """Make the bare repository at `path` out of the stream."""
        with tempfile.TemporaryFile() as stream, tempfile.TemporaryDirectory() as no_template:
            stream.write(b"".join(self._parts))
            stream.seek(0)
            command = git.Git()
            command.update_environment(**_ENVIRONMENT)
            command.init("--bare", "--quiet", "--initial-branch=master", f"--template={no_template}", str(path))
            repo = git.Repo(path)
            repo.git.update_environment(**_ENVIRONMENT)
            repo.git.fast_import("--quiet", "--force", istream=stream)
        return repo


def _make_submodule(path: Path, name: str) -> list[str]:
    """Three commits: what V1.0.0 pins, what the later releases pin, and where upstream went on."""
    files = _read_tree(SOURCE / name) + [
        _File(path=path, mode=b"120000", data=target.encode()) for path, target in _SYMLINKS.get(name, {}).items()
    ]
    first = [file for file in files if file.path != "README.md"]
    stream = _Stream()
    marks = [stream.commit("master", f"{name}: first state", first, {}, None)]
    marks.append(stream.commit("master", f"{name}: describe it", files, {}, marks[-1]))
    marks.append(stream.commit("master", f"{name}: move on", _edited(files, *_MOVED_ON[name]), {}, marks[-1]))
    repo = stream.load(path)
    return [commit.hexsha for commit in reversed(list(repo.iter_commits("master")))]


def _gitmodules() -> _File:
    text = "".join(
        f'[submodule "{path}"]\n\tpath = {path}\n\turl = {UPSTREAM}{name}.git\n\tbranch = master\n'
        for name, path in SUBMODULES.items()
    )
    return _File(path=".gitmodules", mode=b"100644", data=text.encode())


def _release_files(release: Release, files: list[_File]) -> list[_File]:
    for edit in release.edits:
        files = _edited(files, edit.path, edit.old, edit.new)
    return files


def _links(release: Release, pins: Mapping[str, list[str]]) -> dict[str, str]:
    links = {path: pins[name][release.generation] for name, path in SUBMODULES.items()}
    if release.missing_submodule:
        links[SUBMODULES["kw-cdeps"]] = MISSING_COMMIT
    return links


def _commits(stream: _Stream, pins: Mapping[str, list[str]]) -> Iterator[tuple[Release, int]]:
    files = [*_read_tree(SOURCE / "main"), _gitmodules()]
    marks: dict[str, int] = {}
    for release in RELEASES:
        parent = marks[release.parent] if release.parent else None
        marks[release.tag] = stream.commit(
            "master", release.message, _release_files(release, files), _links(release, pins), parent
        )
        yield release, marks[release.tag]


def _make_main(path: Path, pins: Mapping[str, list[str]]) -> None:
    stream = _Stream()
    marks: dict[str, int] = {}
    for release, mark in _commits(stream, pins):
        marks[release.tag] = mark
        if release.tag == "patched":
            stream.branch("patched", mark)
        else:
            stream.tag(release.tag, mark, release.message if release.annotated else None)
    stream.tag("v1.1.0", marks["V1.1.0_old"], None)
    stream.branch("release-1.1", marks["V1.1.0"])
    stream.branch("master", marks["V2.0.0"])
    stream.load(path)


def make_repositories(root: Path) -> MiniRepositories:
    """Make kwdb.git and the three submodule repositories under `root`, replacing what was there.

    Names without `.git` work as well: git adds the ending for local URLs.
    """
    made = locate_repositories(root)
    made.root.mkdir(parents=True, exist_ok=True)
    for path in (made.main, *made.submodules.values()):
        shutil.rmtree(path, ignore_errors=True)
    pins = {name: _make_submodule(path, name) for name, path in made.submodules.items()}
    _make_main(made.main, pins)
    return made


def locate_repositories(root: Path) -> MiniRepositories:
    """Where make_repositories puts them."""
    root = root.resolve()
    submodules = {name: root / f"{name}.git" for name in SUBMODULES}
    return MiniRepositories(
        root=root, main=root / "kwdb.git", submodules=submodules, redirect=(UPSTREAM, f"file://{root}/")
    )
