"""What keeping and carrying a build costs: look-up, check, export and import, against plain tar and zstd."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kwdb_build.build import archive, intake
from kwdb_build.build.inspection import attestation_of
from kwdb_build.build.signing import Trust
from kwdb_build.build.store import ArtifactStore
from kwdb_build.console import Progress
from kwdb_build.model import Artifact
from tests.bench.figures import Figure, paired, single


def measure(artifact: Artifact, place: Path, times: int = 5) -> list[Figure]:
    """Figures over one stored build; place is empty and ours. Ours and bare in turns, in the same run."""
    store = ArtifactStore(artifact.path.parent)
    file, bare, unpacked = place / "ours.tar.zst", place / "bare.tar.zst", place / "unpacked"
    samples: dict[str, list[float]] = {}

    def note(name: str, work: Callable[[], Any]) -> None:
        began = time.monotonic()
        work()
        samples.setdefault(name, []).append(time.monotonic() - began)

    for number in range(times):
        elsewhere = ArtifactStore(place / f"store-{number}")
        unpacked.mkdir()
        note("find", lambda: store.find(artifact.key))
        note("verify", lambda: store.verify(artifact))
        note("bare verify", lambda: run("sha256sum", *(str(artifact.path / one.path) for one in artifact.files)))
        note("attest", lambda: attestation_of(artifact))
        note("export", lambda: archive.export(store, artifact, file, force=True, progress=Progress()))
        note("bare export", lambda: run("tar", "-C", str(artifact.path), "-I", "zstd -10 -q", "-cf", str(bare), "."))
        note("import", lambda: intake.import_archive(
            elsewhere, file, trust=Trust(), foreign=False, progress=Progress()))  # noqa: B023
        note("bare import", lambda: run("tar", "-C", str(unpacked), "-I", "zstd -q", "-xf", str(bare)))
        elsewhere.close()
        subprocess.run(["rm", "-rf", str(unpacked)], check=True)
    store.close()
    found = "its import checks every file, provenance and SBOM schema, and syncs to disk; tar does none of it"
    return [
        single("look-up of a stored build by key", [1000 * one for one in samples["find"]], "ms", aim=50.0),
        paired("verify a stored build, bare sha256sum", samples["verify"], samples["bare verify"], aim=None),
        single("compare its provenance", [1000 * one for one in samples["attest"]], "ms", aim=None),
        paired("export of a build, bare tar + zstd -10", samples["export"], samples["bare export"], aim=None),
        paired("import of a build, bare tar + zstd", samples["import"], samples["bare import"], aim=None, note=found),
    ]


def run(*argv: str) -> None:
    """Run to the end, without its words."""
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
