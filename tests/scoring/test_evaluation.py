"""The scores of whole songs: what is scored against what, and that no number is missing."""

import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from jukesep import audio
from jukesep.base import parallel
from jukesep.base.params import Separation
from jukesep.model.vqvae import VQVAE, Architecture
from jukesep.scoring import evaluation
from jukesep.scoring import metrics as scores
from jukesep.songs.manifest import STEMS, Song
from jukesep.systems import equaliser
from jukesep.systems.system import System

RATE = 1000
LENGTHS = {"Long": 3502, "Short": 1201, "Odd, NA": 2333}  # none is whole hops
SEPARATION = Separation(chunk=512, chunking="exact", bottleneck="quantise")
METRICS = {"sdr", "sdr_mdx", "sdr_v4"}
MUSEVAL = {"sir_v4", "sar_v4", "isr_v4"}


def _model(seed):
    torch.manual_seed(seed)
    model = VQVAE(Architecture(width=4, depth=2, downs=(2,), latent_dim=4, codes=16)).eval()
    for parameter in model.parameters():
        parameter.data *= 2  # louder weights, so that their outputs differ
    weight, bias = list(model.decoder.parameters())[-2:]
    weight.data *= 0.3
    bias.data *= 0
    model.codebook.restore(3 * torch.randn(16, 4), 1.0)
    return model


STAGE1 = _model(0)
STAGE2 = {3: _model(3), 12: _model(4)}


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    root = tmp_path_factory.mktemp("songs")
    rng = np.random.default_rng(0)
    made = []
    for name, samples in LENGTHS.items():
        levels = dict(zip(STEMS, (0.3, 0.2, 0.1, 0.4), strict=True))
        # Channels of different loudness: mono first or mono last is not the same.
        sides = np.array([[1.0], [0.4]])
        stems = {s: v * sides * rng.uniform(-1, 1, (2, samples)) for s, v in levels.items()}
        for part, data in {**stems, "mixture": sum(stems.values())}.items():
            audio.write(root / name / f"{part}.wav", data, RATE, "FLOAT")
        made.append(Song(name, "test", f"group of {name}", root / name, samples))
    return made


def _score(songs, stem="vocals", stage2=STAGE2, **options):
    return evaluation.score_models(
        songs, stem, "scratch", STAGE1, stage2, RATE, SEPARATION, **options
    )


def _numbers(rows):
    """(song, stem, system, step, metric) -> dB; no number is there twice."""
    found = {(row.song.name, *row[1:3], *row[4:-1]): row.value for row in rows}
    assert len(found) == len(rows)
    return found


# --- the numbers by hand ----------------------------------------------------------------------


def _through(model, rows):
    """D(Q(E(rows))) of the song as a whole."""
    padded = F.pad(torch.from_numpy(rows), (0, -rows.shape[1] % 4))[:, None]
    with torch.no_grad():
        _, latents = model.quantise(model.encode(padded))
        return model.decode(latents)[:, 0, : rows.shape[1]].double().numpy()


def _sdr(reference, estimate):
    reference, error = reference.astype(float), reference.astype(float) - estimate
    return 10 * np.log10((np.sum(reference**2) + 1e-7) / (np.sum(error**2) + 1e-7))


def _v4(reference, estimate):
    """The median over seconds, none of which is silent here."""
    seconds = range(0, reference.shape[1] - RATE + 1, RATE)
    cut = [slice(second, second + RATE) for second in seconds]
    return np.median([_sdr(reference[:, c], estimate[:, c]) for c in cut])


def _mono(samples):
    return samples.mean(axis=0, keepdims=True)


def _read(song, part):
    return audio.read(song.file(part))


