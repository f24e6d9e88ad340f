"""Rows on scores: `sdr_v4` against museval, and the evaluation against its models alone."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir
from pathlib import Path

import numpy as np

from benchmarks import timing
from benchmarks.row import Goal, Options, Result, Row
from jukesep import audio
from jukesep.base import params, paths
from jukesep.scoring import metrics
from jukesep.songs.manifest import MIXTURE, STEMS, Manifest, Song

RATE, SECONDS = 44_100, 30
STEM, INIT = "drums", "pretrained"
TEST_SONGS = 12  # as many as the demo's


def sdr_v4(options: Options, seconds: int = SECONDS) -> Result:
    """A song of four stereo stems under museval's formulas and under ours."""
    rng = np.random.default_rng(0)
    references = rng.standard_normal((4, 2, seconds * RATE))
    estimates = references + 0.5 * rng.standard_normal(references.shape)
    sources, guesses = (np.moveaxis(stems, 1, 2) for stems in (references, estimates))
    museval = metrics.museval_metrics()
    ours = timing.interleaved(
        {"jukesep": lambda: metrics.framewise_sdr(references, estimates, RATE)}, options.seconds / 4
    )["jukesep"]
    start = time.perf_counter()  # once: it takes a second for a second of the song
    theirs, *_ = museval.bss_eval(sources, guesses, window=RATE, hop=RATE)
    taken = time.perf_counter() - start
    found = metrics.framewise_sdr(references, estimates, RATE)
    median = statistics.median(ours)
    return Result(
        {"museval": {"seconds": taken}, "jukesep": {"seconds": median}},
        {"speed": taken / median, "difference": float(np.abs(theirs - found).max())},
        rounds=len(ours),
        note="museval runs once, and also computes SIR, SAR and ISR",
    )


def evaluation(options: Options) -> Result:
    """The stage's own function on the demo's test songs, against running its models alone."""
    with tempfile.TemporaryDirectory() as name:
        p = _experiment(Path(name), TEST_SONGS)
        with chdir(name):
            return _evaluation(p, options)


def _evaluation(p: params.Params, options: Options) -> Result:
    from jukesep.pipeline import evaluate

    alone = _models_alone(p)
    busy: list[float] = []

    def whole() -> None:
        wall, processor = time.perf_counter(), time.process_time()
        evaluate.evaluate(p, STEM, INIT)
        busy.append((time.process_time() - processor) / (time.perf_counter() - wall))

    runs = timing.interleaved({"models alone": alone, "whole": whole}, options.seconds, least=2)
    seconds = {side: statistics.median(values) for side, values in runs.items()}
    return Result(
        {side: {"seconds": value} for side, value in seconds.items()},
        {
            "time above the models alone": 100 * (seconds["whole"] / seconds["models alone"] - 1),
            "cores busy": statistics.median(busy),
        },
        rounds=len(runs["whole"]),
        note="songs of noise; both sides on all cores, a song a core",
    )


def on_cores(songs: int) -> float:
    """Seconds of the evaluation of so many songs, on the cores that this process is held to."""
    from jukesep.pipeline import evaluate

    with tempfile.TemporaryDirectory() as name:
        p = _experiment(Path(name), songs)
        with chdir(name):
            runs = timing.interleaved({"whole": lambda: evaluate.evaluate(p, STEM, INIT)}, 0, 1)
    return statistics.median(runs["whole"])


def _experiment(folder: Path, songs: int) -> params.Params:
    """What the evaluation of one stem reads, below `folder`: songs of noise, random models."""
    import torch

    from benchmarks.machine import ROOT
    from benchmarks.speed import DEMO, model
    from jukesep.base.files import write_text
    from jukesep.model import jukebox
    from jukesep.pipeline import train

    torch.set_num_threads(1)
    path = folder / "params.yaml"
    write_text(path, params.compose(["scale=demo"], ROOT / "conf"))
    p = params.load(path)
    rate, samples = p.model.sample_rate, round(p.band.seconds * p.model.sample_rate)
    prepared = folder / paths.PREPARED
    found = []
    for number in range(songs):
        song = Song(f"{number}", "test", "seen", prepared / f"{number}", samples)
        noise = 0.1 * np.random.default_rng(number).standard_normal((4, 2, samples))
        for part, sound in zip((MIXTURE, *STEMS), (noise.sum(0), *noise), strict=True):
            audio.write(song.file(part), sound.astype(np.float32), rate, "FLOAT")
        found.append(song)
    Manifest(rate, tuple(found)).save(folder / paths.MANIFEST)
    vqvae, _ = model(DEMO, 1, 4096)
    first = folder / train.stage1_checkpoint(p, STEM, INIT)
    jukebox.save_jukebox(vqvae, first, 1, {"sample_rate": rate})
    for step in p.stage2.checkpoints:
        second = folder / paths.checkpoint("stage2", STEM, INIT, step)
        jukebox.save_encoder(vqvae.encoder, second, step, {"sample_rate": rate})
    return p


def _models_alone(p: params.Params) -> timing.Step:
    """The models run over what the evaluation runs them over: read before, and not scored."""
    import torch

    from jukesep.model.checkpoints import load_model
    from jukesep.pipeline import train
    from jukesep.separation.chunked import apply_chunked

    first = train.stage1_checkpoint(p, STEM, INIT)
    models = [
        load_model(first, paths.checkpoint("stage2", STEM, INIT, step))
        for step in p.stage2.checkpoints
    ]
    inputs = []
    for song in Manifest.load(paths.MANIFEST).split("test"):
        mixture, stem = (audio.read(song.file(part)) for part in (MIXTURE, STEM))
        rows = np.concatenate([audio.to_mono(mixture), mixture])
        inputs.append((torch.from_numpy(audio.to_mono(stem)), torch.from_numpy(rows)))

    def one(song: tuple[torch.Tensor, torch.Tensor]) -> None:
        stem, rows = song
        apply_chunked(models[0], stem, **p.separation.model_dump())  # the ceiling's
        for model in models:
            apply_chunked(model, rows, **p.separation.model_dump())

    def run() -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(one, inputs))

    return run


ROWS = {
    "sdr_v4": Row(
        "`sdr_v4` of a song of 30 s, four stems, against museval",
        sdr_v4,
        (
            Goal("speed", 100, digits=0),
            Goal("difference", 1e-9, " dB", at_least=False, digits=3),
        ),
        cores=1,
        module="scoring",
    ),
    "evaluation": Row(
        "evaluation of a stem on the demo's test songs, against its models alone",
        evaluation,
        (Goal("time above the models alone", 10, " %", at_least=False, digits=1),),
        module="scoring",
    ),
}
