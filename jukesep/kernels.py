"""A network's layers on a CPU, compiled by numba for the processor at hand. See `networks`.

A program is a table with a row for each layer, in the order in which they run, and the columns

    kind, channels in, channels out, dilation, time steps, parameters, source, target, kept

The last four are places: where the layer's parameters begin in the vector of all, where its input
and output begin in the memory, and where what its gradient needs besides (nowhere: -1). Arrays are
(channels, time), float32 or float64, one of them throughout a call.

Every layer works on a tile of the time axis after another: it is packed into buffers that stay in
cache, and all there is to do to it is done there. Sums are taken in one order, whatever the threads
around them: the same numbers give the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .compiled import compiled

Array = NDArray[Any]
Matrix = tuple[int, int, int, int, int]
"""A matrix in a vector: its first number, the strides down and right, rows, columns."""

SAME, HALVING, DOUBLING, BLOCK = range(4)
"""Kinds: nn.Conv1d of 3 taps that keeps the length; of 4 taps, stride 2, that halves it;
nn.ConvTranspose1d of 4 taps that doubles it; a residual block."""
KIND, COLUMNS, ROWS, DILATION, STEPS, PARAMETERS, SOURCE, TARGET, KEPT = range(9)

ZERO: Any = np.int64(0)
ONE: Any = np.int64(1)
"""For calls: a literal would have the function compiled once more, for that number alone."""

# The compiler works on a compiled function again in each of its callers, and theirs: what is short
# or called from one place becomes part of its caller instead.
inlined = njit(inline="always")


@compiled
def _multiply(y: Array, values: Array, matrix: Matrix, x: Array, n: int) -> None:
    """y[:, :n] += W @ x[:, :n], four rows by four: 16 weights stay in registers."""
    first, down, right, rows, columns = matrix
    rows4, columns4 = rows // 4 * 4, columns // 4 * 4
    for i in range(0, rows4, 4):
        y0, y1, y2, y3 = y[i], y[i + 1], y[i + 2], y[i + 3]
        for j in range(0, columns4, 4):
            x0, x1, x2, x3 = x[j], x[j + 1], x[j + 2], x[j + 3]
            a = first + i * down + j * right
            b, c, d = a + down, a + 2 * down, a + 3 * down
            r, rr, rrr = right, 2 * right, 3 * right
            a0, a1, a2, a3 = values[a], values[a + r], values[a + rr], values[a + rrr]
            b0, b1, b2, b3 = values[b], values[b + r], values[b + rr], values[b + rrr]
            c0, c1, c2, c3 = values[c], values[c + r], values[c + rr], values[c + rrr]
            d0, d1, d2, d3 = values[d], values[d + r], values[d + rr], values[d + rrr]
            for t in range(n):
                p0, p1, p2, p3 = x0[t], x1[t], x2[t], x3[t]
                y0[t] += a0 * p0 + a1 * p1 + a2 * p2 + a3 * p3
                y1[t] += b0 * p0 + b1 * p1 + b2 * p2 + b3 * p3
                y2[t] += c0 * p0 + c1 * p1 + c2 * p2 + c3 * p3
                y3[t] += d0 * p0 + d1 * p1 + d2 * p2 + d3 * p3
    for i in range(rows):
        yi = y[i]
        for j in range(columns4 if i < rows4 else 0, columns):
            weight, xj = values[first + i * down + j * right], x[j]
            for t in range(n):
                yi[t] += weight * xj[t]


@compiled
def _correlate(values: Array, matrix: Matrix, y: Array, x: Array, n: int) -> None:
    """W += y[:, :n] @ x[:, :n].T, two rows by four."""
    first, down, right, rows, columns = matrix
    rows2, columns4 = rows // 2 * 2, columns // 4 * 4
    zero = values.dtype.type(0)
    for i in range(0, rows2, 2):
        y0, y1 = y[i], y[i + 1]
        for j in range(0, columns4, 4):
            x0, x1, x2, x3 = x[j], x[j + 1], x[j + 2], x[j + 3]
            a0, a1, a2, a3 = zero, zero, zero, zero
            b0, b1, b2, b3 = zero, zero, zero, zero
            for t in range(n):
                p0, p1, p2, p3, q0, q1 = x0[t], x1[t], x2[t], x3[t], y0[t], y1[t]
                a0 += q0 * p0
                a1 += q0 * p1
                a2 += q0 * p2
                a3 += q0 * p3
                b0 += q1 * p0
                b1 += q1 * p1
                b2 += q1 * p2
                b3 += q1 * p3
            a = first + i * down + j * right
            b = a + down
            values[a] += a0
            values[a + right] += a1
            values[a + 2 * right] += a2
            values[a + 3 * right] += a3
            values[b] += b0
            values[b + right] += b1
            values[b + 2 * right] += b2
            values[b + 3 * right] += b3
    for i in range(rows):
        yi = y[i]
        for j in range(columns4 if i < rows2 else 0, columns):
            xj, total = x[j], zero
            for t in range(n):
                total += yi[t] * xj[t]
            values[first + i * down + j * right] += total


@compiled
def _sum_rows(sums: Array, x: Array, n: int) -> None:
    """sums += x[:, :n].sum(1)."""
    for i in range(len(sums)):
        xi, total = x[i], sums.dtype.type(0)
        for t in range(n):
            total += xi[t]
        sums[i] += total


@compiled
def _fill(y: Array, values: Array, n: int) -> None:
    """y[:, :n] = values[:, None]."""
    for i in range(len(values)):
        yi, value = y[i], values[i]
        for t in range(n):
            yi[t] = value


@compiled
def _edges(buffer: Array, length: int, start: int, n: int) -> tuple[int, int]:
    """The part of buffer[:, :n] that a row of that length fills from start on; zeros if not all."""
    first = min(max(-start, 0), n)
    last = max(min(length - start, n), first)
    if last - first < n:
        for i in range(len(buffer)):
            row = buffer[i]
            for t in range(n):
                row[t] = 0
    return first, last


@compiled
def _pack(buffer: Array, x: Array, phase: int, phases: int, start: int, n: int) -> None:
    """buffer[:, :n] = x[:, phase::phases][:, start : start + n], zeros beyond its ends."""
    first, last = _edges(buffer, x.shape[1] // phases, start, n)
    start = min(max(start, 0), x.shape[1])
    begin = start * phases + phase
    for i in range(len(x)):
        row = buffer[i, first:]
        if phases == 1:
            source = x[i, start:]
            for t in range(last - first):
                row[t] = source[t]
        else:
            for t in range(last - first):
                row[t] = x[i, begin + t * phases]


@compiled
def _pack_active(buffer: Array, x: Array, start: int, n: int) -> None:
    """buffer[:, :n] = relu(x)[:, start : start + n], zeros beyond its ends; NaN stays NaN."""
    zero = x.dtype.type(0)
    first, last = _edges(buffer, x.shape[1], start, n)
    begin = min(max(start, 0), x.shape[1])
    for i in range(len(x)):
        row, source = buffer[i, first:], x[i, begin:]
        for t in range(last - first):
            value = source[t]
            row[t] = zero if value <= zero else value


@compiled
def _unpack(y: Array, buffer: Array, phase: int, phases: int, start: int, n: int) -> None:
    """y[:, phase::phases][:, start : start + n] = buffer[:, :n]."""
    begin = start * phases + phase
    for i in range(len(y)):
        row = buffer[i]
        if phases == 1:
            yi = y[i, start:]
            for t in range(n):
                yi[t] = row[t]
        else:
            for t in range(n):
                y[i, begin + t * phases] = row[t]


@compiled
def _unpack_sum(y: Array, x: Array, buffer: Array, start: int, n: int) -> None:
    """y[:, start : start + n] = x[:, start : start + n] + buffer[:, :n]."""
    # Without this the loops are compiled for every other `start` that a slice may have, too.
    assert 0 <= start < min(x.shape[1], y.shape[1])
    for i in range(len(y)):
        row, xi, yi = buffer[i], x[i, start:], y[i, start:]
        for t in range(n):
            yi[t] = xi[t] + row[t]


@compiled
def _mask(x: Array, gate: Array, n: int) -> None:
    """x[:, :n] = 0 where gate is not over 0: the gradient of a ReLU whose output is `gate`."""
    zero = x.dtype.type(0)
    for i in range(len(x)):
        xi, gi = x[i], gate[i]
        for t in range(n):
            xi[t] = xi[t] if gi[t] > zero else zero


@inlined
def _buffer(rows: int, steps: int, like: Array) -> Array:
    # A little wider than a tile, so that the rows do not all fall on the same lines of the cache.
    return np.empty((rows, steps + 16), like.dtype)


@compiled
def _taps(kind: int, dilation: int) -> Array:
    """What each weight k of a convolution reads and writes: phase in, phase out, shift; (K, 3).

    With P phases in and Q out, y[:, q::Q][:, t] sums w[:, :, k] @ x[:, p::P][:, t + shift].
    """
    taps = np.zeros((3 if kind == SAME else 4, 3), np.int64)
    for k in range(len(taps)):
        if kind == SAME:
            taps[k, 2] = (k - 1) * dilation
        elif kind == HALVING:  # reads the sample 2 t + k - 1
            taps[k, 0], taps[k, 2] = (k - 1) & 1, (k - 1) >> 1
        else:  # writes the sample 2 t + k - 1 from t
            taps[k, 1] = (k + 1) & 1
            taps[k, 2] = (taps[k, 1] + 1 - k) >> 1
    return taps


@compiled
def _weight(layer: Array, k: int) -> Matrix:
    """The matrix of weight k of a convolution, or of a block's first."""
    rows, columns, first = layer[ROWS], layer[COLUMNS], layer[PARAMETERS]
    if layer[KIND] == DOUBLING:  # nn.ConvTranspose1d holds (in, out, k)
        return (first + k, 4, 4 * rows, rows, columns)
    taps = 4 if layer[KIND] == HALVING else 3
    return (first + k, taps * columns, taps, rows, columns)


