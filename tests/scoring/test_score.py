"""`jukesep score`: known answers, folders that other programs write, systems, resumed runs."""

import csv
import json
import sys
import tracemalloc
from importlib.util import find_spec, module_from_spec
from pathlib import Path

import jsonschema
import numpy as np
import openunmix
import pytest
import soundfile
import torch
from commands import run_jukesep, save_models
from folders import write_song

from jukesep.base.packages import package_folder
from jukesep.base.progress import note
from jukesep.scoring import evaluation, metrics, score
from jukesep.scoring.estimates import open_folder
from jukesep.scoring.evaluation import COLUMNS
from jukesep.songs.find import find_songs
from jukesep.songs.manifest import STEMS, Manifest, Song
from jukesep.systems import registry

RATE = 8000
SONGS = {"Leaf - Wicked": 2 * RATE + 5, "Music Delta - 80s Rock": 3 * RATE}
FIRST, SECOND = SONGS
RESTS = {"vocals": ("drums", "bass", "other")}


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder, entered, with the test songs of DATA in musdb/test."""
    note.cache_clear()  # what was said in another test is said again
    monkeypatch.chdir(tmp_path)
    for seed, (name, samples) in enumerate(SONGS.items()):
        write_song(tmp_path / "musdb/test" / name, samples, RATE, seed=seed)
    return tmp_path / "musdb"


def _read(path):
    samples, _ = soundfile.read(path, always_2d=True)
    return samples


def _write(path, samples, rate=RATE, subtype="FLOAT"):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype=subtype)


def _noisy(samples, seed):
    """Samples with white noise of a tenth of their energy."""
    noise = np.random.default_rng(seed).standard_normal(samples.shape)
    return samples + noise * np.sqrt(np.sum(samples**2) / np.sum(noise**2) / 10)


def _estimate(data, root, stems=STEMS, suffix="wav"):
    """A folder of noisy stems; what it holds by (song, stem)."""
    found = {}
    for song in SONGS:
        for seed, stem in enumerate(stems):
            found[song, stem] = _noisy(_read(data / "test" / song / f"{stem}.wav"), seed)
            subtype = "FLOAT" if suffix == "wav" else "PCM_24"
            _write(Path(root) / song / f"{stem}.{suffix}", found[song, stem], subtype=subtype)
    return found


def _score(capsys, *words, data="musdb"):
    """Exit status, JSON (None if nothing was scored), and what was said."""
    status = run_jukesep("score", "--data", str(data), "--json", *words)
    said = capsys.readouterr()
    return status, json.loads(said.out) if said.out else None, said.err


def _fails(capsys, *words):
    status, _, said = _score(capsys, *words)
    assert status == 1
    return said[said.rindex("error: ") :]


def _sdr(reference, estimate):
    return 10 * np.log10(
        (np.sum(reference**2) + 1e-7) / (np.sum((reference - estimate) ** 2) + 1e-7)
    )


# --- known answers ----------------------------------------------------------------------------


def _in_mono(data):
    """Write the songs with one channel: museval's filters take an eighth of the time."""
    for song, samples in SONGS.items():
        write_song(data / "test" / song, samples, RATE, channels=1)


def test_stems_with_noise_of_a_tenth_score_10_db(data, capsys):
    _in_mono(data)
    _estimate(data, "noisy")
    status, found, _ = _score(capsys, "noisy")
    assert status == 0
    for metric in ("sdr", "sdr_mdx"):
        for values in (
            *found["metrics"][metric]["songs"].values(),
            found["metrics"][metric]["mean"]["noisy"],
        ):
            assert values == pytest.approx(dict.fromkeys((*STEMS, "mean"), 10.0), abs=1e-3)
    # Its noise is a little correlated with a stem.
    assert found["metrics"]["si_sdr"]["mean"]["noisy"]["mean"] == pytest.approx(10, abs=0.1)
    assert "the songs are mono" in found["metrics"]["sdr"]["convention"]


