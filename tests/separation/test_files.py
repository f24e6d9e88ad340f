"""`jukesep separate` as people use it: what is read, what is written, and where."""

import errno
import functools
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from commands import ARCHITECTURE, files_below, noise, run_jukesep, save_models, stems_below
from programs import needs

from jukesep.audio import decode
from jukesep.audio.encode import FORMATS, writing
from jukesep.base.errors import REMEDIES, UserError
from jukesep.base.files import temporary
from jukesep.kernels import devices
from jukesep.model.checkpoints import load_model
from jukesep.model.vqvae import VQVAE
from jukesep.separation import files, names
from jukesep.separation.chunked import apply
from jukesep.separation.origins import Origins, Recipe
from jukesep.separation.refine import Wiener
from jukesep.separation.separator import Separator
from jukesep.songs.manifest import STEMS

ROOT = Path(__file__).parents[2]
RATE = 8000  # of the models
RECIPE = Recipe(dict.fromkeys(STEMS, "made in the test"), "none")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Models of all stems."""
    folder = tmp_path_factory.mktemp("models")
    for stem in STEMS:
        save_models(folder, stem=stem)
    return folder


@pytest.fixture
def project(models, tmp_path, monkeypatch):
    """An entered folder with models of all stems in runs/, and song.wav, stereo at 11,025 Hz."""
    shutil.copytree(models, tmp_path / "runs")
    soundfile.write(tmp_path / "song.wav", noise(5001), 11025)
    (tmp_path / "models").mkdir()
    (tmp_path / "models/separator").symlink_to(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _names(folder="stems"):
    return [path.relative_to(folder).as_posix() for path in stems_below(folder)]


def _read(path):
    return soundfile.read(path, always_2d=True)[0]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("clip", ["rescale", "clamp", "none"])
def test_every_format_has_the_rate_channels_and_length_of_the_song(project, form, clip):
    assert run_jukesep("separate", "song.wav", "-o", "stems", "--format", form, "--clip", clip) == 0
    suffix = FORMATS[form].suffix
    assert _names() == [f"song/{stem}.{suffix}" for stem in sorted(STEMS)]
    for path in stems_below("stems"):
        found = soundfile.info(path)
        assert (found.samplerate, found.channels, found.frames) == (11025, 2, 5001)
        assert found.subtype == FORMATS[form].subtype


def test_the_stems_sum_to_the_mixture_below_the_models_rate(project):
    """Refined by default; what resampling takes from the song is in none of them."""
    soundfile.write("slow.wav", noise(6000), RATE, subtype="FLOAT")
    assert run_jukesep("separate", "slow.wav", "-o", "stems") == 0
    total = sum(_read(path) for path in stems_below("stems"))
    np.testing.assert_allclose(total, _read("slow.wav"), atol=1e-4)
    assert run_jukesep("separate", "slow.wav", "-o", "plain", "--refine", "none") == 0
    assert np.abs(sum(_read(path) for path in stems_below("plain")) - total).max() > 0.01


def test_loud_stems_are_lowered_together_or_cut_off(project):
    soundfile.write("loud.wav", 20 * noise(), RATE, subtype="FLOAT")
    for clip in ("rescale", "clamp"):
        words = ("loud.wav", "-o", clip, "--format", "wav24", "--clip", clip)
        assert run_jukesep("separate", *words) == 0
    assert run_jukesep("separate", "loud.wav", "-o", "float") == 0
    for path in stems_below("float"):
        whole, name = _read(path), path.relative_to("float")
        np.testing.assert_allclose(_read("clamp" / name), np.clip(whole, -1, 1), atol=1e-6)
    peaks = {p.name: np.abs(_read(p)).max() for p in stems_below("float")}
    gain = (1 - 2**-15) / max(peaks.values())
    assert gain < 0.5
    for path in stems_below("float"):
        scaled = _read(Path("rescale") / path.relative_to("float"))
        np.testing.assert_allclose(scaled, gain * _read(path), atol=1e-6)


def test_a_missing_stem_has_the_gain_of_the_others(project):
    """The loudest stem decides it, whichever are there."""
    torch.manual_seed(1)
    loaded = Separator({"drums": _louder(1), "bass": _louder(30)}, RATE)
    soundfile.write("loud.wav", 20 * noise(), RATE, subtype="FLOAT")
    stems = ("drums", "bass")

    def separate(output):
        options = names.Options(Path(output), form=FORMATS["wav24"])
        jobs = names.plan({"loud.wav": "loud"}, stems, options)
        files.separate(lambda: loaded, jobs, options, RECIPE, lambda _: None)
        return [_read(f"{output}/loud/{name}.wav") for name in stems]

    whole = separate("a")
    assert np.abs(whole[0]).max() < 0.5 * np.abs(whole[1]).max()
    Path("a/loud/drums.wav").unlink()
    np.testing.assert_array_equal(separate("a"), whole)


def _louder(gain):
    vqvae = VQVAE(ARCHITECTURE)
    vqvae.codebook.restore(torch.randn(8, 4), 1.0)
    for parameter in list(vqvae.decoder.parameters())[-2:]:
        parameter.data *= gain
    return vqvae


@pytest.mark.parametrize("form", ["flac", "wav16"])
def test_stems_beside_each_other_keep_apart_under_long_names(tmp_path, form):
    """Rescaling keeps each in a temporary file of its own."""
    targets = {name: tmp_path / f"{'é' * 110}-{name}.{form[:4]}" for name in "ab"}
    with writing(targets, FORMATS[form], "rescale", RATE, 1, 100) as put:
        put({"a": np.full((1, 100), 0.25, np.float32), "b": np.full((1, 100), -0.5, np.float32)})
    assert [_read(path)[0, 0] for path in targets.values()] == [0.25, -0.5]
    assert files_below(tmp_path) == sorted(targets.values())


@pytest.mark.parametrize("form", ["ogg", "flac", "wav16"])
def test_pieces_of_minutes_can_be_written_at_once(project, form):
    """In a process of its own: libsndfile crashes on a few million samples of ogg."""
    code = f"""
