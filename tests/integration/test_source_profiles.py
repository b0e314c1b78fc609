"""Several places to fetch from, none at all, and references that have to be asked for."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from kwdb_build.errors import SourceError, UnknownReferenceError, UnreachableSourceError
from kwdb_build.source.fetch import SourceRequest
from kwdb_build.source.mirror import MissingError
from kwdb_build.source.preview import preview
from kwdb_build.source.profiles import Policy, Profile
from kwdb_build.source.reference import Redirect
from tests.ports import free_port
from tests.unit.source.gitserver import git_daemon, http_server
from tests.unit.source.sourcebox import HOST, SUBMODULES, Machine, Upstream, git

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.unit.source.gitserver import Behaviour


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def other(upstream: Upstream, tmp_path: Path) -> Path:
    """A second mirror, as it is now."""
    shutil.copytree(upstream.root / "mirror", tmp_path / "second")
    return tmp_path / "second" / "kwdb"


@pytest.fixture
def served(upstream: Upstream) -> Iterator[tuple[str, Behaviour]]:
    with http_server(upstream.root / "mirror") as (base, behaviour):
        behaviour.partial = True
        yield f"{base}kwdb/", behaviour


def places(**to: object) -> tuple[Profile, ...]:
    return tuple(
        Profile(name=name, redirects=(Redirect(prefix=HOST, replacement=f"{where}"),)) for name, where in to.items()
    )


def test_a_dead_host_is_followed_by_the_next_profile(machine: Machine, upstream: Upstream, other: Path) -> None:
    dead = f"http://127.0.0.1:{free_port()}/"
    tree = machine.fetch("master", profiles=places(first=dead, second=f"{other}/"))
    assert tree.commit == upstream.commits["master"]
    assert {part.path: part.commit for part in tree.submodules} == upstream.pins["V1.1.0"]
    assert tree.url == f"{HOST}kwdb.git"
    told = [note for note in machine.said.notes if "nobody answers" in note]
    assert len(told) == 1, "the dead host was tried again for a submodule"
    assert f"trying {other}/kwdb.git (second)" in told[0]


def test_a_stall_in_the_middle_is_followed_by_the_next_profile(
    machine: Machine, upstream: Upstream, other: Path, served: tuple[str, Behaviour]
) -> None:
    base, behaviour = served
    behaviour.silent.set()
    tree = machine.fetch("V1.0.0", profiles=places(slow=base, second=f"{other}/"), stall_timeout_s=1)
    assert tree.commit == upstream.commits["V1.0.0"]
    assert any("(second)" in note for note in machine.said.notes)


def test_a_cut_in_a_submodule_is_followed_by_the_next_profile(
    machine: Machine, upstream: Upstream, other: Path, served: tuple[str, Behaviour]
) -> None:
    base, behaviour = served
    behaviour.refuse_after_packs = 2
    tree = machine.fetch("V1.0.0", profiles=places(first=base, second=f"{other}/"))
    assert {part.path: part.commit for part in tree.submodules} == upstream.pins["V1.0.0"]


def test_a_mirror_that_means_another_commit_is_refused(
    machine: Machine, upstream: Upstream, other: Path, served: tuple[str, Behaviour]
) -> None:
    base, behaviour = served
    git(other / "kwdb.git", "tag", "--force", "V1.0.0", upstream.commits["V1.1.0"])
    behaviour.cut_after_bytes = 20
    with pytest.raises(SourceError) as caught:
        machine.fetch("V1.0.0", profiles=places(first=base, second=f"{other}/"))
    told = "\n".join([*machine.said.notes, caught.value.context])
    wrong, right = upstream.commits["V1.1.0"][:12], upstream.commits["V1.0.0"][:12]
    assert f"means {wrong} by 'V1.0.0' and not {right}: it is refused" in told
    assert machine.checkouts == []
    behaviour.cut_after_bytes = -1
    assert machine.fetch("V1.0.0", profiles=places(first=base, second=f"{other}/")).commit == (
        upstream.commits["V1.0.0"]
    )


def test_a_tag_known_from_the_first_host_guards_against_the_second_one(
    machine: Machine, upstream: Upstream, other: Path
) -> None:
    dead = f"http://127.0.0.1:{free_port()}/"
    machine.fetch("V1.0.0")
    git(other / "kwdb.git", "tag", "--force", "V1.1.0", upstream.commits["V1.0.0"])
    tree = machine.fetch("V1.1.0", profiles=places(first=dead, second=f"{other}/", third=upstream.mirror))
    assert tree.commit == upstream.commits["V1.1.0"]
    wrong, right = upstream.commits["V1.0.0"][:12], upstream.commits["V1.1.0"][:12]
    assert any(f"means {wrong} by 'V1.1.0' and not {right}: it is refused" in note for note in machine.said.notes)
    # With nobody else to ask, what the first host said is what counts.
    assert machine.fetch("V1.1.0", profiles=places(first=dead, second=f"{other}/")).commit == tree.commit


def test_a_tag_that_has_moved_is_not_taken_from_the_cache_when_the_transfer_fails(
    machine: Machine, upstream: Upstream, served: tuple[str, Behaviour]
) -> None:
    base, behaviour = served
    assert machine.fetch("V1.0.0", profiles=places(first=base)).commit == upstream.commits["V1.0.0"]
    moved = upstream.main.commit("moved", {"kwbase/moved.go": "package moved\n"})
    git(upstream.main.work, "tag", "--force", "V1.0.0")
    upstream.push()
    behaviour.cut_after_bytes = 20
    with pytest.raises(UnreachableSourceError, match="cut in the middle"):
        machine.fetch("V1.0.0", profiles=places(first=base))
    behaviour.cut_after_bytes = -1
    assert machine.fetch("V1.0.0", profiles=places(first=base)).commit == moved


def test_a_mirror_without_the_ref_can_still_give_the_commit(
    machine: Machine, upstream: Upstream, other: Path, served: tuple[str, Behaviour]
) -> None:
    base, behaviour = served
    git(other / "kwdb.git", "tag", "--delete", "V1.1.0")
    behaviour.cut_after_bytes = 20
    tree = machine.fetch("V1.1.0", profiles=places(first=base, second=f"{other}/"))
    assert tree.commit == upstream.commits["V1.1.0"]


def test_when_every_profile_fails_all_are_named(machine: Machine, tmp_path: Path) -> None:
    dead = f"http://127.0.0.1:{free_port()}/"
    with pytest.raises(UnreachableSourceError, match="nobody answers") as caught:
        machine.fetch("V1.0.0", profiles=places(first=dead, second=f"{tmp_path}/nowhere/"))
    assert "first: " in caught.value.context
    assert "second: " in caught.value.context


def test_a_host_that_is_not_allowed_is_never_asked(
    machine: Machine, upstream: Upstream, served: tuple[str, Behaviour]
) -> None:
    base, behaviour = served
    with pytest.raises(SourceError, match=r"127\.0\.0\.1 is not among the allowed"):
        machine.fetch("V1.0.0", profiles=places(first=base), policy=Policy(hosts=("gitee.com",)))
    assert behaviour.requests == []
    with pytest.raises(SourceError, match="file is not among the allowed kinds"):
        machine.fetch("V1.0.0", policy=Policy(schemes=("https",)))
    allowed = Policy(hosts=("gitee.com",))
    tree = machine.fetch("V1.0.0", profiles=places(first=base, second=upstream.mirror), policy=allowed)
    assert tree.commit == upstream.commits["V1.0.0"]
    assert behaviour.requests == []


# --------------------------------------------------------------------------- references


def test_pull_requests_and_latest(machine: Machine, upstream: Upstream) -> None:
    main = upstream.main
    git(main.work, "checkout", "--quiet", "-b", "proposal")
    proposed = main.commit("proposed", {"kwbase/proposal.go": "package main\n"})
    git(main.work, "push", "--quiet", "origin", "HEAD:refs/pull/7/head")
    git(main.work, "checkout", "--quiet", "-b", "side", upstream.commits["V1.0.0"])
    main.commit("aside", {"x": "y"})
    for tag in ("V9.0.0_old", "V9.0.0_BEFORE", "V9.0.0_RC1", "v9.0.0"):
        git(main.work, "tag", tag)
    git(main.work, "push", "--quiet", "--tags", "origin")
    for ref in ("pr/7", "pull/7", "!7"):
        tree = machine.fetch(ref)
        assert tree.commit == proposed
        assert (tree.path / "kwbase/proposal.go").is_file()
    assert machine.fetch("pr/7", offline=True).commit == proposed
    with pytest.raises(UnknownReferenceError):
        machine.fetch("pr/8")
    latest = machine.fetch("latest")
    assert (latest.commit, str(latest.version), latest.ref) == (upstream.commits["V1.1.0"], "V1.1.0", "latest")


def test_pull_requests_over_the_git_protocol(machine: Machine, upstream: Upstream) -> None:
    git(upstream.main.work, "push", "--quiet", "origin", f"{upstream.commits['V1.0.0']}:refs/pull/1/head")
    with git_daemon(upstream.root / "mirror") as base:
        tree = machine.fetch("pr/1", redirects=(Redirect(prefix=HOST, replacement=f"{base}kwdb/"),))
    assert tree.commit == upstream.commits["V1.0.0"]


def test_another_hosts_pull_request_of_the_same_number_is_another_one(
    machine: Machine, upstream: Upstream, other: Path
) -> None:
    dead = f"http://127.0.0.1:{free_port()}/"
    git(other / "kwdb.git", "update-ref", "refs/pull/1/head", upstream.commits["V1.0.0"])
    with pytest.raises(SourceError):
        machine.fetch("pr/1", profiles=places(first=dead, second=f"{other}/"))
    assert any("each host counts its own pull requests" in note for note in machine.said.notes)
    assert machine.checkouts == []
    assert machine.fetch("latest", profiles=places(first=dead, second=f"{other}/")).commit == upstream.commits["V1.1.0"]
    assert any(f"according to {other}/kwdb.git" in note for note in machine.said.notes)


# --------------------------------------------------------------------------- offline


def test_offline_uses_what_is_there_and_asks_nobody(
    machine: Machine, upstream: Upstream, served: tuple[str, Behaviour]
) -> None:
    base, behaviour = served
    to = (Redirect(prefix=HOST, replacement=base),)
    first = machine.fetch("master", redirects=to)
    shutil.rmtree(machine.home / "source")
    requests = len(behaviour.requests)
    for ref in ("master", first.commit, first.commit[:9]):
        assert machine.fetch(ref, redirects=to, offline=True).commit == first.commit
    assert len(behaviour.requests) == requests


def test_offline_names_everything_that_is_missing_before_anything_starts(
    machine: Machine, upstream: Upstream, served: tuple[str, Behaviour]
) -> None:
    base, behaviour = served
    to = (Redirect(prefix=HOST, replacement=base),)
    with pytest.raises(MissingError, match="offline") as caught:
        machine.fetch("V1.1.0", redirects=to, offline=True)
    assert f"{HOST}kwdb.git" in caught.value.message
    machine.fetch("V1.0.0", redirects=to)
    requests, before = len(behaviour.requests), machine.checkouts
    with pytest.raises(MissingError, match="things are not here") as caught:
        machine.fetch("V1.1.0", redirects=to, offline=True)
    for path, name in SUBMODULES.items():
        assert path in caught.value.context
        assert f"{HOST}{name}.git" in caught.value.context
        assert upstream.pins["V1.1.0"][path] in caught.value.context
    assert f"files of {upstream.commits['V1.1.0']}" in caught.value.context
    assert (len(behaviour.requests), machine.checkouts) == (requests, before)
    with pytest.raises(MissingError, match=r"'V7\.0\.0'"):
        machine.fetch("V7.0.0", redirects=to, offline=True)


def test_a_plan_offline_asks_nobody_either(
    machine: Machine, upstream: Upstream, served: tuple[str, Behaviour]
) -> None:
    base, behaviour = served
    request = SourceRequest(
        url=f"{HOST}kwdb.git", ref="V1.0.0", redirects=(Redirect(prefix=HOST, replacement=base),), offline=True
    )
    with pytest.raises(MissingError):
        preview(request, home=machine.home)
    assert not machine.home.exists()
    tree = machine.fetch("V1.0.0", redirects=request.redirects)
    requests = len(behaviour.requests)
    assert preview(request, home=machine.home).tree == tree
    assert len(behaviour.requests) == requests
    assert preview(replace(request, offline=False), home=machine.home).commit == tree.commit
    assert len(behaviour.requests) > requests


# --------------------------------------------------------------------------- README's way


def test_submodules_at_the_tips_of_their_branches(machine: Machine, upstream: Upstream) -> None:
    tip = upstream.parts["kw-vendor"].commit("moved on", {"file.txt": "moved on\n"})
    upstream.parts["kw-vendor"].push()
    pinned = machine.fetch("V1.1.0")
    tree = machine.fetch("V1.1.0", remote_submodules=True)
    assert (tree.submodule_mode, pinned.submodule_mode) == ("remote", "pinned")
    vendor = {part.path: part for part in tree.submodules}["kwbase/vendor"]
    assert (vendor.commit, vendor.pinned) == (tip, upstream.pins["V1.1.0"]["kwbase/vendor"])
    assert (tree.path / "kwbase/vendor/file.txt").read_text() == "moved on\n"
    assert str(tree.version) == "V1.1.0-dirty", "what git says of README's way"
    assert (pinned.path / "kwbase/vendor/file.txt").read_text() == "kw-vendor V1.1.0\n"
    assert machine.fetch("V1.1.0", remote_submodules=True) == tree
    again = upstream.parts["kw-vendor"].commit("and on", {"file.txt": "and on\n"})
    upstream.parts["kw-vendor"].push()
    later = machine.fetch("V1.1.0", remote_submodules=True)
    assert {part.path: part.commit for part in later.submodules}["kwbase/vendor"] == again
    assert (tree.path / "kwbase/vendor/file.txt").read_text() == "moved on\n", "a tree that a run may still need"
    with pytest.raises(MissingError):
        machine.fetch("V1.1.0", remote_submodules=True, offline=True)
