"""Rows on one core of a CPU: jukesep against the textbook form, and its bf16 against its fp32.

Both sides run in turns on the same weights and audio, and the medians are compared. Memory is the
peak of a process that runs one side alone, above what it had after the imports.
`tests/test_textbook.py` holds that both sides compute the same.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from benchmarks import arithmetic, machine, textbook, timing
from benchmarks.row import Goal, Options, Result, Row, Skipped
from benchmarks.timing import Step
from jukesep.kernels import devices
from jukesep.model.codebook import Codebook, straight_through
from jukesep.model.vqvae import VQVAE, Architecture, Encoder
from jukesep.separation.chunked import apply_chunked
from jukesep.separation.separator import Separator
from jukesep.songs.manifest import STEMS
from jukesep.training import losses

Precision = Literal["fp32", "bf16"]

CPU = torch.device("cpu")
BANDWIDTHS = losses.Bandwidths(l2=0.02, spec=30.0)
LINF_K = 2048
PAPER, DEMO = Architecture(), Architecture(width=32, depth=4, dilation_growth=4, codes=512)
PAPER_RATE, DEMO_RATE = 44_100, 11_025
SONG_SECONDS = 20  # more than two of separation's chunks
KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def model(architecture: Architecture, batch: int, samples: int) -> tuple[VQVAE, torch.Tensor]:
    """A model with random weights and a codebook near its latents, and noise (B, 1, samples)."""
    torch.manual_seed(0)
    vqvae, audio = VQVAE(architecture), 0.1 * torch.randn(batch, 1, samples)
    with torch.no_grad():
        k = torch.randn(architecture.codes, architecture.latent_dim)
        # The scale of the latents shows in a stretch of the audio.
        vqvae.codebook.restore(k * vqvae.encode(audio[:1, :, :4096]).std(), 24.0)
    vqvae.codebook.revival_threshold = 0.0
    return vqvae, audio


def stage1_step(vqvae: VQVAE, audio: torch.Tensor, precision: Precision = "fp32") -> Step:
    """jukesep's step of stage 1, without the optimiser's part, as the training runs it."""

    def step() -> None:
        with devices.autocast(precision, CPU)():
            latents = vqvae.encode(audio)
            codes, quantised = vqvae.quantise(latents)
            decoded = vqvae.decode(straight_through(latents, quantised))
            total, _ = losses.stage1_loss(
                audio, decoded, latents, quantised, BANDWIDTHS, linf_k=LINF_K
            )
            vqvae.codebook.update(latents.detach(), codes)
        total.backward()

    return step


def stage2_step(
    encoder: Encoder, vqvae: VQVAE, mixture: torch.Tensor, precision: Precision = "fp32"
) -> Step:
    """jukesep's step of stage 2, as `stage1_step`."""
    stem = 0.5 * mixture

    def step() -> None:
        with devices.autocast(precision, CPU)():
            with torch.no_grad():
                target = vqvae.encode(stem)
            total, _ = losses.stage2_loss(target, encoder(mixture))
        total.backward()

    return step


def separation_step(vqvae: VQVAE, mixture: torch.Tensor, precision: Precision = "fp32") -> Step:
    """jukesep's separation of (rows, 1, samples)."""

    def step() -> None:
        with devices.autocast(precision, CPU)():
            apply_chunked(vqvae, mixture[:, 0], mixture.shape[2])

    return step


def stage1(architecture: Architecture, batch: int, samples: int) -> dict[str, Step]:
    plain, audio = model(architecture, batch, samples)
    return {
        "textbook": lambda: textbook.stage1_step(plain, audio, BANDWIDTHS, LINF_K),
        "jukesep": stage1_step(copy.deepcopy(plain), audio),
    }


def stage2(architecture: Architecture, batch: int, samples: int) -> dict[str, Step]:
    vqvae, mixture = model(architecture, batch, samples)
    plain, stem = Encoder(architecture), 0.5 * mixture
    return {
        "textbook": lambda: textbook.stage2_step(plain, vqvae, mixture, stem),
        "jukesep": stage2_step(copy.deepcopy(plain), vqvae, mixture),
    }


def separation(architecture: Architecture, batch: int, samples: int) -> dict[str, Step]:
    vqvae, mixture = model(architecture, batch, samples)
    return {
        "textbook": lambda: textbook.separate(vqvae, mixture, BANDWIDTHS, LINF_K),
        "jukesep": separation_step(vqvae, mixture),
    }


def _precisions(what: str, batch: int, samples: int) -> dict[str, Step]:
    steps: dict[str, Step] = {}
    for precision in ("fp32", "bf16"):
        vqvae, audio = model(PAPER, batch, samples)
        if what == "stage1":
            steps[precision] = stage1_step(vqvae, audio, precision)
        elif what == "stage2":
            steps[precision] = stage2_step(Encoder(PAPER), vqvae, audio, precision)
        else:
            steps[precision] = separation_step(vqvae, audio, precision)
    return steps


