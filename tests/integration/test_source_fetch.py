"""Fetching from real repositories on this machine: what is right afterwards, and each wrong input."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from kwdb_build.command import run
from kwdb_build.errors import KwdbBuildError, SourceError, SubmoduleError, UnknownReferenceError
from kwdb_build.source.reference import Redirect
from tests.unit.source.sourcebox import HOST, SUBMODULES, Machine, Repository, Upstream, git


def full_clone_describe(upstream: Upstream, commit: str, where: Path) -> str:
    """What a person's ordinary full clone says."""
    git(where.parent, "clone", "--quiet", str(upstream.main.bare), str(where))
    git(where, "checkout", "--quiet", "--detach", commit)
    return git(where, "describe", "--tags", "--dirty", "--match=V[0-9]*")


def test_a_tag_comes_with_its_pinned_submodules(machine: Machine, upstream: Upstream) -> None:
    tree = machine.fetch("V1.0.0")
    assert tree.commit == upstream.commits["V1.0.0"]
    assert str(tree.version) == "V1.0.0"
    assert tree.path.parts[-3:] == ("src", "gitee.com", "kwbasedb")
    assert tree.gopath == machine.home / "source" / tree.commit
    assert {part.path: part.commit for part in tree.submodules} == upstream.pins["V1.0.0"]
    assert {part.url for part in tree.submodules} == {f"{HOST}{name}.git" for name in SUBMODULES.values()}
    for path, name in SUBMODULES.items():
        assert (tree.path / path / "file.txt").read_text() == f"{name} V1.0.0\n"
    assert tree.commit_time == int(git(upstream.main.work, "show", "-s", "--format=%ct", tree.commit))
    assert git(tree.path, "status", "--porcelain", "--ignored") == ""
    assert git(tree.path, "remote", "get-url", "origin") == f"{HOST}kwdb.git"
    assert git(tree.path / "kwbase/vendor", "remote", "get-url", "origin") == f"{HOST}kw-vendor.git"
    # Nothing in the checkout leads to the cache: it can be mounted elsewhere.
    assert str(machine.home / "cache") not in (tree.path / ".git" / "config").read_text()
    assert not list((tree.path / ".git").rglob("alternates"))
    assert machine.log.read_text().count("$ git fetch") == 4
    assert any(done is not None and total for _, done, total in machine.said.updates)


def test_branch_and_commits_and_describe_are_those_of_a_full_clone(
    machine: Machine, upstream: Upstream, tmp_path: Path
) -> None:
    for ref in ("master", "refs/heads/master", upstream.commits["master"], upstream.commits["master"][:10]):
        tree = machine.fetch(ref)
        assert tree.commit == upstream.commits["master"]
        assert tree.ref == ref
    assert str(tree.version) == full_clone_describe(upstream, tree.commit, tmp_path / "clone")
    assert str(tree.version).startswith("V1.1.0-1-g")
    assert machine.checkouts == [upstream.commits["master"]]


def test_tags_that_differ_in_case_are_two_tags(machine: Machine, upstream: Upstream) -> None:
    other = upstream.main.commit("something older", {"x": "y"})
    upstream.main.tag("v1.1.0", annotated=False)
    upstream.main.tag("v1.1.0_old", annotated=False)
    upstream.push()
    assert machine.fetch("V1.1.0").commit == upstream.commits["V1.1.0"]
    assert machine.fetch("v1.1.0").commit == other


def test_a_name_that_is_tag_and_branch_is_refused_unless_both_agree(machine: Machine, upstream: Upstream) -> None:
    git(upstream.main.work, "branch", "V1.0.0", "refs/tags/V1.0.0")
    upstream.push()
    assert machine.fetch("V1.0.0").commit == upstream.commits["V1.0.0"]
    git(upstream.main.work, "branch", "--force", "V1.0.0", upstream.commits["master"])
    upstream.push()
    with pytest.raises(SourceError, match="both a tag and a branch") as caught:
        machine.fetch("V1.0.0")
    assert "refs/tags/V1.0.0 or refs/heads/V1.0.0" in caught.value.hint
    assert machine.fetch("refs/heads/V1.0.0").commit == upstream.commits["master"]
    assert machine.fetch("refs/tags/V1.0.0").commit == upstream.commits["V1.0.0"]


