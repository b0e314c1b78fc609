"""The command line: parses, calls one function, renders its result. No logic, and nothing heavy imported before use."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_INTERRUPTED = 130
"""errors.ExitCode.INTERRUPTED, which may not be imported yet."""


def run(argv: Sequence[str]) -> int:
    """Run one command; return the exit code of kwdb_build.errors.ExitCode."""
    try:
        from kwdb_build.cli.main import main
    except KeyboardInterrupt:
        return _INTERRUPTED  # nothing has begun: no reason to show a person where Python was

    return main(list(argv))
