"""The networks of `vqvae` on an NVIDIA GPU: the residual blocks fused, all channels-last.

`vqvae` defines the layers; this computes them from the same weights, to rounding the same. A block
is one kernel forward and two backward, the other convolutions two or three (`triton_kernels`): in
layers so narrow memory takes the time, and a call costs as much as its work. A whole network is one
node of autograd.

bf16, TF32 and float32 as everywhere: by autocast and by what `devices` has set. Where triton is not
installed or the width is another one, the plain layers compute.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .cpu import Network
from .loops import BLOCK, DOUBLING, HALVING, SAME

# A power of two that the tensor cores take, and whose weights' gradients fit the registers.
WIDTHS = (16, 32, 64)


@cache
def _installed() -> bool:
    return find_spec("triton") is not None


def fits(x: Tensor, *widths: int) -> bool:
    """Whether `run` computes a network of layers of these widths for x."""
    here = x.device.type == "cuda" and all(width in WIDTHS for width in widths) and _installed()
    return here and _number(x) in (torch.float32, torch.bfloat16)


def factors(number: torch.dtype, device: torch.device) -> str:
    """How a kernel rounds the factors of products: tl.dot's `input_precision`.

    Six products of three bf16 parts of each factor have float32's accuracy, on the tensor cores.
    """
    if device.type != "cuda":  # Triton's interpreter
        return "ieee"
    rounds = number == torch.bfloat16 or torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if rounds else "bf16x6"


def nearest(rows: Tensor, k: Tensor) -> Tensor:
    """The first nearest code of each row, (N, D) and (codes, D) to (N,), always as in float32.

    Three products of TF32 parts of each factor have its accuracy.
    """
    from . import triton_kernels

    with _on(rows):
        return triton_kernels.nearest(rows.contiguous(), k, "tf32x3")


def sums(rows: Tensor, codes: Tensor, counts: Tensor) -> Tensor:
    """The sum of each code's rows, (N, D) and (N,) to (codes, D); the same bits each time.

    `counts` are how many rows each code has.
    """
    from . import triton_kernels

    with _on(rows):
        return triton_kernels.sums(rows.contiguous(), codes, counts)


def _on(x: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current GPU, wherever the tensors are."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else nullcontext()


class Layer(NamedTuple):
    """A residual block, or another convolution: "same", "halving" or "doubling"."""

    kind: str
    dilation: int
    weights: int
    """How many there are: weight and bias, for a block of both its convolutions."""

    @property
    def block(self) -> bool:
        return self.kind == "block"


KINDS = {SAME: "same", HALVING: "halving", DOUBLING: "doubling", BLOCK: "block"}


def run(network: Network, x: Tensor) -> Tensor:
    """The network's output of x (B, channels, T), alike, channels-last.

    Sound, of one channel, comes out in float32, other things in autocast's type.
    """
    layers = [
        Layer(KINDS[kind], dilation, 4 if kind == BLOCK else 2)
        for kind, _, _, dilation in network.layers
    ]
    number = _number(x)
    with _on(x):
        training = torch.is_grad_enabled()  # which it never is where autograd calls
        y: Tensor = _Network.apply(
            x.transpose(1, 2).contiguous(), number, layers, training, *network.parameters()
        )
    return y.transpose(1, 2)


def _number(x: Tensor) -> torch.dtype:
    """The type that x is computed in."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class _Network(torch.autograd.Function):
    """Layers, one after the other: x (B, T, channels), contiguous, to the output alike."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        number: torch.dtype,
        layers: list[Layer],
        training: bool,
        *weights: Tensor,
    ) -> Tensor:
        from . import triton_kernels

        ctx.layers, ctx.number, ctx.given = layers, number, x.dtype
        ctx.factors = factors(number, x.device)
        training = training and any(ctx.needs_input_grad)
        kept: list[Tensor] = []
        rest = iter(weights)
        if x.shape[2] > 1:
            x = x.to(number)
        for layer in layers:
            own = [next(rest) for _ in range(layer.weights)]
            given = x
            if layer.block:
                hidden = torch.empty_like(x) if training else None
                x = triton_kernels.forward(given, own, layer.dilation, ctx.factors, hidden)
                kept += [given, hidden] if hidden is not None else []
            else:
                weight = _packed(layer, own[0], number)
                result = number if weight.shape[1] > 1 else torch.float32
                x = triton_kernels.taps(x, weight, own[1], layer.kind, ctx.factors, result)
                kept += [given] if training else []
        if training:
            ctx.save_for_backward(*kept, *weights)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        from . import triton_kernels

        layers: list[Layer] = ctx.layers
        saved = iter(ctx.saved_tensors)
        kept = [[next(saved) for _ in range(1 + layer.block)] for layer in layers]
        weights = [[next(saved) for _ in range(layer.weights)] for layer in layers]
        blocks = [place for place, layer in enumerate(layers) if layer.block]
        largest = max((kept[place][0] for place in blocks), key=Tensor.numel)
        inner = torch.empty_like(largest)
        sizes = [weight.numel() for weight in weights[blocks[0]]]
        # Added up for all blocks together: a call costs as much as its work.
        parts = torch.empty(
            (len(blocks), triton_kernels.programs(largest), sum(sizes)),
            device=grad.device,
            dtype=torch.float32,
        )
        grads: list[list[Tensor]] = [[] for _ in layers]
        left = len(blocks)
        grad = grad.contiguous()
        for place in reversed(range(len(layers))):
            layer, own, given = layers[place], weights[place], kept[place][0]
            if layer.block:
                left -= 1
                grad = triton_kernels.backward(
                    given, kept[place][1], grad, own, layer.dilation, ctx.factors, inner,
                    parts[left],
                )  # fmt: skip
                continue
            grads[place] = _weight_gradients(layer, given, grad, own[0], ctx.factors)
            if place or ctx.needs_input_grad[0]:
                weight = _packed(layer, own[0], ctx.number).transpose(1, 2).contiguous()
                grad = triton_kernels.taps(
                    grad, weight, None, BACK[layer.kind], ctx.factors, ctx.number
                )
        of_blocks = iter(parts.sum(1).flatten().split(sizes * len(blocks)))
        for place in blocks:
            grads[place] = [next(of_blocks).view(weight.shape) for weight in weights[place]]
        first = grad.to(ctx.given) if ctx.needs_input_grad[0] else None
        return first, None, None, None, *(one for found in grads for one in found)


# The convolution that takes a gradient back through another.
BACK = {"same": "mirrored", "halving": "doubling", "doubling": "halving"}


def _packed(layer: Layer, weight: Tensor, number: torch.dtype) -> Tensor:
    """A convolution's weight as (taps, out, in)."""
    order = (2, 1, 0) if layer.kind == "doubling" else (2, 0, 1)
    return weight.permute(order).to(number).contiguous()


def _weight_gradients(
    layer: Layer, given: Tensor, grad: Tensor, weight: Tensor, factors: str
) -> list[Tensor]:
    """Those of a convolution's weight and bias, from its input and its output's gradient."""
    from . import triton_kernels

    taps = weight.shape[2]
    if layer.kind == "doubling":
        found, _, sums = triton_kernels.tap_gradients(given, grad, taps, factors)
        return [found.permute(1, 2, 0), sums[1] + sums[2]]  # these two taps see each step once
    if grad.shape[2] == 1:  # one channel has to be the other side: the taps are then mirrored
        found, _, sums = triton_kernels.tap_gradients(given, grad, taps, factors)
        return [found.flip(0).permute(2, 1, 0), sums[1]]
    found, total, _ = triton_kernels.tap_gradients(grad, given, taps, factors)
    return [found.permute(1, 2, 0), total]
