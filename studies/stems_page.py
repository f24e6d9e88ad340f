"""docs/stems.md, from the scores of `benchmarks.stems`."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jukesep.separation.refine import DEFAULT, OVERLAP, REFINEMENTS, Consistency, Masks, Wiener
from jukesep.songs.manifest import STEMS


class Score(NamedTuple):
    """One song's stems by one option and metric, in dB; seconds that it took, the models' too."""

    init: str
    split: str
    group: str
    song: str
    option: str
    metric: str
    drums: float
    bass: float
    other: float
    vocals: float
    seconds: float

    @property
    def mean(self) -> float:
        """Of the four stems."""
        return statistics.mean(self.stems)

    @property
    def stems(self) -> tuple[float, ...]:
        """The four, in their order."""
        return self.drums, self.bass, self.other, self.vocals


COLUMNS = Score._fields
PLAIN = "plain"
METRICS = {
    "sdr": "SDR as the paper measures it (`sdr`): the song in mono",
    "sdr_mdx": "SDR of both channels (`sdr_mdx`): the song as a listener has it",
}
SONGS = {
    ("valid", "seen"): "validation songs",
    ("test", "seen"): "test songs of instruments heard in training",
    ("test", "held_out"): "test songs of instruments never heard in training",
}


def read(path: Path) -> list[Score]:
    """The scores that were measured."""
    with path.open(encoding="utf-8", newline="") as file:
        return [_score(row) for row in list(csv.reader(file))[1:]]


def _score(row: Sequence[str]) -> Score:
    init, split, group, song, option, metric, *numbers = row
    return Score(init, split, group, song, option, metric, *map(float, numbers))


class Summary:
    """Means over the songs of one init, split, group and metric, by option."""

    def __init__(self, scores: Sequence[Score], init: str, songs: tuple[str, str], metric: str):
        self.options: dict[str, list[Score]] = {}
        for score in scores:
            if (score.init, score.split, score.group, score.metric) == (init, *songs, metric):
                self.options.setdefault(score.option, []).append(score)

    def mean(self, option: str) -> float:
        """Over songs and stems, dB."""
        return statistics.mean(score.mean for score in self.options[option])

    def gain(self, option: str, over: str = PLAIN) -> float:
        """Of the mean over another option's, dB."""
        return self.mean(option) - self.mean(over)

    def stem_gain(self, option: str, stem: str) -> float:
        """Of one stem over plain, dB."""
        found, plain = (
            statistics.mean(getattr(score, stem) for score in self.options[name])
            for name in (option, PLAIN)
        )
        return found - plain

    def table(self) -> list[str]:
        """Every option but those of the grid."""
        plain = self.options[PLAIN]
        lines = [_row(["", *STEMS, "mean", "gain", "songs that gain", "time"]), _row(["---"] * 9)]
        for option, found in self.options.items():
            if "/" in option:
                continue
            stems = map(statistics.mean, zip(*(score.stems for score in found), strict=True))
            pairs = list(zip(found, plain, strict=True))
            better = sum(round(score.mean - before.mean, 2) > 0 for score, before in pairs)
            slower = sum(s.seconds for s in found) / sum(s.seconds for s in plain)
            name = f"**{option}**" if option == DEFAULT else option
            cells = [name, *map(_db, stems), _db(self.mean(option)), f"{self.gain(option):+.2f}"]
            lines.append(_row([*cells, f"{better} of {len(found)}", f"{slower:.2f} x"]))
        return lines

    def grid(self, prefix: str, rows: str = "") -> list[str]:
        """Means of the options prefix/row=.../column=...; without `rows` there is one row."""
        cells: dict[str, dict[str, float]] = {}
        for option in self.options:
            way, *settings = option.split("/")
            named = dict(setting.split("=") for setting in settings)
            if way == prefix and set(named) - {rows} and (not rows or rows in named):
                row = named.pop(rows, "mean")
                if len(named) == 1:
                    ((column, value),) = named.items()
                    cells.setdefault(row, {})[f"{column} {value}"] = self.mean(option)
        columns = list(next(iter(cells.values())))
        lines = [_row([rows, *columns]), _row(["---"] * (len(columns) + 1))]
        return lines + [
            _row([row, *(f"{values[column]:.3f}" for column in columns)])
            for row, values in cells.items()
        ]


