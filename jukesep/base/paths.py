"""Where everything lies in a project's folder: the one place that says so.

Paths are relative to that folder, where every command runs. dvc.yaml names the same ones.
"""

from __future__ import annotations

import os
from pathlib import Path

PARAMS = Path("params.yaml")
CONF = Path("conf")
PIPELINE = Path("dvc.yaml")
LOCK = Path("dvc.lock")

PREPARED = Path("data/prepared")
MANIFEST = PREPARED / "manifest.json"
CHECKS = PREPARED / "checks.json"
CACHE = "cache"
"""Beside the prepared songs: what `prepare` keeps for its next run."""

RUNS = Path("runs")
WEIGHTS = "vqvae.pth.tar"
RESULTS = Path("results")
SCORES = RESULTS / "scores"
SOUNDS = RESULTS / "audio"
BASELINES = RESULTS / "baselines.csv"

SEPARATOR = Path("models/separator")
LISTEN = Path("listen")
METRICS = Path("metrics")
PLOTS = Path("plots")
PAGE = Path("docs/results.md")

TRAININGS = "trainings"
DIGESTS = "digests.json"
"""Beside the trainings: what is known of the songs that they train on."""
VARIABLE = "JUKESEP_TRAININGS"
"""The environment variable that puts the folder of trainings elsewhere."""


def weights(init: str) -> Path:
    """The folder of the weights that stage 1 starts from."""
    return RUNS / "weights" / init


def weights_file(init: str) -> Path:
    """The weights that stage 1 starts from."""
    return weights(init) / WEIGHTS


def run(stage: str, stem: str, init: str) -> Path:
    """The folder of a training's results: log.csv and checkpoints/."""
    return RUNS / stage / f"{stem}_{init}"


def checkpoint(stage: str, stem: str, init: str, step: int) -> Path:
    """A checkpoint of a training."""
    return run(stage, stem, init) / "checkpoints" / f"{step}.pt"


def scores(stem: str, init: str) -> Path:
    """The scores of a stem's separations and of its ceiling, for every song."""
    return SCORES / f"{stem}_{init}.csv"


def sounds(stem: str, init: str) -> Path:
    """The folder of the audio that was scored."""
    return SOUNDS / f"{stem}_{init}"


def trainings() -> Path:
    """The folder of the trainings in progress: in the project, also for DVC's temporary ones."""
    chosen = os.environ.get(VARIABLE) or TRAININGS
    parts = Path.cwd().parts
    for number in range(len(parts) - 2):
        if parts[number : number + 3] == (".dvc", "tmp", "exps"):
            return Path(*parts[:number]) / chosen
    return Path(chosen)
