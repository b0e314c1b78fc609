"""The report: one self-contained HTML file (no scripts, nothing loaded from elsewhere) made from the result."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from kwdb_build.files import PRIVATE, human_bytes, write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from kwdb_build.upgrade.result import RunResult, StepTime

_TITLES = {
    "upgraded": "Upgraded",
    "failed": "Not upgraded, nothing changed",
    "rolled-back": "Not upgraded: rolled back",
    "rollback-failed": "Not in a verified state: a person is needed",
    "open": "Cut off half-way: resume or roll back",
    "abandoned": "Closed by hand",
}
_WAYS_ON = {"open": ("resume", "rollback", "abandon"), "rollback-failed": ("rollback", "abandon")}
_MEANING = {
    "resume": "goes on from where it stopped",
    "rollback": "goes back to the old version and its data",
    "abandon": "closes the run without doing anything, when you have set things right by hand",
}
_BAD_FIRST = ("fail", "unknown", "warn", "ok", "skip")
_DOWN = {"stop", "backup", "switch", "start", "first answer"}


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar: share of the longest in per cent, and which kind of time it was: run, down, undo, after or failed."""

    name: str
    seconds: float
    share: float
    kind: str
    begin: float = 0.0


def write_report(result: RunResult, path: Path) -> None:
    """Render the result into a file that its owner can open in any browser."""
    write_atomic(path, render(result), mode=PRIVATE)


def render(result: RunResult) -> str:
    """The page. Everything in it is escaped: names of tables and words of the server come from outside."""
    from jinja2 import Environment, StrictUndefined, select_autoescape

    template = resources.files("kwdb_build.upgrade").joinpath("report.html.j2").read_text(encoding="utf-8")
    from kwdb_build.upgrade.result import command_for

    environment = Environment(
        autoescape=select_autoescape(default=True), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["bytes"] = human_bytes
    environment.filters["moment"] = _moment
    environment.filters["seconds"] = seconds_in_words
    return environment.from_string(template).render(
        r=result, title=_TITLES.get(result.outcome, result.outcome), steps=step_bars(result.steps),
        down=downtime_bars(result.downtime_parts), checks=_failed_first(result.checks),
        rejected=[check for check in _failed_first(result.rejected_checks) if check["verdict"] != "ok"],
        rejected_passed=_passed(result.rejected_checks), passed=_passed(result.checks),
        back=command_for(result, "rollback"),
        ways=[(command_for(result, verb), _MEANING[verb]) for verb in _WAYS_ON.get(result.outcome, ())],
    )


def step_bars(steps: Iterable[StepTime]) -> list[Bar]:
    """One bar a step in its order, all from the left, as long as the step took."""
    found = list(steps)
    longest = max((step.seconds for step in found), default=0.0) or 1.0
    return [
        Bar(
            name=step.step if step.phase == "apply" else f"take back {step.step}", seconds=step.seconds,
            share=100 * step.seconds / longest, kind=_kind(step),
        )
        for step in found
    ]


def downtime_bars(parts: dict[str, float]) -> list[Bar]:
    """The parts of the downtime one after the other; shares of their sum, in per cent."""
    total = sum(parts.values()) or 1.0
    bars: list[Bar] = []
    for name, seconds in parts.items():
        begin = bars[-1].begin + bars[-1].share if bars else 0.0
        kind = "undo" if name.startswith("take back") else "run" if name == "verify" else "down"
        bars.append(Bar(name=name, seconds=seconds, share=100 * seconds / total, kind=kind, begin=begin))
    return bars


def seconds_in_words(seconds: float) -> str:
    """0.05 -> '0.05 s', 12.3 -> '12.3 s', 754 -> '12 min 34 s', 7380 -> '2 h 3 min'."""
    if seconds < 10:  # noqa: PLR2004
        return f"{seconds:.2f} s"
    if seconds < 100:  # noqa: PLR2004
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:  # noqa: PLR2004
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _kind(step: StepTime) -> str:
    if step.event == "failed":
        return "failed"
    if step.phase == "undo":
        return "undo"
    return "down" if step.step in _DOWN else "run"


def _failed_first(checks: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(checks, key=lambda check: _BAD_FIRST.index(check["verdict"]))


def _passed(checks: Iterable[dict[str, Any]]) -> int:
    return sum(check["verdict"] == "ok" for check in checks)


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(seconds)) if seconds else "not known"
