"""Partial transfers from a host that can send parts, and from hosts that cannot; nothing is fetched by accident."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from kwdb_build.errors import SourceError, UnreachableSourceError
from kwdb_build.source import mirror as mirror_module
from kwdb_build.source.fetch import SourceRequest
from kwdb_build.source.inspect import copy_tree
from kwdb_build.source.reference import Redirect
from tests.unit.source.gitserver import http_server
from tests.unit.source.sourcebox import HOST, SUBMODULES, Machine, Upstream, git

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.unit.source.gitserver import Behaviour

DESCRIBE = ("describe", "--tags", "--dirty", "--match=V[0-9]*")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def served(upstream: Upstream) -> Iterator[tuple[str, Behaviour]]:
    upstream.main.commit("tests of KWDB", {
        "qa/big.bin": os.urandom(300_000), "qa/run.sh": "#!/bin/sh\n", "kwbase/qa/kept.go": "package qa\n",
    })
    upstream.main.commit("old and large", {"old.bin": os.urandom(300_000)})
    git(upstream.main.work, "rm", "--quiet", "old.bin")
    upstream.main.commit("away with it", {"kwbase/new.go": "package main\n"})
    upstream.push()
    with http_server(upstream.root / "mirror") as (base, behaviour):
        behaviour.partial = True
        yield f"{base}kwdb/", behaviour


def to(base: str) -> tuple[Redirect, ...]:
    return (Redirect(prefix=HOST, replacement=base),)


def test_only_what_is_needed_is_transferred_and_the_version_is_that_of_a_full_clone(
    machine: Machine, upstream: Upstream, served: tuple[str, Behaviour], tmp_path: Path
) -> None:
    base, behaviour = served
    tree = machine.fetch("master", redirects=to(base))
    assert behaviour.sent_bytes < 100_000
    assert not (tree.path / "qa").exists()
    assert (tree.path / "kwbase/qa/kept.go").is_file()
    for path, name in SUBMODULES.items():
        assert (tree.path / path / "file.txt").read_text() == f"{name} V1.1.0\n"
    git(tmp_path, "clone", "--quiet", str(upstream.main.bare), "full")
    assert str(tree.version) == git(tmp_path / "full", *DESCRIBE)
    assert git(tree.path, "status", "--porcelain", "--ignored") == ""
    assert any(note.startswith("fetched ") for note in machine.said.notes)
    assert not any("cannot send a part" in note for note in machine.said.notes)
    copied = copy_tree(tree, tmp_path / "gopath")
    assert git(copied.path, *DESCRIBE) == str(tree.version)
    assert git(copied.path, "fsck", "--connectivity-only", "--no-dangling") == ""


def test_the_second_version_costs_its_difference_and_the_same_one_nothing(
    machine: Machine, upstream: Upstream, served: tuple[str, Behaviour]
) -> None:
    base, behaviour = served
    machine.fetch("V1.0.0", redirects=to(base))
    first = behaviour.sent_bytes
    machine.fetch("V1.1.0", redirects=to(base))
    assert behaviour.sent_bytes - first < first
    requests = len(behaviour.requests)
    assert machine.fetch(upstream.commits["V1.1.0"], redirects=to(base)).commit == upstream.commits["V1.1.0"]
    assert len(behaviour.requests) == requests, "a known commit asked the network"


def test_everything_when_asked_for(machine: Machine, served: tuple[str, Behaviour]) -> None:
    base, behaviour = served
    lean = machine.fetch("master", redirects=to(base))
    tree = machine.fetch("master", redirects=to(base), skip=())
    assert (tree.path / "qa/big.bin").stat().st_size == 300_000
    assert behaviour.sent_bytes > 300_000
    assert tree.path != lean.path
    assert not (lean.path / "qa").exists()
    assert (tree.commit, tree.version) == (lean.commit, lean.version)


def test_nothing_goes_to_the_network_by_itself(
    machine: Machine, served: tuple[str, Behaviour], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was left out is not fetched by a git that happens to look at it, in the checkout or in the cache."""
    base, behaviour = served
    tree = machine.fetch("master", redirects=to(base))
    requests = len(behaviour.requests)
    monkeypatch.delenv("GIT_NO_LAZY_FETCH", raising=False)
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.{base}.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", HOST)
    for place in (tree.path, *machine.caches):
        import subprocess

        said = subprocess.run(
            ["git", "log", "-p", "--all", "--", "qa", "file.txt"], cwd=place, capture_output=True, check=False, text=True,
        )
        assert len(behaviour.requests) == requests, said.stderr
    assert "kwdb-build" in subprocess.run(
        ["git", "show", "HEAD:qa/big.bin"], cwd=tree.path, capture_output=True, check=False, text=True,
    ).stderr


