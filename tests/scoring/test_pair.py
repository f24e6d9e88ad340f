"""`jukesep evaluate` on files in the authors' form: numbers computed again here, and mistakes."""

import csv
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
import torch.nn.functional as F

from jukesep import cli
from jukesep.model.jukebox import save_encoder, save_jukebox
from jukesep.model.vqvae import VQVAE, Architecture
from jukesep.scoring import pair as evaluate_files
from jukesep.scoring import published
from jukesep.scoring.evaluation import COLUMNS
from jukesep.songs.manifest import STEMS

RATE = 8000
WIDTH, DEPTH, DOWNS, DIM, CODES = 4, 2, 2, 3, 16
SONGS = {"AM Contra - Heart Peripheral": 2 * RATE + 3, "Zeno - Signs": RATE + 501}
FIRST, SECOND = SONGS


# --- files and numbers by hand ----------------------------------------------------------------


def _shapes(part):
    """Jukebox's name of each weight of level 0 -> its shape, written out."""
    shapes = {}
    stem = f"{part}.0.level_blocks.0.model"
    encoder = part == "encoders"
    for i in range(DOWNS):
        down, stack = (f"{i}.0", f"{i}.1") if encoder else (f"{i + 1}.1", f"{i + 1}.0")
        inner = WIDTH if i or not encoder else 1
        outer = DIM if i == DOWNS - 1 and not encoder else WIDTH
        shapes[f"{stem}.{down}"] = (WIDTH, inner, 4) if encoder else (WIDTH, outer, 4)
        for j in range(DEPTH):
            shapes[f"{stem}.{stack}.model.{j}.model.1"] = (WIDTH, WIDTH, 3)
            shapes[f"{stem}.{stack}.model.{j}.model.3"] = (WIDTH, WIDTH, 1)
    shapes[f"{stem}.{DOWNS}" if encoder else f"{stem}.0"] = (
        (DIM, WIDTH, 3) if encoder else (WIDTH, DIM, 3)
    )
    if not encoder:
        shapes["decoders.0.out"] = (1, DIM, 3)
    return shapes


