"""What a kwbase says of its own flags: `kwbase <command> --help`, run and understood (pflag's format)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kwdb_build.errors import StartError
from kwdb_build.server import spawn

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kwdb_build.model import StartCommand

_TIMEOUT_S = 60.0
_FLAG = re.compile(r"^ {2,}(?:-(?P<short>\w), )?--(?P<name>[A-Za-z][\w-]*)(?: (?P<kind>\S+))?(?: {2,}(?P<text>.*))?$")
_DEFAULT = re.compile(r"\(default (?P<value>.*)\)")


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One visible flag. kind is '' for a switch; default is '' where the help names none."""

    name: str
    short: str = ""
    kind: str = ""
    default: str = ""


def ask(start: StartCommand, executable: Path, environ: Mapping[str, str]) -> dict[str, Flag]:
    """Flags that a kwbase binary knows for the captured command; run as the server's user. Errors: StartError."""
    wanted = spawn.specification(
        start, argv=(start.argv[0], start.command, "--help"), executable=executable, environ=environ
    )
    code, output = spawn.run_as(wanted, timeout_s=_TIMEOUT_S)
    flags = parse(output)
    if code != 0 or not flags:
        raise StartError(
            f"`{executable} {start.command} --help` did not list its flags", context=output[-2000:],
            hint="is it a kwbase, and does it run on this host?",
        )
    return flags


def parse(text: str) -> dict[str, Flag]:
    """Name -> flag. A flag's description may go on over several lines."""
    found: dict[str, Flag] = {}
    last = ""
    for line in text.splitlines():
        match = _FLAG.match(line)
        if match:
            last = match["name"]
            found[last] = Flag(name=last, short=match["short"] or "", kind=match["kind"] or "")
        default = _DEFAULT.search(line)
        if last and default:
            flag = found[last]
            found[last] = Flag(name=flag.name, short=flag.short, kind=flag.kind, default=default["value"].strip('"'))
    return found
