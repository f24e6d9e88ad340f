"""The command line: results as promised, and mistakes that end in one line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from commands import run_jukesep
from folders import write_song

from jukesep.model.jukebox import save_encoder, save_jukebox
from jukesep.model.vqvae import VQVAE, Architecture
from jukesep.songs.manifest import STEMS

ROOT = Path(__file__).parents[1]
RATE = 8000  # of the models
TRAINED = ("drums", "vocals")


def _train(runs, stem, init="pretrained", sample_rate=RATE):
    """Random models where the pipeline would leave trained ones."""
    torch.manual_seed(STEMS.index(stem))
    vqvae = VQVAE(Architecture(width=4, depth=1, latent_dim=4, codes=8))
    vqvae.codebook.restore(torch.randn(8, 4), 1.0)
    hps = {"sample_rate": sample_rate}
    save_jukebox(vqvae, runs / f"stage1/{stem}_{init}/checkpoints/4.pt", 4, hps)
    for step in (3, 12):  # The latest step is not the latest name.
        encoder = VQVAE(vqvae.architecture).encoder
        save_encoder(encoder, runs / f"stage2/{stem}_{init}/checkpoints/{step}.pt", step, hps)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An entered folder with runs/ of two stems and song.wav."""
    for stem in TRAINED:
        _train(tmp_path / "runs", stem)
    _song(tmp_path / "song.wav")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/separator").symlink_to(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _song(path, rate=11025, channels=2, samples=5001, **options):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (samples, channels))
    soundfile.write(path, noise, rate, **options)


def _fails(capsys, *words):
    """The one line that `jukesep WORDS` ends in."""
    assert run_jukesep(*words) == 1
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert captured.out == ""
    last = captured.err.splitlines()[-1]
    assert last.startswith("error: ")
    return last


def _files(folder):
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "separated.json"
    )


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--help",), ["separate", "evaluate", "compose"]),
        ((), ["separate", "evaluate", "compose"]),
        (("separate", "--help"), ["SONG", "--output", "--models", "--init", "--overwrite"]),
        (("evaluate", "--help"), ["--stage1", "--stage2", "--stem", "--data", "--chunking"]),
        (("compose", "--help"), ["overrides", "--check"]),
    ],
)
def test_help_names_what_there_is(words, named, capsys):
    run_jukesep(*words)
    captured = capsys.readouterr()
    for name in named:
        assert name in captured.out + captured.err


# --- separate ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rate", "channels"),
    [
        ("song.wav", 44100, 2),
        ("song.wav", RATE, 1),
        ("song.flac", 11025, 2),
        ("song.mp3", 44100, 2),
        ("song.ogg", 16000, 1),
        ("a song. with dots.wav", 11025, 3),
    ],
)
def test_separate_keeps_rate_channels_and_length(project, capsys, name, rate, channels):
    _song(project / name, rate, channels)
    expected = soundfile.info(project / name)
    assert run_jukesep("separate", name, "-o", "stems") == 0
    folder = project / "stems" / Path(name).stem
    assert _files(project / "stems") == [f"{folder.name}/{stem}.wav" for stem in TRAINED]
    assert capsys.readouterr().out.split("\n")[:2] == [
        f"stems/{folder.name}/{stem}.wav" for stem in TRAINED
    ]
    for stem in TRAINED:
        found = soundfile.info(folder / f"{stem}.wav")
        assert (found.samplerate, found.channels, found.frames, found.subtype) == (
            rate,
            channels,
            expected.frames,
            "FLOAT",
        )
        assert np.isfinite(soundfile.read(folder / f"{stem}.wav")[0]).all()


def test_chunks_do_not_show(project):
    run_jukesep("separate", "song.wav", "-o", "whole")
    run_jukesep("separate", "song.wav", "-o", "chunked", "--chunk", "700")
    whole, chunked = (soundfile.read(f"{name}/song/drums.wav")[0] for name in ("whole", "chunked"))
    np.testing.assert_allclose(whole, chunked, atol=1e-5)


def test_init_chooses_the_models(project):
    _train(project / "runs", "bass", "scratch")
    assert run_jukesep("separate", "song.wav", "-o", "stems", "--init", "scratch") == 0
    assert _files(project / "stems") == ["song/bass.wav"]


