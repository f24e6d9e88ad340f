"""A peer that this project trained, as a system."""

from __future__ import annotations

from pathlib import Path

import torch

from ..audio import Audio
from ..base.errors import UserError
from ..peers.common import registry
from ..songs.manifest import STEMS
from .system import System


def load(path: Path, device: torch.device | str = "cpu") -> list[System]:
    """The systems in a checkpoint of a peer: one for each way to use its weights.

    UserError if the file is not a peer's checkpoint.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        about, weights = content["peer"], content["model"]
        peer = registry.build(about["name"], about["network"])
        peer.load_state_dict(weights)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. Run `dvc repro` to train the peer.") from None
    except Exception as error:  # A damaged or hostile file can fail anywhere in the unpickler.
        raise UserError(f"{path}: not a checkpoint of a peer ({error}).") from error
    peer.to(device).eval()

    def system(suffix: str) -> System:
        @torch.inference_mode()
        def separate(mixture: Audio, sample_rate: int) -> dict[str, Audio]:
            rows = torch.from_numpy(mixture).to(device)
            stems = peer.separate(rows, sample_rate, **peer.variants[suffix])
            found = stems.transpose(0, 1).cpu().numpy()
            return dict(zip(STEMS, found, strict=True))

        return System(
            name=about["name"] + suffix,
            separate=separate,
            trained_on="the training songs of this experiment",
            licence="that of the songs",
            sample_rate=about["sample_rate"],
            long_songs=peer.long_songs,
        )

    return [system(suffix) for suffix in peer.variants]
