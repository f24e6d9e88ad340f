"""The output of `jukesep score`: a table for each metric, as text, Markdown and JSON.

A table has one metric; a column is a stem, or a residual. This module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..songs.manifest import GROUPS, STEMS
from ..systems import equaliser
from . import metrics, published
from .batch import counted
from .evaluation import Row
from .table import aligned, average, in_json, label_of, number

MEAN = "mean"
BASELINES = {
    "mixture": "mixture",
    "scaled_mixture": "mixture / 4",
    equaliser.NAME: "static equaliser",
    "ideal_ratio_mask": "ideal ratio mask (oracle)",
}
SDR = "sdr: the paper's. The whole song at once, in mono: "
CONVENTIONS = {
    "sdr_mdx": "sdr_mdx: Music Demixing Challenge 2021. The whole song at once, all channels.",
    metrics.SI_SDR: "si_sdr: Le Roux et al. 2019. The whole song at once, all channels, with one "
    "gain for all of them.",
    "sdr_v4": "sdr_v4: BSSEval v4 as in museval. All channels, the median of a song's seconds; "
    "those in which a stem is silent do not count.",
    "sir_v4": "sir_v4: museval's SIR, the median of a song's seconds.",
    "sar_v4": "sar_v4: museval's SAR, the median of a song's seconds.",
    "isr_v4": "isr_v4: museval's ISR, the median of a song's seconds.",
}
PUBLISHED_NOTE = (
    "Published rows are of the 50 test songs of MUSDB18-HQ or MUSDB18 at 44100 Hz, unless they say "
    "otherwise: do not compare them with other songs. They are means over songs in sdr, and "
    "medians in sdr_v4."
)
Line = tuple[list[str], str]
"""The cells of a row, and what it is a row of."""


@dataclass(frozen=True)
class Comparison:
    """One run of the command: a system, songs, and the scores."""

    system: str
    about: Mapping[str, str]
    """What a reader must know, in order: heading -> text."""
    songs: Mapping[str, str]
    """Name of each song -> its group."""
    split: str
    residuals: Mapping[str, tuple[str, ...]]
    """The residuals among the columns -> the stems in them."""
    sdr: str
    """How `sdr` comes to mono, in words."""
    rows: Sequence[Row]
    failed: Mapping[str, str]

    @property
    def metrics(self) -> list[str]:
        there = {row.metric for row in self.rows}
        return [name for name in ("sdr", *CONVENTIONS) if name in there]

    @property
    def columns(self) -> list[str]:
        """The stems and residuals, and the mean of the stems if all four are there."""
        there = {row.stem for row in self.rows}
        stems = [stem for stem in STEMS if stem in there]
        mean = [MEAN] if len(stems) == len(STEMS) else []
        return [*stems, *sorted(there - set(STEMS)), *mean]

    def systems(self, metric: str) -> dict[str, str]:
        """The system and the baselines with scores in a metric: name in the rows -> label.

        SIR, SAR and ISR are the system's alone. A baseline may lack songs: its label says so.
        """
        songs: dict[str, set[str]] = {}
        for row in self.rows:
            if row.metric == metric:
                songs.setdefault(row.system, set()).add(row.song.name)
        found = {self.system: self.system}
        for name, label in BASELINES.items():
            if name in songs:
                fewer = len(songs[name]) < len(songs[self.system])
                found[name] = f"{label}, of {counted(len(songs[name]))}" if fewer else label
        return found

    def values(self, system: str, metric: str) -> dict[str, dict[str, float]]:
        """{column: {song: dB}}; the mean of a song's stems is NaN if one of them is."""
        found: dict[str, dict[str, float]] = {column: {} for column in self.columns}
        for row in self.rows:
            if (row.system, row.metric) == (system, metric):
                found[row.stem][row.song.name] = row.value
        if MEAN in found:
            for song in found[STEMS[0]]:
                stems = [found[stem].get(song, math.nan) for stem in STEMS]
                found[MEAN][song] = sum(stems) / len(stems)
        return found

    def averages(
        self, system: str, metric: str, how: Callable[[Iterable[float]], float], group: str = ""
    ) -> dict[str, float]:
        """{column: dB} over the songs, or those of a group; the mean is that of the columns."""
        found = {
            column: how(v for song, v in values.items() if group in ("", self.songs[song]))
            for column, values in self.values(system, metric).items()
        }
        if MEAN in found:
            found[MEAN] = sum(found[stem] for stem in STEMS) / len(STEMS)
        return found

    @property
    def groups(self) -> list[str]:
        """The groups of songs, if there are several."""
        there = list(dict.fromkeys(self.songs.values()))
        return there if len(there) > 1 else []

    def published(self, metric: str) -> list[tuple[str, dict[str, str]]]:
        """Label, and dB as published by column, of each published row in a metric."""
        if self.split != "test":
            return []
        shown = []
        for row in published.PUBLISHED:
            values = {
                column: row.values[_key(column)]
                for column in self.columns
                if _key(column) in row.values
            }
            if row.metric == metric and set(values.values()) - {published.NONE}:
                shown.append((label_of(row), values))
        return shown


