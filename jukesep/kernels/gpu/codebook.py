# mypy: allow-untyped-defs
"""The codebook's search and sums as Triton kernels."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, launch, on, tiles_in

NEAREST, CODES_TILE = Launch(128, 4, 2, 2), 64
SUM_SHARES = 32
"""Programs that share the rows of one code, which may be most of them."""


@triton.jit
def _nearest(
    rows, k, norms, codes, count, number,
    DIM: tl.constexpr, TILE: tl.constexpr, CODES: tl.constexpr, FACTORS: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """codes = the first of the `number` rows of k that is nearest to each of the `count` rows."""
    at = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    dims, some = tl.arange(0, DIM), tl.arange(0, CODES)
    row = tl.load(rows + at[:, None] * DIM + dims[None, :], at[:, None] < count, other=0.0)
    best = tl.full((TILE,), float("inf"), tl.float32)
    code = tl.zeros((TILE,), tl.int32)
    for first in tl.range(0, number, CODES, num_stages=STAGES):
        these = first + some
        part = tl.load(k + these[None, :] * DIM + dims[:, None], these[None, :] < number, other=0.0)
        norm = tl.load(norms + these, these < number, other=float("inf"))
        # |x - k|^2 less the |x|^2 that all codes share.
        distances = norm[None, :] - 2 * tl.dot(row, part, input_precision=FACTORS)
        least, index = tl.min(distances, 1, return_indices=True, return_indices_tie_break_left=True)
        better = least < best
        best = tl.where(better, least, best)
        code = tl.where(better, first + index, code)
    tl.store(codes + at, code.to(tl.int64), at < count)


@triton.jit
def _sums(
    rows, order, ends, parts, DIM: tl.constexpr, TILE: tl.constexpr, SHARES: tl.constexpr
):  # fmt: skip
    """A share of the sum of the rows of one code: those from ends[code - 1] to ends[code]."""
    code, share = tl.program_id(0), tl.program_id(1)
    dims, some = tl.arange(0, DIM), tl.arange(0, TILE)
    first = tl.load(ends + code - 1, code > 0, other=0)
    end = tl.load(ends + code)
    total = tl.zeros((DIM,), tl.float32)
    for start in tl.range(first + share * TILE, end, SHARES * TILE):
        there = start + some < end
        row = tl.load(order + start + some, there, other=0)
        at = row[:, None] * DIM + dims[None, :]
        total += tl.sum(tl.load(rows + at, there[:, None], other=0.0), 0)
    tl.store(parts + (share * tl.num_programs(0) + code) * DIM + dims, total)


def nearest(latents: Tensor, k: Tensor, factors: str = "tf32x3") -> Tensor:
    """The first of the nearest codes of each latent, always with float32's accuracy.

    (B, dim, N), (codes, dim), both float32 -> (B, N) int64. `factors` is tl.dot's
    `input_precision`: three products of TF32 parts of each factor have float32's accuracy.
    """
    rows = latents.transpose(1, 2).flatten(0, 1).contiguous()
    codes = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    with on(rows):
        launch(
            _nearest, (tiles_in(len(rows), NEAREST.tile),), NEAREST,
            (rows, k, k.square().sum(1), codes), (len(rows), len(k)),
            k.shape[1], NEAREST.tile, CODES_TILE, factors,
        )  # fmt: skip
    return codes.view(len(latents), -1)


def sums(rows: Tensor, codes: Tensor, counts: Tensor) -> Tensor:
    """The sum of the rows of each code, (N, dim) and (N,) to (codes, dim); the same bits each time.

    `counts` (codes,) is the number of rows of each code.
    """
    parts = rows.new_empty(SUM_SHARES, len(counts), rows.shape[1])
    order = codes.int().argsort(stable=True)
    with on(rows):
        _sums[(len(counts), SUM_SHARES)](
            rows.contiguous(), order, counts.cumsum(0), parts,
            DIM=rows.shape[1], TILE=64, SHARES=SUM_SHARES,
        )  # fmt: skip
    return parts.sum(0)
