"""An image carried from an engine by a file, and back into one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kwdb_build.errors import EngineError
from tests.integration.enginebox import shell, tiny_image

if TYPE_CHECKING:
    from kwdb_build.engine.docker import DockerEngine

pytestmark = pytest.mark.engine


def test_there_and_back(engine: DockerEngine, tmp_path: Path) -> None:
    carried = tmp_path / "image.tar"
    with tiny_image(engine, tmp_path) as tag:
        saved = engine.export_image(tag, carried)
        assert (saved.tag, saved.identity) == (tag, engine.image_id(tag))
        assert engine.load_image(carried) == saved, "it is there already"
        engine.remove_image(tag)
        assert engine.image_id(tag) is None
        assert engine.load_image(carried) == saved
        lines: list[str] = []
        engine.run(shell(tag, "echo carried"), on_line=lines.append, log=tmp_path / "log")
        assert lines == ["carried"]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["image.tar", "log", "tiny.tar"]


def test_a_changed_file_is_refused_before_the_engine_sees_it(engine: DockerEngine, tmp_path: Path) -> None:
    carried = tmp_path / "image.tar"
    with tiny_image(engine, tmp_path) as tag:
        engine.export_image(tag, carried)
    content = bytearray(carried.read_bytes())
    place = content.index(b"\x7fELF")  # in a program of the layer
    content[place + 100] ^= 1
    carried.write_bytes(content)
    with pytest.raises(EngineError, match="no whole image archive"):
        engine.load_image(carried)
    assert engine.image_id(tag) is None


def test_nothing_to_export(engine: DockerEngine, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no such image"):
        engine.export_image("kwdb-build-test/none:none", tmp_path / "image.tar")
    assert list(tmp_path.iterdir()) == []
