"""`jukesep separate` as people use it: what is read, what is written, and where."""

import functools
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from commands import ARCHITECTURE, files_below, noise, run_jukesep, save_models
from programs import needs

from jukesep.audio import decode
from jukesep.audio.encode import FORMATS, writing
from jukesep.base.errors import UserError
from jukesep.model.checkpoints import load_model
from jukesep.model.vqvae import VQVAE
from jukesep.separation import files, separator
from jukesep.separation.chunked import apply
from jukesep.separation.refine import Wiener
from jukesep.separation.separator import Separator
from jukesep.songs.manifest import STEMS

ROOT = Path(__file__).parents[2]
RATE = 8000  # of the models


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An entered folder with models of all stems in runs/, and song.wav, stereo at 11,025 Hz."""
    for stem in STEMS:
        save_models(tmp_path / "runs", stem=stem)
    soundfile.write(tmp_path / "song.wav", noise(5001), 11025)
    (tmp_path / "models").mkdir()
    (tmp_path / "models/separator").symlink_to(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _names(folder="stems"):
    return [path.relative_to(folder).as_posix() for path in files_below(folder)]


def _read(path):
    return soundfile.read(path, always_2d=True)[0]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("clip", ["rescale", "clamp", "none"])
def test_every_format_has_the_rate_channels_and_length_of_the_song(project, form, clip):
    assert run_jukesep("separate", "song.wav", "-o", "stems", "--format", form, "--clip", clip) == 0
    suffix = FORMATS[form].suffix
    assert _names() == [f"song/{stem}.{suffix}" for stem in sorted(STEMS)]
    for path in files_below("stems"):
        found = soundfile.info(path)
        assert (found.samplerate, found.channels, found.frames) == (11025, 2, 5001)
        assert found.subtype == FORMATS[form].subtype


def test_the_stems_sum_to_the_mixture_below_the_models_rate(project):
    """Refined by default; what resampling takes from the song is in none of them."""
    soundfile.write("slow.wav", noise(6000), RATE, subtype="FLOAT")
    assert run_jukesep("separate", "slow.wav", "-o", "stems") == 0
    total = sum(_read(path) for path in files_below("stems"))
    np.testing.assert_allclose(total, _read("slow.wav"), atol=1e-4)
    assert run_jukesep("separate", "slow.wav", "-o", "plain", "--refine", "none") == 0
    assert np.abs(sum(_read(path) for path in files_below("plain")) - total).max() > 0.01


def test_loud_stems_are_lowered_together_or_cut_off(project):
    soundfile.write("loud.wav", 20 * noise(), RATE, subtype="FLOAT")
    for clip in ("rescale", "clamp"):
        words = ("loud.wav", "-o", clip, "--format", "wav24", "--clip", clip)
        assert run_jukesep("separate", *words) == 0
    assert run_jukesep("separate", "loud.wav", "-o", "float") == 0
    for path in files_below("float"):
        whole, name = _read(path), path.relative_to("float")
        np.testing.assert_allclose(_read("clamp" / name), np.clip(whole, -1, 1), atol=1e-6)
    peaks = {p.name: np.abs(_read(p)).max() for p in files_below("float")}
    gain = (1 - 2**-15) / max(peaks.values())
    assert gain < 0.5
    for path in files_below("float"):
        scaled = _read(Path("rescale") / path.relative_to("float"))
        np.testing.assert_allclose(scaled, gain * _read(path), atol=1e-6)


def test_a_missing_stem_has_the_gain_of_the_others(project):
    """The loudest stem decides it, whichever are there."""
    torch.manual_seed(1)
    loaded = Separator({"drums": _louder(1), "bass": _louder(30)}, RATE)
    soundfile.write("loud.wav", 20 * noise(), RATE, subtype="FLOAT")
    names = ("drums", "bass")

    def separate(output):
        options = files.Options(Path(output), form=FORMATS["wav24"])
        jobs = files.plan({"loud.wav": "loud"}, names, options)
        files.separate(lambda: loaded, jobs, options, lambda _: None)
        return [_read(f"{output}/loud/{name}.wav") for name in names]

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
    total = sum(_read(path) for path in files_below("b"))
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
    ("shifts", "delays"), [(2, [0, 4]), (3, [0, 2, 5]), (4, [0, 2, 4, 6]), (8, range(8))]
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


def test_songs_of_one_name_are_refused_and_named(project, capsys):
    Path("b").mkdir()
    shutil.copy("song.wav", "b/Song.flac")
    assert run_jukesep("separate", "song.wav", "b/Song.flac", "-o", "stems") == 1
    said = capsys.readouterr().err
    assert "song.wav and b/Song.flac" in said
    assert not Path("stems").exists()
    assert run_jukesep("separate", "song.wav", "song.wav", "-o", "stems", "--stems", "bass") == 0


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
    assert files_below("elsewhere") == []


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


def test_precision_and_threads_are_those_of_the_models(project):
    words = ("song.wav", "--refine", "none", "--stems", "bass", "-o")
    assert run_jukesep("separate", *words, "a") == 0
    before = torch.get_num_threads()
    assert run_jukesep("separate", *words, "b", "--precision", "bf16", "--threads", "1") == 0
    torch.set_num_threads(before)
    one, two = (_read(f"{output}/song/bass.wav") for output in "ab")
    assert one.shape == two.shape


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
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
    while not any(path.stat().st_size > 1000 for path in files_below("stems")):
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
    assert "0/0 s" in said.splitlines()[-2]
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
    for rate in (8000, 11_025, 22_050, 32_000, 44_100, 48_000, 88_200, 96_000, 176_400, 192_000):
        for model in (8000, 11_025, 44_100):
            separator._check_rate(rate, model)


def test_a_name_that_no_system_holds_and_one_that_is_no_text(project):
    assert run_jukesep("separate", "c" * 300 + ".wav", "song.wav", "-o", "stems") == 1
    assert {path.split("/")[0] for path in _names()} == {"song"}
    name = os.fsdecode(b"\xff.wav")
    try:
        shutil.copy("song.wav", name)
    except OSError:
        pytest.skip("this system has no such names")
    options = files.Options(Path("stems"))
    jobs = files.plan(files.find([name], options.output), STEMS, options)
    with pytest.raises(UserError, match="its name is not valid UTF-8"):
        files.separate(lambda: Separator({}, RATE), jobs, options, lambda _: None)


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
    found = files._track(song)
    assert found == track or track is None
    assert "/" not in found
    assert found.strip(". ")