def test_each_metric_is_what_its_convention_says(data, capsys):
    estimates = _estimate(data, "noisy")
    _, found, _ = _score(capsys, "noisy")
    assert list(found["metrics"]) == ["sdr", "sdr_mdx", "si_sdr", "sdr_v4"]
    for (song, stem), estimate in estimates.items():
        truth = _read(data / "test" / song / f"{stem}.wav")
        gain = np.sum(truth * estimate) / np.sum(truth**2)
        seconds = range(0, len(truth) - RATE + 1, RATE)
        frames = [10 * np.log10(np.sum(truth[s : s + RATE] ** 2)
                  / np.sum((truth - estimate)[s : s + RATE] ** 2)) for s in seconds]  # fmt: skip
        expected = {
            "sdr": _sdr(truth.mean(axis=1), estimate.mean(axis=1)),
            "sdr_mdx": _sdr(truth, estimate),
            "si_sdr": 10
            * np.log10(np.sum((gain * truth) ** 2) / np.sum((gain * truth - estimate) ** 2)),
            "sdr_v4": np.median(frames),
        }
        for metric, value in expected.items():
            assert found["metrics"][metric]["songs"][song][stem] == pytest.approx(value, abs=1e-4)
    average = found["metrics"]["sdr"]
    both = [average["songs"][song] for song in SONGS]
    for stem in (*STEMS, "mean"):
        assert average["mean"]["noisy"][stem] == pytest.approx(
            np.mean([one[stem] for one in both]), abs=1e-5
        )


def test_baselines_and_the_oracle_stand_beside(data, capsys):
    _estimate(data, "noisy")
    _, found, _ = _score(capsys, "noisy")
    beside = found["metrics"]["sdr_mdx"]["mean"]
    assert list(beside) == ["noisy", "mixture", "scaled_mixture", "ideal_ratio_mask"]
    expected = []
    for song in SONGS:
        bass, mixture = (
            _read(data / "test" / song / f"{part}.wav") for part in ("bass", "mixture")
        )
        expected.append(_sdr(bass, mixture / 4))
    assert beside["scaled_mixture"]["bass"] == pytest.approx(np.mean(expected), abs=1e-4)
    assert beside["ideal_ratio_mask"]["mean"] > beside["scaled_mixture"]["mean"] + 0.5
    assert any(label.startswith("Wave-U-Net") for label in found["metrics"]["sdr_v4"]["published"])
    assert not any(label.startswith("Wave-U-Net") for label in found["metrics"]["sdr"]["published"])
    assert [label.split()[0] for label in found["published_without_metric"]] == [
        "Demucs",
        "mixture",
    ]


def test_training_songs_bring_the_static_equaliser(data, capsys):
    write_song(data / "train/One - Song", 2 * RATE, RATE, seed=9)
    _estimate(data, "noisy")
    _, found, _ = _score(capsys, "noisy")
    beside = found["metrics"]["sdr_mdx"]["mean"]
    # Of four stems of white noise, the best gain at all frequencies is a quarter.
    assert beside["static_equaliser"]["drums"] == pytest.approx(
        beside["scaled_mixture"]["drums"], abs=0.1
    )
    assert "static_equaliser" not in found["metrics"]["sdr_v4"]["published"]


# --- what museval reads -----------------------------------------------------------------------


@pytest.fixture
def museval_stores(monkeypatch):
    """museval.aggregate, without museval's own start, which needs ffmpeg."""
    package = module_from_spec(find_spec("museval"))
    monkeypatch.setitem(sys.modules, "museval", package)
    monkeypatch.delitem(sys.modules, "museval.aggregate", raising=False)
    from museval import aggregate

    yield aggregate
    sys.modules.pop("museval.aggregate", None)


