"""Drums and basses without samples, their parameters drawn anew for every song."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import signal

from .plan import Draw, Note, pick

Audio = NDArray[np.float32]
KICK, SNARE, CLAP, CLOSED, OPEN, RIDE = 36, 38, 39, 42, 46, 51
CRASHES, TOMS = (49, 57), (43, 45, 47, 50)
BASS_RATE = 4  # a bass is computed at this fraction of the sample rate


def drums(notes: Sequence[Note], length: int, draw: Draw, sample_rate: int) -> Audio:
    """Play drum notes: (length,) mono. Each drum of the song is drawn once."""
    out = np.zeros(length, np.float32)
    drawn: dict[int, Audio] = {}
    for note in notes:
        if note.pitch not in drawn:
            drawn[note.pitch] = _drum(note.pitch, draw, sample_rate)
        hit = drawn[note.pitch]
        start = int(note.start * sample_rate)
        uneven = note.velocity**1.5 * draw.rng.uniform(0.9, 1.1)
        out[start : start + len(hit)] += np.float32(uneven) * hit[: max(length - start, 0)]
    return out


def _drum(pitch: int, draw: Draw, sample_rate: int) -> Audio:
    if pitch == KICK:
        return _membrane(draw.between(40, 75), draw, sample_rate, 0.02, draw.between(0.1, 0.45))
    if pitch in TOMS:
        base = draw.between(75, 120) * (1 + 0.25 * TOMS.index(pitch))
        return _membrane(base, draw, sample_rate, draw.between(0.02, 0.2), draw.between(0.15, 0.5))
    if pitch == SNARE:
        skin = _membrane(draw.between(140, 280), draw, sample_rate, 0.1, draw.between(0.05, 0.2))
        wires = _noise(draw, sample_rate, (900, 2500), draw.between(0.05, 0.28))
        return _sum(np.float32(draw.between(0.2, 1.0)) * skin, wires)
    if pitch == CLAP:
        burst = _noise(draw, sample_rate, (700, 1600), draw.between(0.06, 0.2))
        early = [int(k * draw.between(0.007, 0.014) * sample_rate) for k in range(1, 4)]
        return _sum(burst, *(np.pad(0.7 * burst[: 4 * early[0]], (at, 0)) for at in early))
    decay = {CLOSED: (0.02, 0.09), OPEN: (0.15, 0.45), RIDE: (0.4, 1.2)}.get(pitch, (0.6, 1.6))
    return _metal(draw, sample_rate, draw.between(*decay))


def _membrane(base: float, draw: Draw, sample_rate: int, air: float, decay: float) -> Audio:
    """Modes of a struck skin that falls in pitch, and the click of the beater."""
    size = int(5 * decay * sample_rate)
    time = np.arange(size, dtype=np.float32) / np.float32(sample_rate)
    bend = np.float32(draw.between(0.3, 4.0)) * _fade(time, draw.between(0.005, 0.05))
    phase = np.cumsum(2 * np.pi * base / sample_rate * (1 + bend), dtype=np.float64)
    out = np.zeros(size, np.float32)
    for mode, ratio in enumerate((1.0, 1.59, 2.14, 2.3, 2.65, 2.92)):
        shift = 1 + 0.08 * (draw.between(-1, 1) if mode else 0)
        share = np.float32(draw.between(0.2, 1.0) / (1 + 2.5 * mode))
        tone = np.sin((ratio * shift * phase).astype(np.float32))
        out += share * _fade(time, decay / (1 + 1.3 * mode)) * tone
    click = draw.rng.standard_normal(size, dtype=np.float32)
    click *= _fade(time, draw.between(0.001, 0.006))
    out += np.float32(draw.between(0.05, 0.5)) * click
    breath = draw.rng.standard_normal(size, dtype=np.float32)
    out += np.float32(air) * breath * _fade(time, 0.5 * decay)
    return _level(out)


def _fade(time: Audio, decay: float) -> Audio:
    """Fall by a factor of e every `decay` seconds."""
    return np.exp(time * np.float32(-1 / decay))


def _noise(draw: Draw, sample_rate: int, low: tuple[float, float], decay: float) -> Audio:
    size = int(6 * decay * sample_rate)
    band = (draw.between(*low), draw.between(7000, 15000))
    sos = signal.butter(1, band, "bandpass", fs=sample_rate, output="sos")
    noise = signal.sosfilt(sos, draw.rng.standard_normal(size, dtype=np.float32))
    time = np.arange(size, dtype=np.float32) / np.float32(sample_rate)
    return _level(noise * _fade(time, decay))


def _metal(draw: Draw, sample_rate: int, decay: float) -> Audio:
    """Partials without harmony, as of a plate, and noise."""
    size = int(4 * decay * sample_rate)
    time = np.arange(size, dtype=np.float32) / np.float32(sample_rate)
    base, high = draw.between(280, 620), np.zeros(size, np.int32)
    for ratio in np.cumsum(draw.rng.uniform(0.4, 1.9, 8)) + 4:
        half_periods = 2 * base * ratio * time + draw.rng.uniform(0, 2)
        high += half_periods.astype(np.int32) & 1  # a square wave: 0 or 1
    noise = draw.rng.standard_normal(size, dtype=np.float32)
    out = np.float32(2 / 3) * (4 - high) + np.float32(draw.between(0.5, 2.0)) * noise
    sos = signal.butter(2, draw.between(4000, 8500), "highpass", fs=sample_rate, output="sos")
    fade = _fade(time, decay) + np.float32(draw.between(0, 1)) * _fade(time, 0.01)
    return _level(signal.sosfilt(sos, out) * fade)


def _level(audio: NDArray[Any]) -> Audio:
    audio = audio.astype(np.float32, copy=False)
    return audio / (np.abs(audio).max() + np.float32(1e-9))


def _sum(*parts: Audio) -> Audio:
    out = np.zeros(max(map(len, parts)), np.float32)
    for part in parts:
        out[: len(part)] += part
    return out


def bass(notes: Sequence[Note], length: int, draw: Draw, sample_rate: int) -> Audio:
    """Play a bass line: (length,) mono. A filtered oscillator, or frequency modulation."""
    rate = sample_rate / BASS_RATE
    out = np.zeros(length // BASS_RATE + 1, np.float32)
    fm = draw.chance(0.4)
    ratio, index = pick(draw.rng, (0.5, 1.0, 2.0, 3.0)), draw.between(0.6, 5.0)
    cutoff, sweep = draw.between(150, 1200), draw.between(0.0, 4.0)
    fall, attack, slope = draw.between(0.05, 0.5), draw.between(0.002, 0.02), draw.between(2, 6)
    even, sub, hold = draw.between(0.0, 1.0), draw.between(0.0, 0.6), draw.between(0.3, 3.0)
    for note in notes:
        start = int(note.start * rate)
        size = min(int((note.duration + 0.04) * rate), len(out) - start)
        if size <= 1:
            continue
        time = np.arange(size) / rate
        hertz = 440 * 2 ** ((note.pitch - 69) / 12)
        phase = 2 * np.pi * hertz * time
        if fm:
            bend = index * note.velocity * np.exp(-time / fall) + 0.3
            tone = np.sin(phase + bend * np.sin(ratio * phase))
        else:
            tone = np.zeros(size)
            opened = cutoff * (1 + sweep * note.velocity * np.exp(-time / fall))
            closed = (hertz / opened) ** slope
            # sin(n x) = 2 cos(x) sin((n - 1) x) - sin((n - 2) x)
            twice, before, wave = 2 * np.cos(phase), np.zeros(size), np.sin(phase)
            for harmonic in range(1, min(int(0.45 * rate / hertz), 40)):
                weight = (even if harmonic % 2 == 0 else 1.0) / harmonic
                tone += weight * wave / (1 + harmonic**slope * closed)
                before, wave = wave, twice * wave - before
        tone += sub * np.sin(phase / 2)
        shape = np.minimum(1, time / attack) * np.exp(-time / hold)
        shape *= np.clip((note.duration + 0.03 - time) / 0.03, 0, 1)
        out[start : start + size] += (note.velocity * shape * tone).astype(np.float32)
    return signal.resample_poly(out, BASS_RATE, 1)[:length].astype(np.float32)
