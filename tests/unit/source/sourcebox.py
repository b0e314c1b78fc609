"""Real repositories shaped like KWDB's: one main tree and three submodules whose URLs point at gitee.com.

The tests reach them by a redirect, as a user behind a mirror does.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kwdb_build.command import run
from kwdb_build.console import Progress
from kwdb_build.model import SourceTree
from kwdb_build.source.fetch import SourceRequest, fetch
from kwdb_build.source.reference import Redirect

HOST = "https://gitee.com/kwdb/"
SUBMODULES = {
    "kwbase/vendor": "kw-vendor",
    "kwbase/c-deps": "kw-cdeps",
    "kwdbts2/third_party": "kw-third_party",
}


class Notes(Progress):
    """Remembers what a person would have seen."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.updates: list[tuple[str, float | None, float | None]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def update(self, text: str, *, done: float | None = None, total: float | None = None) -> None:
        self.updates.append((text, done, total))


def git(where: Path, *args: str, when: int = 1_700_000_000) -> str:
    """Run git as an upstream developer does, untouched by this machine's configuration."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | {
        "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "LC_ALL": "C",
        "GIT_AUTHOR_NAME": "A Developer", "GIT_AUTHOR_EMAIL": "dev@example.invalid",
        "GIT_COMMITTER_NAME": "A Developer", "GIT_COMMITTER_EMAIL": "dev@example.invalid",
        "GIT_AUTHOR_DATE": f"{when} +0000", "GIT_COMMITTER_DATE": f"{when} +0000",
    }
    return run(["git", *args], cwd=where, env=environment).stdout.rstrip("\n")


@dataclass
class Repository:
    """A developer's work tree and the bare repository that it pushes to."""

    work: Path
    bare: Path
    clock: int = 1_700_000_000

    @classmethod
    def create(cls, root: Path, name: str) -> Repository:
        made = cls(work=root / "work" / name, bare=root / "mirror" / "kwdb" / f"{name}.git")
        made.work.mkdir(parents=True)
        made.bare.mkdir(parents=True)
        git(made.work, "init", "--quiet", "--initial-branch=master")
        git(made.bare, "init", "--quiet", "--bare", "--initial-branch=master")
        git(made.work, "remote", "add", "origin", str(made.bare))
        return made

    def commit(self, message: str, files: dict[str, str | bytes], links: dict[str, str] | None = None) -> str:
        for name, content in files.items():
            path = self.work / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
            git(self.work, "add", "--force", "--", name)
        for name, commit in (links or {}).items():
            git(self.work, "update-index", "--add", "--cacheinfo", f"160000,{commit},{name}")
        self.clock += 60
        git(self.work, "commit", "--quiet", "--allow-empty", "-m", message, when=self.clock)
        return self.head

    @property
    def head(self) -> str:
        return git(self.work, "rev-parse", "HEAD")

    def tag(self, name: str, *, annotated: bool = True) -> None:
        self.clock += 1
        git(self.work, "tag", *(["-a", "-m", name] if annotated else []), name, when=self.clock)

    def push(self) -> None:
        git(self.work, "push", "--quiet", "--force", "--all", "origin")
        git(self.work, "push", "--quiet", "--force", "--tags", "origin")


@dataclass
class Upstream:
    """The four repositories, pushed: V1.0.0 (tag), V1.1.0 with newer submodules, and a branch `master` ahead of it."""

    root: Path
    main: Repository
    parts: dict[str, Repository]
    commits: dict[str, str] = field(default_factory=dict)
    pins: dict[str, dict[str, str]] = field(default_factory=dict)

    @classmethod
    def create(cls, root: Path) -> Upstream:
        parts = {name: Repository.create(root, name) for name in SUBMODULES.values()}
        self = cls(root=root, main=Repository.create(root, "kwdb"), parts=parts)
        self.release("V1.0.0")
        self.release("V1.1.0")
        self.commits["master"] = self.main.commit("after the release", {"kwbase/after.go": "package after\n"})
        self.push()
        return self

    def release(self, tag: str, *, gitmodules: str | None = None) -> str:
        pins = {
            path: self.parts[name].commit(f"{name} for {tag}", {"file.txt": f"{name} {tag}\n"})
            for path, name in SUBMODULES.items()
        }
        files: dict[str, str | bytes] = {
            ".gitmodules": gitmodules if gitmodules is not None else self.gitmodules(),
            "Makefile": f"# {tag}\nall:\n", ".gitignore": "/build/\n", "kwbase/main.go": f"package main // {tag}\n",
        }
        self.commits[tag] = self.main.commit(f"release {tag}", files, pins)
        self.pins[tag] = pins
        self.main.tag(tag)
        return self.commits[tag]

    @staticmethod
    def gitmodules(base: str = HOST) -> str:
        # `branch` as in KWDB's own file: it must not move anything.
        return "".join(
            f'[submodule "{path}"]\n\tpath = {path}\n\turl = {base}{name}.git\n\tbranch = master\n'
            for path, name in SUBMODULES.items()
        )

    def push(self) -> None:
        for repository in (self.main, *self.parts.values()):
            repository.push()

    @property
    def mirror(self) -> str:
        return f"{self.root}/mirror/kwdb/"

    @property
    def redirect(self) -> Redirect:
        return Redirect(prefix=HOST, replacement=self.mirror)


@dataclass
class Machine:
    """One user's kwdb-build: a home, a log, and what was said."""

    home: Path
    upstream: Upstream
    said: Notes = field(default_factory=Notes)

    @property
    def log(self) -> Path:
        return self.home / "fetch.log"

    def fetch(
        self, ref: str, *, url: str = f"{HOST}kwdb.git", redirects: tuple[Redirect, ...] | None = None,
        stall_timeout_s: float = 60, lock_timeout_s: float = 60, **more: Any,
    ) -> SourceTree:
        request = SourceRequest(
            url=url, ref=ref, redirects=(self.upstream.redirect,) if redirects is None else redirects,
            stall_timeout_s=stall_timeout_s, **more,
        )
        return fetch(
            request, home=self.home, progress=self.said, log=self.log, lock_timeout_s=lock_timeout_s,
        )

    @property
    def caches(self) -> list[Path]:
        return sorted((self.home / "cache" / "git").glob("*.git"))

    @property
    def checkouts(self) -> list[str]:
        return sorted(path.name for path in (self.home / "source").glob("*") if path.is_dir())