@pytest.mark.parametrize("stem", ["bass", "vocals"])
def test_sdr_is_of_the_mono_mixture_and_the_others_of_the_channels(songs, stem):
    expected = {}
    for song in songs:
        mixture, target = _read(song, "mixture"), _read(song, stem)
        ceiling = _through(STAGE1, _mono(target))
        expected[song.name, stem, "ceiling", "", "sdr"] = _sdr(_mono(target), ceiling)
        for step, model in STAGE2.items():
            blended, channels = _through(model, _mono(mixture)), _through(model, mixture)
            key = (song.name, stem, "separation", step)
            expected[*key, "sdr"] = _sdr(_mono(target), blended)
            expected[*key, "sdr_mdx"] = _sdr(target, channels)
            expected[*key, "sdr_v4"] = _v4(target, channels)
            # The two ways to mono are told apart, and so are the two ways to a ceiling.
            later = _sdr(_mono(target), _mono(channels))
            assert abs(later - expected[*key, "sdr"]) > 0.1
        assert abs(_sdr(target, _through(STAGE1, target)) - _sdr(_mono(target), ceiling)) > 0.1
    found = _numbers(_score(songs, stem))
    assert found == pytest.approx(expected, abs=1e-3)
    assert len({round(value, 2) for value in expected.values()}) > 0.8 * len(expected)


# --- no row is missing ------------------------------------------------------------------------


@pytest.mark.parametrize("museval", [False, True])
def test_every_song_has_every_step_and_metric_once(songs, extras, museval):
    rows = _score(songs, "other", museval=museval)
    metrics = METRICS | (MUSEVAL if museval else set())
    expected = {(song.name, "other", "ceiling", "", "sdr") for song in songs}
    expected |= {
        (song.name, "other", "separation", step, metric)
        for song in songs
        for step in STAGE2
        for metric in metrics
    }
    assert set(_numbers(rows)) == expected
    assert {row.init for row in rows} == {"scratch"}
    assert all(row.song.group == f"group of {row.song.name}" for row in rows)
    assert np.isfinite([row.value for row in rows]).all()


@pytest.fixture
def extras(monkeypatch):
    """In place of museval, whose filters take a minute: errors that tell what it was given."""

    def stand_in(references, estimates, sample_rate):
        assert sample_rate == RATE
        errors = np.sum((references - estimates) ** 2, axis=(1, 2))
        frames = np.stack([errors, errors, 9 * errors], axis=1)  # the median is the error
        return {"sir_v4": frames, "sar_v4": 2 * frames, "isr_v4": 3 * frames}

    monkeypatch.setattr(scores, "museval_extras", stand_in)


def test_museval_s_numbers_are_of_the_channels_and_change_no_other(songs, extras):
    plain, more = (_numbers(_score(songs, museval=museval)) for museval in (False, True))
    assert {key: more[key] for key in plain} == plain
    for song in songs:
        for step, model in STAGE2.items():
            channels = _through(model, _read(song, "mixture"))
            error = np.sum((_read(song, "vocals") - channels) ** 2)
            key = (song.name, "vocals", "separation", step)
            found = [more[*key, metric] for metric in ("sir_v4", "sar_v4", "isr_v4")]
            assert found == pytest.approx([error, 2 * error, 3 * error], rel=1e-4)


# --- threads ----------------------------------------------------------------------------------


def test_rows_do_not_depend_on_how_many_songs_are_scored_side_by_side(songs, monkeypatch):
    read = evaluation._read

    def slow(song):
        if song is songs[0]:
            time.sleep(0.2)  # the first song is finished last
        return read(song)

    monkeypatch.setattr(evaluation, "_read", slow)
    rows = {}
    for threads in (1, 2, 5):
        monkeypatch.setattr(parallel, "cores", lambda count=threads: count)
        rows[threads] = _score(songs)
    assert rows[1] == rows[2] == rows[5]
    order = list(dict.fromkeys(row.song.name for row in rows[5]))
    assert order == list(LENGTHS)


def test_systems_score_songs_side_by_side(songs, tmp_path):
    def separate(mixture, _):
        if mixture.shape[1] == songs[0].samples:
            time.sleep(0.1)  # the first song is finished last
        return {"drums": 0.5 * mixture, "bass": 0.1 * mixture}

    systems = [System("half", separate), System("other half", separate)]
    rows = {
        workers: evaluation.score_systems(
            songs, systems, 7, RATE, keep=tmp_path / str(workers), workers=workers
        )
        for workers in (1, 3)
    }
    assert rows[1] == rows[3]
    assert list(dict.fromkeys(row.song.name for row in rows[3])) == list(LENGTHS)
    kept = [{p.relative_to(tmp_path / w) for p in (tmp_path / w).rglob("*.flac")} for w in "13"]
    assert kept[0] == kept[1]
    assert len(kept[0]) == len(songs) * 4


