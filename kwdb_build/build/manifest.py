"""What a stored build's manifest.json says, read strictly: it may come from another machine, or from somebody else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kwdb_build.errors import ArtifactError
from kwdb_build.model import Artifact, BuildKey, FileRecord, Version

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = 1
_TEXTS = {"source": ("commit",), "toolchain": ("name", "architecture", "lock"), "options": ("build_type",)}
"""Of a key's inputs: what readers look into."""
_LATEST_S = 1 << 33
"""No archive holds a later time."""


def parse_manifest(data: Any, directory: Path) -> Artifact:
    """A manifest's content as the build that lies in directory; ArtifactError when it makes no sense.

    Version and commit have to be those of the key's inputs: provenance and signature cover the inputs, not these two.
    """
    try:
        key = BuildKey.of(_inputs(data["inputs"]))
        artifact = Artifact(
            key=key,
            path=directory,
            version=Version.parse(data["version"]),
            commit=_text(data["commit"]),
            files=tuple(_record(entry) for entry in data["files"]),
            built_s=float(data["built_s"]),
        )
        _check_details(data.get("details", {}))
        said, form = data.get("key"), data.get("format")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"the stored build in {directory} has no readable manifest", context=f"{type(error).__name__}: {error}",
            hint="remove that directory and build again",
        ) from error
    others = {
        "key": (said, key.digest), "format": (form, FORMAT),
        "version": (artifact.version.text, key.inputs.get("version", artifact.version.text)),
        "commit": (artifact.commit, key.inputs.get("source", {}).get("commit", artifact.commit)),
    }
    if wrong := [f"its {name} is {has!r}, not {wanted!r}" for name, (has, wanted) in others.items() if has != wanted]:
        raise ArtifactError(
            f"the manifest in {directory} belongs to another build", context="; ".join(wrong),
            hint="remove that directory and build again",
        )
    return artifact


def _text(data: Any) -> str:
    if not isinstance(data, str):
        msg = f"no text: {data!r}"
        raise TypeError(msg)
    return data


def _inputs(data: Any) -> dict[str, Any]:
    """The inputs of a key; TypeError when a part that readers look into is of another kind."""
    if not isinstance(data, dict) or not all(isinstance(data.get(name, {}), dict) for name in _TEXTS):
        msg = "the inputs of its key are no objects"
        raise TypeError(msg)
    for part, names in _TEXTS.items():
        for name in names:
            _text(data.get(part, {}).get(name, ""))
    return data


def _record(entry: Any) -> FileRecord:
    record = FileRecord(**entry)
    for word in (record.path, record.sha256, record.link):
        _text(word)
    if type(record.mode) is not int or type(record.size) is not int:
        msg = f"no numbers: {entry!r}"
        raise TypeError(msg)
    return record


def _check_details(details: Any) -> None:
    moment = details.get("source_time", 0)
    if type(moment) is not int or not 0 <= moment < _LATEST_S:
        msg = f"no time of a source: {moment!r}"
        raise ValueError(msg)
