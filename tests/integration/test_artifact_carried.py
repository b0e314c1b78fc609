"""A build that was made elsewhere and imported is what a build of the same reference finds here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kwdb_build.build import archive
from kwdb_build.build.inspection import attestation_of, inspect, require
from kwdb_build.build.signing import Trust
from kwdb_build.build.store import ArtifactStore
from kwdb_build.config import Settings
from kwdb_build.console import Console, Progress
from kwdb_build.model import Artifact, Verdict
from kwdb_build.upgrade.workshop import Workshop
from tests.minikwdb.repositories import MiniRepositories

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]
TOOLCHAIN = Path(__file__).parents[1] / "minikwdb" / "toolchain"


def test_an_imported_build_is_looked_up_by_the_same_key_without_an_engine(
    mini_build: Callable[[str], Artifact], repositories: MiniRepositories, tmp_path: Path
) -> None:
    made = mini_build("V1.0.0")
    rows = inspect(made, Trust())
    require(made, rows)
    assert {row.verdict for row in rows} == {Verdict.OK, Verdict.SKIP}
    assert attestation_of(made).provenance
    file = tmp_path / "carried.tar.zst"
    source = ArtifactStore(made.path.parent)
    archive.export(source, made, file, force=False, progress=Progress())
    source.close()

    home = tmp_path / "home"
    (home / "logs").mkdir(parents=True)
    settings = Settings(home=home, toolchain=str(TOOLCHAIN), docker_host=f"unix://{tmp_path}/no-engine")
    workshop = Workshop(settings, Console(), home / "logs")
    archive.import_archive(workshop.store, file, trust=Trust(), foreign=False, progress=Progress())
    prefix, replacement = repositories.redirect
    tree = workshop.fetch("V1.0.0", url=str(repositories.main), redirects=(f"{prefix}={replacement}",))
    found = workshop.build(tree)
    assert found.key == made.key
    assert found.files == made.files
    assert found.path.is_relative_to(home)
    workshop.store.close()
