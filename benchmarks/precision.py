"""What `precision=bf16` does to the scores: the same small experiment in fp32 and in bf16."""

from __future__ import annotations

import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir
from pathlib import Path

from benchmarks import timing
from benchmarks.machine import ROOT
from benchmarks.row import Goal, Options, Result, Row
from jukesep import audio
from jukesep.base import params, paths
from jukesep.base.files import write_text
from jukesep.scoring import metrics
from jukesep.songs import prepare
from jukesep.songs.manifest import MIXTURE, STEMS, Manifest

INIT = "scratch"
PRECISIONS = ("fp32", "bf16")
# Of the demo's recipe, what makes it shorter.
SHORT = (
    "band.train=12", "band.valid=8", "band.test=1", "band.pretrain=1",
    "stage1.steps=60", "stage2.steps=240", "stage2.checkpoints=[240]",
)  # fmt: skip


def measure(
    options: Options, shorter: tuple[str, ...] = SHORT, stems: tuple[str, ...] = STEMS
) -> Result:
    """Mean SDR over stems and validation songs: trained in either precision, separated in fp32;
    and trained in fp32, separated in bf16."""
    from benchmarks.speed import needs_bf16

    needs_bf16()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for precision in PRECISIONS:
            settings = ["scale=demo", f"inits=[{INIT}]", "device=cpu", *shorter]
            settings += [f"precision={precision}", "stage1.workers=0", "stage2.workers=0"]
            write_text(folder / precision / "params.yaml", params.compose(settings, ROOT / "conf"))
            (folder / precision / "data").symlink_to(folder / "data")
        prepare.prepare(params.load(folder / "fp32/params.yaml"), folder / "data/prepared")
        runs = [(precision, stem) for stem in stems for precision in PRECISIONS]
        with ThreadPoolExecutor(timing.cores()) as pool:
            found = pool.map(lambda run: timing.fresh(0, _train, folder / run[0], run[1]), runs)
            sdrs = dict(zip(runs, found, strict=True))

    def mean(trained: str, separated: str) -> float:
        return statistics.mean(sdrs[trained, stem][separated] for stem in stems)

    exact = mean("fp32", "fp32")
    training, separation = mean("bf16", "fp32") - exact, mean("fp32", "bf16") - exact
    return Result(
        figures={
            "loss by training in bf16": -training,
            "loss by separating in bf16": -separation,
            "SDR in fp32": exact,
        },
        note=f"the demo's model, {' and '.join(s.split('=')[1] for s in shorter[4:6])} steps; "
        "means over four stems and their validation songs",
        details={
            "sdr": {f"{precision} {stem}": values for (precision, stem), values in sdrs.items()}
        },
    )


def _train(folder: Path, stem: str) -> dict[str, float]:
    """Both stages of a stem with the parameters in `folder`; the SDR in either precision, dB."""
    import torch

    from jukesep.kernels import devices
    from jukesep.model.checkpoints import load_model
    from jukesep.pipeline import train
    from jukesep.separation.chunked import apply_chunked

    with chdir(folder):
        p = params.load()
        train.weights(p, INIT)
        train.stage1(p, stem, INIT)
        train.stage2(p, stem, INIT)
        model = load_model(
            train.stage1_checkpoint(p, stem, INIT),
            paths.checkpoint("stage2", stem, INIT, p.stage2.steps),
        )
        found = {}
        for precision in PRECISIONS:
            sdrs = []
            for song in Manifest.load(paths.MANIFEST).split("valid"):
                mixture = torch.from_numpy(audio.to_mono(audio.read(song.file(MIXTURE))))
                with devices.autocast(precision, torch.device("cpu"))():  # type: ignore[arg-type]
                    estimate = apply_chunked(model, mixture)
                sdrs.append(
                    metrics.sdr(audio.to_mono(audio.read(song.file(stem))), estimate.numpy())
                )
            found[precision] = statistics.mean(sdrs)
    return found


ROWS = {
    "bf16-sdr": Row(
        "SDR of validation songs, trained or separated in bf16, against fp32",
        measure,
        (
            Goal("loss by training in bf16", 0.05, " dB", at_least=False, digits=3),
            Goal("loss by separating in bf16", 0.05, " dB", at_least=False, digits=3),
        ),
        module="precision",
    )
}
