"""All paths of a project, relative to its folder, where every command runs.

dvc.yaml uses the same paths.
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
"""Folder beside PREPARED with files that `prepare` keeps for its next run."""

RUNS = Path("runs")
WEIGHTS = "vqvae.pth.tar"
RESULTS = Path("results")
SCORES = RESULTS / "scores"
SOUNDS = RESULTS / "audio"
SYSTEMS = RESULTS / "systems"
BASELINES = SYSTEMS / "baselines.csv"

SEPARATOR = Path("models/separator")
LISTEN = Path("listen")
METRICS = Path("metrics")
PLOTS = Path("plots")
PAGE = Path("docs/results.md")

TRAININGS = "trainings"
DIGESTS = "digests.json"
"""File in the folder of trainings with digests of the songs that they use."""
VARIABLE = "JUKESEP_TRAININGS"
"""The environment variable that sets another folder of trainings."""


def weights(init: str) -> Path:
    """The folder of the weights that stage 1 starts from."""
    return RUNS / "weights" / init


def weights_file(init: str) -> Path:
    """The file of the weights that stage 1 starts from."""
    return weights(init) / WEIGHTS


def run(stage: str, stem: str, init: str) -> Path:
    """The folder of a training's results: log.csv and checkpoints/."""
    return RUNS / stage / f"{stem}_{init}"


def checkpoint(stage: str, stem: str, init: str, step: int) -> Path:
    """A checkpoint of a training."""
    return run(stage, stem, init) / "checkpoints" / f"{step}.pt"


def scores(stem: str, init: str) -> Path:
    """The scores of a stem for every song: separations and ceiling."""
    return SCORES / f"{stem}_{init}.csv"


def sounds(stem: str, init: str) -> Path:
    """The folder of the audio that was scored."""
    return SOUNDS / f"{stem}_{init}"


def peer(name: str) -> Path:
    """The folder of a peer's training: log.csv and checkpoints/."""
    return RUNS / "peers" / name


def peer_checkpoint(name: str, step: int) -> Path:
    """A checkpoint of a peer's training."""
    return peer(name) / "checkpoints" / f"{step}.pt"


def system_scores(name: str) -> Path:
    """The scores for every song of a system that separates all stems at once."""
    return SYSTEMS / f"{name}.csv"


def system_sounds(name: str) -> Path:
    """The folder of the audio that was scored: <song>/<stem>.flac."""
    return SOUNDS / name


def trainings() -> Path:
    """The folder of trainings; DVC's temporary experiments use that of the project, too."""
    chosen = os.environ.get(VARIABLE) or TRAININGS
    parts = Path.cwd().parts
    for number in range(len(parts) - 2):
        if parts[number : number + 3] == (".dvc", "tmp", "exps"):
            return Path(*parts[:number]) / chosen
    return Path(chosen)
