"""Evaluate trained models and baselines as the parameters say."""

from __future__ import annotations

from ..base import paths
from ..base.files import emptied
from ..base.params import Params
from ..scoring import evaluation
from ..songs.manifest import Manifest
from ..systems import equaliser


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
    listening = emptied(paths.sounds(stem, init))
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
    """Score the baselines and the oracle: results/systems/baselines.csv.

    Fits the static equaliser to the training songs first. With evaluate.audio, also writes its
    audio to results/audio/static_equaliser/.
    """
    manifest = Manifest.load(paths.MANIFEST)
    fitted = equaliser.fit(manifest.split("train"), params.stems, manifest.sample_rate)
    listening = emptied(paths.system_sounds(equaliser.NAME))
    rows = evaluation.score_baselines(
        manifest.split(params.evaluate.split),
        fitted,
        manifest.sample_rate,
        params.evaluate.museval,
        listening if params.evaluate.audio else None,
    )
    evaluation.write_scores(paths.BASELINES, rows)
