"""Our separator with its default refinement, as a system."""

from __future__ import annotations

from pathlib import Path

import torch

from ..audio import Audio
from ..separation.separator import load_separator
from .system import System


def load(folder: Path, device: torch.device | str = "cpu") -> System:
    """The models of a folder, refined by Wiener filters. UserError if they do not fit."""
    separator = load_separator(folder).to(device)

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
