"""The device and the precision of computations."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Literal

import torch

from ..base.errors import UserError

Precision = Literal["fp32", "tf32", "bf16"]


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device, or the machine, ran out of memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    said = ("allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, (RuntimeError, OSError)) and any(one in str(error) for one in said)


def choose(name: str, threads: int = 0) -> torch.device:
    """Return the device called `name`, set to float32; auto is CUDA, else MPS, else the CPU.

    `threads` is the number of threads for CPU operations; 0 leaves it to torch. UserError if the
    device is not available.
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
        raise UserError(f"device={name} is not available here. Choose {there} or auto.")
    device = torch.device(name)
    set_precision("fp32", device)
    return device


def set_precision(precision: Precision, device: torch.device) -> None:
    """Allow or forbid tf32, which lets a GPU round the factors of products to 10 bits.

    With fp32 and bf16 it is forbidden. UserError for tf32 on any device but an NVIDIA GPU.
    """
    if precision == "tf32" and device.type != "cuda":
        raise UserError(
            f"precision=tf32 is for NVIDIA GPUs, and the device is {device.type}. "
            "Choose fp32 or bf16."
        )
    if device.type == "cuda":
        # By default, PyTorch allows tf32 in convolutions, but not in matrix products.
        products = "tf32" if precision == "tf32" else "ieee"
        torch.backends.cuda.matmul.fp32_precision = products
        torch.backends.cudnn.conv.fp32_precision = products  # type: ignore[attr-defined]


def autocast(
    precision: Precision, device: torch.device
) -> Callable[[], AbstractContextManager[object]]:
    """Return the context manager to run a model in: autocast to bfloat16, or nothing.

    On a GPU, PyTorch decides which operations use bfloat16. On a CPU, the networks round the
    factors of their products to it, if the processor has instructions for it. Weights, their
    averages, the optimiser and the codebook search stay in float32.
    """
    if precision != "bf16":
        return nullcontext
    return partial(torch.autocast, device.type, torch.bfloat16)