from pathlib import Path
import numpy as np
from jukesep.audio.encode import FORMATS, writing
target = {{"a": Path("a.{form[:4]}")}}
with writing(target, FORMATS["{form}"], "none", 44100, 2, 3_000_000) as put:
    put({{"a": np.zeros((2, 3_000_000), np.float32)}})
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
    assert soundfile.info(f"a.{form[:4]}").frames == 3_000_000


@pytest.mark.parametrize("form", ["wav24", "wav16"])
def test_a_wav_beyond_4_gib_has_64_bit_lengths(tmp_path, monkeypatch, form):
    monkeypatch.setattr("jukesep.audio.samples.RIFF_LIMIT", 5000)
    for samples, kind in ((500, "WAV"), (5000, "RF64")):
        path = tmp_path / f"{samples}.wav"
        with writing({"a": path}, FORMATS[form], "none", RATE, 2, samples) as put:
            put({"a": np.full((2, samples), 0.5, np.float32)})
        found = soundfile.info(path)
        assert (found.format, found.frames) == (kind, samples)
        assert (_read(path) == 0.5).all()


@pytest.mark.parametrize(
    ("form", "channels", "rate", "message"),
    [
        ("ogg", 1, 200_001, "ogg has no sample rate of 200001 Hz"),
        ("mp3", 1, 7000, "mp3 has no sample rate of 7000 Hz"),
        ("mp3", 3, 8000, "mp3 holds two channels, the song has 3"),
        ("flac", 9, 8000, "flac holds 8 channels"),
        ("wav", 2, 2**31 - 1, "wav cannot hold 2 channels of 2147483647 Hz"),
    ],
)
def test_what_a_format_does_not_hold_is_refused_first(tmp_path, form, channels, rate, message):
    target = tmp_path / "below" / f"a.{form}"
    with (
        pytest.raises(UserError, match=message),
        writing({"a": target}, FORMATS[form], "clamp", rate, channels, 9),
    ):
        pass
    assert files_below(tmp_path) == []


def test_some_stems_and_what_is_left_of_the_mixture(project):
    assert run_jukesep("separate", "song.wav", "-o", "a", "--stems", "vocals", "--residual") == 0
    assert _names("a") == ["song/no_vocals.wav", "song/vocals.wav"]
    total = _read("a/song/vocals.wav") + _read("a/song/no_vocals.wav")
    np.testing.assert_allclose(total, _read("song.wav"), atol=1e-6)
    words = ("song.wav", "-o", "b", "--stems", "drums, bass", "--residual", "--refine", "none")
    assert run_jukesep("separate", *words) == 0
    assert _names("b") == ["song/bass.wav", "song/drums.wav", "song/residual.wav"]
    total = sum(_read(path) for path in stems_below("b"))
    np.testing.assert_allclose(total, _read("song.wav"), atol=1e-6)


@pytest.mark.parametrize("refine", ["none", "wiener"])
def test_each_file_is_the_stem_of_its_own_model(project, refine):
    """The models of the stems differ, so that swapped files would show."""
    soundfile.write("slow.wav", noise(6000), RATE, subtype="FLOAT")
    assert run_jukesep("separate", "slow.wav", "-o", "stems", "--refine", refine) == 0
    song = torch.from_numpy(_read("slow.wav").T).float()
    with torch.inference_mode():
        expected = {stem: apply(_model(stem), song) for stem in STEMS}
    if refine == "wiener":
        expected = Wiener(RATE)(song, expected)
    for stem in STEMS:
        found = _read(f"stems/slow/{stem}.wav").T
        np.testing.assert_allclose(found, expected[stem].numpy(), atol=1e-5)
        for other in set(STEMS) - {stem}:
            assert np.abs(found - expected[other].numpy()).max() > 1e-2


def _model(stem):
    folders = (Path("runs") / stage / f"{stem}_pretrained" for stage in ("stage1", "stage2"))
    return load_model(*(folder / "checkpoints/4.pt" for folder in folders))


@pytest.mark.parametrize(
    ("shifts", "delays"), [(2, [0, 5]), (3, [0, 5, 2]), (4, [0, 5, 2, 7]), (8, range(8))]
)
def test_shifts_are_the_mean_of_separations_of_delayed_songs(project, shifts, delays):
    """The models' hop is 8 samples."""
    words = ("--stems", "bass", "--refine", "none")
    for delay in delays:
        late = np.pad(noise(3000), ((delay, 0), (0, 0)))
        soundfile.write(f"{delay}.wav", late, RATE, subtype="FLOAT")
    songs = [f"{delay}.wav" for delay in delays]
    assert run_jukesep("separate", *songs, "-o", "each", *words) == 0
    each = [_read(f"each/{delay}/bass.wav")[delay:] for delay in delays]
    assert run_jukesep("separate", "0.wav", "-o", "mean", *words, "--shifts", str(shifts)) == 0
    found = _read("mean/0/bass.wav")
    np.testing.assert_allclose(found, np.mean(each, axis=0), atol=1e-5)
    for one in each:
        assert np.abs(found - one).max() > 1e-3


