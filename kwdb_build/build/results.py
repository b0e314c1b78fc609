"""Whether everything came out of a build, as what it should be."""

from __future__ import annotations

import os
import platform
import re
from typing import TYPE_CHECKING, Any

from kwdb_build.build.diagnosis import first_error
from kwdb_build.build.elf import MACHINES, ORIGIN_LIB, drop_build_paths, read_elf
from kwdb_build.build.shims import ANSWER_S
from kwdb_build.errors import BuildError
from kwdb_build.files import untrusted_lines, walk_files

if TYPE_CHECKING:
    from pathlib import Path

    from kwdb_build.build.recipe import Recipe
    from kwdb_build.console import Progress
    from kwdb_build.model import Version

_VERSION_LINE = re.compile(r"^(?:KaiwuDB|KWDB) Version:\s*(?P<version>\S+)")
_LINES = 10
_TIMED_OUT = "124"
"""What timeout(1) says."""


def inspect(installed: Path, recipe: Recipe, *, log: Path, progress: Progress) -> dict[str, Any]:
    """Check that everything came out, as ELF for this machine; make kwbase find its own libraries first.

    Returns what is worth recording. BuildError names what is missing.
    """
    names = [str(path.relative_to(installed)) for path in walk_files(installed)]
    missing = [name for name in recipe.required if not (installed / name).is_file()]
    if missing:
        raise BuildError(
            f"make succeeded but did not install {', '.join(missing)}", log=log,
            context="installed: " + (", ".join(names) or "nothing"),
            hint="the tree's install rules do not put it below bin/ and lib/; see the log",
        )
    for name in recipe.required:
        _check_elf(installed, name, log)
    scripts = [name for name in names if name.startswith("bin/") and name.endswith(".sh")]
    if not scripts:
        raise BuildError(
            "make succeeded but installed no script", log=log, context=f"installed: {', '.join(names)}",
            hint="KWDB's install rules put its scripts (setup_cert_file.sh and others) into bin/; see the log",
        )
    for script in scripts:
        if not os.access(installed / script, os.X_OK):
            raise BuildError(f"{script} was installed but cannot be executed", log=log)
    return _settle_search_path(installed / "bin" / "kwbase", progress)


def check_answer(answer: Path, version: Version, *, log: Path) -> None:
    """BuildError unless the file answer, as shims.ENTER leaves it, has `kwbase version` say that it is this one."""
    lines = untrusted_lines(answer)
    with log.open("a", encoding="utf-8", errors="backslashreplace") as sink:
        sink.writelines(f"{line}\n" for line in ("kwbase version:", *lines))
    code = lines.pop() if lines else "none"
    said = next((match["version"] for line in lines if (match := _VERSION_LINE.match(line.strip()))), "")
    if code != "0" or not said:
        raise BuildError(
            "the built kwbase does not run: `kwbase version` " + (
                f"did not end within {ANSWER_S} s" if code == _TIMED_OUT else f"ended with exit code {code}"
            ),
            context=first_error(lines) or "\n".join(lines[-_LINES:]), log=log,
            hint="the tree or its options are at fault, not the compiler; the log has all that it printed",
        )
    if said != version.text:
        raise BuildError(
            f"the built kwbase says it is {said}, not {version}", context="\n".join(lines), log=log,
            hint="the tree stamps its version in a way that BUILDINFO_TAG does not reach",
        )


def _check_elf(installed: Path, name: str, log: Path) -> None:
    wanted = MACHINES.get(platform.machine(), "")
    try:
        facts = read_elf(installed / name)
    except ValueError as error:
        raise BuildError(f"{name} was installed but is no ELF file", context=str(error), log=log) from error
    if wanted and facts.machine != wanted:
        raise BuildError(
            f"{name} was built for {facts.machine}, this machine needs {wanted}", log=log,
            hint="use a toolchain of this machine's architecture",
        )


def _settle_search_path(kwbase: Path, progress: Progress) -> dict[str, Any]:
    dropped = drop_build_paths(kwbase)
    facts = read_elf(kwbase)
    if not facts.runpath or facts.runpath[0] != ORIGIN_LIB:
        progress.note("kwbase does not look for its libraries beside itself: it needs LD_LIBRARY_PATH")
    return {"runpath": list(facts.runpath), "runpath_dropped": list(dropped)}
