"""A row of docs/performance.md: what is measured, what is aimed at, what was found."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jukesep.base.errors import UserError
from jukesep.base.files import write_text

RESULTS = Path("benchmarks/results/rows")


class Skipped(Exception):
    """A row cannot be measured here; says why."""


@dataclass(frozen=True)
class Options:
    """What a measurement may take."""

    seconds: float = 8.0
    """About so long the sides of a row run in turns."""
    songs: int = 4
    """Songs of four minutes that `prepare` reads."""


@dataclass(frozen=True)
class Goal:
    """A bound that a figure of a row should keep."""

    figure: str
    bound: float
    unit: str = " x"
    at_least: bool = True
    digits: int = 2

    def met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound

    def text(self, value: float) -> str:
        """A figure in its unit."""
        if self.unit == " x" or abs(value) >= 0.01 or value == 0:
            return f"{value:,.{self.digits}f}{self.unit}"
        return f"{value:.1g}{self.unit}"

    def aim(self) -> str:
        """The goal in words."""
        kind = "at least" if self.at_least else "at most"
        return f"{self.figure} {kind} {self.bound:,g}{self.unit}"

    def verdict(self, value: float) -> str:
        """Met, or by how much the figure falls short of the goal."""
        if self.met(value):
            return "met"
        side = "below" if self.at_least else "above"
        if not self.bound:
            return f"{self.text(abs(value))} {side}"
        return f"{100 * abs(value / self.bound - 1):.0f} % {side}"


@dataclass
class Result:
    """What was found: a side's seconds and MB (the median, the peak), and figures from them."""

    sides: dict[str, dict[str, float]] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    rounds: int = 1
    note: str = ""
    skipped: str = ""
    took: float = 0.0
    """Seconds that the measurement itself took."""
    machine: dict[str, Any] = field(default_factory=dict)
    code: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    """What a section of the page shows besides."""

    def save(self, name: str, folder: Path = RESULTS) -> None:
        write_text(folder / f"{name}.json", json.dumps(asdict(self), indent=1) + "\n")


@dataclass(frozen=True)
class Row:
    """`measure` runs in a process of its own, on `cores` cores (0: all)."""

    what: str
    measure: Callable[[Options], Result]
    goals: tuple[Goal, ...] = ()
    cores: int = 0
    in_suite: bool = True
    """Whether it is run when no row is named."""
    module: str = ""
    """The file that measures, beside this one."""


def load(names: Mapping[str, Row], folder: Path = RESULTS) -> dict[str, Result]:
    """What was found so far, in the order of the rows."""
    found = {}
    for name in names:
        path = folder / f"{name}.json"
        if not path.exists():
            continue
        try:
            found[name] = Result(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}: not a result ({error}). Delete it.") from error
    return found