@pytest.mark.parametrize("shifts", ["9", "32"])
def test_more_shifts_than_a_hop_has_samples_are_refused(project, capsys, shifts):
    assert run_jukesep("separate", "song.wav", "-o", "stems", "--shifts", shifts) == 1
    assert f"error: {shifts} shifts: choose 1 to 8." in capsys.readouterr().err.splitlines()[-1]
    assert not Path("stems").exists()


def test_only_the_models_that_are_needed_are_loaded(project, capsys):
    """Others may be missing or damaged: without a refinement, and where it is not possible."""
    vocals = ("song.wav", "--stems", "vocals", "-o")
    assert run_jukesep("separate", *vocals, "whole", "--refine", "none") == 0
    Path("runs/stage2/bass_pretrained/checkpoints/4.pt").write_bytes(b"damaged")
    Path("runs/stage1/drums_pretrained/checkpoints/4.pt").unlink()
    assert run_jukesep("separate", *vocals, "some", "--refine", "none") == 0
    np.testing.assert_array_equal(_read("some/song/vocals.wav"), _read("whole/song/vocals.wav"))
    capsys.readouterr()
    assert run_jukesep("separate", *vocals, "refined") == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "stage1/drums_pretrained/checkpoints: no checkpoints found" in said
    assert said.endswith(
        "The refinement 'wiener' needs the model of drums: choose `--refine none` to separate "
        "without it."
    )
    assert run_jukesep("separate", "song.wav", "-o", "all", "--refine", "none") == 1
    assert "--refine none" not in capsys.readouterr().err
    shutil.rmtree("runs/stage2/other_pretrained")
    assert run_jukesep("separate", *vocals, "three") == 0
    np.testing.assert_array_equal(_read("three/song/vocals.wav"), _read("whole/song/vocals.wav"))


def test_chunks_do_not_show_in_what_is_left(project):
    for output, chunk in (("a", "500"), ("b", "100000")):
        words = ("song.wav", "-o", output, "--stems", "bass", "--residual", "--chunk", chunk)
        assert run_jukesep("separate", *words) == 0
    for name in ("bass", "no_bass"):
        one, two = (_read(f"{output}/song/{name}.wav") for output in "ab")
        np.testing.assert_allclose(one, two, atol=1e-5)


