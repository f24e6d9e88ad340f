"""The output of `jukesep evaluate`: scores of a pair of checkpoints, and the published ones.

A column holds one metric of one system. This module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .batch import counted
from .evaluation import Row
from .published import MUSDB_HQ, NONE, NOT_STATED, PUBLISHED, Published

if TYPE_CHECKING:
    from ..base.params import Separation

# Heading -> system and metric.
COLUMNS = {
    "sdr": ("separation", "sdr"),
    "sdr_mdx": ("separation", "sdr_mdx"),
    "sdr_v4": ("separation", "sdr_v4"),
    "ceiling": ("ceiling", "sdr"),
    "mixture/4": ("scaled_mixture", "sdr"),
    "mixture": ("mixture", "sdr"),
}
LEGEND = """\
dB, higher is better. sdr: the paper's, whole song, mono. sdr_mdx: whole song, all channels.
sdr_v4: BSSEval v4, the median of a song's seconds. Ceiling D(Q(E1(stem))), mixture/4 and mixture
are in sdr."""
NO_V4 = "A song with a missing or silent stem has no sdr_v4."
NOT_STATED_NOTE = "Published without a metric or songs, in dB: not comparable with the rows above."
PUBLISHED_NOTE = """\
Published rows: the 50 test songs of MUSDB18-HQ at 44100 Hz unless a row names others. Do not
compare them with other songs. In sdr they are means unless a row says median, in sdr_v4 medians;
those of Figure 2 were read off the plot. The paper's rows are from chunks of 393,216 samples as
--chunking published cuts them, those of unmix_analysis from chunks as --chunking hard cuts them."""


@dataclass(frozen=True)
class Evaluation:
    """One run of the command: the models, songs and settings, and the scores."""

    stem: str
    stage1: Path
    stage2: Path
    steps: tuple[int, int]
    folder: Path
    split: str
    songs: tuple[str, ...]
    sample_rate: int
    resampled: tuple[int, ...]
    """Sample rates in Hz that songs were resampled from."""
    separation: Separation
    device: str
    rows: list[Row]
    failed: Mapping[str, str]

    @property
    def silent(self) -> set[str]:
        """The songs in which the stem is silent: they have no scores."""
        return {row.song.name for row in self.rows if row.metric == "sdr" and math.isnan(row.value)}

    def column(self, heading: str) -> dict[str, float]:
        """A column of the table: song -> dB."""
        wanted = COLUMNS[heading]
        return {row.song.name: row.value for row in self.rows if (row.system, row.metric) == wanted}

    def published(self) -> list[Published]:
        """The published rows that have a value for the stem.

        Empty for other splits: the published numbers hold for the test songs only.
        """
        if self.split != "test":
            return []
        return [row for row in PUBLISHED if row.values[self.stem] != NONE]


def label_of(row: Published) -> str:
    """A published row in words, with the songs if they are not all of MUSDB18-HQ's."""
    songs = "" if row.data in (MUSDB_HQ, NOT_STATED) else f", {row.data}"
    return f"{row.system} ({row.source}{songs})"


def text(evaluation: Evaluation) -> str:
    """The table as text, with a heading and notes on how to read it."""
    columns = {heading: evaluation.column(heading) for heading in COLUMNS}
    note = dict.fromkeys(evaluation.failed, ": not scored")
    note |= dict.fromkeys(evaluation.silent, f": no {evaluation.stem}, left out")
    songs = [
        (
            [number(column.get(name, math.nan)) for column in columns.values()],
            name + note.get(name, ""),
        )
        for name in evaluation.songs
    ]
    of = counted(len(evaluation.songs))
    if note:
        of = f"{len(evaluation.songs) - len(note)} of {of}"
    summary = [
        ([number(average(kind)(column.values())) for column in columns.values()], f"{kind} of {of}")
        for kind in ("mean", "median")
    ]
    rows, stem = evaluation.published(), evaluation.stem
    beside = [
        ([row.values[stem] if heading == row.metric else "" for heading in COLUMNS], label_of(row))
        for row in rows
        if row.stated
    ]
    table = aligned([(list(COLUMNS), "song")], songs, summary, beside)
    blocks = [_heading(evaluation), table, LEGEND]
    if evaluation.silent:
        blocks.append(
            f"{counted(len(evaluation.silent))} left out of all averages: {evaluation.stem} is "
            "silent, so it has no SDR."
        )
    values = columns["sdr_v4"].items()
    missing = sum(math.isnan(v) for name, v in values if name not in evaluation.silent)
    if missing:
        blocks.append(f"{counted(missing)} without sdr_v4, left out of its averages. {NO_V4}")
    if rows:
        apart = [
            ([row.values[stem], row.metric, row.data], label_of(row))
            for row in rows
            if not row.stated
        ]
        block = aligned([(["dB", "metric", "songs"], "system")], apart)
        blocks += [f"{NOT_STATED_NOTE}\n\n{block}", PUBLISHED_NOTE]
    return "\n\n".join(blocks)


