"""What people will feed to `jukesep separate`: each ends in a correct result or in one clear line.

Never in a traceback, and never in a file that is half written.
"""

import os
import resource
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from commands import STEM, files_below, noise, run_jukesep, save_models, stems_below

from jukesep import load_separator

ROOT = Path(__file__).parents[2]
RATE = 8000
SAMPLES = 4000


def _wav(path, audio=None, rate=RATE, **options):
    soundfile.write(path, noise() if audio is None else audio, rate, **options)
    return path


def _bytes(path, content):
    path.write_bytes(content)
    return path


def _header(path, **changes):
    """A wav file of 16 bit whose header says something else."""
    data = (noise() * 32767).astype("<i2").tobytes()
    said = {"channels": 2, "rate": RATE, "bits": 16, "data": len(data), "riff": 36 + len(data)}
    said |= changes
    frame = said["channels"] * said["bits"] // 8
    head = struct.pack("<4sI4s", b"RIFF", said["riff"] & 0xFFFFFFFF, b"WAVE")
    head += struct.pack(
        "<4sIHHIIHH", b"fmt ", 16, 1, said["channels"], said["rate"],
        said["rate"] * frame & 0xFFFFFFFF, frame, said["bits"],
    )  # fmt: skip
    return _bytes(path, head + struct.pack("<4sI", b"data", said["data"]) + data)


def _cut_to(size, path):
    return _bytes(path, path.read_bytes()[:size])


