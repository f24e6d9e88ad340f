"""Shared by the embedded band's modules: song plans, instruments, random numbers.

`composer` writes plans; the other modules turn them into sound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...base.errors import UserError

T = TypeVar("T")
SPLITS = ("train", "test", "pretrain")
GROUPS = ("seen", "held_out")
FIRST = ("amber", "copper", "distant", "electric", "golden", "hollow", "little", "paper", "silver")
SECOND = ("harbour", "lantern", "mountain", "river", "shadow", "summer", "thunder", "window")


@dataclass(frozen=True)
class Voice:
    """A singer of the embedded band."""

    tract: float  # factor on all formants: 1 for a long vocal tract, more for a shorter one
    tilt: float  # slope of the source's spectrum, 1 = 6 dB per octave
    breath: float  # noise relative to the tone
    rate: float  # vibrato, Hz
    depth: float  # vibrato, semitones
    low: int  # MIDI pitch; the lowest tonic sung is at or above it


SUNG_VOWELS = 5  # that notes have; `singer` has one more, for diphthongs
SINGERS = (
    Voice(1.00, 0.90, 0.08, 5.2, 0.35, 52),
    Voice(1.06, 0.70, 0.10, 5.6, 0.25, 50),
    Voice(1.16, 0.80, 0.08, 5.9, 0.40, 55),
    Voice(1.22, 1.00, 0.20, 5.0, 0.30, 57),
    Voice(0.93, 0.75, 0.08, 4.7, 0.30, 50),
    Voice(1.28, 0.90, 0.14, 6.3, 0.45, 56),
    Voice(1.10, 1.00, 0.25, 5.4, 0.20, 52),
    Voice(0.97, 0.60, 0.06, 5.0, 0.30, 51),
)

# General MIDI programs per role and group; kits are programs of the percussion bank. Held-out
# programs use other recordings of the soundfont than seen ones, except for the cymbals, which all
# kits share, and the hats of kit 24. SYNTHESISED stands for an instrument without recordings, and
# is there several times, so that as many songs have it.
SYNTHESISED = 128  # `synth` makes the sound
PROGRAMS: dict[str, dict[str, tuple[int, ...]]] = {
    "kit": {"seen": (0, 8, 16, 32, 40, *[SYNTHESISED] * 6), "held_out": (24, 25, SYNTHESISED)},
    "bass": {
        "seen": (*range(32, 37), 39, *[SYNTHESISED] * 5),
        "held_out": (37, 38, SYNTHESISED),
    },
    "comp": {
        "seen": (*range(6), 7, 8, 12, 13, 15, 16, 24, 25, 27, 28, 45, 104, 108, 114),
        "held_out": (6, 17, 26, 46),
    },
    "power": {"seen": (29, 30, 84, 86, 90), "held_out": (18, 81)},
    "pad": {"seen": (19, 44, *range(48, 52), 61, 89, 91, 92, 94, 95), "held_out": (21, 42, 60)},
    "lead": {
        "seen": (9, 10, 11, 13, 22, 27, 28, 56, 64, 65, 73, 75, 80, 82, 85),
        "held_out": (40, 66, 71, 105),
    },
    "voice": {"seen": (0, 1, 2, 3, 6, 7), "held_out": (4, 5)},  # rows of SINGERS
}


class Note(NamedTuple):
    """One note: `start` and `duration` in seconds, MIDI `pitch`, `velocity` in (0, 1]."""

    start: float
    duration: float
    pitch: int
    velocity: float
    vowel: int = 0


@dataclass(frozen=True)
class Layer:
    """One instrument's line in a stem, and its settings in the stem's mix."""

    role: str  # key of PROGRAMS
    program: int  # General MIDI program; for "voice" a row of SINGERS
    notes: tuple[Note, ...]
    gain: float  # dB within the stem
    pan: float  # -1 left, 1 right
    width: float  # 0 a point, 1 fully doubled on the other side
    drive: float  # 0 clean; else the waveshaper's input gain
    bright: float  # treble emphasis


@dataclass(frozen=True)
class SongPlan:
    """A composed song. `layers`, `gains` (dB) and `rooms` (reverb share) have a value per stem."""

    name: str
    split: str
    group: str
    index: int
    seed: int
    seconds: float
    tempo: float
    key: int
    scale: tuple[int, ...]
    decay: float  # reverberation time in seconds
    peak: float  # peak of the mixture, full scale = 1
    layers: dict[str, tuple[Layer, ...]]
    gains: dict[str, float]
    rooms: dict[str, float]
    bend: float  # the beat of time t sounds at t (1 + bend (1 - t / seconds))


def generator(seed: int, split: str, index: int, purpose: int) -> np.random.Generator:
    """Random generator for one song and purpose, independent of all others."""
    if split not in SPLITS:
        raise UserError(f"split: {split!r} is not one of {', '.join(SPLITS)}")
    key = (SPLITS.index(split), index, purpose)
    return np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=key))


INNER = 0.7  # share of a range, in its middle, that `Draw` takes for songs not held out


@dataclass(frozen=True)
class Draw:
    """Random settings for a song."""

    rng: np.random.Generator
    held_out: bool

    def between(self, low: float, high: float) -> float:
        """A number from the range's middle part; for held-out songs from its two outer parts."""
        place = self.rng.random()
        outer = (1 - INNER) / 2
        if self.held_out:
            place = place * 2 * outer + (INNER if place >= 0.5 else 0.0)
        else:
            place = outer + INNER * place
        return low + (high - low) * place

    def chance(self, share: float) -> bool:
        """True in this share of all draws."""
        return bool(self.rng.random() < share)


def spread(curve: NDArray[Any], step: int) -> NDArray[Any]:
    """A curve with points `step` samples apart at every sample from the first to the last point."""
    ramp = (np.arange(step) / step).astype(curve.dtype)
    return (curve[:-1, None] + np.diff(curve)[:, None] * ramp).ravel()


def pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    """One of the items, all with the same probability."""
    return items[int(rng.integers(len(items)))]


def song_name(split: str, index: int, seed: int) -> str:
    """Folder name of a song, unique over splits and indices: `test-003-paper-river`."""
    rng = generator(seed, split, index, 0)
    return f"{split}-{index:03d}-{pick(rng, FIRST)}-{pick(rng, SECOND)}"


def song_group(split: str, index: int) -> str:
    """`held_out` for every second test song (instruments in no other split), else `seen`."""
    return GROUPS[index % 2] if split == "test" else GROUPS[0]
