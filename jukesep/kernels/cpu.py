"""The networks of `vqvae` on a CPU: one compiled call forward, one backward.

`vqvae` defines the layers; this computes them from the same weights, to rounding the same, with the
gradients by hand and two tensors kept for each residual block. `kernels` has the loops. (PyTorch's
convolutions are made for wider layers: in these they spend most of their time around the
arithmetic, and a layer's call costs as much as its work.)

Under autocast to bfloat16 the factors of the products are rounded to it, and summed in float32,
where the processor has instructions for that; activations and weights stay what they are.

The items of a batch are computed side by side, and where there are fewer than threads, several
threads share one. There are as many as PyTorch uses for an operation (the parameter `threads`); the
result does not depend on their number.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from . import loops, tiles

TILE = 256  # time steps worked on at a time
NOWHERE = -1
SKEW = 144  # numbers between two places of the memory


class Plan(NamedTuple):
    """A program for an input of one length."""

    program: np.ndarray
    """As `kernels` describes it."""
    memory: int
    """Numbers that all places take."""
    largest: int
    """Numbers of the largest of the inputs and outputs."""
    output: tuple[int, int, int]
    """Place, channels and time steps of the network's output."""


class Network:
    """The layers of a module in the order in which they run, ready for `run`.

    Relies on the modules being registered in that order. `block` is the class of the residual
    blocks. Any other convolution has to be one of the three that `kernels` knows.
    """

    def __init__(self, module: nn.Module, block: type[nn.Module]) -> None:
        self.convolutions: list[nn.Module] = []
        self.layers: list[tuple[int, int, int, int]] = []  # kind, channels in and out, dilation
        inside: set[nn.Module] = set()
        for part in module.modules():
            if isinstance(part, block):
                dilated, pointwise = inner = list(part.children())
                inside.update(inner)
                self._add(loops.BLOCK, dilated, pointwise)
            elif part not in inside and isinstance(part, nn.ConvTranspose1d):
                self._add(loops.DOUBLING, part)
            elif part not in inside and isinstance(part, nn.Conv1d):
                self._add(loops.HALVING if part.stride == (2,) else loops.SAME, part)
        self._plans: dict[tuple[int, bool], Plan] = {}
        self._memory: Tensor | None = None

    def _add(self, kind: int, *convolutions: nn.Module) -> None:
        first = convolutions[0]
        assert isinstance(first, nn.Conv1d | nn.ConvTranspose1d)
        self.convolutions += convolutions
        self.layers.append((kind, first.in_channels, first.out_channels, int(first.dilation[0])))

    def parameters(self) -> list[Tensor]:
        """Weight and bias of each convolution, in the order in which `kernels` takes them."""
        return [p for layer in self.convolutions for p in (layer.weight, layer.bias)]  # type: ignore[misc]

    def take_memory(self, batch: int, size: int, dtype: torch.dtype) -> Tensor:
        """(batch, size), that of the step before if it was given back: new memory is slow."""
        kept, self._memory = self._memory, None
        if kept is None or kept.shape != (batch, size) or kept.dtype != dtype:
            kept = torch.empty(batch, size, dtype=dtype)
        return kept

    def give_memory(self, memory: Tensor) -> None:
        """For the next step."""
        self._memory = memory

    def plan(self, samples: int, training: bool) -> Plan:
        """For an input of `samples`; without a training, two places take turns."""
        key = (samples, training)
        if key not in self._plans:
            self._plans[key] = self._planned(samples, training)
        return self._plans[key]

    def _planned(self, samples: int, training: bool) -> Plan:
        rows, parameters, steps = [], 0, samples
        places = _Places(None if training else self._largest(samples))
        source = places.take(self.layers[0][1] * samples)
        for kind, columns, channels, dilation in self.layers:
            taps = 3 if kind in (loops.SAME, loops.BLOCK) else 4
            steps //= 2 if kind == loops.HALVING else 1
            row = [kind, columns, channels, dilation, steps, parameters]
            steps *= 2 if kind == loops.DOUBLING else 1
            size, kept = channels * steps, NOWHERE
            target = places.take(size)
            parameters += columns * channels * taps + channels
            if kind == loops.BLOCK:
                parameters += channels * (channels + 1)
                kept = places.take(size) if training else NOWHERE
            places.give(source)
            rows.append([*row, source, target, kept])
            source = target
        return Plan(np.array(rows), places.end, self._largest(samples), (source, channels, steps))

    def _largest(self, samples: int) -> int:
        """Numbers of the largest input or output."""
        steps, largest = samples, self.layers[0][1] * samples
        for kind, _, channels, _ in self.layers:
            steps = steps * 2 if kind == loops.DOUBLING else steps
            steps = steps // 2 if kind == loops.HALVING else steps
            largest = max(largest, channels * steps)
        return largest


class _Places:
    """Hands out places of the memory: new ones, or, all of one size, those given back."""

    def __init__(self, size: int | None) -> None:
        self.size, self.free, self.end = size, list[int](), 0

    def take(self, size: int) -> int:
        if self.free:
            return self.free.pop()
        place = self.end
        # On from place to place the same step falls on other lines of the cache.
        self.end += _lines(self.size or size) + SKEW
        return place

    def give(self, place: int) -> None:
        if self.size is not None:
            self.free.append(place)


