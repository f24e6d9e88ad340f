"""What the kernels need to know about a network: its layers, in the order in which they run.

PyTorch only: `cpu` and `gpu` both read these descriptions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

SAME, HALVING, DOUBLING, BLOCK = range(4)
"""Kinds of layers: nn.Conv1d of 3 taps that keeps the length; nn.Conv1d of 4 taps and stride 2 that
halves it; nn.ConvTranspose1d of 4 taps that doubles it; a residual block."""

KIND, COLUMNS, ROWS, DILATION, STEPS, PARAMETERS, SOURCE, TARGET, KEPT = range(9)
"""Columns of a program: the kind, channels in and out, dilation, time steps, the index of the
layer's first parameter, and three positions in the memory: the layer's input, its output, and the
output of a block's inner convolution, which the backward pass needs."""

NOWHERE = -1
"""The position of what is not kept."""
PADDING = 144
"""Numbers between two buffers: it puts the same time step of two buffers on different cache
lines."""


class Plan(NamedTuple):
    """A network's program for one input length."""

    program: np.ndarray
    """(layers, 9) int64, a row for each layer; the columns are `KIND` to `KEPT`."""
    memory: int
    """Numbers that all buffers take."""
    largest: int
    """Numbers of the largest input or output of a layer."""
    output: tuple[int, int, int]
    """Position, channels and time steps of the network's output."""


class Network:
    """The layers of a module, for `kernels.run`.

    The module must register its layers in the order in which they run, and every convolution must
    be one of the kinds above. `block` is the class of the residual blocks.
    """

    def __init__(self, module: nn.Module, block: type[nn.Module]) -> None:
        self.convolutions: list[nn.Module] = []
        self.layers: list[tuple[int, int, int, int]] = []  # kind, channels in and out, dilation
        inside: set[nn.Module] = set()
        for part in module.modules():
            if isinstance(part, block):
                dilated, pointwise = inner = list(part.children())
                inside.update(inner)
                self._add(BLOCK, dilated, pointwise)
            elif part not in inside and isinstance(part, nn.ConvTranspose1d):
                self._add(DOUBLING, part)
            elif part not in inside and isinstance(part, nn.Conv1d):
                self._add(HALVING if part.stride == (2,) else SAME, part)
        self._plans: dict[tuple[int, bool], Plan] = {}
        self._memory: Tensor | None = None

    def _add(self, kind: int, *convolutions: nn.Module) -> None:
        first = convolutions[0]
        assert isinstance(first, nn.Conv1d | nn.ConvTranspose1d)
        self.convolutions += convolutions
        self.layers.append((kind, first.in_channels, first.out_channels, int(first.dilation[0])))

    @property
    def widths(self) -> set[int]:
        """The numbers of channels inside the network: all but the one channel of the audio."""
        channels = [number for _, columns, rows, _ in self.layers for number in (columns, rows)]
        channels.remove(1)
        return set(channels)

    def parameters(self) -> list[Tensor]:
        """Weight and bias of each convolution, in the order in which they run."""
        return [p for layer in self.convolutions for p in (layer.weight, layer.bias)]  # type: ignore[misc]

    def take_memory(self, batch: int, size: int, dtype: torch.dtype) -> Tensor:
        """An uninitialised (batch, size): the buffer of the previous step if it was given back.

        Fresh memory is slow on its first use.
        """
        kept, self._memory = self._memory, None
        if kept is None or kept.shape != (batch, size) or kept.dtype != dtype:
            kept = torch.empty(batch, size, dtype=dtype)
        return kept

    def give_memory(self, memory: Tensor) -> None:
        """Keep the buffer for the next `take_memory`."""
        self._memory = memory

    def plan(self, samples: int, training: bool) -> Plan:
        """The program for an input of `samples` time steps.

        For training every layer keeps its input; otherwise the layers use two buffers in turn.
        """
        key = (samples, training)
        if key not in self._plans:
            self._plans[key] = self._planned(samples, training)
        return self._plans[key]

    def _planned(self, samples: int, training: bool) -> Plan:
        rows, parameters, steps = [], 0, samples
        buffers = _Buffers(None if training else self._largest(samples))
        source = buffers.take(self.layers[0][1] * samples)
        for kind, columns, channels, dilation in self.layers:
            taps = 3 if kind in (SAME, BLOCK) else 4
            steps //= 2 if kind == HALVING else 1
            row = [kind, columns, channels, dilation, steps, parameters]
            steps *= 2 if kind == DOUBLING else 1
            size, kept = channels * steps, NOWHERE
            target = buffers.take(size)
            parameters += columns * channels * taps + channels
            if kind == BLOCK:
                parameters += channels * (channels + 1)
                kept = buffers.take(size) if training else NOWHERE
            buffers.give(source)
            rows.append([*row, source, target, kept])
            source = target
        return Plan(np.array(rows), buffers.end, self._largest(samples), (source, channels, steps))

    def _largest(self, samples: int) -> int:
        """Numbers of the largest input or output of a layer."""
        steps, largest = samples, self.layers[0][1] * samples
        for kind, _, channels, _ in self.layers:
            steps = steps * 2 if kind == DOUBLING else steps
            steps = steps // 2 if kind == HALVING else steps
            largest = max(largest, channels * steps)
        return largest


class _Buffers:
    """Assigns positions in the memory; with a size, buffers of that size that can be reused."""

    def __init__(self, size: int | None) -> None:
        self.size, self.free, self.end = size, list[int](), 0

    def take(self, size: int) -> int:
        """The position of a buffer of at least `size` numbers."""
        if self.free:
            return self.free.pop()
        position = self.end
        self.end += padded(self.size or size)
        return position

    def give(self, position: int) -> None:
        """Let the buffer be taken again, if buffers are reused."""
        if self.size is not None:
            self.free.append(position)


def padded(size: int) -> int:
    """Numbers from the start of a buffer of `size` numbers to the next: whole cache lines."""
    return (size + 15) // 16 * 16 + PADDING
