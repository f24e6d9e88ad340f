"""A folder of songs is checked whole, and all that is wrong with it is said at once."""

import shutil
import struct

import numpy as np
import pytest
import soundfile
from folders import RATE, write_musdb18hq, write_song

from jukesep import audio
from jukesep.base.errors import UserError
from jukesep.songs import checks, musdb
from jukesep.songs.checks import Layout, check_root
from jukesep.songs.manifest import MIXTURE, STEMS

PARTS = (MIXTURE, *STEMS)
SAMPLES = 6000
BOTH = {"train": PARTS, "test": PARTS}


def _faults(root, layout):
    with pytest.raises(UserError) as caught:
        check_root(root, layout)
    return str(caught.value)


def _cut(path, bytes_kept):
    path.write_bytes(path.read_bytes()[:bytes_kept])


def test_a_dozen_planted_faults_are_one_report(tmp_path):
    root = write_musdb18hq(tmp_path / "musdb18hq", samples=SAMPLES)
    songs = sorted((root / "train").iterdir())
    # The songs share their files: each that gets a fault is written anew.
    for number, song in enumerate(songs[:12]):
        shutil.rmtree(song)
        write_song(song, samples=SAMPLES, seed=number)
    shutil.rmtree(root / "test" / "Other 07 - Song")
    faulty = [f"train/{song.name}" for song in songs]

    (songs[0] / "vocals.wav").unlink()
    (songs[1] / "bass.wav").write_bytes(b"")
    _cut(songs[2] / "drums.wav", 10_000)
    (songs[3] / "other.wav").write_bytes(b"RIFF" + bytes(4) + b"WAVE" + b"fmt \x10" + bytes(200))
    shutil.copy(songs[4] / "bass.wav", songs[4] / "copy.wav")
    data, _ = soundfile.read(songs[4] / "copy.wav")
    soundfile.write(songs[4] / "bass.wav", data, RATE, format="FLAC")
    (songs[4] / "copy.wav").unlink()
    soundfile.write(songs[5] / "drums.wav", data[:, 0], RATE)
    soundfile.write(songs[6] / "vocals.wav", data, 48_000)
    soundfile.write(songs[7] / "other.wav", data[:-1], RATE)
    soundfile.write(songs[8] / "mixture.wav", data / 2, RATE)
    soundfile.write(songs[9] / "bass.wav", 0 * data, RATE)
    data[SAMPLES // 2] = np.nan
    soundfile.write(songs[10] / "drums.wav", data, RATE, subtype="FLOAT")
    for part in PARTS:
        short, _ = soundfile.read(songs[11] / f"{part}.wav")
        soundfile.write(songs[11] / f"{part}.wav", short[: SAMPLES // 2], RATE)
    (root / "train" / "artwork").mkdir()
    (root / "train" / "artwork" / "cover.jpg").write_bytes(b"no song")
    (root / "train" / "notes.txt").write_text("a stray file")
    (root / "backup").mkdir()

    report = _faults(root, musdb.layout(shortest=0.1))
    for file, found in (
        (f"{faulty[0]}/vocals.wav", "no such file. Copy it again, or add a silent one"),
        (f"{faulty[1]}/bass.wav", "the file is empty"),
        (f"{faulty[2]}/drums.wav", "ends at sample 2489, expected 6000. The file is truncated"),
        (f"{faulty[3]}/other.wav", "not readable as audio"),
        (f"{faulty[4]}/bass.wav", "not a wav file (it begins with b'fLaC')"),
        (f"{faulty[5]}/drums.wav", "mono, but the song is stereo"),
        (f"{faulty[6]}/vocals.wav", "sample rate 48000 Hz, expected 44100 Hz"),
        (f"{faulty[7]}/other.wav", "5999 samples long, but the song's other files have 6000"),
        (f"(warning) {faulty[8]}/mixture.wav", "not the sum of its stems: the residual is "),
        (f"(warning) {faulty[9]}/bass.wav", "silent throughout"),
        (f"{faulty[10]}/drums.wav", "holds NaN or infinite samples"),
        (faulty[11], "0.07 s long, shorter than a training segment (0.10 s)"),
        ("train/artwork", "a folder with none of mixture, drums, bass, other, vocals as .wav"),
        ("(warning) train/notes.txt", "a file beside the song folders"),
        ("(warning) backup", "not part of the layout"),
        ("test/", "49 songs, the data set has 50"),
    ):
        (line,) = [line for line in report.splitlines() if line.startswith(f"  {file}: {found}")]
        assert line.endswith((".", "ignored."))
    # One line each, under the root, and nothing about what is as it should be: the song whose bass
    # was silenced has lost its sum as well.
    assert report.splitlines()[0] == f"{root}: 12 fault(s), 5 warning(s)"
    assert len(report.splitlines()) == 18


def test_a_good_folder_gives_its_songs_and_no_warning(tmp_path):
    root = write_musdb18hq(tmp_path, samples=4000)
    songs, warnings = check_root(root, musdb.layout(shortest=0.09))
    assert not warnings
    assert [song.split for song in songs] == ["train"] * 100 + ["test"] * 50
    assert songs[0].headers["drums"].samples == 4000


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("nowhere", "no such folder"),
        ("musdb18hq/train", "Give the folder above"),
        ("musdb18hq/train/A", "neither train/ nor test/"),
        (".", "Did you mean .*musdb18hq"),
        ("empty", "neither train/ nor test/"),
    ],
)
def test_a_wrong_root_says_what_is_the_right_one(tmp_path, given, said):
    write_song(tmp_path / "musdb18hq/train/A")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=said):
        check_root(tmp_path / given, Layout(BOTH))


