"""Which inputs the Triton kernels take, and how they are launched.

This module does not import triton; the modules with kernels do, so they are imported only to
compute on an NVIDIA GPU, or in a test with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...base import progress

WIDTHS = (16, 32, 64)
"""Numbers of channels: powers of two that tensor cores take, whose gradients fit the registers."""


@dataclass(frozen=True)
class Launch:
    """How a kernel is laid out on the GPU; it changes results only by rounding."""

    tile: int
    """Time steps, or latents, computed at a time."""
    warps: int
    stages: int
    """Tiles in flight at a time."""
    programs: int
    """Programs on each multiprocessor."""


def fits(x: Tensor, widths: set[int]) -> bool:
    """Whether the kernels compute layers of these widths for x, a tensor on a GPU."""
    numbers = (torch.float32, torch.bfloat16)
    return widths <= set(WIDTHS) and usable(x.device) and number_of(x) in numbers


@cache
def usable(device: torch.device) -> bool:
    """Whether Triton runs on the device. If not, a line tells the user that PyTorch computes.

    Triton is made for NVIDIA GPUs from Ampere on. It keeps what it compiles in the user's home; if
    that cannot be written to, in a temporary folder.
    """
    if find_spec("triton") is None:
        why = "Triton is not installed"
    elif (
        device.type == "cuda"
        and not torch.version.hip
        and torch.cuda.get_device_capability(device) < (8, 0)
    ):
        why = f"{torch.cuda.get_device_name(device)} is older than NVIDIA's Ampere"
    elif not _can_keep():
        why = "Triton has no folder to write to; set TRITON_CACHE_DIR to one"
    else:
        return True
    progress.note(f"the kernels for GPUs are not used: {why}. Plain PyTorch computes instead.")
    return False


def _can_keep() -> bool:
    """Whether Triton has a folder for compiled code; a temporary one if its own is read-only."""
    home = os.environ.get("TRITON_HOME", "~")
    kept = os.environ.get("TRITON_CACHE_DIR") or os.path.join(home, ".triton", "cache")
    folder = Path(os.path.expanduser(kept))
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            _temporary.append(tempfile.TemporaryDirectory(prefix="jukesep-triton-"))
            os.environ["TRITON_CACHE_DIR"] = _temporary[-1].name
            progress.note(
                f"compiled code cannot be kept ({folder}: {error.strerror or error}). Each process "
                "compiles again. Set TRITON_CACHE_DIR to a writable folder."
            )
    except OSError:
        return False
    return True


_temporary: list[tempfile.TemporaryDirectory[str]] = []  # deleted when the process ends


def number_of(x: Tensor) -> torch.dtype:
    """The type that x is computed in: autocast's, or its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def on(x: Tensor) -> AbstractContextManager[object]:
    """Makes the GPU of x the current one, on which Triton launches."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else nullcontext()


_compiled: dict[Any, Any] = {}


def launch(
    kernel: Any, grid: tuple[int, ...], layout: Launch, tensors: tuple[Tensor, ...],
    numbers: tuple[int, ...], *constants: Any,
) -> None:  # fmt: skip
    """Run a kernel with its arguments in order; the number of stages comes after `constants`.

    On each launch Triton inspects every argument, which takes longer than a small layer. Here one
    look-up finds what was compiled for the same types, alignments, numbers and constants.
    """
    aligned = tuple([(tensor.dtype, tensor.data_ptr() % 16) for tensor in tensors])
    key = (id(kernel), layout, numbers, constants, tensors[0].device, aligned)
    found = _compiled.get(key)
    if found is not None:
        found[(*grid, 1, 1)[:3]](*tensors, *numbers, *constants, layout.stages)
    else:
        _compiled[key] = kernel[grid](
            *tensors, *numbers, *constants, layout.stages, num_warps=layout.warps
        )


def tiles_in(steps: int, tile: int) -> int:
    """Tiles of `tile` time steps that cover `steps`."""
    return -(-steps // tile)  # triton.cdiv takes as long as a launch


def programs_for(x: Tensor, layout: Launch, tiles: int) -> int:
    """Programs to launch for so many tiles, on the GPU of x."""
    return min(tiles, _multiprocessors(x.device) * layout.programs)


@cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":  # Triton's interpreter
        return 3
    properties: Any = torch.cuda.get_device_properties(device)
    return int(properties.multi_processor_count)
