"""The separator: models for stems, songs in, stems out."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from .. import audio
from ..audio import Audio
from ..base import paths
from ..base.errors import UserError
from ..kernels import devices
from ..model import jukebox
from ..model.checkpoints import load_model
from ..model.vqvae import VQVAE
from . import models, refine
from .chunked import apply, windows

INIT = "pretrained"  # of the trainings in a folder, those that are used
TAPS = 2**27  # of the filter between two rates; half a GB
SECONDS = 18.0  # of a chunk: twice the reference's, with less context in proportion


class Separator:
    """One model per stem: mixture in, stems out.

    `refinement` is the default of its methods': a name in `refine.REFINEMENTS`, "none" for what the
    models make of the mixture, as in the paper, or None for the default where there are models
    for all four stems, and none elsewhere. With `shifts` the estimates are the mean of so many runs
    of the models, the song delayed by parts of a hop (`refine.shifted`).
    """

    def __init__(
        self,
        models: Mapping[str, VQVAE],
        sample_rate: int,
        refinement: str | None = None,
        shifts: int = 1,
    ) -> None:
        self.models = {stem: model.eval() for stem, model in models.items()}
        self.sample_rate = sample_rate
        self.refinement = refinement
        self.shifts = shifts
        self._autocast = devices.autocast("fp32", torch.device("cpu"))

    def to(self, device: torch.device | str, precision: devices.Precision = "fp32") -> Separator:
        """Move the models; returns self. `precision` is that of their products.

        UserError for a precision that the device does not have.
        """
        device = torch.device(device)
        devices.set_precision(precision, device)
        self._autocast = devices.autocast(precision, device)
        for model in self.models.values():
            model.to(device)
        return self

    @property
    def stems(self) -> tuple[str, ...]:
        """The stems there is a model for."""
        return tuple(self.models)

    def latency(self, sample_rate: int, chunk: int | None = None) -> float:
        """Seconds of audio at `sample_rate` Hz that `stream` may hold back, before its end."""
        size, context = self._chunking(self.models, chunk, 1)
        refinement = refine.choose(self.refinement, self.stems, self.sample_rate)
        held = size + context + (refinement.latency if refinement else 0)
        seconds = held / self.sample_rate
        if sample_rate != self.sample_rate:  # on the way in, and out
            seconds += 2 * audio.STEADY / min(sample_rate, self.sample_rate)
        return seconds

    def __call__(
        self,
        mixture: npt.ArrayLike | torch.Tensor,
        sample_rate: int,
        chunk: int | None = None,
        progress: Callable[[float], object] | None = None,
        *,
        stems: Sequence[str] | None = None,
    ) -> dict[str, Audio]:
        """(channels, samples) at `sample_rate` Hz to {stem: (channels, samples)} at the same.

        Channels go through the mono model side by side; a mixture at another rate than the
        models' is resampled on the way in and out. `stems` are those wanted, all by default.
        `progress` is called with the seconds that are finished, chunk by chunk. ValueError for
        what is no audio, UserError for a stem without a model. `chunk` are samples that are
        separated at a time, SECONDS by default: memory and speed depend on it, the result does not.
        """
        parts = list(self.stream([mixture], sample_rate, chunk, progress, stems=stems))
        return {stem: np.concatenate([part[stem] for part in parts], axis=1) for stem in parts[0]}

    @torch.inference_mode()
    def stream(
        self,
        blocks: Iterable[npt.ArrayLike | torch.Tensor],
        sample_rate: int,
        chunk: int | None = None,
        progress: Callable[[float], object] | None = None,
        *,
        stems: Sequence[str] | None = None,
    ) -> Iterator[dict[str, Audio]]:
        """As a call, of a song that comes in blocks (channels, any number of samples).

        Yields the stems' next samples, a dict of arrays of one shape, as soon as they are certain:
        `latency` later at most. Put together they are what a call with the whole song returns, and
        as long as the song; memory does not depend on its length. At least one dict comes.

        Where the models hear nothing but digital silence, the stems are silent too.
        """
        wanted = self._wanted(stems)
        _check_rate(sample_rate, self.sample_rate)
        refinement = refine.choose(self.refinement, self.stems, self.sample_rate)
        models = {s: m for s, m in self.models.items() if refinement or s in wanted}
        source = _Source(blocks, sample_rate, self.sample_rate)
        first = source.channels()
        size, context = self._chunking(models, chunk, first)
        back = {stem: audio.Resampler(self.sample_rate, sample_rate) for stem in wanted}
        given = 0

        def resampled(found: Mapping[str, torch.Tensor]) -> dict[str, Audio]:
            nonlocal given
            out = {stem: back[stem].feed(_finite(found[stem]).cpu().numpy()) for stem in wanted}
            given += out[wanted[0]].shape[1]
            return out

        device = next(next(iter(models.values())).parameters()).device
        # Apple's GPUs lack the complex solver that a refinement may need.
        beside = torch.device("cpu") if device.type == "mps" else device
        for window, kept in windows(source, size, context):
            heard = _heard(window, context)[kept].to(device)
            with self._autocast():
                found = {
                    stem: (self._estimate(model, window.to(device))[:, kept] * heard).to(beside)
                    for stem, model in models.items()
                }
            if refinement:
                found = refinement.feed(window[:, kept].to(beside), found)
            yield resampled(found)
            if progress:
                progress((kept.stop - kept.start) / self.sample_rate)
        if refinement and source.samples:
            yield resampled(refinement.end())
        # There and back again can be a sample or two longer.
        rest = source.samples - given
        if source.samples:
            yield {stem: one.end()[:, :rest] for stem, one in back.items()}
        else:
            yield dict.fromkeys(wanted, np.empty((first, 0), np.float32))

    def _estimate(self, model: VQVAE, window: torch.Tensor) -> torch.Tensor:
        """What a model makes of a window, (channels, samples) to the same."""
        if self.shifts == 1:
            return apply(model, window)
        run = partial(apply, model)
        return refine.shifted(run, window, self.shifts, model.architecture.hop)

    def _wanted(self, stems: Sequence[str] | None) -> tuple[str, ...]:
        wanted = self.stems if stems is None else tuple(dict.fromkeys(stems))
        for stem in wanted:
            if stem not in self.models:
                raise UserError(
                    f"stem '{stem}': there is no model for it; there is for "
                    f"{', '.join(self.models)}."
                )
        if not wanted:
            raise UserError(f"no stem is wanted; there are {', '.join(self.models)}.")
        return wanted

    def _chunking(
        self, models: Mapping[str, VQVAE], chunk: int | None, channels: int
    ) -> tuple[int, int]:
        """Samples of a chunk, by default SECONDS, and of context: multiples of all models' hops.

        Of many channels chunks are shorter: memory grows with their product.
        """
        hop = math.lcm(*(model.architecture.hop for model in models.values()))
        context = math.ceil(max(model.context() for model in models.values()) / hop) * hop
        context += hop if self.shifts > 1 else 0
        chunk = round(SECONDS * self.sample_rate) if chunk is None else chunk
        return max(chunk // max(1, channels // 2) // hop, 1) * hop, context


class _Source:
    """Blocks of audio, checked, at the models' rate: (channels, any number) tensors."""

    def __init__(
        self, blocks: Iterable[npt.ArrayLike | torch.Tensor], sample_rate: int, target: int
    ) -> None:
        self.samples = 0  # that came
        self._blocks = iter(blocks)
        self._held: deque[Audio] = deque()
        self._shape: int | None = None
        self._resampler = audio.Resampler(sample_rate, target)

    def channels(self) -> int:
        """Of the first block."""
        if self._shape is None:
            block = next(self._blocks, None)
            if block is None:
                raise ValueError("a separator was given no audio")
            self._held.append(self._checked(block))
        assert self._shape is not None
        return self._shape

    def __iter__(self) -> Iterator[torch.Tensor]:
        for block in self._checked_blocks():
            self.samples += block.shape[1]
            yield torch.from_numpy(self._resampler.feed(block))
        if self.samples:
            yield torch.from_numpy(self._resampler.end())

    def _checked_blocks(self) -> Iterator[Audio]:
        while self._held:
            yield self._held.popleft()
        for block in self._blocks:
            yield self._checked(block)

    def _checked(self, block: npt.ArrayLike | torch.Tensor) -> Audio:
        found = block.detach().cpu().numpy() if isinstance(block, torch.Tensor) else block
        samples = np.require(found, np.float32, ("C", "W"))
        if samples.ndim != 2 or not len(samples) or self._shape not in (None, len(samples)):
            before = f" after {self._shape} channels" if self._shape else ""
            raise ValueError(f"audio is (channels, samples), found {samples.shape}{before}")
        if not np.isfinite(samples).all():
            raise ValueError("audio holds NaN or infinite samples")
        self._shape = len(samples)
        return samples


