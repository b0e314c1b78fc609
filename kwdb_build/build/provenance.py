"""How a build came to be: an in-toto Statement (v1) with SLSA provenance (v1), and its check against the files.

https://github.com/in-toto/attestation (spec/v1), https://slsa.dev/spec/v1.0/provenance. Everything that decides bytes
is in buildDefinition; who built it, when and where is in runDetails. The build's key and digests depend on neither.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kwdb_build import __version__
from kwdb_build.build import sbom
from kwdb_build.build.components import git_uri
from kwdb_build.build.store import PROVENANCE, SBOM
from kwdb_build.source.reference import redact

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kwdb_build.engine.base import EngineInfo
    from kwdb_build.model import Artifact, BuildKey, BuildOptions, FileRecord, SourceTree, Toolchain
    from kwdb_build.toolchain.given_base import GivenBase

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:kwdb-build:source-build:1"
MEDIA_TYPE = "application/vnd.in-toto+json"


class _Strict(BaseModel):
    """The specifications let consumers ignore unknown fields; ours are all known, so anything else is a fault."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Descriptor(_Strict):
    """in-toto ResourceDescriptor, the fields that we use; at least one of name, uri and digest is there."""

    name: str = ""
    uri: str = ""
    digest: dict[str, str] = Field(default_factory=dict)
    media_type: str = Field("", alias="mediaType")
    annotations: dict[str, Any] = Field(default_factory=dict)


class BuildDefinition(_Strict):
    """SLSA: what was asked for, and everything that went in."""

    build_type: Literal["urn:kwdb-build:source-build:1"] = Field(alias="buildType")
    external_parameters: dict[str, Any] = Field(alias="externalParameters")
    internal_parameters: dict[str, Any] = Field(alias="internalParameters")
    resolved_dependencies: tuple[Descriptor, ...] = Field(alias="resolvedDependencies")


class Builder(_Strict):
    """Who built: a type of builder and its versions."""

    id: str
    version: dict[str, str]


class Metadata(_Strict):
    """When; RFC 3339."""

    invocation_id: str = Field(alias="invocationId")
    started_on: datetime = Field(alias="startedOn")
    finished_on: datetime = Field(alias="finishedOn")


class RunDetails(_Strict):
    """SLSA: this one run."""

    builder: Builder
    metadata: Metadata
    byproducts: tuple[Descriptor, ...] = ()


class Predicate(_Strict):
    """SLSA provenance v1."""

    build_definition: BuildDefinition = Field(alias="buildDefinition")
    run_details: RunDetails = Field(alias="runDetails")


class Statement(_Strict):
    """in-toto Statement v1."""

    type: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: tuple[Descriptor, ...] = Field(min_length=1)
    predicate_type: Literal["https://slsa.dev/provenance/v1"] = Field(alias="predicateType")
    predicate: Predicate


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """One run of a build: a name of its own, when (unix seconds), in which engine and image, made from which base."""

    id: str
    began: float
    ended: float
    engine: EngineInfo
    image: str
    base: GivenBase | None = None


def documents(
    key: BuildKey, tree: SourceTree, toolchain: Toolchain, options: BuildOptions, files: Sequence[FileRecord],
    invocation: Invocation, *, bill: bytes,
) -> dict[str, bytes]:
    """The two documents that lie beside a build: name -> content. bill: what sbom_of() gave."""
    statement = provenance_of(key, tree, toolchain, options, files, invocation, bill=bill)
    return {SBOM: bill, PROVENANCE: (json.dumps(statement, indent=1, ensure_ascii=False) + "\n").encode()}