def test_a_branch_named_like_a_hash_is_a_branch(machine: Machine, upstream: Upstream) -> None:
    git(upstream.main.work, "branch", "1804", upstream.commits["V1.0.0"])
    upstream.push()
    assert machine.fetch("1804").commit == upstream.commits["V1.0.0"]


def test_unknown_references_name_the_near_ones(machine: Machine) -> None:
    with pytest.raises(UnknownReferenceError, match=r"no tag, branch or commit 'V1\.0\.1'") as caught:
        machine.fetch("V1.0.1")
    assert "V1.0.0" in caught.value.hint
    with pytest.raises(UnknownReferenceError) as caught:
        machine.fetch("v1.1.0")
    assert caught.value.hint.startswith("did you mean V1.1.0")
    for commit in ("0123456789", "f" * 40):
        with pytest.raises(UnknownReferenceError):
            machine.fetch(commit)
    assert machine.checkouts == []


def test_a_moved_branch_and_a_new_tag_are_noticed(machine: Machine, upstream: Upstream) -> None:
    first = machine.fetch("master")
    moved = upstream.main.commit("moved on", {"kwbase/after.go": "package moved\n"})
    upstream.push()
    assert machine.fetch("master").commit == moved != first.commit
    upstream.main.tag("V1.2.0")
    upstream.push()
    # The same commit and the same checkout, but another version text since the tag came.
    assert str(machine.fetch("master").version) == "V1.2.0"
    assert str(machine.fetch(moved).version) == "V1.2.0"


def test_a_tag_moved_or_deleted_over_there_is_moved_or_deleted_here(machine: Machine, upstream: Upstream) -> None:
    machine.fetch("V1.0.0")
    git(upstream.main.work, "tag", "-f", "-a", "-m", "again", "V1.0.0", upstream.commits["V1.1.0"])
    upstream.push()
    before, now = upstream.commits["V1.0.0"], upstream.commits["V1.1.0"]
    assert machine.fetch("V1.0.0").commit == now
    moved = [note for note in machine.said.notes if note.startswith("the tag")]
    assert len(moved) == 1
    assert f"the tag V1.0.0 has moved since the last fetch, from {before[:12]} to {now[:12]}" in moved[0]
    assert machine.fetch("V1.0.0").commit == now
    assert len([note for note in machine.said.notes if "has moved" in note]) == 1, "said when it is noticed"
    git(upstream.main.bare, "tag", "-d", "V1.1.0")
    git(upstream.main.bare, "tag", "-d", "V1.0.0")
    with pytest.raises(UnknownReferenceError):
        machine.fetch("V1.0.0")
    # The commit that was fetched stays in the cache, yet no version can be told any more once that was noticed.
    assert str(machine.fetch(upstream.commits["V1.1.0"]).version) == "V1.1.0"
    with pytest.raises(SourceError, match="no version tag"):
        machine.fetch("master")
    with pytest.raises(SourceError, match="no version tag"):
        machine.fetch(upstream.commits["V1.1.0"])


def test_many_moved_tags_are_counted(machine: Machine, upstream: Upstream) -> None:
    machine.fetch("V1.0.0")
    for number in range(5):
        upstream.main.tag(f"V0.{number}.0")
    upstream.push()
    machine.fetch("master")
    for number in range(5):
        git(upstream.main.work, "tag", "-f", f"V0.{number}.0", upstream.commits["V1.0.0"])
    upstream.push()
    machine.fetch("master")
    assert [note.partition(" has moved")[0] for note in machine.said.notes if "moved" in note] == [
        "the tag V0.0.0", "the tag V0.1.0", "the tag V0.2.0"
    ]
    assert "so have 2 other tags" in machine.said.notes