@pytest.mark.parametrize("extras", [False, True])
def test_museval_s_own_aggregation_reads_the_folder(data, capsys, museval_stores, extras):
    if extras:
        _in_mono(data)
    _estimate(data, "noisy", ("drums", "vocals"))
    words = ["--museval", "--song", SECOND] if extras else []
    _, found, _ = _score(capsys, "noisy", *words)
    store = museval_stores.EvalStore()
    store.add_eval_dir("noisy-scores")
    frames = store.agg_frames_scores()
    names = {"sdr_v4": "SDR", "sir_v4": "SIR", "sar_v4": "SAR", "isr_v4": "ISR"}
    songs = [SECOND] if extras else list(SONGS)
    for metric, name in list(names.items())[: 4 if extras else 1]:
        table = found["metrics"][metric]
        for song in songs:
            for stem in ("drums", "vocals"):
                expected = table["songs"][song][stem]
                assert frames[song, stem, name] == pytest.approx(expected, abs=1e-4)
        tracks = store.agg_frames_tracks_scores()
        assert tracks["vocals", name] == pytest.approx(table["median"]["noisy"]["vocals"], abs=1e-4)
    schema = json.loads((package_folder("museval") / "musdb.schema.json").read_text())
    for song in songs:
        content = json.loads(Path(f"noisy-scores/test/{song}.json").read_text())
        jsonschema.validate(content, schema)
        assert [target["name"] for target in content["targets"]] == ["drums", "vocals"]
        first, second, *_ = content["targets"][0]["frames"]
        assert (first["time"], second["time"], first["duration"]) == (0, 1, 1)


def test_sir_sar_and_isr_are_those_of_museval_for_all_stems_together(data, capsys):
    _in_mono(data)
    estimates = _estimate(data, "noisy")
    _, found, _ = _score(capsys, "noisy", "--museval", "--song", FIRST)
    truth = np.array([_read(data / "test" / FIRST / f"{stem}.wav") for stem in STEMS])
    given = np.array([estimates[FIRST, stem].astype(np.float32) for stem in STEMS])
    _, isr, sir, sar, _ = metrics.museval_metrics().bss_eval(truth, given, window=RATE, hop=RATE)
    for metric, values in (("isr_v4", isr), ("sir_v4", sir), ("sar_v4", sar)):
        for stem, frames in zip(STEMS, values, strict=True):
            ours = found["metrics"][metric]["songs"][FIRST][stem]
            assert ours == pytest.approx(np.nanmedian(frames), abs=0.05)
        assert list(found["metrics"][metric]["mean"]) == ["noisy"]


# --- folders that other programs write --------------------------------------------------------


def test_folders_in_other_layouts_score_the_same(data, capsys):
    _estimate(data, "separated/htdemucs")
    _, plain, _ = _score(capsys, "separated/htdemucs")
    for song in SONGS:  # as musdb saves estimates
        target = Path("estimates/test") / song
        target.mkdir(parents=True)
        for stem in STEMS:
            samples = _read(Path("separated/htdemucs") / song / f"{stem}.wav")
            _write(target / f"{stem.title()}.WAV", samples)
        _write(target / "mixture.wav", samples)
    _, other, said = _score(capsys, "estimates")
    assert "not scored" not in said
    for metric, table in plain["metrics"].items():
        assert other["metrics"][metric]["songs"] == table["songs"]
    _estimate(data, "lossless", suffix="flac")
    _, lossless, _ = _score(capsys, "lossless")
    songs = lossless["metrics"]["sdr"]["songs"]
    assert songs[FIRST] == pytest.approx(plain["metrics"]["sdr"]["songs"][FIRST], abs=1e-3)
    assert _fails(capsys, "separated") == (
        "error: separated: no folder has the name of a song. Give separated/htdemucs.\n"
    )


@pytest.mark.parametrize(
    ("name", "words", "label"),
    [
        ("no_vocals", (), "no_vocals"),
        ("accompaniment", (), "accompaniment"),
        ("residual", (), "residual"),
        ("backing", ("--residual", "Backing"), "backing"),
        ("other", ("--residual", "other"), "residual"),
    ],
)
def test_a_residual_is_scored_against_the_sum_of_the_other_stems(data, capsys, name, words, label):
    _estimate(data, "two", ("vocals",))
    mixtures = {}
    for song in SONGS:
        folder = data / "test" / song
        rest = sum(_read(folder / f"{stem}.wav") for stem in RESTS["vocals"])
        # A mastered mixture: it is not the sum of the stems.
        mixtures[song] = 0.5 * _read(folder / "mixture.wav")
        _write(folder / "mixture.wav", mixtures[song])
        _write(Path("two") / song / f"{name}.wav", _noisy(rest, 7))
    status, found, _ = _score(capsys, "two", *words)
    assert status == 0
    assert found["residuals"] == {label: list(RESTS["vocals"])}
    for song in SONGS:
        values = found["metrics"]["sdr_mdx"]["songs"][song]
        assert values == pytest.approx({"vocals": 10, label: 10}, abs=1e-3)
    rest = [
        sum(_read(data / "test" / s / f"{stem}.wav") for stem in RESTS["vocals"]) for s in SONGS
    ]
    beside = found["metrics"]["sdr_mdx"]["mean"]
    for system, gain in (("mixture", 1), ("scaled_mixture", 3 / 4)):
        expected = np.mean(
            [_sdr(r, gain * m) for r, m in zip(rest, mixtures.values(), strict=True)]
        )
        assert beside[system][label] == pytest.approx(expected, abs=1e-4)


