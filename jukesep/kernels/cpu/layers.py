"""The layers of a network on a CPU: convolutions and residual blocks, forward and backward.

A layer is a few matrix products (`products`). It goes through the time axis in tiles, so that the
data stay in cache. A product reads its factors where they are: a tap of a convolution is an offset
in the time axis.
"""

from __future__ import annotations

import numpy as np

from ..network import (
    BLOCK,
    COLUMNS,
    DILATION,
    DOUBLING,
    HALVING,
    KIND,
    PARAMETERS,
    ROWS,
    SAME,
    STEPS,
)
from .compiled import Array, inlined
from .products import multiply, multiply_down, packed, unpack_sum, weight_strides
from .rows import ONE, ZERO, Rows, add, add_masked, begin_with, copy, mask, sum_rows, widened
from .threads import count_parts, finish, part_range, take


@inlined
def _taps(kind: int, dilation: int, back: bool) -> Array:
    """Which input and output each weight k connects: (K, 2), phase and offset.

    y[writes t + phase] is the sum of x[reads t + offset] @ w[k], where `rates` gives reads and
    writes. With `back`, y stands for the input's gradient and x for the output's.
    """
    taps = np.zeros((3 if kind in (SAME, BLOCK) else 4, 2), np.int64)
    for k in range(len(taps)):
        if len(taps) == 3:
            taps[k, 1] = (1 - k if back else k - 1) * dilation
        elif (kind == HALVING) != back:  # reads the step 2 t + k - 1
            taps[k, 1] = k - 1
        else:  # writes the step 2 t + k - 1 from t
            taps[k, 0] = (k + 1) & 1
            taps[k, 1] = (taps[k, 0] + 1 - k) >> 1
    return taps


@inlined
def rates(kind: int, back: bool) -> tuple[int, int]:
    """Time steps of a convolution's input and of its output for each step of the program."""
    halving, doubling = kind == HALVING, kind == DOUBLING
    if back:
        halving, doubling = doubling, halving
    return ONE + halving, ONE + doubling


