"""A network's forward and backward pass on a CPU, each one compiled function.

A program (`network.Plan`) says what to run. Parameters are in one flat array, activations in
another, the memory, each as a matrix (time steps, channels).

Threads that call a function here with the same arguments share its work: they take turns at parts
of the time axis (`threads`), and a thread that comes late finds less to do.
"""

from __future__ import annotations

from ..network import BLOCK, COLUMNS, KEPT, KIND, PARAMETERS, ROWS, SAME, SOURCE, STEPS, TARGET
from .compiled import Array, compiled, inlined
from .layers import (
    block,
    block_inner,
    block_outer,
    convolve,
    convolve_gradient,
    narrows,
    rates,
    to_one,
    to_one_gradient,
)
from .products import packed, weight_strides
from .threads import count_parts, finish, part_range, take, wait


@inlined
def _place(memory: Array, start: int, size: int) -> Array:
    """A part of the memory; an empty one for nowhere."""
    return memory[max(start, 0) : max(start, 0) + (size if start >= 0 else 0)]


@compiled
def forward(
    program: Array, values: Array, memory: Array, tile: int, turns: Array, factor: Array
) -> None:
    """Run the layers: each reads its source in the memory and writes its target.

    `factor`, an empty array, says of what the products' factors are: the numbers that there are,
    or, uint32, pairs of bfloat16.

    `turns` (TURNS,) are zeros, the same ones for all threads of the call.
    """
    ticket, first = take(turns), 0
    for number in range(len(program)):
        layer = program[number]
        steps, rows = layer[STEPS], layer[ROWS]
        reads, writes = rates(layer[KIND], False)
        width = min(tile, steps)
        x = _place(memory, layer[SOURCE], layer[COLUMNS] * steps * reads)
        y = _place(memory, layer[TARGET], rows * steps * writes)
        own = values[layer[PARAMETERS] :]
        parts = count_parts(steps)
        if ticket < first + parts:
            wait(turns, first)
            if layer[KIND] == BLOCK:
                kept = _place(memory, layer[KEPT], rows * steps)
                ticket = block(x, y, kept, own, layer, width, (turns, ticket, first), factor)
            else:
                taps = 3 if layer[KIND] == SAME else 4
                w = packed(own, weight_strides(layer, False), taps, layer[COLUMNS], rows, factor)
                bias = own[taps * layer[COLUMNS] * rows :][:rows]
                while ticket < first + parts:
                    begin, end = part_range(ticket, first, parts, steps)
                    if narrows(layer):
                        to_one(x, own, layer, (begin, end, width), y)
                    else:
                        convolve(x, w, bias, layer, False, (begin, end, width), y)
                    finish(turns)
                    ticket = take(turns)
        first += parts
    wait(turns, first)


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
    ticket, first = take(turns), 0
    here, there = 0, 1
    for number in range(len(program) - 1, -1, -1):
        layer = program[number]
        steps, rows, columns = layer[STEPS], layer[ROWS], layer[COLUMNS]
        reads, writes = rates(layer[KIND], False)
        width = min(tile, steps)
        x = _place(memory, layer[SOURCE], columns * steps * reads)
        g = spare[here, : rows * steps * writes]
        own = values[layer[PARAMETERS] :]
        parts = count_parts(steps)
        if layer[KIND] == BLOCK:
            if ticket < first + parts:
                wait(turns, first)
                kept, turn = _place(memory, layer[KEPT], rows * steps), (turns, ticket, first)
                ticket = block_inner(g, x, kept, own, grads, layer, width, spare[2], turn, factor)
            first += parts
            if ticket < first + parts:
                wait(turns, first)
                ticket = block_outer(
                    g, x, own, layer, width, spare[2], (turns, ticket, first), factor
                )
            first += parts
            continue
        more = number > 0 or grad_x
        gx = spare[there, : columns * steps * reads]
        if ticket < first + parts:
            wait(turns, first)
            taps = 3 if layer[KIND] == SAME else 4
            w = packed(own, weight_strides(layer, True), taps, rows, columns, factor)
            while ticket < first + parts:
                begin, end = part_range(ticket, first, parts, steps)
                span, part = (begin, end, width), grads[ticket - first, layer[PARAMETERS] :]
                if narrows(layer):
                    to_one_gradient(x, g, part, layer, span)
                else:
                    convolve_gradient(x, g, part, layer, span, factor)
                if more:
                    convolve(g, w, values[:0], layer, True, span, gx)
                finish(turns)
                ticket = take(turns)
        first += parts
        if more:
            here, there = there, here
    wait(turns, first)
    return here
