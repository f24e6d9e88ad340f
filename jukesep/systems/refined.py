"""Our separator with its default refinement, as a system."""

from __future__ import annotations

from collections.abc import Sequence

from ..audio import Audio
from ..base.params import Separation
from ..scoring import evaluation
from ..separation.separator import SECONDS, Separator
from ..songs.manifest import Song
from .system import System


def system(separator: Separator) -> System:
    """The models of all four stems, refined by Wiener filters."""

    def separate(mixture: Audio, sample_rate: int) -> dict[str, Audio]:
        return separator(mixture, sample_rate)

    return System(
        name="refined",
        separate=separate,
        trained_on="the training songs of this experiment",
        licence="that of the models",
        sample_rate=separator.sample_rate,
        long_songs="exact chunks",
    )


def workers(
    separator: Separator, songs: Sequence[Song], separation: Separation, museval: bool
) -> int:
    """How many songs to score at a time: see `evaluation.workers`."""
    chunk = round(SECONDS * separator.sample_rate)  # a separator has its own
    model = next(iter(separator.models.values()))
    return evaluation.workers(songs, model, separation.model_copy(update={"chunk": chunk}), museval)
