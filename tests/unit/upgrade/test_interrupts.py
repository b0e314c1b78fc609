"""What Ctrl-C does, once and twice."""

from __future__ import annotations

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kwdb_build.console import Console
from kwdb_build.errors import InterruptedByUserError, StartError
from kwdb_build.server import locks
from kwdb_build.upgrade import restart
from kwdb_build.upgrade.interrupts import Interrupts, SecondInterruptError


def test_twice_before_anything_was_changed_ends_in_words() -> None:
    def cut_off() -> None:
        with Interrupts(Console()):
            try:
                signal.raise_signal(signal.SIGINT)
            finally:
                signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(InterruptedByUserError, match="second SIGTERM") as caught:
        cut_off()
    assert "doctor" in caught.value.hint
    assert signal.getsignal(signal.SIGINT) is before


def test_twice_in_the_middle_is_for_the_journal() -> None:
    with Interrupts(Console()) as interrupts:
        interrupts.immediate = False
        signal.raise_signal(signal.SIGINT)
        assert interrupts.asked
        with pytest.raises(SecondInterruptError):
            signal.raise_signal(signal.SIGINT)


def test_a_restart_on_a_lost_disk_ends_with_its_own_error_and_the_command(tmp_path: Path) -> None:
    (tmp_path / locks.LOCK_NAME).symlink_to(locks.LOCK_NAME)  # cannot be opened, not even by root
    deployment: Any = SimpleNamespace(pid=1, stores=[SimpleNamespace(path=tmp_path)])
    interrupts = Interrupts(Console())
    interrupts.immediate = False
    first = StartError("the first error")
    with (
        pytest.raises(StartError, match="the first error") as caught,
        restart._way_out(tmp_path / "capture.json", deployment, interrupts),
    ):
        raise first
    assert "it cannot be told who has the store open" in caught.value.hint
    assert f"restart --capture {tmp_path}/capture.json" in caught.value.hint
