from __future__ import annotations

import itertools
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from kwdb_build.data import replace
from kwdb_build.data.replace import Replacement
from kwdb_build.errors import ArtifactError, BackupError, UsageError


@pytest.fixture
def plan(tmp_path: Path) -> tuple[Replacement, ...]:
    installed, built = tmp_path / "installed", tmp_path / "built"
    for base, text in ((installed, "old"), (built, "new")):
        (base / "bin").mkdir(parents=True)
        (base / "lib").mkdir()
        for name in ("bin/kwbase", "lib/libcommon.so", "lib/libkwdbts2.so"):
            (base / name).write_bytes(f"{text} {name}".encode() * 5000)
    (built / "lib/libbrpc.so").write_bytes(b"new library" * 100)
    (installed / "bin/kwbase").chmod(0o750)
    (installed / "lib/libkwdbts2.so").chmod(0o640)
    if os.geteuid() == 0:
        os.chown(installed / "bin/kwbase", 4242, 4243)
        os.chown(installed / "lib", 4242, 4243)
    (installed / "lib/libcommon.so").rename(installed / "lib/libcommon.so.3.1.0")
    (installed / "lib/libcommon.so").symlink_to("libcommon.so.3.1.0")
    names = ("bin/kwbase", "lib/libcommon.so", "lib/libkwdbts2.so", "lib/libbrpc.so")
    return tuple(
        Replacement(target=installed / name, source=built / name, existed=name != "lib/libbrpc.so") for name in names
    )


