"""The embedded band: seeded songs rendered per stem, the pipeline's default data.

`composer` writes a song. Sampled instruments (symusic's synthesizer with the General MIDI
soundfont of pretty_midi), the singers of `singer`, and the drums and basses of `synth` play it;
`production` records and mixes it. A song is a folder in MUSDB18-HQ's layout, 44.1 kHz stereo int16,
whose mixture is exactly the sum of its four stems. It depends only on (seed, split, index, seconds,
soundfonts).
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from dataclasses import astuple, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...audio import write
from ...base import progress as show
from ...base.errors import UserError
from ...base.files import atomic_folder
from ...base.packages import package_folder
from ...base.unchanged import Known, code, file_digest
from ..manifest import MIXTURE, STEMS
from .composer import compose
from .plan import (
    PROGRAMS,
    SINGERS,
    SPLITS,
    SYNTHESISED,
    Draw,
    Layer,
    Note,
    SongPlan,
    generator,
    pick,
    song_group,
    song_name,
)

SAMPLE_RATE = 44_100
# Libraries whose versions can change the samples.
LIBRARIES = ("numpy", "pretty-midi", "scipy", "soundfile", "symusic")
Audio = NDArray[np.float32]


@dataclass(frozen=True)
class Task:
    """A song to render."""

    folder: Path
    split: str
    index: int
    seed: int
    seconds: float
    soundfonts: tuple[str, ...]

    @property
    def about(self) -> list[object]:
        """What decides the content of its files, as JSON."""
        return list(astuple(self)[1:])

    @property
    def files(self) -> list[Path]:
        """What it writes: in the split for pretraining the mixture alone."""
        parts = () if self.split == "pretrain" else STEMS
        return [self.folder / f"{part}.wav" for part in (MIXTURE, *parts)]


@cache
def _embedded() -> str:
    return str(package_folder("pretty_midi") / "TimGM6mb.sf2")


def check_soundfont(path: Path) -> None:
    """Play each instrument once. UserError for a file that is missing, damaged or of another kind.

    The synthesizer trusts the file: a damaged one can crash it. So it plays in another process.
    """
    try:
        path.open("rb").close()
    except OSError as error:
        raise UserError(f"band.soundfonts: {path}: {error.strerror or error}") from error
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            pool.submit(_play_all, str(path)).result()
    except (RuntimeError, BrokenExecutor) as error:  # of the synthesizer
        raise UserError(
            f"band.soundfonts: {path}: not a soundfont that can be played: it is damaged, or in a "
            "format other than SoundFont 2 or 3"
        ) from error


def _play_all(soundfont: str) -> None:
    for role, groups in PROGRAMS.items():
        for program in {program for group in groups.values() for program in group}:
            if role != "voice" and program != SYNTHESISED:
                notes = tuple(Note(0.0, 0.1, pitch, 1.0) for pitch in range(36, 60))
                _synthesise(soundfont, program, role == "kit", notes, 1)


def _synthesise(
    soundfont: str, program: int, drum: bool, notes: tuple[Note, ...], length: int
) -> Audio:
    """Play the notes on a sampled instrument: (length,) mono, at the soundfont's level.

    Uses a new synthesizer for every call, because a synthesizer keeps state. All notes have the
    same velocity; `_apply_dynamics` applies velocities afterwards.
    """
    from symusic import Note as MidiNote
    from symusic import Score, Synthesizer, Track

    score = Score(ttype="second")
    track = Track("", program, drum, ttype="second")
    for note in notes:
        track.notes.append(MidiNote(note.start, note.duration, note.pitch, 100, ttype="second"))
    score.tracks.append(track)
    audio = np.asarray(Synthesizer(soundfont, SAMPLE_RATE, 3).render(score, True))
    return _fit(0.5 * (audio[0] + audio[1]), length)


def _fit(audio: Audio, length: int) -> Audio:
    out = np.zeros(length, np.float32)
    out[: min(length, len(audio))] = audio[:length]
    return out


def _apply_dynamics(audio: Audio, notes: tuple[Note, ...]) -> None:
    """Scale the samples from each onset to the next by the velocity of the notes there."""
    onsets = np.array([int(note.start * SAMPLE_RATE) for note in notes])
    gains = np.array([note.velocity**1.5 for note in notes], np.float32)
    first = np.concatenate(([True], np.diff(onsets) > 600))  # notes of one chord share a gain
    onsets, gains = onsets[first], gains[first]
    ramp = 64  # samples before an onset over which the gain changes, to avoid clicks
    before = gains[0]
    for start, stop, gain in zip(onsets, [*onsets[1:], len(audio)], gains, strict=True):
        if start >= ramp:
            audio[start - ramp : start] *= np.linspace(1, gain / before, ramp, dtype=np.float32)
        audio[start:stop] *= gain
        before = gain


def _play(layer: Layer, out: Audio, draw: Draw, soundfont: str) -> None:
    """Add one layer to the stem `out` (2, samples) at its gain and pan."""
    length, rng = out.shape[1], draw.rng
    if layer.role == "voice":
        from scipy import signal

        from .singer import sing

        voice, rate = SINGERS[layer.program], SAMPLE_RATE // 2
        half = sing(layer.notes, voice, length // 2 + 1, rate, rng)
        audio = _fit(signal.resample_poly(half, 2, 1), length)
    elif layer.program == SYNTHESISED:
        from . import synth

        play = synth.drums if layer.role == "kit" else synth.bass
        audio = play(layer.notes, length, draw, SAMPLE_RATE)
    else:
        sampled = layer.program, layer.role == "kit", layer.notes, length
        audio = _synthesise(soundfont, *sampled)
        if not audio.any():  # the file lacks this instrument
            audio = _synthesise(_embedded(), *sampled)
        _apply_dynamics(audio, layer.notes)
    if not audio.any():  # the soundfont has no sample for these pitches
        return
    snare = layer.role == "kit" and layer.notes[0].pitch in (38, 39)
    if snare and layer.program != SYNTHESISED:
        _rattle(audio, layer.notes, rng)
    if layer.drive:
        audio *= layer.drive / np.abs(audio).max()
        np.tanh(audio, out=audio)
    if layer.bright:
        audio[1:] += np.float32(layer.bright) * np.diff(audio)
    level = 8 * np.sqrt(np.mean(np.square(audio)))
    if layer.role == "kit":  # the RMS of a few strokes is small, of a booming kick large
        level = max(level, np.abs(audio).max())
    audio *= 10 ** (layer.gain / 20) / level
    angle = np.pi / 4 * (1 + layer.pan)
    sides = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    late = int(0.011 * SAMPLE_RATE) + 97 * (layer.program % 5)
    for channel in (0, 1):
        out[channel] += sides[channel] * audio
        if layer.width:  # add a slightly later copy on the other side
            share = np.float32(0.7 * layer.width) * sides[1 - channel]
            out[channel, late:] += share * audio[:-late]


def _rattle(audio: Audio, notes: tuple[Note, ...], rng: np.random.Generator) -> None:
    """Add snare wires, which the soundfont's snares lack: decaying noise at every stroke."""
    from scipy import signal  # slow to import, and not needed if all songs exist

    peak = np.abs(audio).max()
    size = int(0.25 * SAMPLE_RATE)
    decay = np.exp(-np.arange(size) / (rng.uniform(0.04, 0.09) * SAMPLE_RATE))
    sos = signal.butter(1, (rng.uniform(700, 1500), 9000), "bandpass", fs=SAMPLE_RATE, output="sos")
    for note in notes:
        start = int(note.start * SAMPLE_RATE)
        hit = signal.sosfilt(sos, rng.standard_normal(size) * decay)
        hit *= 0.35 * peak * note.velocity**1.5 / np.abs(hit).max()
        audio[start : start + size] += hit[: len(audio) - start].astype(np.float32)


