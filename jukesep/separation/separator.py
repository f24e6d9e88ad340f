"""The separator: one model per stem, songs in, stems out."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from .. import audio
from ..audio import Audio
from ..base import paths
from ..base.errors import UserError
from ..base.params import Bottleneck
from ..base.unchanged import digest, file_digest
from ..kernels import devices
from ..model.checkpoints import load_pair
from ..model.vqvae import VQVAE
from . import models, refine
from .chunked import apply, windows

INIT = "pretrained"  # the default init in a folder of trainings
PIECE = 1 << 17  # samples resampled at a time
SECONDS = 18.0  # of a chunk: twice the authors', so that context is a smaller share


class Separator:
    """One model per stem: mixture in, stems out.

    `models` maps stems to models that work at `sample_rate` Hz. `refinement` is a name in
    `refine.REFINEMENTS`, or "none" for the models' own output, as in the paper. None means
    `refine.DEFAULT` if there are models for all four stems, else "none". With `shifts` > 1 each
    model runs that many times on slightly delayed songs, and the mean is taken (`refine.shifted`).
    `bottleneck` and `temperature` say what the decoders get (`chunked.apply`).
    UserError for more shifts than a model's hop has samples.
    """

    def __init__(
        self,
        models: Mapping[str, VQVAE],
        sample_rate: int,
        refinement: str | None = None,
        shifts: int = 1,
        bottleneck: Bottleneck = "quantise",
        temperature: float = 20.0,
    ) -> None:
        self.models = {stem: model.eval() for stem, model in models.items()}
        self.sample_rate = sample_rate
        self.refinement = refinement
        self.shifts = shifts
        self.bottleneck, self.temperature = bottleneck, temperature
        self._autocast = devices.autocast("fp32", torch.device("cpu"))

    def to(self, device: torch.device | str, precision: devices.Precision = "fp32") -> Separator:
        """Move the models; returns self. `precision` is the precision of matrix products.

        UserError for a device that is not available, or a precision that it does not support.
        """
        device = torch.device(device)
        devices.resolve(device.type)
        if precision not in (known := get_args(devices.Precision)):
            raise UserError(f"precision={precision}: no such value; choose {', '.join(known)}.")
        devices.set_precision(precision, device)
        self._autocast = devices.autocast(precision, device)
        for model in self.models.values():
            model.to(device)
        return self

    @property
    def stems(self) -> tuple[str, ...]:
        """The stems that have a model."""
        return tuple(self.models)

    @property
    def shifts(self) -> int:
        """How many times each model runs."""
        return self._shifts

    @shifts.setter
    def shifts(self, shifts: int) -> None:
        most = min((model.architecture.hop for model in self.models.values()), default=1)
        if not 1 <= shifts <= most:
            raise UserError(
                f"{shifts} shifts: choose 1 to {most}. The models work in hops of {most} samples, "
                "so that more shifts would repeat the same ones."
            )
        self._shifts = shifts

    def latency(self, sample_rate: int, chunk: int | None = None) -> float:
        """Most seconds of audio at `sample_rate` Hz by which the output of `stream` lags."""
        _check_rate(sample_rate, self.sample_rate)
        size, context = self._chunking(self.models, chunk, 1)
        refinement = refine.choose(self.refinement, self.stems, self.sample_rate)
        held = size + context + (refinement.latency if refinement else 0)
        there = audio.Resampler(sample_rate, self.sample_rate).latency
        back = audio.Resampler(self.sample_rate, sample_rate).latency
        return there / sample_rate + (held + back) / self.sample_rate

    def __call__(
        self,
        mixture: npt.ArrayLike | torch.Tensor,
        sample_rate: int,
        chunk: int | None = None,
        progress: Callable[[float], object] | None = None,
        *,
        stems: Sequence[str] | None = None,
    ) -> dict[str, Audio]:
        """Separate a song at `sample_rate` Hz: (channels, samples) to {stem: (channels, samples)}.

        Each channel goes through the mono model as one item of the batch. A mixture at another
        rate is resampled to the models' rate and back. `stems` selects stems, all by default.
        `chunk` is the number of samples separated at a time (default: SECONDS); it changes memory
        and speed, not the result. `progress` is called with the seconds finished by each chunk.
        ValueError for an array that is not audio, UserError for a stem without a model.
        """
        whole: dict[str, Audio] = {}
        done = 0
        for part in self.stream([mixture], sample_rate, chunk, progress, stems=stems):
            for stem, found in part.items():
                if stem not in whole:
                    whole[stem] = np.empty((len(found), np.shape(mixture)[1]), np.float32)
                whole[stem][:, done : done + found.shape[1]] = found
            done += found.shape[1]
        assert done == np.shape(mixture)[1]  # else the rest would be whatever was in memory
        return whole

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
        """Like calling the separator, for a song that comes in blocks (channels, any samples).

        Yields the next samples of all stems, as a dict of arrays of one shape, once they are
        final: at most `latency` seconds later. Concatenated they equal the result of a call with
        the whole song. Memory does not depend on the song's length: an array keeps nothing in
        memory but its own samples, and a block may be overwritten once the next one is asked for.
        Yields at least one dict.

        Where the models' whole receptive field is digital silence, the stems are silent too.
        Refined stems may have sound up to a frame of the spectrum further.
        """
        wanted = _wanted(stems, self.stems)
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
        # Resampling to the models' rate and back can add a sample or two.
        rest = source.samples - given
        if source.samples:
            yield {stem: one.end()[:, :rest] for stem, one in back.items()}
        else:
            yield dict.fromkeys(wanted, np.empty((first, 0), np.float32))

    def _estimate(self, model: VQVAE, window: torch.Tensor) -> torch.Tensor:
        """Run a model over a window: (channels, samples) to the same shape."""
        if self.shifts == 1:
            return apply(model, window, self.bottleneck, self.temperature)
        run = partial(apply, model, bottleneck=self.bottleneck, temperature=self.temperature)
        return refine.shifted(run, window, self.shifts, model.architecture.hop)

    def _chunking(
        self, models: Mapping[str, VQVAE], chunk: int | None, channels: int
    ) -> tuple[int, int]:
        """Samples of a chunk (by default SECONDS) and of context, multiples of every model's hop.

        More than two channels make chunks shorter, because memory grows with both.
        """
        hop = math.lcm(*(model.architecture.hop for model in models.values()))
        context = math.ceil(max(model.context() for model in models.values()) / hop) * hop
        context += hop if self.shifts > 1 else 0
        chunk = round(SECONDS * self.sample_rate) if chunk is None else chunk
        return max(chunk // max(1, channels // 2) // hop, 1) * hop, context


class _Source:
    """Checks blocks of audio and resamples them to `target` Hz: (channels, samples) tensors."""

    def __init__(
        self, blocks: Iterable[npt.ArrayLike | torch.Tensor], sample_rate: int, target: int
    ) -> None:
        self.samples = 0  # received so far
        self._blocks = iter(blocks)
        self._held: deque[Audio] = deque()
        self._shape: int | None = None
        self._resampler = audio.Resampler(sample_rate, target)

    def channels(self) -> int:
        """The number of channels, from the first block."""
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
            # A whole song may come as one block.
            for start in range(0, block.shape[1], PIECE):
                piece = block[:, start : start + PIECE]
                yield torch.from_numpy(self._resampler.feed(piece))
        if self.samples:
            yield torch.from_numpy(self._resampler.end())

    def _checked_blocks(self) -> Iterator[Audio]:
        while self._held:
            yield self._held.popleft()
        for block in self._blocks:
            yield self._checked(block)

    def _checked(self, block: npt.ArrayLike | torch.Tensor) -> Audio:
        found = block.detach().cpu().numpy() if isinstance(block, torch.Tensor) else block
        given = np.asarray(found)
        if given.dtype.kind in "iub" and given.size:
            raise ValueError(f"audio must be floats with full scale at 1, found {given.dtype}")
        shape = given.shape
        if (
            len(shape) != 2
            or not 0 < shape[0] <= audio.CHANNELS
            or self._shape not in (None, shape[0])
        ):
            before = f" after {self._shape} channels" if self._shape else ""
            raise ValueError(f"audio must be (channels, samples), found {shape}{before}")
        samples = np.require(given, np.float32, ("C", "W"))
        if not np.isfinite(samples).all():
            raise ValueError("audio holds NaN or infinite samples")
        self._shape = len(samples)
        return samples


def _wanted(stems: Sequence[str] | None, there: Sequence[str]) -> tuple[str, ...]:
    """`stems` without repetitions, or all that are `there`. UserError for others, and for none."""
    wanted = tuple(there) if stems is None else tuple(dict.fromkeys(stems))
    for stem in wanted:
        if stem not in there:
            raise UserError(
                f"stem '{stem}': no model for it. Choose from the stems {', '.join(there)}."
            )
    if not wanted:
        raise UserError(f"no stems given. Choose from {', '.join(there)}.")
    return wanted


def _heard(window: torch.Tensor, context: int) -> torch.Tensor:
    """For each sample 1 if any sample within `context` of it is not zero, else 0."""
    counts = F.pad((window != 0).any(0).cumsum(0), (context + 1, 0))
    counts = torch.cat([counts, counts[-1:].expand(context)])
    return (counts[2 * context + 1 :] > counts[: window.shape[-1]]).float()


def _check_rate(source: int, target: int) -> None:
    """Before any work: a ValueError for a rate below 1 Hz, or what `audio.check_rates` raises."""
    if source < 1:
        raise ValueError(f"sample rate must be at least 1 Hz, found {source}")
    audio.check_rates(source, target)


def _finite(stem: torch.Tensor) -> torch.Tensor:
    if not stem.isfinite().all():
        raise UserError(
            "the song's samples are too large to separate: full scale is 1. Lower its level."
        )
    return stem


def available(folder: str | Path = paths.SEPARATOR, init: str | None = None) -> tuple[str, ...]:
    """The stems for which `load_separator` finds models. UserError if there are none."""
    if _packed(folder):
        stems = models.read_card(folder).stems
        if other := [model.init for model in stems.values() if init not in (None, model.init)]:
            raise UserError(
                f"{folder}: holds models with init '{other[0]}', not '{init}'. Give a folder "
                "of trainings, such as runs/, to choose an init."
            )
        return tuple(stems)
    init = init or INIT
    trained = models.stems_of_trainings(folder, init)
    if not trained:
        raise UserError(
            f"{folder}: no models: neither {models.CARD} nor trainings with init '{init}'. Run "
            "`dvc repro` first, or `jukesep import` to import checkpoints."
        )
    return trained


def digests(
    stems: Iterable[str], folder: str | Path = paths.SEPARATOR, init: str | None = None
) -> dict[str, str]:
    """Stem -> digest of the files of the model that `load_separator` loads for it.

    It is empty for files that are missing: loading them says so.
    """
    if _packed(folder):
        card = models.read_card(folder)
        # The rate, and what the decoders get, are in the card alone.
        sums: dict[str, str] = {stem: model.sha256 for stem, model in card.stems.items()}
        how = f"{card.sample_rate} {card.bottleneck} {card.temperature}"
        return {stem: digest(f"{sums[stem]} {how}".encode()) for stem in stems}
    found: dict[str, str] = dict.fromkeys(stems, "")
    for stem in found:
        with suppress(UserError, OSError):
            both = models.last_checkpoints(folder, stem, init or INIT)
            found[stem] = digest(file_digest(one).encode() for one in both)
    return found


def _packed(folder: str | Path) -> bool:
    """Whether the folder has a card, even if it is a broken link."""
    return os.path.lexists(Path(folder) / models.CARD)


def load_separator(
    folder: str | Path = paths.SEPARATOR,
    init: str | None = None,
    refinement: str | None = None,
    shifts: int = 1,
    *,
    stems: Sequence[str] | None = None,
) -> Separator:
    """Load a separator from a folder of models, as `dvc repro` and `jukesep import` write it.

    Or from a folder of trainings such as runs/: the last checkpoints with this init, pretrained
    by default. `stems` are those to separate, all by default: without a refinement, which needs
    every stem, only their models are loaded. UserError if models are missing or damaged, or do not
    fit together.
    """
    there = available(folder, init)
    wanted = _wanted(stems, there)
    refined = refine.chosen(refinement, there)
    load = _loader(folder, init)
    found, rates = dict[str, VQVAE](), dict[str, int]()
    for stem in there if refined else wanted:
        try:
            found[stem], rates[stem] = load(stem)
        except UserError as error:
            if stem in wanted:
                raise
            raise UserError(
                f"{error} The refinement '{refined}' needs the model of {stem}: choose `--refine "
                "none` to separate without it."
            ) from error
    if len(set(rates.values())) > 1:
        raise UserError(f"{folder}: the models differ in sample rate: {rates}. Train them again.")
    rate = rates[wanted[0]]
    if not _packed(folder):
        return Separator(found, rate, refinement, shifts)
    card = models.read_card(folder)
    return Separator(found, rate, refinement, shifts, card.bottleneck, card.temperature)


def _loader(folder: str | Path, init: str | None) -> Callable[[str], tuple[VQVAE, int]]:
    """A function that loads a stem's model and its sample rate in Hz."""
    if _packed(folder):
        card = models.read_card(folder)
        return lambda stem: (models.load(folder, stem, card), card.sample_rate)

    def load(stem: str) -> tuple[VQVAE, int]:
        checkpoints = models.last_checkpoints(folder, stem, init or INIT)
        pair = load_pair(*checkpoints, stem, torch.device("cpu"))
        return pair.separator, pair.sample_rate

    return load
