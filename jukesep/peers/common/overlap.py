"""Run a network over a song in chunks that overlap."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def overlapped(
    run: Callable[[Tensor], Tensor], mixture: Tensor, chunk: int, overlap: float = 0.25
) -> Tensor:
    """Run over chunks: (rows, samples) to (rows, stems, samples); a shorter song runs whole.

    Chunks of `chunk` samples share a part `overlap` with the next one. Their outputs are averaged
    with weights that rise to the middle of the chunk and fall again, as in demucs.
    """
    samples = mixture.shape[-1]
    if samples <= chunk:
        return run(mixture)
    weights = 1.0 - torch.linspace(-1, 1, chunk + 2, device=mixture.device)[1:-1].abs()
    total, weight = None, torch.zeros(samples, device=mixture.device)
    for start in range(0, samples, round(chunk * (1 - overlap))):
        stop = min(start + chunk, samples)
        found = run(mixture[:, start:stop])
        if total is None:
            total = torch.zeros(*found.shape[:-1], samples, device=mixture.device)
        part = weights[: stop - start]
        total[..., start:stop] += part * found
        weight[start:stop] += part
        if stop == samples:  # further chunks would hold nothing new, and might be too short to run
            break
    assert total is not None
    return total / weight
