"""The statistics of songs: right for signals whose values are known; the page is of them."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jukesep.base.errors import UserError
from studies import excerpt, records, songs

ROOT = Path(__file__).parents[2]
RATE = 8000
SECONDS = 4
TIME = np.arange(SECONDS * RATE) / RATE


def sine(frequency, left=1.0, right=1.0):
    return np.array([left, right])[:, None] * np.sin(2 * np.pi * frequency * TIME)


@pytest.fixture(scope="module")
def found():
    """Bass on the left, drums in half of the time, other on both sides, vocals never."""
    drums = sine(500, 0.5, 0.5) * (TIME < SECONDS / 2)
    stems = {"drums": drums, "bass": sine(62.5, 1, 0), "other": sine(1000), "vocals": 0 * drums}
    return songs.describe(stems, RATE)


def test_levels_and_silence(found):
    """The sines are orthogonal: their energies add, and those of both channels count."""
    silent = {part: found[part, "silent"] for part in songs.PARTS}
    assert silent == {"mixture": 0, "drums": 50, "bass": 0, "other": 0, "vocals": 100}
    energies = {"drums": 0.25, "bass": 1, "other": 2, "vocals": 0}
    for stem, energy in energies.items():
        assert found[stem, "energy"] == pytest.approx(100 * energy / 3.25)
    assert found["bass", "level"] == pytest.approx(10 * np.log10(1 / 2.25))
    assert found["drums", "level"] == pytest.approx(10 * np.log10(0.5 / 3)), "while they sound"
    assert [found["mixture", f"{n} sounding"] for n in songs.COUNTS] == [0, 0, 50, 50, 0]
    quiet = {"drums": 0.015 * sine(500), "bass": 0.007 * sine(62.5), "other": sine(1000)}
    faint = songs.describe(quiet, RATE)  # by 36 and 43 dB
    assert (faint["drums", "silent"], faint["bass", "silent"]) == (0, 100)


def test_dynamics_and_width(found):
    assert found["other", "crest"] == pytest.approx(10 * np.log10(2), abs=0.01)
    assert found["drums", "crest"] == pytest.approx(10 * np.log10(2), abs=0.01)
    assert found["other", "range"] == pytest.approx(0, abs=0.01)
    assert found["bass", "width"] == pytest.approx(0)
    assert found["other", "width"] == -songs.LIMIT
    assert songs.describe({"other": sine(500, 1, -1)}, RATE)["other", "width"] == songs.LIMIT
    assert math.isnan(found["vocals", "crest"])
    assert math.isnan(found["vocals", "width"])
    steps = np.sum([0.1 * (n / 2 <= TIME) for n in range(2 * SECONDS)], axis=0)  # 0.1 to 0.8
    ramp = songs.describe({"other": sine(500) * steps}, RATE)["other", "range"]
    assert ramp == pytest.approx(10 * np.log10(58.75 / 3.1), abs=0.01), "of 1, 4, 9, ... 64"


def test_a_sine_is_in_one_band_and_noise_has_the_slope_of_its_colour(found):
    levels = {centre: found["drums", f"{centre:.0f} Hz"] for centre in songs.CENTRES}
    assert max(levels, key=levels.get) == pytest.approx(500)
    assert levels.pop(500.0) > -0.1
    assert max(levels.values()) < -20
    assert not [v for k, v in found.items() if k[0] == "vocals" and "Hz" in k[1] and v == v]
    noise = np.fft.rfft(np.random.default_rng(0).standard_normal((2, 40 * RATE)))
    frequencies = np.arange(1, noise.shape[1] + 1)
    for colour, expected in ((0, 0.0), (1, 20 * np.log10(0.5)), (0.5, 10 * np.log10(0.5))):
        audio = np.fft.irfft(noise / frequencies**colour)
        slope = songs.describe({"other": audio}, RATE)["mixture", "slope"]
        assert slope == pytest.approx(expected, abs=0.25)


def test_the_line_of_popular_songs_has_the_published_slopes():
    for centre, expected in ((200, -2.35), (800, -4.985), (6400, -8.938)):
        density = [
            songs.popular(np.array(f)) - 10 * np.log10(f) for f in (centre / 1.01, centre * 1.01)
        ]
        assert np.diff(density)[0] / (2 * np.log2(1.01)) == pytest.approx(expected, abs=0.002)


def test_a_summary_leaves_out_what_a_song_lacks():
    key = ("vocals", "crest")
    (one,) = songs.summary("band", [{key: 1.0}, {key: math.nan}, {key: 3.0}])
    assert one == songs.Figure("band", *key, 2, 2.0, pytest.approx(1.2), 2.0, pytest.approx(2.8))
    table = songs.Table([one, replace(one, quantity="silent", mean=7.4, low=0.2, high=20)])
    assert table.text("band", "vocals", "crest") == "2.0 (1.2 to 2.8)"
    assert table.text("band", "vocals", "silent") == "7 (0 to 20)"
    assert table.text("band", "vocals", "width") == "-"


def test_without_ffmpeg_the_page_is_without_the_excerpt(tmp_path, monkeypatch, capsys):
    def decode(folder):
        raise UserError("ffmpeg is not installed.")

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(excerpt, "decode", decode)
    monkeypatch.setattr(songs, "perform", lambda plan: dict.fromkeys(
        ("drums", "bass", "other", "vocals"), np.ones((2, 44_100), np.int16)
    ))  # fmt: skip
    figures = songs.measure(1)
    assert {one.songs for one in figures} == {"band"}
    assert "The page is without the excerpt." in capsys.readouterr().err
    assert "| the excerpt | - | - | - | - | - |" in songs.page(figures)
    songs.draw(figures, tmp_path / "songs.png")


def test_the_committed_page_and_picture_are_of_the_kept_figures(tmp_path):
    figures = records.load(songs.Figure, ROOT / songs.FIGURES)
    assert (ROOT / songs.PAGE).read_text(encoding="utf-8") == songs.page(figures)
    songs.draw(figures, tmp_path / "songs.png")
    assert (tmp_path / "songs.png").read_bytes() == (ROOT / songs.PICTURE).read_bytes()
