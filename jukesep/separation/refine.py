"""Better stems from the same models, without training: docs/stems.md has what each way gains.

A refinement takes the mixture and the models' estimates of all its stems, and shares the mixture's
short-time spectrum out among them, frame by frame:

- ``wiener``       by multichannel Wiener filters: masks that also know where each stem is panned.
- ``masks``        by soft masks ``|E_k|^p / sum_j |E_j|^p``, each channel for itself.
- ``consistency``  keeps the estimates, and shares out only what they lack to sum to the mixture.

After each of them the stems sum to the mixture; after the first two they are silent where it is.
`shifted` is of another kind: it runs a model several times.

Mixture and stems are tensors (channels, samples) at the models' sample rate, on one device.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from ..base.errors import UserError
from ..songs.manifest import STEMS

DEFAULT = "wiener"  # the best on the validation songs: docs/stems.md
WINDOW = 2048 / 11025  # seconds of a frame, about
OVERLAP = 4  # frames that a sample lies in
FLOOR = 1e-30  # where all estimates are silent, they share equally
LOAD = 1e-4  # of a covariance's trace, added to its diagonal: two equal channels have no inverse
NUMBERS = 2**21  # in the covariances that are solved at a time


class Refinement(ABC):
    """One song's stems, refined as they come. Memory does not depend on the song's length.

    What `feed` and `end` return, one after the other, does not depend on how the song was cut.
    An object serves one song.
    """

    run = 16  # frames that are worked on at a time
    power: float

    def __init__(
        self, sample_rate: int, power: float | None = None, n_fft: int | None = None
    ) -> None:
        """`n_fft`: samples of a frame, a multiple of OVERLAP; None takes about WINDOW seconds."""
        self.n_fft = n_fft or 2 ** round(math.log2(WINDOW * sample_rate))
        self.hop = self.n_fft // OVERLAP
        self.power = self.power if power is None else power
        self._names: tuple[str, ...] = ()
        # Mixture and stems from the first frame on that is to come; what earlier frames have added
        # to the output from there on.
        self._held = self._tail = torch.empty(0)
        self._samples = 0  # that came
        self._made = 0  # that are finished, those before the song included

    @property
    def latency(self) -> int:
        """Samples that the output lags behind the input at most, until `end`."""
        return self.run * self.hop + self.n_fft

    def feed(self, mixture: Tensor, stems: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The next samples, (channels, any number) each, to those that are finished by now.

        ValueError for stems of another shape than the mixture, or other stems than before.
        """
        if any(stem.shape != mixture.shape for stem in stems.values()):
            shapes = {name: tuple(stem.shape) for name, stem in stems.items()}
            raise ValueError(f"mixture of shape {tuple(mixture.shape)}, stems of {shapes}")
        block = torch.stack([mixture, *stems.values()]).float()
        if not self._names:
            self._names = tuple(stems)
            # Silence before the song: its first sample lies in as many frames as any other.
            before = self.n_fft - self.hop
            self._held = block.new_zeros(*block.shape[:2], before)
            self._tail = self._held[1:].clone()
            self._made = -before
        elif tuple(stems) != self._names:
            raise ValueError(f"stems {tuple(stems)} after {self._names}")
        self._samples += block.shape[-1]
        return self._finish(block, self.run)

    def end(self) -> dict[str, Tensor]:
        """The rest, after the last samples. ValueError if there were none."""
        if not self._names:
            raise ValueError("a refinement was given no audio")
        silence = self._held.new_zeros(*self._held.shape[:2], self.n_fft)
        return self._finish(silence, 1)

    def __call__(self, mixture: Tensor, stems: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A whole song, (channels, samples) each, to its refined stems of the same shape."""
        first, rest = self.feed(mixture, stems), self.end()
        return {name: torch.cat([first[name], rest[name]], dim=-1) for name in first}

    def _finish(self, block: Tensor, least: int) -> dict[str, Tensor]:
        """What `block` finishes, in runs of frames; none of fewer frames than `least`."""
        held, finished = torch.cat([self._held, block], dim=-1), [self._tail[..., :0]]
        window = torch.hann_window(self.n_fft, device=held.device)
        while (count := (held.shape[-1] - self.n_fft) // self.hop + 1) >= least:
            count = min(count, self.run)
            frames = held[..., : (count - 1) * self.hop + self.n_fft]
            spectra = torch.fft.rfft(frames.unfold(-1, self.n_fft, self.hop) * window)
            shares = torch.fft.irfft(self._share(spectra[0], spectra[1:]), n=self.n_fft)
            finished.append(self._add(shares * window))
            held = held[..., count * self.hop :]
        self._held = held.clone()  # what is finished need not be kept
        output = torch.cat(finished, dim=-1)
        first, self._made = max(-self._made, 0), self._made + output.shape[-1]
        last = output.shape[-1] - max(self._made - self._samples, 0)
        return dict(zip(self._names, output[..., first : max(first, last)], strict=True))

    def _add(self, frames: Tensor) -> Tensor:
        """Frames (stems, channels, frames, n_fft) overlapped and added: what no later one adds to.

        The squares of OVERLAP Hann windows, each a hop after the other, sum to 3/8 of OVERLAP.
        """
        length = frames.shape[-2] * self.hop
        total = F.pad(self._tail, (0, length))
        for start in range(0, self.n_fft, self.hop):
            part = frames[..., start : start + self.hop].flatten(-2)
            total[..., start : start + length] += part / (OVERLAP * 3 / 8)
        self._tail = total[..., length:].clone()
        return total[..., :length]

    @abstractmethod
    def _share(self, mixture: Tensor, stems: Tensor) -> Tensor:
        """Spectra of a run: (channels, frames, bins) and (stems, ...) to those of the output."""


class Masks(Refinement):
    """The mixture times ``|E_k|^power / sum_j |E_j|^power``."""

    power = 1.25

    def _share(self, mixture: Tensor, stems: Tensor) -> Tensor:
        return mixture * _shares(stems, self.power)


class Consistency(Refinement):
    """The estimates, and of what they lack to sum to the mixture a share as large as the mask.

    With power 0 all stems have equal shares.
    """

    power = 0.5

    def _share(self, mixture: Tensor, stems: Tensor) -> Tensor:
        return stems + (mixture - stems.sum(0)) * _shares(stems, self.power)


class Wiener(Refinement):
    """Multichannel Wiener filters: stem k is ``g_k R_k (sum_j g_j R_j)^-1`` times the mixture.

    g_k is the stem's power in a frame and bin, to the power/2, and R_k its covariance between the
    channels in that bin, over all frames up to the end of this run: in mono they are `Masks`. Both
    are measured on stems masked by magnitudes. With power 2, and all frames in one run, this is one
    iteration of expectation-maximisation as the package norbert makes it; the lower power is a
    generalised Wiener filter (Liutkus and Badeau, ICASSP 2015). Covariances are of what has been
    heard so far, since those of the whole song would take a second pass over it.
    """

    run = 86  # about 4 s
    power = 1.25

    def __init__(
        self, sample_rate: int, power: float | None = None, n_fft: int | None = None
    ) -> None:
        super().__init__(sample_rate, power, n_fft)
        # Sums over frames: (stems, bins, channels, channels) and (stems, bins).
        self._covariance: Tensor | float = 0.0
        self._energy: Tensor | float = 0.0

    def _share(self, mixture: Tensor, stems: Tensor) -> Tensor:
        masked = mixture * _shares(stems, 1)
        energy = masked.abs().square().mean(1)  # (stems, frames, bins)
        covariance = torch.einsum("sctf,sdtf->sfcd", masked, masked.conj()) + self._covariance
        total = energy.sum(1) + self._energy
        self._covariance, self._energy = covariance, total
        spatial = covariance / (total + FLOOR)[..., None, None]
        gains = energy.pow(self.power / 2)
        step = max(1, NUMBERS // (mixture.shape[-1] * len(mixture) ** 2))
        parts = zip(mixture.split(step, 1), gains.split(step, 1), strict=True)
        return torch.cat([_filter(part, gain, spatial) for part, gain in parts], dim=2)


REFINEMENTS: dict[str, type[Refinement]] = {
    "wiener": Wiener,
    "masks": Masks,
    "consistency": Consistency,
}


def choose(name: str | None, stems: Iterable[str], sample_rate: int) -> Refinement | None:
    """The refinement of that name for one song; None of the name is DEFAULT, "none" is none.

    All of them compare the estimates of all stems. With models for fewer, DEFAULT becomes none, and
    any other is a UserError, as is an unknown name.
    """
    missing = [stem for stem in STEMS if stem not in set(stems)]
    if name == "none" or (name is None and missing):
        return None
    if name is not None and name not in REFINEMENTS:
        raise UserError(f"refinement '{name}': unknown. Choose {', '.join(REFINEMENTS)} or none.")
    if missing:
        raise UserError(
            f"refinement '{name}': needs a model for each of {', '.join(STEMS)}; there is none for "
            f"{', '.join(missing)}. Choose none, or train the missing stems."
        )
    return REFINEMENTS[name or DEFAULT](sample_rate)


def shifted(apply: Callable[[Tensor], Tensor], rows: Tensor, shifts: int, hop: int) -> Tensor:
    """The mean of `apply` over `shifts` delays of its input within a hop: (rows, samples) to same.

    A codec hears a delayed song in another way, unless the delay is a whole number of hops; the
    errors of its decodings partly cancel. Takes `shifts` times as long. A chunk needs a hop more of
    context than the model's.
    """
    total = torch.zeros_like(rows)
    for shift in range(shifts):
        total += delayed(apply, rows, shift * hop // shifts)
    return total / shifts


def delayed(apply: Callable[[Tensor], Tensor], rows: Tensor, delay: int) -> Tensor:
    """`apply` to rows after `delay` samples of silence, which its output then lacks again."""
    return apply(F.pad(rows, (delay, 0)))[..., delay:]


def _shares(stems: Tensor, power: float) -> Tensor:
    """Each stem's part of the sum of all, which is 1: (stems, channels, frames, bins)."""
    weights = stems.abs().pow(power) + FLOOR
    return weights / weights.sum(0)


def _filter(mixture: Tensor, gains: Tensor, spatial: Tensor) -> Tensor:
    """Wiener's filters: (channels, t, f), (stems, t, f), (stems, f, c, c) to (stems, c, t, f)."""
    total = torch.einsum("stf,sfcd->tfcd", gains.to(spatial.dtype), spatial)
    load = LOAD * total.diagonal(dim1=-2, dim2=-1).real.sum(-1) + FLOOR
    total = total + load[..., None, None] * torch.eye(len(mixture), device=mixture.device)
    solved = torch.linalg.solve(total, mixture.permute(1, 2, 0).unsqueeze(-1)).squeeze(-1)
    filtered = torch.einsum("sfcd,tfd->sctf", spatial, solved) * gains.unsqueeze(1)
    # What was added to the diagonal is shared equally, so that the stems still sum to the mixture.
    return filtered + (load.unsqueeze(-1) * solved / len(gains)).permute(2, 0, 1)
