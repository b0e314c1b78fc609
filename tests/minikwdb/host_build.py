"""Build releases of minikwdb with the tools of this host, for the tests of minikwdb itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

from .repositories import MiniRepositories

_GOPATH_TREE = Path("src/gitee.com/kwbasedb")


@cache
def _go() -> str | None:
    """The go command: on the path, or beside this interpreter."""
    beside = Path(sys.executable).parent / "go"
    return shutil.which("go") or (str(beside) if beside.exists() else None)


def missing_tools() -> list[str]:
    """What this host lacks to build minikwdb."""
    missing = [tool for tool in ("cmake", "g++", "make", "git", "ar") if shutil.which(tool) is None]
    if _go() is None:
        missing.append("go")
    probe = (
        subprocess.run(["g++", "-print-file-name=libsqlite3.a"], capture_output=True, text=True, check=False)
        if "g++" not in missing
        else None
    )
    if probe is None or not Path(probe.stdout.strip()).is_absolute():
        missing.append("libsqlite3.a")
    return missing


def git_environment(repositories: MiniRepositories) -> dict[str, str]:
    """What makes git take the URLs of KWDB from the local repositories."""
    upstream, local = repositories.redirect
    return {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        "GIT_CONFIG_COUNT": "2",
        "GIT_CONFIG_KEY_0": f"url.{local}.insteadOf",
        "GIT_CONFIG_VALUE_0": upstream,
        "GIT_CONFIG_KEY_1": "protocol.file.allow",
        "GIT_CONFIG_VALUE_1": "always",
    }


def checkout(repositories: MiniRepositories, ref: str, gopath: Path) -> Path:
    """Clone `ref` with its pinned submodules to where Go expects it."""
    tree = gopath / _GOPATH_TREE
    env = os.environ | git_environment(repositories)
    url = f"{repositories.redirect[0]}kwdb.git"
    subprocess.run(["git", "clone", "--quiet", url, str(tree)], env=env, check=True)
    for args in (["checkout", "--quiet", ref], ["submodule", "--quiet", "update", "--init", "--recursive"]):
        subprocess.run(["git", "-C", str(tree), *args], env=env, check=True, capture_output=True)
    return tree


def make(tree: Path, *arguments: str, cache_dir: Path) -> subprocess.CompletedProcess[str]:
    """Run make in the tree, without any network for Go."""
    go = _go()
    assert go is not None
    env = {name: value for name, value in os.environ.items() if name not in {"GOPATH", "MAKEFLAGS"}}
    env |= {
        "PATH": f"{Path(go).parent}{os.pathsep}{env['PATH']}",
        "GOCACHE": str(cache_dir),
        "GOPROXY": "off",
        "GOTOOLCHAIN": "local",
    }
    return subprocess.run(
        ["make", *arguments],
        cwd=tree,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
