"""Rows on steps and separations: against the textbook form, in bf16, without kernels, by size.

Two sides run in turns in one process and their medians are compared. Memory is the peak of a
process that runs one side alone, above what it had after the imports.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import measuring, sides, textbook
from benchmarks.measuring import Step, fresh
from benchmarks.row import Goal, Result, Row, Skipped
from benchmarks.sides import CODE, DEMO, DEMO_RATE, PAPER, PAPER_RATE, SAMPLES, TEXTBOOK, What
from jukesep.kernels import VARIABLE, devices
from jukesep.model.codebook import straight_through
from jukesep.model.vqvae import VQVAE, Architecture
from jukesep.separation.separator import Separator
from jukesep.songs.manifest import STEMS
from jukesep.training import losses

T = TypeVar("T")

SECONDS = 8.0  # for about so long the sides run in turns
SWITCH = {VARIABLE: "off"}
OURS, PLAIN_TORCH = "jukesep", "plain torch"
BOTH = (TEXTBOOK, OURS)
SONG_SECONDS = 20  # more than two of separation's chunks
PARTS = (
    "encoder, forward", "codebook", "decoder, forward", "losses and their gradient",
    "decoder, backward", "encoder, backward",
)  # fmt: skip
KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """A step, its size, and the two sides that run it."""

    what: What
    sides: tuple[str, str] = (TEXTBOOK, OURS)
    architecture: Architecture = PAPER
    batch: int = 1
    samples: int = SAMPLES

    def step(self, side: str) -> Step:
        return sides.step(self.what, side, self.architecture, self.batch, self.samples)

    @property
    def flops(self) -> float:
        """Of a run of one side; 0 where they are not counted."""
        work = sides.work(self.architecture)
        counted = self.architecture == PAPER and self.what in work
        return self.batch * self.samples * work[self.what] if counted else 0.0

    @property
    def seconds(self) -> float:
        """Of the audio that a run processes."""
        rate = DEMO_RATE if self.architecture == DEMO else PAPER_RATE
        return self.batch * self.samples / rate


def compare(case: Case, seconds: float = SECONDS) -> Result:
    """Medians of both sides run in turns, peaks of memory, and the share of the limit reached."""
    second = case.sides[1]
    dtype = KINDS[second if second in KINDS else "fp32"]
    if dtype == torch.bfloat16:
        needs_bf16()
    torch.set_num_threads(1)
    turns = {side: case.step(side) for side in case.sides}
    if case.flops:
        turns["gemm"] = sides.gemm(dtype)
    runs = measuring.interleaved(turns, seconds, clock=time.process_time)
    medians = {side: statistics.median(values) for side, values in runs.items()}
    memory = {side: fresh(1, alone, case, side)[1] for side in case.sides}
    result = _ratios({side: (medians[side], memory[side]) for side in case.sides})
    if case.flops:
        limit = sides.peak(medians["gemm"])
        result.figures["share of the limit"] = 100 * case.flops / medians[second] / limit
        result.details = _limit(case.flops, limit, dtype)
    if case.what == "separation":
        result.figures["real time"] = case.seconds / medians[second]
    return result


def kernels(case: Case, rounds: int = 3) -> Result:
    """jukesep with its kernels, and without them in processes that set `SWITCH`, in turns."""
    runs: dict[str, list[tuple[float, float]]] = {PLAIN_TORCH: [], OURS: []}
    for _ in range(rounds):
        for side, found in runs.items():
            with patch.dict(os.environ, SWITCH if side == PLAIN_TORCH else {}):
                found.append(fresh(1, alone, case, OURS, 1.0))
    medians = {
        side: (statistics.median(s for s, _ in found), statistics.median(m for _, m in found))
        for side, found in runs.items()
    }
    return _ratios(medians)


def _ratios(found: dict[str, tuple[float, float]]) -> Result:
    """Of the (seconds, megabytes) of both sides."""
    (before, larger), (after, smaller) = found.values()
    return Result(
        {side: {"seconds": one, "megabytes": other} for side, (one, other) in found.items()},
        {"speed": before / after, "memory": smaller / larger},
    )


def alone(case: Case, side: str, seconds: float = 0.0) -> tuple[float, float]:
    """A side by itself in this process: the median of its seconds, and MB at the peak.

    Seconds are the processor's; the peak is above what the process had after the imports.
    """
    torch.set_num_threads(1)
    # Compiled code is loaded first, and PyTorch sets itself up: both belong to neither side.
    tiny = Architecture(width=8, depth=1, latent_dim=8, codes=8)
    for one in (TEXTBOOK, OURS):
        sides.step("stage1", one, tiny, 1, 2048)()
    before = measuring.highest()
    runs = measuring.interleaved({side: case.step(side)}, seconds, 1, clock=time.process_time)
    return statistics.median(runs[side]), (measuring.highest() - before) / 1e6


def _limit(flops: float, rate: float, dtype: torch.dtype) -> dict[str, Any]:
    return {"flops": flops, "limit": rate, "precision": str(dtype).removeprefix("torch.")}


def needs_bf16() -> None:
    found = measuring.features()
    if found and not {"avx512_bf16", "amx_bf16", "bf16"} & set(found):
        raise Skipped("this processor has no instructions for bf16")


def song(precision: devices.Precision, seconds: float = SONG_SECONDS) -> Result:
    """A stereo song into four stems, on all cores, against the arithmetic limit of them all."""
    if precision == "bf16":
        needs_bf16()
    models = {stem: sides.model(PAPER, 1, 4096)[0] for stem in STEMS}
    separator = Separator(models, PAPER_RATE, "none").to(torch.device("cpu"), precision)
    mixture = 0.1 * torch.randn(2, round(seconds * PAPER_RATE)).numpy()
    dtype = KINDS[precision]
    product = {"gemm": sides.gemm(dtype)}
    with devices.autocast(precision, torch.device("cpu"))():
        separator(mixture[:, :PAPER_RATE], PAPER_RATE)
        products = measuring.interleaved(product, 0)["gemm"]
        processor = time.process_time()
        wall, _ = measuring.timed(lambda: separator(mixture, PAPER_RATE))
        busy = (time.process_time() - processor) / wall
        products += measuring.interleaved(product, 0)["gemm"]
    rate = sides.peak(statistics.median(products))
    needed = sides.work(PAPER)["separation"] * PAPER_RATE * 2 * len(STEMS)  # FLOPs a second
    factor, limit = seconds / wall, rate / needed
    return Result(
        {OURS: {"seconds": wall}},
        {"real time": factor, "share of the limit": 100 * factor / limit, "cores busy": busy},
        note=f"a song of {seconds:g} s; at the limit {limit:.2f} x real time",
        details=_limit(needed * seconds, rate, dtype),
    )


def growth(cases: Sequence[tuple[float, Case, Sequence[str]]]) -> Result:
    """Time and memory of each side by size: each (size, case, sides) in processes of their own."""
    points: dict[str, list[list[float]]] = {TEXTBOOK: [], OURS: []}
    for size, case, measured in cases:
        for side in measured:
            points[side].append([size, *fresh(1, alone, case, side)])
    return Result(details={"points": points})


def breakdown(samples: int = sides.SAMPLES, rounds: int = 2) -> Result:
    """Where the time of a step of stage 1 goes: processor seconds of each part, on both sides.

    The parts are timed one by one, in turns with the whole step. "rest" is the whole less them.
    """
    torch.set_num_threads(1)
    models = {side: sides.model(PAPER, 1, samples) for side in BOTH}
    wholes = {side: sides.step("stage1", side, PAPER, 1, samples) for side in BOTH}
    product = sides.gemm(torch.float32)
    found: dict[str, list[dict[str, float]]] = {side: [] for side in BOTH}
    products = []
    for turn in range(rounds + 1):
        for side, (vqvae, audio) in models.items():
            times = _parts(side == TEXTBOOK, vqvae, audio)
            times["step"], _ = measuring.timed(wholes[side], time.process_time)
            if turn:  # the first warms up
                found[side].append(times)
        products.append(measuring.timed(product, time.process_time)[0])
    medians = {
        side: {part: statistics.median(times[part] for times in runs) for part in runs[0]}
        for side, runs in found.items()
    }
    for times in medians.values():
        times["rest"] = times["step"] - sum(times[part] for part in PARTS)
    count = sides.flops(PAPER)
    flops = {
        "encoder, forward": count["encoder"],
        "encoder, backward": 2 * count["encoder"],
        "decoder, forward": count["decoder"],
        "decoder, backward": 2 * count["decoder"],
        "codebook": count["quantiser"],
        "step": sides.work(PAPER)["stage1"],
    }
    return Result(
        {side: {"seconds": times["step"]} for side, times in medians.items()},
        details={
            "parts": medians,
            "flops": {part: samples * number for part, number in flops.items()},
            "limit": sides.peak(statistics.median(products[1:])),
        },
    )


def _parts(plain: bool, vqvae: VQVAE, audio: Tensor) -> dict[str, float]:
    """Seconds of each part of a step; the graph is cut between them."""
    codebook, times = vqvae.codebook, dict.fromkeys(PARTS, 0.0)

    def part(name: str, run: Callable[[], T]) -> T:
        spent, value = measuring.timed(run, time.process_time)
        times[name] += spent
        return value

    encode = partial(textbook.encode, vqvae.encoder) if plain else vqvae.encode
    quantise = partial(textbook.quantise, codebook.k) if plain else vqvae.quantise
    decode = partial(textbook.decode, vqvae) if plain else vqvae.decode
    latents = part("encoder, forward", lambda: encode(audio))
    cut = latents.detach()
    codes, quantised = part("codebook", lambda: quantise(cut))
    given = straight_through(cut, quantised).requires_grad_()
    decoded = part("decoder, forward", lambda: decode(given))
    made, met = decoded.detach().requires_grad_(), cut.clone().requires_grad_()

    def compare() -> None:
        if plain:
            loss = textbook.losses(audio, made, sides.BANDWIDTHS, sides.LINF_K)
            loss = loss + 0.02 * F.mse_loss(met, quantised)
        else:
            loss, _ = losses.stage1_loss(
                audio, made, met, quantised, sides.BANDWIDTHS, linf_k=sides.LINF_K
            )
        loss.backward()

    part("losses and their gradient", compare)
    part("decoder, backward", lambda: decoded.backward(made.grad))
    assert given.grad is not None
    assert met.grad is not None
    gradient = given.grad + met.grad
    part("encoder, backward", lambda: latents.backward(gradient))

    def update() -> None:
        if plain:
            averages = codebook.k, codebook.k_sum, codebook.k_elem
            textbook.update(*averages, cut, codes, codebook.decay)
        else:
            codebook.update(cut, codes)

    part("codebook", update)
    return times


_SIZES = (8192, 16_384, 32_768, SAMPLES)
SEGMENTS = partial(growth, [(size, Case("stage1", samples=size), BOTH) for size in _SIZES])
BATCHES = partial(growth, [(n, Case("stage1", batch=n, samples=8192), BOTH) for n in (1, 2, 4)])
_SONGS = {s: Case("separation", samples=s * PAPER_RATE // 8 * 8) for s in (2, 6, 12)}
# The textbook form takes a song as one piece, and its memory grows with it.
SONGS = partial(growth, [(s, case, BOTH if s < 10 else (OURS,)) for s, case in _SONGS.items()])
BF16 = ("fp32", "bf16")
STAGE1, STAGE2, SEPARATION = Case("stage1"), Case("stage2"), Case("separation")
DEMO_SIZE = {
    case.what: replace(case, architecture=DEMO, batch=2, samples=8192)
    for case in (STAGE1, STAGE2, SEPARATION)
}


def _row(
    what: str, case: Case, faster: float = 0.0, smaller: float = 0.0, real_time: float = 0.0
) -> Row:
    goals = [Goal("speed", faster)] if faster else []
    goals += [Goal("memory", smaller, at_least=False)] if smaller else []
    goals += [Goal("real time", real_time)] if real_time else []
    return Row(what, partial(compare, case), CODE[case.what], tuple(goals), cores=1)


def _song(what: str, precision: devices.Precision) -> Row:
    code = (*CODE["separation"], "jukesep/separation/separator.py")
    goal = Goal("share of the limit", 80)
    return Row(what, partial(song, precision), code, (goal,))


_PAPER, _DEMO = "paper model, 1 x 65,536 samples", "demo model, 2 x 8,192 samples"
_NAMES: dict[What, str] = {
    "stage1": "stage-1 step", "stage2": "stage-2 step", "separation": "separation",
}  # fmt: skip
_FOUR = "separation of a stereo song into four stems, paper model, all cores"
ROWS = {
    "stage1": _row(f"stage-1 step, {_PAPER}", STAGE1, 1.6, 0.6),
    "stage2": _row(f"stage-2 step, {_PAPER}", STAGE2, 1.8, 0.6),
    "separation": _row(f"separation of one stem, mono, {_PAPER}", SEPARATION, 2.2, 0.4, 3.0),
    "song": _song(_FOUR, "fp32"),
    "song-bf16": _song(f"{_FOUR}, bf16", "bf16"),
    "demo-stage1": _row(f"stage-1 step, {_DEMO}", DEMO_SIZE["stage1"], 2.5),
    "demo-stage2": _row(f"stage-2 step, {_DEMO}", DEMO_SIZE["stage2"]),
    "demo-separation": _row(f"separation, {_DEMO}", DEMO_SIZE["separation"], 3.0),
    **{
        f"kernels-{what}": Row(
            f"{name}, {_DEMO}, against plain torch", partial(kernels, DEMO_SIZE[what]), CODE[what]
        )
        for what, name in _NAMES.items()
    },
    "codebook": _row(
        "quantise 16,384 latents with 2048 codes, and update the codebook",
        Case("codebook", samples=8 * 16_384),
        6.0,
    ),
    "losses": _row(
        "losses of a stage-1 step, 1 x 65,536 samples, and gradient", Case("losses"), 3.0
    ),
    "bf16-stage1": _row(f"stage-1 step in bf16, {_PAPER}", replace(STAGE1, sides=BF16), 1.8),
    "bf16-stage2": _row(f"stage-2 step in bf16, {_PAPER}", replace(STAGE2, sides=BF16), 1.8),
    "bf16-separation": _row(
        f"separation of one stem in bf16, mono, {_PAPER}", replace(SEPARATION, sides=BF16), 1.8
    ),
    "growth-segment": Row("cost of a step against its segment", SEGMENTS, CODE["stage1"]),
    "growth-batch": Row("cost of a step against its batch", BATCHES, CODE["stage1"]),
    "growth-song": Row("cost of separation against the song", SONGS, CODE["separation"]),
    "breakdown": Row(
        "where the time of a step of stage 1 goes", breakdown, CODE["stage1"], cores=1
    ),
}
