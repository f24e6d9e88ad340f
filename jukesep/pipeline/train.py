"""Build and run the trainings from the parameters: weights, stage 1, stage 2."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .. import kernels
from ..base import paths
from ..base.errors import UserError
from ..base.params import Params, Recipe
from ..base.seeds import torch_seed
from ..kernels import devices
from ..model import distributed, jukebox
from ..model.vqvae import VQVAE, Architecture, Encoder
from ..resume import identity
from ..resume.folder import About, Training
from ..songs.manifest import MIXTURE, Manifest
from ..training import conditioning, losses
from ..training.conditioning import Conditioned
from ..training.loop import train
from ..training.segments import Segments
from ..training.tasks import LatentMatching, Reconstruction
from . import pretrained

BANDWIDTH_SECONDS = 600  # of training audio, as in Jukebox
STATISTICS_SEGMENTS = 64  # that the statistics of the latents are measured on


def weights(params: Params, init: str) -> None:
    """Write the weights that stage 1 starts from: runs/weights/<init>/vqvae.pth.tar."""
    folder = paths.weights(init)
    path = folder / paths.WEIGHTS
    if init == "scratch":
        jukebox.save_jukebox(_random_vqvae(params), path, 0, _hps(params, init))
    elif params.weights.source == "pretrain":
        vqvae, recipe = _random_vqvae(params), params.pretrain
        names = {f"checkpoints/{recipe.steps}.pt": paths.WEIGHTS}
        with training(params, "weights", "pretrain", {"init": init}, folder, names) as run:
            _train_vqvae(params, recipe, vqvae, MIXTURE, "pretrain", init, run)
    else:
        file = pretrained.find(params.weights)
        vqvae = jukebox.load_jukebox(file, level=params.weights.level)
        jukebox.save_jukebox(vqvae, path, 0, _hps(params, init))


def stage1(params: Params, stem: str, init: str) -> None:
    """Train the VQ-VAE on the isolated stem, from pretrained or random weights.

    UserError if no song to train on, or no song to score, has the stem.
    """
    for split in ("train", params.evaluate.split):
        Manifest.load(paths.MANIFEST).require(split, stem)
    recipe = params.stage1_of(stem)
    vqvae = _random_vqvae(params)
    start = jukebox.load_jukebox(paths.weights_file(init), segment=recipe.segment)
    if start.architecture != vqvae.architecture:
        raise UserError(
            f"{paths.weights_file(init)}: holds a model of {start.architecture}, but the "
            f"parameters have {vqvae.architecture}. Set model.* to the file's values."
        )
    if init == "pretrained":
        vqvae = start
    else:
        # The codebook stays empty and starts from the first batch's latents.
        vqvae.encoder, vqvae.decoder = start.encoder, start.decoder
        if recipe.codebook_init == "zeros":
            # As in the authors' code: all codes are zero, with the usage of a file's codes.
            usage = jukebox.restored_usage(vqvae.architecture, recipe.segment)
            vqvae.codebook.restore(torch.zeros_like(vqvae.codebook.k), usage)
    item, folder = {"stem": stem, "init": init}, paths.run("stage1", stem, init)
    with training(params, "stage1", "stage1", item, folder) as run:
        _train_vqvae(params, recipe, vqvae, stem, "stage1", init, run)


def stage2(params: Params, stem: str, init: str) -> None:
    """Train E2 on mixtures to match the latents of stage 1's encoder on the stem."""
    recipe = params.stage2
    first = jukebox.load_jukebox(params.stage1_checkpoint(stem, init))
    songs = Manifest.load(paths.MANIFEST)
    parts, segment, seed = (MIXTURE, stem), recipe.segment, params.seed
    segments = Segments(
        songs.split("train"),
        parts,
        segment,
        seed,
        "stage2",
        blend=recipe.blend,
        mixtures=recipe.mixtures,
    )
    encoder = _encoder2(params, init, first, segments)
    hps = _hps(params, init, stem)
    item, folder = {"stem": stem, "init": init}, paths.run("stage2", stem, init)
    with training(params, "stage2", "stage2", item, folder) as run:
        train(
            LatentMatching(encoder, first, recipe.loss, params.losses, hps),
            recipe,
            segments,
            Segments(songs.split("valid"), parts, segment, seed, "valid", False),
            recipe.checkpoints,
            run,
        )