def test_a_whole_checkout_is_used_again_untouched(machine: Machine, upstream: Upstream) -> None:
    tree = machine.fetch("V1.0.0")
    inode = (tree.path / "Makefile").stat().st_ino
    machine.log.unlink()
    assert machine.fetch("V1.0.0") == tree
    assert (tree.path / "Makefile").stat().st_ino == inode
    log = machine.log.read_text()
    assert "$ git ls-remote" in log
    assert "$ git fetch --progress" not in log
    assert "$ git clone" not in log


def spoil_file(path: Path) -> None:
    (path / "Makefile").write_text("changed\n")


def spoil_ignored(path: Path) -> None:
    (path / "build").mkdir()
    (path / "build" / "left.o").write_text("an ignored file of some build\n")


def spoil_submodule(path: Path) -> None:
    (path / "kwbase/vendor/file.txt").unlink()


def spoil_submodule_head(path: Path) -> None:
    git(path / "kwbase/c-deps", "-c", "user.name=x", "commit", "--quiet", "--allow-empty", "-m", "moved")


def spoil_head(path: Path) -> None:
    git(path, "checkout", "--quiet", "--detach", "V1.0.0")


def spoil_git(path: Path) -> None:
    shutil.rmtree(path / ".git")


def spoil_path(path: Path) -> None:
    shutil.rmtree(path)


@pytest.mark.parametrize(
    "spoil",
    [spoil_file, spoil_ignored, spoil_submodule, spoil_submodule_head, spoil_head, spoil_git, spoil_path],
)
def test_a_changed_checkout_is_made_again(machine: Machine, upstream: Upstream, spoil: object) -> None:
    tree = machine.fetch("V1.1.0")
    assert callable(spoil)
    spoil(tree.path)
    assert machine.fetch("V1.1.0") == tree
    assert git(tree.path, "status", "--porcelain", "--ignored") == ""
    assert (tree.path / "kwbase/vendor/file.txt").read_text() == "kw-vendor V1.1.0\n"
    assert machine.checkouts == [tree.commit]
    assert any("made again" in note for note in machine.said.notes)


def test_a_changed_checkout_with_a_store_in_it_is_left_alone(machine: Machine) -> None:
    tree = machine.fetch("V1.0.0")
    store = tree.path / "install" / "bin" / "kwbase-data"
    store.mkdir(parents=True)
    (store / "KWBASEDB_VERSION").write_text('{"Version":1}')
    with pytest.raises(SourceError, match="holds a database store"):
        machine.fetch("V1.0.0")
    assert (store / "KWBASEDB_VERSION").is_file()


def test_a_half_made_checkout_does_not_disturb(machine: Machine, upstream: Upstream) -> None:
    half = machine.home / "source" / f".{upstream.commits['V1.0.0']}.new" / "src" / "gitee.com" / "kwbasedb"
    half.mkdir(parents=True)
    (half / "Makefile").write_text("half")
    assert machine.fetch("V1.0.0").path.joinpath("Makefile").read_text().startswith("# V1.0.0")
    assert not [path for path in (machine.home / "source").iterdir() if path.name.endswith(".new")]


def test_a_damaged_cache_is_made_again(machine: Machine) -> None:
    tree = machine.fetch("V1.0.0")
    for cache in machine.caches:
        (cache / "HEAD").write_text("nonsense")
    shutil.rmtree(tree.gopath)
    assert machine.fetch("V1.0.0") == tree


# --------------------------------------------------------------------------- where it cannot come from


