"""Backup and restore of a real miniature server's store, between real starts and stops."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kwdb_build.data import backup, manifest, restore, stores
from kwdb_build.errors import BackupError
from kwdb_build.model import Store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.minikwdb.instance import Instance

pytestmark = pytest.mark.engine


def test_precopy_while_it_writes_backup_after_the_stop_and_a_restored_copy_that_has_every_row(
    make_server: Callable[..., Instance], tmp_path: Path
) -> None:
    server = make_server("V1.0.0")
    store = stores.with_targets(Store(path=server.store))
    assert stores.looks_like_store(server.store)
    backup.precopy((store,), tmp_path / "backup")
    with pytest.raises(BackupError, match="still uses the store") as caught:
        backup.backup((store,), tmp_path / "backup")
    assert str(server.pid()) in caught.value.context
    with server.connect() as connection:
        connection.execute("INSERT INTO plant.sensor VALUES ('2026-11-02 00:00:00+00:00', 1, 1, 77, 'new device')")
        connection.execute("INSERT INTO shop.orders VALUES (5000, 'late', 1)")
    server.stop()
    made = backup.backup((store,), tmp_path / "backup")
    backup.check(made)
    assert restore.compare(made.path) == ()

    server.start()
    with server.connect() as connection:
        connection.execute("DELETE FROM shop.orders WHERE id < 500")
        connection.execute("INSERT INTO plant.sensor VALUES ('2026-11-03 00:00:00+00:00', 1, 1, 99, 'newer')")
        connection.execute("DROP DATABASE IF EXISTS nothing CASCADE")
    server.stop()
    assert restore.compare(made.path) != ()
    result = restore.restore(made.path, set_aside=tmp_path / "aside")
    assert result.files_restored > 0
    assert result.not_set_aside == ()
    assert restore.compare(made.path) == ()
    server.start()
    assert server.counts() == (1001, 2001)


def test_a_restore_undoes_what_a_newer_version_did_to_the_store(
    make_server: Callable[..., Instance], mini_build: Callable[[str], object], tmp_path: Path
) -> None:
    server = make_server("V1.0.0")
    server.stop()
    made = backup.backup((Store(path=server.store),), tmp_path / "backup")
    server.install(mini_build("V1.1.0").path)  # type: ignore[attr-defined]
    server.start()
    with server.connect() as connection:
        connection.execute("INSERT INTO plant.sensor VALUES ('2026-11-03 00:00:00+00:00', 1, 1, 99, 'newer')")
    server.stop()
    assert restore.compare(manifest.load(made.path).path) != ()
    restore.restore(made.path, set_aside=tmp_path / "aside")
    server.install(mini_build("V1.0.0").path)  # type: ignore[attr-defined]
    server.start()
    assert server.counts() == (1000, 2000)
