"""The journal survives being cut off anywhere."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwdb_build.upgrade import room
from kwdb_build.upgrade.journal import Event, Journal, Phase


def test_records_are_read_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.append("stop", Phase.APPLY, Event.INTENT)
    assert journal.started("stop")
    assert not journal.done("stop")
    journal.append("stop", Phase.APPLY, Event.DONE, seconds=1.5, words="größe")
    journal.append("stop", Phase.UNDO, Event.INTENT)
    again = Journal(tmp_path / "j")
    assert again.records == journal.records
    assert again.done("stop")
    assert again.rolling_back
    assert not again.undone("stop")
    assert (tmp_path / "j").stat().st_mode & 0o777 == 0o600


@given(cut=st.integers(min_value=0, max_value=400))
def test_any_cut_leaves_the_whole_lines_before_it(cut: int, tmp_path_factory: object) -> None:
    path = tmp_path_factory.mktemp("j") / "j"  # type: ignore[attr-defined]
    journal = Journal(path)
    for step in ("capture", "fetch", "stop"):
        journal.append(step, Phase.APPLY, Event.INTENT)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    kept = whole[: min(cut, len(whole))]
    path.write_bytes(kept)
    again = Journal(path)
    expected = 0
    while expected < len(lines) and len(b"".join(lines[: expected + 1])) <= len(kept):
        expected += 1
    assert len(again.records) == expected
    again.append("more", Phase.APPLY, Event.INTENT)
    assert [r.step for r in Journal(path).records][-1] == "more"
    assert len(Journal(path).records) == expected + 1


def test_a_reader_changes_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.append("fetch", Phase.APPLY, Event.INTENT)
    with (tmp_path / "j").open("ab") as stream:
        stream.write(b'{"number": 2')  # another process is in the middle of its write
    before = (tmp_path / "j").read_bytes()
    Journal(tmp_path / "j")
    assert (tmp_path / "j").read_bytes() == before


def test_a_full_disk_gets_the_reserved_room_and_then_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "j")
    journal.append("stop", Phase.APPLY, Event.INTENT)
    room.reserve(tmp_path)
    real = os.write
    free = False

    def write(fd: int, data: bytes) -> int:
        if (tmp_path / room.NAME).exists():
            raise OSError(errno.ENOSPC, "No space")
        return real(fd, data) if free else real(fd, data[:10])  # what a full disk does: the begin of it

    monkeypatch.setattr(os, "write", write)
    free = True
    journal.append("stop", Phase.APPLY, Event.DONE)
    assert not (tmp_path / room.NAME).exists(), "the room was given up for it"
    free = False
    with pytest.raises(OSError, match="space"):
        journal.append("backup", Phase.APPLY, Event.INTENT)
    assert not journal.started("backup")
    journal.remember("backup", Phase.UNDO, Event.INTENT)
    assert journal.rolling_back
    assert not journal.whole
    assert [r.step for r in Journal(tmp_path / "j").records] == ["stop", "stop"], "no half line stays in the way"
    free = True
    journal.remember("backup", Phase.UNDO, Event.DONE)
    assert journal.whole
    assert Journal(tmp_path / "j").records == journal.records


def test_garbage_in_the_last_line_is_cut_off(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.append("fetch", Phase.APPLY, Event.INTENT)
    with (tmp_path / "j").open("ab") as stream:
        stream.write(b'{"number": 2, "ti\x00\xff')
    assert [r.step for r in Journal(tmp_path / "j").records] == ["fetch"]


def test_a_killed_process_leaves_its_intent(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\n"
        "from kwdb_build.upgrade import failpoint\n"
        "from kwdb_build.upgrade.journal import Event, Journal, Phase\n"
        f"j = Journal(Path({str(tmp_path / 'j')!r}))\n"
        "j.append('switch', Phase.APPLY, Event.INTENT)\n"
        "failpoint.reach('switch', 'before')\n"
        "j.append('switch', Phase.APPLY, Event.DONE)\n"
    )
    environment = os.environ | {"KWDB_BUILD_FAILPOINT": "switch:before"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    journal = Journal(tmp_path / "j")
    assert journal.started("switch")
    assert not journal.done("switch")
