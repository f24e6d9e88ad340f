"""The codebook's search on a CPU: each block of distances is searched while it is in the cache."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .compiled import Array, compiled

CHUNK = 2**18
"""Distances in a block."""


def nearest(latents: Tensor, k: Tensor) -> Tensor:
    """The first of the nearest codes of each latent.

    (B, dim, N), (codes, dim) -> (B, N) int64, as `model.codebook.nearest` finds them.
    """
    batch, _, length = latents.shape
    codes = torch.empty(batch, length, dtype=torch.int64)
    chunk = min(length, max(1, CHUNK // len(k)))
    products = latents.new_empty(len(k) * chunk)
    factors, norms = -2 * k, k.square().sum(1)
    for item, found in zip(latents, codes, strict=True):
        for part, to in zip(item.split(chunk, 1), found.split(chunk), strict=True):
            block = products[: len(k) * len(to)].view(len(k), -1)
            torch.mm(factors, part, out=block)
            _first_smallest(block.numpy(), norms.numpy(), to.numpy())
    return codes


@compiled
def _first_smallest(products: Array, norms: Array, codes: Array) -> None:
    """codes[t] = argmin of norms + products[:, t], the first on ties; NaN is the smallest."""
    length = products.shape[1]
    best, first = np.full(length, np.inf, products.dtype), np.zeros(length, np.int32)
    for j in range(len(products)):
        row, norm, number = products[j], norms[j], np.int32(j)
        for t in range(length):
            distance, so_far = norm + row[t], best[t]
            # Written to hold for a NaN, and to fail after one.
            closer = not distance >= so_far and so_far == so_far
            best[t] = distance if closer else so_far
            first[t] = number if closer else first[t]
    for t in range(length):
        codes[t] = first[t]
