"""The command line: parses, calls one function, renders its result. No logic, and nothing heavy imported before use."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def run(argv: Sequence[str]) -> int:
    """Run one command; return the exit code of kwdb_build.errors.ExitCode."""
    from kwdb_build.cli.main import main

    return main(list(argv))