def _weights(*parts, seed):
    """Random tensors under Jukebox's names."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for part in parts:
        for name, shape in _shapes(part).items():
            transposed = part == "decoders" and len(shape) == 3 and shape[2] == 4
            tensors[f"{name}.weight"] = 0.5 * torch.randn(shape, generator=generator)
            biases = shape[1] if transposed else shape[0]
            tensors[f"{name}.bias"] = 0.1 * torch.randn(biases, generator=generator)
    if "decoders" in parts:
        k = torch.randn(CODES, DIM, generator=generator)
        tensors["bottleneck.level_blocks.0.k"] = k
    return tensors


def _residuals(t, name, x, dilations):
    for j, dilation in enumerate(dilations):
        wide, point = (f"{name}.model.{j}.model.{place}" for place in (1, 3))
        h = F.relu(x)
        h = F.conv1d(h, t[f"{wide}.weight"], t[f"{wide}.bias"], 1, dilation, dilation)
        x = x + F.conv1d(F.relu(h), t[f"{point}.weight"], t[f"{point}.bias"])
    return x


def _run(encoder, t, song, chunk=None, quantise=True, early=()):
    """D(Q(E(song))) of (rows, samples) from the tensors of the files: whole, or in hard chunks.

    Chunks with the numbers in `early` begin a sample early; the last one then has one more.
    """
    if chunk:
        samples = song.shape[1]
        first = [i * chunk - (i in early) for i in range(-(-samples // chunk))]
        ends = [i + chunk for i in first[:-1]] + [samples]
        cut = [song[:, i:j] for i, j in zip(first, ends, strict=True)]
        chunks = [_run(encoder, t, part, None, quantise) for part in cut]
        return np.concatenate(chunks, axis=1)[:, :samples]
    samples = song.shape[1]
    x = torch.tensor(np.pad(song, ((0, 0), (0, -samples % 2**DOWNS))), dtype=torch.float32)[:, None]
    dilations = [3**j for j in range(DEPTH)]
    e, d = "encoders.0.level_blocks.0.model", "decoders.0.level_blocks.0.model"
    for i in range(DOWNS):
        x = F.conv1d(x, encoder[f"{e}.{i}.0.weight"], encoder[f"{e}.{i}.0.bias"], 2, 1)
        x = _residuals(encoder, f"{e}.{i}.1", x, dilations)
    z = F.conv1d(x, encoder[f"{e}.{DOWNS}.weight"], encoder[f"{e}.{DOWNS}.bias"], 1, 1)

    k = t["bottleneck.level_blocks.0.k"]
    distances = ((z.permute(0, 2, 1)[:, :, None] - k) ** 2).sum(-1)
    x = k[distances.argmin(-1)].permute(0, 2, 1) if quantise else z

    x = F.conv1d(x, t[f"{d}.0.weight"], t[f"{d}.0.bias"], 1, 1)
    for i in range(DOWNS):
        x = _residuals(t, f"{d}.{i + 1}.0", x, reversed(dilations))
        x = F.conv_transpose1d(x, t[f"{d}.{i + 1}.1.weight"], t[f"{d}.{i + 1}.1.bias"], 2, 1)
    x = F.conv1d(x, t["decoders.0.out.weight"], t["decoders.0.out.bias"], 1, 1)
    return x[:, 0, :samples].double().numpy()


def _sdr(reference, estimate):
    """10 log10((sum s^2 + 1e-7) / (sum (s - e)^2 + 1e-7))."""
    signal, error = np.sum(reference**2), np.sum((reference - estimate) ** 2)
    return 10 * np.log10((signal + 1e-7) / (error + 1e-7))


def _v4(reference, estimate):
    seconds = range(reference.shape[1] // RATE)
    cut = [slice(second * RATE, (second + 1) * RATE) for second in seconds]
    energies = [
        np.sum(reference[:, c] ** 2) / np.sum((reference - estimate)[:, c] ** 2) for c in cut
    ]
    return np.median(10 * np.log10(energies))


def _by_hand(project, song, stem="vocals", **how):
    """Every number of a song: (system, metric) -> dB."""
    folder = project / "musdb/test" / song
    mixture, target = (
        soundfile.read(folder / f"{part}.wav", always_2d=True)[0].T for part in ("mixture", stem)
    )
    stage1, stage2 = (_written(project / name) for name in ("stage1.pth.tar", "stage2.pth.tar"))
    mono = target.mean(axis=0, keepdims=True)
    blended = _run(stage2, stage1, mixture.mean(axis=0, keepdims=True), **how)
    stereo = _run(stage2, stage1, mixture, **how)
    numbers = {
        ("ceiling", "sdr"): _sdr(mono, _run(stage1, stage1, mono, **how)),
        ("separation", "sdr"): _sdr(mono, blended),
        ("separation", "sdr_mdx"): _sdr(target, stereo),
        ("separation", "sdr_v4"): _v4(target, stereo),
    }
    for system, estimate in (("mixture", mixture), ("scaled_mixture", mixture / 4)):
        numbers[system, "sdr"] = _sdr(mono, estimate.mean(axis=0, keepdims=True))
        numbers[system, "sdr_mdx"] = _sdr(target, estimate)
        numbers[system, "sdr_v4"] = _v4(target, estimate)
    return numbers


def _written(path):
    model = torch.load(path, weights_only=False)["model"]
    return {name.removeprefix("module."): tensor for name, tensor in model.items()}


def _save(path, tensors, prefix="", step=20001, **hps):
    """A file in the authors' form, its optimiser and odd hyperparameters included."""
    some = next(iter(tensors.values()))
    hps = {
        "name": "vqvae_vocals",
        "sr": RATE,
        "levels": 1,
        "downs_t": [DOWNS],
        "hvqvae_multipliers": None,
        "bandwidth": {"l2": np.float64(0.002601), "spec": np.float64(1150.4)},
        "argv": "train.py --hps=vqvae",
        "aug_blend": True,
    } | hps
    opt = {
        "state": {0: {"step": step, "exp_avg": torch.zeros_like(some)}},
        "param_groups": [{"lr": 0.0003, "betas": (0.9, 0.999), "params": [0]}],
    }
    model = {prefix + name: tensor for name, tensor in tensors.items()}
    torch.save({"hps": hps, "model": model, "opt": opt, "step": step}, path)


