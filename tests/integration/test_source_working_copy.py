"""Reading checkouts that somebody else made, and working copies of fetched ones."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from kwdb_build.errors import SourceError, SpaceError, SubmoduleError
from kwdb_build.source import inspect
from kwdb_build.source.inspect import copy_tree, read_tree
from tests.unit.source.sourcebox import HOST, SUBMODULES, Machine, Upstream, git

if TYPE_CHECKING:
    from pathlib import Path

DESCRIBE = ("describe", "--tags", "--dirty", "--match=V[0-9]*")


@pytest.fixture
def by_hand(tmp_path: Path, upstream: Upstream) -> Path:
    """A checkout as a person makes it: git clone and git submodule update."""
    path = tmp_path / "go" / "src" / "gitee.com" / "kwbasedb"
    path.parent.mkdir(parents=True)
    redirect = ("-c", f"url.{upstream.mirror}.insteadOf={HOST}", "-c", "protocol.file.allow=always")
    git(tmp_path, *redirect, "clone", "--quiet", f"{HOST}kwdb.git", str(path))
    git(path, *redirect, "submodule", "--quiet", "update", "--init", "--recursive")
    return path


def test_a_checkout_made_by_hand_is_read_as_one_of_ours(machine: Machine, by_hand: Path) -> None:
    ours = machine.fetch("master")
    theirs = read_tree(by_hand, url=f"{HOST}kwdb.git", ref="master")
    assert theirs.path == by_hand
    assert (theirs.commit, theirs.version, theirs.commit_time, theirs.submodules) == (
        ours.commit, ours.version, ours.commit_time, ours.submodules
    )


def test_a_changed_checkout_is_dirty(by_hand: Path) -> None:
    (by_hand / "Makefile").write_text("patched\n")
    tree = read_tree(by_hand, url="https://me:word@h/x", ref="master")
    assert tree.version.dirty
    assert str(tree.version).endswith("-dirty")
    assert tree.url == "https://***@h/x"


def test_a_submodule_at_the_tip_instead_of_its_pin(by_hand: Path, upstream: Upstream) -> None:
    """What README's `git submodule update --remote` does."""
    git(by_hand / "kwbase/vendor", "checkout", "--quiet", upstream.pins["V1.0.0"]["kwbase/vendor"])
    with pytest.raises(SubmoduleError, match="kwbase/vendor is not at its pinned commit") as caught:
        read_tree(by_hand, url="u", ref="master")
    assert upstream.pins["V1.1.0"]["kwbase/vendor"] in caught.value.context
    assert "--remote" in caught.value.hint


def test_submodules_that_were_never_filled(by_hand: Path) -> None:
    git(by_hand, "submodule", "--quiet", "deinit", "--all", "--force")
    with pytest.raises(SubmoduleError, match="not at its pinned commit") as caught:
        read_tree(by_hand, url="u", ref="master")
    assert "no checkout" in caught.value.context


def test_checkouts_that_cannot_be_built(tmp_path: Path, by_hand: Path, upstream: Upstream) -> None:
    with pytest.raises(SourceError, match="does not end in"):
        read_tree(tmp_path, url="u", ref="r")
    with pytest.raises(SourceError, match="no checkout at"):
        read_tree(tmp_path / "nowhere" / "src" / "gitee.com" / "kwbasedb", url="u", ref="r")
    inner = by_hand / "inner" / "src" / "gitee.com" / "kwbasedb"
    inner.mkdir(parents=True)
    with pytest.raises(SourceError, match="no git checkout of its own"):
        read_tree(inner, url="u", ref="r")
    shallow = tmp_path / "s" / "src" / "gitee.com" / "kwbasedb"
    git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{upstream.main.bare}", str(shallow))
    with pytest.raises(SourceError, match="shallow"):
        read_tree(shallow, url="u", ref="r")
    plain = tmp_path / "p" / "src" / "gitee.com" / "kwbasedb"
    plain.mkdir(parents=True)
    with pytest.raises(SourceError, match="no git repository"):
        read_tree(plain, url="u", ref="r")


def test_a_working_copy_is_complete_and_its_own(machine: Machine, tmp_path: Path) -> None:
    tree = machine.fetch("master")
    (tree.path / ".git" / "packed-refs").chmod(0o440)
    copied = copy_tree(tree, tmp_path / "gopath", progress=machine.said)
    assert copied.path == tmp_path / "gopath" / "src" / "gitee.com" / "kwbasedb"
    assert copied.gopath == tmp_path / "gopath"
    assert (copied.commit, copied.version, copied.submodules) == (tree.commit, tree.version, tree.submodules)
    for place in ("", *SUBMODULES):
        assert git(copied.path / place, "status", "--porcelain", "--ignored") == ""
    assert git(copied.path, *DESCRIBE) == str(tree.version)
    assert git(copied.path / "kwbase/vendor", "rev-parse", "HEAD") == {
        part.path: part.commit for part in tree.submodules
    }["kwbase/vendor"]
    files = [path for path in copied.path.rglob("*") if path.is_file()]
    assert len(files) > 40
    assert not [path for path in files if path.stat().st_nlink != 1], "a hard link leads back"
    for path in files:
        original = tree.path / path.relative_to(copied.path)
        assert path.stat().st_mode == original.stat().st_mode
        if path.name != "index":
            assert path.read_bytes() == original.read_bytes()
            assert path.stat().st_mtime_ns == original.stat().st_mtime_ns
    (copied.path / "Makefile").write_text("generated over it")
    git(copied.path, "-c", "user.name=x", "commit", "--quiet", "--all", "-m", "in the copy")
    assert machine.fetch("master") == tree
    assert not [note for note in machine.said.notes if "made again" in note]


