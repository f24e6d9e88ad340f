"""The embedded band: what its songs promise to whoever trains and scores on them."""

import hashlib
import re
import shutil
from collections import Counter
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy import signal

from jukesep.base.errors import UserError
from jukesep.songs.band import (
    SAMPLE_RATE,
    Task,
    _embedded,
    _synthesise,
    check_soundfont,
    perform,
    render_corpus,
    render_song,
)
from jukesep.songs.band.composer import MAJOR, MINOR, compose
from jukesep.songs.band.plan import (
    PROGRAMS,
    SPLITS,
    SYNTHESISED,
    Draw,
    Layer,
    Note,
    song_group,
    song_name,
)
from jukesep.songs.manifest import MIXTURE, STEMS

COUNTS = {"train": 2, "test": 2, "pretrain": 1}


# How the small corpus is rendered.
HOW = {"counts": COUNTS, "seconds": 4.0, "seed": 7}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("band")
    return root, render_corpus(root, workers=1, **HOW)


@pytest.fixture(scope="module")
def played():
    """Mono stems at 11.025 kHz of four test songs, two of each group."""
    songs = []
    for index in range(4):
        stems = perform(compose("test", index, 1, 10.0))
        mono = [stems[stem].mean(axis=0) / 32768 for stem in STEMS]
        songs.append(signal.resample_poly(np.array(mono), 1, 4, axis=1))
    return songs


def _files(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*.wav")
    }


def _sdr(target, estimate):
    error = np.sum((target - estimate) ** 2)
    return 10 * np.log10((np.sum(target**2) + 1e-7) / (error + 1e-7))


def test_layout(corpus):
    root, listed = corpus
    assert [song["split"] for song in listed] == ["train"] * 2 + ["test"] * 2 + ["pretrain"]
    assert [song["group"] for song in listed] == ["seen", "seen", "seen", "held_out", "seen"]
    expected = {
        f"{song['split']}/{song['name']}/{part}.wav"
        for song in listed
        for part in ((MIXTURE,) if song["split"] == "pretrain" else (MIXTURE, *STEMS))
    }
    assert set(_files(root)) == expected
    lengths = set()
    for path in expected:
        header = soundfile.info(root / path)
        assert (header.samplerate, header.channels, header.subtype) == (SAMPLE_RATE, 2, "PCM_16")
        assert 0.89 < header.frames / (4.0 * SAMPLE_RATE) < 1.11
        lengths.add(header.frames)
    assert len(lengths) == len(listed)


def test_the_mixture_is_the_sum_of_its_stems_and_does_not_clip(corpus):
    root, listed = corpus
    for song in listed:
        folder = root / song["split"] / song["name"]
        mixture = soundfile.read(folder / "mixture.wav", dtype="int16")[0].astype(int)
        assert 20_000 < np.abs(mixture).max() < 32_600
        if song["split"] != "pretrain":
            stems = [soundfile.read(folder / f"{s}.wav", dtype="int16")[0] for s in STEMS]
            np.testing.assert_array_equal(mixture, np.sum(stems, axis=0, dtype=int))
            assert all(np.abs(stem.astype(int)).max() < 32_600 for stem in stems)


def test_workers_and_order_do_not_change_a_song(corpus, tmp_path):
    root, listed = corpus
    render_corpus(tmp_path / "b", workers=2, **HOW)
    assert _files(tmp_path / "b") == _files(root)
    name = listed[1]["name"]
    folder = tmp_path / "alone" / name
    for _ in range(2):  # the second replaces the first
        render_song(Task(folder, "train", 1, 7, 4.0, ()))
        assert _files(folder) == _files(root / "train" / name)
    assert [path.name for path in folder.parent.iterdir()] == [name]


def test_seeds_splits_and_songs_differ():
    plans = [compose(split, k, seed, 20.0) for split in SPLITS for k in (0, 1) for seed in (1, 2)]
    assert len({repr(plan.layers) for plan in plans}) == len(plans)
    assert len({song_name(split, k, 1) for split in SPLITS for k in range(50)}) == 150


