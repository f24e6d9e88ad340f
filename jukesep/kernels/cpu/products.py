"""Matrix products of a network's layers, and their weights packed for them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from ..network import BLOCK, COLUMNS, DOUBLING, KIND, ROWS, SAME
from . import tiles
from .compiled import Array, compiled, inlined
from .rows import ONE, ZERO, Rows, begin_with, widened

_REGISTER = tiles.REGISTER
_WIDE, _MIDDLE, _ = (vectors for _, vectors in tiles.SHAPES)
_wide, _middle, _narrow = tiles.STRIPS
_wide_active, _middle_active, _narrow_active = tiles.ACTIVE_STRIPS
_wide_rounded, _middle_rounded, _narrow_rounded = tiles.ROUNDED_STRIPS
LANES = tiles.LANES
"""Pairs in a vector."""


@compiled
def _product(
    bias: Array,
    start: Rows,
    a: Rows,
    right: int,
    active: bool,
    b: Rows,
    c: Rows,
    depth: int,
    height: int,
    width: int,
) -> None:
    """C = bias + S + A @ B, with relu(A) instead of A if active. A's columns are `right` apart.

    A is (height, depth), B (depth, width), S and C (height, width). depth > 0, and the width is a
    multiple of a cache line. NaN stays NaN in the ReLU.
    """
    (s, s0, s_down), (g, g0, g_down), (y, y0, y_down) = start, b, c
    lanes = _REGISTER // y.itemsize
    done = ZERO
    while done < width:
        left = (width - done) // lanes
        vectors = _WIDE if left >= _WIDE else _MIDDLE if left >= _MIDDLE else 1
        initial, before = (bias, done), (s, s0 + done, s_down)
        factor, to = (g, g0 + done, g_down), (y, y0 + done, y_down)
        if active:
            if vectors == _WIDE:
                _wide_active(initial, before, a, right, factor, to, depth, height)
            elif vectors == _MIDDLE:
                _middle_active(initial, before, a, right, factor, to, depth, height)
            else:
                _narrow_active(initial, before, a, right, factor, to, depth, height)
        elif vectors == _WIDE:
            _wide(initial, before, a, right, factor, to, depth, height)
        elif vectors == _MIDDLE:
            _middle(initial, before, a, right, factor, to, depth, height)
        else:
            _narrow(initial, before, a, right, factor, to, depth, height)
        done += vectors * lanes


@compiled
def _rounded_product(
    bias: Array,
    start: Rows,
    a: Rows,
    right: int,
    b: Rows,
    c: Rows,
    depth: int,
    height: int,
    width: int,
) -> None:
    """`_product` of pairs of bfloat16, summed in float32. `depth` counts pairs."""
    (s, s0, s_down), (g, g0, g_down), (y, y0, y_down) = start, b, c
    done = ZERO
    while done < width:
        left = (width - done) // LANES
        vectors = _WIDE if left >= _WIDE else _MIDDLE if left >= _MIDDLE else 1
        initial, before = (bias, done), (s, s0 + done, s_down)
        factor, to = (g, g0 + done, g_down), (y, y0 + done, y_down)
        if vectors == _WIDE:
            _wide_rounded(initial, before, a, right, factor, to, depth, height)
        elif vectors == _MIDDLE:
            _middle_rounded(initial, before, a, right, factor, to, depth, height)
        else:
            _narrow_rounded(initial, before, a, right, factor, to, depth, height)
        done += vectors * LANES


@compiled
def _round(x: Rows, height: int, width: int, active: bool) -> Array:
    """The rows of x, or of relu(x) if active, as pairs of neighbours in a row.

    In a row of odd width the last number is paired with 0.
    """
    values, first, down = x
    count, whole = (width + 1) // 2, width // (2 * LANES) * LANES
    pairs = np.empty(height * count, np.uint32)
    rest, made = np.zeros(2 * LANES, values.dtype), np.empty(LANES, np.uint32)
    for t in range(height):
        to, place = t * count, first + t * down
        for i in range(0, whole, LANES):
            here = place + 2 * i
            if active:
                tiles.round_chunk_active(pairs, to + i, values, here, here + LANES, True)
            else:
                tiles.round_chunk(pairs, to + i, values, here, here + LANES, True)
        if count > whole:
            for i in range(width - 2 * whole):
                rest[i] = values[place + 2 * whole + i]
            if active:
                tiles.round_chunk_active(made, ZERO, rest, ZERO, LANES, True)
            else:
                tiles.round_chunk(made, ZERO, rest, ZERO, LANES, True)
            for i in range(count - whole):
                pairs[to + whole + i] = made[i]
    return pairs


@compiled
def _round_down(x: Rows, height: int, width: int, active: bool) -> Array:
    """The rows of x, or of relu(x) if active, as pairs of the rows 2 t and 2 t + 1.

    Zeros pad an odd height, and the width to whole vectors.
    """
    values, first, down = x
    wide = (width + LANES - 1) // LANES * LANES
    pairs = np.empty((height + 1) // 2 * wide, np.uint32)
    rest = np.zeros(2 * LANES, values.dtype)
    for t in range(0, height, 2):
        to, one = t // 2 * wide, first + t * down
        for i in range(0, wide, LANES):
            n = min(width - i, LANES)
            if t + 1 < height and n == LANES:
                if active:
                    tiles.round_chunk_active(pairs, to + i, values, one + i, one + down + i, False)
                else:
                    tiles.round_chunk(pairs, to + i, values, one + i, one + down + i, False)
            else:
                rest[:] = 0
                for j in range(n):
                    rest[j] = values[one + i + j]
                    if t + 1 < height:
                        rest[LANES + j] = values[one + down + i + j]
                if active:
                    tiles.round_chunk_active(pairs, to + i, rest, ZERO, LANES, False)
                else:
                    tiles.round_chunk(pairs, to + i, rest, ZERO, LANES, False)
    return pairs


# Called by the layers. From the type of the last argument numba chooses the exact implementation or
# the rounded one.


def multiply(*_: Any) -> None:
    """C = bias + S + A @ B, with relu(A) if active. A's rows are contiguous; B is packed."""