def _train_vqvae(
    params: Params, recipe: Recipe, vqvae: VQVAE, part: str, stage: str, init: str, run: Training
) -> None:
    """Train a VQ-VAE: pretraining (`part` is the mixture) or stage 1 (`part` is a stem)."""
    manifest = Manifest.load(paths.MANIFEST)
    songs = manifest.split("pretrain" if part == MIXTURE else "train")
    segments = Segments(songs, (part,), recipe.segment, params.seed, stage)
    excerpts = (segments.stereo(index)[0] for index in range(len(segments)))
    bandwidths = losses.measure_bandwidths(excerpts, manifest.sample_rate, BANDWIDTH_SECONDS)
    task = Reconstruction(
        vqvae,
        bandwidths,
        params.losses,
        params.codebook,
        params.seed,
        _hps(params, init, part),
    )
    train(
        task,
        recipe,
        segments,
        Segments(manifest.split("valid"), (part,), recipe.segment, params.seed, "valid", False),
        [recipe.steps],
        run,
    )


@contextmanager
def training(
    params: Params,
    stage: str,
    section: str,
    item: Mapping[str, str],
    out: Path,
    names: Mapping[str, str] | None = None,
    libraries: Sequence[str] = (),
) -> Iterator[Training]:
    """Set up the training of a stage in dvc.yaml: its device, and other processes if any.

    `section` names the recipe in the parameters, `item` has the values of the stage's matrix or
    foreach, `libraries` are packages that have a part in this training alone.
    """
    what = identity.identity(
        stage,
        item,
        params.model_dump(mode="json"),
        libraries,
        device=devices.choose(params.device, params.threads).type,
        threads=str(params.threads),
        # The plain definitions round differently.
        **({} if kernels.enabled() else {"kernels": "off"}),
    )
    if "key" in item:
        title = f"{stage} {item['key']}"
    else:
        title = f"{section} {item.get('stem', MIXTURE)} {item['init']}"
    about = About(
        title=title,
        section=section,
        out=out,
        names=names or {},
        identity=what,
        save_minutes=params.save_minutes,
        sample_minutes=params.sample_minutes,
        sample_rate=params.model.sample_rate,
    )
    with distributed.group(devices.choose(params.device, params.threads)) as device:
        devices.set_precision(params.precision, device)
        if others := identity.differences(distributed.same(what), what):
            raise UserError(
                f"{about.title}: process {distributed.rank()} differs from process 0 in "
                f"{', '.join(others)}. Give all processes the same code, parameters and data."
            )
        yield Training(about, device, params.precision, main=distributed.rank() == 0)


def _encoder2(params: Params, init: str, stage1: VQVAE, segments: Segments) -> Conditioned:
    """The initial E2: random, stage 1's E1, or the encoder that stage 1 started from."""
    recipe = params.stage2
    mean = deviation = None
    if recipe.standardise:
        stems = (segments[index][None, 1:] for index in range(STATISTICS_SEGMENTS))
        mean, deviation = conditioning.statistics(stage1.encode(stem)[0] for stem in stems)
    if recipe.init == "stage1":
        encoder = copy.deepcopy(stage1.encoder)
    elif recipe.init == "jukebox":
        encoder = jukebox.load_encoder(paths.weights_file(init), stage1.architecture)
    else:
        torch.manual_seed(torch_seed(params.seed, "stage2/encoder"))
        encoder = Encoder(stage1.architecture)
    trained = recipe.init != "random"
    return Conditioned(encoder, recipe.input_scale, mean, deviation, keep=trained)


def _random_vqvae(params: Params) -> VQVAE:
    """PyTorch's initial weights, equal for all trainings with a seed, and an empty codebook."""
    model = params.model.model_dump(exclude={"sample_rate"})
    torch.manual_seed(torch_seed(params.seed, "vqvae"))
    return VQVAE(Architecture(**model))


def _hps(params: Params, init: str, part: str = MIXTURE) -> dict[str, Any]:
    """The metadata of a training's checkpoints."""
    return {
        "sample_rate": params.model.sample_rate,
        "scale": params.scale,
        "seed": params.seed,
        "init": init,
        "part": part,
    }