def test_a_host_that_cannot_send_parts_sends_everything_and_that_is_said(
    machine: Machine, served: tuple[str, Behaviour]
) -> None:
    base, behaviour = served
    behaviour.partial = False
    tree = machine.fetch("master", redirects=to(base))
    assert not (tree.path / "qa").exists()
    assert behaviour.sent_bytes > 600_000
    assert any("cannot send a part of a repository" in note for note in machine.said.notes)


@pytest.mark.parametrize("partial", [True, False])
def test_a_host_that_gives_nothing_by_its_hash(
    machine: Machine, upstream: Upstream, served: tuple[str, Behaviour], *, partial: bool
) -> None:
    base, behaviour = served
    behaviour.protocol, behaviour.partial = "0", partial
    tree = machine.fetch("V1.0.0", redirects=to(base))
    assert {part.path: part.commit for part in tree.submodules} == upstream.pins["V1.0.0"]
    assert any("gives no single commits" in note for note in machine.said.notes)
    assert machine.fetch("V1.1.0", redirects=to(base)).commit == upstream.commits["V1.1.0"]


def test_what_has_arrived_is_not_fetched_again(
    machine: Machine, upstream: Upstream, served: tuple[str, Behaviour], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, behaviour = served
    monkeypatch.setattr(mirror_module, "FILES_A_REQUEST", 10)
    upstream.main.commit("many", {f"kwbase/f{number}.bin": os.urandom(20_000) for number in range(40)})
    upstream.push()
    local = (Redirect(prefix=f"{HOST}kw-", replacement=f"{upstream.mirror}kw-"), *to(base))
    behaviour.refuse_after_packs = 4  # commits and trees, .gitmodules, and two of five requests for files
    with pytest.raises(UnreachableSourceError, match="cut in the middle"):
        machine.fetch("master", redirects=local)
    received = behaviour.sent_bytes
    behaviour.refuse_after_packs, behaviour.sent_bytes = -1, 0
    assert machine.fetch("master", redirects=local).commit == upstream.main.head
    assert 100_000 < behaviour.sent_bytes < 40 * 20_000 - 300_000, received


def test_a_file_that_the_host_lost_is_named(
    machine: Machine, upstream: Upstream, served: tuple[str, Behaviour]
) -> None:
    base, _ = served
    blob = git(upstream.main.bare, "rev-parse", "master:kwbase/main.go")
    (upstream.main.bare / "objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(SourceError, match=r"does not have this commit|lacks objects|did not send") as caught:
        machine.fetch("master", redirects=to(base))
    assert blob in caught.value.context
    assert machine.checkouts == []


def test_progress_tells_bytes_and_each_transfer(machine: Machine, served: tuple[str, Behaviour]) -> None:
    machine.fetch("master", redirects=to(served[0]))
    texts = [text for text, done, total in machine.said.updates if done is not None and total]
    assert any("main repository" in text for text in texts)
    assert any("vendor" in text for text in texts)
    assert any("KiB" in text or " B" in text for text in texts), texts


def test_a_patch_on_top_of_a_tree_that_lacks_the_tests(
    machine: Machine, served: tuple[str, Behaviour], tmp_path: Path
) -> None:
    """Reading, patching and copying such a tree needs none of the files that were left out."""
    from kwdb_build.source.gather import SourceChoice, gather
    from kwdb_build.source.patches import keep, read_patches

    base, behaviour = served
    patch = tmp_path / "mine.patch"
    patch.write_text("--- a/kwbase/new.go\n+++ b/kwbase/new.go\n@@ -1 +1,2 @@\n package main\n+// mine\n")
    tree = machine.fetch("master", redirects=to(base))
    requests = len(behaviour.requests)
    choice = SourceChoice(patches=keep(read_patches((str(patch),)), machine.home))
    patched = gather(
        SourceRequest(url=f"{HOST}kwdb.git", ref=tree.commit, redirects=to(base)), choice, home=machine.home,
        progress=machine.said, log=machine.log,
    )
    assert (patched.path / "kwbase/new.go").read_text().endswith("// mine\n")
    assert not (patched.path / "qa").exists()
    copied = copy_tree(patched, tmp_path / "gopath")
    assert git(copied.path, *DESCRIBE).startswith(str(tree.version).removesuffix("-dirty"))
    assert len(behaviour.requests) == requests
