"""Whether everything came out of a build, as what it should be."""

from __future__ import annotations

import os
import platform
import re
from typing import TYPE_CHECKING, Any

from kwdb_build.build.diagnosis import first_error
from kwdb_build.build.elf import MACHINES, ORIGIN_LIB, drop_build_paths, read_elf
from kwdb_build.build.failure import disk_full, no_room
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
_ANSWER_BYTES = 2 << 20
_ENDED = {
    "124": f"did not end within {ANSWER_S} s",
    "137": f"was killed: it did not end within {ANSWER_S} s, or there was too little memory",
}
"""What exit codes of timeout(1) mean."""


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
    """BuildError unless the file answer, as shims.ENTER leaves it, has `kwbase version` say that it is this one.

    SpaceError when there was no room for the answer.
    """
    try:
        lines = untrusted_lines(answer, limit_bytes=_ANSWER_BYTES)
    except OSError as error:
        raise BuildError(f"what the built kwbase says of its version cannot be read: {error}", log=log) from error
    with log.open("a", encoding="utf-8", errors="backslashreplace") as sink:
        sink.writelines(f"{line}\n" for line in ("kwbase version:", *lines))
    code = lines.pop() if lines else ""
    if not code.isdigit():
        if no_room(answer.parent):
            raise disk_full(version, "\n".join(lines[-_LINES:]), log)
        raise BuildError("the built kwbase was not asked for its version", context="\n".join(lines[-_LINES:]), log=log)
    said = next((match["version"] for line in lines if (match := _VERSION_LINE.match(line.strip()))), "")
    if code != "0" or not said:
        raise BuildError(
            f"the built kwbase does not run: `kwbase version` {_ENDED.get(code, f'ended with exit code {code}')}",
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
    before = read_elf(kwbase).runpath
    dropped = drop_build_paths(kwbase)
    facts = read_elf(kwbase)
    if (*dropped, *facts.runpath) != before:  # nobody runs it between this and its being stored
        raise BuildError(
            "kwbase's search path for its libraries could not be shortened",
            context=f"from {':'.join(before)}\nto {':'.join(facts.runpath)}", hint="please report this",
        )
    if not facts.runpath or facts.runpath[0] != ORIGIN_LIB:
        progress.note("kwbase does not look for its libraries beside itself: it needs LD_LIBRARY_PATH")
    return {"runpath": list(facts.runpath), "runpath_dropped": list(dropped)}