@dataclass(frozen=True)
class Table:
    """One metric: its heading, and blocks of rows."""

    convention: str
    columns: list[str]
    blocks: list[list[Line]]


def tables(scores: Comparison) -> list[Table]:
    """A table for each metric, and one for published rows that state no metric."""
    found = [_table(scores, metric) for metric in scores.metrics]
    if unknown := _published(scores, published.NOT_STATED):
        found.append(Table("Published without saying which metric.", scores.columns, [unknown[1:]]))
    return found


def _table(scores: Comparison, metric: str) -> Table:
    own = scores.values(scores.system, metric)

    def line(values: Mapping[str, float], label: str) -> Line:
        return [number(values.get(column, math.nan)) for column in scores.columns], label

    songs = []
    for song in scores.songs:
        note = ": not scored" if song in scores.failed else ""
        of = {column: values.get(song, math.nan) for column, values in own.items()}
        songs.append(line(of, song + note))
    count = counted(len(scores.songs))
    if scores.failed:
        count = f"{len(scores.songs) - len(scores.failed)} of {count}"
    averages = [("mean", "", f"mean of {count}"), ("median", "", f"median of {count}")]
    averages += [("mean", group, f"mean, {GROUPS.get(group, group)}") for group in scores.groups]
    beside = [
        [
            ([""] * len(scores.columns), f"{title}:"),
            *(
                line(scores.averages(system, metric, average(kind), group), label)
                for system, label in scores.systems(metric).items()
            ),
        ]
        for kind, group, title in averages
    ]
    convention = SDR + scores.sdr if metric == "sdr" else CONVENTIONS[metric]
    blocks = [songs, *beside, _published(scores, metric)]
    return Table(convention, scores.columns, [block for block in blocks if block])


def _published(scores: Comparison, metric: str) -> list[Line]:
    found = [
        ([values.get(column, "") for column in scores.columns], label)
        for label, values in scores.published(metric)
    ]
    return [([""] * len(scores.columns), "published:"), *found] if found else []


def notes(scores: Comparison) -> list[str]:
    """What a reader of the tables must know, beside the metrics."""
    found = ["dB, higher is better. Compare scores of one metric and of the same songs only."]
    for name, stems in scores.residuals.items():
        found.append(
            f"{name}: a residual. Its reference is the sum of {', '.join(stems)}; so are the "
            "estimates of the baselines, but for the mixture."
        )
    empty = sum(math.isnan(r.value) for r in scores.rows if r.system == scores.system)
    if empty:
        found.append(
            f"{empty} scores of {scores.system} do not exist (-): a silent stem has none, and a "
            "song with a missing or silent stem none of BSSEval v4. Averages leave them out."
        )
    if any(scores.published(metric) for metric in (*scores.metrics, published.NOT_STATED)):
        found.append(PUBLISHED_NOTE)
    return found


def text(scores: Comparison) -> str:
    """Everything as text: what was scored, a table for each metric, notes."""
    width = max(len(key) for key in scores.about) + 2
    heading = "\n".join(f"{key.ljust(width)}{value}" for key, value in scores.about.items())
    parts = [
        f"{table.convention}\n\n{aligned([(table.columns, 'song')], *table.blocks)}"
        for table in tables(scores)
    ]
    return "\n\n".join([heading, *parts, "\n".join(notes(scores))])


def markdown(scores: Comparison) -> str:
    """The same as Markdown."""
    lines = [f"# {scores.system}", ""]
    lines += [f"- {key}: {value}" for key, value in scores.about.items()]
    for table in tables(scores):
        lines += ["", table.convention, "", _row("song", table.columns), _rule(len(table.columns))]
        for block in table.blocks:
            lines += [_row(label if any(c) else f"**{label}**", c) for c, label in block]
    return "\n".join([*lines, "", *notes(scores), ""])


def _row(label: str, cells: Sequence[str]) -> str:
    escaped = label.replace("|", "\\|")
    return f"| {' | '.join([escaped, *cells])} |"


def _rule(columns: int) -> str:
    return f"|---|{'---:|' * columns}"


def as_dict(scores: Comparison) -> dict[str, Any]:
    """The same for JSON, which has no NaN: a missing score is None."""
    found: dict[str, Any] = {}
    for metric in scores.metrics:
        own = scores.values(scores.system, metric)
        found[metric] = {
            "convention": SDR + scores.sdr if metric == "sdr" else CONVENTIONS[metric],
            "songs": {
                song: in_json({column: found.get(song, math.nan) for column, found in own.items()})
                for song in scores.songs
                if song not in scores.failed
            },
            **{
                kind: {
                    system: in_json(scores.averages(system, metric, average(kind)))
                    for system in scores.systems(metric)
                }
                for kind in ("mean", "median")
            },
            "published": dict(scores.published(metric)),
        }
    return {
        "system": scores.system,
        "about": dict(scores.about),
        "groups": dict(scores.songs),
        "residuals": {name: list(stems) for name, stems in scores.residuals.items()},
        "metrics": found,
        "published_without_metric": dict(scores.published(published.NOT_STATED)),
        "not_scored": dict(scores.failed),
    }


def _key(column: str) -> str:
    return published.TOTAL if column == MEAN else column