def test_stem_files_are_the_other_source(tmp_path):
    for split in BOTH:
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.stem.mp4").write_bytes(b"")
    assert "Use data=musdb18." in _faults(tmp_path, Layout(BOTH))


def test_a_missing_split_and_a_song_in_two_splits_are_faults(tmp_path):
    write_song(tmp_path / "train/A")
    assert "test/: no such folder" in _faults(tmp_path, Layout(BOTH))
    (tmp_path / "test").mkdir()
    assert "test/: contains no songs" in _faults(tmp_path, Layout(BOTH))
    write_song(tmp_path / "test/A")
    assert "test/A: also in train/" in _faults(tmp_path, Layout(BOTH))


def test_a_renamed_validation_song_is_a_fault(tmp_path):
    root = write_musdb18hq(tmp_path, samples=4000)
    (root / "train/Meaxic - Take A Step").rename(root / "train/Take A Step")
    assert "train/Meaxic - Take A Step: missing, but on musdb's list" in _faults(
        root, musdb.layout(0.0)
    )


def test_a_folder_takes_the_rate_that_most_songs_have(tmp_path):
    for number, rate in enumerate((48_000, 48_000, 32_000)):
        write_song(tmp_path / f"train/{number}", rate=rate, channels=1)
    write_song(tmp_path / "test/a", rate=48_000)
    report = _faults(tmp_path, Layout(BOTH))
    assert report.count("sample rate 32000 Hz, expected 48000 Hz") == 5
    assert len(report.splitlines()) == 6


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "DOUBLE"])
def test_a_mixture_that_is_the_sum_has_no_warning_and_one_that_is_not_has_its_residual(
    tmp_path, subtype
):
    for split in ("train", "test"):
        parts = write_song(tmp_path / split / f"{split} song", subtype=subtype)
    assert check_root(tmp_path, Layout(BOTH))[1] == []
    # A mixture 1 % too loud: its residual is 0.01 / 1.01 of it, -40.1 dB.
    louder = 1.01 * parts[MIXTURE]
    soundfile.write(tmp_path / "test/test song/mixture.wav", louder, RATE, subtype=subtype)
    (warning,) = check_root(tmp_path, Layout(BOTH))[1]
    assert str(warning).startswith("test/test song/mixture.wav: not the sum of its stems: ")
    assert "-40.1 dB" in str(warning)


def test_samples_are_read_blockwise_and_digests_tell_them_apart(tmp_path, monkeypatch):
    for split in ("train", "test"):
        write_song(tmp_path / split / f"{split} song", samples=10_007)
    songs, _ = check_root(tmp_path, Layout(BOTH))
    monkeypatch.setattr(audio.samples, "BLOCK", 1000)
    again, _ = check_root(tmp_path, Layout(BOTH))
    assert [song.digests for song in songs] == [song.digests for song in again]
    assert songs[0].digests == songs[1].digests
    assert len(set(songs[0].digests.values())) == len(PARTS)
    path = tmp_path / "train/train song/bass.wav"
    path.write_bytes(path.read_bytes()[:-1] + b"!")  # the last bit of one sample
    changed, _ = check_root(tmp_path, Layout(BOTH))
    assert [part for part in PARTS if changed[0].digests[part] != songs[0].digests[part]] == [
        "bass"
    ]


