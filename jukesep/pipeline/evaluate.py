"""Evaluate trained models and baselines as the parameters say."""

from __future__ import annotations

import shutil

from ..base import paths
from ..base.params import Params
from ..scoring import evaluation
from ..songs.manifest import Manifest


def evaluate(params: Params, stem: str, init: str) -> None:
    """Score the separation at every checkpoint of stage 2: results/scores/<stem>_<init>.csv.

    With evaluate.audio, also write the scored audio to results/audio/<stem>_<init>/.
    """
    from ..kernels import devices
    from ..model import jukebox
    from ..model.checkpoints import load_model

    device = devices.choose(params.device, params.threads)
    first = params.stage1_checkpoint(stem, init)
    models = {
        step: load_model(first, paths.checkpoint("stage2", stem, init, step)).to(device)
        for step in params.stage2.checkpoints
    }
    manifest = Manifest.load(paths.MANIFEST)
    listening = paths.sounds(stem, init)
    shutil.rmtree(listening, ignore_errors=True)
    listening.mkdir(parents=True)  # stays empty without evaluate.audio
    rows = evaluation.score_models(
        manifest.split(params.evaluate.split),
        stem,
        init,
        jukebox.load_jukebox(first).to(device).eval(),
        models,
        manifest.sample_rate,
        params.separation,
        params.evaluate.museval,
        listening if params.evaluate.audio else None,
    )
    evaluation.write_scores(paths.scores(stem, init), rows)


def baselines(params: Params) -> None:
    """Score the baselines and the oracle: results/baselines.csv."""
    manifest = Manifest.load(paths.MANIFEST)
    songs = manifest.split(params.evaluate.split)
    rows = evaluation.score_baselines(
        songs, params.stems, manifest.sample_rate, params.evaluate.museval
    )
    evaluation.write_scores(paths.BASELINES, rows)
