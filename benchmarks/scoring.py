"""Rows on scores: `sdr_v4` against museval, the evaluation, and what bf16 does to the scores."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measuring
from benchmarks.commands import AT_MOST, SEPARATE, make_models
from benchmarks.measuring import ROOT, Step, fresh
from benchmarks.row import Goal, Result, Row
from jukesep import audio
from jukesep.base import params, paths
from jukesep.base.files import write_text
from jukesep.scoring import metrics
from jukesep.songs import prepare
from jukesep.songs.manifest import MIXTURE, STEMS, Manifest, Song

RATE = 44_100
STEM, INIT = "drums", "pretrained"
TEST_SONGS = 12  # as many as the demo's
EVALUATE = (*SEPARATE, "jukesep/scoring", "jukesep/pipeline/evaluate.py")
# What makes the demo's recipe shorter.
SHORT = (
    "band.train=12", "band.valid=8", "band.test=1", "band.pretrain=1",
    "stage1.steps=60", "stage2.steps=240", "stage2.checkpoints=[240]",
)  # fmt: skip


def sdr_v4(seconds: int = 30) -> Result:
    """A song of four stereo stems under museval's formulas and under ours."""
    rng = np.random.default_rng(0)
    references = rng.standard_normal((4, 2, seconds * RATE))
    estimates = references + 0.5 * rng.standard_normal(references.shape)
    sources, guesses = (np.moveaxis(stems, 1, 2) for stems in (references, estimates))
    museval = metrics.museval_metrics()
    step = {"jukesep": lambda: metrics.framewise_sdr(references, estimates, RATE)}
    ours = measuring.interleaved(step, 2.0)["jukesep"]
    # Once: it takes a second for a second of the song.
    taken, (theirs, *_) = measuring.timed(
        lambda: museval.bss_eval(sources, guesses, window=RATE, hop=RATE)
    )
    median, found = statistics.median(ours), metrics.framewise_sdr(references, estimates, RATE)
    return Result(
        {"museval": {"seconds": taken}, "jukesep": {"seconds": median}},
        {"speed": taken / median, "difference": float(np.abs(theirs - found).max())},
        note="museval runs once, and also computes SIR, SAR and ISR",
    )


def evaluation(songs: int = TEST_SONGS, seconds: float = 8.0) -> Result:
    """The stage's own function on the demo's test songs, against running its models alone."""
    from jukesep.pipeline import evaluate

    with tempfile.TemporaryDirectory() as name:
        p = _experiment(Path(name), songs)
        busy: list[float] = []

        def whole() -> None:
            processor = time.process_time()
            wall, _ = measuring.timed(lambda: evaluate.evaluate(p, STEM, INIT))
            busy.append((time.process_time() - processor) / wall)

        with chdir(name):
            steps = {"models alone": _models_alone(p), "whole": whole}
            runs = measuring.interleaved(steps, seconds, least=2)
    medians = {side: statistics.median(values) for side, values in runs.items()}
    return Result(
        {side: {"seconds": value} for side, value in medians.items()},
        {
            "time above the models alone": 100 * (medians["whole"] / medians["models alone"] - 1),
            "cores busy": statistics.median(busy),
        },
        note="songs of noise; both sides on all cores, a song a core",
    )


def by_cores(songs: int = 4) -> Result:
    """The evaluation of a stem, of the demo's model, against cores: 1, 2, 4 ... all of them."""
    counts = [2**n for n in range(10) if 2**n < measuring.cores()] + [measuring.cores()]
    line = [[float(count), fresh(count, _on_cores, songs), 0.0] for count in counts]
    return Result(details={"points": {"jukesep": line}})


def _on_cores(songs: int) -> float:
    """Seconds of the evaluation of so many songs, on the cores that this process is held to."""
    from jukesep.pipeline import evaluate

    with tempfile.TemporaryDirectory() as name, chdir(name):
        p = _experiment(Path(name), songs)
        step = {"whole": lambda: evaluate.evaluate(p, STEM, INIT)}
        return statistics.median(measuring.interleaved(step, 0, 1)["whole"])


def _experiment(folder: Path, songs: int) -> params.Params:
    """What the evaluation of one stem reads, below `folder`: songs of noise, random models."""
    import torch

    torch.set_num_threads(1)
    path = folder / paths.PARAMS
    write_text(path, params.compose(["scale=demo"], ROOT / "conf"))
    p = params.load(path)
    rate, samples = p.model.sample_rate, round(p.band.seconds * p.model.sample_rate)
    found = []
    for number in range(songs):
        root = folder / paths.PREPARED / f"{number}"
        song = Song(f"{number}", "test", "seen", root, samples)
        noise = 0.1 * np.random.default_rng(number).standard_normal((4, 2, samples))
        for part, sound in zip((MIXTURE, *STEMS), (noise.sum(0), *noise), strict=True):
            audio.write(song.file(part), sound.astype(np.float32), rate, "FLOAT")
        found.append(song)
    Manifest(rate, tuple(found)).save(folder / paths.MANIFEST)
    steps = p.stage1_of(STEM).steps
    make_models(folder, STEM, INIT, rate, steps, p.stage2.checkpoints)
    return p


