"""The networks of `vqvae` on a CPU: one compiled call forward, one backward.

`vqvae` defines the layers; this computes them from the same weights, to rounding the same, with the
gradients by hand and two tensors kept for each residual block. `kernels` has the loops. (PyTorch's
convolutions are made for wider layers: in these they spend most of their time around the
arithmetic, and a layer's call costs as much as its work.)

The items of a batch are computed side by side, on all cores; the result does not depend on their
number.
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

from . import kernels

TILE = 512  # time steps worked on at a time
CORES = os.cpu_count() or 1


class Plan(NamedTuple):
    """A program for an input of one length."""

    program: np.ndarray
    """As `kernels` describes it."""
    memory: int
    """Numbers that all inputs and outputs take."""
    largest: int
    """Numbers of the largest of them."""
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
                self._add(kernels.BLOCK, dilated, pointwise)
            elif part not in inside and isinstance(part, nn.ConvTranspose1d):
                self._add(kernels.DOUBLING, part)
            elif part not in inside and isinstance(part, nn.Conv1d):
                self._add(kernels.HALVING if part.stride == (2,) else kernels.SAME, part)
        self._plans: dict[tuple[int, bool], Plan] = {}

    def _add(self, kind: int, *convolutions: nn.Module) -> None:
        first = convolutions[0]
        assert isinstance(first, nn.Conv1d | nn.ConvTranspose1d)
        self.convolutions += convolutions
        self.layers.append((kind, first.in_channels, first.out_channels, int(first.dilation[0])))

    def parameters(self) -> list[Tensor]:
        """Weight and bias of each convolution, in the order in which `kernels` takes them."""
        return [p for layer in self.convolutions for p in (layer.weight, layer.bias)]  # type: ignore[misc]

    def plan(self, samples: int, training: bool) -> Plan:
        """For an input of `samples`; without a training, two places take turns."""
        key = (samples, training)
        if key not in self._plans:
            self._plans[key] = self._planned(samples, training)
        return self._plans[key]

    def _planned(self, samples: int, training: bool) -> Plan:
        rows, parameters, steps = [], 0, samples
        sizes = [self.layers[0][1] * samples]  # of the input, and of each output
        for kind, columns, channels, dilation in self.layers:
            taps = 3 if kind in (kernels.SAME, kernels.BLOCK) else 4
            steps //= 2 if kind == kernels.HALVING else 1
            rows.append([kind, columns, channels, dilation, steps, parameters])
            steps *= 2 if kind == kernels.DOUBLING else 1
            parameters += columns * channels * taps + channels
            parameters += channels * (channels + 1) if kind == kernels.BLOCK else 0
            sizes.append(channels * steps)
        largest = max(sizes)
        if training:
            *places, end = np.cumsum([0, *sizes]).tolist()
        else:
            places, end = [largest * (number % 2) for number in range(len(sizes))], 2 * largest
        for number, row in enumerate(rows):
            kept = training and row[0] == kernels.BLOCK
            row += [places[number], places[number + 1], end if kept else -1]
            end += sizes[number + 1] if kept else 0
        return Plan(np.array(rows), end, largest, (places[-1], rows[-1][2], steps))


def run(network: Network, x: Tensor) -> Tensor:
    """The network's output of x (B, C, T), on a CPU in float32 or float64."""
    parameters = network.parameters()
    if torch.is_grad_enabled():
        return _Run.apply(x, network, *parameters)
    plan = network.plan(x.shape[2], training=False)
    values = _as_vector(parameters)
    return _forward(plan, x, values, _scratch_memory(x.shape[0], plan.memory, values.numpy()))


class _Run(torch.autograd.Function):
    """(x, network, its parameters)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, network: Network, *parameters: Tensor) -> Tensor:
        ctx.plan = network.plan(x.shape[2], training=True)
        ctx.shapes = [parameter.shape for parameter in parameters]
        values = _as_vector(parameters)
        memory = x.new_empty(x.shape[0], ctx.plan.memory)
        y = _forward(ctx.plan, x, values, memory.numpy())
        ctx.save_for_backward(memory, values)
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
        (gradient,) = gradients
        memory, values = ctx.saved_tensors
        plan: Plan = ctx.plan
        batch, needed = gradient.shape[0], ctx.needs_input_grad[0]
        spare = gradient.new_empty(batch, 2, plan.largest)
        spare[:, 0, : gradient[0].numel()] = gradient.flatten(1)
        grads = values.new_zeros(batch, len(values))
        arrays = values.numpy(), memory.numpy(), spare.numpy(), grads.numpy()
        rows = [0] * batch

        def work(i: int) -> None:
            v, m, s, g = arrays
            rows[i] = kernels.backward(plan.program, v, m[i], TILE, s[i], needed, g[i])

        _each(batch, work)
        grad_x = None
        if needed:
            channels, samples = ctx.input
            grad_x = spare[:, rows[0], : channels * samples].view(batch, channels, samples)
        parts = grads.sum(0).split([shape.numel() for shape in ctx.shapes])
        return grad_x, None, *(part.view(s) for part, s in zip(parts, ctx.shapes, strict=True))


def _forward(plan: Plan, x: Tensor, values: Tensor, memory: np.ndarray) -> Tensor:
    """The output, after the program has run in the memory (B, plan.memory)."""
    batch = len(memory)
    memory[:, : x[0].numel()] = x.detach().flatten(1).numpy()
    numbers = values.numpy()
    _each(batch, lambda i: kernels.forward(plan.program, numbers, memory[i], TILE))
    place, channels, steps = plan.output
    # A copy: a view would hold on to the whole memory.
    y = torch.from_numpy(memory[:, place : place + channels * steps].copy())
    return y.view(batch, channels, steps)


_scratch = threading.local()


def _scratch_memory(batch: int, size: int, like: np.ndarray) -> np.ndarray:
    """(batch, size), this thread's until it asks again: memory never touched before is slow."""
    kept: np.ndarray | None = getattr(_scratch, "memory", None)
    if kept is None or kept.size < batch * size or kept.dtype != like.dtype:
        _scratch.memory = None  # before the new memory is taken
        _scratch.memory = kept = np.empty(batch * size, like.dtype)
    return kept[: batch * size].reshape(batch, size)


def _as_vector(parameters: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in parameters])


def _each(count: int, work: Callable[[int], object]) -> None:
    """work(0), work(1), ... side by side."""
    if count > 1 and CORES > 1:
        list(_pool().map(work, range(count)))
    else:
        for index in range(count):
            work(index)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(CORES, thread_name_prefix="networks")


# A forked process has none of its parent's threads, and would wait for them for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)
