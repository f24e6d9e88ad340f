"""The static equaliser: one gain per frequency for each stem, the same at every moment of a song.

It knows how a stem's energy lies in frequency, as an average over the training songs, and nothing
else. A system that does not score more gains nothing over knowing which frequencies a stem has.

This module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft, rfft

from .. import audio
from ..audio import Audio
from ..base.errors import UserError
from ..base.parallel import at_once
from ..base.progress import bar
from ..songs.manifest import MIXTURE, Song
from .system import System

NAME = "static_equaliser"
SECONDS = 1024 / 11025  # 93 ms, of a window of the Fourier transform
OVERLAP = 4  # windows over each sample
MEMORY = 80  # bytes per sample and channel of a song that is read; measured

Spectrum = NDArray[np.complex64]


@dataclass(frozen=True)
class Equaliser:
    """The gains of each stem, (window // 2 + 1,) from 0 Hz to half the sample rate (Hz)."""

    sample_rate: int
    gains: Mapping[str, NDArray[np.float32]]

    def separate(self, mixture: Audio, sample_rate: int) -> dict[str, Audio]:
        """Return {stem: (channels, samples)} of a mixture (channels, samples), float32.

        Each channel is filtered on its own, so that the mean of the channels is the same as the
        filtered mean. UserError if the gains were fitted at another sample rate.
        """
        if sample_rate != self.sample_rate:
            raise UserError(
                f"{NAME}: fitted at {self.sample_rate} Hz, the song has {sample_rate} Hz. "
                "Resample the song first, or fit it to songs of this rate."
            )
        stems = {stem: np.empty(mixture.shape, np.float32) for stem in self.gains}
        for channel, row in enumerate(mixture):
            spectrum = _spectrum(row, sample_rate)
            for stem, gains in self.gains.items():
                stems[stem][channel] = _samples(spectrum * gains, len(row))
        return stems


def window(sample_rate: int) -> int:
    """Samples in a window: the power of two nearest to 93 ms. 1024 at 11,025 Hz, 4096 at 44,100."""
    return 2 ** round(math.log2(SECONDS * sample_rate))


def fit(songs: Sequence[Song], stems: Iterable[str], sample_rate: int) -> Equaliser:
    """Fit the gains to training songs, which are read once and not kept in memory.

    With S the spectrogram of a stem and X that of the mixture, the gain at a frequency is
    ``E[Re S X*] / E[|X|^2]`` between 0 and 1: of all real gains, the one with the least squared
    error. The expectation is over all frames and channels of all songs. Where no song has sound,
    the gain is 0. `sample_rate` is that of the songs, in Hz.
    """
    stems = tuple(stems)

    def moments(song: Song) -> NDArray[np.float64]:
        return _moments(song, stems, sample_rate)

    longest = max(songs, key=lambda song: song.samples)
    each = MEMORY * longest.samples * audio.info(longest.file(MIXTURE)).channels
    with ThreadPoolExecutor(at_once(len(songs), each)) as pool:
        found = pool.map(moments, songs)
        # In the order of the songs, so that the sums are the same on every machine.
        power, *products = sum(bar(found, total=len(songs), desc="equaliser", unit="song"))
    some = power > 0
    gains = {}
    for stem, product in zip(stems, products, strict=True):
        gain = np.divide(product, power, out=np.zeros_like(power), where=some)
        gains[stem] = np.clip(gain, 0, 1).astype(np.float32)
    return Equaliser(sample_rate, gains)


def system(equaliser: Equaliser, trained_on: str) -> System:
    """The equaliser as a system, fitted to the songs that `trained_on` names."""
    return System(
        NAME,
        equaliser.separate,
        trained_on=trained_on,
        licence="none needed: four averages",
        sample_rate=equaliser.sample_rate,
        long_songs="whole",
    )


def _moments(song: Song, stems: Sequence[str], sample_rate: int) -> NDArray[np.float64]:
    """The sums of |X|^2, and of Re S X* for each stem, over a song: (1 + stems, frequencies)."""
    sums = np.zeros((1 + len(stems), window(sample_rate) // 2 + 1))
    mixture = [_spectrum(row, sample_rate) for row in audio.read(song.file(MIXTURE))]
    for mixed in mixture:
        sums[0] += _product(mixed, mixed)
    for place, stem in enumerate(stems, start=1):
        for row, mixed in zip(audio.read(song.file(stem)), mixture, strict=True):
            sums[place] += _product(_spectrum(row, sample_rate), mixed)
    return sums


def _product(first: Spectrum, second: Spectrum) -> NDArray[np.float64]:
    """The sum over frames of Re S X*, (frequencies,)."""
    products = first.real * second.real + first.imag * second.imag
    return np.sum(products, axis=0, dtype=np.float64)


def _spectrum(row: NDArray[np.floating], sample_rate: int) -> Spectrum:
    """The Fourier transform of one channel (samples,) in windows: (frames, frequencies)."""
    length = window(sample_rate)
    hop = length // OVERLAP
    padded = np.pad(np.asarray(row, np.float32), (length - hop, length + -len(row) % hop))
    frames = np.lib.stride_tricks.sliding_window_view(padded, length)[::hop]
    spectrum: Spectrum = rfft(frames * _hann(length))
    return spectrum


def _samples(spectrum: Spectrum, samples: int) -> NDArray[np.float32]:
    """The inverse of `_spectrum`, without the padding: (samples,)."""
    length = 2 * (spectrum.shape[1] - 1)
    hop = length // OVERLAP
    # The squares of the overlapping windows have the sum 3/8 * OVERLAP everywhere.
    frames = irfft(spectrum) * (_hann(length) / np.float32(3 / 8 * OVERLAP))
    added = np.zeros((len(frames) + OVERLAP - 1, hop), np.float32)
    for part in range(OVERLAP):
        added[part : part + len(frames)] += frames[:, part * hop : (part + 1) * hop]
    return added.reshape(-1)[length - hop :][:samples]


def _hann(length: int) -> NDArray[np.float32]:
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)).astype(np.float32)