def _power(audio: Audio) -> float:
    """Mean square of the mono signal below about 5 kHz."""
    mono = np.add(*audio)[: audio.shape[1] // 4 * 4]
    mono = (mono[::4] + mono[1::4] + mono[2::4] + mono[3::4]) / 4
    return float(np.mean(np.square(mono)))


def perform(plan: SongPlan, soundfonts: Sequence[str] = ()) -> dict[str, NDArray[np.int16]]:
    """Play a plan: int16 (2, samples) per stem; their sum is within full scale.

    The sampled instruments of a stem come from one soundfont: the embedded one or one of
    `soundfonts`, drawn for each stem.
    """
    from .production import master, produce, room

    length = round(plan.seconds * SAMPLE_RATE)
    held_out = plan.group == "held_out"
    stems: dict[str, Audio] = {}
    for number, stem in enumerate(STEMS):
        rng = generator(plan.seed, plan.split, plan.index, 2 + number)
        audio = np.zeros((2, length), np.float32)
        draw = Draw(rng, held_out)
        soundfont = pick(rng, (_embedded(), *soundfonts))
        for layer in plan.layers[stem]:
            _play(layer, audio, draw, soundfont)
        if plan.rooms[stem]:
            audio = room(audio, plan.rooms[stem], plan.decay, draw, SAMPLE_RATE)
        audio = produce(stem, audio, plan.tempo, draw, SAMPLE_RATE)
        fade = int(0.05 * SAMPLE_RATE)
        audio[:, -fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
        audio *= np.float32(10 ** (plan.gains[stem] / 20) / np.sqrt(_power(audio)))
        stems[stem] = audio
    draw = Draw(generator(plan.seed, plan.split, plan.index, 6), held_out)
    stems = master(stems, draw, SAMPLE_RATE)
    peak = max(np.abs(sum(stems.values())).max(), *(np.abs(a).max() for a in stems.values()))
    scale = np.float32(plan.peak * 32767 / peak)
    return {stem: np.rint(audio * scale).astype(np.int16) for stem, audio in stems.items()}


def render_song(task: Task) -> Task:
    """Write a song as MUSDB18-HQ has it; return the task.

    The folder appears when it is complete, and replaces an older one.
    """
    plan = compose(task.split, task.index, task.seed, task.seconds)
    parts = perform(plan, task.soundfonts)
    mixture = np.sum(list(parts.values()), axis=0, dtype=np.int32)
    parts[MIXTURE] = np.asarray(mixture, np.int16)
    with atomic_folder(task.folder) as unfinished:
        for path in task.files:
            write(unfinished / path.name, parts[path.stem], SAMPLE_RATE, subtype="PCM_16")
    return task


def render_corpus(
    root: Path,
    *,
    counts: dict[str, int],
    seconds: float,
    seed: int,
    soundfonts: Sequence[Path] = (),
    workers: int = 2,
    known: Known | None = None,
) -> list[dict[str, str]]:
    """Render `counts[split]` songs per split to `root`/<split>/<name>; pretrain: mixtures only.

    Returns name, split and group per song, in order of split and index. The files do not depend
    on `workers`. With more than one, or with `soundfonts`, call this under
    `if __name__ == "__main__"`.
    Songs that are `known` from an earlier run and unchanged are kept. UserError for a file of
    `soundfonts` that is missing or of another kind.
    """
    unknown = set(counts) - set(SPLITS)
    if unknown:
        raise UserError(f"split: {min(unknown)!r} is not one of {', '.join(SPLITS)}")
    jobs = [(split, index) for split in SPLITS for index in range(counts.get(split, 0))]
    songs = [
        {"name": song_name(*job, seed), "split": job[0], "group": song_group(*job)} for job in jobs
    ]
    fonts = tuple(map(str, soundfonts))
    tasks = [
        Task(root / song["split"] / song["name"], split, index, seed, seconds, fonts)
        for song, (split, index) in zip(songs, jobs, strict=True)
    ]
    here = Path(__file__).parent
    how = {"code": code(*here.glob("*.py"), here.parents[1] / "audio" / "samples.py")}
    how |= {name: version(name) for name in LIBRARIES}
    for path in soundfonts:
        check_soundfont(path)
        how[str(path)] = file_digest(path)
    if known:
        tasks = [
            task
            for task in tasks
            if known.get(f"band {task.folder}", task.files, [how, *task.about]) is None
        ]

    def rendered(task: Task) -> None:
        if known:
            known.put(f"band {task.folder}", task.files, {}, [how, *task.about])
        bar.update()

    with show.bar(total=len(tasks), desc="band", unit="song", disable=not tasks) as bar:
        if workers <= 1 or len(tasks) <= 1:
            for task in tasks:
                rendered(render_song(task))
        else:
            # spawn, because forking a process with threads (torch's, symusic's) can hang.
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context) as pool:
                for done in as_completed([pool.submit(render_song, task) for task in tasks]):
                    rendered(done.result())
    return songs