def _song(folder, samples, rate=RATE, parts=STEMS, seed=0, channels=2):
    noise = np.random.default_rng(seed).uniform(-0.2, 0.2, (4, samples, channels))
    stems = dict(zip(STEMS, noise * np.array([1, 0.5, 0.7, 1.5])[:, None, None], strict=True))
    folder.mkdir(parents=True)
    for name in parts:
        soundfile.write(folder / f"{name}.wav", stems[name], rate, "FLOAT")
    soundfile.write(folder / "mixture.wav", sum(stems.values()), rate, "FLOAT")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An entered folder: a pair of checkpoints, and two songs in MUSDB18-HQ's layout."""
    _save(tmp_path / "stage1.pth.tar", _weights("encoders", "decoders", seed=0))
    _save(tmp_path / "stage2.pth.tar", _weights("encoders", seed=1))
    for seed, (name, samples) in enumerate(SONGS.items()):
        _song(tmp_path / "musdb/test" / name, samples, seed=seed)
    monkeypatch.chdir(tmp_path)
    return tmp_path


PAIR = ("--stage1", "stage1.pth.tar", "--stage2", "stage2.pth.tar", "--data", "musdb")


def _evaluate(capsys, *words, pair=PAIR, stem="vocals"):
    """(exit status, output, errors) of `jukesep evaluate PAIR --stem STEM WORDS`."""
    with pytest.MonkeyPatch.context() as patch:
        arguments = ["jukesep", "evaluate", *pair, "--stem", stem, "--threads", "1", *words]
        patch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as end:
            cli.main()
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return end.value.code or 0, captured.out, captured.err


def _fails(capsys, *words, pair=PAIR, stem="vocals"):
    """The one line of an evaluation that does not come to a song."""
    code, out, err = _evaluate(capsys, *words, pair=pair, stem=stem)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def _line(out, label):
    """The numbers of the table's line that ends in a label."""
    (line,) = [line for line in out.splitlines() if line.endswith(f"  {label}")]
    return line.removesuffix(label).split()