@overload(multiply)
def _multiply_by(bias, start, a, active, c, depth, height, width, b):  # type: ignore[no-untyped-def]
    def exact(bias, start, a, active, c, depth, height, width, b):  # type: ignore[no-untyped-def]
        _product(bias, start, a, ONE, active, b, c, depth, height, width)

    def rounded(bias, start, a, active, c, depth, height, width, b):  # type: ignore[no-untyped-def]
        pairs = (depth + ONE) // 2
        factor = (_round(a, height, depth, active), ZERO, pairs)
        _rounded_product(bias, start, factor, ONE, b, c, pairs, height, width)

    return rounded if isinstance(b.types[0].dtype, types.Integer) else exact


def multiply_down(*_: Any) -> None:
    """C += A.T @ B, with relu(A) if active; A and B have `depth` rows."""


@overload(multiply_down)
def _multiply_down_by(none, a, active, b, c, depth, height, width, factor):  # type: ignore[no-untyped-def]
    def exact(none, a, active, b, c, depth, height, width, factor):  # type: ignore[no-untyped-def]
        values, first, down = a
        _product(none, c, (values, first, ONE), down, active, b, c, depth, height, width)

    def rounded(none, a, active, b, c, depth, height, width, factor):  # type: ignore[no-untyped-def]
        left, row = _round_down(a, depth, height, active), (height + LANES - ONE) // LANES * LANES
        right = (_round_down(b, depth, width, False), ZERO, width)
        pairs = (depth + ONE) // 2
        _rounded_product(none, c, (left, ZERO, ONE), row, right, c, pairs, height, width)

    return rounded if isinstance(factor.dtype, types.Integer) else exact


@inlined
def weight_strides(layer: Array, back: bool) -> tuple[int, int]:
    """The strides of a convolution's weight, or of a block's dilated one: of a row, of a column.

    Rows are inputs and columns outputs; with `back`, rows are outputs and columns inputs.
    """
    taps = 3 if layer[KIND] in (SAME, BLOCK) else 4
    by_output, by_input = taps * layer[COLUMNS], taps
    if layer[KIND] == DOUBLING:  # nn.ConvTranspose1d holds (in, out, k)
        by_output, by_input = taps, taps * layer[ROWS]
    return (by_output, by_input) if back else (by_input, by_output)


@inlined
def _weight_row(
    w: Array, values: Array, strides: tuple[int, int], k: int, i: int, height: int, width: int
) -> tuple[Array, Array]:
    """The row w[k, i], in which rows are widened, and its source values[k + (i, j) . strides]."""
    down, right = strides
    row = w[(k * height + i) * widened(width, w) :]
    return row[:width], values[k + i * down :: right]


@compiled
def _pack(values: Array, strides: tuple[int, int], taps: int, height: int, width: int) -> Array:
    """w[k, i, j] = values[k + (i, j) . strides], with the rows of w padded with zeros."""
    w = np.zeros(taps * height * widened(width, values), values.dtype)
    for k in range(taps):
        for i in range(height):
            row, source = _weight_row(w, values, strides, k, i, height, width)
            for j in range(width):
                row[j] = source[j]
    return w


@compiled
def _pack_rounded(
    values: Array, strides: tuple[int, int], taps: int, height: int, width: int
) -> Array:
    """`_pack`, as pairs of the rows 2 i and 2 i + 1. A tap begins where it does in `_pack`."""
    w, wide = _pack(values, strides, taps, height, width), widened(width, values)
    pairs = np.zeros(len(w), np.uint32)
    for k in range(taps):
        tap = _round_down((w, k * height * wide, wide), height, wide, False)
        begin_with(pairs[k * height * wide :], tap)
    return pairs


def packed(*_: Any) -> Any:
    """`_pack`, or `_pack_rounded` if the last argument is an array of integers."""
    raise NotImplementedError


@overload(packed)
def _packed_as(values, strides, taps, height, width, factor):  # type: ignore[no-untyped-def]
    if isinstance(factor.dtype, types.Integer):

        def chosen(values, strides, taps, height, width, factor):  # type: ignore[no-untyped-def]
            return _pack_rounded(values, strides, taps, height, width)

    else:

        def chosen(values, strides, taps, height, width, factor):  # type: ignore[no-untyped-def]
            return _pack(values, strides, taps, height, width)

    return chosen


@compiled
def unpack_sum(
    values: Array, w: Array, strides: tuple[int, int], taps: int, height: int, width: int
) -> None:
    """values[k + (i, j) . strides] += w[k, i, j]."""
    for k in range(taps):
        for i in range(height):
            row, to = _weight_row(w, values, strides, k, i, height, width)
            for j in range(width):
                to[j] += row[j]
