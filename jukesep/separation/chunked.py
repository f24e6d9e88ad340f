"""A model run over a song: exact in chunks, with memory that does not grow with the song."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Literal

import torch
from torch.nn import functional as F

from ..model.vqvae import VQVAE

CHUNK = 393_216  # samples, the reference's
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
    """decode(quantise(encode(rows))) in chunks that equal the whole: (rows, samples) to the same.

    Each chunk carries the model's full receptive field as context on either side, so that its
    kept part sees what it would see in the whole song; at the song's own ends the model pads as
    it would there. With chunking "hard" it carries none, as in the reference, and the result
    depends on `chunk`. With bottleneck "bypass" the latents are decoded as they are, not quantised.
    `progress` is called with the samples finished by each chunk.
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
    """Cut audio that comes in blocks (rows, any number of samples) into chunks with their context.

    Yields each chunk of `chunk` samples (the last may be shorter) with up to `context` of its
    neighbours' on either side, and where in that window the chunk lies. Holds one window at a time.
    """
    held: list[torch.Tensor] = []  # from `before` samples ahead of the chunk on
    before = count = 0
    for block in chain(blocks, [None]):
        if block is not None:
            held.append(block)
            count += block.shape[-1]
        while count >= before + chunk + context or (block is None and count > before):
            # A song that came whole is not copied.
            whole = held[0] if len(held) == 1 else torch.cat(held, dim=-1)
            yield whole[..., : before + chunk + context], slice(before, min(before + chunk, count))
            first = max(before + chunk - context, 0)
            held, before = [whole[..., first:]], before + chunk - first
            count = held[0].shape[-1]


def apply(vqvae: VQVAE, rows: torch.Tensor, bottleneck: Bottleneck = "quantise") -> torch.Tensor:
    """decode(quantise(encode(rows))), (rows, samples) to the same."""
    padded = F.pad(rows, (0, -rows.shape[-1] % vqvae.architecture.hop)).unsqueeze(1)
    latents = vqvae.encode(padded)
    if bottleneck == "quantise":
        _, latents = vqvae.quantise(latents)
    return vqvae.decode(latents)[:, 0, : rows.shape[-1]]
