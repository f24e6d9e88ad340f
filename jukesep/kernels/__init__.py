"""Fast kernels for the model's layers, codebook and spectral loss: the one door to them.

Each function here takes the same input as `plain`, the definition in PyTorch, and returns the same
values to rounding. On a CPU kernels compiled by numba compute (`cpu`), on an NVIDIA GPU Triton
kernels (`gpu`); `plain` computes on other devices, for types and sizes that the kernels do not
take, and everywhere if the environment variable JUKESEP_KERNELS is `off`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ..base import progress
from ..base.errors import UserError
from .network import Network

__all__ = [
    "VARIABLE",
    "Network",
    "enabled",
    "nearest",
    "prepare",
    "run",
    "spectral_distance",
    "sums",
]

VARIABLE = "JUKESEP_KERNELS"
"""The switch: `auto`, the default, or `off`."""


def enabled() -> bool:
    """Whether kernels may compute. Raises UserError for an unknown value of JUKESEP_KERNELS."""
    value = os.environ.get(VARIABLE, "auto")
    if value not in ("auto", "off"):
        raise UserError(f"{VARIABLE}={value}: no such value; set it to auto or off.")
    return value == "auto"


def prepare(device: torch.device) -> None:
    """Import a CPU's kernels now, so that processes forked later need not import them again.

    A line tells the user if the kernels are off. UserError for an unknown value of JUKESEP_KERNELS.
    """
    if not enabled():
        if device.type != "mps":  # which has none
            progress.note(f"{VARIABLE}=off: plain PyTorch computes, slower than the kernels.")
    elif device.type == "cpu":
        import_module(f"{__name__}.cpu.networks")


def run(network: Network, x: Tensor, plain: Callable[[Tensor], Tensor]) -> Tensor:
    """The output of a network for x, (B, channels, T), with its gradients.

    `plain` is the module that `network` describes. For an x that does not fit the network it raises
    PyTorch's errors. The kernels have no second derivatives: they raise RuntimeError.
    """
    _, channels, *_ = network.layers[0]
    weight: Any = network.convolutions[0].weight
    fits = x.ndim == 3 and x.shape[1] == channels
    if fits and _on_cpu(x) and x.dtype == weight.dtype:
        from .cpu import networks as on_cpu

        return on_cpu.run(network, x)
    if fits and _on_gpu(x, network.widths):
        from .gpu import networks as on_gpu

        return on_gpu.run(network, x)
    return plain(x)


def nearest(latents: Tensor, k: Tensor, plain: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The first of the nearest codes of each latent: (B, dim, N), (codes, dim) -> (B, N) int64.

    Both float32, computed outside of autocast.
    """
    if _on_cpu(latents):
        from .cpu import codebook as on_cpu

        return on_cpu.nearest(latents, k)
    if _on_gpu(latents, {k.shape[1]}):
        from .gpu import codebook as on_gpu

        return on_gpu.nearest(latents, k)
    return plain(latents, k)


def sums(
    rows: Tensor, codes: Tensor, counts: Tensor, plain: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """The sum of the rows of each code: (N, dim), (N,) -> (codes, dim).

    `counts` (codes,) is the number of rows of each code. On an NVIDIA GPU the kernel gives the same
    bits each time, which PyTorch does not.
    """
    if _on_gpu(rows, {rows.shape[1]}):
        from .gpu import codebook as on_gpu

        return on_gpu.sums(rows, codes, counts)
    return plain(rows, codes, counts)


Stfts = Sequence[tuple[int, int, int]]


def spectral_distance(
    target: Tensor, other: Tensor, stfts: Stfts, plain: Callable[[Tensor, Tensor, Stfts], Tensor]
) -> Tensor:
    """The mean over `stfts` of ||S(target) - S(other)||_F: (B, T), (B, T) -> (B,).

    `stfts` are (n_fft, hop, window) in samples. Only `other` has a gradient.
    """
    if _on_cpu(target) and _on_cpu(other) and target.dtype == other.dtype:
        from .cpu import spectra as on_cpu

        return on_cpu.spectral_distance(target, other, stfts, plain)
    return plain(target, other, stfts)


def _on_cpu(x: Tensor) -> bool:
    return enabled() and x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def _on_gpu(x: Tensor, widths: set[int]) -> bool:
    """Whether the Triton kernels take x and layers of these widths."""
    if not (enabled() and x.device.type == "cuda"):
        return False
    from .gpu import launch

    return launch.fits(x, widths)
