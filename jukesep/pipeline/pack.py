"""Stage `separator`: the trained models as files, for `jukesep separate` and for others."""

from __future__ import annotations

import csv
import shutil
import statistics

import yaml

from ..base import paths
from ..base.git import git
from ..base.params import Params
from ..model.checkpoints import load_model
from ..separation import models
from ..songs.manifest import STEMS
from . import train

TRAININGS = ("weights", "stage1", "stage2")
PARAMETERS = {
    *("scale", "seed", "model", "codebook", "losses", "precision"),
    *("pretrain", "stage1", "stage1_steps", "stage2"),
}
LICENCES = {
    "pretrain": "that of jukesep (MIT): trained from random weights",
    "jukebox": "non-commercial use only: fine-tuned from OpenAI's Jukebox",
    "file": "that of the weights they were fine-tuned from; of Jukebox's, non-commercial use only",
}
DATA = {
    "band": "songs that jukesep composes and renders itself",
    "musdb18hq": "MUSDB18-HQ",
    "musdb18": "MUSDB18",
    "folder": "a folder of songs",
}
SONGS = {
    "band": "",
    "musdb18hq": "research only: trained on MUSDB18-HQ",
    "musdb18": "research only: trained on MUSDB18",
    "folder": "what the songs' licences allow",
}


def pack(params: Params) -> None:
    """Write models/separator/: the pretrained models of all stems, or those of the only init.

    Of stage 2 the last checkpoint: which one scores best on the test songs is no reason.
    """
    init = "pretrained" if "pretrained" in params.inits else params.inits[0]
    step = max(params.stage2.checkpoints)
    shutil.rmtree(paths.SEPARATOR, ignore_errors=True)  # of other stems, perhaps
    for stem in (stem for stem in STEMS if stem in params.stems):
        vqvae = load_model(
            train.stage1_checkpoint(params, stem, init),
            paths.checkpoint("stage2", stem, init, step),
        )
        about = {
            "sample_rate": params.model.sample_rate,
            "init": init,
            "step": step,
            "scores": _scores(stem, init, step, params.evaluate.split),
            "data": DATA[params.data.source],
            "licence": _licence(params, init),
            "commit": _commit(),
            "parameters": params.model_dump(mode="json", include=PARAMETERS),
        }
        models.save(paths.SEPARATOR, stem, vqvae, about)


def _licence(params: Params, init: str) -> str:
    """Of the weights: that of what they were fine-tuned from, and of the songs they heard."""
    weights = LICENCES[params.weights.source if init == "pretrained" else "pretrain"]
    songs = SONGS[params.data.source]
    return f"{weights}; {songs}" if songs else weights


def _scores(stem: str, init: str, step: int, split: str) -> dict[str, float]:
    """The mean of the paper's SDR in dB over the songs of each group, as `<split>, <group>`."""
    path = paths.scores(stem, init)
    found: dict[str, list[float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if (row["system"], row["step"], row["metric"]) == ("separation", str(step), "sdr"):
                found.setdefault(f"{split}, {row['group']}", []).append(float(row["value"]))
    return {group: round(statistics.mean(values), 4) for group, values in found.items()}


def _commit() -> str | None:
    """The last commit of the code that trains, where there is a git that tells.

    What is no dependency of the trainings does not count: these files would be others after it,
    and no stage to make them anew.
    """
    stages = yaml.safe_load(paths.PIPELINE.read_text(encoding="utf-8"))["stages"]
    deps = [dep for stage in TRAININGS for dep in stages[stage]["deps"]]
    code = sorted({dep for dep in deps if dep.startswith(("jukesep/", "stages/"))})
    if git("rev-parse", "--is-shallow-repository") != "false":
        return None
    commit = git("log", "-1", "--format=%H", "--", *code)
    return f"{commit}, and changes" if git("status", "--porcelain", "--", *code) else commit
