"""Score systems that separate all stems at once: stages `evaluate_peer` and `refined`."""

from __future__ import annotations

from collections.abc import Sequence

from ..base import paths
from ..base.files import emptied
from ..base.parallel import at_once
from ..base.params import Params
from ..scoring import evaluation
from ..songs.manifest import Manifest
from ..systems.system import System

MEMORY = 2e9  # bytes that a system may take for a song


def evaluate(
    params: Params, name: str, systems: Sequence[System], step: int, *, parallel: bool = False
) -> None:
    """Score systems on whole songs: results/systems/<name>.csv and results/audio/<name>/.

    `step` is the last one of their training. Without systems the table is empty. If `parallel`,
    several songs are scored at a time: one on each core, if there is enough memory. The systems
    must be safe to call from several threads; PyTorch's recurrent networks are not.
    """
    manifest = Manifest.load(paths.MANIFEST)
    listening = emptied(paths.system_sounds(name))
    songs = manifest.split(params.evaluate.split)
    rows = evaluation.score_systems(
        songs,
        systems,
        step,
        manifest.sample_rate,
        params.evaluate.museval,
        listening if params.evaluate.audio else None,
        workers=at_once(len(songs), MEMORY) if parallel else 1,
    )
    evaluation.write_scores(paths.system_scores(name), rows)
