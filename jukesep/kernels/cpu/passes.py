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
    """`size` numbers of the memory; none if `start` is NOWHERE."""
    return memory[max(start, 0) : max(start, 0) + (size if start >= 0 else 0)]


@compiled
def forward(
    program: Array, values: Array, memory: Array, tile: int, turns: Array, factor: Array
) -> None:
    """Run the layers: each reads its source in the memory and writes its target.

    `tile` is the number of time steps computed at a time. `turns` (TURNS,) are zeros that the
    threads of the call share. `factor` is an empty array of the type that products multiply: that
    of the values, or uint32 for pairs of bfloat16.
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
    """Compute the gradients, after a `forward` with a program for training, in the same memory.

    `spare` (3, size) is working memory whose first row begins with the output's gradient. With
    `grad_x`, the input's gradient is at the beginning of the row that is returned. The parameters'
    gradients are added to `grads` (PARTS, parameters): their sum over PARTS has the order of
    `values`. `tile`, `turns` and `factor` are as in `forward`.
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
