"""Score systems that separate all stems at once: stages `evaluate_peer` and `refined`."""

from __future__ import annotations

from collections.abc import Sequence

from ..base import paths
from ..base.files import emptied
from ..base.params import Params
from ..scoring import evaluation
from ..songs.manifest import Manifest
from ..systems.system import System


def evaluate(
    params: Params, name: str, systems: Sequence[System], step: int, workers: int = 1
) -> None:
    """Score systems on whole songs: results/systems/<name>.csv and results/audio/<name>/.

    `step` is the last one of their training. Without systems the table is empty. `workers` songs
    are scored at a time. If it is more than 1, several threads call the systems; PyTorch's
    recurrent networks fail then.
    """
    manifest = Manifest.load(paths.MANIFEST)
    listening = emptied(paths.system_sounds(name))
    rows = evaluation.score_systems(
        manifest.split(params.evaluate.split),
        systems,
        step,
        manifest.sample_rate,
        params.evaluate.museval,
        listening if params.evaluate.audio else None,
        workers=workers,
    )
    evaluation.write_scores(paths.system_scores(name), rows)
