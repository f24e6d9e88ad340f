"""All samples of a file, or an error: truncated, streamed and joined files in every format."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from commands import noise

from jukesep import audio
from jukesep.audio.lengths import Incomplete, Longer

RATE = 8000
SAMPLES = 5000  # of the files in chunks
FRAME = 4  # bytes
CHUNKED = ("WAV", "RF64", "W64", "AIFF", "CAF", "AU")


def _chunked(folder, container):
    """A file of 16-bit samples in a chunk, and its samples (channels, samples)."""
    path = folder / f"a.{container.lower()}"
    soundfile.write(path, noise(SAMPLES), RATE, format=container, subtype="PCM_16")
    return path, soundfile.read(path, dtype="float32")[0].T


def _field(content, container):
    """Where a header says how long the samples are, and the form of the number."""
    return {
        "WAV": lambda: (content.index(b"data") + 4, "<I"),
        "RF64": lambda: (content.index(b"ds64") + 16, "<Q"),
        "W64": lambda: (content.index(b"data\xf3") + 16, "<Q"),
        "AIFF": lambda: (content.index(b"SSND") + 4, ">I"),
        "CAF": lambda: (content.index(b"data") + 4, ">Q"),
        "AU": lambda: (8, ">I"),
    }[container]()


def _said(path, container, number):
    """Make the header say that the samples are `number` bytes long."""
    content = bytearray(path.read_bytes())
    at, form = _field(content, container)
    struct.pack_into(form, content, at, number & (1 << 8 * struct.calcsize(form)) - 1)
    path.write_bytes(content)


def _cut(path, size):
    os.truncate(path, size)
    return path


# --- samples in chunks --------------------------------------------------------------------------


@pytest.mark.parametrize("container", CHUNKED)
@pytest.mark.parametrize("lost", [1, 9000])
def test_a_truncated_file_says_what_there_is_and_what_was_promised(tmp_path, container, lost):
    path, _ = _chunked(tmp_path, container)
    _cut(path, path.stat().st_size - lost)
    held = (SAMPLES * FRAME - lost) // FRAME
    for reader in (audio.info, audio.read):
        with pytest.raises(
            Incomplete, match=f"ends at sample {held}, expected {SAMPLES}. The file"
        ):
            reader(path)


@pytest.mark.parametrize("container", CHUNKED)
@pytest.mark.parametrize("number", [0, -1])
def test_a_header_without_a_length_means_all_up_to_the_end(tmp_path, container, number):
    path, expected = _chunked(tmp_path, container)
    _said(path, container, number)
    assert audio.info(path).samples == SAMPLES
    np.testing.assert_array_equal(audio.read(path), expected)
    np.testing.assert_array_equal(audio.read(path, 1000, 77), expected[:, 1000:1077])


@pytest.mark.parametrize("number", [0x7FFFFFFF, 0x7FFFF000, 0x80000000, 0xFFFFFFDB])
def test_the_numbers_that_programs_write_into_pipes(tmp_path, number):
    path, expected = _chunked(tmp_path, "WAV")
    _said(path, "WAV", number)
    np.testing.assert_array_equal(audio.read(path), expected)


@pytest.mark.parametrize("number", [4000, 0, 0xFFFFFFFF])
def test_a_wav_file_beyond_what_its_header_can_say(tmp_path, number):
    """Some programs count from zero again beyond 4 GiB. The file system keeps no zeros here."""
    path, _ = _chunked(tmp_path, "WAV")
    _said(path, "WAV", number)
    os.truncate(path, 2**32 + 44 + 8000)
    with path.open("r+b") as file:  # zeros alone would be padding
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    with pytest.raises(Incomplete, match="bytes follow the samples that its header describes"):
        audio.info(path)
    os.truncate(path, 0)


@pytest.mark.parametrize("container", CHUNKED)
def test_joined_files_are_not_their_first_part(tmp_path, container):
    path, _ = _chunked(tmp_path, container)
    path.write_bytes(2 * path.read_bytes())
    for reader in (audio.info, audio.read):
        with pytest.raises(Incomplete, match="bytes follow the samples that its header describes"):
            reader(path)


def test_a_header_that_says_less_is_not_believed(tmp_path):
    path, _ = _chunked(tmp_path, "WAV")
    _said(path, "WAV", 8000)
    with pytest.raises(Incomplete, match="12000 bytes follow"):
        audio.info(path)


@pytest.mark.parametrize(
    "after",
    [
        b"LIST\x05\0\0\0INFOx\0id3 \x02\0\0\0ab",
        b"TAG" + 125 * b"x",
        100 * b"\0",
        b"ID3" + bytes(9999),
        bytes(32768),
    ],
)
def test_what_follows_the_samples_may_be_chunks_tags_or_padding(tmp_path, after):
    path, expected = _chunked(tmp_path, "WAV")
    path.write_bytes(path.read_bytes() + after)
    np.testing.assert_array_equal(audio.read(path), expected)


@pytest.mark.parametrize("after", [b"", b"LIST\x04\0\0\0INFO", b"id3 " + struct.pack("<I", 9000)])
@pytest.mark.parametrize(("samples", "subtype"), [(1, "PCM_16"), (4, "PCM_16"), (5001, "PCM_24")])
def test_short_and_unpadded_samples_are_not_mixed_up_with_chunks(tmp_path, samples, subtype, after):
    """A size of 8 bytes or fewer can stand for an unknown one; some programs pad no odd size."""
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(samples, 1), RATE, subtype=subtype)
    expected = soundfile.read(path, dtype="float32")[0]
    content = path.read_bytes()
    end = content.index(b"data") + 8 + samples * int(subtype[-2:]) // 8
    path.write_bytes(content[:end] + after + (bytes(9000) if after[:3] == b"id3" else b""))
    np.testing.assert_array_equal(audio.read(path)[0], expected)


def test_a_part_of_a_sample_that_is_missing_is_none(tmp_path):
    path, expected = _chunked(tmp_path, "WAV")
    _said(path, "WAV", SAMPLES * FRAME + 2)
    np.testing.assert_array_equal(audio.read(path), expected)


@pytest.mark.parametrize("suffix", ["wav", "au", "mp3"])
def test_an_empty_file(tmp_path, suffix):
    """libsndfile opens an empty .au file, as samples without a header."""
    path = tmp_path / f"a.{suffix}"
    path.touch()
    for reader in (audio.info, audio.read):
        with pytest.raises(audio.samples.UserError, match="the file is empty"):
            reader(path)


def test_a_file_without_samples_has_none(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(0), RATE)
    assert audio.info(path).samples == 0
    path.write_bytes(path.read_bytes() + b"LIST\x04\0\0\0INFO")
    assert audio.info(path).samples == 0
    assert audio.read(path).shape == (2, 0)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_24", "DOUBLE", "ULAW", "IMA_ADPCM", "MS_ADPCM"])
def test_other_samples_in_wav(tmp_path, subtype):
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(SAMPLES), RATE, subtype=subtype)
    assert audio.read(path).shape == (2, audio.info(path).samples)
    with pytest.raises(Incomplete, match=r"ends at sample \d+, expected [45]\d{3}\."):
        audio.info(_cut(path, path.stat().st_size // 2))


# --- compressed ---------------------------------------------------------------------------------


def _compressed(folder, kind, samples=40_000, rate=48_000):
    path = folder / f"a.{kind}"
    options = {"format": "OGG", "subtype": "OPUS"} if kind == "opus" else {}
    soundfile.write(path, noise(samples), rate, **options)
    return path


@pytest.mark.parametrize("kind", ["flac", "mp3", "ogg", "opus"])
@pytest.mark.parametrize("tenths", range(4, 10))
def test_a_compressed_file_that_is_cut(tmp_path, capfd, kind, tenths):
    path = _compressed(tmp_path, kind)
    _cut(path, path.stat().st_size * tenths // 10)
    with pytest.raises(Incomplete, match="truncated"):
        audio.info(path)
    assert not capfd.readouterr().err  # libmpg123 has a lot to say


def test_the_samples_that_a_truncated_flac_file_has(tmp_path):
    path = _compressed(tmp_path, "flac")
    with pytest.raises(Incomplete, match=r"ends at sample (1[5-9]|20)\d{3}, expected 40000"):
        audio.info(_cut(path, path.stat().st_size // 2))


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("flac", Incomplete, "holds FLAC files one after the other"),
        ("ogg", Longer, "holds several songs"),
        ("opus", Longer, "holds several songs"),
        ("mp3", Longer, "holds 8[0-9]{4} samples, but its header says 40000"),
    ],
)
def test_compressed_files_that_were_joined(tmp_path, kind, error, message):
    path = _compressed(tmp_path, kind)
    path.write_bytes(2 * path.read_bytes())
    with pytest.raises(error, match=message):
        audio.info(path)


@pytest.mark.parametrize("kind", ["flac", "ogg"])
def test_damage_in_the_middle_is_an_early_end(tmp_path, kind):
    path = _compressed(tmp_path, kind)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = bytes(200)
    path.write_bytes(content)
    with pytest.raises(Incomplete, match="truncated or damaged"):
        audio.read(path)


def _without_header(path):
    """Remove the first frame of an mp3 file, which says how many there are."""
    content = path.read_bytes()
    if b"Xing" in content[:40] or b"Info" in content[:40]:
        path.write_bytes(content[content.index(content[:2], 4) :])
    return path


@pytest.mark.parametrize("loud_first", [True, False])
def test_an_mp3_file_whose_header_does_not_know_its_length(tmp_path, loud_first):
    """libsndfile estimates from the size of the first frame."""
    sound = noise(40_000)
    sound[20_000:] *= 0
    path = tmp_path / "a.mp3"
    soundfile.write(path, sound if loud_first else sound[::-1], 44_100)
    _without_header(path)
    if loud_first:
        with pytest.raises(Longer, match=r"holds 4\d{4} samples, but its header says [12]\d{4}"):
            audio.info(path)
    else:
        assert 40_000 <= audio.info(path).samples < 44_000
        assert audio.read(path).shape[1] == audio.info(path).samples


@pytest.mark.parametrize("rate", [8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000])
@pytest.mark.parametrize("level", [0.1, 0.6, 0.95])
def test_the_frames_of_mp3_files_are_counted(tmp_path, rate, level):
    path = tmp_path / "a.mp3"
    options = {"compression_level": level, "bitrate_mode": "CONSTANT"}
    soundfile.write(path, noise(rate, 1), rate, **options)
    assert level == 0.95 or audio.read(path).shape == (1, rate)
    frame = 1152 if rate >= 32000 else 576
    samples = audio.info(_without_header(path)).samples
    assert samples % frame == 0
    assert rate <= samples <= rate + 4 * frame
    assert audio.read(path).shape == (1, samples)


def test_what_lies_around_the_frames_of_an_mp3_file_is_no_frame(tmp_path, capfd):
    path = _compressed(tmp_path, "mp3")
    expected, content = audio.read(path), path.read_bytes()
    tag = b"ID3\x04\0\0\0\0\x10\0" + 2048 * b"\xff"
    ape = struct.pack("<8sIIII8x", b"APETAGEX", 2000, 9000, 1, 0) + 3000 * b"\xff\xe3\x90"
    junk = np.random.default_rng(0).integers(0, 256, 3000, np.uint8).tobytes()
    for before, after in ((tag, b""), (b"", b"TAG" + bytes(125)), (b"", ape), (junk, b"")):
        path.write_bytes(before + content + after)
        np.testing.assert_array_equal(audio.read(path), expected)
    assert not capfd.readouterr().err


def test_an_mp3_file_that_ends_in_its_last_frame(tmp_path):
    path = _compressed(tmp_path, "mp3")
    _cut(path, path.stat().st_size - 20)
    with pytest.raises(Incomplete, match=r"ends at sample 38\d{3}, expected 40000"):
        audio.info(path)


def test_damage_in_an_mp3_file_is_seen_before_it_is_read(tmp_path):
    path = _compressed(tmp_path, "mp3")
    content = bytearray(path.read_bytes())
    content[3000:5000] = bytes(2000)
    path.write_bytes(content)
    with pytest.raises(Incomplete, match=r"ends at sample 3\d{4}, expected 40000"):
        audio.info(path)


def test_standard_error_is_back_after_an_mp3_file(tmp_path, capfd):
    audio.read(_compressed(tmp_path, "mp3"))
    os.write(2, b"here")
    assert capfd.readouterr().err == "here"


def test_a_suffix_that_libsndfile_takes_for_a_format(tmp_path):
    path = Path(tmp_path / "a.raw")
    path.write_bytes(bytes(100))
    with pytest.raises(audio.samples.UserError, match="not readable as audio"):
        audio.info(path)
