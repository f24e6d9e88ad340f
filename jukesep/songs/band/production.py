"""How the songs of the embedded band are recorded and mixed: effects, drawn for every song.

Effects on a stem come before its level is set. `master` treats all stems alike, by a gain and a
speed that change over time, so that the mixture stays their sum.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft, signal

from .plan import Draw, pick, spread

Audio = NDArray[np.float32]
TAPS = 2048  # of an equaliser: it has no phase, and half of its taps come before the sound
HOP = 64  # samples between two points of a compressor's gain


def produce(stem: str, audio: Audio, tempo: float, draw: Draw, sample_rate: int) -> Audio:
    """A stem (2, samples) as recorded: equalised, compressed, saturated, widened, with echoes."""
    gentle = 0.2 if stem == "vocals" else 1.0  # voices are kept as they are, more than the rest
    if draw.chance(0.7 * gentle):
        audio = _saturate(audio, draw, gentle)
    if draw.chance(0.85):
        most = 3.0 if stem == "vocals" else 6.0
        audio = _compress(audio, audio, draw, sample_rate, most)
    audio = _equalise(audio, CURVES[stem], draw, gentle, sample_rate)
    if stem == "other" and draw.chance(0.35):
        audio = _chorus(audio, draw, sample_rate)
    if draw.chance({"other": 0.45, "vocals": 0.25}.get(stem, 0.0)):
        audio = _echo(audio, tempo, draw, gentle, sample_rate)
    return _widen(audio, draw, 0.3 if stem in ("bass", "vocals") else 1.0)


LOWEST = np.log2(40 / 1000)  # octaves below 1 kHz; records have little below 40 Hz
LOW_TREBLE = np.log2(3.5)
# Lowest and highest gain in dB at the ends of a stem's spectrum, below 120 Hz and above 3.5 kHz.
CURVES = {
    "drums": ((-5.0, 6.0), (-15.0, -3.0)),
    "bass": ((-5.0, 5.0), (-14.0, 4.0)),
    "other": ((-12.0, 2.0), (-17.0, -5.0)),
    "vocals": ((-14.0, 0.0), (-7.0, 4.0)),
}


def _equalise(
    audio: Audio,
    ends: tuple[tuple[float, float], tuple[float, float]],
    draw: Draw,
    amount: float,
    sample_rate: int,
) -> Audio:
    """Shelves at both ends, two to four broad bands, and up to three narrow resonances."""
    octaves = np.log2(np.maximum(fft.rfftfreq(TAPS, 1 / sample_rate), 10.0) / 1000)
    curve = draw.between(*ends[0]) / (1 + np.exp(4 * (octaves + 3.0)))
    curve += draw.between(*ends[1]) / (1 + np.exp(-3 * (octaves - LOW_TREBLE)))
    curve -= 12 * np.maximum(LOWEST - octaves, 0)
    for _ in range(int(draw.rng.integers(2, 5))):
        curve += _bump(octaves, draw.between(-3.5, 3.3), draw.between(0.3, 1.2), draw, 8.0 * amount)
    for _ in range(int(draw.rng.integers(0, 4))):
        curve += _bump(
            octaves, draw.between(-2.5, 2.5), draw.between(0.04, 0.15), draw, 7.0 * amount
        )
    taps = fft.fftshift(fft.irfft(10 ** (curve / 20))) * signal.windows.hann(TAPS, sym=False)
    out = signal.oaconvolve(audio, taps[np.newaxis].astype(np.float32), axes=1)
    return np.asarray(out, np.float32)[:, TAPS // 2 : TAPS // 2 + audio.shape[1]]


def _bump(
    octaves: NDArray[np.float64], centre: float, width: float, draw: Draw, most: float
) -> NDArray[np.float64]:
    return draw.between(-most, most) * np.exp(-0.5 * np.square((octaves - centre) / width))


def _envelope(audio: Audio, attack: float, release: float, sample_rate: int) -> Audio:
    """Level in dB every HOP samples, of the mean square of both channels."""
    points = audio.shape[1] // HOP
    blocks = audio[:, : points * HOP].reshape(len(audio), points, HOP)
    power = np.einsum("cph,cph->p", blocks, blocks) / (len(audio) * HOP)
    level = 10 * np.log10(power + 1e-9)
    keep = [float(np.exp(-HOP / (seconds * sample_rate))) for seconds in (attack, release)]
    out = np.empty(points)
    now = float(level[0])
    for place, value in enumerate(level.tolist()):
        now = value + keep[value <= now] * (now - value)
        out[place] = now
    return out


def _compress(
    audio: Audio, key: Audio, draw: Draw, sample_rate: int, most: float, slow: float = 1.0
) -> Audio:
    """Reduce what of `key` is louder than a threshold, by a ratio of up to `most`."""
    attack, release = slow * draw.between(0.002, 0.03), slow * draw.between(0.05, 0.3)
    level = _envelope(key, attack, release, sample_rate)
    heard = level[level > level.max() - 40]
    threshold = float(np.mean(heard)) + draw.between(-8.0, 4.0)
    cut = (1 - 1 / draw.between(1.2, most)) * np.maximum(level - threshold, 0)
    points = (10 ** (-cut / 20)).astype(np.float32)
    gain = spread(np.pad(points, (1, 2), mode="edge"), HOP)
    return audio * gain[HOP // 2 :][: audio.shape[1]]


def _saturate(audio: Audio, draw: Draw, amount: float) -> Audio:
    """Tape, tube or transistor, mixed with the clean sound; held-out songs have a fourth kind."""
    loud = np.float32(np.sqrt(np.mean(np.square(audio))) * 4 + 1e-9)
    x = audio / loud * np.float32(draw.between(0.4, 3.0))
    kind = "fold" if draw.held_out else pick(draw.rng, ("tape", "tube", "clip"))
    if kind == "tape":
        wet = np.tanh(x)
    elif kind == "tube":
        wet = np.tanh(x + np.float32(0.35)) - np.float32(np.tanh(0.35))
    elif kind == "clip":
        wet = np.clip(x, -0.8, 0.8)
    else:
        wet = x / np.sqrt(1 + np.square(x)) + np.float32(0.1) * np.sin(3 * x)
    share = np.float32(amount * draw.between(0.2, 1.0))
    power = np.sqrt(np.mean(np.square(x)) / (np.mean(np.square(wet)) + 1e-9))
    return np.asarray(((1 - share) * x + share * np.float32(power) * wet) * loud)


def _chorus(audio: Audio, draw: Draw, sample_rate: int) -> Audio:
    """A copy of each channel whose delay swings, as of a second player."""
    time = np.arange(audio.shape[1])
    rate, depth = draw.between(0.2, 1.6), draw.between(0.0008, 0.004) * sample_rate
    share = np.float32(draw.between(0.3, 0.8))
    out = audio.copy()
    for channel, start in enumerate((0.0, 1.7)):
        swing = depth * (1.2 + np.sin(2 * np.pi * rate / sample_rate * time + start))
        out[channel] += share * _at(audio[channel : channel + 1], time - swing)[0]
    return out


def _at(audio: Audio, places: NDArray[np.float64]) -> Audio:
    """Samples (channels, n) at places between them, silence outside: (channels, places)."""
    padded = np.pad(audio, ((0, 0), (1, 2)))
    inside = np.clip(places + 1, 0, audio.shape[1] + 1)
    whole = inside.astype(np.int32)
    share = (inside - whole).astype(np.float32)
    steps = np.diff(padded, axis=1)
    return np.stack(
        [row[whole] + share * step[whole] for row, step in zip(padded, steps, strict=True)]
    )


def _echo(audio: Audio, tempo: float, draw: Draw, amount: float, sample_rate: int) -> Audio:
    """Repeats, a slap or on the beat, each softer and duller, sometimes from side to side."""
    beat = 60 / tempo
    delay = pick(draw.rng, (draw.between(0.07, 0.14), 0.5 * beat, 0.75 * beat, beat))
    cross, share = draw.chance(0.4), amount * draw.between(0.1, 0.4)
    feedback = draw.between(0.2, 0.6)
    step = int(delay * sample_rate)
    dull = signal.butter(1, draw.between(1500, 6000), fs=sample_rate, output="sos")
    repeat = signal.sosfilt(dull, audio).astype(np.float32)
    out, start = audio.copy(), step
    while share > 0.03 and start < audio.shape[1]:
        if cross:
            repeat = repeat[::-1]
        out[:, start:] += np.float32(share) * repeat[:, :-start]
        share, start = share * feedback, start + step
    return out


def _widen(audio: Audio, draw: Draw, most: float) -> Audio:
    """Change the share of what differs between the channels."""
    middle, side = audio.sum(axis=0) / 2, (audio[0] - audio[1]) / 2
    side *= np.float32(1 + most * draw.between(-0.9, 0.6))
    np.add(middle, side, out=audio[0])
    np.subtract(middle, side, out=audio[1])
    return audio


def room(audio: Audio, share: float, decay: float, draw: Draw, sample_rate: int) -> Audio:
    """Add reverberation that decays by 60 dB in `decay` seconds: a room, a hall, a plate, a gate.

    Computed at half the sample rate: rooms absorb treble, and it is faster.
    """
    rng, rate, length = draw.rng, sample_rate // 2, audio.shape[1]
    kind = pick(rng, ("hall", "gate") if draw.held_out else ("room", "hall", "plate"))
    size = int(decay * rate)
    time = np.arange(size) / size
    fade = np.exp(-6.9 * time)
    if kind == "gate":
        fade = (time < 0.4) * np.exp(-1.5 * time)
    late = int(
        rate * {"room": 0.0, "plate": 0.0, "gate": 0.0, "hall": draw.between(0.01, 0.06)}[kind]
    )
    response = rng.standard_normal((2, size), dtype=np.float32) * fade.astype(np.float32)
    if kind in ("room", "hall"):  # the air takes the treble
        dull = signal.butter(1, draw.between(1200, 6000), fs=rate, output="sos")
        response = signal.sosfilt(dull, response).astype(np.float32)
    if kind == "room":  # its walls answer one by one
        for _ in range(6):
            response[:, int(draw.between(0.002, 0.04) * rate)] += np.float32(rng.uniform(-6, 6))
    response /= np.sqrt(np.sum(np.square(response), axis=1, keepdims=True))
    mono = audio[0] + audio[1]
    send = np.float32(share / 2) * (mono[: length // 2 * 2 : 2] + mono[1::2])
    wet = signal.oaconvolve(send[np.newaxis], response, axes=1)[:, : length // 2]
    wet = np.pad(wet, ((0, 0), (late, 0)))[:, : length // 2]
    audio[:, : 2 * wet.shape[1] : 2] += wet
    audio[:, 1 : 2 * wet.shape[1] - 1 : 2] += 0.5 * (wet[:, :-1] + wet[:, 1:])
    return audio


def master(stems: dict[str, Audio], draw: Draw, sample_rate: int) -> dict[str, Audio]:
    """All stems through one machine: its speed and its compressor. Their sum stays the mixture."""
    mixture = np.sum(list(stems.values()), axis=0)
    if draw.chance(0.7):
        gain = _compress(np.ones_like(mixture[:1]), mixture, draw, sample_rate, 2.5, slow=2.0)
        stems = {name: gain * part for name, part in stems.items()}
    if draw.chance(0.4):
        return stems
    time = np.arange(mixture.shape[1], dtype=np.float64)
    moved = time * 2 ** (draw.between(-60, 60) / 1200)
    if draw.chance(0.3):  # wow
        rate, cents = draw.between(0.3, 1.5), draw.between(1.0, 6.0)
        swing = cents / 1200 * np.log(2) * sample_rate / (2 * np.pi * rate)
        moved += swing * np.sin(2 * np.pi * rate / sample_rate * time)
    return {name: _at(part, moved) for name, part in stems.items()}
