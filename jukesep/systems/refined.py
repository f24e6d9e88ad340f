"""Our separator with its default refinement, as a system."""

from __future__ import annotations

from ..audio import Audio
from ..separation.separator import Separator
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