def test_a_folder_is_its_songs_and_those_below_it(project):
    for name in ("in/b.flac", "in/below/a.WAV", "in/.hidden.wav"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(name, noise(200), RATE, format="FLAC" if "flac" in name else "WAV")
    Path("in/notes.txt").write_text("no music")
    Path("in/loop").symlink_to(Path("in").resolve())
    assert run_jukesep("separate", "in", "song.wav", "-o", "stems", "--stems", "drums") == 0
    assert _names() == ["b/drums.wav", "below/a/drums.wav", "song/drums.wav"]


def test_a_stream_is_read_whole_and_not_left_behind(project):
    with decode.spooled(io.BytesIO(Path("song.wav").read_bytes())) as path:
        assert path.read_bytes() == Path("song.wav").read_bytes()
    assert not path.exists()
    with pytest.raises(UserError, match="standard input: is empty"), decode.spooled(io.BytesIO()):
        pass


def test_standard_input_of_the_command(project):
    command = [sys.executable, "-c", "from jukesep.cli import main; main()"]
    words = ["separate", "-", "-o", "stems", "--stems", "bass"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    given = Path("song.wav").read_bytes()
    subprocess.run([*command, *words], input=given, env=env, check=True, capture_output=True)
    assert _names() == ["stdin/bass.wav"]
    words[3] = "others"
    ended = subprocess.run(
        [*command, *words], input=b"text", env=env, capture_output=True, text=False
    )
    assert ended.returncode == 1
    assert ended.stderr.decode().splitlines()[-1].startswith("error: standard input: not readable")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--filename", "../{stem}.{ext}"), "outside stems"),
        (("--filename", "/{stem}.{ext}"), "outside stems"),
        (("--filename", "{track}.{ext}"), "needs {stem} to tell stems apart"),
        (("--filename", "{artist}/{stem}"), "{artist} is not one of {track}, {stem}, {ext}"),
        (("--filename", "{stem"), "may only contain {track}, {stem}, {ext} ("),
        (("--filename", "{stem.x}"), "{stem.x} is not one of"),
        (("--filename", "{}"), "{} is not one of"),
        (("--filename", "{track:{x}}/{stem}"), "may only contain {track}, {stem}, {ext} ("),
        (("--filename", "{track:{}}/{stem}"), "may only contain {track}, {stem}, {ext} ("),
        (("--stems", "piano"), "'piano' is not one of drums, bass, other, vocals"),
        (("--stems", ""), "'' is not one of"),
        (("--models", "nowhere"), "nowhere"),
        (("",), "the name of a song is empty"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(project, capsys, words, message):
    assert run_jukesep("separate", "song.wav", "-o", "stems", *words) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not Path("stems").exists()


def test_the_folder_of_songs_is_not_that_of_stems(project, capsys):
    Path("in").mkdir()
    shutil.copy("song.wav", "in/song.wav")
    for _ in range(2):
        assert run_jukesep("separate", "in", "-o", "in/stems", "--stems", "bass") == 0
        assert _names("in") == ["song.wav", "stems/song/bass.wav"]
    assert run_jukesep("separate", "in", "-o", "in/../in") == 1
    assert "in: is also the output folder" in capsys.readouterr().err
    assert run_jukesep("separate", "in/stems", "-o", "again", "--stems", "bass") == 0
    assert _names("again") == ["song/bass/bass.wav"]


def test_a_folder_in_the_place_of_a_stem(project, capsys):
    Path("stems/song/bass.wav").mkdir(parents=True)
    assert run_jukesep("separate", "song.wav", "-o", "stems") == 1
    assert "bass.wav: is a folder. Change --filename" in capsys.readouterr().err
    assert _names() == []


@pytest.mark.parametrize(
    ("songs", "tracks"),
    [
        (("song.wav", "other.wav"), ("song", "other")),
        (("song.flac", "song.mp3", "b.wav"), ("song.flac", "song.mp3", "b")),
        (("SONG.WAV", "Song.wav"), ("SONG", "Song (2)")),
        (("SONG.MP3", "song.flac", "song.mp3"), ("SONG.MP3", "song.flac", "song.mp3 (2)")),
        (("a/song.wav", "b/song.wav", "c/song.wav"), ("song", "song (2)", "song (3)")),
        (("e\u0301.wav", "\u00e9.flac"), ("e\u0301.wav", "\u00e9.flac")),
        (("a/x.wav", "x.wav", "x (2).wav"), ("x", "x (3)", "x (2)")),
        (("x.wav", "x.flac", "x.wav.mp3"), ("x.wav (2)", "x.flac", "x.wav")),
        (("-", "stdin.wav"), ("stdin", "stdin.wav")),
        (("./a/x.wav", "a/x.wav", "a/../a/x.wav"), ("x",)),
        (("é" * 125 + "a.wav", "é" * 125 + "a.flac"), ("é" * 125 + "a.wav", "é" * 125 + ".flac")),
    ],
)
def test_each_song_has_a_track_name_of_its_own(tmp_path, monkeypatch, songs, tracks):
    monkeypatch.chdir(tmp_path)
    for song in songs:
        if song != "-" and len(os.fsencode(song)) < 256:
            Path(song).parent.mkdir(exist_ok=True)
            Path(song).touch()
    found = names.find(songs, Path("stems"))
    assert tuple(found.values()) == tracks
    jobs = names.plan(found, STEMS, names.Options(Path("stems")))
    assert [next(iter(job.targets.values())).parent.name for job in jobs] == list(tracks)


def test_a_folder_with_two_songs_of_one_name_is_separated(project):
    Path("in/below").mkdir(parents=True)
    for name in ("in/song.wav", "in/song.flac", "in/below/song.wav"):
        soundfile.write(name, noise(100), RATE)
    assert run_jukesep("separate", "in", "-o", "stems", "--stems", "bass") == 0
    assert _names() == ["below/song/bass.wav", "song.flac/bass.wav", "song.wav/bass.wav"]


def test_linked_folders_are_followed_once_and_hidden_ones_are_not(tmp_path):
    folder, other = tmp_path / "in", tmp_path / "other"
    for name in ("a/1.wav", ".Trash-1000/files/2.wav", "a/.hidden.wav", "z/3.wav"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (other / "disc/deeper").mkdir(parents=True)
    (other / "disc/4.wav").touch()
    (other / "disc/deeper/5.wav").touch()
    (folder / "album").symlink_to(other / "disc")
    (folder / "album again").symlink_to(other / "disc/deeper")
    (folder / "b").symlink_to(folder / "z")  # a folder with a name of its own
    (folder / "a/up").symlink_to(tmp_path)  # a circle
    (other / "disc/back").symlink_to(folder)
    (folder / "missing.wav").symlink_to(tmp_path / "nowhere")  # fails alone, by name
    found = names.find([str(folder)], tmp_path / "stems")
    assert sorted(found.values()) == ["a/1", "album/4", "album/deeper/5", "missing", "z/3"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "in/closed").mkdir(parents=True)
    real = Path.iterdir

    def iterdir(path):
        if path.name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(UserError, match=r"closed: cannot be read \(Permission denied\)"):
        names.find([str(tmp_path / "in")], tmp_path / "stems")


# --- what stems were made from ----------------------------------------------------------------


def _said(capsys, *words):
    """The last line of an error; the command fails and changes no stem."""
    before = {path: path.read_bytes() for path in files_below(".")}
    capsys.readouterr()
    assert run_jukesep("separate", *words) == 1
    assert {path: path.read_bytes() for path in files_below(".")} == before
    said = capsys.readouterr()
    assert said.out == ""
    return said.err.splitlines()[-1]


def _first(*words):
    assert run_jukesep("separate", "song.wav", "-o", "stems", "--stems", "bass", *words) == 0


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        (("--refine", "none"), (), "was made with --refine none"),
        ((), ("--shifts", "2"), "was made with --shifts 1"),
        (("--chunk", "4000"), (), "was made with --chunk 4000"),
        (("--precision", "bf16"), (), "was made with --precision bf16"),
        (("--format", "wav24"), (), "was made with --format wav24"),
        (
            ("--format", "wav16", "--clip", "clamp"),
            ("--format", "wav16"),
            "was made with --clip clamp",
        ),
        ((), ("--models", "others"), "was made with other models"),
        (("--clip", "none"), (), ""),  # floats are never clipped
        ((), ("--threads", "1"), ""),
        ((), ("--device", "cpu"), ""),
    ],
)
def test_stems_of_other_options_are_not_taken_for_these(project, capsys, before, now, message):
    shutil.copytree("runs", "others")
    encoder = next(Path("others/stage2").glob("drums*/checkpoints/*"))
    state = torch.load(encoder)
    first = next(value for value in state["model"].values() if value.ndim > 1)
    first += 1
    torch.save(state, encoder)
    _first(*before)
    words = ("song.wav", "-o", "stems", "--stems", "bass", *now)
    if message:
        assert f" stems/song/bass.wav: {message}. Pass --overwrite" in _said(capsys, *words)
        assert run_jukesep("separate", *words, "--overwrite") == 0
        capsys.readouterr()
    assert run_jukesep("separate", *words) == 0
    assert "already separated" in capsys.readouterr().err


def test_a_model_that_a_stem_does_not_use_does_not_matter(project, capsys):
    _first("--refine", "none")
    shutil.rmtree("runs/stage2/drums_pretrained")
    capsys.readouterr()
    _first("--refine", "none")
    assert "already separated" in capsys.readouterr().err


def test_stems_of_another_song_are_not_taken_for_those_of_this(project, capsys):
    _first()
    soundfile.write("song.flac", noise(3000), RATE)
    words = ("-o", "stems", "--stems")
    said = _said(capsys, "song.flac", *words, "bass")
    assert "stems/song/bass.wav: was made from another song, song.wav. Pass --overwrite" in said
    said = _said(capsys, "song.flac", *words, "drums", "--overwrite")
    assert "bass.wav: was made from another song, song.wav, and would lie beside drums" in said
    soundfile.write("song.wav", noise(3000), RATE)
    assert "was made from an earlier song.wav" in _said(capsys, "song.wav", *words, "bass")
    shutil.copy("song.wav", "copy.wav")
    assert run_jukesep("separate", "copy.wav", "song.wav", *words, "bass") == 1
    assert _names() == ["copy/bass.wav", "song/bass.wav"]
    assert run_jukesep("separate", "song.wav", *words, "bass", "--overwrite") == 0
    assert soundfile.info("stems/song/bass.wav").frames == 3000
    os.utime("song.wav")
    Path("elsewhere").mkdir()
    shutil.move("song.wav", "elsewhere/song.wav")  # the same content
    capsys.readouterr()
    assert run_jukesep("separate", "elsewhere/song.wav", *words, "bass") == 0
    assert "already separated" in capsys.readouterr().err


def test_a_stem_that_was_changed_is_not_kept_for_ours_but_a_copy_is(project, capsys):
    _first()
    path = Path("stems/song/bass.wav")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"x")
    said = _said(capsys, "song.wav", "-o", "stems", "--stems", "bass")
    assert "bass.wav: was changed after it was written. Pass --overwrite" in said
    path.write_bytes(content)  # with another time and inode
    _first()
    shutil.copytree("stems", "moved")
    assert run_jukesep("separate", "song.wav", "-o", "moved", "--stems", "bass") == 0
    assert "already separated" in capsys.readouterr().err


def test_standard_input_is_known_again(project, capsys, monkeypatch):
    real = decode.spooled
    for name, status in (("song.wav", 0), ("song.wav", 0), ("runs", 1)):
        if name == "runs":
            soundfile.write("song.wav", noise(900), RATE)
        with open("song.wav", "rb") as stream:
            monkeypatch.setattr(decode, "spooled", functools.partial(real, stream))
            assert run_jukesep("separate", "-", "-o", "stems", "--stems", "bass") == status
    said = capsys.readouterr().err
    assert said.count("already separated") == 1
    assert "stems/stdin/bass.wav: was made from an earlier standard input" in said


@pytest.mark.parametrize("content", ["text", "[]", '{"format": 2, "files": {}}', '{"files": 3}'])
def test_a_file_in_the_place_of_the_record_is_left_alone(project, capsys, content):
    Path("stems").mkdir()
    Path("stems/separated.json").write_text(content)
    said = _said(capsys, "song.wav", "-o", "stems", "--overwrite")
    assert said.startswith("error: stems/separated.json: ")
    assert "ove it elsewhere, or choose another --output" in said


def test_a_file_in_the_place_of_a_folder_is_named(project, capsys):
    Path("file").write_text("mine")
    Path("stems").mkdir()
    Path("stems/song").write_text("mine")
    for output, named in (
        ("file", "file"),
        ("file/sub", "file"),
        ("stems", "stems/song"),
    ):
        said = _said(capsys, "song.wav", "-o", output)
        expected = f"error: {named}: is not a folder. Choose another --output or --filename."
        assert said == expected
    Path("nowhere").symlink_to("missing")
    assert run_jukesep("separate", "song.wav", "-o", "nowhere") == 1
    assert "error: nowhere: is not a folder." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "Free some space."), (errno.EROFS, REMEDIES[errno.EROFS]), (errno.EIO, "")],
)
def test_a_disk_that_takes_no_stems_is_named_with_the_remedy(
    project, capsys, monkeypatch, number, remedy
):
    def fail(path):
        raise OSError(number, os.strerror(number), os.fspath(path))

    monkeypatch.setattr(files, "temporary", fail)
    said = _said(capsys, "song.wav", "-o", "stems", "--stems", "bass")
    why = f"stems/song/bass.wav: {os.strerror(number)}. No stem of it was written."
    assert said == f"error: song.wav: {why} {remedy}".rstrip()


