"""Better stems from the same models, without training; docs/stems.md has the gains.

A refinement takes the mixture and the models' estimates of all stems. It divides the mixture's
short-time spectrum among the stems, frame by frame:

- ``wiener``       with multichannel Wiener filters: masks that also use each stem's panning.
- ``masks``        with soft masks ``|E_k|^p / sum_j |E_j|^p``, separately on each channel.
- ``consistency``  keeps the estimates and divides only their difference from the mixture.

Refined stems sum to the mixture. With the first two they are also silent where it is silent for a
whole frame of the spectrum.
`shifted` works differently: it runs a model several times.

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
FLOOR = 1e-30  # where all estimates are silent, each has the same share
LOAD = 1e-4  # share of a covariance's trace added to its diagonal: equal channels are singular
GOLDEN = (math.sqrt(5) - 1) / 2
NUMBERS = 2**21  # elements of the covariances that are solved at a time


class Refinement(ABC):
    """Refines one song's stems block by block. Memory does not depend on the song's length.

    The concatenated results of `feed` and `end` do not depend on how the song is cut into blocks.
    Use a new object for each song.
    """

    run = 16  # frames processed at a time
    power: float

    def __init__(
        self, sample_rate: int, power: float | None = None, n_fft: int | None = None
    ) -> None:
        """`n_fft`: samples of a frame, a multiple of OVERLAP; None takes about WINDOW seconds."""
        self.n_fft = n_fft or 2 ** round(math.log2(WINDOW * sample_rate))
        self.hop = self.n_fft // OVERLAP
        self.power = self.power if power is None else power
        self._names: tuple[str, ...] = ()
        # Mixture and stems from the start of the next frame on, in blocks; how many samples that
        # is; the output that earlier frames have added to so far, from the same place on.
        self._held: list[Tensor] = []
        self._count = 0
        self._tail = torch.empty(0)
        self._samples = 0  # received so far
        self._made = 0  # finished so far, counting from the silence before the song

    @property
    def latency(self) -> int:
        """Most samples by which the output lags behind the input, until `end`."""
        return self.run * self.hop + self.n_fft

    def feed(self, mixture: Tensor, stems: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take the next samples, (channels, any number) each; return those finished so far.

        ValueError if a stem's shape differs from the mixture's, or the stems from earlier ones.
        """
        if any(stem.shape != mixture.shape for stem in stems.values()):
            shapes = {name: tuple(stem.shape) for name, stem in stems.items()}
            raise ValueError(f"mixture of shape {tuple(mixture.shape)}, stems of {shapes}")
        block = torch.stack([mixture, *stems.values()]).float()
        if not self._names:
            self._names = tuple(stems)
            # Silence before the song, so that its first sample lies in as many frames as any.
            before = self.n_fft - self.hop
            self._held, self._count = [block.new_zeros(*block.shape[:2], before)], before
            self._tail = block.new_zeros(len(stems), block.shape[1], before)
            self._made = -before
        elif tuple(stems) != self._names:
            raise ValueError(f"stems {tuple(stems)} after {self._names}")
        self._samples += block.shape[-1]
        return self._finish(block, self.run)

    def end(self) -> dict[str, Tensor]:
        """Return the remaining samples, after the last `feed`. ValueError without any audio."""
        if not self._names:
            raise ValueError("a refinement was given no audio")
        silence = self._held[0].new_zeros(*self._held[0].shape[:2], self.n_fft)
        return self._finish(silence, 1)

    def __call__(self, mixture: Tensor, stems: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Refine a whole song: mixture and stems (channels, samples) to stems of that shape."""
        first, rest = self.feed(mixture, stems), self.end()
        return {name: torch.cat([first[name], rest[name]], dim=-1) for name in first}

    def _finish(self, block: Tensor, least: int) -> dict[str, Tensor]:
        """The samples that `block` finishes, in runs of at least `least` frames."""
        self._held.append(block)
        self._count += block.shape[-1]
        if self._frames(self._count) < least:
            return dict(zip(self._names, self._tail[..., :0], strict=True))
        held, finished = torch.cat(self._held, dim=-1), [self._tail[..., :0]]
        window = torch.hann_window(self.n_fft, device=held.device)
        while (count := self._frames(held.shape[-1])) >= least:
            count = min(count, self.run)
            frames = held[..., : (count - 1) * self.hop + self.n_fft]
            spectra = torch.fft.rfft(frames.unfold(-1, self.n_fft, self.hop) * window)
            shares = torch.fft.irfft(self._share(spectra[0], spectra[1:]), n=self.n_fft)
            finished.append(self._add(shares * window))
            held = held[..., count * self.hop :]
        # A copy, to free what is finished.
        self._held, self._count = [held.clone()], held.shape[-1]
        output = torch.cat(finished, dim=-1)
        first, self._made = max(-self._made, 0), self._made + output.shape[-1]
        last = output.shape[-1] - max(self._made - self._samples, 0)
        return dict(zip(self._names, output[..., first : max(first, last)], strict=True))

    def _frames(self, samples: int) -> int:
        """How many frames lie in `samples`; 0 or less if there are fewer than a frame has."""
        return (samples - self.n_fft) // self.hop + 1

    def _add(self, frames: Tensor) -> Tensor:
        """Overlap-add frames (stems, channels, frames, n_fft); return the finished samples.

        OVERLAP squared Hann windows, one hop apart, sum to 3/8 of OVERLAP.
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
        """Spectra of a run, (channels, frames, bins) and (stems, ...), to refined (stems, ...)."""


class Masks(Refinement):
    """The mixture times ``|E_k|^power / sum_j |E_j|^power``."""

    power = 1.5

    def _share(self, mixture: Tensor, stems: Tensor) -> Tensor:
        return mixture * _shares(stems, self.power)


class Consistency(Refinement):
    """The estimates, plus their difference from the mixture shared out by the masks.

    With power 0 all stems have equal shares.
    """

    power = 0.5

    def _share(self, mixture: Tensor, stems: Tensor) -> Tensor:
        return stems + (mixture - stems.sum(0)) * _shares(stems, self.power)


class Wiener(Refinement):
    """Multichannel Wiener filters: stem k is ``g_k R_k (sum_j g_j R_j)^-1`` times the mixture.

    g_k is the stem's power in a frame and bin, raised to power/2. R_k is its covariance between
    channels in that bin, over all frames up to the end of this run. Both are measured on stems
    masked by magnitudes. In mono this equals `Masks`. With power 2 and all frames in one run it is
    one iteration of expectation-maximisation as in the package norbert; a lower power is a
    generalised Wiener filter (Liutkus and Badeau, ICASSP 2015). Covariances cover the song so far,
    because covering the whole song would take a second pass.
    """

    run = 86  # about 4 s
    power = 1.5

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
    """The refinement for one song at `sample_rate` Hz, as `chosen` names it."""
    name = chosen(name, stems)
    return REFINEMENTS[name](sample_rate) if name else None


def chosen(name: str | None, stems: Iterable[str]) -> str | None:
    """The name of the refinement: DEFAULT if `name` is None, None if it is "none".

    Every refinement needs models of all stems. If `stems` lacks some, None means no refinement
    and a name is a UserError, as is an unknown name.
    """
    missing = [stem for stem in STEMS if stem not in set(stems)]
    if name == "none" or (name is None and missing):
        return None
    if name is not None and name not in REFINEMENTS:
        raise UserError(f"refinement '{name}': unknown. Choose {', '.join(REFINEMENTS)} or none.")
    if missing:
        raise UserError(
            f"refinement '{name}': needs models for {', '.join(STEMS)}; missing: "
            f"{', '.join(missing)}. Choose none, or train the missing stems."
        )
    return name or DEFAULT


def shifted(apply: Callable[[Tensor], Tensor], rows: Tensor, shifts: int, hop: int) -> Tensor:
    """The mean of `apply` over `shifts` delays within a hop: (rows, samples) to the same shape.

    A codec's errors change when its input is delayed by part of a hop, so that they partly cancel
    in the mean. Takes `shifts` times as long. Chunks need one hop more of context than the model
    has.
    """
    total = torch.zeros_like(rows)
    for delay in delays(shifts, hop):
        total += delayed(apply, rows, delay)
    return total / shifts


def delays(shifts: int, hop: int) -> list[int]:
    """`shifts` delays in samples, from 0 and below `hop`, all different; at most `hop` of them.

    `hop` is a power of two. A layer that doubles the sample rate leaves images of a signal at
    mirrored frequencies. A delay by an odd number of the layer's output samples changes the sign of
    the images, so that they cancel in the mean of an even and an odd delay, as far as the layers
    are linear. The first 2, 4, 8, ... delays have all remainders modulo 2, 4, 8, ..., and cancel
    the images of the last 1, 2, 3, ... layers. This is so for multiples of any odd step. A step
    near the golden section of the hop keeps the first delays apart.
    """
    step = 2 * round((GOLDEN * hop - 1) / 2) + 1
    return [shift * step % hop for shift in range(shifts)]


def delayed(apply: Callable[[Tensor], Tensor], rows: Tensor, delay: int) -> Tensor:
    """Run `apply` on rows delayed by `delay` samples of silence; cut the delay off its output."""
    return apply(F.pad(rows, (delay, 0)))[..., delay:]


def _shares(stems: Tensor, power: float) -> Tensor:
    """Each stem's share, summing to 1 over stems: (stems, channels, frames, bins)."""
    weights = stems.abs().pow(power) + FLOOR
    return weights / weights.sum(0)


def _filter(mixture: Tensor, gains: Tensor, spatial: Tensor) -> Tensor:
    """Wiener filters: (channels, t, f), (stems, t, f), (stems, f, c, c) to (stems, c, t, f)."""
    total = torch.einsum("stf,sfcd->tfcd", gains.to(spatial.dtype), spatial)
    load = LOAD * total.diagonal(dim1=-2, dim2=-1).real.sum(-1) + FLOOR
    total = total + load[..., None, None] * torch.eye(len(mixture), device=mixture.device)
    solved = torch.linalg.solve(total, mixture.permute(1, 2, 0).unsqueeze(-1)).squeeze(-1)
    filtered = torch.einsum("sfcd,tfd->sctf", spatial, solved) * gains.unsqueeze(1)
    # Share what the diagonal load took away equally, so that the stems still sum to the mixture.
    return filtered + (load.unsqueeze(-1) * solved / len(gains)).permute(2, 0, 1)
