"""Our separator with its default refinement, as a system."""

from __future__ import annotations

from ..separation.separator import Separator
from .system import System


def system(separator: Separator) -> System:
    """The models of all four stems, refined by Wiener filters."""
    return System(
        name="refined",
        separate=separator,
        trained_on="the training songs of this experiment",
        licence="that of the models",
        sample_rate=separator.sample_rate,
        long_songs="exact chunks",
    )
