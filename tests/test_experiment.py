"""The readings of the recipe that the parameters choose between, from weights to evaluation."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from jukesep import audio, experiment, jukebox, params
from jukesep.songs import STEMS, Manifest, Song

ROOT = Path(__file__).parents[1]
SMALL = [
    "scale=tiny", "model.width=4", "model.codes=16", "stage1.segment=2048", "stage1.steps=2",
    "stage2.segment=2048", "stage2.steps=2", "stage2.checkpoints=[1,2]", "stage2.warmup=0",
    "separation.chunk=1024",
]  # fmt: skip


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder with songs prepared, entered."""
    rng = np.random.default_rng(0)
    songs = []
    for split in ("train", "valid", "test"):
        folder = tmp_path / "data/prepared/songs" / split
        stems = {stem: 0.1 * rng.standard_normal((2, 4096)) for stem in STEMS}
        for part, samples in {**stems, "mixture": sum(stems.values())}.items():
            audio.write(folder / f"{part}.wav", samples, 11025, "FLOAT")
        songs.append(Song(split, split, "seen", folder, 4096))
    Manifest(11025, tuple(songs)).save(tmp_path / "data/prepared/manifest.json")
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
        jukebox.save_jukebox(vqvae, experiment.weights_file("pretrained"), 0)
    experiment.stage1(p, "drums", init)
    return p


def _start_of_stage2(monkeypatch, *overrides, init="pretrained"):
    """The weights that E2 has before its first step."""
    p = _through_stage1(*overrides, init=init)
    started = {}

    def train(task, *_):
        started.update({name: w.clone() for name, w in task.model.state_dict().items()})
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
    experiment.evaluate(p, "drums", "scratch")
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
    for override in ("chunking=exact", "chunking=hard", "bottleneck=bypass"):
        experiment.evaluate(_params(f"separation.{override}"), "drums", "scratch")
        scores.add(Path("results/scores/drums_scratch.csv").read_text())
    assert len(scores) == 3