@pytest.fixture(scope="module")
def written():
    """The plans of as many training songs as the demo has."""
    return [compose("train", index, 1, 12.0) for index in range(100)]


def test_keys_tempos_scales_and_instruments_vary_over_songs(written):
    keys = Counter(plan.key for plan in written)
    assert set(keys) == set(range(12))
    assert max(keys.values()) < 20
    scales = Counter(plan.scale for plan in written)
    assert set(scales) == {MAJOR, MINOR}
    assert min(scales.values()) > 25
    tempos = [plan.tempo for plan in written]
    assert len(set(tempos)) == len(tempos)
    assert min(tempos) < 90
    assert max(tempos) > 135
    assert np.std(tempos) > 12
    bands = Counter(
        frozenset((line.role, line.program) for lines in plan.layers.values() for line in lines)
        for plan in written
    )
    assert len(bands) > 95


def test_a_song_keeps_to_its_key_scale_and_tempo(written):
    """They are heard in the notes, not only written on the plan."""

    def tuned(plan, key, scale):
        lines = [line for stem in STEMS[1:] for line in plan.layers[stem]]
        steps = [(note.pitch - key) % 12 for line in lines for note in line.notes]
        return np.mean(np.isin(steps, scale))

    def tones(plan):
        return {(plan.key + step) % 12 for step in plan.scale}

    def off_beat(plan, tempo):
        """How far most strokes fall from the sixteenths (swung ones are late), in sixteenths."""
        starts = np.array([n.start for line in plan.layers["drums"] for n in line.notes])
        if b := plan.bend:  # the times in an even tempo
            starts = (1 + b - np.sqrt((1 + b) ** 2 - 4 * b * starts / plan.seconds)) / (2 * b)
            starts *= plan.seconds
        steps = starts / (15 / tempo)
        return np.median(np.abs(steps - np.round(steps)))

    for plan, other in pairwise(written):
        assert tuned(plan, plan.key, plan.scale) > 0.95
        assert off_beat(plan, plan.tempo) < 0.08
        if tones(plan) != tones(other):  # a minor key has the tones of a major one
            assert tuned(plan, plan.key, plan.scale) > tuned(plan, other.key, other.scale)
    assert np.mean([tuned(plan, plan.key + 1, plan.scale) for plan in written]) < 0.7
    assert np.mean([off_beat(plan, 1.07 * plan.tempo) for plan in written]) > 0.2


def test_held_out_instruments_sound_in_held_out_songs_only():
    """Synthesised ones sound in both, and their parameters differ: see `Draw`."""
    for role, programs in PROGRAMS.items():
        both = set(programs["seen"]) & set(programs["held_out"])
        assert both <= {SYNTHESISED}, role
    used = {"seen": set(), "held_out": set()}
    for split in SPLITS:
        for index in range(60):
            plan = compose(split, index, 3, 8.0)
            assert plan.group == song_group(split, index)
            assert split == "test" or plan.group == "seen"
            lines = [line for lines in plan.layers.values() for line in lines]
            used[plan.group] |= {(line.role, line.program) for line in lines}
    for group, found in used.items():
        assert found == {(role, p) for role in PROGRAMS for p in PROGRAMS[role][group]}


def test_held_out_songs_draw_where_no_other_song_does():
    def drawn(held_out):
        draw = Draw(np.random.default_rng(0), held_out)
        return np.array([draw.between(-3.0, 7.0) for _ in range(1000)])

    seen, held_out = drawn(False), drawn(True)
    assert seen.min() == pytest.approx(-1.5, abs=0.05)
    assert seen.max() == pytest.approx(5.5, abs=0.05)
    assert ((held_out < -1.5) | (held_out > 5.5)).all()
    assert held_out.min() == pytest.approx(-3.0, abs=0.05)
    assert held_out.max() == pytest.approx(7.0, abs=0.05)


