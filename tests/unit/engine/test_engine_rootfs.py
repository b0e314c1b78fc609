"""Images on disk: whole or not there, the same identity for the same content, a change is noticed."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from kwdb_build.engine.rootfs import ROOT, ImageStore
from kwdb_build.errors import EngineError

TOP = Path(__file__).resolve().parents[3]


def fill(root: Path, word: str = "hello") -> None:
    (root / "bin").mkdir()
    (root / "bin" / "sh").write_text(word)
    (root / "bin" / "sh").chmod(0o4755)
    (root / "sbin").symlink_to("bin")


def make(store: ImageStore, tag: str, word: str = "hello") -> str:
    with store.making() as scratch:
        fill(scratch / ROOT, word)
        return store.keep(scratch, tag, environment={"A": "1"})


def test_made_found_and_removed(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "sandbox")
    assert store.identity("a/b:1") is None
    identity = make(store, "a/b:1")
    assert store.identity("a/b:1") == store.identity(identity) == identity
    root, record = store.open("a/b:1")
    assert (root / "sbin").is_symlink()
    assert record["environment"] == {"A": "1"}
    assert not (root / "bin" / "sh").stat().st_mode & stat.S_ISUID, "nothing in a sandbox may gain rights"
    assert stat.S_IMODE(root.parent.stat().st_mode) == 0o700, "nobody else gets at what is in it"
    store.remove("a/b:1")
    assert store.identity("a/b:1") is None
    assert sorted(path.name for path in (tmp_path / "sandbox" / "images").iterdir()) == [".gate"]
    store.remove("a/b:1")


def test_same_content_is_one_image_under_two_names(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    first, second, other = make(store, "a:1"), make(store, "b:1"), make(store, "c:1", "bye")
    assert first == second != other
    store.remove("a:1")
    assert store.identity("b:1") == first
    store.open("b:1")


def test_nothing_half(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)

    def fail() -> None:
        with store.making() as scratch:
            fill(scratch / ROOT)
            raise ValueError

    with pytest.raises(ValueError):
        fail()
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == [".gate"]
    with pytest.raises(EngineError, match="no such image"):
        store.open("a:1")


def test_a_killed_maker_leaves_no_image_and_the_next_cleans_up(tmp_path: Path) -> None:
    child = """
        import sys, time
        from pathlib import Path
        from kwdb_build.engine.rootfs import ROOT, ImageStore
        with ImageStore(Path(sys.argv[1])).making() as scratch:
            (scratch / ROOT / "half").write_text("x")
            print("up", flush=True)
            time.sleep(600)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(child), str(tmp_path)], cwd=TOP, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGKILL)
    left = [path for path in (tmp_path / "images").iterdir() if path.name.startswith(".making-")]
    assert len(left) == 1
    store = ImageStore(tmp_path)
    identity = make(store, "a:1")
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == [".gate", identity.removeprefix("sha256:")]


@pytest.mark.parametrize("change", ["content", "removed", "added", "mode"])
def test_a_changed_image_is_refused(tmp_path: Path, change: str) -> None:
    make(ImageStore(tmp_path), "a:1")
    [directory] = [path for path in (tmp_path / "images").iterdir() if path.is_dir()]
    program = directory / ROOT / "bin" / "sh"
    if change == "content":
        program.write_text("other")
    elif change == "removed":
        program.unlink()
    elif change == "added":
        (directory / ROOT / "bin" / "more").touch()
    else:
        program.chmod(0o700)
    with pytest.raises(EngineError, match="was changed") as caught:
        ImageStore(tmp_path).open("a:1")
    assert str(directory) in caught.value.hint


def test_devices_and_pipes_are_left_out(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    with store.making() as scratch:
        fill(scratch / ROOT)
        os.mkfifo(scratch / ROOT / "pipe")
        store.keep(scratch, "a:1", environment={})
    root, _ = store.open("a:1")
    assert not (root / "pipe").exists()
    assert store.identity("a:1") == make(store, "b:1")
