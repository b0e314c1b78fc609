"""One at a time, and the other one is named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kwdb_build.errors import LockedError
from kwdb_build.upgrade.lock import hold_home, hold_stores

HOLD = (
    "import sys; from pathlib import Path; from kwdb_build.upgrade.lock import hold_home, hold_stores\n"
    "with hold_home(Path(sys.argv[1]), 'upgrade to V9'), hold_stores((Path(sys.argv[2]),)):\n"
    "    print('held', flush=True); sys.stdin.read()\n"
)


def test_the_holder_is_named_and_the_lock_ends_with_it(tmp_path: Path) -> None:
    home, store = tmp_path / "home", tmp_path / "store"
    store.mkdir()
    holder = subprocess.Popen([sys.executable, "-c", HOLD, home, store], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(LockedError) as caught, hold_home(home, "mine"):
            pass
        assert f"pid {holder.pid}" in caught.value.context
        assert "upgrade to V9" in caught.value.context
        with pytest.raises(LockedError, match="store") as caught, hold_stores((store,)):
            pass
        assert f"pid {holder.pid}" in caught.value.context
    finally:
        holder.kill()
        holder.communicate()
    with hold_home(home, "mine"), hold_stores((store,)):
        assert f'"pid": {os.getpid()}' in (home / "upgrade.lock.json").read_text(encoding="utf-8")
    assert not list(store.iterdir()), "the lock writes nothing into a store"
