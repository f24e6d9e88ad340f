# mypy: allow-untyped-defs
"""The residual blocks and the codebook's search as Triton kernels, for `triton_networks`.

Importing this imports triton: only code that is about to compute on an NVIDIA GPU does (or a test,
with TRITON_INTERPRET=1 on a CPU). Activations are channels-last, (batch, time, channels): with so
few channels a block moves bytes more than it computes, and a whole row of channels lies together.

A kernel's programs go through the tiles of time in turns, with the weights held on the chip. Each
keeps the sum of its own tiles' weight gradients; the sums are added up in one order, with no
atomics, so that the same input gives the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class Launch:
    """How a kernel is laid out on the GPU; its results do not depend on it, but to rounding."""

    tile: int
    """Time steps (or latents) worked on at a time."""
    warps: int
    stages: int
    """Tiles in flight at a time."""
    programs: int
    """On each multiprocessor."""


# By bytes of a number. Measured: docs/gpu.md.
FORWARD = {2: Launch(128, 8, 4, 1), 4: Launch(128, 8, 2, 1)}
INNER = {2: Launch(128, 4, 3, 2), 4: Launch(64, 4, 2, 2)}
DILATED = {2: Launch(64, 4, 2, 2), 4: Launch(32, 4, 2, 2)}
CONVOLUTION = {2: Launch(64, 4, 2, 3), 4: Launch(64, 4, 1, 3)}
ONE_CHANNEL, ONE_CHANNEL_GRADIENTS = Launch(128, 4, 1, 8), Launch(64, 4, 1, 8)
NEAREST, CODES_TILE = Launch(128, 4, 2, 2), 64
SUM_SHARES = 32


@triton.jit
def _relu(x):
    # A NaN stays one, as in the definition: a training that has gone wrong must stop.
    return tl.maximum(x.to(tl.float32), 0.0, propagate_nan=tl.PropagateNan.ALL).to(x.dtype)


@triton.jit
def _forward(
    x, weights, biases, pointwise, ends, y, hidden, length, tiles, dilation,
    CHANNELS: tl.constexpr, TILE: tl.constexpr, KEEP: tl.constexpr, FACTORS: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """y = x + V relu(W * relu(x) + b) + c, and, to KEEP, hidden = relu(W * relu(x) + b)."""
    number = x.dtype.element_ty
    channels, steps = tl.arange(0, CHANNELS), tl.arange(0, TILE)
    across = channels[None, :] * CHANNELS + channels[:, None]  # (in, out) of a weight (out, in)
    left = tl.load(weights + 3 * across).to(number)
    middle = tl.load(weights + 3 * across + 1).to(number)
    right = tl.load(weights + 3 * across + 2).to(number)
    out = tl.load(pointwise + across).to(number)
    bias = tl.load(biases + channels)[None, :]
    end = tl.load(ends + channels)[None, :]
    place = steps[:, None] * CHANNELS + channels[None, :]
    reach = dilation * CHANNELS
    tiles_each = tl.cdiv(length, TILE)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=STAGES):
        first = tile % tiles_each * TILE
        base = ((tile // tiles_each).to(tl.int64) * length + first) * CHANNELS
        time = (first + steps)[:, None]
        here = x + base + place
        centre = tl.load(here, time < length, other=0.0)
        before = tl.load(here - reach, (time >= dilation) & (time < length + dilation), other=0.0)
        after = tl.load(here + reach, time < length - dilation, other=0.0)
        inner = tl.dot(_relu(before), left, input_precision=FACTORS)
        inner = tl.dot(_relu(centre), middle, inner, input_precision=FACTORS)
        inner = tl.dot(_relu(after), right, inner, input_precision=FACTORS)
        kept = _relu(inner + bias).to(number)
        if KEEP:
            tl.store(hidden + base + place, kept, time < length)
        sum_ = tl.dot(kept, out, input_precision=FACTORS) + end + centre.to(tl.float32)
        tl.store(y + base + place, sum_.to(number), time < length)


@triton.jit
def _inner(
    hidden, grads, pointwise, inner, parts, length, tiles,
    CHANNELS: tl.constexpr, TILE: tl.constexpr, FACTORS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """inner = V^T grads where hidden > 0; each program's gradients of biases, pointwise, ends."""
    number = grads.dtype.element_ty
    channels, steps = tl.arange(0, CHANNELS), tl.arange(0, TILE)
    across = channels[:, None] * CHANNELS + channels[None, :]  # (out, in)
    out = tl.load(pointwise + across).to(number)
    place = steps[:, None] * CHANNELS + channels[None, :]
    tiles_each = tl.cdiv(length, TILE)
    g_out = tl.zeros((CHANNELS, CHANNELS), tl.float32)
    g_bias = tl.zeros((CHANNELS,), tl.float32)
    g_end = tl.zeros((CHANNELS,), tl.float32)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=STAGES):
        first = tile % tiles_each * TILE
        at = ((tile // tiles_each).to(tl.int64) * length + first) * CHANNELS + place
        there = (first + steps)[:, None] < length
        g = tl.load(grads + at, there, other=0.0)
        h = tl.load(hidden + at, there, other=0.0)
        within = tl.dot(g, out, input_precision=FACTORS)
        within = tl.where(h.to(tl.float32) > 0, within, 0.0)
        tl.store(inner + at, within.to(number), there)
        g_out = tl.dot(tl.trans(g), h, g_out, input_precision=FACTORS)
        g_bias += tl.sum(within, 0)
        g_end += tl.sum(g.to(tl.float32), 0)
    size: tl.constexpr = 4 * CHANNELS * CHANNELS + 2 * CHANNELS
    part = parts + tl.program_id(0) * size + 3 * CHANNELS * CHANNELS
    tl.store(part + channels, g_bias)
    tl.store(part + CHANNELS + across, g_out)
    tl.store(part + CHANNELS + CHANNELS * CHANNELS + channels, g_end)


@triton.jit
def _dilated(
    x, inner, grads, weights, gx, parts, length, tiles, dilation,
    CHANNELS: tl.constexpr, TILE: tl.constexpr, FACTORS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """gx, from the gradients of the sum and of the dilated convolution, and those of weights."""
    number = x.dtype.element_ty
    channels, steps = tl.arange(0, CHANNELS), tl.arange(0, TILE)
    across = channels[:, None] * CHANNELS + channels[None, :]  # (out, in)
    left = tl.load(weights + 3 * across).to(number)
    middle = tl.load(weights + 3 * across + 1).to(number)
    right = tl.load(weights + 3 * across + 2).to(number)
    place = steps[:, None] * CHANNELS + channels[None, :]
    reach = dilation * CHANNELS
    tiles_each = tl.cdiv(length, TILE)
    # Transposed, (in, out): the sums' left factor is then the same three times.
    g_left = tl.zeros((CHANNELS, CHANNELS), tl.float32)
    g_middle = tl.zeros((CHANNELS, CHANNELS), tl.float32)
    g_right = tl.zeros((CHANNELS, CHANNELS), tl.float32)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=STAGES):
        first = tile % tiles_each * TILE
        at = ((tile // tiles_each).to(tl.int64) * length + first) * CHANNELS + place
        time = (first + steps)[:, None]
        there = time < length
        centre = tl.load(x + at, there, other=0.0)
        rows = tl.trans(_relu(centre))
        # This step is the left tap of the output one dilation later, and so on.
        here = inner + at
        after = tl.load(here + reach, time < length - dilation, other=0.0)
        same = tl.load(here, there, other=0.0)
        before = tl.load(here - reach, (time >= dilation) & (time < length + dilation), other=0.0)
        total = tl.dot(after, left, input_precision=FACTORS)
        total = tl.dot(same, middle, total, input_precision=FACTORS)
        total = tl.dot(before, right, total, input_precision=FACTORS)
        g_left = tl.dot(rows, after, g_left, input_precision=FACTORS)
        g_middle = tl.dot(rows, same, g_middle, input_precision=FACTORS)
        g_right = tl.dot(rows, before, g_right, input_precision=FACTORS)
        total = tl.where(centre.to(tl.float32) > 0, total, 0.0)
        total += tl.load(grads + at, there, other=0.0).to(tl.float32)
        tl.store(gx + at, total.to(number), there)
    size: tl.constexpr = 4 * CHANNELS * CHANNELS + 2 * CHANNELS
    across = channels[None, :] * CHANNELS + channels[:, None]
    part = parts + tl.program_id(0) * size + 3 * across
    tl.store(part, g_left)
    tl.store(part + 1, g_middle)
    tl.store(part + 2, g_right)


@triton.jit
def _taps(
    x, weights, biases, y, x_length, y_length, count, tiles,
    IN: tl.constexpr, OUT: tl.constexpr, TAPS: tl.constexpr, IN_STEP: tl.constexpr,
    OUT_STEP: tl.constexpr, FIRST: tl.constexpr, WEIGHT: tl.constexpr, WEIGHT_STEP: tl.constexpr,
    AT: tl.constexpr, BIAS: tl.constexpr, TILE: tl.constexpr, FACTORS: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """y[OUT_STEP t + AT] = bias + sum over j < TAPS of x[IN_STEP t + FIRST + j] times a weight.

    For t < count; the weight is weights[WEIGHT + WEIGHT_STEP j], (OUT, IN).
    """
    ins, outs, steps = tl.arange(0, IN), tl.arange(0, OUT), tl.arange(0, TILE)
    tiles_each = tl.cdiv(count, TILE)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=STAGES):
        item = (tile // tiles_each).to(tl.int64)
        t = tile % tiles_each * TILE + steps
        total = tl.zeros((TILE, OUT), tl.float32)
        if BIAS:
            total += tl.load(biases + outs)[None, :]
        for j in tl.static_range(TAPS):
            time = IN_STEP * t + FIRST + j
            there = (t < count) & (time >= 0) & (time < x_length)
            at = (item * x_length + time)[:, None] * IN + ins[None, :]
            rows = tl.load(x + at, there[:, None], other=0.0)
            weight = weights + (WEIGHT + WEIGHT_STEP * j) * IN * OUT
            if IN == 1:
                total += rows.to(tl.float32) * tl.load(weight + outs)[None, :].to(tl.float32)
            elif OUT == 1:
                column = tl.load(weight + ins)[None, :].to(tl.float32)
                total += tl.sum(rows.to(tl.float32) * column, 1, keep_dims=True)
            else:
                factor = tl.load(weight + ins[:, None] + outs[None, :] * IN)
                total = tl.dot(rows, factor, total, input_precision=FACTORS)
        at = (item * y_length + OUT_STEP * t + AT)[:, None] * OUT + outs[None, :]
        tl.store(y + at, total.to(y.dtype.element_ty), (t < count)[:, None])


@triton.jit
def _tap_gradients(
    one, other, parts, one_length, other_length, tiles,
    ONE: tl.constexpr, OTHER: tl.constexpr, STEP: tl.constexpr, TILE: tl.constexpr,
    FACTORS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Each program's share of sum over t of one[t] times other[STEP t + tap - 1], (ONE, OTHER).

    Behind it the sums of one[t] and of other[STEP t + tap - 1].
    """
    ones, others, steps = tl.arange(0, ONE), tl.arange(0, OTHER), tl.arange(0, TILE)
    tap = tl.program_id(1)
    tiles_each = tl.cdiv(one_length, TILE)
    total = tl.zeros((ONE, OTHER), tl.float32)
    sum_one, sum_other = tl.zeros((ONE,), tl.float32), tl.zeros((OTHER,), tl.float32)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=STAGES):
        item = (tile // tiles_each).to(tl.int64)
        t = tile % tiles_each * TILE + steps
        time = STEP * t + tap - 1
        there = (t < one_length) & (time >= 0) & (time < other_length)
        at = (item * one_length + t)[:, None] * ONE + ones[None, :]
        left = tl.load(one + at, (t < one_length)[:, None], other=0.0)
        at = (item * other_length + time)[:, None] * OTHER + others[None, :]
        right = tl.load(other + at, there[:, None], other=0.0)
        if OTHER == 1:
            total += tl.sum(left.to(tl.float32) * right.to(tl.float32), 0)[:, None]
        else:
            total = tl.dot(tl.trans(left), right, total, input_precision=FACTORS)
        sum_one += tl.sum(left.to(tl.float32), 0)
        sum_other += tl.sum(right.to(tl.float32), 0)
    size: tl.constexpr = ONE * OTHER + ONE + OTHER
    part = parts + (tl.program_id(0) * tl.num_programs(1) + tap) * size
    tl.store(part + ones[:, None] * OTHER + others[None, :], total)
    part += ONE * OTHER
    tl.store(part + ones, sum_one)
    tl.store(part + ONE + others, sum_other)


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


_compiled: dict[Any, Any] = {}


def _launch(
    kernel: Any, grid: tuple[int, ...], launch: Launch, tensors: tuple[Tensor, ...],
    numbers: tuple[int, ...], *constants: Any,
) -> None:  # fmt: skip
    """Run a kernel, in the order of its parameters. Constants: those before the number of stages.

    Triton looks at each argument each time for what it may assume of it, which takes longer than
    the smaller layers do; here one look-up finds what was compiled for the same.
    """
    aligned = tuple([(tensor.dtype, tensor.data_ptr() % 16) for tensor in tensors])
    key = (id(kernel), launch, numbers, constants, tensors[0].device, aligned)
    found = _compiled.get(key)
    if found is not None:
        found[(*grid, 1, 1)[:3]](*tensors, *numbers, *constants, launch.stages)
    else:
        _compiled[key] = kernel[grid](
            *tensors, *numbers, *constants, launch.stages, num_warps=launch.warps
        )


def forward(
    x: Tensor, weights: list[Tensor], dilation: int, factors: str, hidden: Tensor | None
) -> Tensor:
    """A block's output for x (B, T, C); `hidden`, of the same form, takes what `backward` needs.

    `weights` are the dilated (C, C, 3) and (C,) and the pointwise (C, C, 1) and (C,), all float32
    and contiguous. `factors` is tl.dot's `input_precision`.
    """
    batch, length, channels = x.shape
    launch = FORWARD[x.element_size()]
    tiles = batch * _tiles(length, launch.tile)
    y = torch.empty_like(x)
    _launch(
        _forward, (_programs(x, launch, tiles),), launch,
        (x, *weights, y, y if hidden is None else hidden), (length, tiles, dilation),
        channels, launch.tile, hidden is not None, factors,
    )  # fmt: skip
    return y


def backward(
    x: Tensor, hidden: Tensor, grad: Tensor, weights: list[Tensor], dilation: int, factors: str,
    inner: Tensor, parts: Tensor,
) -> Tensor:  # fmt: skip
    """The gradient of x from that of the output; all (B, T, C). `inner`, as large, is for its use.

    `parts` (programs, 4 C C + 2 C), as many as `programs` says, takes shares of the gradients of
    `weights`, flat, in their order.
    """
    batch, length, channels = x.shape
    gx = torch.empty_like(x)
    grid, size = (len(parts),), x.element_size()
    launch = INNER[size]
    _launch(
        _inner, grid, launch, (hidden, grad, weights[2], inner, parts),
        (length, batch * _tiles(length, launch.tile)), channels, launch.tile, factors,
    )  # fmt: skip
    launch = DILATED[size]
    _launch(
        _dilated, grid, launch, (x, inner, grad, weights[0], gx, parts),
        (length, batch * _tiles(length, launch.tile), dilation),
        channels, launch.tile, factors,
    )  # fmt: skip
    return gx


def programs(x: Tensor) -> int:
    """How many programs `backward` takes for the largest x (B, T, C)."""
    launch = DILATED[x.element_size()]
    return _programs(x, launch, x.shape[0] * _tiles(x.shape[1], launch.tile))


# What `taps` computes: for each launch the step of x, of y, the first of x, the weights, y's first.
TAPS = {
    "same": ((1, 1, -1, range(3), 0),),
    "mirrored": ((1, 1, -1, range(2, -1, -1), 0),),
    "halving": ((2, 1, -1, range(4), 0),),
    "doubling": ((1, 2, -1, range(3, 0, -2), 0), (1, 2, 0, range(2, -1, -2), 1)),
}


def taps(
    x: Tensor, weights: Tensor, bias: Tensor | None, kind: str, factors: str, number: torch.dtype
) -> Tensor:
    """A convolution of x (B, T, I) with weights (taps, O, I): (B, T', O), of the type `number`.

    "same" has three taps and keeps T, "mirrored" takes them from the last to the first; "halving"
    has four taps at every second step; "doubling" is the transpose of it.
    """
    batch, length, channels = x.shape
    out = weights.shape[1]
    steps = {"halving": length // 2, "doubling": 2 * length}.get(kind, length)
    y = torch.empty(batch, steps, out, device=x.device, dtype=number)
    launch = ONE_CHANNEL if 1 in (channels, out) else CONVOLUTION[x.element_size()]
    for in_step, out_step, first, order, at in TAPS[kind]:
        count = steps // out_step
        tiles = batch * _tiles(count, launch.tile)
        _launch(
            _taps, (_programs(x, launch, tiles),), launch,
            (x, weights, x if bias is None else bias, y), (length, steps, count, tiles),
            channels, out, len(order), in_step, out_step, first, order.start, order.step, at,
            bias is not None, launch.tile, factors,
        )  # fmt: skip
    return y


def tap_gradients(
    one: Tensor, other: Tensor, taps: int, factors: str
) -> tuple[Tensor, Tensor, Tensor]:
    """sum over b, t of one[b, t] times other[b, step t + tap - 1], zero outside of it.

    (B, T, C) and (B, step T, D) -> (taps, C, D), and the sums of the factors by themselves: (C,),
    (taps, D). All float32.
    """
    batch, length, ones = one.shape
    others = other.shape[2]
    launch = ONE_CHANNEL_GRADIENTS if others == 1 else CONVOLUTION[one.element_size()]
    tiles = batch * _tiles(length, launch.tile)
    programs = _programs(one, launch, tiles)
    size = ones * others + ones + others
    parts = torch.empty(programs, taps, size, device=one.device, dtype=torch.float32)
    _launch(
        _tap_gradients, (programs, taps), launch, (one, other, parts),
        (length, other.shape[1], tiles), ones, others, other.shape[1] // length, launch.tile,
        factors,
    )  # fmt: skip
    products, sum_one, sum_other = parts.sum(0).split([ones * others, ones, others], 1)
    return products.view(taps, ones, others), sum_one[0], sum_other


def nearest(rows: Tensor, k: Tensor, factors: str) -> Tensor:
    """rows (N, D), k (codes, D), float32 and contiguous -> the first nearest code of each (N,)."""
    codes = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    _launch(
        _nearest, (_tiles(len(rows), NEAREST.tile),), NEAREST,
        (rows, k, k.square().sum(1), codes), (len(rows), len(k)),
        k.shape[1], NEAREST.tile, CODES_TILE, factors,
    )  # fmt: skip
    return codes


def sums(rows: Tensor, codes: Tensor, counts: Tensor) -> Tensor:
    """The sum of the rows (N, D) of each code, of which there are `counts`: (codes, D)."""
    # A code that has won most rows is many programs' work.
    parts = rows.new_empty(SUM_SHARES, len(counts), rows.shape[1])
    order = codes.int().argsort(stable=True)
    _sums[(len(counts), SUM_SHARES)](
        rows, order, counts.cumsum(0), parts, DIM=rows.shape[1], TILE=64, SHARES=SUM_SHARES
    )
    return parts.sum(0)


def _tiles(steps: int, tile: int) -> int:
    return -(-steps // tile)  # triton.cdiv, which takes as long as a launch


def _programs(x: Tensor, launch: Launch, tiles: int) -> int:
    return min(tiles, _multiprocessors(x.device) * launch.programs)


@cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":  # Triton's interpreter
        return 3
    properties: Any = torch.cuda.get_device_properties(device)
    return int(properties.multi_processor_count)
