"""docs/stems.md, from the scores of `studies.stems` in docs/stems.csv."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.markdown import fill, table
from jukesep.separation.refine import DEFAULT, OVERLAP, REFINEMENTS, Consistency, Masks, Wiener
from jukesep.songs.manifest import STEMS
from studies import experiments


@dataclass(frozen=True)
class Score:
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


PAGE, SCORES = Path("docs/stems.md"), Path("docs/stems.csv")
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

    def table(self) -> str:
        """Every option but those of the grid."""
        plain = self.options[PLAIN]
        lines = [["", *STEMS, "mean", "gain", "songs that gain", "time"]]
        for option, found in self.options.items():
            if "/" in option:
                continue
            stems = map(statistics.mean, zip(*(score.stems for score in found), strict=True))
            pairs = list(zip(found, plain, strict=True))
            higher = sum(round(score.mean - before.mean, 2) > 0 for score, before in pairs)
            slower = sum(s.seconds for s in found) / sum(s.seconds for s in plain)
            name = f"**{option}**" if option == DEFAULT else option
            cells = [name, *map(_db, stems), _db(self.mean(option)), f"{self.gain(option):+.2f}"]
            lines.append([*cells, f"{higher} of {len(found)}", f"{slower:.2f} x"])
        return table(lines)

    def grid(self, prefix: str, rows: str = "") -> str:
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
        lines = [[row, *(f"{values[one]:.3f}" for one in columns)] for row, values in cells.items()]
        return table([[rows, *columns], *lines])


def page(scores: Sequence[Score]) -> str:
    """docs/stems.md."""
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

    lines = []
    for metric, title in METRICS.items():
        lines += [f"## {title}", ""]
        for songs, words in SONGS.items():
            lines += [f"Pretrained, {words}:", "", found["pretrained", songs, metric].table(), ""]
    lines += ["## Models from scratch", ""]
    for metric in METRICS:
        for songs, words in list(SONGS.items())[:2]:
            summary = found["scratch", songs, metric]
            lines += [f"`{metric}`, {words}:", "", summary.table(), ""]
    return fill(
        "stems",
        experiments.PAGES,
        default=DEFAULT,
        consistency_power=f"{Consistency.power:g}",
        masks_power=f"{Masks.power:g}",
        valid=gains(valid),
        seen=gains(seen),
        held_out=gains(held_out),
        bass=_change(unheard.stem_gain(DEFAULT, "bass")),
        all_stems=_change(unheard.gain(DEFAULT)),
        consistency=_change(unheard.gain("consistency")),
        panning=f"{chosen.gain('wiener', 'masks'):+.2f}",
        two_shifts=f"{chosen.gain('2 shifts'):+.2f}",
        shifts=f"{chosen.gain('8 shifts'):+.2f}",
        shifts_wiener=f"{chosen.gain('8 shifts, then wiener', 'wiener'):+.2f}",
        masks_consistency=f"{chosen.gain('masks, then consistency', 'masks'):+.2f}",
        norbert=f"{chosen.gain('norbert, 1 iteration'):+.2f}",
        tables="\n".join(lines).rstrip(),
        overlap=str(OVERLAP),
        powers=", ".join(f"{name} of power {kind.power:g}" for name, kind in REFINEMENTS.items()),
        run=str(Wiener.run),
        grids=_grids(found["pretrained", valid, "sdr"], chosen),
    )


def _grids(mono: Summary, both: Summary) -> str:
    """The parameters that were tried."""
    parts = []
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
        parts += [f"{title}:", summary.grid(prefix, rows)]
    return "\n\n".join(parts)


def _change(gain: float) -> str:
    return f"{'gains' if gain >= 0 else 'loses'} {abs(gain):.2f} dB"


def _db(value: float) -> str:
    return f"{value:.2f}"
