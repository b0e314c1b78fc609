"""Building a second time, under other conditions, to see that the same bytes come out."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kwdb_build.build import conditions
from kwdb_build.build.difference import Marks, compare, diffoscope
from kwdb_build.build.runner import build_identity
from kwdb_build.errors import NotReproducibleError
from kwdb_build.files import require_space

if TYPE_CHECKING:
    from pathlib import Path

    from kwdb_build.build.difference import Difference
    from kwdb_build.build.runner import Bench
    from kwdb_build.model import Artifact

_SAID = 12
_DAY_S = 86_400


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a second build showed: how many files were compared, what was changed for it, and what differed."""

    files: int
    seconds: float
    changed: tuple[str, ...]
    differences: tuple[Difference, ...] = ()


def verify(artifact: Artifact, bench: Bench, *, began: float) -> Comparison:
    """Build again without caches under other conditions, and compare with the stored build.

    began: about when the stored one was built (unix seconds), 0 when that is not known. Nothing is stored.
    Errors: those of a build; NotReproducibleError names each file, its sections and the likely cause.
    """
    other = conditions.unlike(bench.jobs, as_root=os.geteuid() == 0)
    usual_uid, _ = build_identity()
    bench.tidy()
    require_space(bench.work_dir, bench.recipe.needed_bytes(0), "second build")
    now = time.time()
    with bench.run(other, cold=True) as run:
        run.outcome()
        bench.progress.update("comparing both builds")
        words = [("host name", conditions.USUAL.hostname, other.hostname),
                 ("time zone", "UTC", other.environment["TZ"]), ("user name", "build", other.environment["USER"]),
                 ("locale", "C.UTF-8", other.environment["LANG"])]
        if other.identity:
            words.append(("user id", str(usual_uid), str(other.identity[0])))
        # The working copies are the only paths of this machine; both are mounted at one and the same place.
        words.append(("path of the working copy", str(bench.work_dir), str(run.gopath)))
        differences = compare(
            artifact.path, run.installed, Marks(words=tuple(words), clock=(began, now + conditions.CLOCK_AHEAD_S)),
            ignore=stored_besides(artifact),
        )
        verdict = Comparison(
            files=len(artifact.files), seconds=round(time.time() - now, 1), changed=_changed(bench, other),
            differences=differences,
        )
        if differences:
            raise _error(artifact, verdict, run.installed, bench.log)
    return verdict


def stored_besides(artifact: Artifact) -> frozenset[str]:
    """What the store adds to a build's files (its manifest and the like): all that is not in the manifest."""
    own = {record.path for record in artifact.files}
    return frozenset(
        str(path.relative_to(artifact.path)) for path in artifact.path.rglob("*")
        if path.is_file() and str(path.relative_to(artifact.path)) not in own
    )


def _changed(bench: Bench, other: conditions.Conditions) -> tuple[str, ...]:
    changed = [
        "no caches", "another path on this machine", f"clock {conditions.CLOCK_AHEAD_S // _DAY_S} days ahead",
        f"time zone {other.environment['TZ']}", f"locale {other.environment['LANG']}", f"umask {other.umask}",
        f"host name {other.hostname}", "directories read backwards",
        f"{other.jobs} job{'s' if other.jobs != 1 else ''} on {other.cores} core instead of {bench.jobs} jobs",
    ]
    return (*changed, f"user {other.identity[0]}") if other.identity else tuple(changed)


def _error(artifact: Artifact, verdict: Comparison, second: Path, log: Path) -> NotReproducibleError:
    report = log.with_name("diffoscope.txt")
    more = diffoscope(artifact.path, second, report)
    shown = [str(difference) for difference in verdict.differences[:_SAID]]
    if len(verdict.differences) > _SAID:
        shown.append(f"and {len(verdict.differences) - _SAID} more files")
    return NotReproducibleError(
        f"{len(verdict.differences)} of {verdict.files} files of {artifact.version} differ between two builds of the "
        f"same key", context="\n".join([*shown, *(["diffoscope says:", more] if more else [])]),
        hint="find in the source what the likely cause names; " + (
            f"all of diffoscope's answer: {report}" if more else "installing diffoscope shows more"
        ), log=log,
    )