@inlined
def _within(offset: int, rate: int, steps: int, start: int, n: int) -> tuple[int, int]:
    """The range of the n steps from `start` for which the input has a step rate t + offset."""
    low = max(-(offset // rate) - start, 0)
    high = min((rate * steps - 1 - offset) // rate + 1 - start, n)
    return low, max(high, low)


@inlined
def convolve(
    x: Array,
    w: Array,
    bias: Array,
    layer: Array,
    back: bool,
    span: tuple[int, int, int],
    y: Array,
) -> None:
    """A convolution's output y for x; with `back`, its input's gradient y for its output's x.

    Computes the time steps of the span, (begin, end, tile).
    """
    reads, writes = rates(layer[KIND], back)
    columns, rows, steps = layer[COLUMNS], layer[ROWS], layer[STEPS]
    if back:
        columns, rows = rows, columns
    taps = _taps(layer[KIND], layer[DILATION], back)
    begin, end, tile = span
    width = widened(rows, x)
    initial, none = np.zeros(width, x.dtype), np.zeros(width, x.dtype)
    begin_with(initial, bias)
    result = np.empty(tile * width, x.dtype)
    for start in range(begin, end, tile):
        n = min(tile, end - start)
        for phase in range(writes):
            copy((result, ZERO, width), (initial, ZERO, ZERO), n, width)
            for k in range(len(taps)):
                low, high = _within(taps[k, 1], reads, steps, start, n)
                if taps[k, 0] == phase and high > low:
                    to = (result, low * width, width)
                    source = (reads * (start + low) + taps[k, 1]) * columns
                    multiply(
                        *(none, to, (x, source, reads * columns), False, to),
                        *(columns, high - low, width, (w, k * columns * width, width)),
                    )
            place = (writes * start + phase) * rows
            copy((y, place, writes * rows), (result, ZERO, width), n, rows)


@inlined
def convolve_gradient(
    x: Array, g: Array, grads: Array, layer: Array, span: tuple[int, int, int], factor: Array
) -> None:
    """Add the span's share, from y's gradient g, to the gradients of weight and bias."""
    reads, writes = rates(layer[KIND], False)
    columns, rows, steps = layer[COLUMNS], layer[ROWS], layer[STEPS]
    taps = _taps(layer[KIND], layer[DILATION], False)
    begin, end, tile = span
    width = widened(rows, x)
    w, none = np.zeros(len(taps) * columns * width, x.dtype), np.zeros(width, x.dtype)
    bias = grads[len(taps) * columns * rows :][:rows]
    wide = np.zeros(tile * width, x.dtype)
    slope = (wide, ZERO, width)
    for start in range(begin, end, tile):
        n = min(tile, end - start)
        for phase in range(writes):
            copy(slope, (g, (writes * start + phase) * rows, writes * rows), n, rows)
            sum_rows(bias, slope, n)
            for k in range(len(taps)):
                low, high = _within(taps[k, 1], reads, steps, start, n)
                if taps[k, 0] == phase and high > low:
                    to = (w, k * columns * width, width)
                    source = (reads * (start + low) + taps[k, 1]) * columns
                    multiply_down(
                        *(none, (x, source, reads * columns), False, (wide, low * width, width)),
                        *(to, high - low, columns, width, factor),
                    )
    unpack_sum(grads, w, weight_strides(layer, False), len(taps), columns, rows)


@inlined
def narrows(layer: Array) -> bool:
    return layer[KIND] == SAME and layer[ROWS] == 1


@inlined
def _around(x: Array, channels: int, steps: int, t: int) -> tuple[Array, int]:
    """The steps t - 1, t, t + 1 of x that exist, and how many numbers are missing before them."""
    low, high = max(t - 1, 0), min(t + 2, steps)
    return x[low * channels : high * channels], (low - t + 1) * channels


@inlined
def to_one(x: Array, values: Array, layer: Array, span: tuple[int, int, int], y: Array) -> None:
    """`convolve` to one channel, for which a product's vectors would be almost empty."""
    columns = layer[COLUMNS]
    w, bias = np.empty(3 * columns, x.dtype), values[3 * columns]
    for k in range(3):
        for i in range(columns):
            w[k * columns + i] = values[3 * i + k]
    begin, end, _ = span
    for t in range(begin, end):
        source, lacking = _around(x, columns, len(y), t)
        weights, total = w[lacking:], bias
        for i in range(len(source)):
            total += weights[i] * source[i]
        y[t] = total


@inlined
def to_one_gradient(
    x: Array, g: Array, grads: Array, layer: Array, span: tuple[int, int, int]
) -> None:
    """`convolve_gradient` for one channel."""
    columns = layer[COLUMNS]
    total = np.zeros(3 * columns, x.dtype)
    begin, end, tile = span
    for start in range(begin, end, tile):
        part, bias = np.zeros_like(total), 0.0  # in double precision: it is one number
        for t in range(start, min(start + tile, end)):
            source, lacking = _around(x, columns, len(g), t)
            sums, slope = part[lacking:], g[t]
            bias += slope
            for i in range(len(source)):
                sums[i] += slope * source[i]
        for i in range(len(total)):
            total[i] += part[i]
        grads[3 * columns] += bias
    for k in range(3):
        for i in range(columns):
            grads[3 * i + k] += total[k * columns + i]


@inlined
def _dilated(
    source: Array,
    active: bool,
    w: Array,
    bias: Array,
    none: Array,
    to: Rows,
    layer: Array,
    sign: int,
    start: int,
    n: int,
) -> None:
    """to = bias + sum over k of source[t + sign (k - 1) dilation] @ w[k], n steps from start."""
    channels, width = layer[ROWS], len(bias)
    result, result0, down = to
    # The middle tap first: only it reaches all steps.
    for k in (1, 0, 2):
        offset = sign * (k - 1) * layer[DILATION]
        low, high = _within(offset, ONE, layer[STEPS], start, n)
        if high > low:
            part = (result, result0 + low * down, down)
            before, initial = part, none
            if k == 1:
                before, initial = (none, ZERO, ZERO), bias
            multiply(
                *(initial, before, (source, (start + low + offset) * channels, channels), active),
                *(part, channels, high - low, width, (w, k * channels * width, width)),
            )


@inlined
def block(
    x: Array,
    y: Array,
    kept: Array,
    values: Array,
    layer: Array,
    tile: int,
    turn: tuple[Array, int, int],
    factor: Array,
) -> int:
    """y = x + c + V @ relu(h), h = b + sum over k of W[k] @ relu(x)[t + (k - 1) dilation].

    Writes h to `kept`, unless it is empty. Returns the thread's next ticket.
    """
    channels, steps = layer[ROWS], layer[STEPS]
    width = widened(channels, x)
    w = packed(values, weight_strides(layer, False), 3, channels, channels, factor)
    inner = values[3 * channels * channels :]
    v = packed(inner[channels:], (ONE, channels), ONE, channels, channels, factor)
    b, c, none = np.zeros(width, x.dtype), np.zeros(width, x.dtype), np.zeros(width, x.dtype)
    begin_with(b, inner[:channels])
    begin_with(c, inner[channels + channels * channels :][:channels])
    hidden, sums = np.empty(tile * width, x.dtype), np.empty(tile * width, x.dtype)
    whole = width == channels  # products can read and write the memory itself
    turns, ticket, first = turn
    parts = count_parts(steps)
    while ticket < first + parts:
        begin, end = part_range(ticket, first, parts, steps)
        for start in range(begin, end, tile):
            n, here = min(tile, end - start), start * channels
            h, before, to = (hidden, ZERO, width), (none, ZERO, ZERO), (sums, ZERO, width)
            if whole:
                before, to = (x, here, channels), (y, here, channels)
                if kept.size:
                    h = (kept, here, channels)
            _dilated(x, True, w, b, none, h, layer, 1, start, n)
            multiply(c, before, h, True, to, channels, n, width, (v, ZERO, width))
            if not whole:
                copy((y, here, channels), (x, here, channels), n, channels)
                add((y, here, channels), to, n, channels)
                if kept.size:
                    copy((kept, here, channels), h, n, channels)
        finish(turns)
        ticket = take(turns)
    return ticket


@inlined
def block_inner(
    g: Array,
    x: Array,
    kept: Array,
    values: Array,
    grads: Array,
    layer: Array,
    tile: int,
    inner: Array,
    turn: tuple[Array, int, int],
    factor: Array,
) -> int:
    """Write the gradient of h to `inner`, from y's gradient g; add to those of W, b, V and c.

    Returns the thread's next ticket.
    """
    channels, steps = layer[ROWS], layer[STEPS]
    width, square = widened(channels, g), channels * channels
    v = packed(values[3 * square + channels :], (channels, ONE), ONE, channels, channels, factor)
    none = np.zeros(width, g.dtype)
    outer, sums = np.zeros(tile * width, g.dtype), np.empty(tile * width, g.dtype)
    dw, dv = np.empty(3 * channels * width, g.dtype), np.empty(channels * width, g.dtype)
    whole = width == channels
    turns, ticket, first = turn
    parts = count_parts(steps)
    while ticket < first + parts:
        begin, end = part_range(ticket, first, parts, steps)
        own = grads[ticket - first, layer[PARAMETERS] :]
        b, c = own[3 * square :][:channels], own[4 * square + channels :][:channels]
        dw[:], dv[:] = 0, 0
        for start in range(begin, end, tile):
            n, here = min(tile, end - start), start * channels
            slope, dh = (g, here, channels), (inner, here, channels)
            if not whole:
                copy((outer, ZERO, width), slope, n, channels)
                slope, dh = (outer, ZERO, width), (sums, ZERO, width)
            sum_rows(c, slope, n)
            to = (dv, ZERO, width)
            gate = (kept, here, channels)
            multiply_down(none, gate, True, slope, to, n, channels, width, factor)
            multiply(
                *(none, (none, ZERO, ZERO), slope, False, dh),
                *(channels, n, width, (v, ZERO, width)),
            )
            mask(dh, gate, n, channels)
            sum_rows(b, dh, n)
            if not whole:
                copy((inner, here, channels), dh, n, channels)
            result, result0, down = dh
            for k in range(3):
                offset = (k - 1) * layer[DILATION]
                low, high = _within(offset, ONE, steps, start, n)
                if high > low:
                    to = (dw, k * channels * width, width)
                    rows = (x, (start + low + offset) * channels, channels)
                    slopes = (result, result0 + low * down, down)
                    multiply_down(
                        *(none, rows, True, slopes, to),
                        *(high - low, channels, width, factor),
                    )
        unpack_sum(own, dw, weight_strides(layer, False), 3, channels, channels)
        unpack_sum(own[3 * square + channels :], dv, (ONE, channels), 1, channels, channels)
        finish(turns)
        ticket = take(turns)
    return ticket


@inlined
def block_outer(
    g: Array,
    x: Array,
    values: Array,
    layer: Array,
    tile: int,
    inner: Array,
    turn: tuple[Array, int, int],
    factor: Array,
) -> int:
    """Turn y's gradient g into x's, with `inner` as `block_inner` leaves it.

    Returns the thread's next ticket.
    """
    channels, steps = layer[ROWS], layer[STEPS]
    width = widened(channels, g)
    w = packed(values, weight_strides(layer, True), 3, channels, channels, factor)
    none, sums = np.zeros(width, g.dtype), np.empty(tile * width, g.dtype)
    through = (sums, ZERO, width)
    turns, ticket, first = turn
    parts = count_parts(steps)
    while ticket < first + parts:
        begin, end = part_range(ticket, first, parts, steps)
        for start in range(begin, end, tile):
            n, here = min(tile, end - start), start * channels
            # A weight that looks back in `block` looks ahead here.
            _dilated(inner, False, w, none, none, through, layer, -1, start, n)
            add_masked((g, here, channels), through, (x, here, channels), n, channels)
        finish(turns)
        ticket = take(turns)
    return ticket