def test_separate_replaces_only_when_told(project, capsys):
    target = project / "stems/song/vocals.wav"
    target.parent.mkdir(parents=True)
    target.write_text("mine")
    words = ("separate", "song.wav", "-o", "stems")
    assert run_jukesep(*words) == 1
    assert capsys.readouterr().err == (
        "error: song.wav: stems/song/vocals.wav: exists, and separated.json does not say what it "
        "was made from. Pass --overwrite to replace it, or choose another --output or --filename.\n"
    )
    assert _files(project / "stems") == ["song/vocals.wav"]
    assert target.read_text() == "mine"
    assert run_jukesep(*words, "--overwrite") == 0
    assert soundfile.info(target).frames == 5001
    before = target.stat()
    capsys.readouterr()
    assert run_jukesep(*words) == 0
    said = capsys.readouterr()
    assert said.err == "song.wav: already separated. Pass --overwrite to replace its stems.\n"
    assert said.out.splitlines() == [f"stems/song/{stem}.wav" for stem in TRAINED]
    assert target.stat() == before


def _text(path):
    path.write_text("no music here")


def _cut(path):
    _song(path, format="FLAC")
    path.write_bytes(path.read_bytes()[:200])


def _nan(path):
    soundfile.write(path, np.full((900, 1), np.nan), RATE, subtype="FLOAT", format="WAV")


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (Path.unlink, "no such file"),
        (lambda path: path.write_bytes(b""), "empty"),
        (_text, "not readable as audio"),
        (_cut, "song.wav"),
        (_nan, "NaN"),
        (lambda path: _song(path, samples=0), "no samples"),
        (lambda path: (path.unlink(), path.mkdir()), "no audio files"),
    ],
)
def test_a_song_that_cannot_be_read_leaves_nothing(project, capsys, spoil, named):
    spoil(project / "song.wav")
    message = _fails(capsys, "separate", "song.wav", "-o", "stems")
    assert message.startswith("error: song.wav: ")
    assert named in message
    assert not (project / "stems").exists()


def _damage(name):
    return lambda runs: (runs / name).write_bytes(b"PK not a checkpoint")


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (shutil.rmtree, "dvc repro"),
        (lambda runs: shutil.rmtree(runs / "stage1/drums_pretrained"), "dvc repro"),
        (_damage("stage1/drums_pretrained/checkpoints/4.pt"), "stage1/drums_pretrained"),
        (_damage("stage2/vocals_pretrained/checkpoints/12.pt"), "checkpoints/12.pt"),
        (lambda runs: _train(runs, "bass", sample_rate=16000), "sample rate"),
    ],
)
def test_models_that_are_missing_or_damaged_are_named(project, capsys, spoil, named):
    spoil(project / "runs")
    assert named in _fails(capsys, "separate", "song.wav", "-o", "stems")
    assert not (project / "stems").exists()