def test_scores_do_not_depend_on_torch_s_threads(songs):
    before = torch.get_num_threads()
    numbers = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            numbers.append(_numbers(_score(songs)))
    finally:
        torch.set_num_threads(before)
    assert numbers[0] == pytest.approx(numbers[1], abs=1e-4)


def test_progress_adds_up_to_what_is_announced(songs):
    song, told = songs[2], []
    mixture, references = evaluation._read(song)
    evaluation.score_separation(
        song, mixture, references, "drums", "", STAGE1, STAGE2, RATE, SEPARATION,
        progress=told.append,
    )  # fmt: skip
    assert sum(told) == (1 + (1 + 2) * len(STAGE2)) * song.samples


# --- baselines --------------------------------------------------------------------------------

GAIN = dict(zip(STEMS, (0.4, 0.2, 0.1, 0.3), strict=True))


def _equaliser(stems):
    """The same gain at all frequencies."""
    gains = {stem: np.full(equaliser.window(RATE) // 2 + 1, GAIN[stem]) for stem in stems}
    return equaliser.Equaliser(RATE, gains)


def test_the_equaliser_can_be_heard(songs, tmp_path):
    evaluation.score_baselines(songs[:1], _equaliser(["bass"]), RATE, keep=tmp_path)
    (path,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert path == tmp_path / songs[0].name / "bass.flac"
    wanted = GAIN["bass"] * _mono(_read(songs[0], "mixture"))
    np.testing.assert_allclose(audio.read(path), wanted, atol=2**-14)


@pytest.mark.parametrize("stems", [STEMS, ("vocals", "bass"), ("other",)])
def test_baselines_are_the_scores_computed_directly(songs, stems):
    expected = {}
    for song in songs:
        mixture = _read(song, "mixture")
        references = np.array([_read(song, stem) for stem in STEMS])
        masked = dict(zip(STEMS, scores.ideal_ratio_mask(mixture, references), strict=True))
        of_mono = scores.ideal_ratio_mask(_mono(mixture), [_mono(stem) for stem in references])
        of_mono = dict(zip(STEMS, of_mono, strict=True))
        for stem in stems:
            target = _read(song, stem)
            systems = {
                "static_equaliser": (GAIN[stem] * mixture, GAIN[stem] * _mono(mixture)),
                "mixture": (mixture, _mono(mixture)),
                "scaled_mixture": (mixture / 4, _mono(mixture) / 4),
                "ideal_ratio_mask": (masked[stem], of_mono[stem]),
            }
            for system, (estimate, mono) in systems.items():
                key = (song.name, stem, system, "")
                expected[*key, "sdr"] = _sdr(_mono(target), mono)
                expected[*key, "sdr_mdx"] = _sdr(target, estimate)
                expected[*key, "sdr_v4"] = _v4(target, estimate)
    rows = evaluation.score_baselines(songs, _equaliser(stems), RATE)
    assert _numbers(rows) == pytest.approx(expected, abs=1e-4)
    assert {row.init for row in rows} == {""}
    # The oracle's estimate of a stem is of that stem.
    for row in rows:
        if (row.system, row.metric) == ("ideal_ratio_mask", "sdr"):
            assert row.value > expected[row.song.name, row.stem, "scaled_mixture", "", "sdr"] + 1


def test_baselines_have_museval_s_numbers_too(songs, extras):
    rows = evaluation.score_baselines(songs, _equaliser(["vocals"]), RATE, museval=True)
    numbers = _numbers(rows)
    assert set(numbers) == {
        (song.name, "vocals", system, "", metric)
        for song in songs
        for system in ("static_equaliser", *evaluation.BASELINES)
        for metric in METRICS | MUSEVAL
    }
    for song in songs:
        error = np.sum((_read(song, "vocals") - _read(song, "mixture") / 4) ** 2, dtype=float)
        found = numbers[song.name, "vocals", "scaled_mixture", "", "sir_v4"]
        assert found == pytest.approx(error, rel=1e-4)
