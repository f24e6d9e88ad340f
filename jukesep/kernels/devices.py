"""The device that models run on, and the precision of its arithmetic."""

from __future__ import annotations

import platform
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Literal

import torch

from ..base import progress
from ..base.errors import UserError
from ..base.parallel import cores
from . import enabled, prepare

Precision = Literal["fp32", "tf32", "bf16"]


def out_of_memory(error: BaseException) -> bool:
    """Whether the error means that a device has too little memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    said = ("allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, (RuntimeError, OSError)) and any(one in str(error) for one in said)


def choose(name: str, threads: int = 0) -> torch.device:
    """The device called `name`, set to float32 precision, with its kernels ready.

    "auto" chooses CUDA, else MPS, else the CPU. `threads` is the number of threads of an operation
    on a CPU; 0 leaves it to PyTorch. A line tells the user if that is more than there are cores.
    UserError if the device is not available, or if JUKESEP_KERNELS has an unknown value.
    """
    if threads:
        torch.set_num_threads(min(threads, count := cores()))
        if threads > count:
            progress.note(f"threads={threads} gains nothing on {count} cores. Use at most {count}.")
    device = torch.device(resolve(name))
    set_precision("fp32", device)
    prepare(device)
    return device


def resolve(name: str) -> str:
    """The kind of device that `choose` takes for a name. UserError if it is not available."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return next(kind for kind, there in available.items() if there)
    if not available.get(name, False):
        there = ", ".join(kind for kind, is_there in available.items() if is_there)
        raise UserError(f"device={name} is not available here. Choose one of: {there}, auto.")
    return name


def set_precision(precision: Precision, device: torch.device) -> None:
    """With tf32 a GPU rounds the factors of products to 10 bits; otherwise products are float32.

    A line tells the user if the precision is not faster than fp32 on the device. UserError for tf32
    on a device other than an NVIDIA GPU.
    """
    if precision == "tf32" and device.type != "cuda":
        raise UserError(
            f"precision=tf32 is for NVIDIA GPUs, and the device is {device.type}. "
            "Choose fp32 or bf16."
        )
    if device.type == "cuda":
        # By default PyTorch lets convolutions round, but not matrix products.
        products = "tf32" if precision == "tf32" else "ieee"
        torch.backends.cuda.matmul.fp32_precision = products
        torch.backends.cudnn.conv.fp32_precision = products  # type: ignore[attr-defined]
    if precision != "fp32" and (why := _no_gain(device)):
        progress.note(f"precision={precision} is not faster than fp32 here: {why}. Use fp32.")


def autocast(
    precision: Precision, device: torch.device
) -> Callable[[], AbstractContextManager[object]]:
    """The context in which a model runs: for bf16 autocast to bfloat16, which keeps 8 bits.

    On a GPU PyTorch decides which operations use bfloat16. On a CPU the kernels round only the
    factors of a network's products, if the processor multiplies bfloat16. Weights, averages, the
    optimiser and the codebook's search stay float32.
    """
    if precision != "bf16":
        return nullcontext
    return partial(torch.autocast, device.type, torch.bfloat16)


def _no_gain(device: torch.device) -> str | None:
    """Why tf32 or bf16 is not faster than fp32 on the device; None if it is, or if that is unknown.

    docs/performance.md and docs/gpu.md have the measurements.
    """
    if device.type == "cuda" and not torch.version.hip:
        if torch.cuda.get_device_capability(device) < (8, 0):
            return f"{torch.cuda.get_device_name(device)} is older than NVIDIA's Ampere"
    elif device.type == "cpu":
        able = torch.cpu.get_capabilities()
        if enabled() and able.get("amx_bf16"):
            return "on a processor with AMX the kernels are slower in bf16"
        # What PyTorch gains by bf16 on other processors is not measured.
        known = enabled() or platform.machine().lower() in ("x86_64", "amd64")
        if known and not (able.get("avx512_bf16") or able.get("amx_bf16")):
            return "this processor has no AVX-512 BF16"
    return None