def provenance_of(
    key: BuildKey, tree: SourceTree, toolchain: Toolchain, options: BuildOptions, files: Sequence[FileRecord],
    invocation: Invocation, *, bill: bytes,
) -> dict[str, Any]:
    """The statement as plain JSON; pure."""
    engine = invocation.engine
    return {
        "_type": STATEMENT_TYPE,
        "subject": subjects_of(files),
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "source": {"uri": git_uri(redact(tree.url)), "ref": tree.ref}, "version": tree.version.text,
                    "toolchain": toolchain.name, "buildType": options.build_type,
                    "makeVariables": dict(options.make_variables),
                    "cmakeVariables": dict(options.cmake_variables),
                },
                "internalParameters": {
                    "buildKey": key.digest, "keyInputs": key.inputs, "sourceDateEpoch": tree.commit_time,
                },
                "resolvedDependencies": [
                    *_sources(tree), *_tools(toolchain, invocation.base),
                    {"name": "build image", "uri": sbom.image_purl(toolchain), **_image_digest(invocation.image)},
                ],
            },
            "runDetails": {
                "builder": {
                    "id": f"urn:kwdb-build:builder:{engine.kind}",
                    "version": {"kwdb-build": __version__, engine.kind: engine.version},
                },
                "metadata": {
                    "invocationId": invocation.id, "startedOn": _moment(invocation.began),
                    "finishedOn": _moment(invocation.ended),
                },
                "byproducts": [
                    {"name": SBOM, "mediaType": sbom.MEDIA_TYPE, "digest": {"sha256": hashlib.sha256(bill).hexdigest()}}
                ],
            },
        },
    }


def subjects_of(files: Sequence[FileRecord]) -> list[dict[str, Any]]:
    """One subject for each installed file; a symlink has the digest of its target's text, as in the manifest."""
    return [
        {
            "name": entry.path, "digest": {"sha256": entry.sha256},
            "annotations": {"link": entry.link} if entry.link else {"mode": f"{entry.mode:04o}"},
        }
        for entry in files
    ]


def _sources(tree: SourceTree) -> list[dict[str, Any]]:
    source = _pinned("source", tree.url, tree.commit)
    if tree.content:
        source["digest"] = {"sha256": tree.content} | source["digest"]
    notes = {
        "origin": tree.origin, "changed": list(tree.changed), "submodules": tree.submodule_mode,
        "signature": tree.signature,
    }
    return [
        source | {"annotations": {name: value for name, value in notes.items() if value}},
        *(_pinned(f"submodule {module.path}", module.url, module.commit) for module in tree.submodules),
        *(
            {"name": f"patch {patch.name}", "digest": {"sha256": patch.sha256},
             "annotations": {"number": number, "directory": patch.directory, "strip": patch.strip}}
            for number, patch in enumerate(tree.patches, start=1)
        ),
    ]


def _pinned(name: str, url: str, commit: str) -> dict[str, Any]:
    """A descriptor of a commit, or of the digest of files that have none."""
    algorithm, _, digest = commit.rpartition(":")
    if algorithm == "sha256":
        return {"name": name, "uri": git_uri(redact(url)), "digest": {"sha256": digest}}
    return {"name": name, "uri": f"{git_uri(redact(url))}@{commit}", "digest": {"gitCommit": commit}}


def _tools(toolchain: Toolchain, base: GivenBase | None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{
        "name": f"toolchain {toolchain.name}", "digest": {"sha256": toolchain.lock_digest},
        "annotations": {"distribution": toolchain.distribution, "release": toolchain.release,
                        "architecture": toolchain.architecture},
    }]
    if base is not None:
        said = {"annotations": {"digestOf": base.digest_of}} if base.digest else {}
        found.append({"name": "base image", "uri": redact(base.uri), **_image_digest(base.digest), **said})
    found += [
        {"name": entry.name, "uri": sbom.debian_purl(entry, toolchain).to_string(), "digest": {"sha256": entry.sha256}}
        for entry in toolchain.debian
    ]
    return found + [
        {"name": wheel.name, "uri": sbom.wheel_purl(wheel).to_string(), "digest": {"sha256": wheel.sha256[0]}}
        for wheel in toolchain.wheels if wheel.sha256
    ]


