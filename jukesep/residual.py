"""The residual block on a CPU: matrix products on tiles that stay in cache, a backward by hand.

    y = x + pointwise(relu(dilated(relu(x))))

`vqvae.ResidualBlock` defines the block; this computes it from the same weights. PyTorch's
convolutions spend most of their time around the arithmetic where a layer is as narrow as Jukebox's,
and save four tensors a block for the backward; two do.

Time comes before channels in memory here, (B, T, C), so that a tap of the dilated convolution is a
shifted view of its input: no padding, no copies.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

TILE = 2**17  # numbers of a tensor worked on at a time: half a MiB


class _Block(torch.autograd.Function):
    """(x, w (3, C, C), b, v (C, C), c, dilation): taps w and pointwise v map rows from the left."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor, v: Tensor, c: Tensor, d: int) -> Tensor:
        active, hidden = x.relu(), torch.empty_like(x)
        y = _forward(x, active, hidden, w, b, v, c, d)
        ctx.save_for_backward(active, hidden, w, v)
        ctx.dilation = d
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        active, hidden, w, v = ctx.saved_tensors
        return (*_backward(gradients[0].contiguous(), active, hidden, w, v, ctx.dilation), None)


def residual_block(
    x: Tensor, dilated: tuple[Tensor, Tensor], pointwise: tuple[Tensor, Tensor], dilation: int
) -> Tensor:
    """(B, C, T) -> (B, C, T), both with their channels side by side in memory.

    `dilated` and `pointwise` are weight and bias as nn.Conv1d holds them: (C, C, 3) and (C, C, 1).
    """
    rows = x.transpose(1, 2).contiguous()
    w, v = dilated[0].permute(2, 1, 0).contiguous(), pointwise[0].squeeze(2).t().contiguous()
    if torch.is_grad_enabled():
        y = _Block.apply(rows, w, dilated[1], v, pointwise[1], dilation)
    else:
        y = _forward(rows, rows.relu(), None, w, dilated[1], v, pointwise[1], dilation)
    return y.transpose(1, 2)


def _tiles(rows: int, channels: int) -> list[tuple[int, int]]:
    size = max(TILE // channels, 1)
    return [(start, min(start + size, rows)) for start in range(0, rows, size)]


def _add_taps(
    out: Tensor, source: Tensor, start: int, before: Tensor, after: Tensor, d: int
) -> None:
    """out[t] += source[t - d] @ before + source[t + d] @ after, for out's rows from `start` on."""
    stop, length = start + len(out), len(source)
    first, last = max(start, d), min(stop, length - d)
    if first < stop:
        out[first - start :].addmm_(source[first - d : stop - d], before)
    if last > start:
        out[: last - start].addmm_(source[start + d : last + d], after)


def _forward(
    x: Tensor,
    active: Tensor,
    hidden: Tensor | None,
    w: Tensor,
    b: Tensor,
    v: Tensor,
    c: Tensor,
    d: int,
) -> Tensor:
    """The output, from x and active = relu(x); fills `hidden`, the second activation, if given.

    All (B, T, C).
    """
    y = x + c
    tiles = _tiles(*x.shape[1:])
    spare = x.new_empty(tiles[0][1], x.shape[2])
    for item in range(len(x)):
        for start, stop in tiles:
            h = spare[: stop - start] if hidden is None else hidden[item, start:stop]
            torch.addmm(b, active[item, start:stop], w[1], out=h)
            _add_taps(h, active[item], start, w[0], w[2], d)
            h.relu_()
            y[item, start:stop].addmm_(h, v)
    return y


def _backward(
    g: Tensor, active: Tensor, hidden: Tensor, w: Tensor, v: Tensor, d: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, w, b, v and c, from that of the output, g (B, T, C)."""
    length, channels = g.shape[1:]
    back = w.transpose(1, 2).contiguous()
    grad_w, grad_v = torch.zeros_like(w), torch.zeros_like(v)
    grad_h, grad_x = torch.empty_like(g), torch.empty_like(g)
    for item in range(len(g)):
        for start, stop in _tiles(length, channels):
            here, h = g[item, start:stop], hidden[item, start:stop]
            grad_v.addmm_(h.t(), here)
            part = here @ v.t()
            torch.ops.aten.threshold_backward.grad_input(
                part, h, 0, grad_input=grad_h[item, start:stop]
            )
        source, inner = active[item], grad_h[item]
        for start, stop in _tiles(length, channels):
            part = inner[start:stop]
            grad_w[1].addmm_(source[start:stop].t(), part)
            first, last = max(start, d), min(stop, length - d)
            if first < stop:
                grad_w[0].addmm_(source[first - d : stop - d].t(), part[first - start :])
            if last > start:
                grad_w[2].addmm_(source[start + d : last + d].t(), part[: last - start])
            # A tap that looks back in the forward looks ahead here.
            grad = part @ back[1]
            _add_taps(grad, inner, start, back[2], back[0], d)
            out = grad_x[item, start:stop]
            torch.ops.aten.threshold_backward.grad_input(
                grad, source[start:stop], 0, grad_input=out
            )
            out += g[item, start:stop]
    return grad_x, grad_w, grad_h.sum((0, 1)), grad_v, g.sum((0, 1))
