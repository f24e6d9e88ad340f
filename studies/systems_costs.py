"""What the systems of docs/systems.md cost: parameters, training, separation.

Measured in one process and one thread, all systems in turn, so that a busy machine slows all of
them alike. Processor time, not time on the clock: of the steps, with the work of the process that
prepares batches, and of the separation of validation songs.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks import measuring
from jukesep import audio, load_separator
from jukesep.audio import Audio
from jukesep.base import params, paths
from jukesep.base.params import Params, Recipe
from jukesep.base.progress import bar
from jukesep.model import jukebox
from jukesep.model.vqvae import Architecture, Encoder
from jukesep.peers.common import registry
from jukesep.peers.common.peer import Peer
from jukesep.peers.common.task import Separation
from jukesep.resume.folder import About, Training
from jukesep.songs.manifest import MIXTURE, PARTS, STEMS, Manifest
from jukesep.systems import equaliser
from jukesep.training import losses
from jukesep.training.conditioning import Conditioned
from jukesep.training.loop import train
from jukesep.training.segments import Segments
from jukesep.training.tasks import LatentMatching, Reconstruction, Task
from studies import experiments

ROUNDS = 3
STEPS = (5, 45)  # of two short trainings: the difference of their times is that of the steps


@dataclass(frozen=True)
class Cost:
    """What a system costs."""

    system: str
    parameters: int
    training_seconds: float
    """Processor time of the demo's training of all stems."""
    speed: float
    """Seconds of audio that are separated into all stems in a second of processor time."""
    processor: str
    commit: str


def measure() -> list[Cost]:
    """The costs of all trained systems and of the static equaliser. Needs `dvc repro` first."""
    torch.set_num_threads(1)
    p = Params.model_validate(yaml.safe_load(params.compose(["peers=all"])))
    with tempfile.TemporaryDirectory() as folder:
        os.environ[paths.VARIABLE] = folder
        steps = _step_seconds(p)
    peers = {
        name: registry.build(name, recipe.network.model_dump()).eval()
        for name, recipe in p.peers
        if recipe
    }
    plain = load_separator(refinement="none")
    refined = load_separator()
    models = list(plain.models.values())
    ours = sum(_parameters(model) + model.codebook.k.numel() for model in models)
    budget = p.pretrain.steps * steps["stage1"]
    budget += sum(p.stage1_of(stem).steps * steps["stage1"] for stem in STEMS)
    budget += len(STEMS) * p.stage2.steps * steps["stage2"]
    rate = p.model.sample_rate
    ways: dict[str, Callable[[Audio], object]] = {
        "pretrained_late": lambda mixture: plain(mixture, rate),
        "refined": lambda mixture: refined(mixture, rate),
    }
    trained = dict.fromkeys(ways, (ours, budget))
    for name, peer in peers.items():
        for suffix, options in peer.variants.items():
            ways[name + suffix] = _separation(peer, rate, options)
            trained[name + suffix] = (_parameters(peer), p.peers.recipe(name).steps * steps[name])
    songs = Manifest.load(paths.MANIFEST)
    began = time.process_time()
    fitted = equaliser.fit(songs.split("train"), STEMS, rate)
    gains = sum(one.size for one in fitted.gains.values())
    trained[equaliser.NAME] = (gains, time.process_time() - began)
    ways[equaliser.NAME] = lambda mixture: fitted.separate(mixture, rate)
    mixtures = [audio.read(song.file(MIXTURE)) for song in songs.split("valid")[:4]]
    speeds = _speeds(ways, mixtures, rate)
    return [
        Cost(
            name, count, round(seconds, 1), round(speeds[name], 1), measuring.processor(),
            experiments.commit(),
        )
        for name, (count, seconds) in trained.items()
    ]  # fmt: skip


def _separation(peer: Peer, rate: int, options: Mapping[str, Any]) -> Callable[[Audio], object]:
    return lambda mixture: peer.separate(torch.from_numpy(mixture), rate, **options)


def _parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@torch.inference_mode()
def _speeds(
    ways: Mapping[str, Callable[[Audio], object]], mixtures: list[Audio], rate: int
) -> dict[str, float]:
    """Seconds of audio per second of processor time, the median of ROUNDS."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in bar(range(ROUNDS), desc="separation", unit="round"):
        for name, way in ways.items():
            began = time.process_time()
            for mixture in mixtures:
                way(mixture)
            seconds[name].append(time.process_time() - began)
    whole = sum(mixture.shape[1] for mixture in mixtures) / rate
    return {name: whole / statistics.median(found) for name, found in seconds.items()}


def _step_seconds(p: Params) -> dict[str, float]:
    """Processor time of a step of stage 1, of stage 2 and of each peer, the median of ROUNDS."""
    songs = Manifest.load(paths.MANIFEST)
    sizes = Architecture(**p.model.model_dump(exclude={"sample_rate"}))
    about = {"sample_rate": p.model.sample_rate}
    first = p.stage1_checkpoint(STEMS[0], "pretrained")
    bandwidths = losses.Bandwidths(l2=0.02, spec=30.0)  # no influence on the time

    def stage1() -> Task:
        vqvae = jukebox.load_jukebox(paths.weights_file("pretrained"), segment=p.stage1.segment)
        return Reconstruction(vqvae, bandwidths, p.losses, p.codebook, p.seed, about)

    def stage2() -> Task:
        vqvae = jukebox.load_jukebox(first)
        return LatentMatching(Conditioned(Encoder(sizes)), vqvae, p.stage2.loss, p.losses, about)

    def peer(name: str) -> Callable[[], Task]:
        network = p.peers.recipe(name).network.model_dump()
        return lambda: Separation(registry.build(name, network), p.seed, about)

    kinds: dict[str, tuple[Callable[[], Task], Recipe, tuple[str, ...]]] = {
        "stage1": (stage1, p.stage1, (STEMS[0],)),
        "stage2": (stage2, p.stage2, (MIXTURE, STEMS[0])),
    }
    for name, recipe in p.peers:
        if recipe:
            kinds[name] = (peer(name), recipe, PARTS)

    def seconds(name: str, steps: int) -> float:
        make, recipe, parts = kinds[name]
        changes = {"steps": steps, "valid_every": steps, "valid_segments": 1, "workers": 0}
        short = Recipe(**recipe.model_dump(include=set(Recipe.model_fields)) | changes)
        segments = Segments(songs.split("train"), parts, short.segment, p.seed, "cost")
        with tempfile.TemporaryDirectory() as out:
            title = f"cost {name} {time.time_ns()}"
            run = Training(About(title, name, Path(out), sample_rate=about["sample_rate"]))
            began = time.process_time()
            train(make(), short, segments, segments, [steps], run)
            return time.process_time() - began

    found: dict[str, list[float]] = {name: [] for name in kinds}
    for name in kinds:
        seconds(name, STEPS[0])  # compiles what is compiled
    for _ in range(ROUNDS):
        for name in kinds:
            few, many = (seconds(name, steps) for steps in STEPS)
            found[name].append((many - few) / (STEPS[1] - STEPS[0]))
    return {name: statistics.median(values) for name, values in found.items()}
