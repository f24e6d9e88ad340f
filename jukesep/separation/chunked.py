"""Run a model over a song in chunks: exact, or with the chunk borders of the published code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Literal

import torch
from torch.nn import functional as F

from ..base.params import Bottleneck
from ..model.vqvae import VQVAE

CHUNK = 393_216  # samples, the paper's
Chunking = Literal["exact", "hard", "published"]


@torch.inference_mode()
def apply_chunked(
    vqvae: VQVAE,
    rows: torch.Tensor,
    chunk: int = CHUNK,
    progress: Callable[[int], object] | None = None,
    *,
    chunking: Chunking = "exact",
    bottleneck: Bottleneck = "quantise",
    temperature: float = 20.0,
    sample_rate: int | None = None,
) -> torch.Tensor:
    """decode(quantise(encode(rows))) chunk by chunk: (rows, samples) to the same shape.

    Chunks have `chunk` samples, rounded down to a multiple of the hop. With chunking "exact" each
    chunk has the model's full receptive field as context on either side, and only the song's own
    ends are padded: the result equals a run over the whole song. With "hard" and "published"
    chunks have no context, and the result depends on `chunk`. "hard" chunks begin at multiples of
    it, "published" chunks where those of the authors' code do (`published_chunks`). As there, the
    outputs follow one another from the start of the song. What exceeds the song is cut, and what
    they do not reach is zero.

    `bottleneck` and `temperature` are those of `apply`. `sample_rate` (Hz) is for "published"
    alone: ValueError if it is missing. `progress` is called with the number of samples that each
    chunk finished.
    """
    hop, context = vqvae.architecture.hop, vqvae.context() if chunking == "exact" else 0
    size, samples = max(chunk // hop, 1) * hop, rows.shape[-1]
    cut: Iterable[tuple[torch.Tensor, slice]]
    if chunking != "published":
        cut = windows([rows], size, context)
    elif sample_rate:
        spans = published_chunks(samples, size, sample_rate)
        cut = ((rows[:, span], slice(None)) for span in spans)
    else:
        raise ValueError("published chunks depend on the sample rate: pass sample_rate")
    output, done = torch.zeros_like(rows), 0
    for window, kept in cut:
        result = apply(vqvae, window, bottleneck, temperature)[:, kept][:, : samples - done]
        output[:, done : done + result.shape[-1]] = result
        done += result.shape[-1]
        if progress:
            progress(result.shape[-1])
    return output


def published_chunks(samples: int, chunk: int, sample_rate: int) -> Iterator[slice]:
    """The chunks that the authors' code cuts a song of `samples` samples into.

    It adds up the duration of a chunk in seconds, and librosa rounds the position down to samples
    (at `sample_rate` Hz): where the sum is below the exact position, a chunk begins one sample
    early. For 393,216 samples at 44,100 Hz these are chunks 5, 7, 10, 13, 14 and 15, counted from
    0, and then none before chunk 70. The last chunk ends with the song, so that an early one has
    one sample more. Source: `predict_channel.py` of the published code.
    """
    seconds = chunk / sample_rate
    position = 0.0
    for _ in range(samples // chunk):
        first = int(position * sample_rate)
        yield slice(first, first + int(seconds * sample_rate))
        position += seconds
    first = int(position * sample_rate)
    if first < samples:
        yield slice(first, samples)


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


def apply(
    vqvae: VQVAE,
    rows: torch.Tensor,
    bottleneck: Bottleneck = "quantise",
    temperature: float = 20.0,
) -> torch.Tensor:
    """decode(quantise(encode(rows))) in one piece: (rows, samples) to the same shape.

    With bottleneck "soft" the decoder gets the expected code at a temperature (`Codebook.expected`)
    in place of the nearest one, with "bypass" the latents as they are.
    """
    padded = F.pad(rows, (0, -rows.shape[-1] % vqvae.architecture.hop)).unsqueeze(1)
    latents = vqvae.encode(padded)
    if bottleneck == "quantise":
        _, latents = vqvae.quantise(latents)
    elif bottleneck == "soft":
        latents = vqvae.codebook.expected(latents, temperature)
    return vqvae.decode(latents)[:, 0, : rows.shape[-1]]