@inlined
def _transposed(matrix: Matrix) -> Matrix:
    first, down, right, rows, columns = matrix
    return (first, right, down, columns, rows)


@inlined
def _bias(values: Array, layer: Array) -> Array:
    """The bias of a convolution, or of a block's first: it follows the weight."""
    taps = 3 if layer[KIND] == SAME or layer[KIND] == BLOCK else 4
    first = layer[PARAMETERS] + layer[ROWS] * layer[COLUMNS] * taps
    return values[first : first + layer[ROWS]]


@inlined
def _pointwise(layer: Array) -> Matrix:
    """The matrix of a block's second convolution: it follows the first's bias."""
    width = layer[ROWS]
    return (layer[PARAMETERS] + 3 * width * width + width, width, ONE, width, width)


@inlined
def _pointwise_bias(values: Array, layer: Array) -> Array:
    """The bias of a block's second convolution: the last of its parameters."""
    width = layer[ROWS]
    first = layer[PARAMETERS] + 4 * width * width + width
    return values[first : first + width]


@inlined
def _place(memory: Array, start: int, channels: int, steps: int) -> Array:
    return memory[start : start + channels * steps].reshape((channels, steps))


@inlined
def _phases(kind: int) -> tuple[int, int]:
    """Phases of a convolution's input and output."""
    return ONE + (kind == HALVING), ONE + (kind == DOUBLING)


