"""Which stored builds and fetched sources the runs still need: not to be pruned, whatever was asked for."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from kwdb_build.data.replace import RECORD, load
from kwdb_build.errors import KwdbBuildError
from kwdb_build.files import load_json, read_json
from kwdb_build.model import Artifact
from kwdb_build.upgrade.result import load_result
from kwdb_build.upgrade.rundir import RunDirectory
from kwdb_build.upgrade.session import is_open

if TYPE_CHECKING:
    from collections.abc import Sequence


def needed_builds(home: Path, artifacts: Sequence[Artifact]) -> dict[str, str]:
    """Key -> why. The build of every run that can be resumed, and the new and the old one of the last upgrade.

    The old build is the stored one whose kwbase is byte for byte what the upgrade replaced. A run whose state cannot be
    read counts as one that can be resumed, and as an upgrade: a damaged file is no leave to remove what it may need.
    """
    needed: dict[str, str] = {}
    last: RunDirectory | None = None
    for run in RunDirectory.all(home):
        try:
            why = f"run {run.id} can be resumed with it" if is_open(run) else ""
            result = load_result(run)
            upgraded = result is not None and result.outcome in {"upgraded", "rolled-back"}
        except (OSError, ValueError, KwdbBuildError):
            why, upgraded = f"run {run.id} cannot be read, and may need it", True
        if why and (key := _key(run)):
            needed[key] = why
        if upgraded:
            last = run
    if last is not None:
        if key := _key(last):
            needed.setdefault(key, f"new version of run {last.id}, the last one")
        replaced = _replaced_kwbase(last)
        for artifact in artifacts:
            if any(entry.path == "bin/kwbase" and entry.sha256 in replaced for entry in artifact.files):
                needed.setdefault(artifact.key.digest, f"old version of run {last.id}, the last one")
    return needed


def _key(run: RunDirectory) -> str:
    try:
        return load_json(Artifact, run.artifact).key.digest
    except (OSError, ValueError):
        return ""


def _replaced_kwbase(run: RunDirectory) -> set[str]:
    if not (run.replaced / RECORD).exists():
        return set()
    try:
        return {item.old for item in load(run.replaced).files if item.source.name == "kwbase"}
    except KwdbBuildError:
        return set()


def needed_sources(home: Path) -> tuple[Path, ...]:
    """Source trees and opened bundles of runs that can be resumed, or whose state cannot be read."""
    found = []
    for run in RunDirectory.all(home):
        try:
            wanted = is_open(run)
        except (OSError, ValueError, KwdbBuildError):
            wanted = True
        if wanted:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                bundle = read_json(run.request)["choice"]["bundle"]
                found += [Path(bundle)] if bundle else []
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                found.append(Path(str(read_json(run.source)["path"])))
    return tuple(found)
