"""A captured deployment on disk (0600: its environment may hold secrets)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kwdb_build import files
from kwdb_build.errors import UsageError
from kwdb_build.model import Address, Capabilities, Deployment, StartCommand, Store, Version, to_json

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT = 1


def save(deployment: Deployment, path: Path, *, besides: Mapping[str, Any] | None = None) -> None:
    """Write atomically, readable by the owner only. Bytes that are no UTF-8 survive as JSON escapes.

    besides: further members of the document, which load() passes over.
    """
    document = {"format": FORMAT, **(besides or {}), "deployment": to_json(deployment)}
    files.write_atomic(path, json.dumps(document, indent=2, ensure_ascii=True) + "\n", mode=files.PRIVATE)


def load(path: Path) -> Deployment:
    """Read what save() wrote. UsageError when it is something else."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise UsageError(f"{path} was written in format {document['format']}, this version reads {FORMAT}")
        return _deployment(document["deployment"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"cannot read the captured deployment {path}", context=repr(error)) from error


def _deployment(data: dict[str, Any]) -> Deployment:
    version = data["version"]
    return Deployment(**data | {
        "start": _start(data["start"]),
        "stores": tuple(
            Store(path=Path(one["path"]), kind=one["kind"], targets=tuple(map(Path, one["targets"])))
            for one in data["stores"]
        ),
        "sql": Address(**data["sql"]),
        "http": Address(**data["http"]) if data["http"] else None,
        "certs_dir": Path(data["certs_dir"]) if data["certs_dir"] else None,
        "libraries": {name: Path(path) for name, path in data["libraries"].items()},
        "version": Version(**version | {"release": tuple(version["release"])}),
    })


def _start(data: dict[str, Any]) -> StartCommand:
    newer: dict[str, Any] = {
        name: tuple(data[name]) for name in ("ionice", "scheduling", "affinity", "cgroup") if name in data
    }
    return StartCommand(**data | newer | {
        "argv": tuple(data["argv"]), "cwd": Path(data["cwd"]), "executable": Path(data["executable"]),
        "groups": tuple(data["groups"]),
        "limits": {name: (soft, hard) for name, (soft, hard) in data["limits"].items()},
        "capabilities": Capabilities(**data["capabilities"]) if data.get("capabilities") else None,
    })