def test_a_directory_that_is_no_repository(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    for url in (str(tmp_path / "plain"), str(tmp_path / "nothing"), f"file://{tmp_path}/plain"):
        with pytest.raises(SourceError, match="there is no git repository"):
            machine.fetch("V1.0.0", url=url)


def test_an_empty_repository(machine: Machine, tmp_path: Path) -> None:
    empty = tmp_path / "empty.git"
    git(tmp_path, "init", "--quiet", "--bare", str(empty))
    with pytest.raises(SourceError, match=r"is an empty repository$"):
        machine.fetch("V1.0.0", url=str(empty))


def test_a_shallow_source(machine: Machine, upstream: Upstream, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{upstream.main.bare}", "shallow")
    with pytest.raises(SourceError, match="shallow"):
        machine.fetch("master", url=str(tmp_path / "shallow"))


def test_a_repository_without_version_tags(machine: Machine, tmp_path: Path) -> None:
    other = Repository.create(tmp_path / "other", "thing")
    other.commit("first", {"a": "b"})
    other.tag("release-7")
    other.push()
    with pytest.raises(SourceError, match="no version tag") as caught:
        machine.fetch("master", url=str(other.bare))
    assert "tag" in caught.value.hint
    other.tag("V7_BEFORE_MERGE")
    other.push()
    with pytest.raises(SourceError, match="'V7_BEFORE_MERGE', which is no version"):
        machine.fetch("master", url=str(other.bare))
    assert machine.checkouts == []


def test_a_tag_of_something_that_is_no_commit(machine: Machine, upstream: Upstream) -> None:
    git(upstream.main.work, "tag", "V9.0.0", f"{upstream.commits['V1.0.0']}^{{tree}}")
    upstream.push()
    with pytest.raises(SourceError, match="is a tree, not a commit"):
        machine.fetch("V9.0.0")


def test_an_incomplete_source_is_called_so(machine: Machine, upstream: Upstream) -> None:
    """As a snapshot that left out its largest files: the commit is there, a blob is not."""
    blob = git(upstream.main.bare, "rev-parse", f"{upstream.commits['V1.0.0']}:kwbase/main.go")
    (upstream.main.bare / "objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(SourceError, match="lacks objects") as caught:
        machine.fetch("V1.0.0")
    assert blob in caught.value.context
    assert caught.value.log == machine.log
    assert machine.checkouts == []


@pytest.mark.parametrize("url", ["--upload-pack=x", "ext::sh -c x", "ftp://h/x", "https://", "", "a\nb", "ssh://-ox/y"])
def test_unusable_urls_reach_no_git(machine: Machine, url: str) -> None:
    with pytest.raises(SourceError):
        machine.fetch("V1.0.0", url=url)
    assert not machine.home.exists()


@pytest.mark.parametrize("ref", ["--force", "", "a b", "a..b", "HEAD", "x\ty", "V1^{commit}", "a:b", "x.lock"])
def test_unusable_references_reach_no_git(machine: Machine, ref: str) -> None:
    with pytest.raises(SourceError):
        machine.fetch(ref)
    assert not machine.home.exists()


# --------------------------------------------------------------------------- submodules


def test_a_missing_pinned_commit_names_everything(machine: Machine, upstream: Upstream) -> None:
    lost = upstream.parts["kw-cdeps"].commit("never pushed", {"file.txt": "lost"})
    git(upstream.parts["kw-cdeps"].work, "reset", "--quiet", "--hard", "HEAD~1")
    upstream.main.commit("pins what nobody has", {"x": "y"}, {"kwbase/c-deps": lost})
    upstream.push()
    with pytest.raises(SubmoduleError) as caught:
        machine.fetch("master")
    story = f"{caught.value.message}\n{caught.value.context}"
    for part in ("kwbase/c-deps", f"{HOST}kw-cdeps.git", f"{upstream.mirror}kw-cdeps.git", lost):
        assert part in story
    assert f"--redirect {HOST}kw-cdeps.git=" in caught.value.hint
    assert machine.checkouts == []


def test_a_pinned_commit_that_no_branch_holds_is_fetched_by_its_hash(machine: Machine, upstream: Upstream) -> None:
    part = upstream.parts["kw-vendor"]
    old = part.commit("to be forced away", {"file.txt": "old"})
    upstream.main.commit("pins it", {"x": "y"}, {"kwbase/vendor": old})
    upstream.push()
    git(part.work, "reset", "--quiet", "--hard", "HEAD~1")
    part.commit("forced", {"file.txt": "forced"})
    upstream.push()
    tree = machine.fetch("master")
    assert (tree.path / "kwbase/vendor/file.txt").read_text() == "old"


def test_submodules_that_are_missing_altogether(machine: Machine, upstream: Upstream) -> None:
    shutil.rmtree(upstream.parts["kw-third_party"].bare)
    with pytest.raises(SourceError, match="submodule kwdbts2/third_party") as caught:
        machine.fetch("V1.0.0")
    assert upstream.pins["V1.0.0"]["kwdbts2/third_party"] in caught.value.context


def test_submodules_of_submodules(machine: Machine, upstream: Upstream, tmp_path: Path) -> None:
    inner = Repository.create(upstream.root, "kw-inner")
    pinned = inner.commit("inner", {"deep.txt": "deep"})
    inner.push()
    text = f'[submodule "inner"]\n\tpath = lib/inner\n\turl = {HOST}kw-inner.git\n'
    outer = upstream.parts["kw-cdeps"].commit("with inner", {".gitmodules": text}, {"lib/inner": pinned})
    upstream.main.commit("nested", {"x": "y"}, {"kwbase/c-deps": outer})
    upstream.push()
    tree = machine.fetch("master")
    assert (tree.path / "kwbase/c-deps/lib/inner/deep.txt").read_text() == "deep"
    assert {part.path: part.commit for part in tree.submodules}["kwbase/c-deps/lib/inner"] == pinned


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ext::sh -c 'touch pwned'", "remote helpers"),
        ("file:///etc", "path of this machine"),
        ("/etc", "path of this machine"),
        ("-oProxyCommand=touch", "option"),
        ("", "no URL"),
    ],
)
def test_unsafe_submodule_urls_are_refused(machine: Machine, upstream: Upstream, url: str, words: str) -> None:
    text = upstream.gitmodules().replace(f"{HOST}kw-vendor.git", url)
    upstream.release("V1.2.0", gitmodules=text)
    upstream.push()
    with pytest.raises(SubmoduleError, match=words):
        machine.fetch("V1.2.0")


def test_a_local_submodule_that_the_user_names_himself(machine: Machine, upstream: Upstream) -> None:
    text = upstream.gitmodules().replace(HOST, "file:///nowhere/")
    upstream.release("V1.2.0", gitmodules=text)
    upstream.push()
    also = Redirect(prefix="file:///nowhere/", replacement=upstream.mirror)
    assert len(machine.fetch("V1.2.0", redirects=(upstream.redirect, also)).submodules) == 3


def test_relative_submodule_urls_follow_the_main_one(machine: Machine, upstream: Upstream) -> None:
    upstream.release("V1.2.0", gitmodules=upstream.gitmodules("../"))
    upstream.push()
    tree = machine.fetch("V1.2.0")
    assert git(tree.path / "kwbase/vendor", "remote", "get-url", "origin") == f"{HOST}kw-vendor.git"


def test_a_gitlink_without_an_entry(machine: Machine, upstream: Upstream) -> None:
    upstream.release("V1.2.0", gitmodules="")
    upstream.push()
    with pytest.raises(SubmoduleError, match=r"no URL in \.gitmodules"):
        machine.fetch("V1.2.0")


def test_a_gitmodules_that_git_cannot_read(machine: Machine, upstream: Upstream) -> None:
    upstream.release("V1.2.0", gitmodules="[submodule\nnonsense")
    upstream.push()
    with pytest.raises(SubmoduleError, match=r"\.gitmodules .* cannot be read"):
        machine.fetch("V1.2.0")


def test_siblings_of_a_local_source_are_used_and_named(machine: Machine, upstream: Upstream) -> None:
    tree = machine.fetch("V1.0.0", url=str(upstream.main.bare), redirects=())
    assert {part.path: part.commit for part in tree.submodules} == upstream.pins["V1.0.0"]
    assert sum("beside the source" in note for note in machine.said.notes) == 3


def test_one_directory_each_is_a_layout_too(machine: Machine, upstream: Upstream, tmp_path: Path) -> None:
    for name in ("kwdb", *SUBMODULES.values()):
        shutil.copytree(upstream.root / "mirror" / "kwdb" / f"{name}.git", tmp_path / "apart" / f"KWDB+{name}" / "repo")
    tree = machine.fetch("V1.0.0", url=str(tmp_path / "apart" / "KWDB+kwdb" / "repo"), redirects=())
    assert len(tree.submodules) == 3


def test_a_clone_with_its_submodules_serves_alone(machine: Machine, upstream: Upstream, tmp_path: Path) -> None:
    """A developer's own clone, fetched by this tool or by hand, brings its submodules along."""
    first = machine.fetch("V1.0.0")
    shutil.copytree(first.path, tmp_path / "alone" / "kwbasedb", symlinks=True)
    shutil.rmtree(upstream.root)
    other = Machine(home=tmp_path / "home2", upstream=upstream)
    assert other.fetch("V1.0.0", url=str(tmp_path / "alone" / "kwbasedb"), redirects=()).submodules == first.submodules


# --------------------------------------------------------------------------- what must not run or leak


def test_hooks_filters_and_foreign_git_variables_do_nothing(
    machine: Machine, upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template, sign = tmp_path / "template", tmp_path / "hook-ran"
    (template / "hooks").mkdir(parents=True)
    for hook in ("post-checkout", "reference-transaction", "post-index-change"):
        (template / "hooks" / hook).write_text(f"#!/bin/sh\necho {hook} >> {sign}\n")
        (template / "hooks" / hook).chmod(0o755)
    settings = tmp_path / "gitconfig"
    settings.write_text(
        f"[init]\n\ttemplateDir = {template}\n[core]\n\tautocrlf = true\n\thooksPath = {template}/hooks\n"
        f'\tfsmonitor = {template}/hooks/post-checkout\n\tabbrev = 30\n'
        f'[filter "lfs"]\n\tsmudge = touch {sign}\n\tprocess = touch {sign}\n\trequired = true\n'
        "[fetch]\n\trecurseSubmodules = true\n[submodule]\n\trecurse = true\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    upstream.main.commit("lfs", {".gitattributes": "*.bin filter=lfs\n", "a.bin": "pointer\n", "b.txt": "line\n"})
    upstream.push()
    tree = machine.fetch("master")
    assert (tree.path / "a.bin").read_bytes() == b"pointer\n"
    assert (tree.path / "b.txt").read_bytes() == b"line\n"
    assert len(str(tree.version).rpartition("-g")[2]) < 12
    assert not sign.exists()
    assert not (tmp_path / "elsewhere").exists()


def test_the_users_own_configuration_stays_in_force(
    machine: Machine, upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "gitconfig"
    settings.write_text(f'[url "{upstream.mirror}"]\n\tinsteadOf = {HOST}\n')
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    assert machine.fetch("V1.0.0", redirects=()).commit == upstream.commits["V1.0.0"]


def test_settings_given_by_the_environment_stay_in_force(
    machine: Machine, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.{upstream.mirror}.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", HOST)
    assert machine.fetch("V1.0.0", redirects=()).commit == upstream.commits["V1.0.0"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a repository to another user")
def test_a_local_source_of_another_user(machine: Machine, upstream: Upstream) -> None:
    for path in (upstream.main.bare, *upstream.main.bare.rglob("*")):
        os.chown(path, 65534, 65534)
    with pytest.raises(KwdbBuildError, match="belongs to another user") as caught:
        machine.fetch("V1.0.0")
    assert "safe.directory" in caught.value.hint


def test_relative_local_paths_are_from_here(
    machine: Machine, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(upstream.root)
    redirect = Redirect(prefix=HOST, replacement="./mirror/kwdb/")
    assert machine.fetch("V1.0.0", redirects=(redirect,)).commit == upstream.commits["V1.0.0"]
    assert machine.fetch("V1.0.0", url="mirror/kwdb/kwdb.git", redirects=()).commit == upstream.commits["V1.0.0"]


def test_no_git_is_said(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(KwdbBuildError, match="git is not installed"):
        machine.fetch("V1.0.0")


def test_importing_the_room_does_not_import_gitpython() -> None:
    code = "import sys, kwdb_build.source.fetch; sys.exit('git' in sys.modules)"
    import sys

    assert run([sys.executable, "-c", code]).ok
