"""Train a peer as the parameters say: stage `peer`."""

from __future__ import annotations

import torch

from ..base import paths
from ..base.errors import UserError
from ..base.params import Params
from ..base.seeds import torch_seed
from ..model import distributed
from ..peers.common import registry
from ..peers.common.task import Separation
from ..songs.manifest import PARTS, Manifest
from ..training.loop import train
from ..training.segments import Segments
from .train import training

MEASURED = 256  # training segments whose spectra give the scale of a network's input


def peer(params: Params, name: str) -> None:
    """Train a peer on all stems at once: runs/peers/<name>/.

    UserError in one of several processes: batch normalisation would see each one's share alone.
    """
    if distributed.launched():
        raise UserError("peer: cannot share a training among processes. Start it without torchrun.")
    recipe = params.peers.recipe(name)
    songs = Manifest.load(paths.MANIFEST)
    parts, segment, seed = PARTS, recipe.segment, params.seed
    segments = Segments(songs.split("train"), parts, segment, seed, "peer")
    torch.manual_seed(torch_seed(seed, f"peer/{name}"))
    network = registry.build(name, recipe.network.model_dump())
    libraries = registry.libraries(name)
    item, folder = {"key": name}, paths.peer(name)
    with training(params, "peer", f"peers.{name}", item, folder, libraries=libraries) as run:
        network.measure(segments[index][:1] for index in range(MEASURED))
        about = {
            "name": name,
            "network": recipe.network.model_dump(),
            "sample_rate": params.model.sample_rate,
            "seed": seed,
        }
        train(
            Separation(network, seed, about),
            recipe,
            segments,
            Segments(songs.split("valid"), parts, segment, seed, "valid", False),
            [recipe.steps],
            run,
        )