def test_a_device_that_is_not_there(project, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is CUDA")
    assert "cuda" in _fails(capsys, "separate", "song.wav", "-o", "stems", "--device", "cuda")


@pytest.mark.parametrize(
    "words",
    [
        ("separate", "song.wav"),
        ("separate", "song.wav", "-o", "stems", "--init", "random"),
        ("separate", "song.wav", "-o", "stems", "--chunk", "0"),
        ("mix",),
    ],
)
def test_wrong_usage_says_what_is_wrong(project, capsys, words):
    assert run_jukesep(*words) == 2
    assert "Usage:" in capsys.readouterr().err


def test_an_output_folder_that_is_a_file(project, capsys):
    (project / "stems").write_text("mine")
    message = _fails(capsys, "separate", "song.wav", "-o", "stems")
    assert "stems" in message
    assert (project / "stems").read_text() == "mine"


def test_the_entry_point_prints_one_line():
    """The installed command in a process of its own."""
    jukesep = Path(sys.executable).parent / "jukesep"
    ended = subprocess.run(
        [jukesep, "separate", "nowhere.wav", "-o", "stems"], capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "error: nowhere.wav: no such file.\n"


# --- compose ----------------------------------------------------------------------------------


@pytest.fixture
def conf(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "conf"


def test_compose_writes_what_check_accepts(conf, capsys):
    assert "jukesep compose" in _fails(capsys, "compose", "--check")
    assert run_jukesep("compose") == 0
    assert Path("params.yaml").read_text() == (ROOT / "params.yaml").read_text()
    assert run_jukesep("compose", "--check") == 0
    assert run_jukesep("compose", "scale=tiny", "stem=bass") == 0
    assert "stem: bass" in Path("params.yaml").read_text().splitlines()
    assert run_jukesep("compose", "--check", "scale=tiny", "stem=bass") == 0
    _fails(capsys, "compose", "--check")


@pytest.mark.parametrize("drifted", ["params.yaml", "conf/config.yaml"])
def test_check_fails_when_either_side_is_edited(conf, capsys, drifted):
    run_jukesep("compose")
    text = Path(drifted).read_text()
    assert "seed: 0" in text
    Path(drifted).write_text(text.replace("seed: 0", "seed: 7", 1))
    before = Path("params.yaml").read_text()
    assert "conf/" in _fails(capsys, "compose", "--check")
    assert Path("params.yaml").read_text() == before


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("stem=othr", "vocals"),
        ("stage1.stepz=3", "stage1.stepz"),
        ("stage1.steps=0", "stage1.steps"),
        ("stage1.steps", "stage1.steps"),
    ],
)
def test_compose_writes_nothing_for_a_setting_that_does_not_fit(conf, capsys, override, named):
    assert run_jukesep("compose", override) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert named in captured.err
    assert not Path("params.yaml").exists()


# --- a folder that nobody may write to --------------------------------------------------------


@pytest.fixture
def read_only(project, conf):
    """The project, with params.yaml, models and an interrupted training, made read-only."""
    assert run_jukesep("compose") == 0
    assert run_jukesep(*_import("models/mine")) == 0
    write_song(Path("songs/test/a"), rate=RATE)
    training = Path("trainings/stage1-vocals_scratch-0")
    training.mkdir(parents=True)
    (training / "lock").touch()
    (training / "identity.json").write_text("{}")
    (training / "progress.json").write_text(json.dumps({"title": "stage1 vocals scratch"}))
    if os.geteuid():
        folders = [project, *(path for path in project.rglob("*") if path.is_dir())]
        for folder in folders:
            folder.chmod(0o500)
        yield
        for folder in folders:
            folder.chmod(0o700)
        return
    mounts = (["mount", "--bind", project, project], ["mount", "-o", "remount,ro,bind", project])
    if any(subprocess.run(mount, capture_output=True).returncode for mount in mounts):
        pytest.skip("root may write everywhere, and mount nothing")
    os.chdir(project)  # what is mounted now
    yield
    subprocess.run(["umount", "-l", project], check=True)


def _import(output, *words):
    first, second = (
        f"runs/stage{n}/vocals_pretrained/checkpoints/{s}.pt" for n, s in ((1, 4), (2, 12))
    )
    return (
        "import",
        "--stage1",
        first,
        "--stage2",
        second,
        "--stem",
        "vocals",
        "-o",
        output,
        *words,
    )


def test_commands_that_only_read_work_in_a_read_only_project(read_only, capsys):
    for words, said in (
        (("status",), "stage1 vocals scratch  interrupted"),
        (("status", "--json"), '"condition": "interrupted"'),
        (("compose", "--check"), ""),
        (("info", "models/mine"), "1 models at 8,000 Hz"),
    ):
        assert run_jukesep(*words) == 0
        captured = capsys.readouterr()
        assert said in captured.out
        assert captured.err == ""


def test_commands_that_write_name_the_folder_that_is_read_only(read_only, capsys):
    capsys.readouterr()
    _, _, first, _, second, *_ = _import("x")
    pair = ("--stage1", first, "--stage2", second, "--stem", "vocals")
    for words, named in (
        (("compose",), str(Path.cwd())),
        (("clean", "--yes"), "trainings/stage1-vocals_scratch-0"),
        (_import("models/new"), "models/new"),
        (_import("models/mine", "--overwrite"), "models/mine"),
        (("evaluate", *pair, "--data", "songs", "--output", "scores/a.csv"), "scores/a.csv"),
    ):
        assert run_jukesep(*words) == 1
        said = capsys.readouterr().err
        (line,) = said.splitlines()
        assert line.startswith("error: ")
        assert named in line
        assert "Permission denied" in line or "Read-only file system" in line
        assert line.endswith("Change the permissions, or choose a folder that you may write to.")
        assert ".unfinished" not in line


def test_an_interruption_is_said(project, capsys, monkeypatch):
    """Typer itself ends in silence."""

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("jukesep.resume.status.trainings", interrupted)
    assert run_jukesep("status") == 130
    assert capsys.readouterr().err == "interrupted\n"
