"""Separate and score whole songs, and write one row per score.

This module does not import torch until a model runs.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .. import audio
from ..audio import Audio
from ..base.files import atomic
from ..base.parallel import at_once
from ..base.progress import bar
from ..songs.manifest import MIXTURE, STEMS, Song
from ..systems import equaliser
from . import metrics

if TYPE_CHECKING:
    from ..base.params import Separation
    from ..model.vqvae import VQVAE
    from ..systems.system import System

COLUMNS = ("song", "group", "stem", "system", "init", "step", "metric", "value")
BASELINES: dict[str, Callable[[Audio, np.ndarray], np.ndarray]] = {
    "scaled_mixture": metrics.scaled_mixture,
    "mixture": metrics.mixture,
    "ideal_ratio_mask": metrics.ideal_ratio_mask,
}


BASELINES_MEMORY = 250  # bytes per sample and channel of a song, to score all of them; measured


class Row(NamedTuple):
    """One score in dB: of which system, on which song and stem, by which metric.

    NaN if the metric leaves the song out: the stem is silent in it or, for metrics of BSSEval v4,
    no second of the song has sound in all stems.
    """

    song: Song
    stem: str
    system: str
    init: str
    step: int | str
    metric: str
    value: float


def write_scores(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as CSV, atomically."""
    with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows:
            writer.writerow([row.song.name, row.song.group, *row[1:-1], f"{row.value:.6f}"])


def score_baselines(
    songs: list[Song],
    fitted: equaliser.Equaliser,
    sample_rate: int,
    museval: bool = False,
    keep: Path | None = None,
) -> list[Row]:
    """Score the static equaliser, the mixture, scaled or not, and the oracle on whole songs.

    They are scored for the stems that the equaliser was fitted to, one song on each core if there
    is enough memory. `keep` is a folder for the mono audio of the equaliser, to listen to:
    <song>/<stem>.flac.
    """

    def systems(
        mixture: Audio, references: Mapping[str, Audio]
    ) -> Iterator[tuple[str, Mapping[str, Audio]]]:
        yield equaliser.NAME, fitted.separate(mixture, sample_rate)
        stacked = np.array(list(references.values()))
        for name, separate in BASELINES.items():
            yield name, dict(zip(references, separate(mixture, stacked), strict=True))

    def score(song: Song) -> list[Row]:
        rows = []
        mixture, references = _read(song)
        in_mono = {stem: audio.to_mono(reference) for stem, reference in references.items()}
        both = zip(
            systems(mixture, references), systems(audio.to_mono(mixture), in_mono), strict=True
        )
        for (name, estimates), (_, mono) in both:
            chosen = {stem: estimates[stem] for stem in fitted.gains}
            rows += score_estimates(
                song, references, chosen, name, "", sample_rate, mono=mono, museval=museval
            )
            if keep and name == equaliser.NAME:
                for stem in chosen:
                    write_sound(keep / song.name / f"{stem}.flac", mono[stem], sample_rate)
        return rows

    longest = max(songs, key=lambda song: song.samples)
    channels = audio.info(longest.file(MIXTURE)).channels
    each = BASELINES_MEMORY * longest.samples * channels
    # museval takes far more memory.
    with ThreadPoolExecutor(1 if museval else at_once(len(songs), each)) as pool:
        scored = bar(pool.map(score, songs), total=len(songs), desc="baselines", unit="song")
        return [row for rows in scored for row in rows]


def score_models(
    songs: list[Song],
    stem: str,
    init: str,
    stage1: VQVAE,
    stage2: dict[int, VQVAE],
    sample_rate: int,
    separation: Separation,
    museval: bool = False,
    keep: Path | None = None,
) -> list[Row]:
    """Run `score_separation` on every song.

    On a CPU several songs are scored in parallel: one on each core, if there is enough memory.
    `keep` is a folder for the mono audio that was scored, to listen to: <song>/<system>.flac.
    """

    def score(song: Song) -> list[Row]:
        def kept(system: str, mono: Audio) -> None:
            if keep is not None:
                write_sound(keep / song.name / f"{system}.flac", mono, sample_rate)

        return score_separation(
            *(song, *_read(song), stem, init, stage1, stage2, sample_rate, separation, museval),
            kept=kept,
        )

    with ThreadPoolExecutor(workers(songs, stage1, separation, museval)) as pool:
        scored = pool.map(score, songs)
        line = bar(scored, total=len(songs), desc=f"evaluate {stem} {init}", unit="song")
        return [row for rows in line for row in rows]


