"""Where tensors live."""

from __future__ import annotations

import torch

from .errors import UserError


def choose(name: str, threads: int = 0) -> torch.device:
    """The device of a name; auto takes CUDA, else MPS, else the CPU.

    `threads` is how many a CPU operation may use; 0 leaves that to torch.

    UserError if the device is not there.
    """
    if threads:
        torch.set_num_threads(threads)
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
