"""Score the demo's models on more songs than its test split has: docs/more_songs.md.

    uv run python -m studies.more_songs            # needs `dvc repro` (or pull) first; minutes
    uv run python -m studies.more_songs --write    # measure nothing, write the page from its CSV

The test split has six songs of each group. The songs of this study come from another seed of the
band, in the same two groups. No choice is made here: the gains of `fitted_gains` are those that
suit the validation songs.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.markdown import fill, table
from jukesep import audio, load_separator
from jukesep.base import paths
from jukesep.base.errors import reported
from jukesep.base.files import write_text
from jukesep.base.parallel import cores
from jukesep.base.progress import bar
from jukesep.scoring import metrics
from jukesep.separation.chunked import apply_chunked
from jukesep.separation.refine import Wiener
from jukesep.separation.separator import Separator
from jukesep.songs.band import SAMPLE_RATE, render_corpus
from jukesep.songs.manifest import GROUPS, MIXTURE, PARTS, STEMS, Manifest, Song
from jukesep.systems import equaliser
from studies import experiments, records

PAGE, SCORES = Path("docs/more_songs.md"), Path("docs/more_songs.csv")
BAND_SEED, SONGS, SECONDS = 100, 48, 12.0
TESTED = 6  # songs of a group in the demo's test split
EQUALISER, PLAIN, REFINED = "static equaliser", "pretrained", "refined"
BYPASS, LOUDNESS = "bypass", "bypass, one gain a stem"
SYSTEMS = (EQUALISER, PLAIN, REFINED, BYPASS, LOUDNESS)


@dataclass(frozen=True)
class Score:
    """The paper's SDR in dB of a system on a song, the mean over the stems that are not silent."""

    song: str
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
    parser.add_argument("--write", action="store_true", help="measure nothing, write the page")
    if parser.parse_args(arguments).write:
        records.require(SCORES)
    else:
        with tempfile.TemporaryDirectory() as folder:
            write_text(SCORES, records.text(Score, measure(Path(folder))))
    write_text(PAGE, page(load()))
    print(PAGE)


def measure(folder: Path, songs: int = SONGS, seconds: float = SECONDS) -> list[Score]:
    """Scores of all systems on songs that are rendered to `folder`."""
    torch.set_num_threads(1)
    manifest = Manifest.load(paths.MANIFEST)
    separator = load_separator(paths.RUNS, "pretrained")
    fitted = equaliser.fit(manifest.split("train"), list(STEMS), manifest.sample_rate)
    gains = fitted_gains(separator, manifest.split("valid"))
    made = render_corpus(
        folder, counts={"test": songs}, seconds=seconds, seed=BAND_SEED, workers=cores()
    )
    commit = experiments.commit()

    def score(song: Mapping[str, str]) -> list[Score]:
        place = folder / song["split"] / song["name"]
        parts = {
            part: audio.to_mono(
                audio.resample(
                    audio.read(place / f"{part}.wav"), SAMPLE_RATE, separator.sample_rate
                )
            )
            for part in PARTS
        }
        found = []
        for system, stems in _separated(separator, fitted, gains, parts[MIXTURE]):
            values = [
                metrics.sdr(parts[stem], stems[stem])
                for stem in STEMS
                if not metrics.silent(parts[stem])
            ]
            sdr = round(statistics.mean(values), 4)
            found.append(Score(song["name"], song["group"], system, sdr, commit))
        return found

    with ThreadPoolExecutor(cores()) as pool:
        scored = bar(pool.map(score, made), total=len(made), desc="more songs", unit="song")
        return [one for found in scored for one in found]


