"""A system: anything that separates a mixture into stems, with what a reader must know about it.

This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from .. import audio
from ..audio import Audio
from ..base.errors import UserError

Separate = Callable[[Audio, int], Mapping[str, Audio]]
"""(mixture (channels, samples), sample rate in Hz) -> {stem: (channels, samples)}."""
NOT_STATED = "not stated"


@dataclass(frozen=True)
class System:
    """A separator and its description.

    A call separates a song: (channels, samples) at `sample_rate` Hz to {stem: (channels, samples)},
    float32. Raises UserError for a sample rate that the system does not work at, and for estimates
    that are not audio: another shape than the mixture's, NaN or infinite samples, or no stem.
    """

    name: str
    separate: Separate
    """Does the work. It gets `channels` channels, if that is not None."""
    trained_on: str = NOT_STATED
    licence: str = NOT_STATED
    """Of the weights."""
    sample_rate: int | None = None
    """In Hz; None: any."""
    channels: int | None = None
    """A mono song is given to a system of two channels twice, and their mean is taken. None: any
    number."""
    long_songs: str = NOT_STATED
    """How it is run on a song longer than a training segment, in words."""

    def __call__(self, mixture: Audio, sample_rate: int) -> dict[str, Audio]:
        if self.sample_rate not in (None, sample_rate):
            raise UserError(
                f"{self.name}: works at {self.sample_rate} Hz, the song has {sample_rate} Hz. "
                "Resample the song first: that changes the scores."
            )
        given = mixture
        if self.channels not in (None, len(mixture)):
            if len(mixture) != 1:
                raise UserError(
                    f"{self.name}: works on {self.channels} channels, the song has {len(mixture)}."
                )
            given = np.repeat(mixture, self.channels or 1, axis=0)
        estimates = self.separate(given, sample_rate)
        named = isinstance(estimates, Mapping) and all(isinstance(name, str) for name in estimates)
        if not named or not estimates:
            raise UserError(
                f"{self.name}: returned {type(estimates).__name__} and no stem, where "
                "{stem: (channels, samples)} is expected."
            )
        checked = {}
        for stem, estimate in estimates.items():
            try:
                samples = np.asarray(estimate, np.float32)
            except (TypeError, ValueError):
                raise UserError(
                    f"{self.name}: {stem} is {type(estimate).__name__}, where an array (channels, "
                    "samples) is expected."
                ) from None
            if samples.shape != given.shape:
                raise UserError(
                    f"{self.name}: {stem} has the shape {samples.shape}, but the mixture has "
                    f"{given.shape}, (channels, samples)."
                )
            if not np.isfinite(samples).all():
                raise UserError(f"{self.name}: {stem} holds NaN or infinite samples.")
            checked[stem] = audio.to_mono(samples) if len(given) != len(mixture) else samples
        return checked