@inlined
def _convolve(
    x: Array, values: Array, layer: Array, bias: Array, taps: Array, back: bool, tile: int, y: Array
) -> None:
    """y from x as `_taps` says, or, with `back`, x's gradient as y from y's as x."""
    reads, writes = _phases(layer[KIND])
    source_phase, target_phase, sign = 0, 1, 1
    if back:  # the phases trade places, and what looked back looks ahead
        reads, writes = writes, reads
        source_phase, target_phase, sign = 1, 0, -1
    steps = layer[STEPS]
    source, result = _buffer(len(x), tile, x), _buffer(len(y), tile, x)
    for start in range(0, steps, tile):
        n = min(tile, steps - start)
        for q in range(writes):
            _fill(result, bias, n)
            for k in range(len(taps)):
                if taps[k, target_phase] == q:
                    weight = _weight(layer, k)
                    if back:
                        weight = _transposed(weight)
                    _pack(source, x, taps[k, source_phase], reads, start + sign * taps[k, 2], n)
                    _multiply(result, values, weight, source, n)
            _unpack(y, result, q, writes, start, n)


@inlined
def _convolve_gradient(
    x: Array, g: Array, grads: Array, layer: Array, taps: Array, tile: int
) -> None:
    """Adds to the gradients of weight and bias what y's gradient g makes them."""
    reads, writes = _phases(layer[KIND])
    steps, bias = layer[STEPS], _bias(grads, layer)
    source, result = _buffer(len(x), tile, x), _buffer(len(g), tile, x)
    for start in range(0, steps, tile):
        n = min(tile, steps - start)
        for q in range(writes):
            _pack(result, g, q, writes, start, n)
            _sum_rows(bias, result, n)
            for k in range(len(taps)):
                if taps[k, 1] == q:
                    _pack(source, x, taps[k, 0], reads, start + taps[k, 2], n)
                    _correlate(grads, _weight(layer, k), result, source, n)


