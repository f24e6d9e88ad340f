"""Describe the band's songs in numbers, beside a real excerpt and public figures: docs/songs.md.

    uv run python -m studies.songs            # two minutes; ffmpeg decodes the excerpt
    uv run python -m studies.songs --write    # only the page and the picture, from docs/songs.csv

Renders the training songs of params.yaml at 44.1 kHz, and decodes the six seconds in the package
stempeg. Writes docs/songs.csv, docs/songs.md and docs/songs.png.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import markdown
from jukesep.base import params
from jukesep.base.errors import UserError, reported
from jukesep.base.files import write_text
from jukesep.base.progress import bar
from jukesep.report.figures import picture
from jukesep.songs.band import SAMPLE_RATE, perform
from jukesep.songs.band.composer import compose
from jukesep.songs.manifest import MIXTURE, PARTS, STEMS
from studies import excerpt, experiments, records

PAGE, FIGURES, PICTURE = Path("docs/songs.md"), Path("docs/songs.csv"), Path("docs/songs.png")
BAND, EXCERPT = "band", "excerpt"
FRAME = 0.5  # seconds; at usual tempos no shorter than a beat, so that gaps in a beat do not count
SILENT = -40.0  # dB of the mixture's power: a stem is silent in a frame with less
EDGES = 4410  # samples at both ends of the excerpt: a click where its encoding was cut
LIMIT = 99.0  # dB; as far as a ratio goes, as of the sides of a mono stem
CENTRES = 1000 * 2.0 ** (np.arange(-15, 13) / 3)  # of bands of a third octave, Hz
SLOPE = (100, 4000)  # Hz, where the spectra of records have been found to fall evenly
COUNTS = range(len(STEMS) + 1)
PERCENT = ("energy", "silent", *(f"{count} sounding" for count in COUNTS))
PER_STEM = {
    "energy": "energy (%)",
    "level": "over the other stems (dB)",
    "silent": "silent (% of time)",
    "crest": "crest factor (dB)",
    "range": "range of levels (dB)",
    "width": "side over mid (dB)",
}

Samples = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Figure:
    """A quantity of a part over songs: in dB, or in percent if it is of PERCENT.

    `number` is that of the songs; `low` and `high` are the 10th and the 90th percentile.
    """

    songs: str
    part: str
    quantity: str
    number: int
    mean: float
    low: float
    median: float
    high: float


def describe(stems: Mapping[str, Samples], rate: int) -> dict[tuple[str, str], float]:
    """The quantities of one song, from stems of (2, samples): (part, quantity) -> value.

    NaN where a silent stem has none. The mixture is the sum of the stems. Only whole frames count.
    """
    size = round(FRAME * rate)
    rows: dict[str, Samples] = {
        stem: np.asarray(audio[:, : audio.shape[1] // size * size], np.float64)
        for stem, audio in stems.items()
    }
    rows = {MIXTURE: np.sum(list(rows.values()), axis=0), **rows}
    powers = {part: _powers(audio, size) for part, audio in rows.items()}
    floor = np.mean(powers[MIXTURE]) * 10 ** (SILENT / 10)
    sounds = {part: power > floor for part, power in powers.items()}
    total = sum(powers[stem].sum() for stem in stems)
    found: dict[tuple[str, str], float] = {}
    for part, audio in rows.items():
        on = sounds[part]
        power = powers[part][on]
        left, right = audio
        found[part, "silent"] = 100 * float(np.mean(~on))
        found[part, "crest"] = _db(np.square(audio).max() * len(power), power.sum())
        found[part, "range"] = (
            float(np.diff(10 * np.log10(np.percentile(power, [10, 95])))[0])
            if len(power)
            else math.nan
        )
        found[part, "width"] = _db(np.square(left - right).sum(), np.square(left + right).sum())
        for centre, level in zip(CENTRES, spectrum(audio, rate), strict=True):
            found[part, f"{centre:.0f} Hz"] = level
        if part != MIXTURE:
            others = _powers(rows[MIXTURE] - audio, size)
            found[part, "energy"] = 100 * float(powers[part].sum() / total) if total else math.nan
            found[part, "level"] = _db(power.sum(), others[on].sum())
    found[MIXTURE, "slope"] = slope([found[MIXTURE, f"{centre:.0f} Hz"] for centre in CENTRES])
    sounding = np.sum([sounds[stem] for stem in stems], axis=0)
    for count in COUNTS:
        found[MIXTURE, f"{count} sounding"] = 100 * float(np.mean(sounding == count))
    return found


def spectrum(audio: Samples, rate: int) -> list[float]:
    """The power of (2, samples) in each band of CENTRES, in dB of the power in all of them."""
    power = np.square(np.abs(np.fft.rfft(audio))).sum(0)
    frequencies = np.fft.rfftfreq(audio.shape[-1], 1 / rate)
    edges = np.searchsorted(frequencies, [*CENTRES / 2 ** (1 / 6), CENTRES[-1] * 2 ** (1 / 6)])
    bands = np.diff(np.concatenate(([0], np.cumsum(power)))[edges])
    return [_db(band, bands.sum()) for band in bands]


def slope(bands: Sequence[float]) -> float:
    """Of the power per hertz between the frequencies of SLOPE, in dB per octave: a line's fit."""
    low, high = SLOPE
    inside = (0.99 * low < CENTRES) & (1.01 * high > CENTRES)
    octaves = np.log2(CENTRES[inside])
    density = np.array(bands)[inside] - 10 * np.log10(CENTRES[inside])  # bands widen with Hz
    return float(np.polyfit(octaves, density, 1)[0])