def workers(
    songs: Sequence[Song], model: VQVAE, separation: Separation, museval: bool = False
) -> int:
    """How many songs to score at a time: on a CPU one on each core, if there is enough memory."""
    if next(model.parameters()).device.type != "cpu":
        return 1
    longest = max(songs, key=lambda song: song.samples)
    channels = audio.info(longest.file(MIXTURE)).channels
    return at_once(len(songs), memory(longest.samples, channels, model, separation, museval))


def memory(
    samples: int, channels: int, model: VQVAE, separation: Separation, museval: bool = False
) -> float:
    """Bytes of memory that `score_separation` takes for a song on a CPU; measured, rounded up."""
    from .. import kernels

    chunk = min(samples, separation.chunk + 2 * model.context())
    network = 500 if kernels.enabled() else 150 + 50 * model.architecture.width
    song = 700 if museval else 100
    return float(song * channels * samples + network * (1 + channels) * chunk)


def score_separation(
    song: Song,
    mixture: Audio,
    references: Mapping[str, Audio],
    stem: str,
    init: str,
    stage1: VQVAE,
    stage2: Mapping[int, VQVAE],
    sample_rate: int,
    separation: Separation,
    museval: bool = False,
    progress: Callable[[int], object] | None = None,
    kept: Callable[[str, Audio], object] | None = None,
) -> list[Row]:
    """Score one song with the model of each step in `stage2`, and the ceiling of `stage1`.

    `mixture` and each reference are (channels, samples) at `sample_rate` Hz. `sdr`, the paper's
    metric, scores the separated mono mixture; the other metrics score the separated channels. The
    ceiling is D(Q(E1(stem))) in mono: but for luck, no E2 does better than E1 on the stem itself.
    `separation` holds the chunk settings of every run. `progress` is called with the number of
    samples finished, channels times length: (1 + (1 + channels) * models) * length in all.
    `kept` is called with a name ("ceiling", then each step) and the scored mono (1, samples).
    """
    import torch

    from ..separation.chunked import apply_chunked

    def run(model: VQVAE, rows: Audio) -> Audio:
        device = next(model.parameters()).device
        tell = (lambda done: progress(done * len(rows))) if progress else None
        output = apply_chunked(
            model,
            torch.from_numpy(rows).to(device),
            progress=tell,
            sample_rate=sample_rate,
            **separation.model_dump(),
        )
        return output.cpu().numpy()

    target = audio.to_mono(references[stem])
    reconstruction = run(stage1, target)
    if kept:
        kept("ceiling", reconstruction)
    undefined = metrics.silent(references[stem])
    ceiling = math.nan if undefined else metrics.sdr(target, reconstruction)
    rows = [Row(song, stem, "ceiling", init, "", "sdr", ceiling)]
    for step, model in stage2.items():
        # One batch: the mono mixture, then the channels.
        found = run(model, np.concatenate([audio.to_mono(mixture), mixture]))
        mono, channels = found[:1], found[1:]
        scored = score_estimates(
            *(song, references, {stem: channels}, "separation", step, sample_rate),
            mono={stem: mono},
            museval=museval,
        )
        if kept:
            kept(str(step), mono)
        rows += [row._replace(init=init) for row in scored]
    return rows


