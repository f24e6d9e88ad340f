"""A network's layers on a CPU, compiled by numba for the processor at hand. See `networks`.

A program is a table with a row for each layer, in the order in which they run, and the columns
below. Parameters lie in one vector, activations in another, the memory, each as a matrix
(time steps, channels). These columns are places, where one begins in the memory (-1: nowhere):

    SOURCE   the layer's input
    TARGET   its output
    KEPT     what a block's inner convolution gives, which its gradient needs

Every layer is a few matrix products (`_product`), a stretch of the time axis after another, so that
what is worked on stays in cache. A product's factors are read where they lie: a tap of a
convolution is an offset in the time axis.

Threads that call a function here with the same arguments share its work: they take turns at parts
of the time axis, and one that comes late finds less to do. What the parts are, and with it every
sum, does not depend on the threads: the same numbers give the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload
from numpy.typing import NDArray

from . import tiles
from .compiled import compiled

Array = NDArray[Any]
Rows = tuple[Array, int, int]
"""Rows in a vector: where the first begins, and how far it is to the next."""

SAME, HALVING, DOUBLING, BLOCK = range(4)
"""Kinds: nn.Conv1d of 3 taps that keeps the length; of 4 taps, stride 2, that halves it;
nn.ConvTranspose1d of 4 taps that doubles it; a residual block."""
KIND, COLUMNS, ROWS, DILATION, STEPS, PARAMETERS, SOURCE, TARGET, KEPT = range(9)

LINE = 64
"""Bytes to whose multiple the rows of a product's second factor and of its result are widened."""
_REGISTER = tiles.REGISTER
_WIDE, _MIDDLE, _ = (vectors for _, vectors in tiles.SHAPES)
_wide, _middle, _narrow = tiles.STRIPS
_wide_active, _middle_active, _narrow_active = tiles.ACTIVE_STRIPS
_wide_rounded, _middle_rounded, _narrow_rounded = tiles.ROUNDED_STRIPS

PARTS = 4
PART = 512
"""The most parts that a layer's time axis is divided into, and their least length."""
TURNS = 32
"""Numbers that the threads of a call count with; of two, each on a line of its own."""
DONE: Any = np.int64(16)
LANES = tiles.LANES
"""Pairs in a vector."""
PATIENCE = 200
"""Looks whether others are done, before the core is left to them."""

ZERO: Any = np.int64(0)
ONE: Any = np.int64(1)
"""For calls: a literal would have the function compiled once more, for that number alone."""

# The compiler works on a compiled function again in each of its callers, and theirs: what is short
# or called from one place becomes part of its caller instead.
inlined = njit(inline="always")


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
    """C = bias + S + A @ B, or relu(A) @ B. A's columns are `right` apart.

    depth > 0, and the width fills lines. NaN stays NaN in the ReLU.
    """
    (s, s0, s_down), (g, g0, g_down), (y, y0, y_down) = start, b, c
    lanes = _REGISTER // y.itemsize
    done = 0
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
    """`_product` of pairs of bfloat16, `depth` of them, summed in float32."""
    (s, s0, s_down), (g, g0, g_down), (y, y0, y_down) = start, b, c
    done = 0
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
    """The rows of x in pairs along the row, one row after the other; of a ReLU if active.

    A zero makes the last pair whole.
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
    """The rows of x in pairs down the columns: of the rows 2 t and 2 t + 1; of a ReLU if active.

    Rows of zeros and numbers beyond the width make pairs and lines whole.
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


# What is called from the layers: numba takes the kind that fits the last argument's array.


def _multiply(*_: Any) -> None:
    """C = bias + S + A @ B, or relu(A) @ B. A's columns lie side by side; B is packed."""


@overload(_multiply)
def _multiply_by(bias, start, a, active, c, depth, height, width, b):  # type: ignore[no-untyped-def]
    def exact(bias, start, a, active, c, depth, height, width, b):  # type: ignore[no-untyped-def]
        _product(bias, start, a, ONE, active, b, c, depth, height, width)

    def rounded(bias, start, a, active, c, depth, height, width, b):  # type: ignore[no-untyped-def]
        pairs = (depth + ONE) // 2
        factor = (_round(a, height, depth, active), ZERO, pairs)
        _rounded_product(bias, start, factor, ONE, b, c, pairs, height, width)

    return rounded if isinstance(b.types[0].dtype, types.Integer) else exact


def _multiply_down(*_: Any) -> None:
    """C += A.T @ B, or relu(A).T @ B, of `depth` rows."""