def test_what_is_no_stem_is_named_and_left_out(data, capsys):
    _estimate(data, "noisy")
    _write(Path("noisy") / FIRST / "guitar.wav", np.zeros((9, 2)))
    (Path("noisy") / "Another - Song").mkdir()
    status, found, said = _score(capsys, "noisy", "--stems", "vocals,bass")
    assert status == 0
    assert "noisy: not scored, since no stem has this name: guitar" in said
    assert "noisy: not scored, since --data has no such song: Another - Song" in said
    assert list(found["metrics"]["sdr"]["songs"][FIRST]) == ["bass", "vocals"]


def test_songs_of_a_manifest_are_averaged_by_group(data, capsys):
    _estimate(data, "noisy")
    listed = [Song(name, "test", group, data / "test" / name, SONGS[name])
              for name, group in zip(SONGS, ("seen", "held_out"), strict=True)]  # fmt: skip
    Manifest(RATE, tuple(listed)).save(Path("prepared/manifest.json"))
    assert run_jukesep("score", "noisy", "--data", "prepared") == 0
    said = capsys.readouterr().out
    assert "mean, instruments heard in training:" in said
    with Path("noisy-scores/scores.csv").open() as file:
        groups = {row["song"]: row["group"] for row in csv.DictReader(file)}
    assert groups == {FIRST: "seen", SECOND: "held_out"}


# --- songs that cannot be scored --------------------------------------------------------------


def _remove(folder):
    (folder / "bass.wav").unlink()


def _rename(folder):
    folder.rename(folder.with_name(f"{FIRST} (remaster)"))


def _short(folder):
    _write(folder / "bass.wav", np.zeros((SONGS[FIRST] - 1, 2)))


def _mono(folder):
    _write(folder / "bass.wav", np.zeros(SONGS[FIRST]))


def _slow(folder):
    for stem in STEMS:
        _write(folder / f"{stem}.wav", np.zeros((SONGS[FIRST], 2)), rate=RATE // 2)


def _nan(folder):
    samples = np.zeros((SONGS[FIRST], 2))
    samples[7] = np.nan
    _write(folder / "bass.wav", samples)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (_remove, "bass.wav: no such file"),
        (_rename, f"no such folder. Rename '{FIRST} (remaster)' if it is the same song."),
        (_short, f"bass.wav: {SONGS[FIRST] - 1} samples, but the song has {SONGS[FIRST]}."),
        (_mono, "bass.wav: mono, but the song is stereo."),
        (_slow, "bass.wav: 4000 Hz, but the song has 8000 Hz."),
        (_nan, "bass.wav: holds NaN"),
    ],
)
def test_a_song_that_fails_is_named_and_the_others_are_scored(data, capsys, spoil, named):
    _estimate(data, "noisy")
    _, whole, _ = _score(capsys, "noisy")
    spoil(Path("noisy") / FIRST)
    status, found, said = _score(capsys, "noisy")
    assert status == 1
    last = said[said.rindex("error: ") :]
    assert last.startswith(f"error: 1 of 2 songs could not be scored:\n  {FIRST}: noisy/{FIRST}")
    assert named in last
    assert found["not_scored"].keys() == {FIRST}
    for metric, table in whole["metrics"].items():
        assert found["metrics"][metric]["songs"] == {SECOND: table["songs"][SECOND]}
        assert found["metrics"][metric]["mean"]["noisy"] == table["songs"][SECOND]
    # What it once scored is no longer true.
    assert {path.stem for path in Path("noisy-scores/test").iterdir()} == {SECOND}