def _heard(window: torch.Tensor, context: int) -> torch.Tensor:
    """Of each sample 1 if there is any sound within the context around it, else 0."""
    counts = F.pad((window != 0).any(0).cumsum(0), (context + 1, 0))
    counts = torch.cat([counts, counts[-1:].expand(context)])
    return (counts[2 * context + 1 :] > counts[: window.shape[-1]]).float()


def _check_rate(source: int, target: int) -> None:
    """Between rates without a common divisor the filter would take all memory."""
    if source < 1:
        raise ValueError(f"a sample rate of {source} Hz")
    if source * target // math.gcd(source, target) ** 2 > TAPS:
        raise UserError(
            f"a sample rate of {source} Hz has too little in common with the models' {target} Hz. "
            "Resample the song to a usual rate, such as 44100 Hz."
        )


def _finite(stem: torch.Tensor) -> torch.Tensor:
    if not stem.isfinite().all():
        raise UserError(
            "the samples are too large to be separated: full scale is 1. Lower the song's level."
        )
    return stem


def available(folder: str | Path = paths.SEPARATOR, init: str | None = None) -> tuple[str, ...]:
    """The stems that `load_separator` finds models for; UserError if there are none."""
    if _packed(folder):
        stems = models.read_card(folder).stems
        if other := [model.init for model in stems.values() if init not in (None, model.init)]:
            raise UserError(
                f"{folder}: holds models with init '{other[0]}', not '{init}'. Folders "
                "of trainings, as runs/ is, hold both."
            )
        return tuple(stems)
    init = init or INIT
    trained = tuple(models.stems_of_trainings(folder, init))
    if not trained:
        raise UserError(
            f"{folder}: no models: neither {models.CARD}, nor trainings with init '{init}'. Run "
            "`dvc repro` (or `dvc pull`) first, or `jukesep import` for checkpoints."
        )
    return trained


def _packed(folder: str | Path) -> bool:
    """Whether there is a card, or what stands in its place: a link that leads nowhere, too."""
    return os.path.lexists(Path(folder) / models.CARD)


def load_separator(
    folder: str | Path = paths.SEPARATOR, init: str | None = None, refinement: str | None = None
) -> Separator:
    """The separator of a folder of models, as `dvc repro` and `jukesep import` leave it.

    Or of a folder of trainings, as runs/ is: of those with this init, pretrained by default, the
    last checkpoints. UserError if there is none, or if the models do not fit.
    """
    stems = available(folder, init)
    if _packed(folder):
        card = models.read_card(folder)
        found = {stem: models.load(folder, stem, card) for stem in stems}
        return Separator(found, card.sample_rate, refinement)
    paths = models.stems_of_trainings(folder, init or INIT)
    rates = {
        s: jukebox.read_hps(stage1).get("sample_rate", 44100) for s, (stage1, _) in paths.items()
    }
    if len(set(rates.values())) > 1:
        raise UserError(f"{folder}: the models differ in sample rate: {rates}.")
    found = {stem: load_model(*both) for stem, both in paths.items()}
    return Separator(found, rates[stems[0]], refinement)
