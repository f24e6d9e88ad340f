"""Where tensors live, and how exactly they are computed with."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Literal

import torch

from ..base.errors import UserError

Precision = Literal["fp32", "tf32", "bf16"]


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device has too little memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    said = ("allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, (RuntimeError, OSError)) and any(one in str(error) for one in said)


def choose(name: str, threads: int = 0) -> torch.device:
    """The device of a name, to compute exactly; auto takes CUDA, else MPS, else the CPU.

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
        name = next(kind for kind, there in available.items() if there)
    elif not available.get(name, False):
        there = ", ".join(kind for kind, is_there in available.items() if is_there)
        raise UserError(f"device={name} is not available here; there is: {there}, auto.")
    device = torch.device(name)
    set_precision("fp32", device)
    return device


def set_precision(precision: Precision, device: torch.device) -> None:
    """tf32 lets a GPU round the factors of products to 10 bits; without, all is float32's.

    UserError for tf32 on another device than an NVIDIA GPU.
    """
    if precision == "tf32" and device.type != "cuda":
        raise UserError(
            f"precision=tf32 is for NVIDIA GPUs, and the device is {device.type}. "
            "Choose fp32 or bf16."
        )
    if device.type == "cuda":
        # PyTorch's own default lets convolutions round, and not matrix products.
        products = "tf32" if precision == "tf32" else "ieee"
        torch.backends.cuda.matmul.fp32_precision = products
        torch.backends.cudnn.conv.fp32_precision = products  # type: ignore[attr-defined]


def autocast(
    precision: Precision, device: torch.device
) -> Callable[[], AbstractContextManager[object]]:
    """What a model is run under; bf16 computes in 8 bits what bears it.

    On a GPU PyTorch decides what that is. On a CPU it is the factors of the networks' products, if
    the processor multiplies bfloat16.

    Weights, averages and the optimiser stay float32; so does the codebook's search.
    """
    if precision != "bf16":
        return nullcontext
    return partial(torch.autocast, device.type, torch.bfloat16)
