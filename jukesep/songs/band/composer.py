"""The embedded band's composer: writes song plans by rule from a seed, and makes no sound.

A plan says which instrument plays which note when, and how it is mixed; `jukesep.songs.band`
renders it. Plans use only sums, products and random draws of uniform numbers and integers, so
that they are the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from ...base.errors import UserError
from ..manifest import STEMS
from .plan import (
    PROGRAMS,
    SINGERS,
    SUNG_VOWELS,
    SYNTHESISED,
    Layer,
    Note,
    SongPlan,
    generator,
    pick,
    song_group,
    song_name,
)

SLOTS = 8  # in a song; a stem plays or rests for a whole slot
SHORTEST = 2.0  # seconds; in shorter songs a slot is shorter than any note

MAJOR, MINOR = (0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10)
PROGRESSIONS = (
    (0, 4, 5, 3),
    (0, 5, 3, 4),
    (5, 3, 0, 4),
    (0, 3, 4, 3),
    (0, 3, 1, 4),
    (0, 2, 3, 4),
    (5, 4, 3, 4),
    (0, 4, 3, 3),
    (3, 0, 4, 5),
)
KICKS = ((0, 8), (0, 7, 8), (0, 6, 10), (0, 4, 8, 12), (0, 3, 10), (0, 8, 10), (0, 10, 11))
SNARES = ((4, 12), (4, 12), (4, 12, 15), (4, 10, 12), (8,), (4, 7, 12))
BASS_STEPS = (
    ((0, 0), (2, 0), (4, 0), (6, 0), (8, 0), (10, 0), (12, 0), (14, 0)),
    ((0, 0), (6, 0), (8, 4), (14, 2)),
    ((0, 0), (2, 7), (4, 0), (6, 7), (8, 0), (10, 7), (12, 0), (14, 7)),
    ((0, 0), (4, 2), (8, 4), (12, 6)),
    ((0, 0), (3, 0), (6, 0), (10, 4), (12, 0)),
    ((0, 0), (8, 0), (12, 4)),
)  # (sixteenth, scale steps above the chord's root; 7 is the octave)
COMP_STEPS = (
    (0, 2, 4, 6, 8, 10, 12, 14),
    (0, 3, 6, 8, 11, 14),
    (2, 6, 10, 14),
    (0, 4, 7, 10, 12),
    (0, 4, 8, 12),
)
RHYTHMS = (
    (4, 2, 2, 4, 4),
    (2, 2, 2, 2, 4, 4),
    (6, 2, 8),
    (3, 3, 2, 4, 4),
    (2, 4, 2, 4, 4),
    (4, 4, 6, 2),
    (8, 4, 4),
)  # lengths of sung notes in sixteenths, one bar each


def compose(split: str, index: int, seed: int, seconds: float) -> SongPlan:
    """Compose the song `(split, index)` of corpus `seed`, `seconds` long (+-10 %)."""
    if not seconds >= SHORTEST:
        raise UserError(f"seconds: {seconds} is too short for a song; use at least {SHORTEST:g}")
    rng = generator(seed, split, index, 1)
    group = song_group(split, index)
    length = seconds * rng.uniform(0.9, 1.1)
    song = _Writer(rng, group, length)
    layers = {
        "drums": song.drums(),
        "bass": song.bass(),
        "other": song.other(),
        "vocals": song.vocals(),
    }
    return SongPlan(
        name=song_name(split, index, seed),
        split=split,
        group=group,
        index=index,
        seed=seed,
        seconds=length,
        tempo=song.tempo,
        key=song.key,
        scale=song.scale,
        decay=rng.uniform(0.3, 1.2),
        peak=rng.uniform(0.75, 0.97),
        layers=layers,
        gains={stem: rng.uniform(-2.3, 2.3) for stem in STEMS},
        rooms={
            "drums": rng.uniform(0.05, 0.25),
            "bass": 0.0,
            "other": rng.uniform(0.1, 0.3),
            "vocals": rng.uniform(0.02, 0.2),
        },
        bend=song.bend,
    )


class _Writer:
    """State shared by the four stems of a song: tempo, harmony, form, and rests."""

    def __init__(self, rng: np.random.Generator, group: str, seconds: float) -> None:
        self.rng, self.group, self.seconds = rng, group, seconds
        self.tempo = rng.uniform(84, 144)
        self.sixteenth = 15.0 / self.tempo
        self.swing = rng.uniform(0.15, 0.3) if rng.random() < 0.25 else 0.0
        # Half of the tempo's change from the start to the end, as a share; the length stays.
        self.bend = rng.uniform(-0.15, 0.15) if rng.random() < 0.4 else 0.0
        self.key = int(rng.integers(12))
        self.scale = MAJOR if rng.random() < 0.55 else MINOR
        self.verse, self.chorus = pick(rng, PROGRESSIONS), pick(rng, PROGRESSIONS)
        steps = int(np.ceil(seconds / self.sixteenth))
        grid = next(g for g in (16, 8, 4, 1) if steps >= SLOTS * g or g == 1)
        self.edges = [round(k * steps / SLOTS / grid) * grid for k in range(SLOTS)] + [steps]
        self.active = self._form()

    def _form(self) -> dict[str, list[bool]]:
        """The slots in which each stem plays. In every slot at least two stems play."""
        rng = self.rng
        active = {stem: [True] * SLOTS for stem in STEMS}
        active["vocals"][0] = False
        active["vocals"][pick(rng, (3, 4, 7))] = rng.random() < 0.2
        active["drums"][pick(rng, (0, 3, 4))] = False
        active["bass"][pick(rng, (0, 3, 7))] = rng.random() < 0.4
        active["other"][pick(rng, (0, 2, 5))] = rng.random() < 0.4
        for slot in range(SLOTS):
            if sum(active[stem][slot] for stem in STEMS) < 2:
                active["drums"][slot] = active["other"][slot] = True
        return active

    def _slot(self, step: int) -> int:
        return max(k for k in range(SLOTS) if self.edges[k] <= step)

    def _sung(self, step: int) -> bool:
        return self.active["vocals"][self._slot(step)]

    def _loud(self, step: int) -> bool:
        return self._slot(step) in (2, 5, 6)

    def _bars(self, stem: str) -> Iterator[tuple[int, int, int]]:
        """(first step, number of steps, chord degree) for each part of a bar that `stem` plays."""
        start = 0
        while start < self.edges[-1]:
            slot = self._slot(start)
            stop = min((start // 16 + 1) * 16, min(e for e in self.edges if e > start))
            progression = self.chorus if slot in (2, 5, 6) else self.verse
            if self.active[stem][slot]:
                yield start, stop - start, progression[(start // 16) % len(progression)]
            start = stop

    def _time(self, step: float) -> float:
        late = self.swing if int(step) % 4 == 2 else 0.0
        even = (step + 2 * late) * self.sixteenth
        return even * (1 + self.bend * (1 - even / self.seconds))

    def _note(self, step: float, steps: float, pitch: int, velocity: float, vowel: int = 0) -> Note:
        """A note as played: slightly late, slightly uneven, never past the song's end."""
        start = min(self._time(step) + self.rng.uniform(0, 0.008), self.seconds - 0.2)
        duration = max(min(steps * self.sixteenth, self.seconds - 0.01 - start), 0.05)
        uneven = self.rng.uniform(0.85, 1.0)
        return Note(start, duration, pitch, min(velocity * uneven, 1.0), vowel)

    def _degree(self, degree: int, low: int) -> int:
        """MIDI pitch of a scale degree (7 is the octave), with the tonic at or just above `low`."""
        tonic = low + (self.key - low) % 12
        return tonic + 12 * (degree // 7) + self.scale[degree % 7]

    def _chord(self, root: int, low: int) -> list[int]:
        """A triad, sometimes a seventh chord, folded into the octave above `low`."""
        degrees = [root, root + 2, root + 4] + ([root + 6] if self.rng.random() < 0.25 else [])
        return sorted(low + (self._degree(d, 0) - low) % 12 for d in degrees)

    def _program(self, role: str) -> int:
        return pick(self.rng, PROGRAMS[role][self.group])

    def _layer(self, role: str, notes: list[Note], gain: float, **place: float) -> Layer:
        program = int(place.pop("program", -1))
        place = {"pan": 0.0, "width": 0.0, "drive": 0.0, "bright": 0.0} | place
        program = self._program(role) if program < 0 else program
        return Layer(role, program, tuple(sorted(notes)), gain, **place)

    def drums(self) -> tuple[Layer, ...]:
        """Kick, snare, hats, cymbals and toms as layers of one kit, with ghost notes and fills."""
        rng, kit = self.rng, self._program("kit")
        kick, snare = pick(rng, KICKS), pick(rng, SNARES)
        hat_every, clap = pick(rng, (1, 2, 2, 4)), rng.random() < 0.3
        parts: dict[str, list[Note]] = {k: [] for k in ("kick", "snare", "hat", "cymbal", "tom")}
        for start, steps, _ in self._bars("drums"):
            loud, end = self._loud(start), start + steps
            fill = end in self.edges and rng.random() < 0.8
            for step in range(start, end):
                at, filling = step % 16, fill and step >= end - min(8, steps // 2)
                if at in kick or step == start:
                    parts["kick"].append(self._note(step, 2.5, 36, 1.0 if at == 0 else 0.8))
                if filling and rng.random() < 0.75:
                    pitch = (50, 47, 45, 43)[(end - step) // 2 % 4]
                    swell = 1.0 - 0.07 * (end - step)
                    name = "tom" if rng.random() < 0.6 else "snare"
                    parts[name].append(self._note(step, 4, pitch if name == "tom" else 38, swell))
                elif at in snare:
                    parts["snare"].append(self._note(step, 4, 39 if clap else 38, 0.95))
                elif rng.random() < 0.12:
                    parts["snare"].append(self._note(step, 2, 38, 0.4))
                if step % hat_every == 0 and not filling:
                    accent = 0.9 if at % 4 == 0 else 0.55
                    if loud and at % 4 == 0:
                        parts["cymbal"].append(self._note(step, 16, 51, 0.5))
                    else:
                        parts["hat"].append(self._note(step, 2, 46 if at == 14 else 42, accent))
            if start in self.edges:
                parts["cymbal"].append(self._note(start, 32, pick(rng, (49, 57)), 1.0))
        gains = {"kick": -5.0, "snare": 0.0, "hat": -10.0, "cymbal": -8.0, "tom": -6.0}
        side = pick(rng, (-1.0, 1.0))
        pans = {"kick": 0.0, "snare": 0.1 * side, "hat": 0.5 * side, "cymbal": -0.5 * side}
        drive = rng.uniform(1.0, 2.5)
        layers = [
            self._layer(
                "kit",
                notes,
                gains[name] + rng.uniform(-2, 2),
                program=kit,
                pan=pans.get(name, -0.3 * side),
                width=0.6 if name == "cymbal" else 0.0,
                drive=drive if name in ("kick", "snare") else 0.0,
                bright=0.6 if name == "snare" else 0.2,
            )
            for name, notes in parts.items()
            if notes
        ]
        if kit != SYNTHESISED and rng.random() < 0.4:  # a layered kit
            below = rng.uniform(-9, -3)
            layers += [
                replace(layer, program=SYNTHESISED, gain=layer.gain + below, drive=0.0)
                for layer in layers
                if layer.notes[0].pitch in (36, 38, 39)
            ]
        return tuple(layers)

    def bass(self) -> tuple[Layer, ...]:
        """A line on the chords' roots, with another figure in the loud slots."""
        rng = self.rng
        calm, busy = pick(rng, BASS_STEPS), pick(rng, BASS_STEPS)
        length, low = rng.uniform(0.6, 0.98), int(rng.integers(28, 32))
        notes = []
        for start, steps, root in self._bars("bass"):
            figure = [f for f in (busy if self._loud(start) else calm) if f[0] < steps]
            stops = [f[0] for f in figure[1:]] + [steps]
            base = low + (self._degree(root, 0) - low) % 12
            for (step, up), stop in zip(figure, stops, strict=True):
                pitch = base + self._degree(root + up, 0) - self._degree(root, 0)
                velocity = 0.95 if step % 8 == 0 else 0.75
                notes.append(self._note(start + step, (stop - step) * length, pitch, velocity))
        drive = rng.uniform(1.5, 5.0) if rng.random() < 0.7 else 0.0
        line = self._layer("bass", notes, 0.0, drive=drive, bright=rng.uniform(0, 1))
        above = tuple(note._replace(pitch=note.pitch + 12) for note in notes)
        # Add the octave above, like an amplifier's overtones: low notes are nearly sinusoidal.
        return (line, replace(line, notes=above, gain=rng.uniform(-9, -4)))

    def other(self) -> tuple[Layer, ...]:
        """Chords on one or two instruments, a pad, and a lead that answers the voice."""
        rng, side = self.rng, pick(self.rng, (-1.0, 1.0))
        layers = [self._comp(side)]
        low = int(rng.integers(48, 56))
        pad, power = [], []
        heavy = rng.random() < 0.5
        for start, steps, root in self._bars("other"):
            chord = self._chord(root, low)
            pad += [self._note(start, steps * 0.98, p, 0.7) for p in (*chord, chord[0] + 12)]
            if heavy and self._loud(start):
                base = 40 + (self._degree(root, 0) - 40) % 12
                for step in range(0, steps, 2):
                    power += [self._note(start + step, 1.9, base + up, 0.9) for up in (0, 7, 12)]
        if power:
            drive = rng.uniform(1.5, 4)
            layers.append(self._layer("power", power, 0.0, pan=-0.7 * side, width=1.0, drive=drive))
        if not heavy or rng.random() < 0.7:
            bright = rng.uniform(0.0, 0.6)
            layers.append(self._layer("pad", pad, -3.0, pan=-0.3 * side, width=0.8, bright=bright))
        always = rng.random() < 0.2
        lead = self._melody("other", 67, lambda start: always or not self._sung(start))
        if lead and rng.random() < 0.8:
            layers.append(self._layer("lead", lead, -4.0, pan=0.2 * side, bright=0.5))
        return tuple(layers)

    def _comp(self, side: float) -> Layer:
        """Strummed, picked or held chords."""
        rng = self.rng
        calm, busy = pick(rng, COMP_STEPS), pick(rng, COMP_STEPS)
        picked, low = rng.random() < 0.35, int(rng.integers(52, 60))
        notes = []
        for start, steps, root in self._bars("other"):
            chord = self._chord(root, low)
            figure = range(0, 16, 2) if picked else busy if self._loud(start) else calm
            for turn, step in enumerate([s for s in figure if s < steps] or [0]):
                velocity = 0.9 if step % 4 == 0 else 0.65
                pitches = [chord[turn % len(chord)] + 12 * (turn // len(chord) % 2)]
                for k, pitch in enumerate(pitches if picked else [*chord, chord[0] + 12]):
                    notes.append(
                        self._note(start + step + 0.08 * k, 5 if picked else 2.6, pitch, velocity)
                    )
        pan, bright = rng.uniform(0.3, 0.8) * side, rng.uniform(0.2, 1.0)
        return self._layer("comp", notes, 0.0, pan=pan, width=0.5, bright=bright)

    def vocals(self) -> tuple[Layer, ...]:
        """A sung lead, at times doubled, and a second voice in the loud slots."""
        rng = self.rng
        voice = self._program("voice")
        lead = self._melody("vocals", SINGERS[voice].low, lambda start: True)
        pan = rng.uniform(-0.1, 0.1)
        layers = [self._layer("voice", lead, 0.0, program=voice, pan=pan)]
        if rng.random() < 0.3:  # sung twice
            aside, below = pick(rng, (-0.5, 0.5)), rng.uniform(-14, -9)
            layers.append(self._layer("voice", lead, below, program=voice, pan=aside))
        loud = [note for note in lead if self._loud(int(note.start / self.sixteenth))]
        if loud and rng.random() < 0.6:
            third = [note._replace(pitch=self._third(note.pitch)) for note in loud]
            layers.append(self._layer("voice", third, -7.0, program=voice, pan=0.6, bright=0.5))
        return tuple(layers)

    def _third(self, pitch: int) -> int:
        """The pitch two scale steps up."""
        steps = [self._degree(d, 0) for d in range(7 * 11)]
        return steps[min(range(len(steps)), key=lambda k: abs(steps[k] - pitch)) + 2]

    def _melody(self, stem: str, low: int, wanted: Callable[[int], bool]) -> list[Note]:
        """Two-bar phrases of a motif and its variations, each ending on a rest."""
        rng = self.rng
        motifs = {
            loud: [(pick(rng, RHYTHMS), int(rng.integers(0, 5))) for _ in range(2)]
            for loud in (False, True)
        }
        notes: list[Note] = []
        for start, steps, root in self._bars(stem):
            if not wanted(start):
                continue
            loud, bar = self._loud(start), start // 16
            rhythm, place = motifs[loud][bar % 2]
            step, degree = 0, place + (2 if loud else 0)
            for k, length in enumerate(rhythm):
                if step >= steps:
                    break
                last = bar % 2 == 1 and k == len(rhythm) - 1
                if not (last and k):
                    if step % 8 == 0:  # strong beats take a tone of the chord
                        degree = min(
                            (7 * o + root + c for o in (-1, 0, 1) for c in (0, 2, 4)),
                            key=lambda d: abs(d - degree),
                        )
                    sounding = min(length, steps - step) * rng.uniform(0.85, 0.99)
                    velocity = (0.9 if loud else 0.7) + (0.1 if step % 8 == 0 else 0.0)
                    vowel = int(rng.integers(SUNG_VOWELS))
                    pitch = self._degree(degree, low)
                    notes.append(self._note(start + step, sounding, pitch, velocity, vowel))
                step += length
                degree = min(max(degree + int(rng.integers(-2, 3)), 0), 8)
        return notes