@overload(_multiply_down)
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
def _widened(channels: int, like: Array) -> int:
    line = LINE // like.itemsize
    return (channels + line - 1) // line * line


@inlined
def _strides(layer: Array, back: bool) -> tuple[int, int]:
    """Of a convolution's weight, or a block's first: from a row to the next, from a column."""
    taps = 3 if layer[KIND] in (SAME, BLOCK) else 4
    by_output, by_input = taps * layer[COLUMNS], taps
    if layer[KIND] == DOUBLING:  # nn.ConvTranspose1d holds (in, out, k)
        by_output, by_input = taps, taps * layer[ROWS]
    return (by_output, by_input) if back else (by_input, by_output)


@inlined
def _weight_row(
    w: Array, values: Array, strides: tuple[int, int], k: int, i: int, height: int, width: int
) -> tuple[Array, Array]:
    """w[k, i], its rows widened, and the values[k + (i, j) . strides] that belong there."""
    down, right = strides
    row = w[(k * height + i) * _widened(width, w) :]
    return row[:width], values[k + i * down :: right]


@compiled
def _pack(values: Array, strides: tuple[int, int], taps: int, height: int, width: int) -> Array:
    """w[k, i, j] = values[k + (i, j) . strides], the rows of w widened with zeros."""
    w = np.zeros(taps * height * _widened(width, values), values.dtype)
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
    """`_pack` in pairs, of the rows 2 i and 2 i + 1; a tap's begin where its rows would."""
    w, wide = _pack(values, strides, taps, height, width), _widened(width, values)
    pairs = np.zeros(len(w), np.uint32)
    for k in range(taps):
        tap = _round_down((w, k * height * wide, wide), height, wide, False)
        pairs[k * height * wide :][: len(tap)] = tap
    return pairs


def _packed(*_: Any) -> Any:
    """`_pack`, or `_pack_rounded` where the last argument is of integers."""
    raise NotImplementedError


@overload(_packed)
def _packed_as(values, strides, taps, height, width, factor):  # type: ignore[no-untyped-def]
    if isinstance(factor.dtype, types.Integer):

        def chosen(values, strides, taps, height, width, factor):  # type: ignore[no-untyped-def]
            return _pack_rounded(values, strides, taps, height, width)

    else:

        def chosen(values, strides, taps, height, width, factor):  # type: ignore[no-untyped-def]
            return _pack(values, strides, taps, height, width)

    return chosen


@compiled
def _unpack_sum(
    values: Array, w: Array, strides: tuple[int, int], taps: int, height: int, width: int
) -> None:
    """values[k + (i, j) . strides] += w[k, i, j]."""
    for k in range(taps):
        for i in range(height):
            row, to = _weight_row(w, values, strides, k, i, height, width)
            for j in range(width):
                to[j] += row[j]


@inlined
def _taps(kind: int, dilation: int, back: bool) -> Array:
    """What each weight k reads for what it writes: (K, 2), phase and offset.

    With the rates of `_rates`, y[writes t + phase] sums x[reads t + offset] @ w[k]; with `back` so
    does x's gradient, from y's.
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
def _rates(kind: int, back: bool) -> tuple[int, int]:
    """Time steps of a convolution's input and of its output for each step of the layer."""
    halving, doubling = kind == HALVING, kind == DOUBLING
    if back:
        halving, doubling = doubling, halving
    return ONE + halving, ONE + doubling


