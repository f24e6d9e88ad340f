"""The one place that opens audio."""

import numpy as np
import pytest
import soundfile
from scipy.io import wavfile

from jukesep import audio
from jukesep.base.errors import UserError
from jukesep.songs import checks

RNG = np.random.default_rng(0)


def test_a_slice_is_what_the_whole_holds_there(tmp_path):
    whole = RNG.uniform(-1, 1, (2, 1000)).astype(np.float32)
    path = tmp_path / "a.wav"
    audio.write(path, whole, 44100, "FLOAT")
    np.testing.assert_array_equal(audio.read(path), whole)
    np.testing.assert_array_equal(audio.read(path, 137, 321), whole[:, 137:458])
    header = audio.info(path)
    assert (header.sample_rate, header.channels, header.samples) == (44100, 2, 1000)


@pytest.mark.parametrize("channels", [1, 2])
def test_the_same_float_audio_is_the_same_file(tmp_path, channels):
    samples = np.random.default_rng(0).normal(size=(channels, 1001)).astype(np.float32)
    audio.write(tmp_path / "now.wav", samples, 11025, "FLOAT")
    written = (tmp_path / "now.wav").read_bytes()
    np.testing.assert_array_equal(audio.read(tmp_path / "now.wav"), samples)
    assert audio.info(tmp_path / "now.wav") == audio.AudioInfo(11025, channels, 1001, "FLOAT")
    # libsndfile's PEAK chunk holds the time of writing.
    assert b"PEAK" not in written[:200]


def test_int16_is_written_bit_for_bit(tmp_path):
    samples = RNG.integers(-32768, 32768, (2, 500)).astype(np.int16)
    audio.write(tmp_path / "a.wav", samples, 44100, "PCM_16")
    np.testing.assert_array_equal(audio.read(tmp_path / "a.wav") * 32768, samples)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "opus"])
def test_formats_are_read(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(48000) / 48000)
    options = {"format": "OGG", "subtype": "OPUS"} if suffix == "opus" else {}
    soundfile.write(path, tone, 48000, **options)
    found = audio.read(path)
    assert found.shape == (1, audio.info(path).samples)
    assert abs(np.sqrt(2) * found.std() - 0.5) < 0.02


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("missing.wav", None, "no such file"),
        ("empty.wav", b"", "empty"),
        ("text.wav", b"these are words, not samples" * 9, "not readable as audio"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, content, said):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    for reader in (audio.read, audio.info):
        with pytest.raises(UserError, match=said) as caught:
            reader(path)
        assert name in str(caught.value)


def test_a_folder_an_early_end_and_nan_are_named(tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        audio.read(tmp_path)
    path = tmp_path / "a.wav"
    audio.write(path, np.zeros((1, 100), np.float32), 8000, "FLOAT")
    with pytest.raises(UserError, match="ends at sample 100"):
        audio.read(path, 50, 60)
    audio.write(path, np.full((1, 100), np.nan, np.float32), 8000, "FLOAT")
    with pytest.raises(UserError, match="NaN"):
        audio.read(path)


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.wav"
    audio.write(path, np.zeros((1, 10)), 8000)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r".*"):
        audio.write(path, np.zeros((1, 10)), 8000, "NO_SUCH_SUBTYPE")
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]


def test_mono_blends_the_channels():
    stereo = np.array([[1.0, 2.0], [3.0, 6.0]], np.float32)
    np.testing.assert_array_equal(audio.to_mono(stereo), [[2, 4]])
    np.testing.assert_allclose(audio.to_mono(stereo, 0.25), [[2.5, 5]])
    np.testing.assert_array_equal(audio.to_mono(stereo[:1]), stereo[:1])
    np.testing.assert_allclose(audio.to_mono(np.vstack([stereo, stereo[:1]])), [[5 / 3, 10 / 3]])


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_blocks_are_what_libsndfile_reads(tmp_path, monkeypatch, subtype):
    monkeypatch.setattr(audio.samples, "BLOCK", 100)
    path = tmp_path / "a.wav"
    soundfile.write(path, RNG.uniform(-1, 1, (1037, 2)), 44100, subtype=subtype)
    expected = soundfile.read(path, dtype="float32")[0].T
    blocks = list(audio.blocks(path, 37, 950))
    assert [block.shape[1] for block in blocks] == [100] * 9 + [50]
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1), expected[:, 37:987])
    np.testing.assert_array_equal(audio.read(path, 37), expected[:, 37:])
    with pytest.raises(UserError, match="ends at sample 1037"):
        list(audio.blocks(path, 37, 1001))


# --- piece by piece ---------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [[], [1001], [1, 0, 700, 300]])
def test_float_wav_files_are_scipy_s(tmp_path, pieces):
    samples = RNG.normal(size=(2, sum(pieces))).astype(np.float32)
    with audio.writing(tmp_path / "a.wav", 11025, 2, 77) as put:
        for block in np.split(samples, np.cumsum(pieces)[:-1], axis=1):
            put(block)
    wavfile.write(tmp_path / "b.wav", 11025, samples.T)
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()


def test_a_float_wav_file_may_be_longer_than_riff_can_say(tmp_path, monkeypatch):
    monkeypatch.setattr(audio.samples, "RIFF_LIMIT", 4000)
    samples = RNG.normal(size=(2, 501)).astype(np.float32)
    path = tmp_path / "train/a/mixture.wav"
    audio.write(path, samples, 44100, "FLOAT")
    assert path.read_bytes()[:4] == b"RF64"
    np.testing.assert_array_equal(audio.read(path), samples)
    assert audio.info(path) == audio.AudioInfo(44100, 2, 501, "FLOAT")
    assert checks.read_headers(path.parent, ["mixture"]) == ({"mixture": audio.info(path)}, [])


def test_pieces_of_other_channels_are_refused(tmp_path):
    with (
        pytest.raises(ValueError, match="1 channels given, expected 2"),
        audio.writing(tmp_path / "a.wav", 8000, 2, 10) as put,
    ):
        put(np.zeros((1, 10), np.float32))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["flac", "ogg", "wav"])
def test_a_disk_that_is_full_is_said_in_one_line(tmp_path, suffix):
    resource = pytest.importorskip("resource")  # Windows has none
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).uniform(-1, 1, (1, 40000)).astype(np.float32)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(UserError, match=rf"a\.{suffix}: cannot be written \(.*disk full"):
            audio.write(path, noise, 8000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