def _wav(path, chunks, riff=b"RIFF"):
    body = b"".join(name + struct.pack("<I", size) + data for name, size, data in chunks)
    path.write_bytes(riff + struct.pack("<I", 4 + len(body)) + b"WAVE" + body)


@pytest.mark.parametrize(
    ("riff", "extra", "length", "fault"),
    [
        (b"RIFF", [], 400, None),
        (b"RIFF", [(b"LIST", 3, b"abc\0")], 400, None),  # padded to an even length
        (b"RIFF", [], 404, "truncated"),
        (b"RIFF", [], 0xFFFFFFFF, None),  # written into a pipe: nobody knows
        (b"RIFF", [], 0, None),  # by a recorder that crashed
        (b"RF64", [(b"ds64", 28, struct.pack("<QQQI", 0, 400, 100, 0))], 0xFFFFFFFF, None),
        (b"RF64", [(b"ds64", 28, struct.pack("<QQQI", 0, 500, 100, 0))], 0xFFFFFFFF, "truncated"),
        (b"RIFX", [], 400, "not a wav file"),
    ],
)
def test_the_header_is_held_against_the_file(tmp_path, riff, extra, length, fault):
    form = (b"fmt ", 16, struct.pack("<HHIIHH", 1, 2, RATE, 4 * RATE, 4, 16))
    _wav(tmp_path / "bass.wav", [*extra, form, (b"data", length, bytes(400))], riff)
    headers, faults = checks.read_headers(tmp_path, ["bass"])
    if fault:
        assert fault in faults[0][1]
    else:
        assert not faults
        assert headers["bass"].samples == 100


def test_a_silent_mixture_is_a_fault(tmp_path):
    for split in ("train", "test"):
        parts = write_song(tmp_path / split / split)
    soundfile.write(tmp_path / "test/test/mixture.wav", 0 * parts[MIXTURE], RATE)
    assert "test/test/mixture.wav: silent throughout" in _faults(tmp_path, Layout(BOTH))


def _flac(path, samples):
    soundfile.write(path, samples, RATE, subtype="PCM_16")
    return path


def test_names_and_formats_that_are_not_read_are_said(tmp_path):
    """Which file is there, which is expected, and what to do; each in one line."""
    songs = {}
    for number, name in enumerate(("two", "mp3", "cut", "long", "wrong", "good")):
        parts = write_song(tmp_path / "train" / name, samples=SAMPLES, seed=number)
        songs[name] = tmp_path / "train" / name
        (songs[name] / "bass.wav").unlink()
        _flac(songs[name] / "Bass.FLAC", parts["bass"])
    soundfile.write(songs["two"] / "bass.wav", parts["bass"], RATE)
    (songs["mp3"] / "Bass.FLAC").rename(songs["mp3"] / "bass.mp3")
    _cut(songs["cut"] / "Bass.FLAC", 3000)
    content = bytearray((songs["long"] / "Bass.FLAC").read_bytes())
    content[21] &= 0xF0  # STREAMINFO's number of samples, unknown where it is 0
    content[22:26] = bytes(4)
    (songs["long"] / "Bass.FLAC").write_bytes(content)
    (songs["wrong"] / "Bass.FLAC").write_bytes((songs["wrong"] / "other.wav").read_bytes())
    write_song(tmp_path / "test/song", samples=SAMPLES)
    (tmp_path / "train/mine").mkdir()
    for name in ("Mix.wav", "vocals.aiff", "a.txt", "b.txt"):
        (tmp_path / "train/mine" / name).write_bytes(b"")
    lines = _faults(tmp_path, Layout(BOTH)).splitlines()
    expected = (
        "train/cut/Bass.FLAC: ",
        "train/long/Bass.FLAC: its header lacks the length, as in streamed audio. Convert",
        "train/mine: a folder with none of mixture, drums, bass, other, vocals as .wav or .flac: "
        "it holds Mix.wav, a.txt, b.txt, vocals.aiff. Rename or convert its files",
        "train/mp3/bass.wav: no such file, but bass.mp3. Convert it to wav or flac.",
        "train/two/bass.wav: also there as Bass.FLAC. Remove all but one.",
        "train/wrong/Bass.FLAC: not a flac file (it begins with b'RIFF'). Convert it to flac.",
    )
    assert lines[0] == f"{tmp_path}: 6 fault(s)"
    for line, start in zip(lines[1:], expected, strict=True):
        assert line.startswith(f"  {start}")
    (tmp_path / "train").rename(tmp_path / "Train")
    assert "contains Train/. Rename it to train/." in _faults(tmp_path, Layout({"train": PARTS}))
