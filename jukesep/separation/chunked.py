"""Run a model over a song in chunks: exact, in memory that does not grow with the song."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Literal

import torch
from torch.nn import functional as F

from ..model.vqvae import VQVAE

CHUNK = 393_216  # samples, as in the authors' code
Chunking = Literal["exact", "hard"]
Bottleneck = Literal["quantise", "bypass"]


@torch.inference_mode()
def apply_chunked(
    vqvae: VQVAE,
    rows: torch.Tensor,
    chunk: int = CHUNK,
    progress: Callable[[int], object] | None = None,
    *,
    chunking: Chunking = "exact",
    bottleneck: Bottleneck = "quantise",
) -> torch.Tensor:
    """decode(quantise(encode(rows))) chunk by chunk: (rows, samples) to the same shape.

    With chunking "exact" each chunk has the model's full receptive field as context on either
    side, and only the song's own ends are padded: the result equals a run over the whole song.
    With "hard", as in the authors' code, chunks have no context and the result depends on `chunk`
    (samples). With bottleneck "bypass" the latents are decoded without quantising.
    `progress` is called with the number of samples that each chunk finished.
    """
    hop, context = vqvae.architecture.hop, vqvae.context() if chunking == "exact" else 0
    output, done = torch.empty_like(rows), 0
    for window, kept in windows([rows], max(chunk // hop, 1) * hop, context):
        result = apply(vqvae, window, bottleneck)[:, kept]
        output[:, done : done + result.shape[-1]] = result
        done += result.shape[-1]
        if progress:
            progress(result.shape[-1])
    return output


def windows(
    blocks: Iterable[torch.Tensor], chunk: int, context: int
) -> Iterator[tuple[torch.Tensor, slice]]:
    """Cut audio that comes in blocks (rows, any number of samples) into chunks with context.

    Yields, for each chunk of `chunk` samples (the last may be shorter), a window with up to
    `context` more samples on either side, and the chunk's slice in it. Holds one window at a time.
    """
    held: list[torch.Tensor] = []  # starts `before` samples ahead of the chunk
    before = count = 0
    for block in chain(blocks, [None]):
        if block is not None:
            held.append(block)
            count += block.shape[-1]
        while count >= before + chunk + context or (block is None and count > before):
            # A song that came as one block is not copied.
            whole = held[0] if len(held) == 1 else torch.cat(held, dim=-1)
            yield whole[..., : before + chunk + context], slice(before, min(before + chunk, count))
            first = max(before + chunk - context, 0)
            held, before = [whole[..., first:]], before + chunk - first
            count = held[0].shape[-1]


def apply(vqvae: VQVAE, rows: torch.Tensor, bottleneck: Bottleneck = "quantise") -> torch.Tensor:
    """decode(quantise(encode(rows))) in one piece: (rows, samples) to the same shape."""
    padded = F.pad(rows, (0, -rows.shape[-1] % vqvae.architecture.hop)).unsqueeze(1)
    latents = vqvae.encode(padded)
    if bottleneck == "quantise":
        _, latents = vqvae.quantise(latents)
    return vqvae.decode(latents)[:, 0, : rows.shape[-1]]
