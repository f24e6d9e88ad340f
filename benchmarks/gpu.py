"""The row of docs/gpu.md: jukesep against the textbook form on an NVIDIA GPU, at the paper's size.

Sides run in turns in one process, on the same weights and audio, and medians are compared: the
textbook form in PyTorch's eager float32 without TF32, and jukesep in each precision. Beside them
the limits of the device, and whether songs are read as fast as a step trains on them.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks import measuring, sides
from benchmarks.commands import noise_songs
from benchmarks.markdown import fill, table
from benchmarks.measuring import Step
from benchmarks.paper_scale import BATCH, SEGMENT
from benchmarks.row import Result, Row, Skipped
from benchmarks.sides import PAPER, PAPER_RATE, TEXTBOOK, What
from jukesep.base.params import Recipe
from jukesep.kernels import devices
from jukesep.training.batches import training_batches
from jukesep.training.segments import Segments

PRECISIONS = ("fp32", "tf32", "bf16")
WORKERS = 4  # conf/config.yaml
WHAT: dict[What, str] = {
    "stage1": f"stage-1 step, {BATCH} x {SEGMENT:,}",
    "stage2": f"stage-2 step, {BATCH} x {SEGMENT:,}",
    "separation": f"separation, {BATCH} x {SEGMENT:,}",
    "codebook": f"quantise {BATCH * SEGMENT // 8:,} latents, 2048 codes, and update",
    "losses": f"losses of a stage-1 step, {BATCH} x {SEGMENT:,}, and gradient",
}
# How often a block's tensors pass through memory at least. Forward 2: x in, y out. To train 10:
# the inner activation out too, and 7 passes back. Stage 1 trains both halves; stage 2 trains one,
# and runs another forward.
PASSES: dict[What, int] = {"stage1": 20, "stage2": 12, "separation": 4}
KERNELS = {
    "_forward": "residual blocks, forward",
    "_inner": "residual blocks, back through the pointwise convolution",
    "_dilated": "residual blocks, back through the dilated convolution",
    "_taps": "other convolutions, forward and back",
    "_tap_gradients": "other convolutions, weight gradients",
    "_nearest": "nearest codes",
    "_sums": "sums of the latents of each code",
}


def measure(rounds: int = 7) -> Result:
    """All rows of the page, and the limits of the device."""
    if not torch.cuda.is_available():
        raise Skipped("it needs an NVIDIA GPU, and there is none here")
    details = {
        "rounds": rounds,
        "device": torch.cuda.get_device_name(),
        "rows": {what: _compare(what, rounds) for what in WHAT},
        "profile": _profile(),
        "ceilings": _ceilings(),
        "segments": {str(parts): _segments_a_second(parts) for parts in (1, 2)},
    }
    return Result(details=details)


def _clock() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def _compare(what: What, rounds: int) -> dict[str, dict[str, float]]:
    """Medians of the sides' seconds, run in turns, and the peak of memory in each."""
    precisions = PRECISIONS if what in PASSES else ("fp32",)
    peaks: dict[str, int] = {}

    def measured(side: str) -> Step:
        devices.set_precision("fp32", torch.device("cuda"))
        step = sides.step(what, side, PAPER, BATCH, SEGMENT, "cuda", learn=True)

        def run() -> None:
            precision: Any = "fp32" if side == TEXTBOOK else side
            devices.set_precision(precision, torch.device("cuda"))
            torch.cuda.reset_peak_memory_stats()
            # The textbook form makes tensors on the default device. To set one slows each call.
            with torch.device("cuda") if side == TEXTBOOK else nullcontext():
                step()
            torch.cuda.synchronize()
            peaks[side] = torch.cuda.max_memory_allocated()

        return run

    steps = {side: measured(side) for side in (TEXTBOOK, *precisions)}
    for step in steps.values():  # compiles
        step()
    runs = measuring.interleaved(steps, 0, rounds, clock=_clock)
    held = torch.cuda.memory_allocated()  # by all sides together
    return {
        "seconds": {side: statistics.median(values) for side, values in runs.items()},
        "megabytes": {side: round((peak - held) / 1e6) for side, peak in peaks.items()},
    }


def _profile(steps: int = 5) -> dict[str, float]:
    """Milliseconds of a stage-1 step in bf16 on the device, by what takes them."""
    from torch.profiler import ProfilerActivity, profile

    step = sides.step("stage1", "bf16", PAPER, BATCH, SEGMENT, "cuda", learn=True)
    step()
    step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    found: dict[str, float] = {}
    for event in recorded.key_averages():
        if event.self_device_time_total:
            fft = "the FFTs of the losses" if "fft" in event.key else "PyTorch's other kernels"
            name = KERNELS.get(event.key, fft)
            found[name] = found.get(name, 0.0) + event.self_device_time_total / 1e3 / steps
    return {name: round(found[name], 3) for name in sorted(found, key=lambda n: -found[n])}


def _ceilings() -> dict[str, float]:
    """Bytes a second of a copy, read and written; operations a second of a matrix product."""

    def seconds(run: Step) -> float:
        return statistics.median(measuring.interleaved({"": run}, 0, 9, clock=_clock)[""])

    pair = torch.randn(2, 2**30, device="cuda")
    found = {"bytes": pair.nbytes / seconds(partial(pair[0].copy_, pair[1]))}
    del pair
    size = 8192
    for precision in PRECISIONS:
        devices.set_precision(precision, torch.device("cuda"))  # type: ignore[arg-type]
        number = torch.bfloat16 if precision == "bf16" else torch.float32
        one, other = (torch.randn(size, size, device="cuda", dtype=number) for _ in range(2))
        found[precision] = 2 * size**3 / seconds(partial(torch.matmul, one, other))
    return found


