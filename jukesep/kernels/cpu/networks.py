"""Networks on a CPU: one compiled call forward, one backward, for the layers of `model.vqvae`.

PyTorch's convolutions are made for wider layers: in these, a call costs as much as its arithmetic.
The results equal those of PyTorch's layers to rounding. The gradients are written by hand and need
two tensors of each residual block.

Under autocast to bfloat16 the factors of the products are rounded to bfloat16 and summed in
float32, if the processor has instructions for it; activations and weights keep their type.

The items of a batch are computed side by side, in as many threads as PyTorch uses for an operation
(the parameter `threads`). If there are more threads than items, several threads share an item. The
result does not depend on the number of threads.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..network import Network, Plan, padded
from . import passes, threads, tiles

TILE = 256
"""Time steps computed at a time."""


def run(network: Network, x: Tensor) -> Tensor:
    """The network's output for x (B, channels, T), on a CPU in float32 or float64.

    Raises RuntimeError for second derivatives, and for a second backward through one forward.
    """
    parameters = network.parameters()
    if torch.is_grad_enabled():
        return _Run.apply(x, network, *parameters)
    plan = network.plan(x.shape[2], training=False)
    values = _as_vector(parameters)
    memory = _scratch_memory(x.shape[0], plan.memory, values.dtype)
    return _forward(plan, x, values, memory.numpy(), _factor(x))


class _Run(torch.autograd.Function):
    """The output for x, with the gradients of x and of the network's parameters."""

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
        # PyTorch's `once_differentiable` refuses only an output gradient with a graph of its own.
        # In other cases it treats these gradients as constants, which they are not.
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
        row = padded(plan.largest)
        spare = _scratch_memory(batch, 3 * row, gradient.dtype).view(batch, 3, row)
        spare[:, 0, : gradient[0].numel()] = gradient.transpose(1, 2).flatten(1)
        grads = values.new_zeros(batch, threads.PARTS, len(values))
        arrays = values.numpy(), memory.numpy(), spare.numpy(), grads.numpy()
        rows, turns = [0] * batch, threads.new_turns(batch)

        def work(i: int) -> None:
            v, m, s, g = arrays
            rows[i] = passes.backward(
                plan.program, v, m[i], TILE, s[i], needed, g[i], turns[i], ctx.factor
            )

        threads.each(batch, work, shared=True)
        network.give_memory(memory)
        grad_x = None
        if needed:
            channels, samples = ctx.input
            found = spare[:, rows[0], : channels * samples]
            grad_x = found.reshape(batch, samples, channels).clone().transpose(1, 2)
        parts = grads.sum((0, 1)).split([shape.numel() for shape in ctx.shapes])
        return grad_x, None, *(part.view(s) for part, s in zip(parts, ctx.shapes, strict=True))


def _factor(x: Tensor) -> np.ndarray:
    """An empty array of the type that products multiply.

    Pairs of bfloat16, as uint32, under autocast to bfloat16 if the processor multiplies them.
    """
    rounded = tiles.ROUNDS and x.dtype == torch.float32 and torch.is_autocast_enabled("cpu")
    if rounded and torch.get_autocast_dtype("cpu") == torch.bfloat16:
        return np.empty(0, np.uint32)
    return np.empty(0, np.float32 if x.dtype == torch.float32 else np.float64)


def _forward(
    plan: Plan, x: Tensor, values: Tensor, memory: np.ndarray, factor: np.ndarray
) -> Tensor:
    """Run the program in the memory (B, plan.memory) and return its output (B, channels, T)."""
    batch = len(memory)
    memory[:, : x[0].numel()] = x.detach().transpose(1, 2).flatten(1).numpy()
    numbers = values.numpy()
    turns = threads.new_turns(batch)

    def work(i: int) -> None:
        passes.forward(plan.program, numbers, memory[i], TILE, turns[i], factor)

    threads.each(batch, work, shared=True)
    position, channels, steps = plan.output
    # A copy, since a view would keep the whole memory alive.
    y = torch.from_numpy(memory[:, position : position + channels * steps].copy())
    return y.view(batch, steps, channels).transpose(1, 2)


_scratch = threading.local()


def _scratch_memory(batch: int, size: int, dtype: torch.dtype) -> Tensor:
    """An uninitialised (batch, size), valid until this thread calls again.

    Fresh memory is slow on its first use.
    """
    kept: Tensor | None = getattr(_scratch, "memory", None)
    if kept is None or len(kept) < batch * size or kept.dtype != dtype:
        _scratch.memory = None  # free it before the new memory is taken
        # From PyTorch, whose memory begins on a cache line; NumPy's need not.
        with torch.inference_mode(False):  # a training may use it later
            _scratch.memory = kept = torch.empty(batch * size, dtype=dtype)
    return kept[: batch * size].view(batch, size)


def _as_vector(parameters: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
