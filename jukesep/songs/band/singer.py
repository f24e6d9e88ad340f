"""A singing voice for the embedded band: pulses through a tract that moves.

The soundfont's voices are nearly sinusoidal. This one has the features of a human voice: many
harmonics, resonances that stay fixed while the pitch moves and glide from sound to sound,
syllables of consonants and vowels, breath, a pitch that is never still, vibrato that starts late,
and a source that gets brighter as it gets louder.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft, signal

from .plan import Note, Voice, pick, spread

Curve = NDArray[np.float64]
CONTROL = 64  # samples between two points of the curves
WINDOW = 512  # samples of the frames that the tract filters
# Formant frequencies (Hz) of a long vocal tract singing a, e, i, o, u, and a neutral vowel.
VOWELS = np.array(
    [
        (730, 1150, 2500, 3350, 4300),
        (480, 1800, 2550, 3400, 4350),
        (310, 2200, 2950, 3550, 4450),
        (470, 880, 2450, 3300, 4250),
        (340, 800, 2300, 3250, 4200),
        (560, 1400, 2450, 3350, 4300),
    ],
    float,
)
NASAL = np.array((270, 1100, 2200, 3200, 4200), float)
LIQUIDS = np.array(
    [(360, 1200, 2600, 3300, 4200), (330, 1100, 1650, 3000, 4100), (300, 650, 2200, 3200, 4200),
     (290, 2150, 2900, 3500, 4400)],
    float,
)  # l, r, w, y  # fmt: skip
LOCI = np.array((900.0, 1800.0, 2300.0))  # of the second formant beside lips, teeth, palate
BANDWIDTHS = (80.0, 90.0, 130.0, 180.0, 240.0)
HIGHER = np.arange(5300.0, 30_000.0, 1050.0)  # formants that no sound moves


class Syllable(NamedTuple):
    """How a note begins: `kind` of consonant, its length in seconds, a draw for its colour."""

    kind: str
    seconds: float
    colour: float


KINDS = ("none", "hiss", "stop", "voiced", "nasal", "liquid")
SHARES = (0.08, 0.28, 0.24, 0.14, 0.12, 0.14)


def sing(
    notes: Sequence[Note], voice: Voice, length: int, sample_rate: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Sing the notes one at a time (a new note ends the last): (length,) mono samples."""
    syllables = [_syllable(rng) for _ in notes]
    curves = _curves(notes, syllables, voice, length, sample_rate, rng)

    def at(name: str) -> NDArray[np.float32]:
        return spread(curves[name].astype(np.float32), CONTROL)[:length]

    hertz = spread(440.0 * 2.0 ** ((curves["pitch"] - 69.0) / 12.0), CONTROL)[:length]
    phase = (np.cumsum(hertz / sample_rate) * _TABLE).astype(np.int64) & (_TABLE - 1)
    effort = np.clip(at("effort"), 0.0, 1.0)
    soft, loud = (
        _pulses(float(hertz.max()), voice.tilt + more, sample_rate)[phase] for more in (1.2, 0.7)
    )
    source = (1 - effort) * soft + effort * loud
    # Air rushes while the glottis is open: the breath pulses with the tone.
    open_phase = 0.6 + 0.4 * np.cos(2 * np.pi * phase.astype(np.float32) / _TABLE)
    air = rng.standard_normal(length, dtype=np.float32)
    source = source * at("loudness") + (0.06 + voice.breath) * 0.9 * air * at("breath") * open_phase
    out = _tract(source, curves["formants"], voice.tract, sample_rate)
    out *= 1 / (np.sqrt(np.mean(np.square(out))) + 1e-9)
    _hiss(out, notes, syllables, sample_rate, rng)
    return out


def _syllable(rng: np.random.Generator) -> Syllable:
    kind = KINDS[int(np.searchsorted(np.cumsum(SHARES), rng.random()))]
    return Syllable(kind, rng.uniform(0.05, 0.13), rng.random())


