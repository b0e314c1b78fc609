"""A failed run of the sandbox, kept as what it was: started again from its description, or with a shell instead.

python -m kwdb_build.engine.again FILE [--shell]
"""

from __future__ import annotations

import sys
import uuid
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kwdb_build import command, files
from kwdb_build.errors import KwdbBuildError

if TYPE_CHECKING:
    from kwdb_build.engine.base import RunSpec

_KEPT = "kept"


def keep(place: Path, spec: RunSpec) -> tuple[str, str]:
    """Write a run down below place (private: it holds the environment); what starts it again, and what removes it."""
    kept = files.private_directory(place / _KEPT) / f"{spec.name}-{uuid.uuid4().hex[:8]}.json"
    files.write_json(kept, replace(spec, keep_failed=False), mode=files.PRIVATE)
    again = command.quote([sys.executable, "-m", "kwdb_build.engine.again", str(kept)])
    return again, command.quote(["rm", "-f", str(kept), str(_log_of(kept))])


def main(argv: list[str]) -> int:
    """Start a kept run again; the exit code is its own."""
    from kwdb_build.engine.base import RunSpec
    from kwdb_build.engine.sandbox import SandboxEngine

    path = Path(argv[0]).absolute()
    spec = files.load_json(RunSpec, path)
    if "--shell" in argv[1:]:
        spec = replace(spec, argv=("/bin/sh",), interactive=True)
    try:
        with SandboxEngine.open(path.parents[1]) as engine:
            return engine.run(spec, on_line=_show, log=_log_of(path)).returncode
    except KwdbBuildError as error:
        sys.stderr.write(f"{error.message}\n{error.context}\n{error.hint}\n")
        return int(error.exit_code)


def _log_of(kept: Path) -> Path:
    return kept.with_suffix(".log")


def _show(line: str) -> None:
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