def page(scores: Sequence[Score]) -> str:
    """The page."""
    found = {
        (init, songs, metric): Summary(scores, init, songs, metric)
        for init in ("pretrained", "scratch")
        for songs in SONGS
        for metric in METRICS
    }
    valid, seen, held_out = SONGS
    chosen = found["pretrained", valid, "sdr_mdx"]
    unheard = found["pretrained", held_out, "sdr_mdx"]

    def gains(songs: tuple[str, str]) -> str:
        mono, both = (found["pretrained", songs, metric].gain(DEFAULT) for metric in METRICS)
        return f"{mono:+.2f} dB in mono and {both:+.2f} dB in stereo"

    lines = [
        "# Better stems from the same models",
        "",
        "Written by `uv run python -m benchmarks.stems`; [stems.csv](stems.csv) has every song's "
        "scores. The committed run's last models separate all songs, and the stems are refined. "
        "Nothing is trained.",
        "",
        f"- **{PLAIN}**: what the models make of the mixture, as the paper has it.",
        "- **consistency**: the stems should sum to the mixture, and what they lack is shared out: "
        "equally, or in each frame and bin of the spectrum by the estimates' magnitudes to the "
        f"power of {Consistency.power:g}.",
        "- **masks**: the mixture's spectrum is shared out, by the magnitudes to the power of "
        f"{Masks.power:g}, each channel for itself.",
        "- **wiener**: the same by multichannel Wiener filters, which also know where each stem is "
        "panned. With one channel they are masks.",
        "- **norbert**: multichannel Wiener filters by the package norbert, which wants a whole "
        "song in memory; started, as it proposes, from masks of power 1.",
        "- **shifts**: the mean over so many runs of the models, the song delayed by parts of a "
        "hop.",
        "",
        "## What is used, and why",
        "",
        f"**`{DEFAULT}` is the default.** On the validation songs it gains {gains(valid)}: in "
        "stereo the most of what runs the models once. This choice, and that of all parameters, "
        "was made on those songs. On the test songs of instruments heard in training it gains "
        f"{gains(seen)}, on those of held-out instruments {gains(held_out)}. The reproduction's "
        "tables are of plain stems.",
        "",
        "**On held-out instruments it is worth less.** Shares follow the models' mistakes, where "
        "consistency keeps most of an estimate. In stereo the bass of those songs "
        f"{_change(unheard.stem_gain(DEFAULT, 'bass'))} by {DEFAULT}, and the mean of the stems "
        f"{_change(unheard.gain(DEFAULT))}; by consistency it "
        f"{_change(unheard.gain('consistency'))}. No validation song has such instruments, so that "
        "the choice could not see it: for music unlike the training songs, try both.",
        "",
        "On the validation songs, in stereo (`sdr_mdx`):",
        "",
        f"- Wiener over masks: {chosen.gain('wiener', 'masks'):+.2f} dB. That is what knowing "
        "where stems are panned is worth.",
        f"- Shifts: 8 of them gain {chosen.gain('8 shifts'):+.2f} dB alone, and change what wiener "
        f"makes by {chosen.gain('8 shifts, then wiener', 'wiener'):+.2f} dB. They are not worth "
        "their time with it: `--shifts` is off by default.",
        "- Consistency after masks: "
        f"{chosen.gain('masks, then consistency', 'masks'):+.2f} dB. Masks sum to 1 already.",
        f"- norbert over plain: {chosen.gain('norbert, 1 iteration'):+.2f} dB. Its filters are of "
        "power 2, too sharp for these estimates, and each further iteration sharpens them more. "
        "Version 0.2.1 works with these versions of numpy and scipy; jukesep's own filters equal "
        "it at power 2, for songs of any length.",
        "",
        "In the tables, *time* is of the models and the refinement together, against plain, on one "
        "core; *songs that gain* do so by 0.01 dB or more, in the mean of the stems. A table holds "
        "one kind of SDR.",
        "",
    ]
    for metric, title in METRICS.items():
        lines += [f"## {title}", ""]
        for songs, words in SONGS.items():
            lines += [f"Pretrained, {words}:", "", *found["pretrained", songs, metric].table(), ""]
    lines += ["## Models from scratch", ""]
    for metric in METRICS:
        for songs, words in list(SONGS.items())[:2]:
            summary = found["scratch", songs, metric]
            lines += [f"`{metric}`, {words}:", "", *summary.table(), ""]
    return "\n".join(lines + _grids(found["pretrained", valid, "sdr"], chosen))


def _grids(mono: Summary, both: Summary) -> list[str]:
    """The parameters that were tried."""
    lines = [
        "## Parameters, on the validation songs",
        "",
        "Means over songs and stems in dB, pretrained. In use: frames of 2048 samples at 11,025 Hz "
        f"(at other rates as long in time, to a power of two), each sample in {OVERLAP} of them; "
        + ", ".join(f"{name} of power {kind.power:g}" for name, kind in REFINEMENTS.items())
        + f"; for wiener, runs of {Wiener.run} frames, 4 s. Longer runs cost memory and delay.",
        "",
    ]
    for title, summary, prefix, rows in (
        ("masks, and wiener in mono, `sdr`", mono, "masks", "n_fft"),
        ("masks, `sdr_mdx`", both, "masks", "n_fft"),
        ("wiener, `sdr_mdx`", both, "wiener", "n_fft"),
        ("consistency, `sdr`", mono, "consistency", ""),
        ("consistency, `sdr_mdx`", both, "consistency", ""),
        ("wiener, frames whose covariances are added at a time, `sdr_mdx`", both, "wiener", ""),
        ("norbert, `sdr`", mono, "norbert", "n_fft"),
        ("norbert, `sdr_mdx`", both, "norbert", "n_fft"),
    ):
        lines += [f"{title}:", "", *summary.grid(prefix, rows), ""]
    return lines


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _change(gain: float) -> str:
    return f"{'gains' if gain >= 0 else 'loses'} {abs(gain):.2f} dB"


def _db(value: float) -> str:
    return f"{value:.2f}"
