"""The arithmetic of a model, counted from its layers, and how fast this processor does any."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from jukesep.model.vqvae import Architecture, Decoder, Encoder

GEMM = 2048  # rows and columns of the matrices whose product is the yardstick


def flops(architecture: Architecture) -> dict[str, float]:
    """Multiplications and additions of a sample of audio: of encoder, decoder and quantiser.

    Of the convolutions and of the search for codes; what else there is runs in their shadow.
    """
    with torch.device("meta"):
        encoder, decoder = Encoder(architecture), Decoder(architecture)
    return {
        "encoder": _forward(encoder, 1.0),
        "decoder": _forward(decoder, 1 / architecture.hop),
        "quantiser": 2 * architecture.codes * architecture.latent_dim / architecture.hop,
    }


def _forward(network: nn.Module, rate: float) -> float:
    """Of a network whose input has `rate` time steps a sample.

    Relies on the modules being registered in the order in which they run.
    """
    total = 0.0
    for layer in network.modules():
        if not isinstance(layer, nn.Conv1d | nn.ConvTranspose1d):
            continue
        products = 2 * layer.in_channels * layer.out_channels * layer.kernel_size[0]
        if isinstance(layer, nn.ConvTranspose1d):
            total += products * rate  # each input goes into as many outputs as there are taps
            rate *= layer.stride[0]
        else:
            rate /= layer.stride[0]
            total += products * rate
    return total


def work(architecture: Architecture) -> dict[str, float]:
    """FLOPs a sample of a step of either stage, and of separation; a backward is two forwards."""
    part = flops(architecture)
    return {
        "stage1": 3 * (part["encoder"] + part["decoder"]) + part["quantiser"],
        "stage2": 4 * part["encoder"],
        "separation": sum(part.values()),
    }


def gemm(dtype: torch.dtype) -> Callable[[], object]:
    """A product of square matrices, to be timed: 2 GEMM^3 FLOPs on torch's threads."""
    torch.manual_seed(0)
    one, other = (torch.randn(GEMM, GEMM).to(dtype) for _ in range(2))
    out = torch.empty(GEMM, GEMM, dtype=dtype)
    return lambda: torch.mm(one, other, out=out)


def peak(seconds: float) -> float:
    """FLOPs a second, from the seconds of `gemm`."""
    return 2 * GEMM**3 / seconds