def _curves(
    notes: Sequence[Note],
    syllables: Sequence[Syllable],
    voice: Voice,
    length: int,
    sample_rate: int,
    rng: np.random.Generator,
) -> dict[str, Curve]:
    """Every CONTROL samples: pitch (MIDI), loudness, breath, effort; five formants (5, points)."""
    rate = sample_rate / CONTROL
    points = length // CONTROL + 2
    time = np.arange(points) / rate
    pitch = np.full(points, float(notes[0].pitch))
    loudness, breath, swing, effort = (np.zeros(points) for _ in range(4))
    formants = np.repeat(VOWELS[notes[0].vowel][:, None], points, axis=1)
    ends = [note.start for note in notes[1:]] + [np.inf]
    vibrato = rng.random() < 0.8
    for note, syllable, end in zip(notes, syllables, ends, strict=True):
        start = max(note.start, 0.0)
        stop = min(note.start + note.duration, end)
        a, b = int(start * rate), max(int(stop * rate), int(start * rate) + 2)
        b = min(b, points)
        since = time[a:b] - start
        span = max(stop - start, 0.05)
        scoop = rng.uniform(-2.0, 0.4)  # semitones; most notes start below and glide up
        pitch[a:] = note.pitch
        pitch[a:b] += scoop * np.exp(-since / rng.uniform(0.02, 0.07))
        if rng.random() < 0.3:  # falls off at the end
            pitch[a:b] -= rng.uniform(0.5, 2.5) * np.clip((since - span + 0.12) / 0.12, 0, 1) ** 2
        swing[a:b] = vibrato * np.clip((since - 0.2) / 0.3, 0.0, 1.0)
        swell = 1.0 + 0.3 * np.sin(np.pi * since / span) - 0.35 * since / span
        loudness[a:b] = note.velocity * swell
        effort[a:b] = np.clip(1.6 * note.velocity - 0.75 + 0.2 * np.sin(np.pi * since / span), 0, 1)
        breath[a:b] = note.velocity
        vowel = VOWELS[note.vowel]
        formants[:, a:] = vowel[:, None]
        if rng.random() < 0.3:  # a diphthong
            other = VOWELS[int(rng.integers(len(VOWELS)))]
            share = np.clip((since / span - 0.5) / 0.4, 0, 1) * rng.uniform(0.4, 1.0)
            formants[:, a:b] += share * (other - vowel)[:, None]
        _begin(syllable, a, rate, loudness, breath, formants)
    drift = np.cumsum(rng.uniform(-1, 1, points))
    drift -= np.linspace(drift[0], drift[-1], points)
    wobble = 2 * np.pi * (voice.rate * time + 0.02 * drift)
    pitch = _smooth(pitch, 0.06 * rate)
    unrest = _smooth(rng.standard_normal(points), 0.03 * rate) * np.sqrt(0.03 * rate)
    slow = _smooth(rng.standard_normal(points), 0.25 * rate) * np.sqrt(0.25 * rate)
    pitch += voice.depth * swing * np.sin(wobble) + 0.18 * unrest + 0.25 * slow
    loudness = _smooth(loudness, 0.035 * rate)
    loudness *= 1.0 + 0.12 * swing * np.sin(wobble + 1.0) + 0.06 * unrest
    return {
        "pitch": pitch,
        "loudness": np.maximum(loudness, 0),
        "breath": _smooth(breath, 0.05 * rate),
        "effort": _smooth(effort, 0.05 * rate),
        "formants": np.stack([_smooth(f, 0.05 * rate) for f in formants]),
    }