def test_stems_of_one_gain_say_what_they_were_made_with(project, capsys):
    words = ("song.wav", "-o", "stems", "--format", "flac", "--stems")
    assert run_jukesep("separate", *words, "bass") == 0
    said = _said(capsys, *words, "bass,drums")
    assert "bass.flac: was made alone; it would now be made together with drums. Pass" in said
    assert run_jukesep("separate", *words, "bass,drums", "--overwrite") == 0
    said = _said(capsys, *words, "bass,vocals")
    assert (
        "bass.flac: was made together with drums; it would now be made together with vocals" in said
    )


def test_a_record_that_was_tampered_with_steers_no_terminal(project, capsys):
    _first()
    record = Path("stems/separated.json")
    content = json.loads(record.read_text())
    entry = content["files"]["song/bass.wav"]
    for change in ({"song": "\x1b[2J", "song_sha256": 3}, {"shifts": "\x1b[2J"}, {"models": None}):
        content["files"]["song/bass.wav"] = {**entry, **change, "together": 5}
        record.write_text(json.dumps(content))
        assert "\x1b" not in _said(capsys, "song.wav", "-o", "stems", "--stems", "bass")
    words = ("song.wav", "-o", "stems", "--stems", "bass", "--filename", "{track}.json")
    Path("separated.wav").write_bytes(Path("song.wav").read_bytes())
    assert "is the record of all stems" in _said(capsys, "separated.wav", *words[1:])


