"""The example of scoring another program: its page, and its commands with a stand-in for it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from jukesep.base.errors import UserError
from studies import records, spleeter
from studies.spleeter import Score

ROOT = Path(__file__).parents[2]
PROGRAM = '''
class Separator:
    """Halves the mixture. As the real one, it takes songs of one length only."""

    def __init__(self, multiprocess):
        self.length = None
        self._prediction_generator = self

    def close(self):
        pass

    def separate(self, waveform):
        assert waveform.dtype == "float32" and waveform.shape[1] == 2
        assert self.length in (None, len(waveform))
        self.length = len(waveform)
        return {"vocals": waveform / 2, "accompaniment": waveform / 2}
'''


def test_the_committed_page_is_of_the_kept_scores(monkeypatch):
    monkeypatch.chdir(ROOT)
    scores = records.load(Score, spleeter.SCORES)
    assert spleeter.PAGE.read_text(encoding="utf-8") == spleeter.page(scores)
    assert {one.songs for one in scores} == set(spleeter.SONGS)
    songs = {one.song for one in scores if one.songs == "band"}
    assert len(scores) == (len(songs) + 1) * 2 * len(spleeter.SYSTEMS) * len(spleeter.METRICS)


def test_a_table_has_the_mean_the_lowest_and_the_highest():
    scores = [
        Score(songs, song, system, stem, "sdr_mdx", value)
        for songs, values in (("excerpt", {"a": 5.0}), ("band", {"b": 1.0, "c": 4.0}))
        for song, value in values.items()
        for system in spleeter.SYSTEMS
        for stem in spleeter.STEMS
    ]
    lines = spleeter.table(scores).splitlines()
    assert lines[2] == f"| {spleeter.SONGS['excerpt']} | vocals | 5.00 | 5.00 | 5.00 |"
    assert lines[4].startswith("| the band, 2 songs | vocals | 2.50 (1.00 to 4.00) | ")


def test_what_lacks_is_said(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="environment is not there"):
        spleeter.python_of(tmp_path)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="uv, which makes the environment, is not installed"):
        spleeter.install(tmp_path / "spleeter")


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A package `spleeter` for the programs that a test starts."""
    folder = tmp_path / "packages/spleeter"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "separator.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(folder.parent))


def write(folder, samples, seed):
    """A song of four stems in MUSDB18-HQ's layout, at 44.1 kHz."""
    folder.mkdir(parents=True)
    numbers = np.random.default_rng(seed)
    stems = {
        stem: numbers.integers(-4000, 4000, (samples, 2), np.int16)
        for stem in ("drums", "bass", "other", "vocals")
    }
    for name, audio in {**stems, "mixture": sum(stems.values())}.items():
        soundfile.write(folder / f"{name}.wav", audio.astype(np.int16), 44_100, "PCM_16")


def test_its_stems_are_scored(tmp_path, monkeypatch, stand_in):
    def render(folder):
        write(folder / "band/test/one", 50_000, 0)
        write(folder / "band/test/two", 60_000, 1)
        write(folder / "excerpt/test/excerpt", 50_000, 2)

    monkeypatch.setattr(spleeter, "render", render)
    scores = spleeter.measure(Path(sys.executable), tmp_path)
    assert len(scores) == 3 * 2 * len(spleeter.SYSTEMS) * len(spleeter.METRICS)
    found = {(one.song, one.system, one.stem, one.metric): one.value for one in scores}
    samples = [
        soundfile.read(tmp_path / f"band/test/one/{part}.wav")[0] for part in ("vocals", "mixture")
    ]
    vocals, mixture = samples
    error = np.sum((vocals - mixture / 2) ** 2)
    expected = 10 * np.log10(np.sum(vocals**2) / error)
    assert found["one", "spleeter", "vocals", "sdr_mdx"] == pytest.approx(expected, abs=1e-3)


def test_songs_that_have_their_stems_are_skipped(tmp_path, stand_in):
    write(tmp_path / "songs/one", 1000, 0)
    command = [sys.executable, str(spleeter.PROGRAM), *map(str, (tmp_path / "songs", tmp_path))]
    for said in ("1 of 1: one\n", ""):
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, said), done.stderr
    audio, rate = soundfile.read(tmp_path / "one/vocals.wav")
    assert (audio.shape, rate) == ((1000, 2), 44_100)


def test_other_songs_are_refused(tmp_path, stand_in):
    command = [sys.executable, str(spleeter.PROGRAM), str(tmp_path), str(tmp_path / "stems")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        1,
        f"error: {tmp_path}: holds no <song>/mixture.wav.\n",
    )
    (tmp_path / "one").mkdir()
    soundfile.write(tmp_path / "one/mixture.wav", np.zeros((100, 2)), 8000)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "has 8000 Hz, where stereo at 44100 Hz is needed" in done.stderr