def in_json(values: Mapping[str, float]) -> dict[str, float | None]:
    """Scores in dB, rounded, None for those that are missing."""
    return {key: round(v, 6) if math.isfinite(v) else None for key, v in values.items()}


def as_dict(evaluation: Evaluation) -> dict[str, Any]:
    """The same for JSON, which has no NaN: a missing score is None."""
    columns = {heading: evaluation.column(heading) for heading in COLUMNS}
    scored = [name for name in evaluation.songs if name not in evaluation.failed]
    return {
        "stem": evaluation.stem,
        "stage1": {"file": str(evaluation.stage1), "step": evaluation.steps[0]},
        "stage2": {"file": str(evaluation.stage2), "step": evaluation.steps[1]},
        "data": str(evaluation.folder),
        "split": evaluation.split,
        "sample_rate": evaluation.sample_rate,
        "resampled_from": list(evaluation.resampled),
        "separation": evaluation.separation.model_dump(),
        "device": evaluation.device,
        "songs": {
            name: in_json({heading: column[name] for heading, column in columns.items()})
            for name in scored
        },
        "silent": sorted(evaluation.silent),
        "not_scored": dict(evaluation.failed),
        "mean": in_json({name: average("mean")(one.values()) for name, one in columns.items()}),
        "median": in_json({name: average("median")(one.values()) for name, one in columns.items()}),
        "published": [
            {
                "row": f"{row.system} ({row.source})",
                "metric": row.metric,
                "songs": row.data,
                "value": row.values[evaluation.stem],
            }
            for row in evaluation.published()
        ],
    }


def _heading(evaluation: Evaluation) -> str:
    one, two = evaluation.steps
    lines = [
        f"{evaluation.stem}, D(Q(E2(mixture)))",
        f"stage 1  {evaluation.stage1} (step {one})",
        f"stage 2  {evaluation.stage2} (step {two})",
        f"songs    {len(evaluation.songs)} of {evaluation.folder}, split {evaluation.split}",
        "run      " + ", ".join(f"{k} {v}" for k, v in evaluation.separation.model_dump().items()),
        f"rate     {evaluation.sample_rate} Hz",
    ]
    if evaluation.resampled:
        rates = ", ".join(map(str, evaluation.resampled))
        lines[-1] += f", resampled from {rates} Hz: scores differ from the original songs'"
    return "\n".join(lines)


def number(value: float) -> str:
    """Three digits after the point; - for a score that there is not."""
    return f"{value:.3f}" if math.isfinite(value) else "-"


def average(kind: str) -> Callable[[Iterable[float]], float]:
    """The "mean" or the "median" of the values that are not NaN; NaN if there are none."""

    def of(values: Iterable[float]) -> float:
        there = [value for value in values if not math.isnan(value)]
        return float(getattr(np, kind)(there)) if there else math.nan

    return of


def aligned(*blocks: list[tuple[list[str], str]]) -> str:
    """Align the columns; labels go last because they can be long. A rule separates blocks."""
    lines = [cells for block in blocks for cells, _ in block]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = "-" * (sum(widths) + 2 * len(widths) + len("song"))

    def line(cells: list[str], label: str) -> str:
        numbers = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        return "  ".join([*numbers, label])

    parts = ["\n".join(line(*one) for one in block) for block in blocks if block]
    return f"\n{rule}\n".join(parts)
