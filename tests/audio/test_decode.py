"""Songs that libsndfile does not read, or not in full: through ffmpeg, or one clear line."""

import errno
import io
import os
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import soundfile
from commands import noise
from programs import needs

from jukesep import audio
from jukesep.audio import decode
from jukesep.base.errors import UserError

RATE = 48_000
SAMPLES = 40_000


@pytest.fixture
def says(tmp_path, monkeypatch):
    """A function that installs a program ffmpeg: it prints a line and ends with a status."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "bin").mkdir()

    def install(line, status):
        program = tmp_path / "bin/ffmpeg"
        program.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{line}\nEND\nexit {status}\n")
        program.chmod(0o755)

    return install


@pytest.mark.parametrize(
    ("line", "status", "message"),
    [
        (
            "Stream map '0:a:0' matches no streams.\nTo ignore this, add a trailing '?' to it.",
            1,
            "a.mp4: not readable as audio: it has no sound. Pass another file.",
        ),
        (
            "av_interleaved_write_frame(): No space left on device\nConversion failed!",
            1,
            "the temporary folder is full. Set TMPDIR to another one.",
        ),
        (
            "[mov,mp4 @ 0x55e0fddc88c0] stream 0, offset 0x1305c: partial file",
            0,
            "a.mp4: ffmpeg cannot decode all of it ([mov,mp4] stream 0, offset 0x1305c: partial "
            "file). The file is truncated or damaged; copy it again.",
        ),
        (
            "[mov,mp4 @ 0x55e0fddc88c0] moov atom not found\na.mp4: Invalid data",
            1,
            "a.mp4: not readable as audio, even by ffmpeg ([mov,mp4] moov atom not found).",
        ),
    ],
)
def test_what_ffmpeg_says_becomes_one_line(tmp_path, says, line, status, message):
    says(line, status)
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(99))
    with pytest.raises(UserError) as caught, decode.readable(tmp_path / "a.mp4"):
        pass
    assert str(caught.value).endswith(message)
    if "temporary" in message:
        assert str(caught.value).startswith(f"{tempfile.gettempdir()}: ")


def test_a_damaged_cover_and_lost_chapters_are_no_fault_of_the_sound(tmp_path):
    ffmpeg = needs("ffmpeg")
    song, cover, path = (tmp_path / name for name in ("a.wav", "cover.png", "a.m4a"))
    soundfile.write(song, noise(SAMPLES), RATE)
    colour = ["-f", "lavfi", "-i", "color=red:s=64x64", "-frames:v", "1"]
    subprocess.run([ffmpeg, "-v", "error", *colour, cover], check=True)
    words = ["-map", "0", "-map", "1", "-c:a", "alac", "-c:v", "copy", "-disposition:v:0"]
    files = ["-i", song, "-i", cover]
    subprocess.run([ffmpeg, "-v", "error", *files, *words, "attached_pic", path], check=True)
    # A cover of another format than the file says, and without its content.
    path.write_bytes(path.read_bytes().replace(b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0JFIF"))
    with decode.readable(path) as found:
        np.testing.assert_array_equal(audio.read(found), audio.read(song))


@pytest.mark.parametrize(
    "line", ["[mov,mp4 @ 0x5] Referenced QT chapter track not found", "[png @ 0x5] Invalid PNG"]
)
def test_what_ffmpeg_says_of_covers_and_chapters(tmp_path, says, line):
    says(f"{line}\n    Last message repeated 1 times", 0)
    (tmp_path / "a.mp4").write_bytes(b"no audio")
    with decode.readable(tmp_path / "a.mp4"):
        pass


@pytest.mark.parametrize(
    "begin", [b"\0\0\0\x18ftypisom", b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81\1\x42"]
)
def test_joined_files_of_which_ffmpeg_reads_the_first(tmp_path, says, begin):
    says("", 0)
    (tmp_path / "a.mp4").write_bytes(2 * (begin + bytes(99)))
    with (
        pytest.raises(UserError, match="only the first would be read"),
        decode.readable(tmp_path / "a.mp4"),
    ):
        pass


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_standard_input_that_does_not_fit_into_the_temporary_folder(monkeypatch, number):
    def full(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(UserError) as caught, decode.spooled(io.BytesIO(b"x")):
        pass
    assert str(caught.value) == (
        f"{tempfile.gettempdir()}: the temporary folder is full. Set TMPDIR to another one."
    )


def test_standard_input_that_cannot_be_read(tmp_path):
    class Folder(io.BytesIO):
        def read(self, *_):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))

    with (
        pytest.raises(UserError, match=r"^standard input: cannot be read \(Is a directory\)"),
        decode.spooled(Folder()),
    ):
        pass


def test_standard_input_that_is_closed(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)  # what Python makes of it
    with (
        pytest.raises(UserError, match=r"^standard input: is closed\. Pass a file"),
        decode.spooled(),
    ):
        pass


def test_no_folder_for_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "missing")])
    with pytest.raises(UserError) as caught, decode.spooled(io.BytesIO(b"x")):
        pass
    assert str(caught.value) == (
        f"No usable temporary directory found in ['{tmp_path / 'missing'}']. Set TMPDIR to a "
        "folder with space."
    )


def test_a_temporary_folder_that_does_not_exist(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(UserError) as caught, decode.spooled(io.BytesIO(b"x")):
        pass
    assert str(caught.value).startswith(f"{tmp_path / 'missing'}: the temporary folder cannot be")


# --- with ffmpeg --------------------------------------------------------------------------------


def _joined(folder, kind, rates=(RATE, RATE), channels=(2, 2)):
    path = folder / f"a.{kind}"
    options = {"format": "OGG", "subtype": "OPUS"} if kind == "opus" else {}
    parts = []
    for rate, count in zip(rates, channels, strict=True):
        soundfile.write(path, noise(SAMPLES, count), rate, **options)
        parts.append(path.read_bytes())
    path.write_bytes(b"".join(parts))
    return path


@pytest.mark.parametrize(
    ("kind", "rate", "channels"),
    [
        *((kind, RATE, channels) for kind in ("mp3", "ogg", "opus") for channels in (1, 2)),
        *((kind, 24_000, 2) for kind in ("ogg", "opus")),
    ],
)
def test_joined_songs_are_read_in_full(tmp_path, kind, rate, channels):
    """In the rate and channels of the first."""
    needs("ffmpeg")
    path = _joined(tmp_path, kind, (RATE, rate), (2, channels))
    with decode.readable(path) as file:
        assert audio.info(file).sample_rate == RATE
        found = audio.read(file)
    assert found.shape[0] == 2
    assert 0 <= found.shape[1] - SAMPLES * (1 + RATE // rate) < 5000
    assert np.abs(found[:, -SAMPLES // 2 : -6000]).std() > 0.05


def test_an_mp3_file_that_changes_its_rate(tmp_path):
    """ffmpeg would take the lower one."""
    path = _joined(tmp_path, "mp3", (RATE, 24_000))
    with (
        pytest.raises(UserError, match="its sample rate changes from 48000 to 24000 Hz"),
        decode.readable(path),
    ):
        pass


def test_an_mp3_file_without_a_length_is_read_in_full(tmp_path):
    needs("ffmpeg")
    path = tmp_path / "a.mp3"
    sound = noise(SAMPLES)
    sound[SAMPLES // 2 :] *= 0
    soundfile.write(path, sound, RATE)
    content = path.read_bytes()
    path.write_bytes(content[content.index(content[:2], 4) :])
    with decode.readable(path) as file:
        assert SAMPLES <= audio.info(file).samples < SAMPLES + 5000


@pytest.mark.parametrize("suffix", ["m4a", "mka", "aac"])
def test_other_formats_that_are_cut(tmp_path, suffix):
    ffmpeg = needs("ffmpeg")
    soundfile.write(tmp_path / "a.wav", noise(2 * RATE), RATE)
    path = tmp_path / f"a.{suffix}"
    words = ["-c:a", "aac", *(["-movflags", "faststart"] if suffix == "m4a" else [])]
    subprocess.run([ffmpeg, "-v", "error", "-i", tmp_path / "a.wav", *words, path], check=True)
    with decode.readable(path) as file:
        assert audio.info(file).samples >= 2 * RATE
    os.truncate(path, path.stat().st_size * 6 // 10)
    with pytest.raises(UserError, match="ffmpeg cannot decode all of it"), decode.readable(path):
        pass


def test_a_video_without_sound(tmp_path):
    ffmpeg = needs("ffmpeg")
    path = tmp_path / "a.mp4"
    source = ["-f", "lavfi", "-i", "testsrc=d=0.1:s=32x32"]
    subprocess.run([ffmpeg, "-v", "error", *source, path], check=True)
    with pytest.raises(UserError, match="it has no sound"), decode.readable(path):
        pass