@inlined
def _within(offset: int, rate: int, steps: int, start: int, n: int) -> tuple[int, int]:
    """Of the n steps from start on, those for which the input has the step rate t + offset."""
    low = max(-(offset // rate) - start, 0)
    high = min((rate * steps - 1 - offset) // rate + 1 - start, n)
    return low, max(high, low)


@inlined
def _joined(y: Rows, x: Rows, n: int, width: int) -> tuple[int, int]:
    """n rows of the width as one, where nothing lies between them."""
    if y[2] == width and x[2] == width:
        n, width = ONE, n * width
    return n, width


@inlined
def _row(x: Rows, t: int, width: int) -> Array:
    # A slice, in which no index can be negative: the compiler has to know for wide instructions.
    values, first, down = x
    return values[first + t * down : first + t * down + width]


@compiled
def _copy(y: Rows, x: Rows, n: int, width: int) -> None:
    """n rows of the width, from x to y."""
    n, width = _joined(y, x, n, width)
    for t in range(n):
        to, source = _row(y, t, width), _row(x, t, width)
        for i in range(width):
            to[i] = source[i]


@compiled
def _add(y: Rows, x: Rows, n: int, width: int) -> None:
    """y += x, n rows of the width."""
    n, width = _joined(y, x, n, width)
    for t in range(n):
        to, source = _row(y, t, width), _row(x, t, width)
        for i in range(width):
            to[i] += source[i]


@compiled
def _mask(y: Rows, gate: Rows, n: int, width: int) -> None:
    """y = 0 where the gate is not over 0: a ReLU's gradient at the gate."""
    n, width = _joined(y, gate, n, width)
    zero = y[0].dtype.type(0)
    for t in range(n):
        to, source = _row(y, t, width), _row(gate, t, width)
        for i in range(width):
            to[i] = to[i] if source[i] > zero else zero


@compiled
def _add_masked(y: Rows, x: Rows, gate: Rows, n: int, width: int) -> None:
    """y += x where the gate is over 0."""
    if gate[2] == width:
        n, width = _joined(y, x, n, width)
    zero = y[0].dtype.type(0)
    for t in range(n):
        to, source, over = _row(y, t, width), _row(x, t, width), _row(gate, t, width)
        for i in range(width):
            to[i] += source[i] if over[i] > zero else zero


@compiled
def _sum_rows(sums: Array, x: Rows, n: int) -> None:
    """sums += the sum of n rows."""
    part = np.zeros_like(sums)  # a long sum is as exact as its parts are short
    width = len(sums)
    for t in range(0, n - 3, 4):
        r, rr, rrr, rrrr = (
            *(_row(x, t, width), _row(x, t + 1, width)),
            *(_row(x, t + 2, width), _row(x, t + 3, width)),
        )
        for i in range(width):
            part[i] += (r[i] + rr[i]) + (rrr[i] + rrrr[i])
    for t in range(n // 4 * 4, n):
        row = _row(x, t, width)
        for i in range(width):
            part[i] += row[i]
    for i in range(len(part)):
        sums[i] += part[i]


@inlined
def _parts(steps: int) -> int:
    """Into how many parts a layer's time axis is divided."""
    return max(min(steps // PART, PARTS), 1)


@inlined
def _part(ticket: int, first: int, parts: int, steps: int) -> tuple[int, int]:
    """The steps of the part that the ticket stands for, begin and end."""
    return steps * (ticket - first) // parts, steps * (ticket - first + 1) // parts


@inlined
def _take(turns: Array) -> int:
    """A ticket: the number of a part, counted over all layers, that no other thread has."""
    return tiles.add(turns, ZERO, ONE)


@inlined
def _finish(turns: Array) -> None:
    """Count a part that is done."""
    tiles.add(turns, DONE, ONE)


@inlined
def _wait(turns: Array, parts: int) -> None:
    """Until as many parts are done: until the layers before this one are."""
    looks = 0
    while tiles.add(turns, DONE, ZERO) < parts:
        looks += 1
        if looks > PATIENCE:  # the thread waited for may be waiting for this one's core
            tiles.let_others_run()


@inlined
def _place(memory: Array, start: int, size: int) -> Array:
    """A part of the memory; an empty one for nowhere."""
    return memory[max(start, 0) : max(start, 0) + (size if start >= 0 else 0)]


@inlined
def _convolve(
    x: Array,
    w: Array,
    bias: Array,
    layer: Array,
    back: bool,
    span: tuple[int, int, int],
    y: Array,
) -> None:
    """y from x as `_taps` says, or, with `back`, x's gradient as y from y's as x.

    The steps of the span, (begin, end, tile).
    """
    reads, writes = _rates(layer[KIND], back)
    columns, rows, steps = layer[COLUMNS], layer[ROWS], layer[STEPS]
    if back:
        columns, rows = rows, columns
    taps = _taps(layer[KIND], layer[DILATION], back)
    begin, end, tile = span
    width = _widened(rows, x)
    initial, none = np.zeros(width, x.dtype), np.zeros(width, x.dtype)
    initial[: len(bias)] = bias
    result = np.empty(tile * width, x.dtype)
    for start in range(begin, end, tile):
        n = min(tile, end - start)
        for phase in range(writes):
            _copy((result, ZERO, width), (initial, ZERO, ZERO), n, width)
            for k in range(len(taps)):
                low, high = _within(taps[k, 1], reads, steps, start, n)
                if taps[k, 0] == phase and high > low:
                    to = (result, low * width, width)
                    source = (reads * (start + low) + taps[k, 1]) * columns
                    _multiply(
                        *(none, to, (x, source, reads * columns), False, to),
                        *(columns, high - low, width, (w, k * columns * width, width)),
                    )
            place = (writes * start + phase) * rows
            _copy((y, place, writes * rows), (result, ZERO, width), n, rows)


@inlined
def _convolve_gradient(
    x: Array, g: Array, grads: Array, layer: Array, span: tuple[int, int, int], factor: Array
) -> None:
    """Adds to the gradients of weight and bias what the span of y's gradient g makes them."""
    reads, writes = _rates(layer[KIND], False)
    columns, rows, steps = layer[COLUMNS], layer[ROWS], layer[STEPS]
    taps = _taps(layer[KIND], layer[DILATION], False)
    begin, end, tile = span
    width = _widened(rows, x)
    w, none = np.zeros(len(taps) * columns * width, x.dtype), np.zeros(width, x.dtype)
    bias = grads[len(taps) * columns * rows :][:rows]
    wide = np.zeros(tile * width, x.dtype)
    slope = (wide, ZERO, width)
    for start in range(begin, end, tile):
        n = min(tile, end - start)
        for phase in range(writes):
            _copy(slope, (g, (writes * start + phase) * rows, writes * rows), n, rows)
            _sum_rows(bias, slope, n)
            for k in range(len(taps)):
                low, high = _within(taps[k, 1], reads, steps, start, n)
                if taps[k, 0] == phase and high > low:
                    to = (w, k * columns * width, width)
                    source = (reads * (start + low) + taps[k, 1]) * columns
                    _multiply_down(
                        *(none, (x, source, reads * columns), False, (wide, low * width, width)),
                        *(to, high - low, columns, width, factor),
                    )
    _unpack_sum(grads, w, _strides(layer, False), len(taps), columns, rows)


@inlined
def _around(x: Array, channels: int, steps: int, t: int) -> tuple[Array, int]:
    """The steps t - 1, t, t + 1 of x, as far as there are any, and how many numbers they lack."""
    low, high = max(t - 1, 0), min(t + 2, steps)
    return x[low * channels : high * channels], (low - t + 1) * channels


@inlined
def _to_one(x: Array, values: Array, layer: Array, span: tuple[int, int, int], y: Array) -> None:
    """`_convolve` to a single channel, in which the vectors of a product would be nearly empty."""
    columns = layer[COLUMNS]
    w, bias = values[: 3 * columns].reshape((columns, 3)).T.copy().reshape(-1), values[3 * columns]
    begin, end, _ = span
    for t in range(begin, end):
        source, lacking = _around(x, columns, len(y), t)
        weights, total = w[lacking:], bias
        for i in range(len(source)):
            total += weights[i] * source[i]
        y[t] = total


@inlined
def _to_one_gradient(
    x: Array, g: Array, grads: Array, layer: Array, span: tuple[int, int, int]
) -> None:
    """`_convolve_gradient` for a single channel."""
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
        total += part
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
    """to = bias + the sum of source[t + sign (k - 1) dilation] @ w[k], n steps from start."""
    channels, width = layer[ROWS], len(bias)
    result, result0, down = to
    # The middle tap first: it alone reaches all steps.
    for k in (1, 0, 2):
        offset = sign * (k - 1) * layer[DILATION]
        low, high = _within(offset, ONE, layer[STEPS], start, n)
        if high > low:
            part = (result, result0 + low * down, down)
            before, initial = part, none
            if k == 1:
                before, initial = (none, ZERO, ZERO), bias
            _multiply(
                *(initial, before, (source, (start + low + offset) * channels, channels), active),
                *(part, channels, high - low, width, (w, k * channels * width, width)),
            )


@inlined
def _block(
    x: Array,
    y: Array,
    kept: Array,
    values: Array,
    layer: Array,
    tile: int,
    turn: tuple[Array, int, int],
    factor: Array,
) -> int:
    """y = x + c + V @ relu(h), h = b + the sum of W[k] @ relu(x)[t + (k - 1) dilation].

    h goes to `kept`, unless that is empty.
    """
    channels, steps = layer[ROWS], layer[STEPS]
    width = _widened(channels, x)
    w = _packed(values, _strides(layer, False), 3, channels, channels, factor)
    inner = values[3 * channels * channels :]
    v = _packed(inner[channels:], (ONE, channels), ONE, channels, channels, factor)
    b, c, none = np.zeros(width, x.dtype), np.zeros(width, x.dtype), np.zeros(width, x.dtype)
    b[:channels] = inner[:channels]
    c[:channels] = inner[channels + channels * channels :][:channels]
    hidden, sums = np.empty(tile * width, x.dtype), np.empty(tile * width, x.dtype)
    whole = width == channels  # the rows of the memory are as wide as a product's
    turns, ticket, first = turn
    parts = _parts(steps)
    while ticket < first + parts:
        begin, end = _part(ticket, first, parts, steps)
        for start in range(begin, end, tile):
            n, here = min(tile, end - start), start * channels
            h, before, to = (hidden, ZERO, width), (none, ZERO, ZERO), (sums, ZERO, width)
            if whole:
                before, to = (x, here, channels), (y, here, channels)
                if kept.size:
                    h = (kept, here, channels)
            _dilated(x, True, w, b, none, h, layer, 1, start, n)
            _multiply(c, before, h, True, to, channels, n, width, (v, ZERO, width))
            if not whole:
                _copy((y, here, channels), (x, here, channels), n, channels)
                _add((y, here, channels), to, n, channels)
                if kept.size:
                    _copy((kept, here, channels), h, n, channels)
        _finish(turns)
        ticket = _take(turns)
    return ticket


@inlined
def _block_inner(
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
    """From y's gradient g that of h, to `inner`; adds to those of W, b, V and c."""
    channels, steps = layer[ROWS], layer[STEPS]
    width, square = _widened(channels, g), channels * channels
    v = _packed(values[3 * square + channels :], (channels, ONE), ONE, channels, channels, factor)
    none = np.zeros(width, g.dtype)
    outer, sums = np.zeros(tile * width, g.dtype), np.empty(tile * width, g.dtype)
    dw, dv = np.empty(3 * channels * width, g.dtype), np.empty(channels * width, g.dtype)
    whole = width == channels
    turns, ticket, first = turn
    parts = _parts(steps)
    while ticket < first + parts:
        begin, end = _part(ticket, first, parts, steps)
        own = grads[ticket - first, layer[PARAMETERS] :]
        b, c = own[3 * square :][:channels], own[4 * square + channels :][:channels]
        dw[:], dv[:] = 0, 0
        for start in range(begin, end, tile):
            n, here = min(tile, end - start), start * channels
            slope, dh = (g, here, channels), (inner, here, channels)
            if not whole:
                _copy((outer, ZERO, width), slope, n, channels)
                slope, dh = (outer, ZERO, width), (sums, ZERO, width)
            _sum_rows(c, slope, n)
            to = (dv, ZERO, width)
            gate = (kept, here, channels)
            _multiply_down(none, gate, True, slope, to, n, channels, width, factor)
            _multiply(
                *(none, (none, ZERO, ZERO), slope, False, dh),
                *(channels, n, width, (v, ZERO, width)),
            )
            _mask(dh, gate, n, channels)
            _sum_rows(b, dh, n)
            if not whole:
                _copy((inner, here, channels), dh, n, channels)
            result, result0, down = dh
            for k in range(3):
                offset = (k - 1) * layer[DILATION]
                low, high = _within(offset, ONE, steps, start, n)
                if high > low:
                    to = (dw, k * channels * width, width)
                    rows = (x, (start + low + offset) * channels, channels)
                    slopes = (result, result0 + low * down, down)
                    _multiply_down(
                        *(none, rows, True, slopes, to),
                        *(high - low, channels, width, factor),
                    )
        _unpack_sum(own, dw, _strides(layer, False), 3, channels, channels)
        _unpack_sum(own[3 * square + channels :], dv, (ONE, channels), 1, channels, channels)
        _finish(turns)
        ticket = _take(turns)
    return ticket


@inlined
def _block_outer(
    g: Array,
    x: Array,
    values: Array,
    layer: Array,
    tile: int,
    inner: Array,
    turn: tuple[Array, int, int],
    factor: Array,
) -> int:
    """y's gradient g becomes x's, when `inner` is as `_block_inner` leaves it."""
    channels, steps = layer[ROWS], layer[STEPS]
    width = _widened(channels, g)
    w = _packed(values, _strides(layer, True), 3, channels, channels, factor)
    none, sums = np.zeros(width, g.dtype), np.empty(tile * width, g.dtype)
    through = (sums, ZERO, width)
    turns, ticket, first = turn
    parts = _parts(steps)
    while ticket < first + parts:
        begin, end = _part(ticket, first, parts, steps)
        for start in range(begin, end, tile):
            n, here = min(tile, end - start), start * channels
            # A weight that looks back in `_block` looks ahead here.
            _dilated(inner, False, w, none, none, through, layer, -1, start, n)
            _add_masked((g, here, channels), through, (x, here, channels), n, channels)
        _finish(turns)
        ticket = _take(turns)
    return ticket


@compiled
def forward(
    program: Array, values: Array, memory: Array, tile: int, turns: Array, factor: Array
) -> None:
    """Run the layers: each reads its source in the memory and writes its target.

    `factor`, an empty array, says of what the products' factors are: the numbers that there are,
    or, uint32, pairs of bfloat16.

    `turns` (TURNS,) are zeros, the same ones for all threads of the call.
    """
    ticket, first = _take(turns), 0
    for number in range(len(program)):
        layer = program[number]
        steps, rows = layer[STEPS], layer[ROWS]
        reads, writes = _rates(layer[KIND], False)
        width = min(tile, steps)
        x = _place(memory, layer[SOURCE], layer[COLUMNS] * steps * reads)
        y = _place(memory, layer[TARGET], rows * steps * writes)
        own = values[layer[PARAMETERS] :]
        parts = _parts(steps)
        if ticket < first + parts:
            _wait(turns, first)
            if layer[KIND] == BLOCK:
                kept = _place(memory, layer[KEPT], rows * steps)
                ticket = _block(x, y, kept, own, layer, width, (turns, ticket, first), factor)
            else:
                taps = 3 if layer[KIND] == SAME else 4
                w = _packed(own, _strides(layer, False), taps, layer[COLUMNS], rows, factor)
                bias = own[taps * layer[COLUMNS] * rows :][:rows]
                while ticket < first + parts:
                    begin, end = _part(ticket, first, parts, steps)
                    if _narrows(layer):
                        _to_one(x, own, layer, (begin, end, width), y)
                    else:
                        _convolve(x, w, bias, layer, False, (begin, end, width), y)
                    _finish(turns)
                    ticket = _take(turns)
        first += parts
    _wait(turns, first)


@inlined
def _narrows(layer: Array) -> bool:
    return layer[KIND] == SAME and layer[ROWS] == 1


@compiled
def backward(
    program: Array,
    values: Array,
    memory: Array,
    tile: int,
    spare: Array,
    grad_x: bool,
    grads: Array,
    turns: Array,
    factor: Array,
) -> int:
    """The gradients, after a `forward` whose memory still holds all sources and what was kept.

    `spare` (3, size) has the output's gradient at the start of its first row; if `grad_x` is set,
    the input's is at the start of the row that is returned. Adds to `grads` (PARTS, parameters),
    whose sum over the parts is laid out as `values`. `turns` and `factor` are as in `forward`.
    """
    ticket, first = _take(turns), 0
    here, there = 0, 1
    for number in range(len(program) - 1, -1, -1):
        layer = program[number]
        steps, rows, columns = layer[STEPS], layer[ROWS], layer[COLUMNS]
        reads, writes = _rates(layer[KIND], False)
        width = min(tile, steps)
        x = _place(memory, layer[SOURCE], columns * steps * reads)
        g = spare[here, : rows * steps * writes]
        own = values[layer[PARAMETERS] :]
        parts = _parts(steps)
        if layer[KIND] == BLOCK:
            if ticket < first + parts:
                _wait(turns, first)
                kept, turn = _place(memory, layer[KEPT], rows * steps), (turns, ticket, first)
                ticket = _block_inner(g, x, kept, own, grads, layer, width, spare[2], turn, factor)
            first += parts
            if ticket < first + parts:
                _wait(turns, first)
                ticket = _block_outer(
                    g, x, own, layer, width, spare[2], (turns, ticket, first), factor
                )
            first += parts
            continue
        more = number > 0 or grad_x
        gx = spare[there, : columns * steps * reads]
        if ticket < first + parts:
            _wait(turns, first)
            taps = 3 if layer[KIND] == SAME else 4
            w = _packed(own, _strides(layer, True), taps, rows, columns, factor)
            while ticket < first + parts:
                begin, end = _part(ticket, first, parts, steps)
                span, part = (begin, end, width), grads[ticket - first, layer[PARAMETERS] :]
                if _narrows(layer):
                    _to_one_gradient(x, g, part, layer, span)
                else:
                    _convolve_gradient(x, g, part, layer, span, factor)
                if more:
                    _convolve(g, w, values[:0], layer, True, span, gx)
                _finish(turns)
                ticket = _take(turns)
        first += parts
        if more:
            here, there = there, here
    _wait(turns, first)
    return here
