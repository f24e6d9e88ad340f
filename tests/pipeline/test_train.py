"""The readings of the recipe that the parameters choose between, from weights to evaluation."""

import csv
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny import SMALL, prepare_songs

from jukesep.base import params, paths
from jukesep.base.errors import UserError
from jukesep.model import jukebox
from jukesep.model.vqvae import Architecture
from jukesep.pipeline import evaluate
from jukesep.pipeline import train as experiment
from jukesep.report import page as results_page
from jukesep.report import results
from jukesep.report import write as report
from jukesep.scoring import metrics as scores
from jukesep.songs.manifest import MIXTURE, STEMS, Manifest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder with songs prepared, entered."""
    prepare_songs(tmp_path, lambda split, stem: 0.1, {"train": 1, "valid": 1, "test": 1})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _params(*overrides):
    composed = params.compose([*SMALL, *overrides], ROOT / "conf")
    return params.Params.model_validate(yaml.safe_load(composed))


def _through_stage1(*overrides, init="scratch"):
    p = _params(*overrides)
    experiment.weights(p, "scratch")
    if init == "pretrained":
        # Any file serves: what matters is that it is not the random start of this seed.
        vqvae = experiment._random_vqvae(_params("seed=9"))
        vqvae.codebook.restore(torch.randn(16, p.model.latent_dim), 1.0)
        jukebox.save_jukebox(vqvae, paths.weights_file("pretrained"), 0)
    experiment.stage1(p, "drums", init)
    return p


def _start_of_stage2(monkeypatch, *overrides, init="pretrained"):
    """The weights that E2 has before its first step."""
    p = _through_stage1(*overrides, init=init)
    started = {}

    def train(task, *_):
        started.update({name: w.clone() for name, w in task.model.encoder.state_dict().items()})
        assert all(w.requires_grad for w in task.model.parameters())
        assert not any(w.requires_grad for w in task.stage1.parameters())

    monkeypatch.setattr(experiment, "train", train)
    experiment.stage2(p, "drums", init)
    return started


def _same(state, module):
    return all(torch.equal(state[name], value) for name, value in module.state_dict().items())


def test_e2_starts_from_random_weights(project, monkeypatch):
    started = _start_of_stage2(monkeypatch)
    end = jukebox.load_jukebox("runs/stage1/drums_pretrained/checkpoints/2.pt")
    start = jukebox.load_jukebox("runs/weights/pretrained/vqvae.pth.tar")
    assert not _same(started, end.encoder)
    assert not _same(started, start.encoder)


def test_e2_starts_from_stage_1s_encoder(project, monkeypatch):
    started = _start_of_stage2(monkeypatch, "stage2.init=stage1")
    end = jukebox.load_jukebox("runs/stage1/drums_pretrained/checkpoints/2.pt")
    assert _same(started, end.encoder)


def test_a_stem_that_no_test_song_has_is_not_trained(project):
    """Also where the stem was chosen after the songs were prepared."""
    songs = Manifest.load(paths.MANIFEST).songs
    lacking = [replace(song, silent=("drums",) * (song.split == "test")) for song in songs]
    Manifest(11025, tuple(lacking)).save(paths.MANIFEST)
    with pytest.raises(UserError, match="drums is silent in all songs of split 'test'"):
        _through_stage1()
    _through_stage1("evaluate.split=valid")


@pytest.mark.parametrize("init", ["pretrained", "scratch"])
def test_e2_starts_from_the_encoder_that_stage_1_started_from(project, monkeypatch, init):
    started = _start_of_stage2(monkeypatch, "stage2.init=jukebox", init=init)
    start = jukebox.load_jukebox(f"runs/weights/{init}/vqvae.pth.tar")
    end = jukebox.load_jukebox(f"runs/stage1/drums_{init}/checkpoints/2.pt")
    assert _same(started, start.encoder)
    assert not _same(started, end.encoder)


def _codebook_log(name="drums_scratch"):
    with Path(f"runs/stage1/{name}/log.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_codebook_from_data_is_in_use_at_once(project):
    _through_stage1()
    assert float(_codebook_log()[-1]["perplexity"]) > 4


def test_a_codebook_from_zeros_starts_collapsed_and_is_revived_at_once(project):
    """All codes are the first one, until the counts that were restored have decayed below 1."""
    p = _through_stage1("stage1.codebook_init=zeros", "stage1.steps=6", "stage1.log_every=1",
                        "codebook.decay=0.5")  # fmt: skip
    usage = 2048 / 8 / 16  # 16 latents a code: below 1 after five halvings
    log = _codebook_log()
    assert usage * 0.5**4 == 1
    assert [float(row["perplexity"]) for row in log[:4]] == [1, 1, 1, 1]
    assert [int(row["revived"]) for row in log[:5]] == [0, 0, 0, 0, 15]
    assert p.stage1.codebook_init == "zeros"


def test_a_pretrained_codebook_is_never_zeroed(project):
    _through_stage1("stage1.codebook_init=zeros", init="pretrained")
    start = jukebox.load_jukebox("runs/weights/pretrained/vqvae.pth.tar").codebook.k
    end = jukebox.load_jukebox("runs/stage1/drums_pretrained/checkpoints/2.pt").codebook.k
    unmoved = torch.isclose(start, end, rtol=1e-4).all(dim=1)
    assert start.any(dim=1).all()
    assert unmoved.sum() > 8  # those that won no latent


def test_a_stem_can_have_its_own_number_of_stage_1_steps(project):
    p = _through_stage1("stage1_steps.drums=3")
    checkpoints = Path("runs/stage1/drums_scratch/checkpoints")
    assert [path.name for path in checkpoints.iterdir()] == ["3.pt"]
    assert p.stage1_of("bass").steps == 2
    experiment.stage2(p, "drums", "scratch")
    evaluate.evaluate(p, "drums", "scratch")
    assert Path("results/scores/drums_scratch.csv").is_file()


def test_the_blend_reaches_the_segments_of_stage_2(project, monkeypatch):
    p = _through_stage1("stage2.blend=independent")
    blends = []
    monkeypatch.setattr(experiment, "train", lambda task, recipe, s, v, *_: blends.append(s.blend))
    experiment.stage2(p, "drums", "scratch")
    assert blends == ["independent"]


def test_chunking_and_bottleneck_reach_the_scores(project):
    p = _through_stage1()
    experiment.stage2(p, "drums", "scratch")
    scores = set()
    for overrides in (
        ["chunking=exact"], ["chunking=hard"], ["bottleneck=bypass"], ["bottleneck=soft"],
        ["bottleneck=soft", "temperature=0.1"],
    ):  # fmt: skip
        changes = [f"separation.{override}" for override in overrides]
        evaluate.evaluate(_params(*changes), "drums", "scratch")
        scores.add(Path("results/scores/drums_scratch.csv").read_text())
    assert len(scores) == 5


def test_conditioning_reaches_stage_2_and_its_checkpoint(project):
    """Trained another way, and saved in the same form."""
    p = _through_stage1()
    latents = []
    for changes in ([], ["stage2.input_scale=8"], ["stage2.standardise=true"]):
        p = _params(*changes)
        experiment.stage2(p, "drums", "scratch")
        path = paths.checkpoint("stage2", "drums", "scratch", max(p.stage2.checkpoints))
        encoder = jukebox.load_encoder(
            path, Architecture(**p.model.model_dump(exclude={"sample_rate"}))
        )
        latents.append(encoder(torch.ones(1, 1, 2048)))
    assert not any(torch.equal(latents[0], other) for other in latents[1:])
    assert not torch.equal(latents[1], latents[2])


def test_a_save_made_with_kernels_is_not_resumed_without_them(project, monkeypatch):
    p = _params()
    experiment.weights(p, "scratch")
    keys = []
    for switch in ("auto", "off", "auto"):
        monkeypatch.setenv("JUKESEP_KERNELS", switch)
        with experiment.training(
            p, "stage1", "stage1", {"stem": "drums", "init": "scratch"}, Path("out")
        ) as run:
            keys.append(run.folder)
    assert keys[0] == keys[2] != keys[1]


def test_processes_that_would_train_another_model_are_refused(project, monkeypatch):
    """As two nodes with other parameters: what process 0 trains is not what this one would."""

    def other(what):
        return {**what, "parameters": {**what["parameters"], "stage1.learning_rate": 7.0}}

    p = _params()
    experiment.weights(p, "scratch")
    monkeypatch.setattr(experiment.distributed, "same", other)
    with pytest.raises(UserError, match=r"differs from process 0 in stage1\.learning_rate\."):
        experiment.stage1(p, "drums", "scratch")
    assert not Path("runs/stage1").exists()


# --- which songs are for what -----------------------------------------------------------------

SPLITS = ("pretrain", "train", "valid", "test")


def _level(split, part):
    """Another loudness for each stem of each split, each a third above the last."""
    return 0.02 * 1.35 ** (len(STEMS) * SPLITS.index(split) + STEMS.index(part))


@pytest.fixture
def splits(tmp_path, monkeypatch):
    """A project whose splits can be told by their loudness, with two songs in each."""
    prepare_songs(tmp_path, _level, dict.fromkeys(SPLITS, 2))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def trained(monkeypatch):
    """What each training was given: task, recipe, segments, validation. None takes a step."""
    calls = []

    def train(task, recipe, segments, validation, checkpoints, run):
        calls.append((task, recipe, segments, validation))
        for step in checkpoints:
            task.save(task.model, run.about.out / f"checkpoints/{step}.pt", step)

    monkeypatch.setattr(experiment, "train", train)
    return calls


def _songs(segments):
    return {song.name for song, _ in segments.places}


def _check_bandwidths(found, *levels):
    """Those of noise of all these levels at once: its variance, its mean magnitude."""
    variance = sum(level**2 for level in levels)
    assert found.l2 == pytest.approx(variance, rel=0.1)


@pytest.mark.parametrize("stem", STEMS)
def test_stage_1_hears_and_measures_its_stem_of_the_training_songs(splits, trained, stem):
    p = _params("stage1.valid_segments=3")
    experiment.weights(p, "scratch")
    experiment.stage1(p, stem, "scratch")
    ((task, recipe, segments, validation),) = trained
    _check_bandwidths(task.bandwidths, _level("train", stem))
    assert (segments.parts, validation.parts) == ((stem,), (stem,))
    assert _songs(segments) == {"train", "train 2"}
    assert _songs(validation) == {"valid", "valid 2"}
    assert (segments.segment, validation.segment, recipe) == (2048, 2048, p.stage1)
    assert (segments.augment, validation.augment) == (True, False)
    # What the training hears is what it measured: another split's noise has another loudness.
    heard = torch.stack([segments[index] for index in range(len(segments))])
    assert heard.std() < _level("train", stem)  # a blend of two channels of noise
    assert heard.std() > 0.5 * _level("train", stem)


def test_the_pretraining_hears_and_measures_the_mixtures_of_its_own_songs(splits, trained):
    p = _params("pretrain.segment=4096")
    experiment.weights(p, "pretrained")
    ((task, recipe, segments, validation),) = trained
    _check_bandwidths(task.bandwidths, *(_level("pretrain", stem) for stem in STEMS))
    assert (segments.parts, validation.parts) == ((MIXTURE,), (MIXTURE,))
    assert _songs(segments) == {"pretrain", "pretrain 2"}
    assert _songs(validation) == {"valid", "valid 2"}
    assert (segments.segment, recipe) == (4096, p.pretrain)


def test_scratch_is_not_pretrained(splits, trained):
    experiment.weights(_params(), "scratch")
    assert trained == []


def test_stage_2_hears_mixture_and_stem_of_the_training_songs(splits, trained):
    p = _params("stage2.segment=4096")
    experiment.weights(p, "scratch")
    experiment.stage1(p, "bass", "scratch")
    experiment.stage2(p, "bass", "scratch")
    _, recipe, segments, validation = trained[-1]
    assert (segments.parts, validation.parts) == ((MIXTURE, "bass"), (MIXTURE, "bass"))
    assert _songs(segments) == {"train", "train 2"}
    assert _songs(validation) == {"valid", "valid 2"}
    assert (segments.segment, recipe) == (4096, p.stage2)
    assert (segments.augment, validation.augment) == (True, False)


def _evaluated(p):
    """The names of the songs that the stages `evaluate` and `baselines` score."""
    evaluate.evaluate(p, "drums", "scratch")
    Path("params.yaml").write_text(yaml.safe_dump(p.model_dump(mode="json")))
    runpy.run_path(str(ROOT / "stages/baselines.py"), run_name="__main__")
    found = []
    for path in ("results/scores/drums_scratch.csv", "results/systems/baselines.csv"):
        with Path(path).open() as file:
            found.append({row["song"] for row in csv.DictReader(file)})
    return found


@pytest.mark.parametrize("split", ["valid", "test"])
def test_the_songs_of_the_split_that_the_parameters_name_are_scored(splits, trained, split):
    p = _params(f"evaluate.split={split}", "stem=drums")
    experiment.weights(p, "scratch")
    experiment.stage1(p, "drums", "scratch")
    experiment.stage2(p, "drums", "scratch")
    assert _evaluated(p) == [{split, f"{split} 2"}] * 2


# --- museval ----------------------------------------------------------------------------------


def test_museval_s_numbers_reach_the_page_of_results_and_no_other_table(project, monkeypatch):
    """In place of museval, whose filters take a minute: numbers that can be told apart."""

    def stand_in(references, estimates, sample_rate):
        frames = np.zeros((len(references), 3))
        return {"sir_v4": frames + 11, "sar_v4": frames + 22, "isr_v4": frames + 33}

    monkeypatch.setattr(scores, "museval_extras", stand_in)
    chosen = ("stem=drums", "inits=[scratch]")
    p = _through_stage1(*chosen)
    experiment.stage2(p, "drums", "scratch")
    assert _evaluated(p) == [{"test"}] * 2
    plain = results.read_results(p.model_dump(mode="json"), Path())

    p = _params(*chosen, "evaluate.museval=true")
    _evaluated(p)
    more = results.read_results(p.model_dump(mode="json"), Path())
    for metric, value in (("sir_v4", 11), ("sar_v4", 22), ("isr_v4", 33)):
        assert plain.table(metric) == {}
        systems = more.keys[: -len(more.ceilings)]  # not the ceilings
        assert {"static_equaliser", "ideal_ratio_mask", *more.separations} <= {*systems}
        assert more.table(metric) == {system: {"drums": value} for system in systems}

    # Metrics and plots are of the three SDRs alone; docs/results.md has a table for each.
    assert report.metric_files(more) == report.metric_files(plain)
    for name, table in report.plot_tables(plain).items():
        assert report.plot_tables(more)[name].equals(table)
    before, page = results_page.results_page(plain), results_page.results_page(more)
    assert page.startswith(before.rstrip())
    for title, value in (("SIR", "11.00"), ("SAR", "22.00"), ("ISR", "33.00")):
        assert f"## {title} of BSSEval v4" not in before
        _, section = page.split(f"## {title} of BSSEval v4")
        lines = [line for line in section.split("##")[0].splitlines() if line.endswith(" |")]
        assert [line.split(" | ")[-1] for line in lines[2:]] == [f"{value} |"] * 6
