"""The peers by name: each is a file of jukesep/peers, so that its stage depends on that file alone.

A file has `build`, which takes the sizes of its recipe's `network`, and `LIBRARIES`, the packages
beside torch and torchaudio that its network comes from.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from .peer import Peer

NAMES = ("open_unmix", "hdemucs", "conv_tasnet", "demucs", "wave_unet", "control")


def build(name: str, sizes: Mapping[str, int]) -> Peer:
    """A peer with random weights of the given sizes. ValueError for an unknown name."""
    found: Peer = _file(name).build(**sizes)
    return found


def libraries(name: str) -> tuple[str, ...]:
    """The packages beside torch and torchaudio that a peer's network comes from."""
    found: tuple[str, ...] = _file(name).LIBRARIES
    return found


def _file(name: str) -> Any:
    if name not in NAMES:
        raise ValueError(f"no peer is called {name}: {', '.join(NAMES)}")
    return import_module(f"jukesep.peers.{name}")