class _Shares:
    """Stands for a Separator: each stem is a share of the mixture, some beyond full scale."""

    def stream(self, blocks, rate, chunk, advance, stems):
        shares = {"drums": 3.0, "bass": -2.5, "other": 0.3, "vocals": 0.15}
        for block in blocks:
            yield {stem: np.float32(shares[stem]) * block for stem in stems}


SETS = (("drums,bass", True), ("drums,bass", False), ("bass", True), ("vocals", False))


@pytest.mark.parametrize("form", ["wav", "wav24"])
def test_a_residual_is_what_the_stems_beside_it_lack_whatever_ran_before(project, form):
    """Every sequence of two runs, of one song or two."""
    songs = {"a": noise(90), "b": -0.9 * noise(90)[::-1]}
    for name, samples in songs.items():
        Path(name).mkdir()
        soundfile.write(f"{name}/song.wav", samples, RATE, subtype="FLOAT")
    loaded = _Shares()

    def run(song, chosen, residual, overwrite, output):
        options = names.Options(output, form=FORMATS[form], residual=residual, overwrite=overwrite)
        jobs = names.plan({f"{song}/song.wav": "song"}, chosen.split(","), options)
        try:
            files.separate(lambda: loaded, jobs, options, RECIPE, lambda _: None)
        except UserError:
            return False
        return True

    done = 0
    for first, second in itertools.product(SETS, SETS):
        for song, overwrite in itertools.product("ab", (False, True)):
            output = Path("-".join((first[0], second[0], song, str(overwrite), str(done))))
            assert run("a", *first, False, output)
            before = {path: path.read_bytes() for path in stems_below(output)}
            if run(song, *second, overwrite, output):
                done += 1
            else:
                assert {path: path.read_bytes() for path in stems_below(output)} == before
            there = {path.stem: _read(path) for path in stems_below(output)}
            rest = [name for name in there if name not in STEMS]
            if rest:
                total, possible = sum(there.values()), list(songs.values())
                # Lowered by one gain, if at all.
                gains = [np.vdot(total, one) / np.vdot(one, one) for one in possible]
                off = [
                    np.abs(total - g * one).max() for g, one in zip(gains, possible, strict=True)
                ]
                assert min(off) < 1e-5, output
                assert len(rest) == 1
                if form == "wav":
                    assert abs(gains[int(np.argmin(off))] - 1) < 1e-5
            shutil.rmtree(output)
    assert done > 12  # the others are refused


def test_runs_at_the_same_time_keep_the_records_of_both(project):
    """Each commits under the lock of the record, and sees what the other wrote."""
    options = names.Options(Path("stems"))

    def run(number):
        jobs = names.plan({f"{number}.wav": str(number)}, ["bass"], options)
        origins = Origins(options, RECIPE)
        (job,) = jobs
        with temporary(job.targets["bass"]) as new:
            barrier.wait()
            new.write_bytes(b"stem")
            origins.appear(job, "digest", {"bass": new})

    barrier = threading.Barrier(4)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))
    assert len(json.loads(Path("stems/separated.json").read_text())["files"]) == 4
    assert len(_names()) == 4


def test_a_run_does_not_replace_what_another_wrote_in_the_meantime(project):
    options = names.Options(Path("stems"))
    (job,) = names.plan({"song.wav": "song"}, ["bass"], options)
    slow, quick = (Origins(options, replace(RECIPE, shifts=shifts)) for shifts in (1, 2))
    assert slow.missing(job, "digest") == job.targets
    for origins, content in ((quick, b"quick"), (slow, b"slow")):
        with temporary(job.targets["bass"]) as new:
            new.write_bytes(content)
            if origins is slow:
                with pytest.raises(UserError, match="was made with --shifts 2"):
                    origins.appear(job, "digest", {"bass": new})
            else:
                origins.appear(job, "digest", {"bass": new})
    assert Path("stems/song/bass.wav").read_bytes() == b"quick"


