"""What was measured, as a table for people and as JSON. Nothing here is asserted: a figure is met or not met."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure with its aim. ours and bare are medians in `unit`; ratio is the median of the pairs' ratios.

    judged: which of them the aim is about ('ratio' or 'ours'); aim None: for information.
    """

    name: str
    unit: str
    ours: float
    bare: float | None = None
    ratio: float | None = None
    judged: str = "ours"
    aim: float | None = None
    note: str = ""
    samples: dict[str, list[float]] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the aim is met; None without one."""
        value = self.ratio if self.judged == "ratio" else self.ours
        return None if self.aim is None or value is None else value <= self.aim

    def as_json(self) -> dict[str, Any]:
        """All of it, samples included."""
        return {**self.__dict__, "met": self.met}

    def row(self) -> tuple[str, ...]:
        """Cells of the table."""
        aim = "" if self.aim is None else f"{self.aim:g}" + ("" if self.judged == "ratio" else f" {self.unit}")
        return (
            self.name, f"{self.ours:.3g} {self.unit}", "" if self.bare is None else f"{self.bare:.3g} {self.unit}",
            "" if self.ratio is None else f"{self.ratio:.2f}", aim,
            {True: "met", False: "NOT MET", None: ""}[self.met], self.note,
        )


COLUMNS = ("figure", "ours", "bare", "ratio", "aim", "", "note")


def paired(name: str, ours: Sequence[float], bare: Sequence[float], *, aim: float | None, note: str = "") -> Figure:
    """Seconds of pairs that were measured one after the other, in turns."""
    return Figure(
        name=name, unit="s", ours=statistics.median(ours), bare=statistics.median(bare),
        ratio=statistics.median(one / other for one, other in zip(ours, bare, strict=True)), judged="ratio", aim=aim,
        note=note, samples={"ours": list(ours), "bare": list(bare)},
    )


def single(name: str, samples: Sequence[float], unit: str, *, aim: float | None, note: str = "",
           bare: Sequence[float] = ()) -> Figure:
    """One kind of sample with an aim in its own unit."""
    return Figure(
        name=name, unit=unit, ours=statistics.median(samples), bare=statistics.median(bare) if bare else None,
        aim=aim, note=note, samples={"ours": list(samples), **({"bare": list(bare)} if bare else {})},
    )
