"""What a system has: which tools answer, which packages and compiler files are there.

One run of a fixed script, in an image or on this host; what it printed becomes facts by pure functions.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from typing import TYPE_CHECKING

from kwdb_build import command, files
from kwdb_build.engine.base import RunSpec
from kwdb_build.errors import EngineError
from kwdb_build.toolchain.catalog import CATALOG, key_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from kwdb_build.engine.base import Engine
    from kwdb_build.toolchain.requirements import Requirements

PROBE_ID = 65532
"""User and group of the probe: never root, and nobody's on usual systems."""
_PROBE_TIMEOUT_S = 120.0
_SAFE_NAME = re.compile(r"^[a-z0-9][a-z0-9.+_-]*$")
_ASKED = "@image "
"""Before kind of engine and identity of the image that was asked, in the first line of what is remembered."""
_IDENTITY = re.compile(r"(?:sha256:)?[0-9a-f]{64}")


_PROBE = r"""
for tool in "$@"; do
    path=$(command -v "$tool") || continue
    echo "@tool $tool"
    case "$tool" in
        go | openssl) "$tool" version ;;
        *) "$tool" --version ;;
    esac </dev/null 2>&1 | head -n 3
done
echo "@packages"
if command -v dpkg-query >/dev/null; then
    dpkg-query -W -f '${db:Status-Abbrev}\t${Package}\t${Version}\n'
elif command -v rpm >/dev/null; then
    rpm -qa --qf 'ii \t%{NAME}\t%{VERSION}-%{RELEASE}\n'
fi
echo "@compiler"
for file in libatomic.so libatomic.a libstdc++.a libgomp.spec libssl.a libcrypto.a libz.a libtinfo.a; do
    printf '%s\t%s\n' "$file" "$(g++ -print-file-name="$file" 2>/dev/null)"
done
for place in /usr/include /usr/local/include; do
    header=google/protobuf/stubs/stringprintf.h
    if [ -f "$place/$header" ]; then printf '%s\t%s\n' "$header" "$place/$header"; fi
done
echo "@manager"
for manager in apt-get dnf yum zypper; do
    if command -v "$manager" >/dev/null; then echo "$manager"; fi
done
echo "@end"
"""
"""Constant text run by the image's own shell; the names of tools come as its arguments, never pasted in."""


def tools_asked_for(requirements: Requirements) -> tuple[str, ...]:
    """Programs whose version is worth asking: those of known rows, and any row whose name could be a program."""
    wanted: set[str] = {"gcc", "g++", "make"}
    for row in requirements.rows:
        key = key_of(row.name)
        known = CATALOG.get(key)
        wanted |= set(known.tools) if known else {key} & {key if _SAFE_NAME.match(key) else ""}
    return tuple(sorted(wanted - {""}))


def probe_image(
    engine: Engine, image: str, log: Path, *, requirements: Requirements, environment: Mapping[str, str], known: Path
) -> dict[str, str]:
    """Facts of an image by one run in it: 'tool:go' -> its answer, 'package:git' -> version, 'file:libz.a' -> path.

    image is an identity, which stands for the image's content: what it answered once is kept in the directory known and
    is not asked again. environment is the toolchain's, whose PATH finds its tools. EngineError when the run does not
    come to its end.
    """
    argv = ("/bin/sh", "-c", _PROBE, "probe", *tools_asked_for(requirements))
    environment = {"LC_ALL": "C", "HOME": "/tmp", **environment}  # noqa: S108 of the container
    question = json.dumps([image, argv, sorted(environment.items())])
    answer = answer_file(known, "", question)
    with contextlib.suppress(OSError, UnicodeDecodeError):
        facts = parse_probe(answer.read_text(encoding="utf-8").splitlines())
        if "end" in facts:
            return facts
    lines: list[str] = []
    result = engine.run(
        RunSpec(
            image=image, argv=argv, environment=environment, uid=PROBE_ID, gid=PROBE_ID, name="check",
            timeout_s=_PROBE_TIMEOUT_S,
        ),
        on_line=lines.append, log=log,
    )
    facts = parse_probe(lines)
    if result.returncode != 0 or "end" not in facts:
        raise EngineError(
            f"the image {image} could not be asked what it has (exit code {result.returncode})",
            context="\n".join(lines[-10:]), log=log, hint="build the toolchain's image anew",
        )
    with contextlib.suppress(OSError):  # a full disk: it is asked again
        known.mkdir(parents=True, exist_ok=True)
        files.write_atomic(answer, "\n".join((whose(engine, image), *lines)))
    return facts


def answer_file(known: Path, kind: str, question: str) -> Path:
    """Where the answer to a question that names an image is remembered; kind tells several forms of answers apart."""
    return known / f"probe-{kind}{hashlib.sha256(question.encode()).hexdigest()[:32]}.txt"


def whose(engine: Engine, image: str) -> str:
    """First line of what is remembered: of which image, for useless_answers()."""
    return f"{_ASKED}{engine.info().kind} {image}"


def kept_answers(known: Path) -> tuple[Path, ...]:
    """What images answered and is remembered in the directory known."""
    return tuple(sorted(known.glob("probe-*.txt")))


def useless_answers(known: Path, engine: Engine) -> tuple[Path, ...]:
    """Remembered answers of images that this engine has no more, and those that do not say whose they are.

    Another kind of engine's answers are none of them: it may well have its image.
    """
    kind, found = engine.info().kind, []
    for path in kept_answers(known):
        with contextlib.suppress(FileNotFoundError):
            with path.open(encoding="utf-8", errors="replace") as stream:
                whose, _, image = stream.readline().rstrip("\n").removeprefix(_ASKED).partition(" ")
            if not _IDENTITY.fullmatch(image) or (whose == kind and engine.image_id(image) is None):
                found.append(path)
    return tuple(found)


def probe_host(requirements: Requirements) -> dict[str, str]:
    """The same facts of this machine; {} when its shell cannot be asked.

    Only programs of our own list are started here: a README must not choose what runs on this machine.
    """
    own = {tool for known in CATALOG.values() for tool in known.tools}
    asked = [tool for tool in tools_asked_for(requirements) if tool in own]
    environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HOME": "/", "LC_ALL": "C"}
    try:
        done = command.run(
            ["/bin/sh", "-c", _PROBE, "probe", *asked], check=False, env=environment, timeout_s=_PROBE_TIMEOUT_S
        )
    except command.CommandError:
        return {}
    facts = parse_probe(done.stdout.splitlines())
    return facts if "end" in facts else {}


def parse_probe(lines: Iterable[str]) -> dict[str, str]:
    """Facts from the probe's output; pure."""
    facts: dict[str, str] = {}
    section = name = ""
    for raw in lines:
        line = raw.rstrip("\r\n")
        if line.startswith("@"):
            section, _, name = line[1:].partition(" ")
            facts |= {f"tool:{name}": ""} if section == "tool" else {"end": "yes"} if section == "end" else {}
        elif section == "tool":
            facts[f"tool:{name}"] = f"{facts[f'tool:{name}']}\n{line}".strip()
        elif section == "manager" and line:
            facts.setdefault("manager", line)
        else:
            facts |= _tabbed_fact(section, line.split("\t"))
    return facts


def _tabbed_fact(section: str, cells: list[str]) -> dict[str, str]:
    match section, cells:
        case "packages", [status, package, version] if status.startswith("ii"):
            return {f"package:{package.partition(':')[0]}": version}
        # The compiler answers with the bare name when it has no such file.
        case "compiler", [file, path] if path.startswith("/"):
            return {f"file:{file}": path}
    return {}
