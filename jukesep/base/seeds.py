"""Random numbers that depend on (seed, purpose, index) only, not on the order of the work."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def numpy_generator(seed: int, purpose: str, index: int = 0) -> np.random.Generator:
    """Return a generator that depends on the three arguments only, on any machine."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), index])


def torch_seed(seed: int, purpose: str, index: int = 0) -> int:
    """Return a seed for torch that depends on the three arguments only."""
    return int(numpy_generator(seed, purpose, index).integers(2**63))


def torch_generator(seed: int, purpose: str, index: int = 0) -> torch.Generator:
    """Return a CPU generator of torch that depends on the three arguments only."""
    import torch

    return torch.Generator().manual_seed(torch_seed(seed, purpose, index))
