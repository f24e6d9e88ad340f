"""The spectral distance of `losses` on a CPU, and its gradient by hand, in blocks of frames.

PyTorch's complex magnitudes and their gradient cost several times the Fourier transforms, and a
spectrogram outgrows the cache. Here a block of frames is cut, transformed, compared and transformed
back before the next: nothing of the spectrograms is kept but a sum and the gradient. Sums are taken
in one order, whatever the threads around them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .compiled import compiled

Array = NDArray[Any]

BLOCK = 2**16  # numbers in the frames of a signal that are worked on at a time


def distance(
    target: Tensor,
    other: Tensor,
    stfts: Sequence[tuple[int, int, int]],
    gradient: Array | None = None,
) -> float:
    """The mean over `stfts` of ||S(target) - S(other)||_F; writes its gradient for `other`.

    Two signals (T,) and the array for the gradient (T,), if it is wanted, all float32 or all
    float64, on a CPU. `losses.stft_magnitude` says what `stfts` and S are.
    """
    samples, margin = len(other), max(n_fft for n_fft, _, _ in stfts) // 2
    both = torch.stack([target, other])
    signals = F.pad(both, (margin, margin), mode="reflect").numpy()
    mean, slopes = 0.0, np.zeros_like(signals[0])
    for n_fft, hop, window in stfts:
        # What a frame has beyond the window is zero. Where in the frame the window lies moves the
        # phases alone: here it is at the start.
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
        if norm != 0:  # where nothing differs, PyTorch too takes the gradient to be zero
            slopes += slope * slope.dtype.type(1 / (norm * len(stfts)))
    if gradient is not None:  # what the reflections read came from inside
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
    """The sum of squares of the differences of the magnitudes, the second half's less the first's.

    `spectra` is (2 n, bins, 2), real and imaginary parts. Its second half becomes what `irfft`
    turns into half the sum's gradient: that counts all bins but the first and the last twice.
    """
    n, bins, number = len(spectra) // 2, spectra.shape[1], spectra.dtype.type
    half, one, zero = number(0.5), number(1), number(0)
    total = 0.0
    for f in range(n):
        # Of this length, the compiler sees that no index is negative, and works on many at once.
        x, y = spectra[f].reshape(2 * bins), spectra[n + f].reshape(2 * bins)
        squares = zero
        for k in range(bins):
            a, b, c, d = x[2 * k], x[2 * k + 1], y[2 * k], y[2 * k + 1]
            magnitude = math.sqrt(c * c + d * d)
            difference = magnitude - math.sqrt(a * a + b * b)
            squares += difference * difference
            # As PyTorch has it, a magnitude of zero has a gradient of zero.
            factor = half * difference / (magnitude + (one if magnitude == zero else zero))
            y[2 * k], y[2 * k + 1] = factor * c, factor * d
        for k in (0, 2 * bins - 2):
            y[k] += y[k]
        total += squares
    return total


@compiled
def _add_frames(signal: Array, frames: Array, hann: Array, start: int, hop: int) -> None:
    """What `_cut` does, backwards: adds the windowed frames to the signal."""
    for f in range(len(frames)):
        part, frame = signal[start + f * hop :], frames[f]
        for t in range(len(hann)):
            part[t] += hann[t] * frame[t]
