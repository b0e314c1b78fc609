"""What the check tells of the server before anything stops."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kwdb_build.host import machine
from kwdb_build.model import Store
from kwdb_build.upgrade.steps.prepare import Check


class Notes:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str, *, style: str = "") -> None:
        self.lines.append(text)

    def update(self, text: str) -> None:
        self.lines.append(text)


def test_a_store_on_a_network_and_a_broken_certificate_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "file_system", lambda place: {"local": "ext4", "far": "nfs4"}[place.name])
    (tmp_path / "node.crt").write_text("nothing")
    saved: list[Any] = []
    context: Any = SimpleNamespace(
        workshop=SimpleNamespace(look_up=lambda _: object()), tree=object(), console=Notes(),
        run=SimpleNamespace(save=lambda path, rows: saved.append(rows), checks=tmp_path / "checks.json"),
        deployment=SimpleNamespace(
            stores=(Store(path=tmp_path / "local", targets=(tmp_path / "far",)),), certs_dir=tmp_path
        ),
    )
    assert Check().apply(context) == {"skipped": "stored build"}
    told = "\n".join(context.console.lines)
    assert f"warn: file system of the store {tmp_path}/far" in told
    assert "a network file system" in told
    assert f"{tmp_path}/local" not in told
    assert "unknown: certificate node.crt" in told
    assert saved == [[]]
