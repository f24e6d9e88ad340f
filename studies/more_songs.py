"""Score the demo's models on more songs than its test split has: docs/more_songs.md.

    uv run python -m studies.more_songs            # needs `dvc repro` (or pull) first
    uv run python -m studies.more_songs --write    # measure nothing, write the page from its CSV

The test split has six songs of each group. The songs of this study come from another seed of the
band, in the same two groups. The study also scores the validation and the test songs. It uses the
models of all seeds, and runs those experiments of `studies.seeds` that are not done. It decodes in
several ways: `fitted_gains` fits the gains of stems to the validation songs.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.markdown import fill, table
from jukesep import audio, load_separator
from jukesep.base import params, paths
from jukesep.base.errors import reported
from jukesep.base.files import write_text
from jukesep.base.parallel import cores
from jukesep.base.params import Bottleneck
from jukesep.base.progress import bar
from jukesep.scoring import metrics
from jukesep.separation.chunked import apply_chunked
from jukesep.separation.refine import Wiener, shifted
from jukesep.separation.separator import Separator
from jukesep.songs.band import render_corpus
from jukesep.songs.manifest import GROUPS, MIXTURE, PARTS, STEMS, Manifest, Song
from jukesep.systems import equaliser
from studies import experiments, records

PAGE, SCORES = Path("docs/more_songs.md"), Path("docs/more_songs.csv")
BAND_SEED, SONGS, SECONDS = 100, 48, 12.0
TESTED = 6  # songs of a group in the demo's test split
EQUALISER, PLAIN, REFINED = "static equaliser", "pretrained", "refined"
SHIFTS, BYPASS = "two shifts", "bypass"
LOUDNESS, ALL = "bypass, gains", "bypass, gains, two shifts"
SYSTEMS = (EQUALISER, PLAIN, REFINED, SHIFTS, BYPASS, LOUDNESS, ALL)
VALID, TEST, MORE = "validation", "test", "more"


@dataclass(frozen=True)
class Score:
    """The paper's SDR in dB of a system on a song, the mean over the stems that are not silent."""

    seed: int
    """Of the training."""
    song: str
    split: str
    """VALID, TEST or MORE."""
    songs: str
    """The group of the song."""
    system: str
    sdr: float
    commit: str


def main(arguments: Sequence[str] | None = None) -> None:
    """Render, separate and score the songs; write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--write", action="store_true", help="measure nothing, write the page")
    options = parser.parse_args(arguments)
    if options.write:
        records.require(SCORES)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            separators = {params.load().seed: load_separator()}
            for seed in options.seeds:
                experiments.run(f"seed-{seed}", [f"seed={seed}"])
                models = experiments.output(f"seed-{seed}", paths.SEPARATOR, folder / str(seed))
                separators[seed] = load_separator(models)
            write_text(SCORES, records.text(Score, measure(separators, folder / "songs")))
    write_text(PAGE, page(load()))
    print(PAGE)


def measure(
    separators: Mapping[int, Separator], folder: Path, songs: int = SONGS, seconds: float = SECONDS
) -> list[Score]:
    """Scores of all systems on the validation and test songs, and on songs made in `folder`.

    `separators` are the models trained under each seed.
    """
    torch.set_num_threads(1)
    manifest = Manifest.load(paths.MANIFEST)
    fitted = equaliser.fit(manifest.split("train"), list(STEMS), manifest.sample_rate)
    valid = manifest.split("valid")
    gains = {
        (seed, shifts): fitted_gains(separator, valid, shifts)
        for seed, separator in separators.items()
        for shifts in (1, 2)
    }
    made = render_corpus(
        folder, counts={"test": songs}, seconds=seconds, seed=BAND_SEED, workers=cores()
    )
    places = [
        (song.name, split, song.group, {part: song.file(part) for part in PARTS})
        for split, some in ((VALID, valid), (TEST, manifest.split("test")))
        for song in some
    ]
    for song in made:
        place = folder / song["split"] / song["name"]
        files = {part: place / f"{part}.wav" for part in PARTS}
        places.append((song["name"], MORE, song["group"], files))
    commit = experiments.commit()

    def score(task: tuple[int, tuple[str, str, str, Mapping[str, Path]]]) -> list[Score]:
        seed, (name, split, group, files) = task
        parts = {part: _mono(file, manifest.sample_rate) for part, file in files.items()}
        once, twice = gains[seed, 1], gains[seed, 2]
        found = []
        for system, stems in _separated(separators[seed], fitted, once, twice, parts[MIXTURE]):
            values = [
                metrics.sdr(parts[stem], stems[stem])
                for stem in STEMS
                if not metrics.silent(parts[stem])
            ]
            sdr = round(statistics.mean(values), 4)
            found.append(Score(seed, name, split, group, system, sdr, commit))
        return found

    tasks = [(seed, place) for seed in separators for place in places]
    with ThreadPoolExecutor(cores()) as pool:
        scored = bar(pool.map(score, tasks), total=len(tasks), desc="more songs", unit="song")
        return [one for found in scored for one in found]


def _mono(file: Path, sample_rate: int) -> audio.Audio:
    """A file's audio in mono at a sample rate, (1, samples)."""
    samples = audio.to_mono(audio.read(file))
    return audio.resample(samples, audio.info(file).sample_rate, sample_rate)


