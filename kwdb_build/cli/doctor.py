"""The verb `doctor`: a read-only look at the tool and its surroundings, for a bug report."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kwdb_build.cli.options import common, verb

if TYPE_CHECKING:
    from kwdb_build.config import Settings
    from kwdb_build.console import Console


@click.command()
@click.option("--online", is_flag=True, help="Also ask the source's host, the package mirrors and the wheel index.")
@common
@verb
def doctor(console: Console, settings: Settings, *, online: bool = False) -> int:
    """Look at kwdb-build's surroundings without changing anything; holds no secrets, made to be pasted."""
    from kwdb_build.doctor import GROUPS, examine
    from kwdb_build.errors import ExitCode
    from kwdb_build.model import Verdict
    from kwdb_build.upgrade.workshop import summary

    rows = examine(settings, online=online)
    wrong = any(row.verdict is Verdict.FAIL for row in rows)
    if console.as_json:
        console.data({"checks": rows, "summary": summary(rows)})
    else:
        for group, title in GROUPS.items():
            chosen = [row for row in rows if row.group == group]
            console.text(f"{title}")
            for row in chosen:
                console.text(f"  {row.verdict:<8}{row.name}: {row.found}" + (f"  [{row.where}]" if row.where else ""))
                if row.required and row.verdict not in {Verdict.OK, Verdict.SKIP}:
                    console.text(f"          wanted: {row.required}")
                if row.fix:
                    console.text(f"          what to do: {row.fix}")
        console.text(summary(rows))
    return int(ExitCode.DOCTOR) if wrong else 0
