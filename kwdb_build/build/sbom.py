"""CycloneDX bill of materials of a build: the build image's packages, submodules, Go modules, C and C++ libraries.

The same build gives the same bytes on every machine: serial number and time come from the build key and the commit.
The only room that imports cyclonedx-python-lib, lazily.
"""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from kwdb_build import __version__
from kwdb_build.build import components as parts
from kwdb_build.source.reference import redact

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cyclonedx.model import Property
    from cyclonedx.model.component import Component
    from cyclonedx.model.license import License
    from cyclonedx.validation.json import JsonStrictValidator
    from packageurl import PackageURL

    from kwdb_build.model import BuildKey, DebianPackage, SourceTree, Submodule, Toolchain, Wheel
    from kwdb_build.toolchain.given_base import GivenBase

MEDIA_TYPE = "application/vnd.cyclonedx+json"
SPEC_VERSION = "1.6"
_NAMESPACE = uuid.UUID("6b2a1f0e-6a52-5d0e-9c0e-5b1d8f0c7a11")
"""Of our own: serial numbers are uuid5 of the build key in it."""
_BASE_REF = "base-image"
_HOSTS = {"github.com": "github", "bitbucket.org": "bitbucket"}


def sbom_of(key: BuildKey, tree: SourceTree, toolchain: Toolchain, base: GivenBase | None = None) -> bytes:
    """The document, UTF-8 JSON. base: what is known of the image that the toolchain's own was made from."""
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6

    root = Component(
        name="kwdb", type=ComponentType.APPLICATION, version=tree.version.text, bom_ref=f"kwdb@{key.digest}",
        purl=_source_purl("kwdb", tree.url, tree.commit, version=tree.version.text),
        licenses=_licences(parts.licence_of(tree.path)),
        properties=_properties({"commit": tree.commit, "build-key": key.digest}),
    )
    bom = Bom(
        serial_number=uuid.uuid5(_NAMESPACE, key.digest),
        metadata=BomMetaData(
            component=root, timestamp=datetime.fromtimestamp(tree.commit_time, tz=UTC),
        ),
    )
    bom.metadata.tools.components.add(
        Component(name="kwdb-build", type=ComponentType.APPLICATION, version=__version__)
    )
    pinned = {module.path: _submodule(module, tree) for module in tree.submodules}
    inside: dict[str, list[Component]] = {path: [] for path in pinned}
    for found in parts.components(tree):
        inside[found.within].append(_part(found, _commit_of(tree, found.within)))
    system = [*(_package(entry, toolchain) for entry in toolchain.debian), *map(_wheel, toolchain.wheels)]
    beneath = [_package(entry, toolchain, base=True) for entry in base.packages or ()] if base else []
    given = [_base(base)] if base else []
    for component in (
        *pinned.values(), *(one for many in inside.values() for one in many), *system, *given, *beneath,
    ):
        bom.components.add(component)
    bom.register_dependency(root, [*pinned.values(), *system, *given])
    for component in given:
        bom.register_dependency(component, beneath)
    for path, component in pinned.items():
        bom.register_dependency(component, inside[path])
    text: str = JsonV1Dot6(bom).output_as_string(indent=1)
    if base is not None:
        # The library has no compositions yet. With the packages known there may still be files of none of them.
        aggregate = "incomplete" if base.packages is None else "unknown"
        document = json.loads(text) | {"compositions": [{"aggregate": aggregate, "dependencies": [_BASE_REF]}]}
        text = json.dumps(document, indent=1)
    return (text + "\n").encode()


def problems_of(document: bytes) -> list[str]:
    """What the published JSON schema of CycloneDX (strict form) objects to; none: valid."""
    try:
        text = document.decode()
        data = json.loads(text)
        found = _validator().validate_str(text)
    except (ValueError, RecursionError) as error:
        return [f"no JSON: {error}"]
    said = data.get("specVersion") if isinstance(data, dict) else None
    if said != SPEC_VERSION:  # the schema takes any text here
        return [f"specVersion: {said!r} instead of {SPEC_VERSION}"]
    return [] if found is None else [_said(found.data)]