def _image_digest(image: str) -> dict[str, Any]:
    algorithm, _, digest = image.partition(":")
    return {"digest": {"sha256": digest}} if algorithm == "sha256" else {}


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(int(seconds), tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse(document: bytes) -> Statement:
    """Read a statement; ValueError with every fault in words when it is none of ours."""
    try:
        return Statement.model_validate_json(document)
    except ValidationError as error:
        faults = [f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors()]
        raise ValueError("; ".join(faults[:8])) from error


def disagreements(statement: Statement, artifact: Artifact, bill: bytes | None) -> list[str]:
    """Where a statement says something else than the manifest and the SBOM beside it; none: they agree. Pure."""
    said = {one.name: (one.digest.get("sha256", ""), one.annotations) for one in statement.subject}
    wanted = {one["name"]: (one["digest"]["sha256"], one["annotations"]) for one in subjects_of(artifact.files)}
    found = [f"{name}: in the provenance, not among the files" for name in sorted(said.keys() - wanted.keys())]
    found += [f"{name}: not in the provenance" for name in sorted(wanted.keys() - said.keys())]
    for name in sorted(wanted.keys() & said.keys()):
        if wanted[name][0] != said[name][0]:
            found.append(f"{name}: sha256 {wanted[name][0][:16]}, the provenance says {said[name][0][:16]}")
        elif wanted[name][1] != said[name][1]:
            found.append(f"{name}: {wanted[name][1]}, the provenance says {said[name][1]}")
    definition = statement.predicate.build_definition
    inner = definition.internal_parameters
    if inner.get("buildKey") != artifact.key.digest or inner.get("keyInputs") != artifact.key.inputs:
        found.append(f"{PROVENANCE}: it is about another build, key {str(inner.get('buildKey'))[:16]}")
    else:
        try:
            found += _other_inputs(definition, artifact.key.inputs)
        except (TypeError, ValueError, AttributeError) as error:
            found.append(f"the inputs of its key are not readable: {error}")
    listed = {one.name: one.digest.get("sha256") for one in statement.predicate.run_details.byproducts}
    if bill is None:
        found += [f"{SBOM}: missing, the provenance names it"] if SBOM in listed else []
    elif listed.get(SBOM) != hashlib.sha256(bill).hexdigest():
        found.append(f"{SBOM}: content changed, the provenance has another sha256")
    return found


def _other_inputs(definition: BuildDefinition, inputs: dict[str, Any]) -> list[str]:
    """Where the parts that people and scanners read say something else than the inputs of the key."""
    source, toolchain, options = (inputs.get(name, {}) for name in ("source", "toolchain", "options"))
    wanted = {
        "source": source.get("commit"), f"toolchain {toolchain.get('name')}": toolchain.get("lock"),
        **{f"submodule {path}": commit for path, commit in source.get("submodules", ())},
    }
    listed = {one.name: tuple(one.digest.values()) for one in definition.resolved_dependencies}
    found = [
        f"{PROVENANCE}: {name} is {', '.join(listed.get(name, ())) or 'not named'}, the key was made of {digest}"
        for name, digest in wanted.items()
        if digest is not None and digest.rpartition(":")[2] not in listed.get(name, ())
    ]
    patches = [one.digest.get("sha256") for one in definition.resolved_dependencies if one.name.startswith("patch ")]
    if patches != [digest for *_, digest in source.get("patches", ())]:
        found.append(f"{PROVENANCE}: its patches are not those of the key")
    asked = {
        "version": inputs.get("version"), "toolchain": toolchain.get("name"), "buildType": options.get("build_type"),
        "makeVariables": dict(options.get("make_variables", ())),
        "cmakeVariables": dict(options.get("cmake_variables", ())),
    }
    said = definition.external_parameters
    return found + [
        f"{PROVENANCE}: {name} is {said.get(name)!r}, the key was made of {value!r}"
        for name, value in asked.items() if value is not None and said.get(name) != value
    ]