def _begin(
    syllable: Syllable, a: int, rate: float, loudness: Curve, breath: Curve, formants: Curve
) -> None:
    """Shape the curves around a note's onset, at point `a`, as its consonant demands."""
    size = max(int(syllable.seconds * rate), 2)
    before = slice(max(a - size, 0), a + 1)
    locus = LOCI[int(syllable.colour * len(LOCI))]
    if syllable.kind in ("hiss", "stop"):
        loudness[before] = 0
        breath[before] = 0
        breath[a : a + size // 2] *= 2.5
    elif syllable.kind == "voiced":
        loudness[before] *= 0.15
    elif syllable.kind == "nasal":
        loudness[before] = 0.45 * loudness[min(a + 1, len(loudness) - 1)]
        formants[:, before] = NASAL[:, None]
    elif syllable.kind == "liquid":
        loudness[before] = 0.6 * loudness[min(a + 1, len(loudness) - 1)]
        formants[:, before] = LIQUIDS[int(syllable.colour * len(LIQUIDS))][:, None]
    if syllable.kind in ("stop", "voiced", "hiss"):
        formants[1, before] = locus
        formants[0, before] = 320


def _smooth(curve: Curve, points: float) -> Curve:
    window = signal.windows.hann((int(points) | 1) + 2)[1:-1]
    window /= window.sum()
    wide = np.pad(curve, len(window) // 2, mode="edge")
    return np.asarray(np.convolve(wide, window, mode="valid"))[: len(curve)]


_TABLE = 4096


def _pulses(highest: float, tilt: float, sample_rate: int) -> NDArray[np.float32]:
    """One period of the glottal source, without aliasing up to a pitch of `highest` Hz."""
    harmonics = np.arange(1, max(int(0.5 * sample_rate / highest), 2))
    spectrum = np.zeros(_TABLE // 2 + 1, complex)
    spectrum[harmonics] = harmonics**-tilt * np.exp(1j * 0.3 * np.sqrt(harmonics))
    table = np.fft.irfft(spectrum)
    return (table / table.std()).astype(np.float32)


def _tract(
    source: NDArray[np.float32], formants: NDArray[np.float64], size: float, sample_rate: int
) -> NDArray[np.float32]:
    """Filter the source by resonances that move, frame by frame."""
    half = WINDOW // 2
    padded = np.pad(source, (half, WINDOW))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::half]
    window = signal.windows.hann(WINDOW, sym=False).astype(np.float32)
    spectra = fft.rfft(frames * window, 2 * WINDOW)
    places = np.arange(len(frames)) * half / CONTROL
    moving = size * np.stack([np.interp(places, np.arange(len(f)), f) for f in formants])
    hertz = fft.rfftfreq(2 * WINDOW, 1 / sample_rate).astype(np.float32)
    steady = np.square(hertz / 1000)  # lips radiate treble better than bass
    for frequency in size * HIGHER:
        steady /= _resistance(hertz, frequency, 300 + 0.06 * (frequency - 5000))
    power = np.tile(steady, (len(frames), 1))
    for frequencies, width in zip(moving.astype(np.float32), BANDWIDTHS, strict=True):
        power /= _resistance(hertz, frequencies[:, None], width)
    weight = np.maximum(hertz, 20.0) ** -2.4
    level = power @ (weight / weight.sum())
    gain = np.sqrt(power / (level[:, None] ** 0.7 + 1e-9))  # a singer evens out the vowels
    # Without phase, the response of a frame reaches to both sides of it: later by half a window.
    later = np.exp(-0.5j * np.pi * np.arange(gain.shape[1])).astype(np.complex64)
    filtered = fft.irfft(spectra * gain * later)
    out = np.zeros(len(frames) * half + 2 * WINDOW, np.float32)
    for start in range(4):
        part = filtered[:, start * half : (start + 1) * half]
        out[start * half : start * half + part.size] += part.ravel()
    return out[WINDOW : WINDOW + len(source)]


def _resistance(hertz: Any, frequency: Any, width: float) -> Any:
    """One over the power that a resonator passes, 1 at 0 Hz."""
    ratio = np.square(hertz / frequency)
    return np.square(ratio - 1) + np.square(width / frequency) * ratio


@cache
def _band(low: float, high: float, sample_rate: int) -> NDArray[np.float64]:
    return np.asarray(signal.butter(2, (low, high), "bandpass", fs=sample_rate, output="sos"))


def _hiss(
    out: NDArray[np.float32],
    notes: Sequence[Note],
    syllables: Sequence[Syllable],
    sample_rate: int,
    rng: np.random.Generator,
) -> None:
    """Add the noise of consonants before the notes: s, sh, f; t, k, p."""
    for note, syllable in zip(notes, syllables, strict=True):
        if syllable.kind not in ("hiss", "stop"):
            continue
        if syllable.kind == "hiss":
            low, high = pick(rng, ((4500, 11000), (4000, 9000), (2200, 6500), (1500, 9000)))
            size = int(syllable.seconds * sample_rate)
            shape = signal.windows.tukey(size, 0.6)
            level = rng.uniform(0.25, 0.7)
        else:
            low, high = pick(rng, ((3000, 9000), (1200, 4000), (400, 3000)))
            size = int(rng.uniform(0.02, 0.05) * sample_rate)
            shape = np.exp(-np.arange(size) / (0.25 * size))
            level = rng.uniform(0.3, 0.9)
        noise = shape * signal.sosfilt(
            _band(low, high, sample_rate), rng.standard_normal(size, dtype=np.float32)
        )
        start = max(int(note.start * sample_rate) - size, 0)
        stop = min(start + size, len(out))
        scale = level * note.velocity / (np.abs(noise).max() + 1e-9) * 2.0
        out[start:stop] += (scale * noise[: stop - start]).astype(np.float32)
