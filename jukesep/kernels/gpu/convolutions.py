# mypy: allow-untyped-defs
"""The other convolutions of a network as Triton kernels, for `gpu.networks`.

Activations are channels-last, (batch, time, channels), as in `blocks`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, launch, programs_for, tiles_in

# By bytes of a number. Measured: docs/gpu.md.
CONVOLUTION = {2: Launch(64, 4, 2, 3), 4: Launch(64, 4, 1, 3)}
ONE_CHANNEL, ONE_CHANNEL_GRADIENTS = Launch(128, 4, 1, 8), Launch(64, 4, 1, 8)


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


# For each kind the launches of `taps`: step of x, step of y, first x, order of weights, first y.
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

    "same" has three taps and keeps T; "mirrored" is "same" with the taps in reverse order;
    "halving" has four taps at every second step; "doubling" is its transpose.
    """
    batch, length, channels = x.shape
    out = weights.shape[1]
    steps = {"halving": length // 2, "doubling": 2 * length}.get(kind, length)
    y = torch.empty(batch, steps, out, device=x.device, dtype=number)
    layout = ONE_CHANNEL if 1 in (channels, out) else CONVOLUTION[x.element_size()]
    for in_step, out_step, first, order, at in TAPS[kind]:
        count = steps // out_step
        tiles = batch * tiles_in(count, layout.tile)
        launch(
            _taps, (programs_for(x, layout, tiles),), layout,
            (x, weights, x if bias is None else bias, y), (length, steps, count, tiles),
            channels, out, len(order), in_step, out_step, first, order.start, order.step, at,
            bias is not None, layout.tile, factors,
        )  # fmt: skip
    return y


def tap_gradients(
    one: Tensor, other: Tensor, taps: int, factors: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum over b, t of one[b, t] times other[b, step t + tap - 1], which is 0 outside.

    (B, T, C), (B, step T, D) -> (taps, C, D), and the sums of each factor alone, (C,) and
    (taps, D). The results are float32.
    """
    batch, length, ones = one.shape
    others = other.shape[2]
    layout = ONE_CHANNEL_GRADIENTS if others == 1 else CONVOLUTION[one.element_size()]
    tiles = batch * tiles_in(length, layout.tile)
    programs = programs_for(one, layout, tiles)
    size = ones * others + ones + others
    parts = torch.empty(programs, taps, size, device=one.device, dtype=torch.float32)
    launch(
        _tap_gradients, (programs, taps), layout, (one, other, parts),
        (length, other.shape[1], tiles), ones, others, other.shape[1] // length, layout.tile,
        factors,
    )  # fmt: skip
    products, sum_one, sum_other = parts.sum(0).split([ones * others, ones, others], 1)
    return products.view(taps, ones, others), sum_one[0], sum_other
