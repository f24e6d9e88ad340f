"""The static equaliser: its gains where they are known, and what it returns."""

import numpy as np
import pytest
from scipy.signal import firwin, lfilter

from jukesep import audio
from jukesep.base import parallel
from jukesep.base.errors import UserError
from jukesep.songs.manifest import Song
from jukesep.systems import equaliser

RATE = 11025
LOW = firwin(101, 1500, fs=RATE)  # linear phase; its delay is cut off below


def _song(root, name, parts):
    samples = len(next(iter(parts.values()))[0])
    for part, rows in parts.items():
        audio.write(root / name / f"{part}.wav", np.array(rows, np.float32), RATE, "FLOAT")
    return Song(name, "train", "", root / name, samples)


def _filtered(mixture):
    """The mixture below 1500 Hz, without delay."""
    padded = np.pad(mixture, [(0, 0), (0, 50)])
    return lfilter(LOW, [1.0], padded)[:, 50:]


@pytest.fixture
def songs(tmp_path):
    """Three songs of noise: the bass is the mixture below 1500 Hz, drums the rest."""
    rng = np.random.default_rng(0)
    made = []
    for number, seconds in enumerate((9, 14, 5)):
        mixture = 0.2 * rng.standard_normal((2, seconds * RATE + number))
        bass = _filtered(mixture)
        parts = {"mixture": mixture, "bass": bass, "drums": mixture - bass}
        made.append(_song(tmp_path, f"{number}", parts))
    return made


def test_a_stem_that_is_a_filtered_mixture_gives_the_filter(songs):
    found = equaliser.fit(songs, ["drums", "bass"], RATE)
    assert list(found.gains) == ["drums", "bass"]
    frequencies = np.linspace(0, RATE / 2, 513)
    response = np.abs(np.exp(-2j * np.pi * np.outer(frequencies / RATE, np.arange(101))) @ LOW)
    assert found.gains["bass"] == pytest.approx(response, abs=0.03)
    # And so the stem comes back, if it is applied to another mixture.
    mixture = 0.2 * np.random.default_rng(9).standard_normal((1, 5 * RATE)).astype(np.float32)
    stem = _filtered(mixture)
    (error,) = stem - found.separate(mixture, RATE)["bass"]
    assert np.mean(error**2) < 1e-3 * np.mean(stem**2)


def test_a_scaled_stem_has_its_factor_as_gain_but_none_outside_0_and_1(tmp_path):
    mixture = 0.1 * np.random.default_rng(0).standard_normal((1, 3 * RATE))
    parts = {"mixture": mixture, "drums": 0.25 * mixture, "bass": 1.5 * mixture}
    song = _song(tmp_path, "one", parts | {"vocals": -0.75 * mixture})
    found = equaliser.fit([song], ["drums", "bass", "vocals"], RATE)
    for stem, gain in (("drums", 0.25), ("bass", 1), ("vocals", 0)):
        assert found.gains[stem] == pytest.approx(np.full(513, gain), abs=1e-5)


def test_no_other_gains_have_less_error_on_the_songs(songs, tmp_path):
    """Of stems that no filter can give: noise and clicks of different spectra."""
    rng = np.random.default_rng(1)
    stems = {
        "drums": 0.1 * rng.standard_normal((2, 8 * RATE)) * (rng.random(8 * RATE) > 0.9),
        "bass": _filtered(0.2 * rng.standard_normal((2, 8 * RATE))),
    }
    song = _song(tmp_path, "mixed", stems | {"mixture": sum(stems.values())})
    found = equaliser.fit([song], stems, RATE)
    mixture = audio.read(song.file("mixture"))

    def error(gains, stem):
        estimate = equaliser.Equaliser(RATE, {stem: gains}).separate(mixture, RATE)[stem]
        return np.sum((estimate - stems[stem]) ** 2)

    for stem, gains in found.gains.items():
        best = error(gains, stem)
        for change in (0.05, -0.05):
            for band in (slice(0, 100), slice(100, 300), slice(300, 513)):
                other = gains.copy()
                other[band] += change
                assert error(other, stem) > best


def test_songs_count_by_their_energy_and_channels_are_pooled(tmp_path):
    rng = np.random.default_rng(0)
    quiet, loud = 0.1 * rng.standard_normal((2, 1, 30 * RATE))
    loud = 3 * loud
    one = {"mixture": np.vstack([quiet, loud]), "drums": np.vstack([quiet, 0 * loud])}
    found = equaliser.fit([_song(tmp_path, "one", one)], ["drums"], RATE)
    assert np.mean(found.gains["drums"]) == pytest.approx(1 / (1 + 9), rel=0.02)
    two = [
        _song(tmp_path, "a", {"mixture": quiet, "drums": quiet}),
        _song(tmp_path, "b", {"mixture": loud, "drums": 0 * loud}),
    ]
    assert equaliser.fit(two, ["drums"], RATE).gains["drums"] == pytest.approx(
        found.gains["drums"], abs=1e-6
    )


def test_a_mono_estimate_is_that_of_the_mono_mixture(songs):
    """So both conventions of `sdr` give the same number."""
    found = equaliser.fit(songs, ["drums", "bass"], RATE)
    mixture = np.random.default_rng(2).uniform(-1, 1, (2, 30_001)).astype(np.float32)
    of_mono = found.separate(audio.to_mono(mixture), RATE)
    for stem, estimate in found.separate(mixture, RATE).items():
        assert estimate.shape == mixture.shape
        assert estimate.dtype == np.float32
        np.testing.assert_allclose(audio.to_mono(estimate), of_mono[stem], atol=1e-6)


@pytest.mark.parametrize("samples", [0, 1, 700, 1024, 1025, 30_000])
def test_gains_of_1_return_the_mixture_at_any_length(samples):
    mixture = np.random.default_rng(0).uniform(-1, 1, (2, samples)).astype(np.float32)
    flat = equaliser.Equaliser(RATE, {"drums": np.ones(513, np.float32)})
    np.testing.assert_allclose(flat.separate(mixture, RATE)["drums"], mixture, atol=1e-5)


def test_silence_and_missing_stems_have_gains_of_0(tmp_path):
    silence = np.zeros((1, 5000))
    song = _song(tmp_path, "silent", {"mixture": silence, "drums": silence})
    assert not equaliser.fit([song], ["drums"], RATE).gains["drums"].any()


def test_a_window_lasts_about_93_ms_at_every_rate():
    lengths = {8000: 1024, 11025: 1024, 16000: 2048, 22050: 2048, 44100: 4096, 48000: 4096}
    assert {rate: equaliser.window(rate) for rate in lengths} == lengths


def test_the_number_of_threads_does_not_change_a_bit(songs, monkeypatch):
    found = []
    for cores in (1, 3):
        monkeypatch.setattr(parallel, "cores", lambda cores=cores: cores)
        found.append(equaliser.fit(songs, ["drums"], RATE).gains["drums"])
    np.testing.assert_array_equal(*found)


def test_it_is_a_system_and_refuses_another_rate(songs):
    found = equaliser.fit(songs, ["drums", "bass"], RATE)
    system = equaliser.system(found, "three songs")
    assert (system.name, system.trained_on) == ("static_equaliser", "three songs")
    mixture = np.zeros((2, 4000), np.float32)
    assert set(system(mixture, RATE)) == {"drums", "bass"}
    for separate in (system, found.separate):
        with pytest.raises(UserError, match=r"44100 Hz\. Resample the song first"):
            separate(mixture, 44100)