@cache
def _validator() -> JsonStrictValidator:
    """Reads the schema once: it is large."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    return JsonStrictValidator(SchemaVersion.V1_6)


def _said(error: object) -> str:
    where = getattr(error, "json_path", "")
    return f"{where}: {getattr(error, 'message', error)}"[:400]


def _commit_of(tree: SourceTree, path: str) -> str:
    return next(module.commit for module in tree.submodules if module.path == path)


def _submodule(module: Submodule, tree: SourceTree) -> Component:
    from cyclonedx.model.component import Component, ComponentType

    name = module.url.rstrip("/").rsplit("/", 1)[-1].removesuffix(".git") or module.path
    return Component(
        name=name, type=ComponentType.LIBRARY, version=module.commit, bom_ref=f"submodule:{module.path}",
        purl=_source_purl(name, module.url, module.commit, version=module.commit),
        licenses=_licences(parts.licence_of(tree.path / module.path)), properties=_properties({"path": module.path}),
    )


def _part(found: parts.Found, pinned: str) -> Component:
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    if found.kind == parts.GO:
        namespace, _, name = found.name.rpartition("/")
        purl = PackageURL(type="golang", namespace=namespace or None, name=name)
    else:
        purl = PackageURL(type="generic", name=found.name.lower(), version=found.version or None)
    notes = [("path", found.place), ("pinned-by", f"{found.within}@{pinned}")]
    notes += [("go-package", path) for path in found.packages]
    return Component(
        name=found.name, type=ComponentType.LIBRARY, version=found.version or None, bom_ref=f"source:{found.place}",
        purl=purl, licenses=_licences(found.licence), properties=_pairs(notes),
    )


def _base(base: GivenBase) -> Component:
    from cyclonedx.model.component import Component, ComponentType

    notes = {"role": "base image", "origin": redact(base.uri)} | ({"digest-of": base.digest_of} if base.digest else {})
    return Component(
        name=base.name, type=ComponentType.CONTAINER, version=base.digest or None, bom_ref=_BASE_REF,
        properties=_properties(notes),
    )


def _package(entry: DebianPackage, toolchain: Toolchain, *, base: bool = False) -> Component:
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType

    return Component(
        name=entry.name, type=ComponentType.LIBRARY, version=entry.version,
        bom_ref=f"{_BASE_REF}:deb:{entry.name}:{entry.architecture}" if base else f"deb:{entry.name}",
        purl=debian_purl(entry, toolchain),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=entry.sha256)] if entry.sha256 else [],
        properties=_properties({"role": "base image" if base else "build image"}),
    )


def debian_purl(entry: DebianPackage, toolchain: Toolchain) -> PackageURL:
    """The package URL of a locked package."""
    from packageurl import PackageURL

    return PackageURL(
        type="deb", namespace=toolchain.distribution, name=entry.name, version=entry.version,
        qualifiers={"arch": entry.architecture, "distro": toolchain.release},
    )


def image_purl(toolchain: Toolchain) -> str:
    """The package URL of a toolchain's build image: the name that it has in an engine is no URI."""
    from packageurl import PackageURL

    namespace, _, name = toolchain.image_tag.rpartition(":")[0].rpartition("/")
    tag = toolchain.image_tag.rpartition(":")[2]
    return PackageURL(type="docker", namespace=namespace, name=name, version=tag).to_string()


def wheel_purl(wheel: Wheel) -> PackageURL:
    """The package URL of a locked wheel."""
    from packageurl import PackageURL

    return PackageURL(type="pypi", name=wheel.name, version=wheel.version)


def _wheel(wheel: Wheel) -> Component:
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType

    hashes = [HashType(alg=HashAlgorithm.SHA_256, content=digest) for digest in wheel.sha256]
    return Component(
        name=wheel.name, type=ComponentType.APPLICATION, version=wheel.version, bom_ref=f"pypi:{wheel.name}",
        purl=wheel_purl(wheel), hashes=hashes[:1], properties=_properties({"role": "build image"}),
    )


def _source_purl(name: str, url: str, commit: str, *, version: str) -> PackageURL:
    from packageurl import PackageURL

    address = urlsplit(url)
    path = address.path.strip("/").removesuffix(".git")
    if address.hostname in _HOSTS and path.count("/") == 1:
        owner, _, repository = path.partition("/")
        return PackageURL(type=_HOSTS[address.hostname], namespace=owner, name=repository, version=commit)
    origin = f"{parts.git_uri(redact(url))}@{commit}"
    return PackageURL(type="generic", name=name, version=version, qualifiers={"vcs_url": origin})


def _licences(spdx: str) -> list[License]:
    from cyclonedx.contrib.license.factories import LicenseFactory

    return [LicenseFactory().make_from_string(spdx)] if spdx else []


def _properties(values: dict[str, str]) -> list[Property]:
    return _pairs(list(values.items()))


def _pairs(pairs: Iterable[tuple[str, str]]) -> list[Property]:
    from cyclonedx.model import Property

    return [Property(name=f"kwdb-build:{name}", value=value) for name, value in pairs]
