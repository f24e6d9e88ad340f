"""A row of docs/performance.md: what is measured, the goals, and the result."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import measuring
from benchmarks.measuring import ROOT
from jukesep.base.errors import UserError
from jukesep.base.files import write_json

RESULTS = Path("benchmarks/results/rows")


UNITS = {
    "share of the limit": " %", "time above the models alone": " %", "cores busy": "",
    "SDR in fp32": " dB", "loss by training in bf16": " dB", "loss by separating in bf16": " dB",
    "difference": " dB", "change of the lowest score": " dB", "growth": " MB", "minutes": " min",
    "second time": " s", "seconds": " s", "time outside of training loops": " s",
    "95 % take at most": " ms",
}  # fmt: skip
"""Of figures; all others are ratios."""


class Skipped(Exception):
    """A row cannot be measured here; says why."""


@dataclass(frozen=True)
class Goal:
    """A bound that a figure of a row should keep."""

    figure: str
    bound: float
    at_least: bool = True

    def met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound

    def text(self, value: float) -> str:
        """A figure in its unit."""
        return f"{value:.3g}{UNITS.get(self.figure, ' x')}"

    @property
    def aim(self) -> str:
        """The goal in words."""
        return f"{self.figure} {'at least' if self.at_least else 'at most'} {self.text(self.bound)}"

    def verdict(self, value: float) -> str:
        """Met, or by how much the figure misses the goal."""
        if self.met(value):
            return "met"
        side = "below" if self.at_least else "above"
        if not self.bound:
            return f"{self.text(abs(value))} {side}"
        return f"{100 * abs(value / self.bound - 1):.0f} % {side}"


@dataclass
class Result:
    """A side's seconds and MB (the median, the peak), and figures computed from them."""

    sides: dict[str, dict[str, float]] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    note: str = ""
    took: float = 0.0
    """Seconds that the measurement itself took."""
    machine: dict[str, Any] = field(default_factory=dict)
    code: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    """What a section of a page shows besides."""

    @property
    def kind(self) -> str:
        """The kind of processor that it was measured on."""
        return measuring.kind(self.machine)

    def save(self, name: str) -> None:
        """Keep it as the newest result of a row, beside the last one of each other kind."""
        path = RESULTS / f"{name}.json"
        before = _read(path) if path.exists() else self
        if before.kind != self.kind:
            path.replace(_older(path, before.kind))
        write_json(path, asdict(self))
        _older(path, self.kind).unlink(missing_ok=True)


@dataclass(frozen=True)
class Row:
    """`measure` runs in a process of its own, on `cores` cores (0: all)."""

    what: str
    measure: Callable[[], Result]
    code: tuple[str, ...]
    """Files and folders of the code that is measured. A result goes stale when they change."""
    goals: tuple[Goal, ...] = ()
    cores: int = 0
    in_suite: bool = True
    """Whether it is measured when no row is named."""

    @property
    def files(self) -> tuple[str, ...]:
        """`code`, and the file that measures it."""
        function = self.measure.func if isinstance(self.measure, partial) else self.measure
        return *self.code, Path(inspect.getfile(function)).relative_to(ROOT).as_posix()


def load(names: Iterable[str], folder: Path = RESULTS) -> dict[str, Result]:
    """The newest results kept so far, in the order of the rows."""
    paths = {name: folder / f"{name}.json" for name in names}
    return {name: _read(path) for name, path in paths.items() if path.exists()}


def load_older(names: Iterable[str], folder: Path = RESULTS) -> dict[str, list[Result]]:
    """The last results of the rows on other kinds of processors than the newest one's."""
    return {name: [_read(path) for path in sorted(folder.glob(f"{name}@*.json"))] for name in names}


def _older(path: Path, kind: str) -> Path:
    """The file of a result that is not the newest: stage1@amd-avx2.json beside stage1.json."""
    return path.with_name(f"{path.stem}@{kind.lower().replace(' ', '-')}.json")


def _read(path: Path) -> Result:
    try:
        return Result(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is not a result ({error}). Delete it.") from error
