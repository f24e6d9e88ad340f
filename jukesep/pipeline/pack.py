"""Stage `separator`: pack the trained models into a folder, to use and to share."""

from __future__ import annotations

import csv
import math
import shutil
import statistics

import yaml

from ..base import paths
from ..base.git import git
from ..base.params import Params
from ..model.checkpoints import load_model
from ..separation import models
from ..songs.manifest import STEMS

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
    """Write models/separator/: one model per stem, pretrained if there are both inits.

    Takes the last checkpoint of stage 2, not the one with the best score on the test songs.
    """
    init = "pretrained" if "pretrained" in params.inits else params.inits[0]
    step = max(params.stage2.checkpoints)
    shutil.rmtree(paths.SEPARATOR, ignore_errors=True)  # it may hold other stems
    for stem in (stem for stem in STEMS if stem in params.stems):
        vqvae = load_model(
            params.stage1_checkpoint(stem, init),
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
            "bottleneck": params.separation.bottleneck,
            "temperature": params.separation.temperature,
        }
        models.save(paths.SEPARATOR, stem, vqvae, about)


def _licence(params: Params, init: str) -> str:
    """The licence of the weights: follows from their initial weights and training songs."""
    weights = LICENCES[params.weights.source if init == "pretrained" else "pretrain"]
    songs = SONGS[params.data.source]
    return f"{weights}; {songs}" if songs else weights


def _scores(stem: str, init: str, step: int, split: str) -> dict[str, float]:
    """`<split>, <group>` -> the paper's SDR in dB, the mean over the songs of the group."""
    path = paths.scores(stem, init)
    found: dict[str, list[float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            # A song that lacks the stem has no score.
            if (row["system"], row["step"], row["metric"]) == ("separation", str(step), "sdr") and (
                not math.isnan(value := float(row["value"]))
            ):
                found.setdefault(f"{split}, {row['group']}", []).append(value)
    return {group: round(statistics.mean(values), 4) for group, values in found.items()}


def _commit() -> str | None:
    """The last commit of the training code; None if git does not know it.

    Only dependencies of the trainings count: other commits would change the card, although no
    training changed.
    """
    stages = yaml.safe_load(paths.PIPELINE.read_text(encoding="utf-8"))["stages"]
    deps = [dep for stage in TRAININGS for dep in stages[stage]["deps"]]
    code = sorted({dep for dep in deps if dep.startswith(("jukesep/", "stages/"))})
    if git("rev-parse", "--is-shallow-repository") != "false":
        return None
    commit = git("log", "-1", "--format=%H", "--", *code)
    return f"{commit}, and changes" if git("status", "--porcelain", "--", *code) else commit
