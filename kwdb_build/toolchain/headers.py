"""The headers of a build image: their names decide which files an #include of the source can find."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING

from kwdb_build.engine.base import Mount, RunSpec
from kwdb_build.files import write_atomic
from kwdb_build.toolchain.probe import answer_file, whose

if TYPE_CHECKING:
    from pathlib import Path

    from kwdb_build.engine.base import Engine
    from kwdb_build.model import Toolchain

_RESULT = "/kwdb-result"
_LIST = (
    "find", "/", "(", "-path", "/proc", "-o", "-path", "/sys", "-o", "-path", "/dev", "-o", "-path", _RESULT, ")",
    "-prune", "-o", "!", "-type", "d", "(", "-path", "*/include*", "-o", "-name", "*.h", "-o", "-name", "*.hpp", ")",
    "-fprintf", f"{_RESULT}/headers", r"%f\n",
)
"""Those of C++ itself have no ending."""


def image_headers(
    engine: Engine, image: str, log: Path, *, toolchain: Toolchain, known: Path, place: Path, uid: int, gid: int
) -> frozenset[bytes] | None:
    """Names, without directories, of all headers in an image; None when it cannot be listed.

    image is an identity: it is listed once, by uid:gid, and remembered in the directory known as other answers of it
    are. place is a directory that is made for the list's sake.
    """
    path = toolchain.environment.get("PATH", "/usr/bin:/bin")
    listed = (*filter(None, (toolchain.environment.get("GOROOT"),)), "/usr/include")
    answer = answer_file(known, "headers", json.dumps([image, path, listed, _LIST]))
    with contextlib.suppress(OSError):
        return frozenset(answer.read_bytes().splitlines()[1:])
    place.mkdir()
    os.chown(place, uid, gid)
    spec = RunSpec(
        image=image, argv=_LIST, mounts=(Mount(source=place, target=_RESULT, read_only=False),), uid=uid, gid=gid,
        environment={"PATH": path, "LC_ALL": "C"}, workdir=_RESULT, name="headers",
        listed=listed,
    )
    said: list[str] = []
    result = engine.run(spec, on_line=said.append, log=log)
    found = (place / "headers").read_bytes() if (place / "headers").is_file() else b""
    # What it may not read, the compiler may not, either.
    whole = result.returncode == 0 or (
        result.returncode == 1 and all(line.rstrip().endswith("Permission denied") for line in said)
    )
    if not whole or b"stdio.h\n" not in found:
        return None
    with contextlib.suppress(OSError):  # a full disk: it is listed again
        known.mkdir(parents=True, exist_ok=True)
        write_atomic(answer, whose(engine, image).encode() + b"\n" + found)
    return frozenset(found.splitlines())