def _csv(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


# --- the numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("parts", [("encoders",), ("encoders", "decoders")], ids=["alone", "whole"])
def test_every_number_is_the_one_computed_by_hand(project, capsys, prefix, parts):
    _save(project / "stage1.pth.tar", _weights("encoders", "decoders", seed=0), prefix, 80001)
    _save(project / "stage2.pth.tar", _weights(*parts, seed=2), prefix)
    code, out, _ = _evaluate(capsys, "-o", "out/scores.csv", "--chunk", "5000")
    assert code == 0

    rows = _csv("out/scores.csv")
    assert tuple(rows[0]) == COLUMNS
    hand = {song: _by_hand(project, song) for song in SONGS}
    expected = {
        (song, *key): value for song, numbers in hand.items() for key, value in numbers.items()
    }
    found = {(row["song"], row["system"], row["metric"]): float(row["value"]) for row in rows}
    assert len(rows) == len(expected)
    assert found == pytest.approx(expected, abs=2e-4)
    # The files are not trivial: systems, metrics and songs differ.
    assert len({round(value, 2) for value in expected.values()}) > len(expected) // 2
    for row in rows:
        separation = row["system"] == "separation"
        assert (row["group"], row["stem"]) == ("test", "vocals")
        assert (row["init"], row["step"]) == ("", "20001" if separation else "")

    shown = [
        ("separation", "sdr"),
        ("separation", "sdr_mdx"),
        ("separation", "sdr_v4"),
        ("ceiling", "sdr"),
        ("scaled_mixture", "sdr"),
        ("mixture", "sdr"),
    ]
    table = np.array([[hand[song][key] for key in shown] for song in SONGS])
    printed = [_line(out, label) for label in (*SONGS, "mean of 2 songs", "median of 2 songs")]
    expected = [*table, table.mean(axis=0), np.median(table, axis=0)]
    np.testing.assert_allclose(np.array(printed, dtype=float), expected, atol=7e-4)
    assert "stage1.pth.tar (step 80001)" in out
    assert "stage2.pth.tar (step 20001)" in out


@pytest.mark.parametrize(
    ("words", "how"),
    [
        (("--chunking", "hard", "--chunk", "1408"), {"chunk": 1408}),
        # 1408 / 8000 s, added up: 0.88 s after 5 chunks are 7039.999... samples.
        (
            ("--chunking", "published", "--chunk", "1408"),
            {"chunk": 1408, "early": range(5, 12)},
        ),
        (("--bottleneck", "bypass"), {"quantise": False}),
    ],
    ids=["hard", "published", "bypass"],
)
def test_the_published_code_s_ways_are_options(project, capsys, words, how):
    code, out, _ = _evaluate(capsys, *words, "-o", "scores.csv", "--song", FIRST)
    assert code == 0
    found = {(r["system"], r["metric"]): float(r["value"]) for r in _csv("scores.csv")}
    assert found == pytest.approx(_by_hand(project, FIRST, **how), abs=2e-4)
    default = _by_hand(project, FIRST)
    assert abs(found["separation", "sdr"] - default["separation", "sdr"]) > 2e-3
    if "early" in how:
        hard = _by_hand(project, FIRST, **{**how, "early": ()})
        assert abs(found["separation", "sdr"] - hard["separation", "sdr"]) > 2e-3
    assert f"{words[0][2:]} {words[1]}" in out


def test_files_of_the_pipeline_are_scored_too(project, capsys):
    torch.manual_seed(0)
    vqvae = VQVAE(Architecture(width=4, depth=2, downs=(2,), latent_dim=3, codes=16))
    vqvae.codebook.restore(torch.randn(16, 3), 1.0)
    hps = {"sample_rate": RATE, "init": "scratch", "part": "bass"}
    save_jukebox(vqvae, project / "stage1.pth.tar", 4, hps)
    save_encoder(vqvae.encoder, project / "stage2.pth.tar", 6, hps)
    assert _evaluate(capsys, "-o", "scores.csv", stem="bass")[0] == 0
    rows = [row for row in _csv("scores.csv") if row["system"] == "separation"]
    assert {(row["stem"], row["init"], row["step"]) for row in rows} == {("bass", "scratch", "6")}
    # The same encoder twice: the ceiling is what it makes of the stem itself.
    message = _fails(capsys, stem="drums")
    assert "stage1.pth.tar: was trained for bass" in message


@pytest.mark.parametrize(
    ("stem", "best", "late", "rerun"),
    [("vocals", "5.060", "5.06", "5.298"), ("bass", "4.073", "4.00", "3.910")],
)
def test_the_paper_s_rows_stand_beside(project, capsys, stem, best, late, rerun):
    _, out, _ = _evaluate(capsys, stem=stem)
    assert _line(out, f"{published.PAPER[0].system} (Table 1)") == [best]
    assert _line(out, "the paper, pretrained, step 1 (Figure 2)") == ["about", "0"]
    assert _line(out, "the paper, pretrained, step 80K (Figure 2)") == [late]
    again = "the authors' checkpoints, run again in chunks of 147,456 samples, mean"
    assert _line(out, f"{again} (unmix_analysis, MUSDB18-HQ, 49 test songs)") == [rerun]
    # Of the rerun: mean and median of every stem, and for vocals those of other chunks.
    assert (
        sum("(unmix_analysis" in line for line in out.splitlines())
        == {"vocals": 9, "bass": 2}[stem]
    )
    # Published numbers are of the test songs.
    shutil.copytree("musdb/test", "musdb/valid")
    _, out, _ = _evaluate(capsys, "--split", "valid", stem=stem)
    assert "the paper" not in out.split("dB, higher")[0]
    assert "not stated" not in out


@pytest.mark.parametrize("stem", STEMS)
def test_each_published_row_stands_in_the_column_of_its_metric(project, capsys, stem):
    _, out, _ = _evaluate(capsys, "--songs", "1", stem=stem)
    table, apart = out.split("Published without a metric")
    heading = next(line for line in table.splitlines() if line.endswith("  song"))
    table = table.split("median of 1 song")[1]
    shown = set()
    for row in published.PUBLISHED:
        value, label = row.values[stem], f"  {row.system} ({row.source}"
        if value == published.NONE:
            assert row.system not in out
        elif published.NOT_STATED in (row.metric, row.data):
            (line,) = [line for line in apart.splitlines() if label in line]
            assert line.split()[:5] == [value, *["not", "stated", "not", "stated"]]
            assert label not in table
        else:
            end = heading.index(f" {row.metric} ") + 1 + len(row.metric)
            lines = [line for line in table.splitlines() if label in line]
            assert any(line[:end].strip() == value for line in lines)
            assert row.data == published.MUSDB_HQ or any(row.data in line for line in lines)
        shown.add(row.system)
    assert shown >= {"Demucs", "Wave-U-Net", "Open-Unmix HQ", "ideal ratio mask (oracle)"}


def test_json_holds_the_same(project, capsys):
    (project / "musdb/test" / SECOND / "drums.wav").unlink()
    code, out, _ = _evaluate(capsys, "--json")
    assert code == 0
    content = json.loads(out)
    hand = {song: _by_hand(project, song) for song in SONGS}
    for song, numbers in hand.items():
        line = content["songs"][song]
        assert line["sdr"] == pytest.approx(numbers["separation", "sdr"], abs=2e-4)
        assert line["mixture/4"] == pytest.approx(numbers["scaled_mixture", "sdr"], abs=2e-4)
    assert content["songs"][SECOND]["sdr_v4"] is None
    assert content["mean"]["sdr_v4"] == content["songs"][FIRST]["sdr_v4"]
    sdr = [numbers["separation", "sdr"] for numbers in hand.values()]
    assert content["mean"]["sdr"] == pytest.approx(np.mean(sdr), abs=2e-4)
    assert content["stage2"] == {"file": "stage2.pth.tar", "step": 20001}
    assert (content["sample_rate"], content["resampled_from"]) == (RATE, [])
    assert content["not_scored"] == {}
    first = {"metric": "sdr", "songs": published.MUSDB_HQ, "value": "5.060"}
    assert first.items() <= content["published"][0].items()
    rows = {row["row"]: row for row in content["published"]}
    assert len(rows) == len(published.PUBLISHED) - 1
    assert rows["Demucs (the paper, Table 1)"] == {
        "row": "Demucs (the paper, Table 1)",
        "metric": "not stated",
        "songs": "not stated",
        "value": "6.496",
    }


@pytest.mark.parametrize("channels", [1, 3])
def test_songs_that_are_not_stereo(project, capsys, channels):
    shutil.rmtree("musdb")
    _song(project / "musdb/test" / FIRST, RATE, channels=channels)
    assert _evaluate(capsys, "-o", "scores.csv")[0] == 0
    found = {(r["system"], r["metric"]): float(r["value"]) for r in _csv("scores.csv")}
    assert found == pytest.approx(_by_hand(project, FIRST), abs=2e-4)


# --- which songs ------------------------------------------------------------------------------


def test_a_song_needs_no_more_than_its_mixture_and_the_stem(project, capsys):
    for name in ("drums", "bass", "other"):
        (project / "musdb/test" / FIRST / f"{name}.wav").unlink()
    code, out, _ = _evaluate(capsys)
    assert code == 0
    hand = _by_hand(project, FIRST)
    line = _line(out, FIRST)
    assert float(line[0]) == pytest.approx(hand["separation", "sdr"], abs=7e-4)
    assert float(line[1]) == pytest.approx(hand["separation", "sdr_mdx"], abs=7e-4)
    assert line[2] == "-"
    assert float(line[4]) == pytest.approx(hand["scaled_mixture", "sdr"], abs=7e-4)
    assert "1 song without sdr_v4" in out
    assert _line(out, "mean of 2 songs")[2] == _line(out, SECOND)[2]


def test_another_stem_that_is_silent_costs_sdr_v4_alone(project, capsys):
    path = project / "musdb/test" / FIRST / "bass.wav"
    soundfile.write(path, np.zeros((SONGS[FIRST], 2)), RATE, "FLOAT")
    code, out, _ = _evaluate(capsys)
    assert code == 0
    hand = _by_hand(project, FIRST)
    assert float(_line(out, FIRST)[0]) == pytest.approx(hand["separation", "sdr"], abs=7e-4)
    assert _line(out, FIRST)[2] == "-"


def test_a_root_that_holds_the_songs_itself(project, capsys):
    _, out, _ = _evaluate(capsys)
    _, direct, _ = _evaluate(capsys, pair=(*PAIR[:-1], "musdb/test"))
    assert _line(direct, FIRST) == _line(out, FIRST)


def test_a_few_songs(project, capsys):
    _, out, _ = _evaluate(capsys, "--songs", "1")
    assert FIRST in out
    assert SECOND not in out
    _, out, _ = _evaluate(capsys, "--song", SECOND, "--song", SECOND)
    assert FIRST not in out
    assert _line(out, "mean of 1 song") == _line(out, SECOND)
    # A fault of a song that was not asked for is no matter.
    (project / "musdb/test" / FIRST / "mixture.wav").unlink()
    assert _evaluate(capsys, "--song", SECOND)[0] == 0
    message = _fails(capsys, "--song", "Zeno - Sings")
    assert "no song named 'Zeno - Sings'" in message
    assert f"Did you mean {SECOND!r}?" in message


def test_train_and_valid_are_parted_by_musdb_s_list(project, capsys):
    for seed, name in enumerate(("Leaf - Summerghost", "Leaf - Wicked", "Young Griffo - Pennies")):
        _song(project / "musdb/train" / name, RATE, seed=seed)
    content = {}
    for split in ("valid", "train", "test"):
        _, out, _ = _evaluate(capsys, "--split", split, "--json")
        content[split] = list(json.loads(out)["songs"])
    assert content["valid"] == ["Leaf - Summerghost", "Young Griffo - Pennies"]
    assert content["train"] == ["Leaf - Wicked"]
    assert content["test"] == list(SONGS)


def test_another_rate_is_refused_or_resampled_aloud(project, capsys):
    _save(project / "stage1.pth.tar", _weights("encoders", "decoders", seed=0), sr=5000)
    _save(project / "stage2.pth.tar", _weights("encoders", seed=1), sr=5000)
    message = _fails(capsys)
    assert "sample rate 8000 Hz, the model needs 5000 Hz" in message
    assert "--resample" in message
    code, out, _ = _evaluate(capsys, "--resample", "-o", "scores.csv")
    assert code == 0
    assert "5000 Hz, resampled from 8000 Hz" in out
    assert len(_csv("scores.csv")) == 20
    _, out, _ = _evaluate(capsys, "--resample", "--json")
    assert json.loads(out)["resampled_from"] == [RATE]


def test_a_file_that_does_not_say_works_at_44100(project, capsys):
    for name in ("stage1.pth.tar", "stage2.pth.tar"):
        content = torch.load(name, weights_only=False)
        del content["hps"], content["step"]
        torch.save(content, name)
    assert "the model needs 44100 Hz" in _fails(capsys)
    shutil.rmtree("musdb")
    _song(project / "musdb/test" / FIRST, 2000, rate=44100)
    code, out, _ = _evaluate(capsys)
    assert code == 0
    assert "44100 Hz" in out
    assert "stage1.pth.tar (step 0)" in out


# --- songs that cannot be scored --------------------------------------------------------------


def _nan(path):
    audio, rate = soundfile.read(path)
    audio[7] = np.nan
    soundfile.write(path, audio, rate, "FLOAT")


def _silence(path):
    soundfile.write(path, np.zeros((SONGS[FIRST], 2)), RATE, "FLOAT")


def test_a_song_without_the_stem_is_left_out_with_a_word(project, capsys):
    _, whole, _ = _evaluate(capsys)
    _silence(project / "musdb/test" / FIRST / "vocals.wav")
    code, out, _ = _evaluate(capsys, "-o", "scores.csv")
    assert code == 0
    assert _line(out, f"{FIRST}: no vocals, left out") == ["-"] * 6
    assert _line(out, "mean of 1 of 2 songs") == _line(whole, SECOND)
    assert "1 song left out of all averages: vocals is silent, so it has no SDR." in out
    assert "without sdr_v4" not in out
    assert {row["value"] for row in _csv("scores.csv") if row["song"] == FIRST} == {"nan"}
    _, out, _ = _evaluate(capsys, "--json")
    assert json.loads(out)["silent"] == [FIRST]
    assert set(json.loads(out)["songs"][FIRST].values()) == {None}
    code, _, err = _evaluate(capsys, "--song", FIRST)
    assert (code, err.splitlines()[-1]) == (
        1,
        "error: musdb: vocals is silent in all songs, so there is nothing to score.",
    )


def test_flac_and_upper_case_are_scored_alike(project, capsys):
    folder = project / "musdb/test" / FIRST
    for part in ("mixture", "vocals", "bass"):
        samples, rate = soundfile.read(folder / f"{part}.wav", dtype="float32")
        soundfile.write(folder / f"{part}.wav", np.round(samples * 2**15) / 2**15, rate, "PCM_16")
    _, plain, _ = _evaluate(capsys, "--json")
    for part in ("mixture", "bass"):
        samples, rate = soundfile.read(folder / f"{part}.wav", dtype="int16")
        soundfile.write(folder / f"{part.title()}.flac", samples, rate)
        (folder / f"{part}.wav").unlink()
    (folder / "vocals.wav").rename(folder / "vocals.WAV")
    _, other, _ = _evaluate(capsys, "--json")
    assert json.loads(other)["songs"] == json.loads(plain)["songs"]
    (folder / "vocals.WAV").rename(folder / "voice.wav")
    assert f"{FIRST}/vocals.wav: no such file" in _fails(capsys)
    soundfile.write(folder / "bass.wav", samples, rate)
    (folder / "voice.wav").rename(folder / "vocals.wav")
    assert f"{FIRST}/bass.wav: also there as Bass.flac. Remove all but one." in _fails(capsys)


@pytest.mark.parametrize(
    ("part", "spoil", "named"),
    [("mixture", _nan, "mixture.wav: holds NaN")],
)
def test_a_song_that_fails_late_is_named_after_the_others(project, capsys, part, spoil, named):
    _, whole, _ = _evaluate(capsys)
    spoil(project / "musdb/test" / FIRST / f"{part}.wav")
    code, out, err = _evaluate(capsys, "-o", "scores.csv")
    assert code == 1
    last = err[err.index("error: ") :]
    assert last.startswith("error: 1 of 2 songs could not be scored:\n")
    assert named in last
    assert _line(out, f"{FIRST}: not scored") == ["-"] * 6
    assert _line(out, SECOND) == _line(whole, SECOND)
    # No mean passes for one of all songs.
    assert _line(out, "mean of 1 of 2 songs") == _line(out, SECOND)
    assert {row["song"] for row in _csv("scores.csv")} == {SECOND}


def test_faults_of_headers_show_before_any_song_is_scored(project, capsys, monkeypatch):
    monkeypatch.setattr(evaluate_files, "_score_song", None)
    folder = project / "musdb/test"
    (folder / FIRST / "vocals.wav").unlink()
    (folder / SECOND / "mixture.wav").write_text("no music")
    soundfile.write(folder / SECOND / "bass.wav", np.zeros((5, 2)), RATE)
    (folder / "__MACOSX").mkdir()
    code, out, err = _evaluate(capsys)
    assert (code, out) == (1, "")
    assert err.startswith("error: musdb: 5 faults\n")
    for fault in (
        f"{FIRST}/vocals.wav: no such file",
        f"{SECOND}/mixture.wav: ",
        "__MACOSX/mixture.wav: no such file",
    ):
        assert fault in err


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda song: (song / "vocals.wav").unlink(), "vocals.wav: no such file"),
        (lambda song: (song / "mixture.wav").unlink(), "mixture.wav: no such file"),
        (
            lambda song: soundfile.write(song / "bass.wav", np.zeros((9, 2)), RATE),
            "bass.wav: 9 samples long, but the song's other files have 16003",
        ),
        (
            lambda song: soundfile.write(song / "vocals.wav", np.zeros(16003), RATE),
            "vocals.wav: mono, but the song is stereo",
        ),
    ],
)
def test_a_song_s_files_that_do_not_fit(project, capsys, spoil, named):
    spoil(project / "musdb/test" / FIRST)
    assert f"musdb/test/{FIRST}/{named}" in _fails(capsys)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ("nowhere", "nowhere: no such folder"),
        ("empty", "empty: no songs in split test"),
        ("stage1.pth.tar", "stage1.pth.tar: no such folder"),
    ],
)
def test_a_folder_without_songs(project, capsys, data, named):
    (project / "empty").mkdir()
    assert named in _fails(capsys, pair=(*PAIR[:-1], data))