def picture(root: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        info = path.lstat()
        content = str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else "dir"
        mode = 0 if path.is_symlink() else info.st_mode
        found[str(path.relative_to(root))] = (content, mode, info.st_uid, info.st_gid)
    return found


def test_forward_and_back(plan: tuple[Replacement, ...], tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    before = picture(installed)
    mtime = (installed / "bin/kwbase").stat().st_mtime_ns
    record = replace.prepare(plan, keep=tmp_path / "keep")
    assert picture(installed) == before
    assert replace.state(record) == "old"
    record = replace.apply(record)
    assert replace.state(record) == "new"
    assert record.notes == ()
    for item in plan:
        assert item.target.read_bytes() == item.source.read_bytes()
        assert not item.target.is_symlink()
    assert (installed / "lib/libcommon.so.3.1.0").read_bytes().startswith(b"old")
    assert (installed / "bin/kwbase").stat().st_mode & 0o7777 == 0o750
    assert (installed / "lib/libkwdbts2.so").stat().st_mode & 0o7777 == 0o640
    if os.geteuid() == 0:
        assert (installed / "bin/kwbase").stat().st_uid == 4242
        assert (installed / "lib/libbrpc.so").stat().st_gid == 4243
    assert replace.state(replace.load(tmp_path / "keep")) == "new"
    replace.undo(replace.load(tmp_path / "keep"))
    assert picture(installed) == before
    assert (installed / "bin/kwbase").stat().st_mtime_ns == mtime
    assert replace.state(record) == "old"


def test_both_directions_can_be_repeated(plan: tuple[Replacement, ...], tmp_path: Path) -> None:
    before = picture(tmp_path / "installed")
    record = replace.replace_files(plan, keep=tmp_path / "keep")
    after = picture(tmp_path / "installed")
    for _ in range(2):
        replace.apply(record)
        assert picture(tmp_path / "installed") == after
        assert replace.prepare(plan, keep=tmp_path / "keep").files == record.files
    for _ in range(2):
        replace.undo(record)
        assert picture(tmp_path / "installed") == before


def test_every_mixture_leads_to_both_ends(plan: tuple[Replacement, ...], tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    before = picture(installed)
    record = replace.replace_files(plan, keep=tmp_path / "keep")
    after = picture(installed)
    for choice in itertools.product((True, False), repeat=len(plan)):
        for direction, end in ((replace.apply, after), (replace.undo, before)):
            replace.undo(record)
            for is_new, item in zip(choice, plan, strict=True):
                if is_new:
                    fresh = item.target.with_name("fresh")
                    shutil.copy2(item.source, fresh)
                    fresh.rename(item.target)
            expected = "new" if all(choice) else "old" if not any(choice) else "mixed"
            assert replace.state(record) == expected
            direction(record)
            assert {name: value[0] for name, value in picture(installed).items()} == {  # type: ignore[index]
                name: value[0] for name, value in end.items()  # type: ignore[index]
            }


def test_security_labels_and_capabilities_are_taken_over(plan: tuple[Replacement, ...], tmp_path: Path) -> None:
    kwbase = tmp_path / "installed/bin/kwbase"
    capability = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service+ep
    try:
        os.setxattr(kwbase, "security.kwdb_test", b"system_u:object_r:bin_t:s0")
        os.setxattr(kwbase, "security.capability", capability)
    except OSError as error:
        pytest.skip(f"no security labels here: {error}")
    record = replace.replace_files(plan, keep=tmp_path / "keep")
    assert os.getxattr(kwbase, "security.kwdb_test") == b"system_u:object_r:bin_t:s0"
    assert os.getxattr(kwbase, "security.capability") == capability
    replace.undo(record)
    assert os.getxattr(kwbase, "security.capability") == capability


def test_a_running_binary_is_replaced_and_goes_on(tmp_path: Path) -> None:
    """A writer into it gets `Text file busy`; renames do not disturb it."""
    binary = tmp_path / "bin" / "server"
    binary.parent.mkdir()
    shutil.copy2(shutil.which("sleep") or "/bin/sleep", binary)
    source = tmp_path / "new"
    shutil.copy2(shutil.which("true") or "/bin/true", source)
    old = binary.read_bytes()
    with subprocess.Popen([str(binary), "300"]) as child:
        try:
            with pytest.raises(OSError, match="Text file busy"), binary.open("r+b"):
                pass
            plan = (Replacement(target=binary, source=source, existed=True),)
            record = replace.replace_files(plan, keep=tmp_path / "keep")
            assert child.poll() is None
            assert str(Path(f"/proc/{child.pid}/exe").readlink()).endswith(" (deleted)")
            assert Path(f"/proc/{child.pid}/exe").read_bytes() == old
            assert subprocess.run([str(binary)], check=False).returncode == 0
            replace.undo(record)
            assert binary.read_bytes() == old
            assert child.poll() is None
        finally:
            child.kill()


def test_a_file_changed_by_somebody_else_stops_the_switch(plan: tuple[Replacement, ...], tmp_path: Path) -> None:
    record = replace.prepare(plan, keep=tmp_path / "keep")
    plan[2].target.write_bytes(b"a package manager was here")
    before = picture(tmp_path / "installed")
    with pytest.raises(ArtifactError, match="changed by somebody else"):
        replace.apply(record)
    assert picture(tmp_path / "installed") == before
    assert replace.state(record) == "mixed"
    replace.undo(record)
    assert replace.state(record) == "old"
    displaced = [path.read_bytes() for path in (tmp_path / "keep").glob("displaced-*")]
    assert displaced == [b"a package manager was here"]


def test_a_changed_source_is_noticed_before_the_first_rename(plan: tuple[Replacement, ...], tmp_path: Path) -> None:
    record = replace.prepare(plan, keep=tmp_path / "keep")
    before = picture(tmp_path / "installed")
    plan[-1].source.write_bytes(b"another build")
    with pytest.raises(ArtifactError, match="not what it was"):
        replace.apply(record)
    replace.undo(record)
    assert picture(tmp_path / "installed") == before


def test_a_damaged_kept_copy_stops_the_way_back_before_it_begins(
    plan: tuple[Replacement, ...], tmp_path: Path
) -> None:
    record = replace.replace_files(plan, keep=tmp_path / "keep")
    kept = next(item.kept for item in record.files if item.kept)
    kept.write_bytes(b"rotten")
    after = picture(tmp_path / "installed")
    with pytest.raises(BackupError, match="damaged; nothing was put back"):
        replace.undo(record)
    assert picture(tmp_path / "installed") == after


@pytest.mark.parametrize("what", ["twice", "missing source", "existed", "directory", "no parent", "empty", "other plan"])
def test_a_plan_that_contradicts_the_disk_is_refused(
    plan: tuple[Replacement, ...], tmp_path: Path, what: str
) -> None:
    first = plan[0]
    bad: dict[str, tuple[Replacement, ...]] = {
        "twice": (first, first),
        "missing source": (Replacement(target=first.target, source=tmp_path / "nothing", existed=True),),
        "existed": (Replacement(target=first.target, source=first.source, existed=False),),
        "directory": (Replacement(target=first.target.parent, source=first.source, existed=True),),
        "no parent": (Replacement(target=tmp_path / "no" / "x", source=first.source, existed=False),),
        "empty": (),
        "other plan": plan[1:],
    }
    keep = tmp_path / "keep"
    if what == "other plan":
        replace.prepare(plan, keep=keep)
    with pytest.raises((UsageError, ArtifactError)):
        replace.prepare(bad[what], keep=keep)
    assert what == "other plan" or not keep.exists()


def test_the_record_is_private(plan: tuple[Replacement, ...], tmp_path: Path) -> None:
    replace.prepare(plan, keep=tmp_path / "keep")
    assert stat.S_IMODE((tmp_path / "keep" / "replace.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "keep").stat().st_mode) == 0o700
    (tmp_path / "keep" / "replace.json").write_text("{}")
    with pytest.raises(BackupError, match="no readable record"):
        replace.load(tmp_path / "keep")


CHILD = """
import os, signal, sys
from pathlib import Path
from kwdb_build.data import replace
direction, keep, call, at = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
seen = 0
def hook(event, arguments):
    global seen
    if event == call:
        seen += 1
        if seen == at:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
getattr(replace, direction)(replace.load(keep))
"""


@pytest.mark.parametrize("direction", ["apply", "undo"])
@pytest.mark.parametrize(("call", "at"), [("os.rename", n) for n in range(1, 5)] + [("open", n) for n in range(30, 90, 9)])
def test_kill_9_in_the_middle_can_be_finished_and_undone(
    plan: tuple[Replacement, ...], tmp_path: Path, direction: str, call: str, at: int
) -> None:
    """The process kills itself just before a system call, found by Python's own audit events."""
    installed = tmp_path / "installed"
    before = picture(installed)
    record = replace.prepare(plan, keep=tmp_path / "keep")
    replace.apply(record)
    after = picture(installed)
    for finish, end in (("apply", after), ("undo", before)):
        (replace.undo if direction == "apply" else replace.apply)(record)
        done = subprocess.run(
            [sys.executable, "-c", CHILD, direction, str(tmp_path / "keep"), call, str(at)], check=False
        )
        assert done.returncode in ({-signal.SIGKILL} if call == "os.rename" and at < 3 else {0, -signal.SIGKILL})
        for item in plan:
            if item.target.exists():
                assert item.target.read_bytes()[:3] in (b"old", b"new"), "never half a file"
        getattr(replace, finish)(replace.load(tmp_path / "keep"))
        assert picture(installed) == end


def test_staged_files_are_only_renamed(plan: tuple[Replacement, ...], tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    before = picture(installed)
    record = replace.prepare(plan, keep=tmp_path / "keep")
    assert not replace.staged(record)
    replace.stage(record)
    assert replace.staged(record)
    assert replace.state(record) == "old"
    beside = {path.name: path.stat().st_ino for path in installed.rglob(".*.kwdb-build-new")}
    assert len(beside) == len(plan)
    replace.apply(replace.load(tmp_path / "keep"))
    assert replace.state(record) == "new"
    assert {f".{item.target.name}.kwdb-build-new": item.target.stat().st_ino for item in plan} == beside
    assert list(installed.rglob(".*")) == []
    after = picture(installed)
    replace.undo(record)
    assert picture(installed) == before
    replace.apply(record)
    assert picture(installed) == after, "the long way leads to the same files as the short one"


def test_discarded_files_leave_nothing_behind(plan: tuple[Replacement, ...], tmp_path: Path) -> None:
    before = picture(tmp_path / "installed")
    record = replace.prepare(plan, keep=tmp_path / "keep")
    replace.stage(record)
    for _ in range(2):
        replace.discard(record)
        assert picture(tmp_path / "installed") == before
        assert not replace.staged(record)


@pytest.mark.parametrize("damage", ["same size", "other inode", "missing", "no record"])
def test_a_staged_file_that_was_touched_is_written_again(
    plan: tuple[Replacement, ...], tmp_path: Path, damage: str
) -> None:
    record = replace.prepare(plan, keep=tmp_path / "keep")
    replace.stage(record)
    beside = plan[0].target.with_name(".kwbase.kwdb-build-new")
    content = beside.read_bytes()
    if damage == "same size":
        beside.write_bytes(b"x" * len(content))
    elif damage == "no record":
        (tmp_path / "keep" / replace.STAGED).write_text("{")
    else:
        beside.unlink()
        if damage == "other inode":
            beside.write_bytes(content)
    assert not replace.staged(record)
    replace.apply(record)
    assert replace.state(record) == "new"
    assert list((tmp_path / "installed").rglob(".*")) == []


def test_a_file_installed_after_the_staging_stops_the_switch(plan: tuple[Replacement, ...], tmp_path: Path) -> None:
    record = replace.prepare(plan, keep=tmp_path / "keep")
    replace.stage(record)
    plan[2].target.write_bytes(b"a package manager was here")
    with pytest.raises(ArtifactError, match="changed by somebody else"):
        replace.apply(record)
    assert plan[0].target.read_bytes().startswith(b"old")


@pytest.mark.parametrize(("direction", "call", "at"), [
    *(("stage", "open", n) for n in range(8, 50, 6)), *(("apply", "os.rename", n) for n in range(1, 5)),
])
def test_kill_9_around_the_staging(
    plan: tuple[Replacement, ...], tmp_path: Path, direction: str, call: str, at: int
) -> None:
    installed = tmp_path / "installed"
    before = picture(installed)
    record = replace.prepare(plan, keep=tmp_path / "keep")
    if direction == "apply":
        replace.stage(record)
    done = subprocess.run([sys.executable, "-c", CHILD, direction, str(tmp_path / "keep"), call, str(at)], check=False)
    assert done.returncode in ({-signal.SIGKILL} if direction == "apply" else {0, -signal.SIGKILL})
    if direction == "stage":
        replace.discard(record)
        assert picture(installed) == before
        replace.stage(record)
    replace.apply(record)
    assert replace.state(record) == "new"
    assert list(installed.rglob(".*")) == []
    replace.undo(record)
    assert picture(installed) == before