def _models_alone(p: params.Params) -> Step:
    """The models run over what the evaluation runs them over: read before, and not scored."""
    import torch

    from jukesep.model.checkpoints import load_model
    from jukesep.separation.chunked import apply_chunked

    first = p.stage1_checkpoint(STEM, INIT)
    models = [
        load_model(first, paths.checkpoint("stage2", STEM, INIT, step))
        for step in p.stage2.checkpoints
    ]
    inputs = []
    for song in Manifest.load(paths.MANIFEST).split("test"):
        mixture, stem = (audio.read(song.file(part)) for part in (MIXTURE, STEM))
        rows = np.concatenate([audio.to_mono(mixture), mixture])
        inputs.append((torch.from_numpy(audio.to_mono(stem)), torch.from_numpy(rows)))

    settings = {**p.separation.model_dump(), "sample_rate": p.model.sample_rate}

    def one(song: tuple[torch.Tensor, torch.Tensor]) -> None:
        stem, rows = song
        apply_chunked(models[0], stem, **settings)  # the ceiling's
        for model in models:
            apply_chunked(model, rows, **settings)

    def run() -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(one, inputs))

    return run


def precision(shorter: tuple[str, ...] = SHORT, stems: tuple[str, ...] = STEMS) -> Result:
    """Mean SDR over stems and validation songs of a small experiment, in fp32 and in bf16.

    Trained in either precision and separated in fp32; and trained in fp32, separated in bf16.
    """
    from benchmarks.steps import needs_bf16

    needs_bf16()
    precisions = ("fp32", "bf16")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for one in precisions:
            settings = ["scale=demo", "inits=[scratch]", "device=cpu", *shorter]
            settings += [f"precision={one}", "stage1.workers=0", "stage2.workers=0"]
            write_text(folder / one / paths.PARAMS, params.compose(settings, ROOT / "conf"))
            (folder / one / "data").symlink_to(folder / "data")
        prepare.prepare(params.load(folder / "fp32" / paths.PARAMS), folder / paths.PREPARED)
        runs = [(one, stem) for stem in stems for one in precisions]
        with ThreadPoolExecutor(measuring.cores()) as pool:
            found = pool.map(lambda run: fresh(0, _train, folder / run[0], run[1]), runs)
            sdrs = dict(zip(runs, found, strict=True))

    def mean(trained: str, separated: str) -> float:
        return statistics.mean(sdrs[trained, stem][separated] for stem in stems)

    exact = mean("fp32", "fp32")
    return Result(
        figures={
            "loss by training in bf16": exact - mean("bf16", "fp32"),
            "loss by separating in bf16": exact - mean("fp32", "bf16"),
            "SDR in fp32": exact,
        },
        note=f"the demo's model, {' and '.join(s.split('=')[1] for s in shorter[4:6])} steps; "
        "means over four stems and their validation songs",
        details={"sdr": {" ".join(run): values for run, values in sdrs.items()}},
    )


def _train(folder: Path, stem: str) -> dict[str, float]:
    """Both stages of a stem with the parameters in `folder`; the SDR in either precision, dB."""
    import torch

    from jukesep.kernels import devices
    from jukesep.model.checkpoints import load_model
    from jukesep.pipeline import train
    from jukesep.separation.chunked import apply_chunked

    def sdr(model: Any, song: Song, precision: Any) -> float:
        mixture = torch.from_numpy(audio.to_mono(audio.read(song.file(MIXTURE))))
        with devices.autocast(precision, torch.device("cpu"))():
            estimate = apply_chunked(model, mixture)
        return metrics.sdr(audio.to_mono(audio.read(song.file(stem))), estimate.numpy())

    with chdir(folder):
        p = params.load()
        train.weights(p, "scratch")
        train.stage1(p, stem, "scratch")
        train.stage2(p, stem, "scratch")
        model = load_model(
            p.stage1_checkpoint(stem, "scratch"),
            paths.checkpoint("stage2", stem, "scratch", p.stage2.steps),
        )
        songs = Manifest.load(paths.MANIFEST).split("valid")
        return {
            one: statistics.mean(sdr(model, song, one) for song in songs)
            for one in ("fp32", "bf16")
        }


ROWS = {
    "bf16-sdr": Row(
        "SDR of validation songs, trained or separated in bf16, against fp32",
        precision,
        ("jukesep/kernels", "jukesep/model", "jukesep/separation/chunked.py", "jukesep/training"),
        (
            AT_MOST("loss by training in bf16", 0.05),
            AT_MOST("loss by separating in bf16", 0.05),
        ),
    ),
    "sdr_v4": Row(
        "`sdr_v4` of a song of 30 s, four stems, against museval",
        sdr_v4,
        ("jukesep/scoring/metrics.py",),
        (Goal("speed", 100), AT_MOST("difference", 1e-9)),
        cores=1,
    ),
    "evaluation": Row(
        "evaluation of a stem on the demo's test songs, against its models alone",
        evaluation,
        EVALUATE,
        (AT_MOST("time above the models alone", 10),),
    ),
    "growth-cores": Row("time of evaluation against cores", by_cores, EVALUATE),
}
