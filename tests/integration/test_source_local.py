"""Archives, plain directories, checkouts and patches as the source: real git, real files, real kills."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from kwdb_build.build.key import build_key
from kwdb_build.errors import DirtySourceError, PatchError, SourceError, SubmoduleError, UsageError
from kwdb_build.model import SOURCE_SUFFIX, BuildOptions, SourceTree, Toolchain
from kwdb_build.source.difference import between, difference, facts
from kwdb_build.source.fetch import SourceRequest
from kwdb_build.source.gather import SourceChoice, gather
from kwdb_build.source.inspect import content_digest, copy_tree
from kwdb_build.source.patches import keep, read_patches
from tests.unit.source.sourcebox import HOST, SUBMODULES, Machine, Upstream, git

MTIME = 1_650_000_000


@pytest.fixture
def checkout(upstream: Upstream, tmp_path: Path) -> Path:
    """A developer's clone of V1.1.0 with its submodules."""
    path = tmp_path / "dev" / "kwdb"
    path.parent.mkdir()
    redirect = ("-c", f"url.{upstream.mirror}.insteadOf={HOST}", "-c", "protocol.file.allow=always")
    git(path.parent, *redirect, "clone", "--quiet", "--recurse-submodules", "--branch", "V1.1.0", f"{HOST}kwdb.git")
    return path


@pytest.fixture
def plain(checkout: Path, tmp_path: Path) -> Path:
    """The same files without git, as somebody unpacked them."""
    path = tmp_path / "plain" / "KWDB-V1.1.0"
    shutil.copytree(checkout, path, ignore=shutil.ignore_patterns(".git"), symlinks=True)
    touch(path)
    return path


@pytest.fixture
def local(machine: Machine) -> Callable[..., SourceTree]:
    """The source as `kwdb-build fetch` would have it."""

    def prepare(path: Path | None = None, *, ref: str = "V1.1.0", patches: Iterable[str] = (), **options: object) -> SourceTree:
        request = SourceRequest(url=f"{HOST}kwdb.git", ref=ref, redirects=(machine.upstream.redirect,))
        kept = keep(read_patches(patches), machine.home)
        choice = SourceChoice(local=path, patches=kept, **options)  # type: ignore[arg-type]
        return gather(request, choice, home=machine.home, progress=machine.said, log=machine.log)

    return prepare


Local = Callable[..., SourceTree]


def touch(path: Path, when: int = MTIME) -> None:
    for file in path.rglob("*"):
        if not file.is_symlink():
            os.utime(file, (when, when))


def packed(source: Path, archive: Path, *, top: str | None = None) -> Path:
    with tarfile.open(archive, "w:gz") as stream:
        stream.add(source, arcname=top or source.name)
    return archive


def key_of(tree: SourceTree) -> str:
    toolchain = Toolchain(
        name="any", path=Path("/t"), distribution="debian", release="bookworm", architecture="amd64", packages=(),
        locked_packages=(), wheels=(), environment={}, serves=">=1", lock_digest="0" * 64,
    )
    return build_key(tree, toolchain, BuildOptions()).digest


def state(path: Path) -> list[tuple[str, int, int, int]]:
    """Everything that a build could have left in a tree, its git directory included."""
    return sorted(
        (str(file.relative_to(path)), file.lstat().st_mode, file.lstat().st_mtime_ns, file.lstat().st_nlink)
        for file in path.rglob("*")
    )


# ------------------------------------------------------- archives, directories


def test_an_archive_is_a_source(local: Local, plain: Path, tmp_path: Path) -> None:
    tree = local(packed(plain, tmp_path / "KWDB-V1.1.0.tar.gz"))
    assert tree.path.parts[-3:] == SOURCE_SUFFIX.parts
    assert (tree.origin, tree.version.text, tree.commit_time) == ("archive", "V1.1.0", MTIME)
    assert (tree.path / "kwbase/vendor/file.txt").read_text() == "kw-vendor V1.1.0\n"
    assert {module.path for module in tree.submodules} == set(SUBMODULES)
    # What KWDB's Makefile asks git for is there.
    assert git(tree.path, "describe", "--tags", "--dirty", "--match=V[0-9]*") == "V1.1.0"
    assert git(tree.path, "rev-parse", "HEAD") == tree.commit
    assert git(tree.path, "status", "--porcelain", "--ignored") == ""