def test_a_song_without_the_stem_has_no_score_of_it(data, capsys):
    _estimate(data, "noisy")
    _write(data / "test" / FIRST / "vocals.wav", np.zeros((SONGS[FIRST], 2)))
    status, found, _ = _score(capsys, "noisy")
    assert status == 0
    assert found["metrics"]["sdr"]["songs"][FIRST]["vocals"] is None
    assert found["metrics"]["sdr"]["songs"][FIRST]["bass"] > 9
    assert set(found["metrics"]["sdr_v4"]["songs"][FIRST].values()) == {None}
    content = json.loads(Path(f"noisy-scores/test/{FIRST}.json").read_text())
    assert all(np.isnan(t["frames"][0]["metrics"]["SDR"]) for t in content["targets"])


def test_a_folder_of_songs_needs_only_the_stems_that_are_scored(data, capsys):
    _estimate(data, "noisy", ("vocals",))
    for song in SONGS:
        (data / "test" / song / "bass.wav").unlink()
    status, found, _ = _score(capsys, "noisy")
    assert status == 0
    assert found["metrics"]["sdr"]["songs"][FIRST]["vocals"] > 9
    assert found["metrics"]["sdr_v4"]["songs"][FIRST]["vocals"] is None
    assert "ideal_ratio_mask" not in found["metrics"]["sdr"]["mean"]


def test_a_baseline_of_fewer_songs_says_so(data, capsys):
    _estimate(data, "noisy", ("vocals",))
    (data / "test" / FIRST / "bass.wav").unlink()
    assert run_jukesep("score", "noisy", "--data", "musdb") == 0
    said = capsys.readouterr().out
    assert "ideal ratio mask (oracle), of 1 song\n" in said
    assert "mixture / 4\n" in said