@inlined
def _block(x: Array, values: Array, layer: Array, tile: int, y: Array, kept: Array) -> None:
    """y = x + c + V @ h, h = relu(b + the sum of W[k] @ relu(x)[t + (k - 1) dilation]).

    h is written to `kept`, unless that is empty.
    """
    channels, steps, dilation = layer[ROWS], layer[STEPS], layer[DILATION]
    b, c = _bias(values, layer), _pointwise_bias(values, layer)
    source, hidden = _buffer(channels, tile, x), _buffer(channels, tile, x)
    for start in range(0, steps, tile):
        n = min(tile, steps - start)
        _fill(hidden, b, n)
        for k in range(3):
            _pack_active(source, x, start + (k - 1) * dilation, n)
            _multiply(hidden, values, _weight(layer, k), source, n)
        _pack_active(source, hidden, ZERO, n)
        _fill(hidden, c, n)
        _multiply(hidden, values, _pointwise(layer), source, n)
        _unpack_sum(y, x, hidden, start, n)
        if kept.size:
            _unpack(kept, source, ZERO, ONE, start, n)


@inlined
def _block_gradient(
    g: Array, x: Array, kept: Array, values: Array, grads: Array, layer: Array, tile: int
) -> None:
    """y's gradient g becomes x's; adds to the gradients of W, b, V and c."""
    channels, steps, dilation = layer[ROWS], layer[STEPS], layer[DILATION]
    b, c = _bias(grads, layer), _pointwise_bias(grads, layer)
    source, hidden = _buffer(channels, tile, x), _buffer(channels, tile, x)
    outer, inner = _buffer(channels, tile, x), np.empty_like(x)
    zeros = np.zeros(channels, x.dtype)
    for start in range(0, steps, tile):
        n = min(tile, steps - start)
        _pack(outer, g, ZERO, ONE, start, n)
        _sum_rows(c, outer, n)
        _pack(source, kept, ZERO, ONE, start, n)
        _correlate(grads, _pointwise(layer), outer, source, n)
        _fill(hidden, zeros, n)
        _multiply(hidden, values, _transposed(_pointwise(layer)), outer, n)
        _mask(hidden, source, n)
        _sum_rows(b, hidden, n)
        _unpack(inner, hidden, ZERO, ONE, start, n)
        for k in range(3):
            _pack_active(source, x, start + (k - 1) * dilation, n)
            _correlate(grads, _weight(layer, k), hidden, source, n)
    for start in range(0, steps, tile):
        n = min(tile, steps - start)
        _fill(hidden, zeros, n)
        for k in range(3):
            # A weight that looks back in `_block` looks ahead here.
            _pack(source, inner, ZERO, ONE, start - (k - 1) * dilation, n)
            _multiply(hidden, values, _transposed(_weight(layer, k)), source, n)
        _pack(source, x, ZERO, ONE, start, n)
        _mask(hidden, source, n)
        _unpack_sum(g, g, hidden, start, n)


@compiled
def forward(program: Array, values: Array, memory: Array, tile: int) -> None:
    """Run the layers: each reads its source in the memory and writes its target."""
    for number in range(len(program)):
        layer = program[number]
        steps, rows = layer[STEPS], layer[ROWS]
        reads, writes = _phases(layer[KIND])
        width = min(tile, steps)
        x = _place(memory, layer[SOURCE], layer[COLUMNS], steps * reads)
        y = _place(memory, layer[TARGET], rows, steps * writes)
        if layer[KIND] == BLOCK:
            kept = _place(memory, max(layer[KEPT], 0), rows, steps if layer[KEPT] >= 0 else 0)
            _block(x, values, layer, width, y, kept)
        else:
            taps = _taps(layer[KIND], layer[DILATION])
            _convolve(x, values, layer, _bias(values, layer), taps, False, width, y)


@compiled
def backward(
    program: Array,
    values: Array,
    memory: Array,
    tile: int,
    spare: Array,
    grad_x: bool,
    grads: Array,
) -> int:
    """The gradients, after a `forward` whose memory still holds all sources and what was kept.

    `spare` (2, size) has the output's gradient at the start of its first row; if `grad_x` is set,
    the input's is at the start of the row that is returned. Adds to `grads`, laid out as `values`.
    """
    here = 0
    for number in range(len(program) - 1, -1, -1):
        layer = program[number]
        steps, rows, columns = layer[STEPS], layer[ROWS], layer[COLUMNS]
        reads, writes = _phases(layer[KIND])
        width = min(tile, steps)
        x = _place(memory, layer[SOURCE], columns, steps * reads)
        g = _place(spare[here], 0, rows, steps * writes)
        if layer[KIND] == BLOCK:
            kept = _place(memory, layer[KEPT], rows, steps)
            _block_gradient(g, x, kept, values, grads, layer, width)
            continue
        taps = _taps(layer[KIND], layer[DILATION])
        _convolve_gradient(x, g, grads, layer, taps, width)
        if number or grad_x:
            here = 1 - here
            gx = _place(spare[here], 0, columns, steps * reads)
            none = np.zeros(columns, values.dtype)
            _convolve(g, values, layer, none, taps, True, width, gx)
    return here