# --- files that are no pair -------------------------------------------------------------------


class Hostile:
    """Unpickled, it makes a file."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def _other_architecture(project):
    torch.manual_seed(0)
    encoder = VQVAE(Architecture(width=6, depth=2, downs=(2,), latent_dim=3, codes=16)).encoder
    save_encoder(encoder, project / "stage2.pth.tar", 1, {"sample_rate": RATE})


def _hostile(name):
    def write(project):
        content = {"model": _weights("encoders", "decoders", seed=0), "hps": Hostile(), "step": 1}
        torch.save(content, project / name)

    return write


def _swap(project):
    Path("stage1.pth.tar").rename("other")
    Path("stage2.pth.tar").rename("stage1.pth.tar")
    Path("other").rename("stage2.pth.tar")


def _hps(name, **hps):
    return lambda project: _save(project / name, _weights("encoders", seed=1), **hps)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (_other_architecture, "stage2.pth.tar: its encoder has Architecture"),
        (_swap, "stage1.pth.tar: holds only an encoder"),
        (_hostile("stage1.pth.tar"), "stage1.pth.tar: not a checkpoint that can be read safely"),
        (_hostile("stage2.pth.tar"), "stage2.pth.tar: not a checkpoint that can be read safely"),
        (lambda project: Path("stage1.pth.tar").unlink(), "stage1.pth.tar: No such file"),
        (lambda project: Path("stage2.pth.tar").unlink(), "stage2.pth.tar: No such file"),
        (
            lambda project: Path("stage2.pth.tar").write_text("<html>"),
            "stage2.pth.tar: not a check",
        ),
        (lambda project: torch.save({"a": 1}, "stage1.pth.tar"), "not a Jukebox checkpoint"),
        (_hps("stage2.pth.tar", sr=44100), "stage2.pth.tar: was trained at 44100 Hz"),
        (_hps("stage2.pth.tar", sr="fast"), "stage2.pth.tar: its sample rate is 'fast'"),
        (_hps("stage2.pth.tar", part="drums"), "stage2.pth.tar: was trained for drums"),
    ],
)
def test_files_that_are_no_pair(project, capsys, spoil, named):
    spoil(project)
    assert named in _fails(capsys, "-o", "scores.csv")
    assert not Path("scores.csv").exists()
    assert not Path("ran").exists()


def test_a_stem_that_there_is_not(project, capsys):
    message = _fails(capsys, stem="vocal")
    assert "--stem vocal: " in message
    assert "drums, bass, other, vocals" in message


# --- output, interruption, help ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("scores.txt", "ends in .csv"),
        ("there.csv", "--overwrite"),
        ("stage1.pth.tar/scores.csv", "cannot be written to"),
    ],
)
def test_an_output_that_cannot_be_shows_before_the_work(project, capsys, monkeypatch, name, named):
    monkeypatch.setattr(evaluate_files, "_score_song", None)
    Path("there.csv").write_text("mine")
    assert named in _fails(capsys, "-o", name)
    assert Path("there.csv").read_text() == "mine"


def test_an_output_is_replaced_when_told(project, capsys):
    Path("there.csv").write_text("mine")
    assert _evaluate(capsys, "-o", "there.csv", "--overwrite", "--songs", "1")[0] == 0
    assert len(_csv("there.csv")) == 10


def test_an_interruption_drops_the_songs_that_wait(project, capsys, monkeypatch):
    for number in range(40):
        _song(project / f"musdb/test/{number:02}", 800)
    begun = []

    def interrupted(found, *_):
        begun.append(found)
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate_files, "_score_song", interrupted)
    monkeypatch.setattr("jukesep.base.parallel.cores", lambda: 1)
    code, out, _ = _evaluate(capsys, "-o", "scores.csv")
    assert (code, out) == (130, "")
    assert len(begun) < 42
    assert not Path("scores.csv").exists()


def test_help_waits_for_neither_torch_nor_numpy():
    code = (
        "import sys; from typer.testing import CliRunner; from jukesep import cli; "
        "found = CliRunner().invoke(cli.app, ['evaluate', '--help']); "
        "assert '--stage1' in found.output, found.output; "
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"COLUMNS": "200"})