def test_the_same_files_are_the_same_source(local: Local, plain: Path, checkout: Path, tmp_path: Path) -> None:
    first = local(packed(plain, tmp_path / "KWDB-V1.1.0.tar.gz"))
    renamed = local(packed(plain, tmp_path / "other.tar.gz", top="kwdb-1.1.0"))
    directory = local(plain)
    worktree = local(checkout)
    assert first.content == renamed.content == directory.content == worktree.content
    assert first.commit == renamed.commit == directory.commit
    assert key_of(first) == key_of(renamed) == key_of(directory)
    (plain / "kwbase" / "main.go").write_text("package other\n")
    touch(plain)
    changed = local(plain)
    assert changed.content != first.content
    assert key_of(changed) != key_of(first)


def test_a_second_use_is_a_look_up(local: Local, machine: Machine, plain: Path, tmp_path: Path) -> None:
    archive = packed(plain, tmp_path / "KWDB-V1.1.0.tar.gz")
    first = local(archive)
    inode = first.path.stat().st_ino
    assert local(archive) == first
    assert first.path.stat().st_ino == inode, "not unpacked again"
    (first.path / "Makefile").write_text("evil:\n")
    again = local(archive)
    assert (again.path / "Makefile").read_text() != "evil:\n"
    assert again.content == first.content
    assert any("made again" in note for note in machine.said.notes)


def test_submodules_beside_the_archive(local: Local, machine: Machine, plain: Path, tmp_path: Path) -> None:
    place = tmp_path / "downloads"
    place.mkdir()
    packed(plain / "kwbase/vendor", place / "kw-vendor-V1.1.0.tar.gz", top="kw-vendor")
    shutil.copytree(plain / "kwbase/c-deps", place / "kw-cdeps")
    other = packed(plain / "kwdbts2/third_party", tmp_path / "elsewhere.tar.gz", top="x")
    for name in SUBMODULES:
        shutil.rmtree(plain / name)
        (plain / name).mkdir()
    archive = packed(plain, place / "KWDB-V1.1.0.tar.gz")
    with pytest.raises(SubmoduleError) as caught:
        local(archive)
    assert "kwdbts2/third_party" in caught.value.context
    assert "kwbase/vendor" not in caught.value.context
    assert "--submodule" in caught.value.hint
    tree = local(archive, submodules=(("kwdbts2/third_party", other),))
    assert (tree.path / "kwdbts2/third_party/file.txt").read_text() == "kw-third_party V1.1.0\n"
    assert (tree.path / "kwbase/vendor/file.txt").read_text() == "kw-vendor V1.1.0\n"
    (place / "kw-cdeps" / "file.txt").write_text("other\n")
    changed = local(archive, submodules=(("kwdbts2/third_party", other),))
    assert (changed.path / "kwbase/c-deps/file.txt").read_text() == "other\n", "not the one from before"
    packed(plain, place / "kw-vendor-2.tar.gz", top="x")
    with pytest.raises(SubmoduleError, match="several things"):
        local(packed(plain, place / "KWDB-V1.1.0-b.tar.gz"), version="V1.1.0",
              submodules=(("kwdbts2/third_party", other),))


@pytest.mark.parametrize(
    ("name", "top", "version", "expected"),
    [
        ("KWDB-V3.2.1.tar.gz", "x", "", "V3.2.1"), ("kwdb.tar.gz", "kwdb-v3.2.1", "", "V3.2.1"),
        ("3.2.1.tgz", "x", "", "V3.2.1"), ("KWDB-V3.2.1.tar.gz", "kwdb-V3.2.0", "V3.2.1", "V3.2.1"),
    ],
)
def test_the_version_is_read_or_given(
    local: Local, plain: Path, tmp_path: Path, name: str, top: str, version: str, expected: str
) -> None:
    assert local(packed(plain, tmp_path / name, top=top), version=version).version.text == expected