def _codebook() -> dict[str, Step]:
    torch.manual_seed(0)
    latents, k = torch.randn(1, 64, 16_384), torch.randn(2048, 64)
    codebook = Codebook(2048, 64)
    codebook.restore(k, 8.0)
    codebook.revival_threshold = 0.0
    plain = [t.clone() for t in (codebook.k, codebook.k_sum, codebook.k_elem)]

    def one() -> None:
        codes, _ = textbook.quantise(plain[0], latents)
        textbook.update(plain[0], plain[1], plain[2], latents, codes, codebook.decay)

    return {
        "textbook": one,
        "jukesep": lambda: codebook.update(latents, codebook.quantise(latents)[0]),
    }


def _losses() -> dict[str, Step]:
    torch.manual_seed(0)
    target = 0.1 * torch.randn(1, 1, 65_536)
    decoded = (target + 0.01 * torch.randn_like(target)).requires_grad_()

    def ours() -> None:
        terms = losses.reconstruction_losses(target, decoded, BANDWIDTHS, LINF_K)
        (terms["l2"] + 0.02 * terms["linf"] + terms["multispectral"]).backward()

    return {
        "textbook": lambda: textbook.losses(target, decoded, BANDWIDTHS, LINF_K).backward(),
        "jukesep": ours,
    }


@dataclass(frozen=True)
class Case:
    """Both sides, made anew by each call of `make`; the arithmetic of a run of one side."""

    make: Callable[[], dict[str, Step]]
    flops: float = 0.0
    """0: not compared with the processor's limit."""
    audio: float = 0.0
    """Seconds of audio that a run processes."""


_WORK = arithmetic.work(PAPER)
CASES = {
    "stage1": Case(partial(stage1, PAPER, 1, 65_536), 65_536 * _WORK["stage1"]),
    "stage2": Case(partial(stage2, PAPER, 1, 65_536), 65_536 * _WORK["stage2"]),
    "separation": Case(
        partial(separation, PAPER, 1, 65_536), 65_536 * _WORK["separation"], 65_536 / PAPER_RATE
    ),
    "demo-stage1": Case(partial(stage1, DEMO, 2, 8192)),
    "demo-stage2": Case(partial(stage2, DEMO, 2, 8192)),
    "demo-separation": Case(partial(separation, DEMO, 2, 8192), audio=2 * 8192 / DEMO_RATE),
    "codebook": Case(_codebook),
    "losses": Case(_losses),
    "bf16-stage1": Case(partial(_precisions, "stage1", 1, 65_536), 65_536 * _WORK["stage1"]),
    "bf16-stage2": Case(partial(_precisions, "stage2", 1, 65_536), 65_536 * _WORK["stage2"]),
    "bf16-separation": Case(
        partial(_precisions, "separation", 1, 65_536),
        65_536 * _WORK["separation"],
        65_536 / PAPER_RATE,
    ),
}


def measure(name: str, options: Options) -> Result:
    """Medians of both sides run in turns, peaks of memory, and the share of the limit reached."""
    case, dtype = CASES[name], KINDS["bf16" if name.startswith("bf16") else "fp32"]
    if dtype == torch.bfloat16:
        needs_bf16()
    torch.set_num_threads(1)
    steps = case.make()
    first, second = steps
    turns = steps | ({"gemm": arithmetic.gemm(dtype)} if case.flops else {})
    runs = timing.interleaved(turns, options.seconds, clock=time.process_time)
    seconds = {side: statistics.median(values) for side, values in runs.items()}
    memory = {side: timing.fresh(1, _alone, name, side)[1] for side in steps}
    figures = {"speed": seconds[first] / seconds[second], "memory": memory[second] / memory[first]}
    details = {}
    if case.flops:
        limit = arithmetic.peak(seconds["gemm"])
        details = {"flops": case.flops, "limit": limit, "precision": str(dtype).split(".")[1]}
        figures["share of the limit"] = 100 * case.flops / seconds[second] / limit
    if case.audio:
        figures["real time"] = case.audio / seconds[second]
    return Result(
        {side: {"seconds": seconds[side], "megabytes": memory[side]} for side in steps},
        figures,
        rounds=len(runs[first]),
        details=details,
    )


def _alone(name: str, side: str) -> tuple[float, float]:
    return alone(CASES[name].make, side)


