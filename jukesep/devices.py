"""Where tensors live."""

from __future__ import annotations

import torch

from .errors import UserError


def choose(name: str) -> torch.device:
    """The device of a name; auto takes CUDA, else MPS, else the CPU.

    UserError if the device is not there.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    if not available.get(name, False):
        there = ", ".join(kind for kind, is_there in available.items() if is_there)
        raise UserError(f"device={name} is not available here; there is: {there}, auto.")
    return torch.device(name)
