"""Random numbers drawn from (seed, purpose, index): never from the order in which work is done."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def numpy_generator(seed: int, purpose: str, index: int = 0) -> np.random.Generator:
    """The generator of one draw: the same for the same three arguments, on any machine."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), index])


def torch_seed(seed: int, purpose: str, index: int = 0) -> int:
    """A seed for torch, as `numpy_generator`."""
    return int(numpy_generator(seed, purpose, index).integers(2**63))


def torch_generator(seed: int, purpose: str, index: int = 0) -> torch.Generator:
    """A CPU generator of torch, as `numpy_generator`."""
    import torch

    return torch.Generator().manual_seed(torch_seed(seed, purpose, index))
