"""A singing voice for plain songs of the embedded band: pulses filtered by vowels' formants.

The soundfont's voices are nearly sinusoidal. This one has the features of a human voice: many
harmonics, resonances that stay fixed while the pitch moves, a vowel and sometimes a consonant per
note, breath, vibrato that starts late, and glides from note to note.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import signal

from .plan import Note, Voice

CONTROL = 100  # samples between two points of the pitch and loudness curves
# Formant frequencies (Hz) of a long vocal tract singing a, e, i, o, u; bandwidths of each formant.
FORMANTS = (
    (700, 1150, 2500, 3300, 4200),
    (450, 1800, 2500, 3350, 4300),
    (300, 2150, 2900, 3500, 4400),
    (450, 850, 2450, 3250, 4200),
    (330, 750, 2300, 3200, 4150),
)
BANDWIDTHS = (70, 90, 120, 160, 220)


def sing(
    notes: Sequence[Note], voice: Voice, length: int, sample_rate: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Sing the notes one at a time (a new note ends the last): (length,) mono samples."""
    pitch, loudness, vowels = _curves(notes, voice, length, sample_rate, rng)
    fine, coarse = np.arange(length), np.arange(len(pitch)) * CONTROL
    hertz = 440.0 * 2.0 ** ((np.interp(fine, coarse, pitch) - 69.0) / 12.0)
    phase = np.cumsum(hertz / sample_rate)
    source = _pulses(float(hertz.max()), voice.tilt, sample_rate)[
        (phase * _TABLE).astype(np.int64) & (_TABLE - 1)
    ]
    source += voice.breath * rng.standard_normal(length, dtype=np.float32)
    source *= np.interp(fine, coarse, loudness).astype(np.float32)
    out = np.zeros(length, np.float32)
    for vowel, formants in enumerate(FORMANTS):
        share = vowels[vowel]
        if share.any():
            part = source * np.interp(fine, coarse, share).astype(np.float32)
            response = _formants(tuple(f * voice.tract for f in formants), sample_rate)
            out += signal.oaconvolve(part, response)[:length]
    _consonants(out, notes, sample_rate, rng)
    return out


def _curves(
    notes: Sequence[Note],
    voice: Voice,
    length: int,
    sample_rate: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Pitch (MIDI), loudness and the shares of the five vowels, every CONTROL samples."""
    rate = sample_rate / CONTROL
    points = length // CONTROL + 2
    time = np.arange(points) / rate
    pitch = np.full(points, float(notes[0].pitch))
    loudness, swing = np.zeros(points), np.zeros(points)
    vowels = np.zeros((len(FORMANTS), points))
    vowels[notes[0].vowel] = 1.0
    ends = [note.start for note in notes[1:]] + [np.inf]
    for note, end in zip(notes, ends, strict=True):
        a, b = int(note.start * rate), int(min(note.start + note.duration, end) * rate)
        since = time[a:b] - note.start
        scoop = rng.uniform(-1.5, 0.3)  # semitones; most notes start below and glide up
        pitch[a:] = note.pitch
        pitch[a:b] += scoop * np.exp(-since / 0.04)
        swing[a:b] = np.clip((since - 0.12) / 0.25, 0.0, 1.0)
        swell = 1.0 + 0.25 * np.sin(np.pi * since / max(note.duration, 0.1))
        loudness[a:b] = note.velocity * swell
        vowels[:, a:] = 0.0
        vowels[note.vowel, a:] = 1.0
    drift = np.cumsum(rng.uniform(-1, 1, points))
    drift -= np.linspace(drift[0], drift[-1], points)
    wobble = 2 * np.pi * (voice.rate * time + 0.02 * drift)
    smooth = signal.windows.hann(int(0.05 * rate) | 1)
    smooth /= smooth.sum()
    pitch = np.pad(pitch, len(smooth) // 2, mode="edge")
    pitch = np.convolve(pitch, smooth, mode="valid")
    pitch += voice.depth * swing * np.sin(wobble) + 0.01 * drift / (1 + np.abs(drift).max() / 20)
    loudness = np.convolve(loudness, smooth, mode="same")
    loudness *= 1.0 + 0.12 * swing * np.sin(wobble + 1.0)
    vowels = np.stack([np.convolve(v, smooth, mode="same") for v in vowels])
    return pitch, loudness, vowels


_TABLE = 4096


def _pulses(highest: float, tilt: float, sample_rate: int) -> NDArray[np.float32]:
    """One period of the glottal source, without aliasing up to a pitch of `highest` Hz."""
    harmonics = np.arange(1, max(int(0.5 * sample_rate / highest), 2))
    spectrum = np.zeros(_TABLE // 2 + 1, complex)
    spectrum[harmonics] = harmonics**-tilt * np.exp(1j * 0.3 * np.sqrt(harmonics))
    table = np.fft.irfft(spectrum)
    return (table / table.std()).astype(np.float32)


def _formants(formants: tuple[float, ...], sample_rate: int) -> NDArray[np.float32]:
    """Impulse response of the formants' resonators in series, with unit energy."""
    response = np.zeros(2048)
    response[0] = 1.0
    for frequency, width in zip(formants, BANDWIDTHS, strict=True):
        radius = np.exp(-np.pi * width / sample_rate)
        a1, a2 = -2 * radius * np.cos(2 * np.pi * frequency / sample_rate), radius**2
        response = signal.lfilter([1 + a1 + a2], [1, a1, a2], response)
    response[1:] -= 0.85 * response[:-1]  # lips radiate treble better than bass
    return (response / np.sqrt(np.sum(response**2))).astype(np.float32)


def _consonants(
    out: NDArray[np.float32], notes: Sequence[Note], sample_rate: int, rng: np.random.Generator
) -> None:
    """Add a burst of hiss (s, sh, t, k) just before some notes."""
    level = float(np.sqrt(np.mean(np.square(out)))) or 1.0
    for note in notes:
        if rng.random() < 0.5:
            continue
        size = int(rng.uniform(0.03, 0.12) * sample_rate)
        low = rng.uniform(2500, 6000)
        sos = signal.butter(2, (low, 2.2 * low), "bandpass", fs=sample_rate, output="sos")
        hiss = signal.sosfilt(sos, rng.standard_normal(size) * signal.windows.hann(size))
        start = max(int(note.start * sample_rate) - size // 2, 0)
        stop = min(start + size, len(out))
        scale = level * rng.uniform(0.5, 1.2) / hiss.std()
        out[start:stop] += (scale * hiss[: stop - start]).astype(np.float32)
