"""Channels have wav's order in memory and in stems, whatever a format stores."""

import subprocess

import numpy as np
import pytest
import soundfile
from programs import needs

from jukesep import audio
from jukesep.audio.encode import FORMATS, writing

RATE = 8000
# What each format's specification says, in the names of wav's channels.
WAV = {
    3: "FL FR FC",
    4: "FL FR BL BR",
    5: "FL FR FC BL BR",
    6: "FL FR FC LFE BL BR",
    7: "FL FR FC LFE BC SL SR",
    8: "FL FR FC LFE BL BR SL SR",
}
XIPH = {  # Vorbis I specification, 4.3.9
    3: "FL FC FR",
    4: "FL FR BL BR",
    5: "FL FC FR BL BR",
    6: "FL FC FR BL BR LFE",
    7: "FL FC FR SL SR BC LFE",
    8: "FL FC FR SL SR BL BR LFE",
}


def _tones(channels):
    """A tone of another frequency in each channel, below what formats cut from LFE."""
    time = np.arange(RATE) / RATE
    tones = [0.3 * np.sin(2 * np.pi * 20 * (k + 1) * time) for k in range(channels)]
    return np.array(tones, np.float32)


def _names(samples, channels):
    """The channel of wav that is heard in each channel of (channels, samples)."""
    peaks = np.abs(np.fft.rfft(samples)).argmax(axis=1) * RATE / samples.shape[1] / 20
    return " ".join(WAV[channels].split()[round(peak) - 1] for peak in peaks)


def _stem(folder, form, channels):
    path = folder / f"a.{FORMATS[form].suffix}"
    with writing({"a": path}, FORMATS[form], "none", RATE, channels, RATE) as put:
        for block in np.split(_tones(channels), 3 * [RATE // 4], axis=1):
            put({"a": block})
    return path


@pytest.mark.parametrize("channels", WAV)
@pytest.mark.parametrize("form", ["wav", "wav16", "wav24", "flac", "ogg"])
def test_stems_are_stored_in_their_format_s_order_and_read_in_wav_s(tmp_path, form, channels):
    path = _stem(tmp_path, form, channels)
    stored = XIPH if form == "ogg" else WAV
    assert _names(soundfile.read(path)[0].T, channels) == stored[channels]
    assert _names(audio.read(path), channels) == WAV[channels]
    part = audio.read(path, 1000, 4000)
    np.testing.assert_array_equal(part, audio.read(path)[:, 1000:5000])


@pytest.mark.parametrize("channels", WAV)
def test_ogg_files_written_in_one_piece(tmp_path, channels):
    path = tmp_path / "a.ogg"
    audio.write(path, _tones(channels), RATE)
    assert _names(soundfile.read(path)[0].T, channels) == XIPH[channels]
    assert _names(audio.read(path), channels) == WAV[channels]


@pytest.mark.parametrize("channels", WAV)
@pytest.mark.parametrize("ordered", [True, False])
def test_opus_has_an_order_in_one_of_its_families_of_layouts(tmp_path, channels, ordered):
    path = tmp_path / "a.opus"
    soundfile.write(path, _tones(channels).T, RATE, format="OGG", subtype="OPUS")
    content = path.read_bytes()
    family = content.index(b"OpusHead") + 18
    assert content[family] == 1
    stored = audio.read(path)
    if not ordered:  # libsndfile checks no sums of pages that it has read
        path.write_bytes(_page_sum(content[:family] + b"\xff" + content[family + 1 :]))
    expected = [WAV[channels].split().index(name) for name in XIPH[channels].split()]
    found = audio.read(path)
    np.testing.assert_array_equal(found[expected] if ordered else found, _raw(path))
    assert found.shape == stored.shape


def _raw(path):
    return soundfile.read(path, dtype="float32")[0].T


def _page_sum(content):
    """The content with the checksum of its first page made right (RFC 3533)."""
    end = content.index(b"OggS", 4)
    page = content[:22] + bytes(4) + content[26:end]
    total = 0
    for byte in page:
        total ^= byte << 24
        for _ in range(8):
            total = (total << 1 ^ (0x04C11DB7 if total >> 31 else 0)) & 0xFFFFFFFF
    return page[:22] + total.to_bytes(4, "little") + page[26:] + content[end:]


@pytest.mark.parametrize("channels", WAV)
@pytest.mark.parametrize("form", ["wav", "wav16", "flac", "ogg"])
def test_ffmpeg_hears_the_same_channels(tmp_path, form, channels):
    path = _stem(tmp_path, form, channels)
    command = [needs("ffmpeg"), "-v", "error", "-i", path, "-c:a", "pcm_f32le", tmp_path / "b.wav"]
    subprocess.run(command, check=True)
    assert _names(_raw(tmp_path / "b.wav"), channels) == WAV[channels]