def popular(centres: Samples) -> Samples:
    """The mean spectrum of 12,345 popular songs in bands of a third octave, dB up to a constant.

    Elowsson and Friberg's quadratic (2017, their equation 6) of the power per hertz, over bins of
    1/60 octave from 30 Hz. It holds above 100 Hz.
    """
    bins = 1 + 60 * np.log2(centres / 30)
    density = -0.000183 * bins**2 + 0.0213 * bins - 16.735
    return np.asarray(density + 10 * np.log10(centres))


def _powers(audio: Samples, size: int) -> Samples:
    """The mean square of both channels in each frame."""
    return np.asarray(np.square(audio).reshape(2, -1, size).mean((0, 2)))


def _db(power: float, other: float) -> float:
    """A ratio of powers in dB, within LIMIT; NaN of nothing over nothing."""
    if power <= 0 and other <= 0:
        return math.nan
    if power <= 0 or other <= 0:
        return math.copysign(LIMIT, power - other)
    return float(np.clip(10 * np.log10(power / other), -LIMIT, LIMIT))


def summary(name: str, songs: Sequence[Mapping[tuple[str, str], float]]) -> list[Figure]:
    """Each quantity over the songs that have it."""
    found = []
    for part, quantity in songs[0]:
        values = np.array([song[part, quantity] for song in songs])
        values = values[~np.isnan(values)]
        if len(values):
            numbers = values.mean(), *np.percentile(values, [10, 50, 90])
            rounded = (round(float(number), 2) for number in numbers)
            found.append(Figure(name, part, quantity, len(values), *rounded))
    return found


def measure(count: int | None = None) -> list[Figure]:
    """The figures of the band's training songs, all or `count`, and of the excerpt."""
    band = params.load().band
    songs = []
    for index in bar(range(count or band.train), desc=BAND, unit="song"):
        plan = compose("train", index, band.seed, band.seconds)
        played = perform(plan)
        songs.append(describe({stem: played[stem] / 32768 for stem in STEMS}, SAMPLE_RATE))
    figures = summary(BAND, songs)
    try:
        with tempfile.TemporaryDirectory() as folder:
            parts = excerpt.decode(Path(folder))
    except UserError as error:
        print(f"{error} The page is without the excerpt.", file=sys.stderr)
        return figures
    stems = {stem: parts[stem][:, EDGES:-EDGES] for stem in STEMS}
    return figures + summary(EXCERPT, [describe(stems, SAMPLE_RATE)])


class Table:
    """The figures by songs, part and quantity, and their words on the page."""

    def __init__(self, figures: Sequence[Figure]) -> None:
        self.at = {(one.songs, one.part, one.quantity): one for one in figures}

    def text(self, songs: str, part: str, quantity: str) -> str:
        """The mean of percentages or the median of dB; of several songs also the percentiles."""
        one = self.at.get((songs, part, quantity))
        if one is None:
            return "-"
        percent = quantity in PERCENT
        middle, low, high = (
            "mono" if value == -LIMIT else f"{value:z.0f}" if percent else f"{value:z.1f}"
            for value in (one.mean if percent else one.median, one.low, one.high)
        )
        return middle if low == high else f"{middle} ({low} to {high})"

    def stems(self, songs: str) -> str:
        """A row for each part."""
        lines = [["", *PER_STEM.values()]]
        lines += [[part, *(self.text(songs, part, one) for one in PER_STEM)] for part in PARTS]
        return markdown.table(lines)

    def overlap(self) -> str:
        """A row for each set of songs: the share of time with so many stems sounding."""
        lines = [["% of time with so many stems", *map(str, COUNTS)]]
        for songs in (BAND, EXCERPT):
            cells = [self.text(songs, MIXTURE, f"{count} sounding") for count in COUNTS]
            lines.append([f"the {songs}", *cells])
        return markdown.table(lines)

    def spectrum(self, songs: str, part: str, value: str = "median") -> list[float]:
        """In dB by band; NaN where there is none."""
        found = (self.at.get((songs, part, f"{centre:.0f} Hz")) for centre in CENTRES)
        return [getattr(one, value) if one else math.nan for one in found]