@pytest.mark.parametrize(("name", "top"), [("kwdb.tar.gz", "source"), ("KWDB-V3.2.1.tar.gz", "kwdb-V3.2.0")])
def test_no_version_or_two(local: Local, plain: Path, tmp_path: Path, name: str, top: str) -> None:
    with pytest.raises(UsageError) as caught:
        local(packed(plain, tmp_path / name, top=top))
    assert "--source-version" in caught.value.hint


def test_what_is_no_source(local: Local, plain: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not look like KWDB's source"):
        local(packed(plain / "kwbase", tmp_path / "V1.1.0.tar.gz"), version="V1.1.0")
    (plain / "invalid").symlink_to("/non/existing/file")  # leads nowhere, as one in KWDB's vendor directory does
    assert str((local(plain).path / "invalid").readlink()) == "/non/existing/file"
    (plain / "out").symlink_to("/etc")
    with pytest.raises(SourceError) as caught:
        local(plain)
    assert "out -> /etc" in caught.value.context


def test_a_link_that_led_nowhere_is_looked_at_again_at_each_use(
    local: Local, machine: Machine, plain: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "not" / "there yet"
    patch = tmp_path / "link.patch"
    patch.write_text(
        "diff --git a/kwbase/link b/kwbase/link\nnew file mode 120000\n--- /dev/null\n+++ b/kwbase/link\n"
        f"@@ -0,0 +1 @@\n+{elsewhere}\n\\ No newline at end of file\n"
    )
    linked = shutil.copytree(plain, tmp_path / "linked" / plain.name, symlinks=True)
    (linked / "kwbase/link").symlink_to(elsewhere)
    for use in (lambda: local(linked), lambda: local(plain, patches=[str(patch)])):
        inode = use().path.stat().st_ino
        assert use().path.stat().st_ino == inode, "a look-up, as long as it leads nowhere"
    elsewhere.mkdir(parents=True)
    with pytest.raises(SourceError, match="lead out of it"):
        local(linked)
    with pytest.raises(PatchError, match="lead out of the source"):
        local(plain, patches=[str(patch)])
    said = "a symlink that led nowhere leads out of it now"
    assert len([note for note in machine.said.notes if note.endswith(said)]) == 2


def test_a_directory_is_never_written_to(local: Local, plain: Path) -> None:
    before = state(plain)
    tree = local(plain)
    assert state(plain) == before
    assert tree.path.stat().st_nlink == 0 or (tree.path / "Makefile").stat().st_nlink == 1


def test_bad_input(local: Local, plain: Path, machine: Machine, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tar.gz")
    with pytest.raises(UsageError, match="no archive or directory"):
        local(tmp_path / "pipe.tar.gz")
    with pytest.raises(UsageError, match="no archive or directory"):
        local(tmp_path / "missing.tar.gz")
    with pytest.raises(UsageError, match="--dirty is for a git checkout"):
        local(plain, dirty=True)
    with pytest.raises(UsageError, match="no submodule 'nosuch'"):
        local(plain, submodules=(("nosuch", plain),))
    os.mkfifo(plain / "pipe")
    with pytest.raises(SourceError, match="neither a file nor a symlink"):
        local(plain)
    (plain / "pipe").unlink()
    machine.home = plain / "home"
    with pytest.raises(UsageError, match="lies inside of the source"):
        local(plain)


# ------------------------------------------------------------------- checkouts


def test_a_clean_checkout_is_its_commit(local: Local, checkout: Path, machine: Machine, upstream: Upstream) -> None:
    before = state(checkout)
    tree = local(checkout)
    assert state(checkout) == before
    assert (tree.origin, tree.commit, tree.version.text) == ("worktree", upstream.commits["V1.1.0"], "V1.1.0")
    assert {module.path: module.commit for module in tree.submodules} == upstream.pins["V1.1.0"]
    assert key_of(tree) == key_of(machine.fetch("V1.1.0")), "same commits, same key"
    assert difference(tree, home=machine.home, progress=machine.said, log=machine.log) == ""
    assert all(path.lstat().st_nlink == 1 for path in tree.path.rglob("*") if path.is_file())


def test_uncommitted_changes_are_refused_or_included(local: Local, checkout: Path, machine: Machine) -> None:
    (checkout / "Makefile").write_text("all: changed\n")
    (checkout / "new.go").write_text("package new\n")
    (checkout / "kwbase/main.go").unlink()
    (checkout / "kwbase/vendor/file.txt").write_text("changed\n")
    (checkout / "build").mkdir()
    (checkout / "build/object.o").write_text("ignored by .gitignore\n")
    before = state(checkout)
    with pytest.raises(DirtySourceError) as caught:
        local(checkout)
    assert caught.value.context.splitlines() == [" M Makefile", " D kwbase/main.go", "?? new.go", " M kwbase/vendor/file.txt"]
    tree = local(checkout, dirty=True)
    assert state(checkout) == before, "the checkout stays as it was, its index included"
    assert tree.version.text == "V1.1.0-dirty"
    assert len(tree.changed) == 4
    assert (tree.path / "new.go").exists()
    assert not (tree.path / "kwbase/main.go").exists()
    assert not (tree.path / "build").exists(), "ignored files are left out"
    text = difference(tree, home=machine.home, progress=machine.said, log=machine.log)
    assert "+all: changed" in text
    assert "b/kwbase/vendor/file.txt" in text
    (checkout / "new.go").write_text("package newer\n")
    other = local(checkout, dirty=True)
    assert other.content != tree.content
    assert key_of(other) != key_of(tree)


def test_moved_submodules_are_said_and_recorded(local: Local, checkout: Path, machine: Machine, upstream: Upstream) -> None:
    old = git(checkout / "kwbase/vendor", "rev-parse", "HEAD~1")
    git(checkout / "kwbase/vendor", "checkout", "--quiet", "HEAD~1")
    tree = local(checkout)
    [vendor] = [module for module in tree.submodules if module.path == "kwbase/vendor"]
    assert (vendor.commit, vendor.pinned) == (old, upstream.pins["V1.1.0"]["kwbase/vendor"])
    assert tree.version.text == "V1.1.0-dirty"
    assert any("not at its pinned commit" in note for note in machine.said.notes)
    assert any(old in line for line in facts(tree))
    # KWDB's Makefile does this in the build: it must not move the submodule back.
    git(tree.path, "submodule", "update", "--init", "--recursive")
    assert git(tree.path / "kwbase/vendor", "rev-parse", "HEAD") == old
    assert f"+Subproject commit {old}" in difference(tree, home=machine.home, progress=machine.said, log=machine.log)


def test_names_that_are_no_text(local: Local, checkout: Path) -> None:
    odd = os.fsencode(checkout) + b"/odd\xff\x1b[31m"
    Path(os.fsdecode(odd)).touch()
    tree = local(checkout, dirty=True)
    assert tree.changed == ("?? odd\\udcff\\x1b[31m",), "nothing that steers a terminal"
    assert (os.fsencode(tree.path) + b"/odd\xff\x1b[31m") in {os.fsencode(path) for path in tree.path.iterdir()}


def test_a_checkout_without_its_submodules(local: Local, checkout: Path) -> None:
    git(checkout, "submodule", "deinit", "--force", "kwbase/vendor")
    with pytest.raises(SubmoduleError, match=r"kwbase/vendor .* is not checked out"):
        local(checkout)


def test_settings_and_hooks_of_a_checkout_do_not_run(local: Local, checkout: Path, tmp_path: Path) -> None:
    spy = tmp_path / "ran"
    for key in ("core.fsmonitor", "filter.evil.clean", "filter.evil.smudge", "diff.external"):
        git(checkout, "config", key, f"touch {spy}; cat")
    (checkout / ".gitattributes").write_text("* filter=evil text eol=crlf\n")
    hook = checkout / ".git/hooks/post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {spy}\n")
    hook.chmod(0o755)
    tree = local(checkout, dirty=True)
    assert not spy.exists()
    assert b"\r" not in (tree.path / "Makefile").read_bytes()


# --------------------------------------------------------------------- patches

FIX = "--- a/kwbase/main.go\n+++ b/kwbase/main.go\n@@ -1 +1 @@\n-package main // V1.1.0\n+package main // fixed\n"
THEN = "--- a/kwbase/main.go\n+++ b/kwbase/main.go\n@@ -1 +1 @@\n-package main // fixed\n+package main // fixed twice\n"
VENDOR = "--- a/file.txt\n+++ b/file.txt\n@@ -1 +1 @@\n-kw-vendor V1.1.0\n+kw-vendor patched\n"


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def test_patches_in_order_and_in_a_submodule(local: Local, machine: Machine, tmp_path: Path) -> None:
    base = machine.fetch("V1.1.0")
    before = content_digest(base.path)
    given = [write(tmp_path / "1.patch", FIX), write(tmp_path / "2.patch", THEN),
             f"kwbase/vendor={write(tmp_path / 'v.patch', VENDOR)}"]
    tree = local(patches=given)
    assert (tree.path / "kwbase/main.go").read_text() == "package main // fixed twice\n"
    assert (tree.path / "kwbase/vendor/file.txt").read_text() == "kw-vendor patched\n"
    assert tree.version.text.startswith("V1.1.0-patched-")
    assert tree.commit == base.commit, "the commit is the upstream's"
    assert content_digest(base.path) == before, "the fetched checkout is not the one that is patched"
    text = difference(tree, home=machine.home, progress=machine.said, log=machine.log)
    copy = copy_tree(base, tmp_path / "copy")
    (tmp_path / "all.diff").write_text(text)
    subprocess.run(["git", "apply", str(tmp_path / "all.diff")], cwd=copy.path, check=True)
    assert content_digest(copy.path) == tree.content, "the diff is the whole difference"
    shutil.rmtree(tree.gopath)
    assert difference(tree, home=machine.home, progress=machine.said, log=machine.log) == text, "kept for later"


def test_patches_are_part_of_the_key(local: Local, machine: Machine, tmp_path: Path) -> None:
    plain_key = key_of(machine.fetch("V1.1.0"))
    one = local(patches=[write(tmp_path / "1.patch", FIX)])
    both = local(patches=[write(tmp_path / "1.patch", FIX), write(tmp_path / "2.patch", THEN)])
    renamed = local(patches=[write(tmp_path / "renamed.patch", FIX)])
    assert len({plain_key, key_of(one), key_of(both)}) == 3
    assert key_of(renamed) == key_of(one)
    assert [patch.name for patch in renamed.patches] == ["renamed.patch"]
    assert [patch.name for patch in one.patches] == ["1.patch"]


def test_a_prefix_of_a_submodule_decides(local: Local, tmp_path: Path) -> None:
    prefixed = VENDOR.replace("/file.txt", "/kwbase/vendor/file.txt") + FIX
    tree = local(patches=[write(tmp_path / "both.patch", prefixed)])
    assert (tree.path / "kwbase/vendor/file.txt").read_text() == "kw-vendor patched\n"
    assert (tree.path / "kwbase/main.go").read_text() == "package main // fixed\n"
    assert git(tree.path / "kwbase/vendor", "status", "--porcelain") == "M  file.txt"


def test_patches_that_do_not_apply_leave_nothing(local: Local, machine: Machine, tmp_path: Path) -> None:
    machine.fetch("V1.1.0")
    before = machine.checkouts
    with pytest.raises(PatchError) as caught:
        local(patches=[write(tmp_path / "1.patch", FIX), write(tmp_path / "2.patch", FIX)])
    assert caught.value.exit_code == 18
    assert "2.patch (patch 2 of 2) does not apply" in caught.value.message
    assert "package main // V1.1.0" in caught.value.context, "the hunk is shown"
    assert "kwbase/main.go:1" in caught.value.context
    assert machine.checkouts == [*before, "patches"]


NEW = "--- /dev/null\n+++ b/{}\n@@ -0,0 +1 @@\n+evil\n"
LINK = (
    "diff --git a/kwbase/l b/kwbase/l\nnew file mode 120000\n--- /dev/null\n+++ b/kwbase/l\n@@ -0,0 +1 @@\n+{}\n"
    "\\ No newline at end of file\n"
)


@pytest.mark.parametrize(
    "text",
    [
        NEW.format("../outside"), NEW.format("kwbase/../../outside"), NEW.format(".git/hooks/post-checkout"),
        NEW.format("kwbase/x/.git/config"), LINK.format("/etc"), LINK.format("../.."),
        LINK.format("/tmp") + "diff --git a/kwbase/l/x b/kwbase/l/x\nnew file mode 100644\n" + NEW.format("kwbase/l/x"),
    ],
)
def test_patches_that_lead_out(local: Local, machine: Machine, tmp_path: Path, text: str) -> None:
    machine.fetch("V1.1.0")
    before = machine.checkouts
    with pytest.raises(PatchError) as caught:
        local(patches=[write(tmp_path / "evil.patch", text)])
    assert "out" in caught.value.message
    assert machine.checkouts == [*before, "patches"]
    assert not (tmp_path / "outside").exists()
    assert not Path("/tmp/x").exists()


def test_patches_on_an_archive_and_on_a_dirty_checkout(local: Local, plain: Path, checkout: Path, tmp_path: Path) -> None:
    fix = write(tmp_path / "1.patch", FIX)
    archive = local(packed(plain, tmp_path / "KWDB-V1.1.0.tar.gz"), patches=[fix])
    assert (archive.path / "kwbase/main.go").read_text() == "package main // fixed\n"
    (checkout / "new.go").write_text("package new\n")
    dirty = local(checkout, dirty=True, patches=[fix])
    assert dirty.version.text == f"{archive.version.text}-dirty"
    assert (dirty.path / "new.go").exists()
    copied = copy_tree(dirty, tmp_path / "copy")
    assert content_digest(copied.path) == dirty.content, "what a build would get"


def test_any_two_sources_can_be_compared(local: Local, machine: Machine, plain: Path) -> None:
    (plain / "Makefile").write_text("all: edited\n")
    text = between(machine.fetch("V1.1.0"), local(plain), progress=machine.said, log=machine.log)
    assert "diff --git a/Makefile b/Makefile" in text
    assert "+all: edited" in text
    assert text.count("diff --git") == 1


# ----------------------------------------------------------------------- kills

_CHILD = """
import sys
from pathlib import Path
from kwdb_build.console import Progress
from kwdb_build.source import prepared
from kwdb_build.source.gather import SourceChoice, gather
from kwdb_build.source.fetch import SourceRequest

class Say(Progress):
    def update(self, text, *, done=None, total=None):
        print(text, flush=True)
        if text.startswith(sys.argv[3]):
            sys.stdin.readline()

gather(SourceRequest(url="x", ref="x"), SourceChoice(local=Path(sys.argv[1])), home=Path(sys.argv[2]), progress=Say(),
       log=Path(sys.argv[2]) / "log")
"""


@pytest.mark.parametrize("moment", ["unpacking", "making a commit"])
def test_kill_9_leaves_nothing_half_trusted(local: Local, machine: Machine, plain: Path, tmp_path: Path, moment: str) -> None:
    archive = packed(plain, tmp_path / "KWDB-V1.1.0.tar.gz")
    machine.home.mkdir(exist_ok=True)
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(archive), str(machine.home), moment], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )
    assert child.stdout is not None
    assert any(line.startswith(moment) for line in iter(child.stdout.readline, "")), "it got there"
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert [name for name in machine.checkouts if not name.startswith(".")] == []
    tree = local(archive)
    assert (tree.path / "Makefile").exists()
    assert len(machine.checkouts) == 1, "what the killed one left is gone"
