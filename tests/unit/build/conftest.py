"""A store with one build in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kwdb_build.build.store import ArtifactStore
from kwdb_build.model import Artifact
from tests.unit.build.artifactbox import add_build
from tests.unit.build.disks import Mount, mounting


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ArtifactStore]:
    """An empty store."""
    made = ArtifactStore(tmp_path / "store")
    yield made
    made.close()


@pytest.fixture
def artifact(store: ArtifactStore, tmp_path: Path) -> Artifact:
    """A build in it, with provenance and bill of materials."""
    return add_build(store, tmp_path)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mounts small file systems."""
    with mounting(tmp_path) as made:
        yield made
