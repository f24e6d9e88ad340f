"""Train E2 in other ways, for the same processor time: docs/variants.md.

    uv run python -m studies.variants              # needs `dvc repro` first; 90 minutes
    uv run python -m studies.variants --seeds 0    # under one seed
    uv run python -m studies.variants --write      # train nothing, write the page from its CSV

The models of stage 1 are those of runs/; a seed draws the initial weights of E2 and the segments
that it is trained on. A variant that was trained under a seed by today's code is not trained again,
so that the same command resumes. No choice is made here.
"""

from __future__ import annotations

import argparse
import copy
import functools
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import map_coordinates
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import measuring
from jukesep import audio
from jukesep.base import params, paths
from jukesep.base.errors import reported
from jukesep.base.files import atomic, write_text
from jukesep.base.params import Bottleneck, Params, Recipe
from jukesep.base.progress import bar
from jukesep.base.seeds import numpy_generator, torch_seed
from jukesep.kernels import devices
from jukesep.model import jukebox
from jukesep.model.vqvae import VQVAE, Encoder
from jukesep.peers.common.spectra import sound, spectrum
from jukesep.pipeline.train import STATISTICS_SEGMENTS
from jukesep.resume.folder import About, Training
from jukesep.scoring import metrics
from jukesep.separation.chunked import apply_chunked
from jukesep.separation.refine import OVERLAP, Wiener
from jukesep.songs.manifest import MIXTURE, STEMS, Manifest
from jukesep.training import conditioning, losses
from jukesep.training.conditioning import Conditioned
from jukesep.training.loop import train
from jukesep.training.segments import Cut, Segments
from jukesep.training.tasks import Prepared, Terms
from studies import experiments, records
from studies.variants_page import (
    FROM_SCRATCH,
    INIT,
    LEVELS,
    MASKING_STEPS,
    MATCHING_SHARE,
    MATCHING_STEPS,
    PAGE,
    PITCHES,
    SCORES,
    SCRATCH,
    VARIANTS,
    Score,
    load,
    page,
)

SEEDS = (0, 1, 2)
FEW = {"steps": 3}
FLOOR = 1e-6  # magnitude of a silent estimate: where all are silent, each has the same share


class Matching:
    """Stage 2 for one or several stems: a model's channels hold their latents, one after another.

    With one stem, this is the `LatentMatching` of a random E2 and the plain mean squared error.
    """

    columns = ()
    codes = 0  # its log needs no usage of the codebook

    def __init__(self, model: Conditioned, stage1: Sequence[VQVAE]) -> None:
        self.model = model
        self.stage1 = [one.eval().requires_grad_(False) for one in stage1]

    def to(self, device: torch.device) -> None:
        for module in (self.model, *self.stage1):
            module.to(device)

    @torch.no_grad()
    def prepare(self, batch: Tensor) -> Prepared:
        latents = [one.encode(batch[:, k : k + 1]) for k, one in enumerate(self.stage1, 1)]
        return batch[:, :1], torch.cat(latents, 1)

    def distance(self, model: nn.Module, batch: Prepared) -> Tensor:
        """What the training lowers."""
        mixture, target = batch
        return losses.stage2_loss(target, model(mixture))[0]

    def loss(self, batch: Prepared, step: int) -> tuple[Tensor, Terms]:
        return self.distance(self.model, batch), {}

    def state(self) -> Mapping[str, float]:
        return {}

    def validation_loss(self, averaged: nn.Module, batch: Prepared) -> float:
        return float(self.distance(averaged, batch))

    def save(self, averaged: nn.Module, path: Path, step: int) -> None:
        with atomic(path) as temporary:
            torch.save(averaged.state_dict(), temporary)

    def sample(self, averaged: nn.Module, excerpt: Tensor) -> dict[str, Tensor]:
        return {}


class Masking(Matching):
    """End to end: the mixture, masked by what the decoders make of the latents, matches the stems.

    The latents are not quantised, and the decoders stay as they are.
    """

    def __init__(self, model: Conditioned, stage1: Sequence[VQVAE], window: int) -> None:
        super().__init__(model, stage1)
        self.window = window

    def prepare(self, batch: Tensor) -> Prepared:
        return batch[:, :1], batch[:, 1:]

    def distance(self, model: nn.Module, batch: Prepared) -> Tensor:
        mixture, stems = batch
        parts = zip(self.stage1, model(mixture).chunk(len(self.stage1), 1), strict=True)
        estimates = torch.cat([one.decode(latents) for one, latents in parts], 1)
        return F.l1_loss(masked(mixture, estimates, self.window), stems)


def masked(mixture: Tensor, estimates: Tensor, window: int) -> Tensor:
    """Share the mixture (B, 1, T) by the magnitudes of estimates (B, stems, T): (B, stems, T)."""
    hop = window // OVERLAP
    weights = spectrum(estimates, window, hop).abs() + FLOOR
    shares = spectrum(mixture, window, hop) * (weights / weights.sum(1, keepdim=True))
    return sound(shares, window, hop, mixture.shape[-1])