def _lines(size: int) -> int:
    return (size + 15) // 16 * 16


def run(network: Network, x: Tensor) -> Tensor:
    """The network's output of x (B, C, T), on a CPU in float32 or float64."""
    parameters = network.parameters()
    if torch.is_grad_enabled():
        return _Run.apply(x, network, *parameters)
    plan = network.plan(x.shape[2], training=False)
    values = _as_vector(parameters)
    memory = _scratch_memory(x.shape[0], plan.memory, values.dtype)
    return _forward(plan, x, values, memory.numpy(), _factor(x))


class _Run(torch.autograd.Function):
    """(x, network, its parameters)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, network: Network, *parameters: Tensor) -> Tensor:
        ctx.plan = network.plan(x.shape[2], training=True)
        ctx.shapes = [parameter.shape for parameter in parameters]
        values = _as_vector(parameters)
        memory = network.take_memory(x.shape[0], ctx.plan.memory, x.dtype)
        ctx.factor = _factor(x)
        y = _forward(ctx.plan, x, values, memory.numpy(), ctx.factor)
        ctx.kept = network, memory, values
        ctx.input = x.shape[1:]
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # PyTorch's `once_differentiable` would refuse only where the output's gradient has a graph
        # of its own, and take the gradients for constants of the weights elsewhere.
        if torch.is_grad_enabled():
            raise RuntimeError(
                "networks: no second derivatives (create_graph=True) through the compiled networks."
            )
        if ctx.kept is None:
            raise RuntimeError("networks: a second backward through the same forward.")
        (gradient,) = gradients
        (network, memory, values), ctx.kept = ctx.kept, None
        plan: Plan = ctx.plan
        batch, needed = gradient.shape[0], ctx.needs_input_grad[0]
        row = _lines(plan.largest) + SKEW
        spare = _scratch_memory(batch, 3 * row, gradient.dtype).view(batch, 3, row)
        spare[:, 0, : gradient[0].numel()] = gradient.transpose(1, 2).flatten(1)
        grads = values.new_zeros(batch, loops.PARTS, len(values))
        arrays = values.numpy(), memory.numpy(), spare.numpy(), grads.numpy()
        rows, turns = [0] * batch, _turns(batch)

        def work(i: int) -> None:
            v, m, s, g = arrays
            rows[i] = loops.backward(
                plan.program, v, m[i], TILE, s[i], needed, g[i], turns[i], ctx.factor
            )

        each(batch, work, shared=True)
        network.give_memory(memory)
        grad_x = None
        if needed:
            channels, samples = ctx.input
            found = spare[:, rows[0], : channels * samples]
            grad_x = found.reshape(batch, samples, channels).clone().transpose(1, 2)
        parts = grads.sum((0, 1)).split([shape.numel() for shape in ctx.shapes])
        return grad_x, None, *(part.view(s) for part, s in zip(parts, ctx.shapes, strict=True))


def _factor(x: Tensor) -> np.ndarray:
    """What `kernels` multiplies: pairs of bfloat16 where autocast says so and they are known."""
    rounded = tiles.ROUNDS and x.dtype == torch.float32 and torch.is_autocast_enabled("cpu")
    if rounded and torch.get_autocast_dtype("cpu") == torch.bfloat16:
        return np.empty(0, np.uint32)
    return np.empty(0, np.float32 if x.dtype == torch.float32 else np.float64)


def _forward(
    plan: Plan, x: Tensor, values: Tensor, memory: np.ndarray, factor: np.ndarray
) -> Tensor:
    """The output, after the program has run in the memory (B, plan.memory)."""
    batch = len(memory)
    memory[:, : x[0].numel()] = x.detach().transpose(1, 2).flatten(1).numpy()
    numbers = values.numpy()
    turns = _turns(batch)

    def work(i: int) -> None:
        loops.forward(plan.program, numbers, memory[i], TILE, turns[i], factor)

    each(batch, work, shared=True)
    place, channels, steps = plan.output
    # A copy: a view would hold on to the whole memory.
    y = torch.from_numpy(memory[:, place : place + channels * steps].copy())
    return y.view(batch, steps, channels).transpose(1, 2)


_scratch = threading.local()


def _scratch_memory(batch: int, size: int, dtype: torch.dtype) -> Tensor:
    """(batch, size), this thread's until it asks again: memory never touched before is slow."""
    kept: Tensor | None = getattr(_scratch, "memory", None)
    if kept is None or len(kept) < batch * size or kept.dtype != dtype:
        _scratch.memory = None  # before the new memory is taken
        # Not numpy's, whose memory begins between two lines of the cache.
        with torch.inference_mode(False):  # a training may need it later
            _scratch.memory = kept = torch.empty(batch * size, dtype=dtype)
    return kept[: batch * size].view(batch, size)


def _as_vector(parameters: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in parameters])


def each(count: int, work: Callable[[int], object], shared: bool = False) -> None:
    """work(0), work(1), ... side by side, in as many threads as PyTorch uses for an operation.

    With `shared`, where there are more threads than that, several call work with the same number.
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
        if not future.cancel():  # for one that has not begun there is nothing left to do
            future.result()


def _turns(batch: int) -> np.ndarray:
    return np.zeros((batch, loops.TURNS), np.int64)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="networks")


# A forked process has none of its parent's threads, and would wait for them for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)