def test_the_copy_needs_no_home(machine: Machine, tmp_path: Path) -> None:
    """In a container only the copy is there."""
    tree = machine.fetch("V1.0.0")
    copied = copy_tree(tree, tmp_path / "gopath")
    machine.home.rename(tmp_path / "gone")
    assert git(copied.path, *DESCRIBE) == "V1.0.0"
    assert git(copied.path, "fsck", "--connectivity-only") == ""
    for path in SUBMODULES:
        assert git(copied.path / path, "status", "--porcelain") == ""


def test_links_and_odd_names_are_copied_as_they_are(machine: Machine, upstream: Upstream, tmp_path: Path) -> None:
    links = {"link": "Makefile", "dangling": "no where", "around": "./", "up": "..//kwbase/./", "abs": "//tmp//x/"}
    for name, target in links.items():
        (upstream.main.work / name).symlink_to(target)
    git(upstream.main.work, "add", *links)
    upstream.main.commit("odd", {"a b/\u00fc\n.txt": "x", "run.sh": "#!/bin/sh\n", "empty": ""})
    git(upstream.main.work, "update-index", "--chmod=+x", "run.sh")
    upstream.main.commit("executable", {})
    upstream.push()
    copied = copy_tree(machine.fetch("master"), tmp_path / "gopath")
    # To the letter: git compares what a link says, and kw-vendor has some that end in a slash.
    assert {name: os.readlink(copied.path / name) for name in links} == links  # noqa: PTH115
    assert (copied.path / "a b" / "\u00fc\n.txt").read_text() == "x"
    assert os.access(copied.path / "run.sh", os.X_OK)
    assert not copied.version.dirty


def test_a_copy_that_is_another_one_is_refused_by_name(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = machine.fetch("V1.0.0")
    copy_file = inspect._copy_file

    def changes_one(source: Path, target: Path, mtime: int | None) -> None:
        copy_file(source, target, mtime)
        if target.name == "Makefile":
            target.write_text("somebody else's")

    monkeypatch.setattr(inspect, "_copy_file", changes_one)
    with pytest.raises(SourceError) as caught:
        copy_tree(tree, tmp_path / "gopath")
    assert "V1.0.0-dirty" in caught.value.context
    assert " M Makefile" in caught.value.context


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
def test_a_copy_for_another_user(machine: Machine, tmp_path: Path) -> None:
    copied = copy_tree(machine.fetch("V1.0.0"), tmp_path / "gopath", uid=65534, gid=65534)
    assert str(copied.version) == "V1.0.0"
    owners = {(path.lstat().st_uid, path.lstat().st_gid) for path in (copied.gopath, *copied.gopath.rglob("*"))}
    assert owners == {(65534, 65534)}
    command = ["git", "-C", str(copied.path), *DESCRIBE]
    # Its owner needs nothing; root is refused by git until the environment says that it is wanted.
    for parent in reversed(copied.path.parents):
        if parent.is_relative_to(tmp_path.parents[2]) and parent.stat().st_uid == 0:
            parent.chmod(parent.stat().st_mode | 0o011)
    quiet = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1"}
    owner = subprocess.run(
        command, user=65534, group=65534, extra_groups=[], env=quiet, capture_output=True, text=True, check=False
    )
    assert owner.stdout == "V1.0.0\n", owner.stderr
    refused = subprocess.run(command, env=quiet, capture_output=True, text=True, check=False)
    assert "dubious ownership" in refused.stderr
    trusted = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}
    assert subprocess.run(command, env=quiet | trusted, capture_output=True, text=True, check=True).stdout == "V1.0.0\n"


def test_a_place_that_is_taken(machine: Machine, tmp_path: Path) -> None:
    tree = machine.fetch("V1.0.0")
    copy_tree(tree, tmp_path / "gopath")
    with pytest.raises(SourceError, match="exists already"):
        copy_tree(tree, tmp_path / "gopath")


def test_a_copy_that_fails_leaves_nothing_and_an_old_half_one_is_replaced(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = machine.fetch("V1.0.0")
    half = tmp_path / "gopath" / "src" / "gitee.com" / ".kwbasedb.new"
    half.mkdir(parents=True)
    (half / "old").write_text("half")
    copied = 0

    def fail(source: Path, target: Path, mtime: int | None) -> None:
        nonlocal copied
        copied += 1
        if copied >= 20:
            raise OSError(28, "No space left on device")
        real(source, target, mtime)

    real = inspect._copy_file
    with monkeypatch.context() as patch:
        patch.setattr(inspect, "_copy_file", fail)
        with pytest.raises(SpaceError, match="became full while copying"):
            copy_tree(tree, tmp_path / "gopath")
    directories = sum(path.is_dir() for path in (tree.path, *tree.path.rglob("*")))
    assert 20 <= copied <= 19 + directories, "none is gone on with after a failure"
    assert list((tmp_path / "gopath" / "src" / "gitee.com").iterdir()) == []
    assert not (copy_tree(tree, tmp_path / "gopath").path / "old").exists()


def test_where_blocks_cannot_be_shared_files_are_copied_the_ordinary_way(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = machine.fetch("V1.0.0")
    real, calls = os.copy_file_range, 0

    def refuse(source: int, target: int, count: int) -> int:
        nonlocal calls
        calls += 1
        if calls % 2:
            raise OSError(18, "Invalid cross-device link")
        return real(source, target, 1) if count > 1 and calls % 4 == 0 else real(source, target, count)

    monkeypatch.setattr(os, "copy_file_range", refuse)
    assert not copy_tree(tree, tmp_path / "gopath").version.dirty
    assert calls > 20