class Varied(Segments):
    """Segments whose stems are played faster or slower, louder or softer, before they are mixed."""

    def _mono(self, cut: Cut, index: int) -> np.ndarray:
        draws = numpy_generator(self.seed, f"{self.purpose}/varied/{cut.part}", index)
        speed = 2 ** (draws.uniform(-PITCHES, PITCHES) / 12)
        gain = np.float32(10 ** (draws.uniform(-LEVELS, LEVELS) / 20))
        length = min(math.ceil(self.segment * speed) + 1, cut.song.samples)
        start = min(cut.start, cut.song.samples - length)
        heard = audio.to_mono(audio.read(cut.song.file(cut.part), start, length), cut.blend)[0]
        at = speed * np.arange(self.segment)[None]
        return gain * map_coordinates(heard, at, np.float32, mode="nearest")


class Bench:
    """The data, parameters and models of stage 1 that the variants of one seed have in common."""

    def __init__(self, p: Params, seed: int, init: str = INIT) -> None:
        self.p, self.seed = p, seed
        self.songs = Manifest.load(paths.MANIFEST)
        self.stage1 = {
            stem: jukebox.load_jukebox(p.stage1_checkpoint(stem, init)).eval() for stem in STEMS
        }

    def models(self, stems: Sequence[str]) -> list[VQVAE]:
        """Those of stage 1."""
        return [self.stage1[stem] for stem in stems]

    def segments(
        self,
        stems: Sequence[str],
        purpose: str = "stage2",
        kind: Callable[..., Segments] = Segments,
    ) -> Segments:
        """What to train on."""
        songs, recipe = self.songs.split("train"), self.p.stage2
        about = (MIXTURE, *stems), recipe.segment, self.seed, purpose
        return kind(songs, *about, blend=recipe.blend)

    def encoder(self, stems: Sequence[str]) -> Conditioned:
        """E2 for stems, as stage 2 starts from it: a head for each stem on one trunk."""
        recipe, stage1 = self.p.stage2, self.models(stems)
        mean = deviation = None
        if recipe.standardise:
            segments = self.segments(stems)
            heard = torch.stack([segments[index] for index in range(STATISTICS_SEGMENTS)])
            both = [
                conditioning.statistics(one.encode(item[None, None])[0] for item in heard[:, k])
                for k, one in enumerate(stage1, 1)
            ]
            mean, deviation = (torch.cat(values) for values in zip(*both, strict=True))
        torch.manual_seed(torch_seed(self.seed, "stage2/encoder"))
        sizes = stage1[0].architecture
        encoder = Encoder(replace(sizes, latent_dim=sizes.latent_dim * len(stems)))
        return Conditioned(encoder, recipe.input_scale, mean, deviation)

    def train(
        self,
        task: Matching,
        stems: Sequence[str],
        steps: float,
        purpose: str = "stage2",
        kind: Callable[..., Segments] = Segments,
    ) -> None:
        """Train a task's model by the recipe of stage 2; it ends with the averaged weights."""
        changes = {"steps": max(round(steps), 1), "workers": 0}
        recipe = Recipe(**self.p.stage2.model_dump(include=set(Recipe.model_fields)) | changes)
        valid = (MIXTURE, *stems), recipe.segment, self.seed, "valid", False
        with tempfile.TemporaryDirectory() as out:
            title = f"{type(task).__name__.lower()} {'+'.join(stems)}, seed {self.seed}"
            train(
                task,
                recipe,
                self.segments(stems, purpose, kind),
                Segments(self.songs.split("valid"), *valid),
                [recipe.steps],
                Training(About(title, "stage2", Path(out))),
            )
            averaged = torch.load(Path(out) / f"checkpoints/{recipe.steps}.pt")
        task.model.load_state_dict(averaged)


def separators(bench: Bench, model: Conditioned, stems: Sequence[str] = STEMS) -> dict[str, VQVAE]:
    """Split a trained encoder into a model for each stem: the trunk and the head of the stem."""
    whole, found = model.folded().state_dict(), {}
    *_, weight, bias = whole  # of the last convolution
    for number, stem in enumerate(stems):
        own = {name: whole[name].chunk(len(stems))[number] for name in (weight, bias)}
        found[stem] = copy.deepcopy(bench.stage1[stem])
        found[stem].encoder.load_state_dict({**whole, **own})
    return found


def separate(bench: Bench, kind: Callable[..., Segments] = Segments) -> dict[str, VQVAE]:
    """Stage 2: an encoder for each stem."""
    found: dict[str, VQVAE] = {}
    for stem in STEMS:
        model = bench.encoder([stem])
        task, steps = Matching(model, bench.models([stem])), bench.p.stage2.steps
        bench.train(task, [stem], steps, kind=kind)
        found |= separators(bench, model, [stem])
    return found