def fitted_gains(separator: Separator, songs: Sequence[Song], shifts: int = 1) -> dict[str, float]:
    """The gain of each stem in bypass, after `shifts` runs, that suits songs best.

    It minimises the mean over the songs of |stem - gain * estimate|^2 / |stem|^2, in mono. The
    static equaliser has such gains too, one for each frequency.
    """
    products, energies = dict.fromkeys(STEMS, 0.0), dict.fromkeys(STEMS, 0.0)
    for song in bar(songs, desc="gains", unit="song"):
        mixture = _mono(song.file(MIXTURE), separator.sample_rate)
        for stem, estimate in _estimates(separator, mixture, "bypass", shifts).items():
            target = _mono(song.file(stem), separator.sample_rate).astype(np.float64)
            if not metrics.silent(target):
                products[stem] += float(np.sum(target * estimate) / np.sum(target**2))
                energies[stem] += float(np.sum(estimate**2) / np.sum(target**2))
    return {stem: products[stem] / energies[stem] for stem in STEMS}


def _estimates(
    separator: Separator, mixture: audio.Audio, bottleneck: Bottleneck, shifts: int
) -> dict[str, np.ndarray]:
    """Stems of a mono mixture (1, samples), the mean of `shifts` runs."""
    x = torch.from_numpy(mixture)
    return {
        stem: shifted(
            partial(apply_chunked, model, bottleneck=bottleneck),
            *(x, shifts, model.architecture.hop),
        )
        .double()
        .numpy()
        for stem, model in separator.models.items()
    }


def _separated(
    separator: Separator,
    fitted: equaliser.Equaliser,
    once: Mapping[str, float],
    twice: Mapping[str, float],
    mixture: audio.Audio,
) -> Iterator[tuple[str, Mapping[str, np.ndarray]]]:
    """Each system, and its stems of a mono mixture (1, samples).

    `once` and `twice` are the gains of the stems in bypass, after one and two runs.
    """
    yield EQUALISER, fitted.separate(mixture, separator.sample_rate)
    plain = _estimates(separator, mixture, "quantise", 1)
    yield PLAIN, plain
    given = {stem: torch.from_numpy(one) for stem, one in plain.items()}
    refined = Wiener(separator.sample_rate)(torch.from_numpy(mixture), given)
    yield REFINED, {stem: one.numpy() for stem, one in refined.items()}
    yield SHIFTS, _estimates(separator, mixture, "quantise", 2)
    bypass = _estimates(separator, mixture, "bypass", 1)
    yield BYPASS, bypass
    yield LOUDNESS, {stem: once[stem] * one for stem, one in bypass.items()}
    both = _estimates(separator, mixture, "bypass", 2)
    yield ALL, {stem: twice[stem] * one for stem, one in both.items()}


def load(path: Path = SCORES) -> list[Score]:
    """The scores kept."""
    return records.load(Score, path)


def page(scores: Sequence[Score]) -> str:
    """docs/more_songs.md."""
    first = scores[0].seed
    more = [score for score in scores if score.split == MORE and score.seed == first]
    return fill(
        "more_songs",
        experiments.PAGES,
        songs=str(len({score.song for score in more})),
        band=str(BAND_SEED),
        seed=str(first),
        commits=", ".join(sorted({score.commit for score in scores})),
        means=_means(more, SYSTEMS[:3]),
        gains=_gains(more),
        decoded=_means(scores, (EQUALISER, PLAIN, *SYSTEMS[3:])),
        decoded_gains=_gains_of_seeds(scores, ALL),
        plain_gains=_gains_of_seeds(scores, PLAIN),
    )


def _at(scores: Sequence[Score]) -> dict[tuple[str, str], dict[str, list[float]]]:
    """(Split, group) -> system -> SDR of each song under each seed, in the same order."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for one in scores:
        systems = found.setdefault((one.split, one.songs), {system: [] for system in SYSTEMS})
        systems[one.system].append(one.sdr)
    return found


def _words(split: str, group: str) -> str:
    return f"{split}: {GROUPS[group]}" if group in GROUPS else split


def _means(scores: Sequence[Score], systems: Sequence[str]) -> str:
    """The means over songs and seeds."""
    lines = [["songs", "number", *systems]]
    seeds = len({score.seed for score in scores})
    for songs, at in _at(scores).items():
        means = (f"{statistics.mean(at[system]):.2f}" for system in systems)
        lines.append([_words(*songs), str(len(at[PLAIN]) // seeds), *means])
    return table(lines)


def _gains(scores: Sequence[Score]) -> str:
    """Of one seed: what the models gain over the equaliser, and how much songs differ in it."""
    heads = ["songs", "gain over the equaliser", "mean", "standard error", "songs with a gain"]
    lines = [[*heads, f"standard error of {TESTED} songs"]]
    for songs, at in _at(scores).items():
        for system in (PLAIN, REFINED, ALL):
            gains = [a - b for a, b in zip(at[system], at[EQUALISER], strict=True)]
            spread, count = statistics.stdev(gains), len(gains)
            cells = [f"{statistics.mean(gains):+.2f}", f"{spread / math.sqrt(count):.2f}"]
            cells += [f"{sum(gain > 0 for gain in gains)} of {count}"]
            cells += [f"{spread / math.sqrt(TESTED):.2f}"]
            lines.append([_words(*songs), system, *cells])
    return table(lines)


def _gains_of_seeds(scores: Sequence[Score], system: str) -> str:
    """What a system gains over the equaliser under each seed."""
    by_seed = {
        seed: _at([score for score in scores if score.seed == seed])
        for seed in dict.fromkeys(score.seed for score in scores)
    }
    lines = [[f"{system}: songs", *(f"seed {seed}" for seed in by_seed)]]
    for songs in _at(scores):
        cells = []
        for at in by_seed.values():
            ours, theirs = (statistics.mean(at[songs][one]) for one in (system, EQUALISER))
            cells.append(f"{ours - theirs:+.2f}")
        lines.append([_words(*songs), *cells])
    return table(lines)


if __name__ == "__main__":
    with reported():
        main()