def _segments_a_second(
    parts: int, device: str = "cuda", segment: int = SEGMENT, batches: int = 60
) -> float:
    """How many segments the training is given a second, songs in the system's cache."""
    recipe = Recipe(
        steps=batches + 1, batch=BATCH, segment=segment, learning_rate=1.0, warmup=1,
        final_rate=1.0, clip=1.0, weight_ema=0.5, log_every=1, valid_every=1, valid_segments=1,
        workers=WORKERS,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        songs = noise_songs(Path(folder), 4, 3 * segment / PAPER_RATE)
        segments = Segments(songs, ("vocals", "mixture")[:parts], segment, 0, "benchmark")
        task: Any = SimpleNamespace(prepare=lambda batch: (batch, batch))
        about = SimpleNamespace(section="stage1")
        run: Any = SimpleNamespace(device=torch.device(device), about=about)
        with closing(training_batches(task, segments, recipe, run, 0)) as given:
            next(given)  # the processes have started
            clock = _clock if device == "cuda" else time.perf_counter
            taken, _ = measuring.timed(lambda: [next(given) for _ in range(batches)], clock)
            return BATCH * batches / taken


def floor(row: What, precision: str, ceilings: Mapping[str, float]) -> tuple[float, float]:
    """Seconds that a row's arithmetic and its blocks' memory traffic take at the ceilings."""
    samples = BATCH * SEGMENT
    halvings = sum(1 / 2 ** (stage + 1) for stage in range(sum(PAPER.downs)))
    numbers = samples * halvings * PAPER.depth * PAPER.width
    size = 2 if precision == "bf16" else 4
    return (
        sides.work(PAPER)[row] * samples / ceilings[precision],
        PASSES[row] * numbers * size / ceilings["bytes"],
    )


def page(result: Result | None) -> str:
    """docs/gpu.md."""
    if result is None:
        return fill("gpu", measured="Not measured yet.")
    return fill("gpu", measured="\n\n".join(_measured(result)))


def _measured(result: Result) -> Iterator[str]:
    details, machine = result.details, result.machine
    rows, ceilings = details["rows"], details["ceilings"]
    heads = ["textbook fp32", *(f"jukesep {precision}" for precision in PRECISIONS)]
    lines = [["what", *heads]]
    for name in WHAT:
        row = rows[name]
        base, cells = row["seconds"][TEXTBOOK], [WHAT[name]]
        for side in (TEXTBOOK, *PRECISIONS):
            seconds, megabytes = (row[key].get(side) for key in ("seconds", "megabytes"))
            times = f" ({base / seconds:.1f} x)" if seconds and side != TEXTBOOK else ""
            cells.append(f"{1e3 * seconds:.1f} ms{times}, {megabytes:,} MB" if seconds else "")
        lines.append(cells)
    yield f"## {details['device']}"
    yield (
        "Time, in brackets how many times the textbook's speed, and the peak of memory above what "
        "was there before:"
    )
    yield table(lines)
    yield (
        "The time that the arithmetic and the memory traffic of the residual blocks take at "
        f"the speeds measured on this device: {ceilings['bytes'] / 1e12:.2f} TB/s in a copy, and "
        "in a product of two matrices "
        + ", ".join(f"{ceilings[p] / 1e12:.0f} TFLOP/s in {p}" for p in PRECISIONS)
        + ":"
    )
    floors: list[list[str]] = [
        ["what", "precision", "arithmetic, ms", "memory, ms", "measured, ms", "reached"]
    ]
    for name in PASSES:
        for side in PRECISIONS:
            both, found = floor(name, side, ceilings), rows[name]["seconds"][side]
            cells = [f"{1e3 * seconds:.1f}" for seconds in (*both, found)]
            floors.append([WHAT[name], side, *cells, f"{max(both) / found:.0%}"])
    yield table(floors)
    yield "Where a stage-1 step in bf16 spends its time:"
    profile = [[name, f"{spent:.2f}"] for name, spent in details["profile"].items()]
    step = rows["stage1"]["seconds"]["bf16"]
    idle = max(0.0, 1e3 * step - sum(details["profile"].values()))
    yield table([["on the device", "ms"], *profile, ["idle: it waits for the CPU", f"{idle:.2f}"]])
    one, two = (details["segments"][str(parts)] for parts in (1, 2))
    first, second = (BATCH / rows[stage]["seconds"]["bf16"] for stage in ("stage1", "stage2"))
    yield (
        f"Reading, with {WORKERS} processes (`stage1.workers`, `stage2.workers`) and songs in the "
        f"system's cache: {one:.0f} segments a second in stage 1, where steps in bf16 take "
        f"{first:.0f}; {two:.0f} pairs of segments a second in stage 2, where they take "
        f"{second:.0f}."
    )
    yield (
        f"Medians of {details['rounds']} rounds, PyTorch {machine['torch']}, with "
        f"{machine['processor']}, {machine['cores']} cores; commit {result.code['commit']}."
    )


ROWS = {
    "gpu": Row(
        "jukesep on an NVIDIA GPU: docs/gpu.md",
        measure,
        (*sides.CODE["stage1"], "jukesep/separation/chunked.py", "jukesep/training"),
    )
}
