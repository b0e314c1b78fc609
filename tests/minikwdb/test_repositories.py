"""The repositories of minikwdb: the same everywhere, and with KWDB's traps."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import git
import pytest

from .host_build import checkout, git_environment
from .repositories import MISSING_COMMIT, SUBMODULES, MiniRepositories, make_repositories


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> MiniRepositories:
    return make_repositories(tmp_path_factory.mktemp("upstream"))


def _refs(path: Path) -> str:
    return str(git.Repo(path).git.show_ref())


def test_ids_do_not_depend_on_place_user_or_settings(
    repositories: MiniRepositories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "gitconfig"
    settings.write_text("[user]\n\tname = Somebody\n[commit]\n\tgpgSign = true\n[core]\n\tautocrlf = true\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    monkeypatch.setenv("GIT_AUTHOR_NAME", "Somebody Else")
    monkeypatch.setenv("TZ", "Asia/Shanghai")
    again = make_repositories(tmp_path / "again")
    assert _refs(again.main) == _refs(repositories.main)
    for name, path in again.submodules.items():
        assert _refs(path) == _refs(repositories.submodules[name])


def test_making_them_twice_in_one_place_replaces_them(repositories: MiniRepositories) -> None:
    before = _refs(repositories.main)
    assert make_repositories(repositories.root) == repositories
    assert _refs(repositories.main) == before


def test_the_tags_hold_the_traps(repositories: MiniRepositories) -> None:
    repo = git.Repo(repositories.main)
    assert {"V1.0.0", "V1.1.0", "V1.2.0", "V1.3.0", "V2.0.0", "v1.1.0", "V1.1.0_old"} <= {t.name for t in repo.tags}
    assert repo.tags["v1.1.0"].commit != repo.tags["V1.1.0"].commit != repo.tags["V1.1.0_old"].commit
    assert repo.git.describe("--tags", "--match=V[0-9]*", "V1.1.0") == "V1.1.0"
    assert repo.git.describe("--tags", "--match=V[0-9]*", "patched").startswith("V1.1.0-1-g")
    assert {"master", "release-1.1", "patched"} == {head.name for head in repo.heads}


def test_urls_are_absolute_and_master_has_moved_on(repositories: MiniRepositories) -> None:
    repo = git.Repo(repositories.main)
    assert "url = https://gitee.com/kwdb/kw-cdeps.git" in repo.git.show("V1.1.0:.gitmodules")
    for name, path in SUBMODULES.items():
        pinned = repo.git.rev_parse(f"V1.1.0:{path}")
        upstream = git.Repo(repositories.submodules[name])
        assert upstream.git.merge_base("--is-ancestor", pinned, "master") == ""
        assert upstream.git.rev_parse("master") != pinned
        assert pinned != repo.git.rev_parse(f"V1.0.0:{path}")


def test_a_checkout_takes_the_pinned_submodules(repositories: MiniRepositories, tmp_path: Path) -> None:
    tree = checkout(repositories, "V1.1.0", tmp_path / "go")
    assert (tree / "kwbase/c-deps/rowstore/rowstore.h").is_file()
    status = git.Repo(tree).git.submodule("status")
    assert not [line for line in status.splitlines() if line.startswith(("+", "-"))]


def test_one_release_pins_a_commit_that_nobody_has(repositories: MiniRepositories, tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        checkout(repositories, "V1.1.3", tmp_path / "go")
    assert MISSING_COMMIT.encode() in caught.value.stderr


@pytest.mark.parametrize("name", ["kwdb", "kwdb.git"])
def test_the_url_works_with_and_without_its_ending(repositories: MiniRepositories, name: str) -> None:
    env = os.environ | git_environment(repositories)
    listed = subprocess.run(
        ["git", "ls-remote", f"{repositories.redirect[0]}{name}", "V1.1.0"], env=env, check=True, capture_output=True
    )
    assert b"refs/tags/V1.1.0" in listed.stdout