def shared(bench: Bench) -> dict[str, VQVAE]:
    """One encoder with four heads."""
    model, steps = bench.encoder(STEMS), MATCHING_STEPS * bench.p.stage2.steps
    bench.train(Matching(model, bench.models(STEMS)), STEMS, steps)
    return separators(bench, model)


def end_to_end(bench: Bench) -> dict[str, VQVAE]:
    """The same, but for the last part of the time through decoders and masks."""
    model, stage1, steps = bench.encoder(STEMS), bench.models(STEMS), bench.p.stage2.steps
    bench.train(Matching(model, stage1), STEMS, MATCHING_SHARE * MATCHING_STEPS * steps)
    masking = Masking(model, stage1, Wiener(bench.p.model.sample_rate).n_fft)
    last = (1 - MATCHING_SHARE) * MASKING_STEPS * steps
    bench.train(masking, STEMS, last, "stage2/masking")
    return separators(bench, model)


remixed = functools.partial(separate, kind=functools.partial(Segments, mixtures="remixed"))
varied = functools.partial(separate, kind=functools.partial(Varied, mixtures="remixed"))
WAYS: dict[str, Callable[[Bench], dict[str, VQVAE]]] = dict(
    zip(VARIANTS, (separate, shared, end_to_end, separate, remixed, varied), strict=True)
)


def evaluate(bench: Bench, models: Mapping[str, VQVAE]) -> dict[str, list[float]]:
    """The SDR of each of the page's KINDS, by the songs' group."""
    chunk, rate = bench.p.separation.chunk, bench.songs.sample_rate
    ways: tuple[Bottleneck, ...] = ("quantise", "bypass")
    found: dict[str, list[np.ndarray]] = {}
    for song in bench.songs.split(bench.p.evaluate.split):
        mixture = torch.from_numpy(audio.to_mono(audio.read(song.file(MIXTURE))))
        plain = [
            {stem: apply_chunked(m, mixture, chunk, bottleneck=way) for stem, m in models.items()}
            for way in ways
        ]
        estimates = [*plain, *(Wiener(rate)(mixture, stems) for stems in plain)]
        sdrs = np.full((len(STEMS), len(estimates)), np.nan)
        for row, stem in zip(sdrs, STEMS, strict=True):
            reference = audio.read(song.file(stem))
            if not metrics.silent(reference):
                mono = audio.to_mono(reference)
                row[:] = [metrics.sdr(mono, stems[stem].numpy()) for stems in estimates]
        found.setdefault(song.group, []).append(sdrs)
    # The mean over the songs that have a stem, then over the stems.
    return {group: np.nanmean(sdrs, 0).mean(0).tolist() for group, sdrs in found.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, keep the scores, write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--write", action="store_true", help="train nothing, write the page")
    options = parser.parse_args(arguments)
    if options.write:
        records.require(SCORES)
    else:
        with tempfile.TemporaryDirectory() as folder:
            os.environ[paths.VARIABLE] = folder
            measure(options.seeds)
    write_text(PAGE, page(load()))
    print(PAGE)


def measure(seeds: Sequence[int]) -> None:
    """Train and score what has no scores of today's code; keep the scores of each."""
    experiments.require_commit()
    p, commit, processor = params.load(), experiments.commit(), measuring.processor()
    devices.choose("cpu", 1)
    done = {_job(score) for score in load() if experiments.unchanged(score.commit)}
    every = [(INIT, name) for name in VARIANTS]
    every += [(SCRATCH, name) for name in FROM_SCRATCH if SCRATCH in p.inits]
    jobs = [(seed, *one) for seed in seeds for one in every if (seed, *one) not in done]
    if jobs:  # load what is compiled before the first measurement
        end_to_end(Bench(p.model_copy(update={"stage2": p.stage2.model_copy(update=FEW)}), 0))
    below = {"position": 1} if sys.stderr.isatty() else {}  # the bar of a training
    for seed, init, name in bar(jobs, desc="variants", unit="variant", **below):
        bench = Bench(p, seed, init)
        began = time.process_time()
        models = WAYS[name](bench)
        seconds = round(time.process_time() - began, 1)
        kept = [score for score in load() if _job(score) != (seed, init, name)]
        for songs, sdrs in evaluate(bench, models).items():
            numbers = (round(sdr, 4) for sdr in sdrs)
            about = seed, p.evaluate.split, songs, *numbers, seconds, processor, commit
            kept.append(Score(name, init, *about))
        kept.sort(key=lambda one: (one.init, one.seed, VARIANTS.index(one.variant)))
        write_text(SCORES, records.text(Score, kept))


def _job(score: Score) -> tuple[int, str, str]:
    return score.seed, score.init, score.variant


if __name__ == "__main__":
    with reported():
        main()
