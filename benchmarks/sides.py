"""Both sides of a comparison: the textbook form, and jukesep in each precision.

A side runs a step of a training, a separation, the codebook or the losses, on the same weights and
audio as the other sides. `tests/benchmarks/test_textbook.py` holds that all compute the same. At
the end the arithmetic of a model, counted from its layers, and how fast this processor does any.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from benchmarks import textbook
from benchmarks.measuring import Step
from jukesep.base.params import CodebookParams, Losses
from jukesep.kernels import devices
from jukesep.model.codebook import Codebook
from jukesep.model.vqvae import VQVAE, Architecture, Decoder, Encoder
from jukesep.separation.chunked import apply_chunked
from jukesep.training import losses
from jukesep.training.conditioning import Conditioned
from jukesep.training.optimiser import Adam, as_one
from jukesep.training.tasks import LatentMatching, Reconstruction

T = TypeVar("T")
Context = Callable[[], AbstractContextManager[object]]
What = Literal["stage1", "stage2", "separation", "codebook", "losses"]

TEXTBOOK = "textbook"
PRECISIONS = {"jukesep": "fp32", "fp32": "fp32", "tf32": "tf32", "bf16": "bf16"}
"""Side -> precision, of the sides that are jukesep's."""
BANDWIDTHS = losses.Bandwidths(l2=0.02, spec=30.0)
LINF_K = 2048
WEIGHTS = Losses(linf=0.02, linf_k=LINF_K, multispectral=1.0, commit=0.02)
LEARNING_RATE = 3e-4
PAPER, DEMO = Architecture(), Architecture(width=32, depth=4, dilation_growth=4, codes=512)
PAPER_RATE, DEMO_RATE = 44_100, 11_025
SAMPLES = 65_536
GEMM = 2048  # rows and columns of the matrices whose product is the processor's limit

MODEL = ("jukesep/kernels", "jukesep/model/codebook.py", "jukesep/model/vqvae.py")
BENCHMARK = ("benchmarks/sides.py", "benchmarks/textbook.py")
STEP = (*MODEL, *BENCHMARK, "jukesep/training/losses.py", "jukesep/training/tasks.py")
CODE = {
    "stage1": STEP,
    "stage2": STEP,
    "separation": (*MODEL, *BENCHMARK, "jukesep/separation/chunked.py"),
    "codebook": ("jukesep/kernels", "jukesep/model/codebook.py", *BENCHMARK),
    "losses": ("jukesep/kernels", "jukesep/training/losses.py", *BENCHMARK),
}
"""The code that a step runs: what `row.Row` wants."""


def model(
    architecture: Architecture, batch: int, samples: int, device: str = "cpu"
) -> tuple[VQVAE, Tensor]:
    """A model with random weights and a codebook near its latents, and noise (B, 1, samples)."""
    torch.manual_seed(0)
    vqvae = VQVAE(architecture).to(device)
    audio = 0.1 * torch.randn(batch, 1, samples, device=device)
    with torch.no_grad():
        k = torch.randn_like(vqvae.codebook.k)
        # A stretch of the audio is enough for the scale of the latents. Counts this high have no
        # code revived, which the textbook form does not do either.
        vqvae.codebook.restore(k * vqvae.encode(audio[:1, :, :4096]).std(), 96.0)
    return vqvae, audio


def step(
    what: What,
    side: str,
    architecture: Architecture = PAPER,
    batch: int = 1,
    samples: int = SAMPLES,
    device: str = "cpu",
    learn: bool = False,
) -> Step:
    """A function that runs one step of one side.

    With `learn` a step of a training also clips the gradient, and updates weights and averages.
    """
    plain = side == TEXTBOOK
    if what == "codebook":
        return _codebook(plain, batch, samples, device)
    if what == "losses":
        return _losses(plain, batch, samples, device)
    vqvae, audio = model(architecture, batch, samples, device)
    precision: Any = PRECISIONS.get(side, "fp32")
    autocast = devices.autocast(precision, torch.device(device))
    if what == "separation":
        if plain:
            return lambda: textbook.separate(vqvae, audio, BANDWIDTHS, LINF_K)
        return partial(_within, autocast, lambda: apply_chunked(vqvae, audio[:, 0]))
    trained: nn.Module = vqvae
    if what == "stage1":
        run = partial(textbook.stage1_step, vqvae, audio, BANDWIDTHS, LINF_K)
        if not plain:
            codebook = CodebookParams(decay=0.99, revival_threshold=1.0)
            first = Reconstruction(vqvae, BANDWIDTHS, WEIGHTS, codebook, 0, {})
            run = partial(_step, autocast, lambda: first.loss((audio, audio), 0)[0])
    else:
        trained, stem = Encoder(architecture).to(device), 0.5 * audio
        run = partial(textbook.stage2_step, trained, vqvae, audio, stem)
        if not plain:
            second = LatentMatching(Conditioned(trained), vqvae, "mse", WEIGHTS, {})
            both = torch.cat([audio, stem], 1)
            run = partial(_step, autocast, lambda: second.loss(second.prepare(both), 0)[0])
    return _learning(trained, run) if learn else run


def _within(context: Context, run: Callable[[], T]) -> T:
    with context():
        return run()


def _step(autocast: Context, loss: Callable[[], Tensor]) -> Tensor:
    total = _within(autocast, loss)
    total.backward()
    return total.detach()


def _learning(trained: nn.Module, run: Callable[[], Tensor]) -> Step:
    """A step with all that the training does after the gradients."""
    adam = Adam(trained.parameters())
    average = as_one(copy.deepcopy(trained).parameters())

    def step() -> None:
        adam.zero_grad()
        loss = run()
        norm = adam.clip(1.0)
        torch.stack([loss, norm]).tolist()
        adam.step(LEARNING_RATE)
        average.lerp_(adam.values, 5e-4)

    return step


def _codebook(plain: bool, batch: int, samples: int, device: str) -> Step:
    torch.manual_seed(0)
    latents = torch.randn(batch, 64, samples // 8, device=device)
    codebook = Codebook(2048, 64)
    codebook.restore(torch.randn(2048, 64), 96.0)
    codebook.to(device)
    if not plain:
        return lambda: codebook.update(latents, codebook.quantise(latents)[0])
    k, k_sum, k_elem = (t.clone() for t in (codebook.k, codebook.k_sum, codebook.k_elem))

    def run() -> None:
        codes, _ = textbook.quantise(k, latents)
        textbook.update(k, k_sum, k_elem, latents, codes, codebook.decay)

    return run


def _losses(plain: bool, batch: int, samples: int, device: str) -> Step:
    torch.manual_seed(0)
    target = 0.1 * torch.randn(batch, 1, samples, device=device)
    decoded = (target + 0.01 * torch.randn_like(target)).requires_grad_()
    if plain:
        return lambda: textbook.losses(target, decoded, BANDWIDTHS, LINF_K).backward()

    latents = torch.empty(0, device=device)  # commit=0: not looked at

    def run() -> None:
        total, _ = losses.stage1_loss(
            target, decoded, latents, latents, BANDWIDTHS, commit=0, linf_k=LINF_K
        )
        total.backward()

    return run


def flops(architecture: Architecture) -> dict[str, float]:
    """Multiplications and additions for a sample of audio, by encoder, decoder and quantiser.

    Those of the convolutions and of the search for codes.
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
