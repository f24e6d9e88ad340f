"""How threads share work: calls side by side (`each`), and parts of one call (tickets).

Threads that share a call take tickets for parts of a layer's time axis and count the parts that are
done. The parts, and with them the order of every sum, do not depend on the number of threads: the
same input gives the same bits.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch

from . import tiles
from .compiled import Array, inlined
from .rows import ONE, ZERO

PARTS = 4
"""The most parts that a layer's time axis is divided into."""
PART = 512
"""The fewest time steps of a part, if there are several."""
TURNS = 32
"""Size of the array in which the threads of a call count: two numbers, each on its own cache
line."""
_DONE: Any = np.int64(16)
_PATIENCE = 200
"""How often a thread looks whether others are done before it yields its core to them."""


def each(count: int, work: Callable[[int], object], shared: bool = False) -> None:
    """Call work(0), ..., work(count - 1) side by side, in torch.get_num_threads() threads.

    With `shared`, if there are more threads than calls, several threads call work with the same
    number. An exception of any call is raised.
    """
    threads = torch.get_num_threads()
    todo = [*range(count), *(index % count for index in range(count, threads if shared else 0))]
    left = iter(todo)  # each number goes to one thread

    def run() -> None:
        for index in left:
            work(index)

    others = min(threads, len(todo)) - 1
    helping = [_pool(others).submit(run) for _ in range(others)]
    run()
    for future in helping:
        if not future.cancel():  # a thread that has not begun has nothing left to do
            future.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="networks")


# A forked process has none of its parent's threads and would wait for them forever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)


def new_turns(batch: int) -> Array:
    """Zeros (batch, TURNS): the counters of a call for each item of a batch."""
    return np.zeros((batch, TURNS), np.int64)


@inlined
def count_parts(steps: int) -> int:
    """The number of parts that a layer's time axis is divided into."""
    return max(min(steps // PART, PARTS), 1)


@inlined
def part_range(ticket: int, first: int, parts: int, steps: int) -> tuple[int, int]:
    """The time steps of a ticket's part, begin and end; `first` is the layer's first ticket."""
    return steps * (ticket - first) // parts, steps * (ticket - first + 1) // parts


@inlined
def take(turns: Array) -> int:
    """The next ticket: the number of a part, counted over all layers."""
    return tiles.add(turns, ZERO, ONE)


@inlined
def finish(turns: Array) -> None:
    """Count a part as done."""
    tiles.add(turns, _DONE, ONE)


@inlined
def wait(turns: Array, parts: int) -> None:
    """Wait until `parts` parts are done, those of the layers before this one."""
    looks = 0
    while tiles.add(turns, _DONE, ZERO) < parts:
        looks += 1
        if looks > _PATIENCE:  # the thread waited for may be waiting for this one's core
            tiles.let_others_run()