def score_systems(
    songs: list[Song],
    systems: Sequence[System],
    step: int | str,
    sample_rate: int,
    museval: bool = False,
    keep: Path | None = None,
    workers: int = 1,
) -> list[Row]:
    """Score systems on whole songs. `sdr` scores what they separate from the mono mixture.

    `workers` songs are scored at a time, in threads. `keep` is a folder for that mono audio, to
    listen to: <song>/<stem>.flac, and <song>/<system>_<stem>.flac of all systems but the first.
    """

    def score(song: Song) -> list[Row]:
        mixture, references = _read(song)
        rows = []
        for system in systems:
            estimates = system(mixture, sample_rate)
            mono = estimates
            if len(mixture) > 1:
                mono = system(audio.to_mono(mixture), sample_rate)
            rows += score_estimates(
                song,
                references,
                estimates,
                system.name,
                step,
                sample_rate,
                mono=mono,
                museval=museval,
            )
            if keep is not None:
                before = "" if system is systems[0] else f"{system.name}_"
                for stem, samples in mono.items():
                    path = keep / song.name / f"{before}{stem}.flac"
                    write_sound(path, samples, sample_rate)
        return rows

    if not systems:
        return []
    title = "evaluate " + ", ".join(one.name for one in systems)
    with ThreadPoolExecutor(workers) as pool:
        scored = bar(pool.map(score, songs), total=len(songs), desc=title, unit="song")
        return [row for rows in scored for row in rows]


def score_estimates(
    song: Song,
    references: Mapping[str, Audio],
    estimates: Mapping[str, Audio],
    system: str,
    step: int | str,
    sample_rate: int,
    *,
    mono: Mapping[str, Audio] | None = None,
    museval: bool = False,
    si_sdr: bool = False,
    frames: dict[str, dict[str, metrics.Array]] | None = None,
) -> list[Row]:
    """Score a system's estimates of one song with every metric: one row per stem and metric.

    `references` holds every stem of the song, `estimates` those that the system returns, each
    (channels, samples) at `sample_rate` Hz. `sdr`, the paper's metric, has two conventions: it
    scores `mono`, the stems (1, samples) that the system separated from the mono mixture, or, if
    that is None, the mean of the channels of `estimates`. They are equal for a mono song.
    `museval` adds SIR, SAR and ISR, `si_sdr` the scale-invariant SDR. `frames` is filled with the
    values of every second: {stem: {metric of BSSEval v4: (frames,)}}.
    """
    rows = []
    asked = metrics.EXTRAS if museval else ()
    extras = _extras(references, estimates, sample_rate) if museval else {}
    for stem, estimate in estimates.items():
        seconds: dict[str, metrics.Array] = {}
        values = metrics.score_song(
            song.name, stem, references, estimate, sample_rate, frames=seconds
        )
        seconds |= extras.get(stem, {})
        values |= {metric: metrics.median(seconds.get(metric, [])) for metric in asked}
        undefined = math.isnan(values["sdr"])
        if mono is not None and not undefined:
            values["sdr"] = metrics.sdr(audio.to_mono(references[stem]), mono[stem])
        if si_sdr:
            target = references[stem]
            values[metrics.SI_SDR] = math.nan if undefined else metrics.si_sdr(target, estimate)
        if frames is not None:
            frames[stem] = seconds
        rows += [Row(song, stem, system, "", step, m, v) for m, v in values.items()]
    return rows


def _extras(
    references: Mapping[str, Audio], estimates: Mapping[str, Audio], sample_rate: int
) -> dict[str, dict[str, metrics.Array]]:
    """museval's SIR, SAR and ISR of every second: {stem: {metric: (frames,)}}.

    They depend on all references but on no other estimate, so that one call does for all stems: the
    reference stands in for an estimate that there is not. Empty if a stem is silent.
    """
    if any(map(metrics.silent, references.values())):
        return {}
    targets = np.array(list(references.values()), np.float64)
    given = np.array([estimates.get(stem, one) for stem, one in references.items()], np.float64)
    found = metrics.museval_extras(targets, given, sample_rate)
    return {
        stem: {metric: values[place] for metric, values in found.items()}
        for place, stem in enumerate(references)
    }


def write_sound(path: Path, mono: Audio, sample_rate: int) -> None:
    """Write audio that was scored, (1, samples), to listen to: 16-bit flac, clipped at 1."""
    audio.write(path, np.clip(mono, -1, 1), sample_rate, "PCM_16")


def _read(song: Song) -> tuple[Audio, dict[str, Audio]]:
    """Read a song's mixture and its four stems, each (channels, samples)."""
    return audio.read(song.file(MIXTURE)), {stem: audio.read(song.file(stem)) for stem in STEMS}