def test_songs_are_resampled_to_the_estimates_when_told(data, capsys):
    for song, samples in SONGS.items():
        count = -(-samples // 2)
        for stem in STEMS:
            _write(Path("slow") / song / f"{stem}.wav", np.zeros((count, 2)), rate=RATE // 2)
    status, found, _ = _score(capsys, "slow", "--resample")
    assert status == 0
    assert found["about"]["rate"].startswith("4000 Hz, resampled from 8000 Hz")
    assert found["metrics"]["sdr"]["songs"][FIRST]["bass"] == 0


# --- runs that are resumed --------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch):
    """The songs that are scored, not read from the folder."""
    seen = []
    original = evaluation.score_estimates

    def counting(song, references, estimates, system, *given, **named):
        if system == "noisy":
            seen.append(song.name)
        return original(song, references, estimates, system, *given, **named)

    monkeypatch.setattr(evaluation, "score_estimates", counting)
    return seen


def test_a_second_run_scores_only_what_has_changed(data, capsys, counted):
    _estimate(data, "noisy")
    _, first, _ = _score(capsys, "noisy", "--songs", "1")
    assert counted == [FIRST]
    _, both, said = _score(capsys, "noisy")
    assert counted == [FIRST, SECOND]
    assert "1 of 2 songs have not changed" in said
    for metric, table in first["metrics"].items():
        assert both["metrics"][metric]["songs"][FIRST] == table["songs"][FIRST]
    _, again, _ = _score(capsys, "noisy")
    assert (again, len(counted)) == (both, 2)
    _write(Path("noisy") / SECOND / "bass.wav", np.zeros((SONGS[SECOND], 2)))
    _, changed, _ = _score(capsys, "noisy")
    assert counted[2:] == [SECOND]
    assert changed["metrics"]["sdr"]["songs"][SECOND]["bass"] == 0
    write_song(data / "test" / FIRST, SONGS[FIRST], RATE, seed=5)
    _score(capsys, "noisy")
    assert counted[3:] == [FIRST]
    _score(capsys, "noisy", "--overwrite")
    assert sorted(counted[4:]) == [FIRST, SECOND]
    _score(capsys, "noisy", "--stems", "vocals")
    assert sorted(counted[6:]) == [FIRST, SECOND]
    Path(f"noisy-scores/test/{FIRST}.json").write_text("{")
    _score(capsys, "noisy", "--stems", "vocals")
    assert counted[8:] == [FIRST]


def test_a_song_is_kept_as_soon_as_it_is_scored(data, capsys, monkeypatch):
    _estimate(data, "noisy")
    monkeypatch.setattr("jukesep.base.parallel.cores", lambda: 1)
    original = evaluation.score_estimates

    def interrupted(song, *given, **named):
        if song.name == SECOND:
            raise KeyboardInterrupt
        return original(song, *given, **named)

    monkeypatch.setattr(evaluation, "score_estimates", interrupted)
    status, found, _ = _score(capsys, "noisy")
    assert (status, found) == (130, None)
    assert [path.name for path in Path("noisy-scores").rglob("*.*")] == [f"{FIRST}.json"]


def test_scores_of_another_run_are_not_taken_for_these(data, capsys, counted):
    _estimate(data, "noisy")
    _score(capsys, "noisy")
    status, _, said = _score(capsys, "noisy", "--stems", "vocals", "--songs", "1")
    assert status == 0
    assert counted[2:] == [FIRST]
    assert "also has scores of 1 song from another run, such as Music Delta - 80s Rock" in said


def test_the_folder_of_a_single_song_is_named(data, capsys):
    _estimate(data, "noisy")
    assert "It holds stems itself: give the folder above it" in _fails(capsys, f"noisy/{FIRST}")


def test_a_folder_of_something_else_is_left_alone(data, capsys):
    _estimate(data, "noisy")
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("dear")
    assert "mine: holds letter.txt, so it is not a folder of scores." in _fails(
        capsys, "noisy", "-o", "mine"
    )
    assert [path.name for path in Path("mine").iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("content", ['{"targets": []}', "[1]", "5"])
@pytest.mark.parametrize("song", [FIRST, "another song"])
def test_another_program_s_scores_are_left_alone(data, capsys, song, content):
    """Such as museval's, which have the same names and places."""
    _estimate(data, "noisy")
    path = Path(f"mine/test/{song}.json")
    path.parent.mkdir(parents=True)
    path.write_text(content)
    said = _fails(capsys, "noisy", "-o", "mine")
    assert f"{path}: was not written by `jukesep score`. Choose another --output." in said
    assert path.read_text() == content
    assert list(Path("mine").rglob("*.*")) == [path]


def test_the_files_of_a_run_have_what_is_printed(data, capsys):
    _estimate(data, "noisy")
    assert run_jukesep("score", "noisy", "--data", "musdb", "-o", "out") == 0
    said = capsys.readouterr().out
    with Path("out/scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    wanted = ("noisy", "bass", "sdr")
    values = [r["value"] for r in rows if (r["system"], r["stem"], r["metric"]) == wanted]
    mean = np.mean([*map(float, values)])
    line = next(one for one in said.splitlines() if one.endswith("  noisy") and "." in one)
    assert line.split()[1] == f"{mean:.3f}"
    table = Path("out/scores.md").read_text()
    assert f"| {FIRST} | " in table
    assert f"| {mean:.3f} | " in table
    for text in (said, table):
        assert "of the mean of the estimate's channels" in text
        assert "Le Roux et al. 2019" in text


# --- systems that separate here ---------------------------------------------------------------

MODULE = '''
import numpy as np

def loudest(mixture, sample_rate):
    """Half of the louder channel, in all channels: not the same in mono."""
    one = mixture[np.argmax((mixture**2).sum(1))]
    return {"Vocals": 0.5 * np.stack([one] * len(mixture))}

def short(mixture, sample_rate):
    return {"vocals": mixture[:, 1:]}

def broken(mixture, sample_rate):
    return {"vocals": mixture @ mixture}

def nothing(mixture, sample_rate):
    return {"guitar": mixture}

NAME = "x"
'''


FAULTY = {
    "slip": "\ndef f(:\n",
    "lacking": "import nowhere\n",
    "odd": """
def text(mixture, sample_rate):
    return {"vocals": "x"}

def numbered(mixture, sample_rate):
    return {1: mixture}
""",
}


@pytest.fixture
def module(data, monkeypatch):
    for name, text in {"mine": MODULE, **FAULTY}.items():
        Path(f"{name}.py").write_text(text)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("mine", *FAULTY):  # a test of the documents has a module mine too
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield
    for name in ("mine", *FAULTY):
        sys.modules.pop(name, None)


def test_a_function_is_scored_by_either_convention_of_sdr(data, capsys, module):
    status, stereo, said = _score(capsys, "--system", "mine:loudest", "-o", "a")
    assert status == 0, said
    status, mono, said = _score(capsys, "--system", "mine:loudest", "--mono", "-o", "b")
    assert status == 0, said
    mixture, truth = (_read(data / "test" / FIRST / f"{p}.wav") for p in ("mixture", "vocals"))
    louder = mixture[:, np.argmax(np.sum(mixture**2, axis=0))]
    for found, estimate in ((stereo, louder / 2), (mono, mixture.mean(axis=1) / 2)):
        ours = found["metrics"]["sdr"]["songs"][FIRST]["vocals"]
        assert ours == pytest.approx(_sdr(truth.mean(axis=1), estimate), abs=1e-4)
    assert stereo["metrics"]["sdr_mdx"]["songs"] == mono["metrics"]["sdr_mdx"]["songs"]
    assert "of the mean of the estimate's channels" in stereo["metrics"]["sdr"]["convention"]
    assert "the mono mixture was separated" in mono["metrics"]["sdr"]["convention"]
    Path("mine.py").write_text(MODULE.replace("0.5 *", "0.25 *"))
    sys.modules.pop("mine")
    _, other, _ = _score(capsys, "--system", "mine:loudest", "-o", "a")
    assert other["metrics"]["sdr"]["songs"] != stereo["metrics"]["sdr"]["songs"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("mine:short",), "vocals has the shape"),
        (("mine:broken",), "mine.py, line 13: ValueError: matmul"),
        (("mine:nothing",), "returns guitar, but none of drums, bass, other, vocals"),
        (("mine:loudest", "--stems", "bass"), "returns no bass, only vocals"),
        (("mine:lowdest",), "mine has no function lowdest, only broken, loudest, nothing, short."),
        (("mine:NAME",), "mine has no function NAME"),
        (("yours:loudest",), "no module yours"),
        ((":loudest",), "--system :loudest: give the function as module:function"),
        ((".mine:loudest",), "give the function as module:function"),
        (("slip:f",), "slip.py, line 2: SyntaxError"),
        (("lacking:f",), "lacking.py, line 1: ModuleNotFoundError: No module named 'nowhere'"),
        (("odd:text",), "vocals is str, where an array (channels, samples) is expected"),
        (("odd:numbered",), "returned dict and no stem"),
        (("mine:loudest", "--weights", "x"), "loads its own weights"),
        (("mine:loudest", "--refine", "wiener"), "only refines the stems of jukesep"),
        (
            ("htdemucz",),
            "Did you mean htdemucs? There are jukesep, static-equaliser, open-unmix, hdemucs, ",
        ),
        (("HDEMUCS_HIGH_MUSDB_PLUS",), "was trained on the test songs of MUSDB18 too"),
        (("mdx-extra",), "was trained on the test songs of MUSDB18 too"),
        (("mdx_extra_q",), "was trained on the test songs of MUSDB18 too"),
        (("static-equaliser",), "is fitted to training songs, and musdb has none"),
        (("hdemucs",), "weights/hdemucs: no such file or folder. Give the weights of hdemucs"),
        (("jukesep",), "models/separator: no models"),
    ],
)
def test_a_system_that_cannot_be_scored(data, capsys, module, words, named):
    assert named in _fails(capsys, "--system", *words)


@pytest.mark.parametrize(
    "words",
    [(), ("noisy", "--system", "jukesep"), ("noisy", "--mono"), ("noisy", "--weights", "x"),
     ("noisy", "--refine", "wiener"), ("--system", "jukesep", "--residual", "other"),
     ("nowhere",), ("noisy", "--stems", "vocal"), ("noisy", "--residual", "rest")],
)  # fmt: skip
def test_options_that_do_not_fit(data, capsys, words):
    _estimate(data, "noisy")
    assert _fails(capsys, *words).startswith("error: ")
    assert not Path("noisy-scores").exists()


def test_the_static_equaliser_is_a_system_too(data, capsys):
    write_song(data / "train/One - Song", 2 * RATE, RATE, seed=9)
    _, found, _ = _score(capsys, "--system", "static-equaliser")
    assert found["system"] == "static_equaliser"
    assert found["about"]["trained on"] == "1 songs of musdb, split train"
    beside = found["metrics"]["sdr"]["mean"]
    assert beside["static_equaliser"]["bass"] == pytest.approx(
        beside["scaled_mixture"]["bass"], abs=0.1
    )


def test_published_weights_are_found_where_fetch_leaves_them(data, capsys):
    torch.manual_seed(0)
    networks = openunmix.umxhq(["vocals"], niter=0, pretrained=False).target_models
    Path("weights/open-unmix").mkdir(parents=True)
    torch.save(networks["vocals"].state_dict(), "weights/open-unmix/vocals.pth")
    write_song(Path("songs/test/One - Song"), samples=20_000)
    words = ("--system", "open-unmix", "--stems", "vocals")
    status, found, _ = _score(capsys, *words, data="songs")
    assert status == 0
    assert found["system"] == "umxhq"
    assert found["about"]["long songs"].startswith("the whole song at once")
    assert np.isfinite(found["metrics"]["sdr"]["songs"]["One - Song"]["vocals"])
    torch.save({"x": torch.zeros(3)}, "weights/open-unmix/vocals.pth")
    assert "weights/open-unmix/vocals.pth: lacks tensors" in _fails(
        capsys, *words, "--data", "songs"
    )


def test_the_models_of_a_folder_are_a_system(data, capsys, monkeypatch):
    """Its scores are those of the stems that `separate` writes; other code makes others."""
    save_models(Path("runs"), stem="vocals")
    words = ("--system", "jukesep", "--weights", "runs", "--stems", "vocals")
    _, found, _ = _score(capsys, *words)
    assert "2 of 2 songs have not changed" in _score(capsys, *words)[2]
    monkeypatch.setattr(registry, "code", lambda *_: "another")
    assert "have not changed" not in _score(capsys, *words)[2]
    for song in SONGS:
        Path("in").mkdir(exist_ok=True)
        (Path("in") / f"{song}.wav").symlink_to(data / "test" / song / "mixture.wav")
    assert run_jukesep("separate", "in", "-o", "stems", "--models", "runs", "--refine", "none") == 0
    capsys.readouterr()
    _, folder, _ = _score(capsys, "stems")
    for metric, table in found["metrics"].items():
        for song, values in table["songs"].items():
            assert folder["metrics"][metric]["songs"][song] == pytest.approx(values, abs=1e-4)


def test_the_memory_of_a_song_is_what_was_measured(data, capsys):
    """By numpy, which holds the song and computes its scores."""
    samples = 400_000
    write_song(data / "test/Long - Song", samples, RATE)
    _estimate(data, "noisy")
    for stem in STEMS:
        _write(Path("noisy/Long - Song") / f"{stem}.wav", np.full((samples, 2), 0.1))
    (found,) = find_songs(data, "test", STEMS, ["Long - Song"])
    source = score.Files("noisy", open_folder(Path("noisy"), "test", ["Long - Song"]))
    tracemalloc.start()
    score._score_song(found, source, RATE, score.Options(), lambda *_: None, lambda _: None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.5 < peak / score.memory(found, RATE, False) < 1
    assert score.memory(found, RATE, True) > score.memory(found, RATE, False)
    # Resampled to a higher rate it takes more, to a lower one still itself.
    assert score.memory(found, 2 * RATE, False) == 2 * score.memory(found, RATE, False)
    assert score.memory(found, RATE // 2, False) == score.memory(found, RATE, False)
