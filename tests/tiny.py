"""Trainings so small that a test can afford many: models, songs, recipes."""

import csv
from pathlib import Path

import numpy as np
import torch

from jukesep import audio
from jukesep.base.params import CodebookParams, Losses, Recipe
from jukesep.model.vqvae import VQVAE, Architecture, Encoder
from jukesep.resume.folder import About, Training
from jukesep.songs.manifest import STEMS, Manifest, Song
from jukesep.training import losses
from jukesep.training.conditioning import Conditioned
from jukesep.training.loop import train
from jukesep.training.segments import Segments
from jukesep.training.tasks import LatentMatching, Reconstruction

ARCHITECTURE = Architecture(width=4, depth=2, downs=(2,), latent_dim=8, codes=16)
WEIGHTS = Losses(linf=0.02, linf_k=2048, multispectral=1.0, commit=0.02)
BANDWIDTHS = losses.Bandwidths(l2=0.02, spec=30.0)
RATE = 8000
SMALL = [  # overrides of conf/, for the stages
    "scale=tiny", "model.width=4", "model.codes=16", "stage1.segment=2048", "stage1.steps=2",
    "stage2.segment=2048", "stage2.steps=2", "stage2.checkpoints=[1,2]", "stage2.warmup=0",
    "separation.chunk=1024",
]  # fmt: skip


def make_recipe(**changes):
    recipe = {
        "steps": 6, "batch": 2, "segment": 2048, "learning_rate": 1e-2, "warmup": 1,
        "final_rate": 1.0, "clip": 1.0, "weight_ema": 0.5, "log_every": 2, "valid_every": 3,
        "valid_segments": 3, "workers": 0,
    }  # fmt: skip
    return Recipe(**{**recipe, **changes})


def write_songs(root):
    """One song, of a tone and noise."""
    rng = np.random.default_rng(0)
    time = np.arange(6000) / RATE
    stem = np.stack([0.4 * np.sin(2 * np.pi * 200 * time)] * 2)
    for part, noise in (("mixture", 0.2), ("vocals", 0.01)):
        samples = stem + noise * rng.standard_normal(stem.shape)
        audio.write(root / f"{part}.wav", samples, RATE, "FLOAT")
    return [Song("song", "train", "seen", root, 6000)]


def reconstruction(seed=0):
    torch.manual_seed(seed)
    codebook = CodebookParams(decay=0.99, revival_threshold=1.0)
    return Reconstruction(VQVAE(ARCHITECTURE), BANDWIDTHS, WEIGHTS, codebook, seed, {"seed": seed})


def matching(seed=0, loss="mse"):
    torch.manual_seed(seed)
    stage1 = VQVAE(ARCHITECTURE)
    stage1.codebook.restore(torch.randn(16, 8), 1.0)
    return LatentMatching(Conditioned(Encoder(ARCHITECTURE)), stage1, loss, WEIGHTS, {"seed": seed})


def make_run(out, **about):
    """A training below the current folder, named after where its results go."""
    return Training(About(f"test {out}", "stage1", Path(out), sample_rate=RATE, **about))


def run_training(
    task, songs, folder="run", recipe=None, checkpoints=(3, 6), run=None, kind=Segments
):
    """Train, and read the log."""
    recipe = recipe or make_recipe()
    parts = ("vocals",) if isinstance(task, Reconstruction) else ("mixture", "vocals")
    segments = kind(songs, parts, recipe.segment, 0, "test")
    valid = Segments(songs, parts, recipe.segment, 0, "valid", augment=False)
    train(task, recipe, segments, valid, checkpoints, run or make_run(folder))
    with (Path(folder) / "log.csv").open() as file:
        return list(csv.DictReader(file))


def prepare_songs(root, level, songs):
    """data/prepared as the stage writes it: noise at level(split, part), `songs` of a split."""
    rng = np.random.default_rng(0)
    listed = []
    for split, count in songs.items():
        for name in [split, *(f"{split} {number}" for number in range(2, count + 1))]:
            folder = root / "data/prepared/songs" / name
            stems = {stem: level(split, stem) * rng.standard_normal((2, 4096)) for stem in STEMS}
            for part, samples in {**stems, "mixture": sum(stems.values())}.items():
                audio.write(folder / f"{part}.wav", samples, 11025, "FLOAT")
            listed.append(Song(name, split, "seen", folder, 4096))
    Manifest(11025, tuple(listed)).save(root / "data/prepared/manifest.json")
