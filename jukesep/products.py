"""The model's layers on a CPU: matrix products on tiles that stay in cache, backwards by hand.

`vqvae` defines the layers; this computes them from the same weights, to rounding the same. The
convolutions of PyTorch spend most of their time around the arithmetic, in layers so narrow.

Time comes before channels in memory here, (B, T, C), so that a tap of a convolution is a matrix
product with shifted rows of its input: no padding, no copies. A convolution that halves the rate
reads two samples as one row of twice the channels, one that doubles it writes such rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

TILE = 2**17  # numbers of a tensor worked on at a time: half a MiB


class Tap(NamedTuple):
    """out[t, columns] += source[t + shift, rows] @ weight; `rows` are columns of the source."""

    shift: int
    rows: slice
    columns: slice


ALL = slice(None)


def convolution(x: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
    """nn.Conv1d of three taps that keeps the length: (B, C, T) -> (B, D, T), weight (D, C, 3)."""
    taps = tuple(Tap(shift, ALL, ALL) for shift in (-dilation, 0, dilation))
    weights = weight.permute(2, 1, 0).contiguous()
    return _apply(_rows(x), bias, taps, weights.unbind()).transpose(1, 2)


def halving(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """nn.Conv1d of kernel 4, stride 2, padding 1: (B, C, T) -> (B, D, T / 2), weight (D, C, 4)."""
    batch, channels, length = x.shape
    pairs = _rows(x).view(batch, length // 2, 2 * channels)
    first, second = slice(0, channels), slice(channels, None)
    taps = (Tap(-1, second, ALL), Tap(0, ALL, ALL), Tap(1, first, ALL))
    w = weight.permute(2, 1, 0).contiguous()
    return _apply(pairs, bias, taps, (w[0], w[1:3].flatten(0, 1), w[3])).transpose(1, 2)


def doubling(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """nn.ConvTranspose1d of kernel 4, stride 2, padding 1: (B, C, T) -> (B, D, 2 T).

    The weight is (C, D, 4), as nn.ConvTranspose1d holds it.
    """
    batch, _, length = x.shape
    channels = weight.shape[1]
    first, second = slice(0, channels), slice(channels, None)
    taps = (Tap(-1, ALL, first), Tap(0, ALL, ALL), Tap(1, ALL, second))
    w = weight.permute(2, 0, 1)
    weights = (w[3].contiguous(), torch.cat([w[1], w[2]], 1), w[0].contiguous())
    pairs = _apply(_rows(x), bias.repeat(2), taps, weights)
    return pairs.view(batch, 2 * length, channels).transpose(1, 2)


def residual_block(
    x: Tensor, dilated: tuple[Tensor, Tensor], pointwise: tuple[Tensor, Tensor], dilation: int
) -> Tensor:
    """x + pointwise(relu(dilated(relu(x)))): (B, C, T) -> (B, C, T), two tensors kept.

    `dilated` and `pointwise` are weight and bias as nn.Conv1d holds them: (C, C, 3) and (C, C, 1).
    """
    rows = _rows(x)
    w, v = dilated[0].permute(2, 1, 0).contiguous(), pointwise[0].squeeze(2).t().contiguous()
    if torch.is_grad_enabled():
        y = _Block.apply(rows, w, dilated[1], v, pointwise[1], dilation)
    else:
        y = _block(rows, rows.relu(), None, w, dilated[1], v, pointwise[1], dilation)
    return y.transpose(1, 2)


def _rows(x: Tensor) -> Tensor:
    """(B, C, T) -> (B, T, C), which costs nothing where the channels are side by side already."""
    return x.transpose(1, 2).contiguous()


def _tiles(length: int, channels: int) -> Iterator[tuple[int, int]]:
    size = max(TILE // channels, 1)
    return ((start, min(start + size, length)) for start in range(0, length, size))


def _within(shift: int, start: int, stop: int, length: int) -> tuple[int, int]:
    """The rows of start..stop for which a row `shift` further on exists; none: first >= last."""
    return max(start, -shift), min(stop, length - shift)


def _add_tap(out: Tensor, start: int, source: Tensor, shift: int, weight: Tensor) -> None:
    """out[t] += source[t + shift] @ weight, for the rows of `out`, which begin at `start`."""
    first, last = _within(shift, start, start + len(out), len(source))
    if first < last:
        out[first - start : last - start].addmm_(source[first + shift : last + shift], weight)


class _Convolution(torch.autograd.Function):
    """(x (B, T, C), bias, taps, weights): the middle tap has no shift and writes every column."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, taps: tuple[Tap, ...], *w: Tensor) -> Tensor:
        ctx.save_for_backward(x, *w)
        ctx.taps = taps
        return _convolve(x, bias, taps, w)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        g = gradients[0].contiguous()
        x, *weights = ctx.saved_tensors
        grad_weights = [torch.zeros_like(weight) for weight in weights]
        back = [weight.t().contiguous() for weight in weights]
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        for item in range(len(x)):
            for start, stop in _tiles(x.shape[1], max(x.shape[2], g.shape[2])):
                for (shift, rows, columns), grad in zip(ctx.taps, grad_weights, strict=True):
                    first, last = _within(shift, start, stop, x.shape[1])
                    if first < last:
                        source = x[item, first + shift : last + shift, rows]
                        grad.addmm_(source.t(), g[item, first:last, columns])
                if grad_x is not None:
                    out = grad_x[item, start:stop]
                    torch.mm(g[item, start:stop], back[1], out=out)
                    # A tap that looks back in the forward looks ahead here.
                    for (shift, rows, columns), weight in zip(ctx.taps, back, strict=True):
                        if shift:
                            _add_tap(out[:, rows], start, g[item][:, columns], -shift, weight)
        return grad_x, g.sum((0, 1)), None, *grad_weights


