"""Where the time of a step of stage 1 goes, in the textbook form and in jukesep.

Each side's step is run part by part, the parts timed apart and in turns with the whole step. What
the whole takes beside its parts is "rest".
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import arithmetic, textbook
from benchmarks.row import Options, Result, Row
from benchmarks.speed import BANDWIDTHS, LINF_K, PAPER, model, stage1_step
from jukesep.model.codebook import straight_through
from jukesep.model.vqvae import VQVAE
from jukesep.training import losses

SAMPLES = 65_536
PARTS = (
    "encoder, forward", "decoder, forward", "losses and their gradient", "decoder, backward",
    "encoder, backward", "codebook",
)  # fmt: skip


def measure(options: Options, samples: int = SAMPLES) -> Result:
    """Processor seconds of each part and of the whole step, of both sides."""
    torch.set_num_threads(1)
    plain, audio = model(PAPER, 1, samples)
    ours, _ = model(PAPER, 1, samples)
    wholes: dict[str, Callable[[], object]] = {
        "textbook": lambda: textbook.stage1_step(plain, audio, BANDWIDTHS, LINF_K),
        "jukesep": stage1_step(ours, audio),
    }
    product = arithmetic.gemm(torch.float32)
    parts: dict[str, dict[str, list[float]]] = {side: {} for side in wholes}
    products = []
    for turn in range(3):
        for side, vqvae in (("textbook", plain), ("jukesep", ours)):
            times = _parts(side, vqvae, audio)
            times["step"] = _timed(wholes[side])[0]
            if turn:  # the first warms up
                for part, seconds in times.items():
                    parts[side].setdefault(part, []).append(seconds)
        products.append(_timed(product)[0])
    medians = {
        side: {part: statistics.median(values) for part, values in found.items()}
        for side, found in parts.items()
    }
    for found in medians.values():
        found["rest"] = found["step"] - sum(found[part] for part in PARTS)
    per_sample = arithmetic.flops(PAPER)
    flops = {
        "encoder, forward": per_sample["encoder"],
        "encoder, backward": 2 * per_sample["encoder"],
        "decoder, forward": per_sample["decoder"],
        "decoder, backward": 2 * per_sample["decoder"],
        "codebook": per_sample["quantiser"],
        "step": arithmetic.work(PAPER)["stage1"],
    }
    return Result(
        {side: {"seconds": found["step"]} for side, found in medians.items()},
        rounds=len(parts["jukesep"]["step"]),
        details={
            "parts": medians,
            "flops": {part: samples * count for part, count in flops.items()},
            "limit": arithmetic.peak(statistics.median(products[1:])),
        },
    )


def _parts(side: str, vqvae: VQVAE, audio: Tensor) -> dict[str, float]:
    """Seconds of each part of a step; the graph is cut between them."""
    plain = side == "textbook"
    codebook, times = vqvae.codebook, {}
    encode = (
        (lambda: textbook.encode(vqvae.encoder, audio)) if plain else (lambda: vqvae.encode(audio))
    )
    times["encoder, forward"], latents = _timed(encode)
    cut = latents.detach()

    def quantise() -> tuple[Tensor, Tensor]:
        return textbook.quantise(codebook.k, cut) if plain else vqvae.quantise(cut)

    times["codebook"], (codes, quantised) = _timed(quantise)
    given = straight_through(cut, quantised).requires_grad_()
    decode = (lambda: textbook.decode(vqvae, given)) if plain else (lambda: vqvae.decode(given))
    times["decoder, forward"], decoded = _timed(decode)
    made, met = decoded.detach().requires_grad_(), cut.clone().requires_grad_()

    def compare() -> None:
        if plain:
            loss = textbook.losses(audio, made, BANDWIDTHS, LINF_K)
            loss = loss + 0.02 * F.mse_loss(met, quantised)
        else:
            loss, _ = losses.stage1_loss(audio, made, met, quantised, BANDWIDTHS, linf_k=LINF_K)
        loss.backward()

    times["losses and their gradient"], _ = _timed(compare)
    times["decoder, backward"], _ = _timed(lambda: decoded.backward(made.grad))
    assert given.grad is not None
    assert met.grad is not None
    gradient = given.grad + met.grad
    times["encoder, backward"], _ = _timed(lambda: latents.backward(gradient))

    def update() -> None:
        if plain:
            averages = codebook.k, codebook.k_sum, codebook.k_elem
            textbook.update(*averages, cut, codes, codebook.decay)
        else:
            codebook.update(cut, codes)

    times["codebook"] += _timed(update)[0]
    return times


def _timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()  # the clock would count what other programs take between parts
    value = run()
    return time.process_time() - start, value


ROWS = {
    "breakdown": Row(
        "where the time of a step of stage 1 goes", measure, cores=1, module="breakdown"
    )
}
