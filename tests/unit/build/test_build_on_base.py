"""A build in an image that was made from one that the user gave."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kwdb_build.build.runner import build
from kwdb_build.build.store import PROVENANCE, SBOM, ArtifactStore
from kwdb_build.engine.base import RunResult, RunSpec
from kwdb_build.model import BuildOptions, SourceTree
from kwdb_build.source.inspect import read_tree
from tests.unit.build.test_build_runner import TOOLCHAIN, Notes, StandIn, complete


class Lists(StandIn):
    """Builds well, and answers this when it is asked for its packages."""

    answers: RunResult

    def run(self, spec: RunSpec, *, on_line: Callable[[str], None], log: Path) -> RunResult:
        if spec.argv[0] != "dpkg-query":
            return super().run(spec, on_line=on_line, log=log)
        on_line("ii \tlibc6\t2.36-9\tamd64")
        return self.answers


def repository(path: Path) -> SourceTree:
    path.mkdir(parents=True)
    (path / "Makefile").write_text("all:\n")
    for words in ("init -q", "add .", "-c user.name=a -c user.email=a@example.invalid commit -qm x", "tag V1.0.0"):
        subprocess.run(["git", *words.split()], cwd=path, check=True)
    return read_tree(path, url="file:///x", ref="V1.0.0")


@pytest.mark.parametrize("listed", [True, False])
def test_a_build_on_a_given_base_image_names_it(tmp_path: Path, listed: bool) -> None:
    tree, notes = repository(tmp_path / "gopath/src/gitee.com/kwbasedb"), Notes()
    engine = Lists(install=complete())
    engine.answers = RunResult(returncode=0 if listed else 1)
    artifact = build(
        tree, toolchain=dataclasses.replace(TOOLCHAIN, base_image="debian:bookworm"),
        image="t:1", options=BuildOptions(jobs=2), engine=engine, store=ArtifactStore(tmp_path / "store"),
        work_dir=tmp_path / "work", log=tmp_path / "build.log", progress=notes,
    )
    bill = json.loads((artifact.path / SBOM).read_bytes())
    names = {one["name"] for one in bill["components"]}
    assert "debian:bookworm" in names
    assert ("libc6" in names) is listed
    assert bill["compositions"][0]["aggregate"] == ("unknown" if listed else "incomplete")
    assert any("cannot be listed" in note for note in notes.notes) is not listed
    said = json.loads((artifact.path / PROVENANCE).read_bytes())
    inputs = {one["name"]: one for one in said["predicate"]["buildDefinition"]["resolvedDependencies"]}
    assert inputs["base image"]["digest"] == {"sha256": "debian:bookworm"}, "what the engine calls it"
    assert inputs["base image"]["uri"] == "docker://debian:bookworm"
