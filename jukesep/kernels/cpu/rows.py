"""Operations on the rows of matrices in flat arrays, for the loops of a network's layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from .compiled import Array, compiled, inlined

Rows = tuple[Array, int, int]
"""Rows in a flat array: the array, where the first row begins, and the distance to the next."""

ZERO: Any = np.int64(0)
ONE: Any = np.int64(1)
"""For calls: numba compiles a function once more for each literal that it is called with."""

LINE = 64
"""Bytes of a cache line: `widened` rows are a multiple of it."""


@inlined
def widened(channels: int, like: Array) -> int:
    line = LINE // like.itemsize
    return (channels + line - 1) // line * line


@inlined
def _joined(y: Rows, x: Rows, n: int, width: int) -> tuple[int, int]:
    """The number and width of rows: n rows without gaps between them count as one."""
    if y[2] == width and x[2] == width:
        n, width = ONE, n * width
    return n, width


@inlined
def _row(x: Rows, t: int, width: int) -> Array:
    # In a slice no index is negative, which the compiler must know to vectorise a loop.
    values, first, down = x
    return values[first + t * down : first + t * down + width]


@inlined
def begin_with(y: Array, x: Array) -> None:
    """y[: len(x)] = x. As an assignment, numba compiles its error message too, for 3 seconds."""
    for i in range(len(x)):
        y[i] = x[i]


@compiled
def copy(y: Rows, x: Rows, n: int, width: int) -> None:
    """y = x, n rows of the width."""
    n, width = _joined(y, x, n, width)
    for t in range(n):
        to, source = _row(y, t, width), _row(x, t, width)
        for i in range(width):
            to[i] = source[i]


@compiled
def add(y: Rows, x: Rows, n: int, width: int) -> None:
    """y += x, n rows of the width."""
    n, width = _joined(y, x, n, width)
    for t in range(n):
        to, source = _row(y, t, width), _row(x, t, width)
        for i in range(width):
            to[i] += source[i]


@compiled
def mask(y: Rows, gate: Rows, n: int, width: int) -> None:
    """y = 0 where gate <= 0: the gradient of a ReLU whose input is `gate`."""
    n, width = _joined(y, gate, n, width)
    zero = y[0].dtype.type(0)
    for t in range(n):
        to, source = _row(y, t, width), _row(gate, t, width)
        for i in range(width):
            to[i] = to[i] if source[i] > zero else zero


@compiled
def add_masked(y: Rows, x: Rows, gate: Rows, n: int, width: int) -> None:
    """y += x where gate > 0."""
    if gate[2] == width:
        n, width = _joined(y, x, n, width)
    zero = y[0].dtype.type(0)
    for t in range(n):
        to, source, over = _row(y, t, width), _row(x, t, width), _row(gate, t, width)
        for i in range(width):
            to[i] += source[i] if over[i] > zero else zero


@compiled
def sum_rows(sums: Array, x: Rows, n: int) -> None:
    """sums += the sum of n rows."""
    part = np.zeros_like(sums)  # short partial sums keep a long sum exact
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