def test_every_stem_rests_in_some_passages_and_never_for_a_whole_song(played):
    silent = np.zeros((len(played), len(STEMS)))
    for song, stems in enumerate(played):
        frames = stems[:, : stems.shape[1] // 2205 * 2205].reshape(len(STEMS), -1, 2205)
        silent[song] = np.mean(np.sqrt(np.mean(frames**2, axis=2)) < 1e-3, axis=1)
    assert (silent < 0.6).all()
    rests = np.zeros(len(STEMS), bool)
    for index in range(20):
        layers = compose("train", index, 1, 20.0).layers
        for k, stem in enumerate(STEMS):
            spans = sorted(
                (n.start, n.start + n.duration) for line in layers[stem] for n in line.notes
            )
            ends = np.maximum.accumulate([0.0] + [end for _, end in spans])
            assert spans
            rests[k] |= np.max(np.array([start for start, _ in spans]) - ends[:-1]) > 1.0
    assert rests.all()


def test_difficulty(played):
    """About as hard as real music: mixture / 4 scores 1.15 dB, an ideal ratio mask about 10."""
    scaled, masked = [], []
    for stems in played:
        mixture = stems.sum(axis=0)
        spectra = signal.stft(stems, nperseg=2048, noverlap=1536)[2]
        shares = np.abs(spectra) / (np.abs(spectra).sum(axis=0) + 1e-9)
        estimates = signal.istft(shares * spectra.sum(axis=0), nperseg=2048, noverlap=1536)[1]
        for stem, estimate in zip(stems, estimates, strict=True):
            scaled.append(_sdr(stem, mixture / 4))
            masked.append(_sdr(stem, estimate[: len(stem)]))
    assert 0.9 < np.mean(scaled) < 1.4
    assert 8 < np.mean(masked) < 11
    levels = [10 * np.log10(np.mean(stems**2, axis=1)) for stems in played]
    assert np.ptp(np.mean(levels, axis=0)) < 5


def test_stems_have_characters_of_their_own(played):
    """Shares of energy under 300 Hz, averaged over songs; and no stem follows another."""
    shares = []
    for stems in played:
        power = np.abs(np.fft.rfft(stems, axis=1)) ** 2
        low = int(300 / (11025 / 2) * power.shape[1])
        shares.append(power[:, :low].sum(axis=1) / power.sum(axis=1))
    drums, bass, other, vocals = np.mean(shares, axis=0)
    assert bass > 0.7
    assert max(other, vocals) < 0.5
    assert 0.1 < drums < 0.9
    correlations = np.abs(np.corrcoef(np.concatenate(played, axis=1)) - np.eye(len(STEMS)))
    assert correlations.max() < 0.1


@pytest.mark.parametrize("seconds", [2.0, 3.3, 60.0])
def test_songs_of_any_length_have_all_stems(seconds):
    for index in range(20):
        plan = compose("test", index, 5, seconds)
        for stem in STEMS:
            notes = [note for line in plan.layers[stem] for note in line.notes]
            assert all(line.notes for line in plan.layers[stem])
            assert max(note.start + note.duration for note in notes) <= plan.seconds
            assert all(0 < note.velocity <= 1 and 20 < note.pitch < 100 for note in notes)
    if seconds < 4:
        for stem in perform(plan).values():
            assert np.abs(stem.astype(int)).max() > 300


def test_every_instrument_sounds_where_it_is_played():
    """The soundfont has programs without samples for some pitches."""
    low = {"bass": 28, "comp": 52, "power": 40, "pad": 48, "lead": 69}
    for role, lowest in low.items():
        programs = {p for group in PROGRAMS[role].values() for p in group} - {SYNTHESISED}
        for program in sorted(programs):
            for pitch in range(lowest, lowest + 16, 5):
                notes = (Note(0.0, 0.4, pitch, 1.0),)
                audio = _synthesise(_embedded(), program, False, notes, SAMPLE_RATE // 2)
                assert np.abs(audio).max() > 1e-4, (role, program, pitch)


def test_an_instrument_without_samples_is_left_out():
    silent = Layer("lead", 67, (Note(0.0, 0.4, 83, 1.0),), 0.0, 0.0, 0.0, 0.0, 0.0)
    assert not _synthesise(_embedded(), 67, False, silent.notes, SAMPLE_RATE).any()
    plan = compose("train", 0, 1, 4.0)
    layers = {**plan.layers, "other": (*plan.layers["other"], silent)}
    for one, other in zip(
        perform(plan).values(), perform(replace(plan, layers=layers)).values(), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_a_plan_is_the_same_on_every_machine():
    plan = asdict(compose("train", 0, 1, 20.0))
    lines = [
        (stem, line["role"], line["program"], [(n.pitch, round(n.start, 6)) for n in line["notes"]])
        for stem in STEMS
        for line in plan["layers"][stem]
    ]
    assert hashlib.sha256(repr(lines).encode()).hexdigest()[:16] == "4e45f921fe1a97c0"


def test_each_stem_draws_one_of_the_soundfonts(tmp_path, monkeypatch):
    """A copy of the embedded one sounds the same; a new instrument is heard in some stems only."""
    copy = tmp_path / "copy.sf2"
    shutil.copy(_embedded(), copy)
    check_soundfont(copy)
    plan = compose("train", 0, 1, 4.0)
    embedded = perform(plan, [_embedded()])
    for one, other in zip(embedded.values(), perform(plan, [str(copy)]).values(), strict=True):
        np.testing.assert_array_equal(one, other)
    played = []
    monkeypatch.setattr(
        "jukesep.songs.band._synthesise",
        lambda soundfont, *sampled: played.append(soundfont) or _synthesise(soundfont, *sampled),
    )
    for index in range(4):
        perform(compose("train", index, 1, 2.0), [str(copy)])
    assert set(played) == {_embedded(), str(copy)}


def test_an_instrument_that_a_soundfont_lacks_is_taken_from_the_embedded_one(monkeypatch):
    def without(soundfont, program, *rest):
        audio = _synthesise(_embedded(), program, *rest)
        return audio if soundfont == _embedded() else 0 * audio

    plan = compose("train", 0, 1, 4.0)
    expected = perform(plan, [_embedded()])
    monkeypatch.setattr("jukesep.songs.band._synthesise", without)
    for one, other in zip(expected.values(), perform(plan, ["other.sf2"]).values(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", ["missing", "text", "cut"])
def test_a_soundfont_that_cannot_be_played_is_named(tmp_path, kind):
    path = tmp_path / "font.sf2"
    if kind == "text":
        path.write_text("not a soundfont")
    if kind == "cut":
        path.write_bytes(Path(_embedded()).read_bytes()[:100_000])
    fault = "No such file" if kind == "missing" else "not a soundfont that can be played"
    with pytest.raises(UserError, match=f"soundfonts: {re.escape(str(path))}: {fault}"):
        render_corpus(tmp_path / "songs", counts={"train": 1}, seconds=2, seed=1, soundfonts=[path])
    assert not (tmp_path / "songs").exists()


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match=r"seconds: 0\.5 is too short"):
        compose("train", 0, 1, 0.5)
    with pytest.raises(UserError, match="'valid' is not one of train, test, pretrain"):
        render_corpus(tmp_path, counts={"valid": 1}, seconds=4.0, seed=1)


def test_a_failed_render_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr("jukesep.songs.band.write", full)
    with pytest.raises(OSError, match="no space"):
        render_song(Task(tmp_path / "song", "train", 0, 1, 2.0, ()))
    assert not list(tmp_path.iterdir())
