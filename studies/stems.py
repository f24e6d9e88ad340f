"""Measure what each refinement of the separated stems gains: docs/stems.md.

    uv run python -m studies.stems            # needs `dvc repro` (or pull) first; minutes
    uv run python -m studies.stems --write    # measure nothing, write the page from docs/stems.csv

Separates all validation and test songs with the last models of each stem, on one thread, and scores
every refinement of `jukesep.separation.refine`. Parameters are tried on the validation songs alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from jukesep import audio, load_separator
from jukesep.base.errors import UserError, reported
from jukesep.base.files import write_text
from jukesep.base.paths import MANIFEST, RUNS
from jukesep.base.progress import bar
from jukesep.scoring import metrics
from jukesep.separation.chunked import apply_chunked
from jukesep.separation.refine import REFINEMENTS, Refinement, Wiener, delayed, delays
from jukesep.separation.separator import Separator
from jukesep.songs.manifest import MIXTURE, STEMS, Manifest, Song
from studies import records, stems_page
from studies.stems_page import PAGE, SCORES, Score

SHIFTS = (2, 4, 8)
POWERS = (0.5, 1.0, 1.25, 1.5, 2.0)

Stems = dict[str, torch.Tensor]
Way = Callable[[torch.Tensor, Stems], Stems]


class Option(NamedTuple):
    """A refinement; `shifts` runs of the models come before it."""

    name: str
    way: Way
    shifts: int = 1


def refined(name: str, rate: int, run: int | None = None, **settings: float) -> Way:
    """A refinement by its name, with its own parameters where none are given."""

    def way(mixture: torch.Tensor, stems: Stems) -> Stems:
        refinement: Refinement = REFINEMENTS[name](rate, **settings)  # type: ignore[arg-type]
        refinement.run = run or refinement.run
        return refinement(mixture, stems)

    return way


def norbert(n_fft: int, iterations: int) -> Way:
    """Multichannel Wiener filtering by the package norbert, a whole song at once."""
    try:
        from norbert import wiener
    except ImportError as error:
        raise UserError(f"{error}. `uv sync` installs it.") from error
    window = torch.hann_window(n_fft)

    def spectra(rows: torch.Tensor) -> torch.Tensor:
        found = torch.stft(
            rows, n_fft, n_fft // 4, window=window, pad_mode="constant", return_complex=True
        )
        return found.permute(2, 1, 0)  # (frames, bins, channels)

    def way(mixture: torch.Tensor, stems: Stems) -> Stems:
        magnitudes = torch.stack([spectra(stem).abs() for stem in stems.values()], dim=-1)
        x = spectra(mixture).to(torch.complex128)
        y = torch.from_numpy(wiener(magnitudes.double().numpy(), x.numpy(), iterations))
        shares = y.to(torch.complex64).permute(3, 2, 1, 0)
        samples = mixture.shape[-1]
        return {
            stem: torch.istft(share, n_fft, n_fft // 4, window=window, length=samples)
            for stem, share in zip(stems, shares, strict=True)
        }

    return way


def options(rate: int) -> list[Option]:
    """What is scored on all songs: each way with its parameters, and ways one after the other."""
    equal = refined("consistency", rate, power=0.0)
    ways = {name: refined(name, rate) for name in REFINEMENTS}

    def masks_then_consistency(mixture: torch.Tensor, stems: Stems) -> Stems:
        return equal(mixture, ways["masks"](mixture, stems))

    return [
        Option(stems_page.PLAIN, lambda _, stems: stems),
        Option("consistency, equal shares", equal),
        *(Option(name, ways[name]) for name in ("consistency", "masks", "wiener")),
        Option("masks, then consistency", masks_then_consistency),
        Option("norbert, 1 iteration", norbert(2048, 1)),
        *(Option(f"{n} shifts", lambda _, stems: stems, n) for n in SHIFTS),
        *(Option(f"8 shifts, then {name}", way, 8) for name, way in ways.items()),
    ]


def grid(rate: int) -> list[Option]:
    """The parameters that are tried, named way/parameter=value/..., on the validation songs."""
    found = []
    for n in (512, 1024, 2048, 4096):
        for p in POWERS:
            name, run = f"n_fft={n}/power={p:g}", Wiener.run * 2048 // n  # as long in time
            found.append(Option(f"masks/{name}", refined("masks", rate, n_fft=n, power=p)))
            found.append(Option(f"wiener/{name}", refined("wiener", rate, run, n_fft=n, power=p)))
    found += [
        Option(f"consistency/power={p:g}", refined("consistency", rate, power=p))
        for p in (0.0, 0.25, 0.5, 1.0, 2.0)
    ]
    found += [
        Option(f"wiener/run={run}", refined("wiener", rate, run)) for run in (22, 43, 86, 172, 344)
    ]
    return found + [
        Option(f"norbert/n_fft={n}/iterations={i}", norbert(n, i))
        for n in (1024, 2048)
        for i in (0, 1, 2)
    ]


def score_song(
    song: Song, init: str, separator: Separator, ways: Iterable[Option], shifts: int
) -> list[Score]:
    """Scores of one song by every option: `sdr` of the mono mixture's stems, `sdr_mdx` of stereo's.

    `shifts` is the most of them that an option asks for.
    """
    mixture = audio.read(song.file(MIXTURE))
    references = {stem: audio.read(song.file(stem)) for stem in STEMS}
    rows = torch.from_numpy(np.concatenate([audio.to_mono(mixture), mixture]))
    start, runs = time.perf_counter(), {}
    for stem, model in separator.models.items():
        run = partial(apply_chunked, model)
        runs[stem] = [delayed(run, rows, one) for one in delays(shifts, model.architecture.hop)]
    separation = (time.perf_counter() - start) / shifts
    found = []
    for option in ways:
        stems = {stem: torch.stack(one[: option.shifts]).mean(0) for stem, one in runs.items()}
        start = time.perf_counter()
        # The mono mixture, then the channels: a refinement compares the channels that it gets.
        mono = option.way(rows[:1], {stem: rows_[:1] for stem, rows_ in stems.items()})
        both = option.way(rows[1:], {stem: rows_[1:] for stem, rows_ in stems.items()})
        seconds = separation * option.shifts + time.perf_counter() - start
        values = {
            "sdr": [
                metrics.sdr(audio.to_mono(references[stem]), mono[stem].numpy()) for stem in STEMS
            ],
            "sdr_mdx": [metrics.sdr_mdx(references[stem], both[stem].numpy()) for stem in STEMS],
        }
        for metric, sdrs in values.items():
            about = init, song.split, song.group, song.name, option.name, metric
            found.append(Score(*about, *(round(value, 4) for value in (*sdrs, seconds))))
    return found


def measure() -> list[Score]:
    """All songs by all options. Models from scratch: without shifts, and not the grid."""
    torch.set_num_threads(1)
    manifest = Manifest.load(MANIFEST)
    found = []
    songs = [*manifest.split("valid"), *manifest.split("test")]
    for init in ("pretrained", "scratch"):
        separator = load_separator(RUNS, init)
        missing = set(STEMS) - set(separator.stems)
        if missing:
            raise UserError(f"{RUNS}: no {init} models of {', '.join(sorted(missing))}.")
        for song in bar(songs, desc=init, unit="song"):
            ways = options(separator.sample_rate)
            if init == "scratch":
                ways = [option for option in ways if option.shifts == 1]
            elif song.split == "valid":
                ways += grid(separator.sample_rate)
            most = max(option.shifts for option in ways)
            found += score_song(song, init, separator, ways, most)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, or read what was measured; write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="measure nothing, write the page")
    if parser.parse_args(arguments).write:
        records.require(SCORES)
    else:
        write_text(SCORES, records.text(Score, measure()))
    write_text(PAGE, stems_page.page(records.load(Score, SCORES)))
    print(PAGE)


if __name__ == "__main__":
    with reported():
        main()