def _apply(x: Tensor, bias: Tensor, taps: tuple[Tap, ...], weights: tuple[Tensor, ...]) -> Tensor:
    if torch.is_grad_enabled():
        return _Convolution.apply(x, bias, taps, *weights)
    return _convolve(x, bias, taps, weights)


def _convolve(
    x: Tensor, bias: Tensor, taps: tuple[Tap, ...], weights: tuple[Tensor, ...]
) -> Tensor:
    batch, length, channels = x.shape
    y = x.new_empty(batch, length, len(bias))
    for item in range(batch):
        for start, stop in _tiles(length, max(channels, len(bias))):
            out = y[item, start:stop]
            torch.addmm(bias, x[item, start:stop], weights[1], out=out)
            for (shift, rows, columns), weight in zip(taps, weights, strict=True):
                if shift:
                    _add_tap(out[:, columns], start, x[item][:, rows], shift, weight)
    return y


class _Block(torch.autograd.Function):
    """(x, w (3, C, C), b, v (C, C), c, dilation): taps w and pointwise v map rows from the left."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor, v: Tensor, c: Tensor, d: int) -> Tensor:
        active, hidden = x.relu(), torch.empty_like(x)
        y = _block(x, active, hidden, w, b, v, c, d)
        ctx.save_for_backward(active, hidden, w, v)
        ctx.dilation = d
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        active, hidden, w, v = ctx.saved_tensors
        return (
            *_block_backward(gradients[0].contiguous(), active, hidden, w, v, ctx.dilation),
            None,
        )


def _block(
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
    batch, length, channels = x.shape
    y = x + c
    spare = x.new_empty(min(max(TILE // channels, 1), length), channels)
    for item in range(batch):
        source = active[item]
        for start, stop in _tiles(length, channels):
            h = spare[: stop - start] if hidden is None else hidden[item, start:stop]
            torch.addmm(b, source[start:stop], w[1], out=h)
            _add_tap(h, start, source, -d, w[0])
            _add_tap(h, start, source, d, w[2])
            h.relu_()
            y[item, start:stop].addmm_(h, v)
    return y


def _block_backward(
    g: Tensor, active: Tensor, hidden: Tensor, w: Tensor, v: Tensor, d: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, w, b, v and c, from that of the output, g (B, T, C)."""
    batch, length, channels = g.shape
    back, through = w.transpose(1, 2).contiguous(), v.t().contiguous()
    grad_w, grad_v = torch.zeros_like(w), torch.zeros_like(v)
    grad_h, grad_x = torch.empty_like(g), torch.empty_like(g)
    mask = torch.ops.aten.threshold_backward.grad_input  # gradient where the activation is over 0
    for item in range(batch):
        source, inner = active[item], grad_h[item]
        for start, stop in _tiles(length, channels):
            h, here = hidden[item, start:stop], g[item, start:stop]
            grad_v.addmm_(h.t(), here)
            mask(here @ through, h, 0, grad_input=inner[start:stop])
        for start, stop in _tiles(length, channels):
            for tap, shift in enumerate((-d, 0, d)):
                first, last = _within(shift, start, stop, length)
                if first < last:
                    grad_w[tap].addmm_(source[first + shift : last + shift].t(), inner[first:last])
            grad = inner[start:stop] @ back[1]
            _add_tap(grad, start, inner, d, back[0])
            _add_tap(grad, start, inner, -d, back[2])
            out = grad_x[item, start:stop]
            mask(grad, source[start:stop], 0, grad_input=out)
            out += g[item, start:stop]
    return grad_x, grad_w, grad_h.sum((0, 1)), grad_v, g.sum((0, 1))
