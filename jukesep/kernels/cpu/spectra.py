"""The spectral distance of `training.losses` on a CPU, with its gradient, in blocks of frames.

In PyTorch, complex magnitudes and their gradient cost several times as much as the Fourier
transforms, and a spectrogram is larger than the cache. Here a block of frames is cut, transformed,
compared and transformed back before the next block; only a sum and the gradient are kept. The order
of the sums does not depend on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import threads
from .compiled import Array, compiled

BLOCK = 2**16
"""Numbers in the frames of one signal that are computed at a time."""

Stfts = Sequence[tuple[int, int, int]]
"""(n_fft, hop, window) in samples, for each resolution."""


def spectral_distance(
    target: Tensor, other: Tensor, stfts: Stfts, plain: Callable[[Tensor, Tensor, Stfts], Tensor]
) -> Tensor:
    """The mean over `stfts` of ||S(target) - S(other)||_F: (B, T), (B, T) -> (B,).

    Both float32 or both float64, on a CPU, longer than half the largest n_fft. `other` has a
    gradient; `plain`, the definition, computes second derivatives.
    """
    return _Distance.apply(target, other, stfts, plain)


class _Distance(torch.autograd.Function):
    """`spectral_distance`; the forward pass computes the gradient and keeps nothing else."""

    @staticmethod
    def forward(ctx: Any, target: Tensor, other: Tensor, stfts: Stfts, plain: Any) -> Tensor:
        ctx.save_for_backward(target, other)
        ctx.definition = plain, stfts
        values, gradients = target.new_empty(len(target)), torch.empty_like(target)
        items, needed = list(zip(target, other.detach(), strict=True)), ctx.needs_input_grad[1]

        def work(i: int) -> None:
            values[i] = distance(*items[i], stfts, gradients[i].numpy() if needed else None)

        threads.each(len(items), work)
        ctx.gradients = gradients
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None, None]:
        (gradient,) = gradients
        if torch.is_grad_enabled():
            target, other = ctx.saved_tensors
            plain, stfts = ctx.definition
            value = plain(target, other, stfts)
            first = torch.autograd.grad(value, other, gradient, create_graph=True)[0]
            return None, first, None, None
        return None, gradient[:, None] * ctx.gradients, None, None


def distance(target: Tensor, other: Tensor, stfts: Stfts, gradient: Array | None = None) -> float:
    """The mean over `stfts` of ||S(target) - S(other)||_F for one pair of signals (T,).

    Writes the gradient for `other` to `gradient` (T,), if given. All are float32 or all float64.
    `losses.stft_magnitude` defines S.
    """
    samples, margin = len(other), max(n_fft for n_fft, _, _ in stfts) // 2
    both = torch.stack([target, other])
    signals = F.pad(both, (margin, margin), mode="reflect").numpy()
    mean, slopes = 0.0, np.zeros_like(signals[0])
    for n_fft, hop, window in stfts:
        # Outside the window a frame is zero. The window's position in the frame changes only the
        # phases, so here it is at the start.
        first, hann = margin - n_fft // 2 + (n_fft - window) // 2, _hann(window, other.dtype)
        count, rows = 1 + samples // hop, max(1, BLOCK // n_fft)
        frames = other.new_zeros(2 * min(rows, count), n_fft)
        squares, slope = 0.0, np.zeros_like(slopes)
        for start in range(0, count, rows):
            n, place = min(rows, count - start), first + start * hop
            _cut(frames.numpy(), signals, hann, n, place, hop)
            spectra = torch.fft.rfft(frames[: 2 * n])
            squares += _compare(torch.view_as_real(spectra).numpy())
            if gradient is not None:
                changes = torch.fft.irfft(spectra[n:], n_fft, norm="forward")
                _add_frames(slope, changes.numpy(), hann, place, hop)
        norm = math.sqrt(squares)
        mean += norm / len(stfts)
        if norm != 0:  # at a distance of 0, PyTorch's gradient is 0 too
            slopes += slope * slope.dtype.type(1 / (norm * len(stfts)))
    if gradient is not None:  # the reflected margins' gradients belong to samples inside
        gradient[:] = slopes[margin : margin + samples]
        gradient[1 : margin + 1] += slopes[margin - 1 :: -1]
        gradient[-margin - 1 : -1] += slopes[: -margin - 1 : -1]
    return mean


@cache
def _hann(window: int, dtype: torch.dtype) -> Array:
    return torch.hann_window(window, dtype=dtype).numpy()


@compiled
def _cut(frames: Array, signals: Array, hann: Array, n: int, start: int, hop: int) -> None:
    """n windowed frames of the first signal, then n of the second."""
    for i in range(2):
        for f in range(n):
            frame, signal = frames[i * n + f], signals[i, start + f * hop :]
            for t in range(len(hann)):
                frame[t] = hann[t] * signal[t]


@compiled
def _compare(spectra: Array) -> float:
    """The sum of the squared differences between the magnitudes of the two halves.

    `spectra` (2 n, bins, 2) holds real and imaginary parts. Its second half is overwritten with
    what `irfft`, which counts all bins but the first and the last twice, turns into half of the
    sum's gradient.
    """
    n, bins, number = len(spectra) // 2, spectra.shape[1], spectra.dtype.type
    half, one, zero = number(0.5), number(1), number(0)
    total = 0.0
    for f in range(n):
        # With this length the compiler knows that no index is negative, and vectorises the loop.
        x, y = spectra[f].reshape(2 * bins), spectra[n + f].reshape(2 * bins)
        squares = zero
        for k in range(bins):
            a, b, c, d = x[2 * k], x[2 * k + 1], y[2 * k], y[2 * k + 1]
            magnitude = math.sqrt(c * c + d * d)
            difference = magnitude - math.sqrt(a * a + b * b)
            squares += difference * difference
            # As in PyTorch, the gradient of a magnitude of 0 is 0.
            factor = half * difference / (magnitude + (one if magnitude == zero else zero))
            y[2 * k], y[2 * k + 1] = factor * c, factor * d
        for k in (0, 2 * bins - 2):
            y[k] += y[k]
        total += squares
    return total


@compiled
def _add_frames(signal: Array, frames: Array, hann: Array, start: int, hop: int) -> None:
    """The reverse of `_cut`: add the windowed frames to the signal."""
    for f in range(len(frames)):
        part, frame = signal[start + f * hop :], frames[f]
        for t in range(len(hann)):
            part[t] += hann[t] * frame[t]