def fitted_gains(separator: Separator, songs: Sequence[Song]) -> dict[str, float]:
    """The gain of each stem in bypass that suits songs best.

    It minimises the mean over the songs of |stem - gain * estimate|^2 / |stem|^2, in mono. The
    static equaliser has such gains too, one for each frequency.
    """
    products, energies = dict.fromkeys(STEMS, 0.0), dict.fromkeys(STEMS, 0.0)
    for song in bar(songs, desc="gains", unit="song"):
        mixture = audio.to_mono(audio.read(song.file(MIXTURE)))
        for stem, estimate in _bypass(separator, mixture).items():
            target = audio.to_mono(audio.read(song.file(stem))).astype(np.float64)
            if not metrics.silent(target):
                products[stem] += float(np.sum(target * estimate) / np.sum(target**2))
                energies[stem] += float(np.sum(estimate**2) / np.sum(target**2))
    return {stem: products[stem] / energies[stem] for stem in STEMS}


def _bypass(separator: Separator, mixture: audio.Audio) -> dict[str, np.ndarray]:
    """Stems of a mono mixture (1, samples), decoded from latents that are not quantised."""
    x = torch.from_numpy(mixture)
    return {
        stem: apply_chunked(model, x, bottleneck="bypass").double().numpy()
        for stem, model in separator.models.items()
    }


def _separated(
    separator: Separator,
    fitted: equaliser.Equaliser,
    gains: Mapping[str, float],
    mixture: audio.Audio,
) -> Iterator[tuple[str, Mapping[str, np.ndarray]]]:
    """Each system, and its stems of a mono mixture (1, samples)."""
    yield EQUALISER, fitted.separate(mixture, separator.sample_rate)
    x = torch.from_numpy(mixture)
    plain = {stem: apply_chunked(model, x) for stem, model in separator.models.items()}
    yield PLAIN, {stem: one.numpy() for stem, one in plain.items()}
    refined = Wiener(separator.sample_rate)(x, plain)
    yield REFINED, {stem: one.numpy() for stem, one in refined.items()}
    bypass = _bypass(separator, mixture)
    yield BYPASS, bypass
    yield LOUDNESS, {stem: gains[stem] * one for stem, one in bypass.items()}


def load(path: Path = SCORES) -> list[Score]:
    """The scores kept."""
    return records.load(Score, path)


def page(scores: Sequence[Score]) -> str:
    """docs/more_songs.md."""
    groups = list(dict.fromkeys(score.songs for score in scores))
    return fill(
        "more_songs",
        experiments.PAGES,
        songs=str(len({score.song for score in scores})),
        seed=str(BAND_SEED),
        commits=", ".join(sorted({score.commit for score in scores})),
        means=_means(scores, groups),
        gains=_gains(scores, groups),
    )


def _at(scores: Sequence[Score], group: str) -> dict[str, list[float]]:
    """System -> SDR of each song of a group, the songs in the same order."""
    return {
        system: [one.sdr for one in scores if (one.system, one.songs) == (system, group)]
        for system in SYSTEMS
    }


def _means(scores: Sequence[Score], groups: Sequence[str]) -> str:
    lines = [["songs of", "number", *SYSTEMS]]
    for group in groups:
        at = _at(scores, group)
        means = (f"{statistics.mean(at[system]):.2f}" for system in SYSTEMS)
        lines.append([GROUPS.get(group, group), str(len(at[PLAIN])), *means])
    return table(lines)


def _gains(scores: Sequence[Score], groups: Sequence[str]) -> str:
    heads = ["songs of", "gain over the equaliser", "mean", "standard error", "songs with a gain"]
    lines = [[*heads, f"standard error of {TESTED} songs"]]
    for group in groups:
        at = _at(scores, group)
        for system in SYSTEMS[1:]:
            gains = [a - b for a, b in zip(at[system], at[EQUALISER], strict=True)]
            spread, count = statistics.stdev(gains), len(gains)
            cells = [f"{statistics.mean(gains):+.2f}", f"{spread / math.sqrt(count):.2f}"]
            cells += [f"{sum(gain > 0 for gain in gains)} of {count}"]
            cells += [f"{spread / math.sqrt(TESTED):.2f}"]
            lines.append([GROUPS.get(group, group), system, *cells])
    return table(lines)


if __name__ == "__main__":
    with reported():
        main()