def test_a_rename_that_fails_leaves_the_earlier_stems_and_says_so(project, capsys, monkeypatch):
    words = ("song.wav", "-o", "stems", "--stems", "drums,bass")
    assert run_jukesep("separate", *words) == 0
    real = os.replace

    def fail(source, target):
        if os.fspath(target) == "stems/song/bass.wav":
            raise OSError(5, "Input/output error", os.fspath(source))
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        said = _said(capsys, *words, "--refine", "none", "--overwrite")
    assert said == (
        "error: song.wav: stems/song/bass.wav: Input/output error. No stem of it was written."
    )
    assert run_jukesep("separate", *words) == 0
    assert "already separated" in capsys.readouterr().err


def test_what_a_killed_run_left_is_swept_by_the_next(project, capsys):
    soundfile.write("long.wav", np.tile(noise(80_000), (100, 1)), RATE)
    code = "from jukesep.cli import main; main()"
    words = ["separate", "long.wav", "-o", "stems", "--chunk", "8000"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size > 1000 for path in files_below("stems")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    shutil.copy("song.wav", "short.wav")
    assert (
        run_jukesep("separate", "short.wav", "-o", "stems", "--filename", "long/{stem}.{ext}") == 0
    )
    assert sum(".unfinished-" in str(path) for path in files_below("stems")) >= 4  # it lives
    process.kill()
    process.wait()
    capsys.readouterr()
    assert (
        run_jukesep("separate", "short.wav", "-o", "stems", "--filename", "long/{stem}.{ext}") == 0
    )
    assert "already separated" in capsys.readouterr().err
    assert sorted(path.name for path in files_below("stems")) == [
        *("bass.wav", "drums.wav", "other.wav", "separated.json", "vocals.wav")
    ]


@pytest.mark.parametrize("samples", [1, 30])
def test_the_progress_of_a_short_song_is_in_its_seconds(project, capsys, samples):
    soundfile.write("short.wav", noise(samples), RATE)
    soundfile.write("odd.wav", noise(7 * samples), 44_100)
    assert run_jukesep("separate", "short.wav", "odd.wav", "-o", "stems", "--chunk", "4") == 0
    said = capsys.readouterr().err
    assert "Warning" not in said
    assert "it/s" not in said
    assert ("0.00028/0.00028 s" if samples == 1 else "0.0085/0.0085 s") in said
    assert "100%" in said


def test_a_song_is_never_replaced_by_a_stem(project, capsys):
    Path("vocals.wav").write_bytes(Path("song.wav").read_bytes())
    words = ("vocals.wav", "-o", ".", "--filename", "{stem}.{ext}", "--overwrite")
    assert run_jukesep("separate", *words) == 1
    assert "is the song itself" in capsys.readouterr().err
    assert Path("vocals.wav").read_bytes() == Path("song.wav").read_bytes()


def test_a_link_out_of_the_output_is_not_followed(project, capsys):
    Path("elsewhere").mkdir()
    Path("stems").mkdir()
    Path("stems/song").symlink_to(Path("elsewhere").resolve())
    assert run_jukesep("separate", "song.wav", "-o", "stems") == 1
    assert "outside stems" in capsys.readouterr().err
    assert stems_below("elsewhere") == []


def test_a_refinement_needs_all_models(project, capsys):
    shutil.rmtree("runs/stage2/bass_pretrained")
    assert run_jukesep("separate", "song.wav", "-o", "stems") == 0
    assert len(_names()) == 3
    assert run_jukesep("separate", "song.wav", "-o", "b", "--refine", "masks") == 1
    assert (
        "refinement 'masks': needs models for drums, bass, other, vocals" in capsys.readouterr().err
    )
    assert run_jukesep("separate", "song.wav", "-o", "b", "--stems", "bass") == 1
    assert "models/separator: has no model for bass" in capsys.readouterr().err


def test_precision_and_threads_are_those_of_the_command(project, monkeypatch):
    asked = []
    monkeypatch.setattr(devices, "cores", lambda: 4)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(devices, "set_precision", lambda value, device: asked.append(value))
    words = ("song.wav", "--refine", "none", "--stems", "bass", "-o")
    assert run_jukesep("separate", *words, "a") == 0
    assert run_jukesep("separate", *words, "b", "--precision", "bf16", "--threads", "3") == 0
    assert [one for one in asked if one != "fp32"] == [3, "bf16"]
    one, two = (_read(f"{output}/song/bass.wav") for output in "ab")
    assert one.shape == two.shape


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_leaves_no_file(project, number):
    """A signal in the middle of a song, once a part of it is written."""
    soundfile.write("long.wav", np.tile(noise(80_000), (100, 1)), RATE)
    code = "from jukesep.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "separate", "long.wav", "-o", "stems", "--chunk", "8000"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size > 1000 for path in stems_below("stems")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in said
    assert said.splitlines()[-1] == "interrupted"
    assert not Path("stems").exists()


@pytest.fixture
def ffmpeg(project, monkeypatch):
    """ffmpeg is the only program on PATH."""
    (project / "bin").mkdir()
    (project / "bin/ffmpeg").symlink_to(needs("ffmpeg"))
    monkeypatch.setenv("PATH", str(project / "bin"))


@pytest.fixture
def stream(project):
    """stream.flac, whose header does not say how long it is."""
    soundfile.write("stream.flac", noise(6000), RATE)
    content = bytearray(Path("stream.flac").read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    Path("stream.flac").write_bytes(content)


@pytest.mark.usefixtures("stream")
def test_a_stream_needs_ffmpeg(capsys, monkeypatch):
    """Without, one line says so, and the bar is not of 10^15 seconds."""
    monkeypatch.setenv("PATH", "")
    assert run_jukesep("separate", "stream.flac", "song.wav", "-o", "stems") == 1
    said = capsys.readouterr().err
    assert "error: stream.flac: its header lacks the length" in said
    assert "0.45/0.45 s" in said.splitlines()[-2]
    assert {path.split("/")[0] for path in _names()} == {"song"}


@pytest.mark.usefixtures("stream", "ffmpeg")
def test_a_stream_is_read_through_ffmpeg():
    assert run_jukesep("separate", "stream.flac", "-o", "stems", "--stems", "bass") == 0
    assert soundfile.info("stems/stream/bass.wav").frames == 6000


@pytest.mark.parametrize("peak", [1e25, 3e38])
def test_samples_too_large_for_the_refinement_are_refused(project, capsys, peak):
    soundfile.write("huge.wav", peak * 2 * noise(), RATE, subtype="FLOAT")
    assert run_jukesep("separate", "huge.wav", "-o", "stems") == 1
    assert "huge.wav: the song's samples are too large" in capsys.readouterr().err
    assert not Path("stems").exists()


def test_rates_without_a_common_divisor_are_refused(project, capsys):
    soundfile.write("odd.wav", noise(100), 44_101)
    assert run_jukesep("separate", "odd.wav", "-o", "stems") == 1
    assert "odd.wav: cannot resample from 44101 Hz" in capsys.readouterr().err


def test_a_name_that_no_system_holds_and_one_that_is_no_text(project):
    assert run_jukesep("separate", "c" * 300 + ".wav", "song.wav", "-o", "stems") == 1
    assert {path.split("/")[0] for path in _names()} == {"song"}
    name = os.fsdecode(b"\xff.wav")
    try:
        shutil.copy("song.wav", name)
    except OSError:
        pytest.skip("this system has no such names")
    options = names.Options(Path("stems"))
    jobs = names.plan(names.find([name], options.output), STEMS, options)
    with pytest.raises(UserError, match="this name is not valid UTF-8"):
        files.separate(lambda: Separator({}, RATE), jobs, options, RECIPE, lambda _: None)


def test_a_fault_in_standard_input_names_it(project, capsys, monkeypatch):
    audio = noise(3000)
    audio[2900] = np.nan
    soundfile.write("nan.wav", audio, RATE, subtype="FLOAT")
    with open("nan.wav", "rb") as stream:
        monkeypatch.setattr(decode, "spooled", functools.partial(decode.spooled, stream))
        assert run_jukesep("separate", "-", "-o", "stems") == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: standard input: holds NaN")


def test_too_little_memory_is_said_so(project, capsys, monkeypatch):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr("jukesep.separation.separator.apply", full)
    assert run_jukesep("separate", "song.wav", "-o", "stems") == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: song.wav: out of memory. Lower --chunk")
    assert not Path("stems").exists()


def test_an_output_that_leads_nowhere(project, capsys):
    Path("one").symlink_to("two")
    Path("two").symlink_to("one")
    assert run_jukesep("separate", "song.wav", "-o", "one/below") == 1
    assert "one" in capsys.readouterr().err.splitlines()[-1]


def test_ffmpeg_is_asked_for_where_it_would_help(project, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    Path("song.m4a").write_bytes(b"\0\0\0\x18ftypM4A " + bytes(99))
    assert run_jukesep("separate", "song.m4a", "-o", "stems") == 1
    assert "song.m4a: reading .m4a files needs ffmpeg, which is not installed" in (
        capsys.readouterr().err
    )


def test_other_formats_are_read_through_ffmpeg(project, ffmpeg, capsys):
    subprocess.run(["ffmpeg", "-v", "error", "-i", "song.wav", "song.m4a"], check=True)
    with decode.readable("song.m4a") as path:
        expected = soundfile.info(path)
    assert not path.exists()
    assert run_jukesep("separate", "song.m4a", "-o", "stems", "--stems", "bass") == 0
    found = soundfile.info("stems/song/bass.wav")
    assert (found.samplerate, found.channels) == (11025, 2)
    assert found.frames == expected.frames >= 5001
    Path("list.m4a").write_text(f"ffconcat version 1.0\nfile '{project}/song.wav'\n")
    assert run_jukesep("separate", "list.m4a", "-o", "stems") == 1
    assert "list.m4a: not readable as audio, even by ffmpeg" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("song", "track"),
    [
        ("a/b.c.wav", "b.c"),
        ("...wav", "wav"),
        (".wav", ".wav"),
        ("..", None),
        ("-x.mp3", "-x"),
        ("é" * 200, "é" * 127),
    ],
)
def test_what_files_are_named_after(song, track):
    found = names._track(song)
    assert found == track or track is None
    assert "/" not in found
    assert found.strip(". ")
