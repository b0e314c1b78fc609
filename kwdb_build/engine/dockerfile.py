"""Reads the few instructions of Dockerfile.build, so that an engine without a builder can carry them out.

The file stays the one description of the build image: what is not understood here is refused, never skipped.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kwdb_build.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Mapping

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_KNOWN = frozenset({"ARG", "FROM", "ENV", "COPY", "RUN"})


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One instruction: its keyword in capitals and the rest of its (joined) lines as written."""

    keyword: str
    rest: str

    def __str__(self) -> str:
        return f"{self.keyword} {self.rest}"


def parse(text: str) -> tuple[Instruction, ...]:
    """Instructions in order; EngineError for one that is none of ARG, FROM, ENV, COPY and RUN in their plain forms."""
    found = []
    pending = ""
    for line in text.splitlines():
        if line.lstrip().startswith("#") or (not line.strip() and not pending):
            continue
        if line.rstrip().endswith("\\"):
            pending += line.rstrip()[:-1]
            continue
        found.append(_instruction(pending + line))
        pending = ""
    if pending.strip():
        found.append(_instruction(pending))
    if not any(one.keyword == "FROM" for one in found):
        raise _refused("it has no FROM")
    return tuple(found)


def _instruction(line: str) -> Instruction:
    keyword, _, rest = line.strip().partition(" ")
    one = Instruction(keyword=keyword.upper(), rest=rest.strip())
    if one.keyword not in _KNOWN or not one.rest:
        raise _refused(f"not understood: {line.strip()[:200]}")
    if one.rest.startswith(("--", "[", "<<")):
        raise _refused(f"options, JSON arrays and heredocs are not understood: {line.strip()[:200]}")
    return one


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Put variables in, as Docker does in FROM, ENV and COPY; an unknown one is empty."""
    return _VARIABLE.sub(lambda match: variables.get(match[1] or match[2], ""), text)


def argument(rest: str) -> tuple[str, str | None]:
    """`NAME=value` or `NAME` of an ARG."""
    name, given, value = rest.partition("=")
    return name.strip(), _unquoted(value) if given else None


def assignments(rest: str) -> dict[str, str]:
    """`A=1 B="two words"` of an ENV."""
    try:
        words = [word.partition("=") for word in shlex.split(rest)]
    except ValueError as error:
        raise _refused(f"ENV {rest}: {error}") from error
    if not all(name and given for name, given, _ in words):
        raise _refused(f"ENV {rest}: NAME=value is understood")
    return {name: value for name, _, value in words}


def copied(rest: str) -> tuple[str, str]:
    """Source and target of a COPY with one directory as its source."""
    words = rest.split()
    if len(words) != 2 or not words[0].endswith("/") or ".." in words[0].split("/") or not words[1].startswith("/"):  # noqa: PLR2004
        raise _refused(f"COPY {rest}: one directory of the context to an absolute place is understood")
    return words[0].strip("/"), words[1]


def _unquoted(value: str) -> str:
    words = shlex.split(value)
    return words[0] if words else ""


def _refused(why: str) -> EngineError:
    return EngineError(
        "the sandbox cannot carry out this image recipe", context=why,
        hint="use ARG, FROM, ENV, COPY DIRECTORY/ /TARGET and RUN LINE, or a container engine (--engine docker)",
    )