def page(figures: Sequence[Figure]) -> str:
    """docs/songs.md."""
    table = Table(figures)
    cells = {
        f"{songs}_{name}": table.text(songs, part, quantity)
        for songs in (BAND, EXCERPT)
        for name, part, quantity in (
            ("slope", MIXTURE, "slope"),
            ("voice", "vocals", "level"),
            ("crest", MIXTURE, "crest"),
            ("width", MIXTURE, "width"),
            ("silent", "vocals", "silent"),
            ("all", MIXTURE, f"{len(STEMS)} sounding"),
        )
    }
    return markdown.fill(
        "songs",
        experiments.PAGES,
        count=str(table.at[BAND, MIXTURE, "silent"].number),
        picture=PICTURE.name,
        frame=f"{FRAME:g}",
        silent=f"{-SILENT:g}",
        band=table.stems(BAND),
        excerpt=table.stems(EXCERPT),
        overlap=table.overlap(),
        **cells,
    )


def draw(figures: Sequence[Figure], path: Path) -> None:
    """The spectrum of each part, and the number of stems that sound."""
    table = Table(figures)
    with picture(path, (9.5, 5.4), dpi=100) as figure:
        panels = figure.subplots(2, 3).flat
        for axes, part in zip(panels, PARTS, strict=False):
            low, middle, high = (table.spectrum(BAND, part, v) for v in ("low", "median", "high"))
            axes.fill_between(CENTRES, low, high, color="#0072B2", alpha=0.2, lw=0)
            axes.plot(CENTRES, middle, color="#0072B2", lw=2, label="the band: median, 10 to 90 %")
            real = table.spectrum(EXCERPT, part)
            axes.plot(CENTRES, real, color="#D55E00", label="one real excerpt")
            if part == MIXTURE:
                above, inside = CENTRES > 99, (CENTRES > 190) & (CENTRES < 2100)
                shift = np.mean(np.array(middle)[inside] - popular(CENTRES[inside]))
                axes.plot(
                    CENTRES[above], popular(CENTRES[above]) + shift, "k--",
                    label="mean of 12,345 records",
                )  # fmt: skip
                figure.legend(
                    *axes.get_legend_handles_labels(), loc="outside lower center", ncols=3
                )
            axes.set_xscale("log")
            axes.set_xticks([50, 200, 1000, 5000], ["50", "200", "1k", "5k"])
            axes.minorticks_off()
            axes.set_ylim(-45, 0)
            axes.set_title(part, loc="left")
        axes = figure.axes[-1]
        for place, (songs, colour) in enumerate(((BAND, "#0072B2"), (EXCERPT, "#D55E00"))):
            keys = [(songs, MIXTURE, f"{count} sounding") for count in COUNTS]
            shares = [table.at[key].mean if key in table.at else 0 for key in keys]
            axes.bar(np.array(COUNTS) + 0.4 * place - 0.2, shares, 0.4, color=colour)
        axes.set_title("stems at a time (% of time)", loc="left")
        for axes, label in zip(figure.axes[3:], ("Hz", "Hz", "stems"), strict=True):
            axes.set_xlabel(label)
        figure.supylabel("dB of the part's power, third octaves", fontsize=9)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, unless the page alone is asked for; write the page and the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="measure nothing, write the page")
    parser.add_argument("--songs", type=int, help="songs to render, default all training songs")
    options = parser.parse_args(arguments)
    if options.write:
        records.require(FIGURES)
    else:
        write_text(FIGURES, records.text(Figure, measure(options.songs)))
    figures = records.load(Figure, FIGURES)
    draw(figures, PICTURE)
    write_text(PAGE, page(figures))
    print(f"{PAGE}, {PICTURE}")


if __name__ == "__main__":
    with reported():
        main()