def _truncated(path, tenths, **options):
    whole = _wav(path, noise(40_000), **options).read_bytes()
    return _bytes(path, whole[: len(whole) * tenths // 10])


def _link(path, target):
    path.symlink_to(target)
    return path


def _pipe(path):
    os.mkfifo(path)
    return path


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An entered folder with runs/ of one stem."""
    folder = tmp_path / "project"
    folder.mkdir()
    save_models(folder / "runs")
    monkeypatch.chdir(folder)
    return folder


def _check(capsys, song, words, message):
    """The command separates the song as it is read, or fails and leaves nothing."""
    before = set(files_below("."))
    status = run_jukesep("separate", "--models", "runs", "-o", "stems", *words)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    new = [path for path in stems_below(".") if path not in before]
    if message is None:
        assert status == 0, said
        expected = soundfile.info(song)
        (path,) = new
        assert path.suffix == ".wav"
        assert path.resolve().is_relative_to(Path("stems").resolve())
        audio, rate = soundfile.read(path, always_2d=True)
        assert (rate, audio.shape) == (expected.samplerate, (expected.frames, expected.channels))
        separator = load_separator("runs", refinement="none")
        mixture, _ = soundfile.read(song, dtype="float32", always_2d=True)
        np.testing.assert_allclose(audio.T, separator(mixture.T, rate)["vocals"], atol=1e-5)
    else:
        assert status not in (0, None)
        assert new == []
        errors = [line for line in said.splitlines() if message in line]
        assert errors, said


WORKS = {
    "8 kHz": lambda f: _wav(f / "a.wav", rate=8000),
    "192 kHz": lambda f: _wav(f / "a.wav", rate=192_000),
    "an odd rate": lambda f: _wav(f / "a.wav", rate=8820),
    "1 Hz": lambda f: _wav(f / "a.wav", noise(40), rate=1),
    "32 channels": lambda f: _wav(f / "a.wav", noise(500, 32)),
    "8 bit": lambda f: _wav(f / "a.wav", subtype="PCM_U8"),
    "24 bit": lambda f: _wav(f / "a.wav", subtype="PCM_24"),
    "double": lambda f: _wav(f / "a.wav", subtype="DOUBLE"),
    "mu-law": lambda f: _wav(f / "a.wav", subtype="ULAW"),
    "float above 1": lambda f: _wav(f / "a.wav", 8 * noise(), subtype="FLOAT"),
    "huge float": lambda f: _wav(f / "a.wav", 1e30 * noise(), subtype="FLOAT"),
    "DC": lambda f: _wav(f / "a.wav", np.full((SAMPLES, 2), 0.5)),
    "silence": lambda f: _wav(f / "a.wav", np.zeros((SAMPLES, 2))),
    "one sample": lambda f: _wav(f / "a.wav", noise(1)),
    "two samples": lambda f: _wav(f / "a.wav", noise(2, 1)),
    "a hop and one": lambda f: _wav(f / "a.wav", noise(9)),
    "big-endian": lambda f: _wav(f / "a.aiff"),
    "a suffix of another format": lambda f: _wav(f / "a.mp3", format="WAV"),
    "no suffix": lambda f: _wav(f / "a", format="WAV"),
    "spaces": lambda f: _wav(f / " a  song .wav"),
    "unicode": lambda f: _wav(f / "Пе́сня 歌 🎵.wav"),
    "decomposed unicode": lambda f: _wav(f / "e\u0301\u0301.wav"),
    "a newline in the name": lambda f: _wav(f / "a\nb.wav"),
    "percent and braces": lambda f: _wav(f / "%s {stem} {0}.wav"),
    "a very long name": lambda f: _wav(f / ("a" * 251 + ".wav")),
    "a hidden file": lambda f: _wav(f / ".wav", format="WAV"),
    "dots": lambda f: _wav(f / "...wav", format="WAV"),
    "a link": lambda f: _link(f / "a.wav", _wav(f / "there.wav")),
    "the folder above": lambda f: f / ".." / _wav(f.parent / "outside.wav").name,
    "5 bit": lambda f: _header(f / "a.wav", bits=5),
    "a header that says all there can be": lambda f: _header(f / "a.wav", data=2**32 - 1, riff=-1),
}  # fmt: skip

FAILS = {
    "missing": (lambda f: f / "a.wav", "no such file"),
    "empty": (lambda f: _bytes(f / "a.wav", b""), "is empty"),
    "text": (lambda f: _bytes(f / "a.wav", b"not audio\n" * 99), "not readable as audio"),
    "zeros": (lambda f: _bytes(f / "a.flac", bytes(9999)), "not readable as audio"),
    "a picture": (lambda f: _bytes(f / "a.ogg", b"\x89PNG\r\n\x1a\n" + bytes(999)), "not readable"),
    "only a header": (lambda f: _cut_to(44, _header(f / "a.wav", data=0)), "no samples"),
    "no samples": (lambda f: _wav(f / "a.wav", noise(0)), "no samples"),
    "half a header": (lambda f: _cut_to(30, _header(f / "a.wav")), "a.wav"),
    "no channels": (lambda f: _header(f / "a.wav", channels=0), "not readable as audio"),
    "a rate of nothing": (lambda f: _header(f / "a.wav", rate=0), "a.wav"),
    "NaN": (lambda f: _wav(f / "a.wav", np.full((SAMPLES, 2), np.nan), subtype="FLOAT"), "NaN"),
    "one infinity at the end": (
        lambda f: _wav(f / "a.wav", np.append(noise(channels=1), [[-np.inf]], 0), subtype="FLOAT"),
        "infinite",
    ),
    "a link to nothing": (lambda f: _link(f / "a.wav", f / "b.wav"), "no such file"),
    "links in a ring": (
        lambda f: _link(_link(f / "a.wav", f / "b.wav").with_name("b.wav"), f / "a.wav"), ".wav"
    ),
    "a header that says more": (
        lambda f: _header(f / "a.wav", data=64_000, riff=64_036),
        "a.wav: ends at sample 4000, expected 16000. The file is truncated",
    ),
    "a header that says less": (lambda f: _header(f / "a.wav", data=8000), "8000 bytes follow"),
    **{
        f"wav, {tenths} tenths of it": (
            lambda f, tenths=tenths: _truncated(f / "a.wav", tenths), "expected 40000. The file is"
        )
        for tenths in range(1, 10)
    },
    "a pipe": (lambda f: _pipe(f / "a.wav"), "a.wav"),
    "a device": (lambda f: Path("/dev/null"), "/dev/null"),
    **{
        f"flac, {tenths} tenths of it": (
            lambda f, tenths=tenths: _truncated(f / "a.flac", tenths), "a.flac"
        )
        for tenths in range(1, 10)
    },
}  # fmt: skip


@pytest.mark.parametrize("name", WORKS)
def test_it_is_separated(project, capsys, name):
    song = WORKS[name](project)
    _check(capsys, song, ["--", str(song)], None)


@pytest.mark.parametrize("name", FAILS)
def test_it_is_refused_by_name(project, capsys, name):
    make, message = FAILS[name]
    _check(capsys, None, ["--", str(make(project))], message)


def test_a_name_that_begins_with_a_dash(project, capsys):
    _wav(project / "-o.wav")
    _check(capsys, "-o.wav", ["--", "-o.wav"], None)


@pytest.mark.parametrize("tenths", [1, 5, 9])
@pytest.mark.parametrize("suffix", ["mp3", "ogg"])
def test_a_compressed_song_that_is_cut(project, capsys, suffix, tenths):
    song = _truncated(project / f"a.{suffix}", tenths)
    _check(capsys, None, [song.name], song.name)


def test_a_recording_without_a_length(project, capsys):
    """A recorder that crashed leaves a length of 0: the samples go up to the end."""
    song = _header(project / "a.wav", data=0, riff=0)
    assert run_jukesep("separate", "--models", "runs", "-o", "stems", song.name) == 0
    assert soundfile.info(f"stems/a/{STEM}.wav").frames == SAMPLES
    assert "Traceback" not in capsys.readouterr().err


def _tampered(folder):
    """A checkpoint whose reading would run a command."""

    class Command:
        def __reduce__(self):
            return os.system, (f"touch {folder / 'ran'}",)

    torch.save({"model": Command()}, save_models(folder / "runs")[0])


def _not_a_number(folder):
    path = save_models(folder / "runs")[0]
    saved = torch.load(path, weights_only=True)
    next(iter(saved["model"].values())).fill_(float("nan"))
    torch.save(saved, path)


def _cut(folder, index):
    path = save_models(folder / "runs")[index]
    path.write_bytes(path.read_bytes()[:2000])


MODELS = {
    "none": lambda f: (f / "runs").rename(f / "elsewhere"),
    "another init": lambda f: (f / "runs/stage2").rename(f / "runs/stage3"),
    "stage 1 missing": lambda f: save_models(f / "runs")[0].unlink(),
    "stage 2 missing": lambda f: save_models(f / "runs")[1].unlink(),
    "stage 1 cut": lambda f: _cut(f, 0),
    "stage 2 cut": lambda f: _cut(f, 1),
    "another width": lambda f: save_models(f / "runs", width=8),
    "another hop": lambda f: save_models(f / "runs", downs=(2,)),
    "other latents": lambda f: save_models(f / "runs", latent_dim=8),
    "tampered": _tampered,
    "weights that are no numbers": _not_a_number,
}


@pytest.mark.parametrize("name", MODELS)
def test_models_that_do_not_fit(project, capsys, name):
    MODELS[name](project)
    song = _wav(project / "a.wav")
    before = set(files_below("."))
    assert run_jukesep("separate", "--models", "runs", "-o", "stems", song.name) not in (0, None)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "runs" in said.splitlines()[-1]
    assert set(files_below(".")) == before


@pytest.mark.parametrize(
    ("output", "named"),
    [("a.wav", "a.wav: is not"), ("a.wav/below", "a.wav: is not"), ("/proc/stems", "/proc/stems")],
)
def test_an_output_that_cannot_be_written(project, capsys, output, named):
    song = _wav(project / "a.wav")
    before = files_below(".")
    assert run_jukesep("separate", "--models", "runs", "-o", output, song.name) not in (0, None)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert named in said
    assert files_below(".") == before


def test_a_disk_that_is_full(project):
    """Stood in for by a limit on the size of a file, which fails a write in the same way."""
    _wav(project / "a.wav", noise(40_000))
    code = "from jukesep.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "separate", "--models", "runs", "-o", "stems", "a.wav"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "stems" in done.stderr.splitlines()[-1]
    assert files_below("stems") == []


def test_a_song_that_fails_leaves_the_others_their_stems(project, capsys):
    _wav(project / "a.wav")
    _bytes(project / "b.wav", b"text")
    _wav(project / "c.wav")
    words = ("separate", "--models", "runs", "-o", "stems", "a.wav", "b.wav", "c.wav")
    assert run_jukesep(*words) not in (0, None)
    assert "b.wav" in capsys.readouterr().err
    assert [path.as_posix() for path in stems_below("stems")] == [
        f"stems/{song}/{STEM}.wav" for song in ("a", "c")
    ]