def alone(make: Callable[[], dict[str, Step]], side: str) -> tuple[float, float]:
    """A side by itself in this process: seconds of its second run, and MB at the peak of both.

    Seconds are the processor's; the peak is above what the process had after the imports.
    """
    torch.set_num_threads(1)
    # Compiled code is loaded first, and PyTorch sets itself up; both belong to neither side.
    tiny = Architecture(width=8, depth=1, latent_dim=8, codes=8)
    for step in stage1(tiny, 1, 2048).values():
        step()
    before = timing.highest()
    step = make()[side]
    step()
    start = time.process_time()  # not in turns: the clock would count other programs
    step()
    return time.process_time() - start, (timing.highest() - before) / 1e6


def needs_bf16() -> None:
    found = machine.features()
    if found and not {"avx512_bf16", "amx_bf16", "bf16"} & set(found):
        raise Skipped("this processor has no instructions for bf16")


def song(precision: Precision, seconds: float, options: Options) -> Result:
    """A stereo song into four stems, on all cores, against the arithmetic limit of them all."""
    if precision == "bf16":
        needs_bf16()
    models = {stem: model(PAPER, 1, 4096)[0] for stem in STEMS}
    separator = Separator(models, PAPER_RATE, "none").to(CPU, precision)
    mixture = 0.1 * torch.randn(2, round(seconds * PAPER_RATE)).numpy()
    product = arithmetic.gemm(KINDS[precision])
    with devices.autocast(precision, CPU)():
        separator(mixture[:, :PAPER_RATE], PAPER_RATE)
        products = timing.interleaved({"gemm": product}, 0)["gemm"]
        wall, busy = time.perf_counter(), time.process_time()
        separator(mixture, PAPER_RATE)
        busy, wall = time.process_time() - busy, time.perf_counter() - wall
        products += timing.interleaved({"gemm": product}, 0)["gemm"]
    rate = arithmetic.peak(statistics.median(products))
    needed = _WORK["separation"] * PAPER_RATE * 2 * len(STEMS)  # FLOPs a second of the song
    factor, limit = seconds / wall, rate / needed
    return Result(
        {"jukesep": {"seconds": wall}},
        {
            "real time": factor,
            "share of the limit": 100 * factor / limit,
            "cores busy": busy / wall,
        },
        note=f"a song of {seconds:g} s; at the limit {limit:.2f} x real time",
        details={
            "flops": needed * seconds,
            "limit": rate,
            "precision": str(KINDS[precision]).split(".")[1],
        },
    )


def _row(
    what: str, name: str, faster: float = 0.0, smaller: float = 0.0, real_time: float = 0.0
) -> Row:
    goals = [Goal("speed", faster)] if faster else []
    goals += [Goal("memory", smaller, at_least=False)] if smaller else []
    goals += [Goal("real time", real_time)] if real_time else []
    return Row(what, partial(measure, name), tuple(goals), cores=1, module="speed")


_SHARE = (Goal("share of the limit", 80, " %", digits=0),)
ROWS = {
    "stage1": _row("stage-1 step, paper model, 1 x 65,536 samples", "stage1", 1.6, 0.6),
    "stage2": _row("stage-2 step, paper model, 1 x 65,536 samples", "stage2", 1.8, 0.6),
    "separation": _row(
        "separation of one stem, mono, paper model, 1 x 65,536 samples", "separation", 2.2, 0.4, 3.0
    ),
    "song": Row(
        "separation of a stereo song into four stems, paper model, all cores",
        partial(song, "fp32", SONG_SECONDS),
        _SHARE,
        module="speed",
    ),
    "song-bf16": Row(
        "separation of a stereo song into four stems, paper model, all cores, bf16",
        partial(song, "bf16", SONG_SECONDS),
        _SHARE,
        module="speed",
    ),
    "demo-stage1": _row("stage-1 step, demo model, 2 x 8,192 samples", "demo-stage1", 2.5),
    "demo-stage2": _row("stage-2 step, demo model, 2 x 8,192 samples", "demo-stage2"),
    "demo-separation": _row("separation, demo model, 2 x 8,192 samples", "demo-separation", 3.0),
    "codebook": _row(
        "quantise 16,384 latents with 2048 codes, and update the codebook", "codebook", 6.0
    ),
    "losses": _row("losses of a stage-1 step, 1 x 65,536 samples, and gradient", "losses", 3.0),
    "bf16-stage1": _row(
        "stage-1 step in bf16, paper model, 1 x 65,536 samples", "bf16-stage1", 1.8
    ),
    "bf16-stage2": _row(
        "stage-2 step in bf16, paper model, 1 x 65,536 samples", "bf16-stage2", 1.8
    ),
    "bf16-separation": _row(
        "separation of one stem in bf16, mono, paper model, 1 x 65,536 samples",
        "bf16-separation",
        1.8,
    ),
}
