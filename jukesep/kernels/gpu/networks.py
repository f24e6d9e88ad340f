"""Networks on an NVIDIA GPU: residual blocks fused, activations channels-last.

`model.vqvae` defines the layers; the results equal PyTorch's to rounding. A block is one kernel
forward and two backward (`blocks`), another convolution two or three (`convolutions`): in layers so
narrow memory takes the time, and a launch costs as much as its work. A network is one node of
autograd.

Precision is set as for PyTorch's layers: bf16 by autocast, TF32 and float32 by `devices`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..network import BLOCK, DOUBLING, HALVING, SAME, Network
from . import blocks, convolutions
from .launch import number_of, on


def factors(number: torch.dtype, device: torch.device) -> str:
    """How a kernel rounds the factors of products: tl.dot's `input_precision`.

    For float32: six products of three bf16 parts of each factor, which have float32's accuracy and
    run on the tensor cores.
    """
    if device.type != "cuda":  # Triton's interpreter
        return "ieee"
    rounds = number == torch.bfloat16 or torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if rounds else "bf16x6"


class Layer(NamedTuple):
    """A residual block, or a convolution: "same", "halving" or "doubling"."""

    kind: str
    dilation: int
    weights: int
    """Number of parameters: weight and bias of each convolution."""

    @property
    def block(self) -> bool:
        return self.kind == "block"


KINDS = {SAME: "same", HALVING: "halving", DOUBLING: "doubling", BLOCK: "block"}


def run(network: Network, x: Tensor) -> Tensor:
    """The network's output for x, both (B, channels, T) and channels-last in memory.

    Audio, which has one channel, is returned in float32, latents in autocast's type.
    """
    layers = [
        Layer(KINDS[kind], dilation, 4 if kind == BLOCK else 2)
        for kind, _, _, dilation in network.layers
    ]
    number = number_of(x)
    with on(x):
        training = torch.is_grad_enabled()  # never the case inside a Function
        y: Tensor = _Network.apply(
            x.transpose(1, 2).contiguous(), number, layers, training, *network.parameters()
        )
    return y.transpose(1, 2)


class _Network(torch.autograd.Function):
    """Layers, one after the other: x (B, T, channels) to (B, T', channels'), both contiguous."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        number: torch.dtype,
        layers: list[Layer],
        training: bool,
        *weights: Tensor,
    ) -> Tensor:
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
                x = blocks.forward(given, own, layer.dilation, ctx.factors, hidden)
                kept += [given, hidden] if hidden is not None else []
            else:
                weight = _packed(layer, own[0], number)
                result = number if weight.shape[1] > 1 else torch.float32
                x = convolutions.taps(x, weight, own[1], layer.kind, ctx.factors, result)
                kept += [given] if training else []
        if training:
            ctx.save_for_backward(*kept, *weights)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        layers: list[Layer] = ctx.layers
        saved = iter(ctx.saved_tensors)
        kept = [[next(saved) for _ in range(1 + layer.block)] for layer in layers]
        weights = [[next(saved) for _ in range(layer.weights)] for layer in layers]
        block_places = [place for place, layer in enumerate(layers) if layer.block]
        largest = max((kept[place][0] for place in block_places), key=Tensor.numel)
        inner = torch.empty_like(largest)
        sizes = [weight.numel() for weight in weights[block_places[0]]]
        # Summed for all blocks in one call, since a call costs as much as its work.
        parts = torch.empty(
            (len(block_places), blocks.programs(largest), sum(sizes)),
            device=grad.device,
            dtype=torch.float32,
        )
        grads: list[list[Tensor]] = [[] for _ in layers]
        left = len(block_places)
        grad = grad.contiguous()
        for place in reversed(range(len(layers))):
            layer, own, given = layers[place], weights[place], kept[place][0]
            if layer.block:
                left -= 1
                grad = blocks.backward(
                    given, kept[place][1], grad, own, layer.dilation, ctx.factors, inner,
                    parts[left],
                )  # fmt: skip
                continue
            grads[place] = _weight_gradients(layer, given, grad, own[0], ctx.factors)
            if place or ctx.needs_input_grad[0]:
                weight = _packed(layer, own[0], ctx.number).transpose(1, 2).contiguous()
                grad = convolutions.taps(
                    grad, weight, None, BACK[layer.kind], ctx.factors, ctx.number
                )
        of_blocks = iter(parts.sum(1).flatten().split(sizes * len(block_places)))
        for place in block_places:
            grads[place] = [next(of_blocks).view(weight.shape) for weight in weights[place]]
        first = grad.to(ctx.given) if ctx.needs_input_grad[0] else None
        return first, None, None, None, *(one for found in grads for one in found)


# The convolution that computes the gradient of another one's input.
BACK = {"same": "mirrored", "halving": "doubling", "doubling": "halving"}


def _packed(layer: Layer, weight: Tensor, number: torch.dtype) -> Tensor:
    """A convolution's weight as (taps, out, in)."""
    order = (2, 1, 0) if layer.kind == "doubling" else (2, 0, 1)
    return weight.permute(order).to(number).contiguous()


def _weight_gradients(
    layer: Layer, given: Tensor, grad: Tensor, weight: Tensor, factors: str
) -> list[Tensor]:
    """The gradients of a convolution's weight and bias, from its input and output gradient."""
    taps = weight.shape[2]
    if layer.kind == "doubling":
        found, _, sums = convolutions.tap_gradients(given, grad, taps, factors)
        return [found.permute(1, 2, 0), sums[1] + sums[2]]  # together these taps see each step once
    if grad.shape[2] == 1:  # `other` must be the side of one channel: the taps are mirrored
        found, _, sums = convolutions.tap_gradients(given, grad, taps, factors)
        return [found.flip(0).permute(2, 1, 0), sums[1]]
    found, total, _ = convolutions.tap_gradients(grad, given, taps, factors)
    return [found.permute(1, 2, 0), total]
