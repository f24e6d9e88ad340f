# mypy: allow-untyped-defs
"""The residual blocks as Triton kernels, for `gpu.networks`.

Activations are channels-last, (batch, time, channels), so that the channels of a time step are
contiguous: with so few channels, moving bytes takes longer than computing.

A program of a kernel goes through tiles of time steps with the weights held on the chip. It keeps
the sum of the weight gradients of its own tiles. The sums are added in one order, without atomics,
so that the same input gives the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, launch, programs_for, tiles_in

# By bytes of a number. Measured: docs/gpu.md.
FORWARD = {2: Launch(128, 8, 4, 1), 4: Launch(128, 8, 2, 1)}
INNER = {2: Launch(128, 4, 3, 2), 4: Launch(64, 4, 2, 2)}
DILATED = {2: Launch(64, 4, 2, 2), 4: Launch(32, 4, 2, 2)}


@triton.jit
def _relu(x):
    # NaN stays NaN, as in PyTorch, so that a training that diverges is noticed.
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
    """inner = V^T grads where hidden > 0.

    Each program writes its share of the gradients of biases, pointwise and ends.
    """
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
    """gx, from the gradients of y (`grads`) and of the dilated convolution (`inner`).

    Each program writes its share of the dilated weights' gradients.
    """
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
        # This step is the left tap of the output one dilation later, and the right tap of the
        # output one dilation earlier.
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


def forward(
    x: Tensor, weights: list[Tensor], dilation: int, factors: str, hidden: Tensor | None
) -> Tensor:
    """A block's output (B, T, C) for x (B, T, C).

    `hidden` (B, T, C), if given, receives what `backward` needs. `weights` are those of the dilated
    convolution, (C, C, 3) and (C,), and of the pointwise one, (C, C, 1) and (C,), all float32 and
    contiguous. `factors` is tl.dot's `input_precision`.
    """
    batch, length, channels = x.shape
    layout = FORWARD[x.element_size()]
    tiles = batch * tiles_in(length, layout.tile)
    y = torch.empty_like(x)
    launch(
        _forward, (programs_for(x, layout, tiles),), layout,
        (x, *weights, y, y if hidden is None else hidden), (length, tiles, dilation),
        channels, layout.tile, hidden is not None, factors,
    )  # fmt: skip
    return y


def backward(
    x: Tensor, hidden: Tensor, grad: Tensor, weights: list[Tensor], dilation: int, factors: str,
    inner: Tensor, parts: Tensor,
) -> Tensor:  # fmt: skip
    """The gradient of x from the gradient of the output, both (B, T, C).

    `inner` (B, T, C) is working memory. `parts` (programs(x), 4 C C + 2 C) receives each program's
    share of the gradients of `weights`, flat, in their order.
    """
    batch, length, channels = x.shape
    gx = torch.empty_like(x)
    grid, size = (len(parts),), x.element_size()
    layout = INNER[size]
    launch(
        _inner, grid, layout, (hidden, grad, weights[2], inner, parts),
        (length, batch * tiles_in(length, layout.tile)), channels, layout.tile, factors,
    )  # fmt: skip
    layout = DILATED[size]
    launch(
        _dilated, grid, layout, (x, inner, grad, weights[0], gx, parts),
        (length, batch * tiles_in(length, layout.tile), dilation),
        channels, layout.tile, factors,
    )  # fmt: skip
    return gx


def programs(x: Tensor) -> int:
    """How many programs `backward` runs for x (B, T, C); for several x, take the largest."""
    layout = DILATED[x.element_size()]
    return programs_for(x, layout, x.shape[0] * tiles_in(x.shape[1], layout.tile))
