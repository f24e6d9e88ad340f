"""The systems beside ours: which the parameters name, and what they are called.

Our refined stems are one of them, since they take all four models. This module does not import
torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base import paths
from ..songs.manifest import STEMS
from ..systems import equaliser

REFINED = "refined"
VARIANTS: Mapping[str, tuple[str, ...]] = {"open_unmix": ("", "_wiener")}
"""A peer's ways to use its weights, if there are several: the `variants` of its network."""
LABELS = {
    "open_unmix": "Open-Unmix",
    "open_unmix_wiener": "Open-Unmix, Wiener filter",
    "hdemucs": "HDemucs",
    "conv_tasnet": "Conv-TasNet",
    "demucs": "Demucs (version 2 form)",
    "wave_unet": "like Wave-U-Net",
    "control": "mask U-Net (control)",
    equaliser.NAME: "static equaliser",
    "scaled_mixture": "mixture / 4",
    "mixture": "the mixture as it is",
    "ideal_ratio_mask": "ideal ratio mask (oracle)",
}


@dataclass(frozen=True)
class Other:
    """A system that separates all stems at once. Its `name` is that in the scores."""

    name: str
    peer: str
    """Names its files: results/systems/<peer>.csv, results/audio/<peer>/."""
    step: int
    """The last one of its training."""

    def sound(self, song: str, stem: str) -> Path:
        """The mono audio of a stem that was scored."""
        prefix = "" if self.name == self.peer else f"{self.name}_"
        return paths.system_sounds(self.peer) / song / f"{prefix}{stem}.flac"


def refined_init(inits: Sequence[str]) -> str:
    """The init whose models are in models/separator, and so in the refined stems."""
    return "pretrained" if "pretrained" in inits else inits[0]


def others(params: Mapping[str, Any]) -> list[Other]:
    """The systems that `params` (params.yaml as a dictionary) names, in the order of the tables."""
    found = []
    if set(params["stems"]) == set(STEMS):
        found.append(Other(REFINED, REFINED, int(params["stage2"]["steps"])))
    for peer, recipe in params["peers"].items():
        if recipe:
            for suffix in VARIANTS.get(peer, ("",)):
                found.append(Other(peer + suffix, peer, int(recipe["steps"])))
    return found
