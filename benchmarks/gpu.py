"""jukesep against the textbook form on an NVIDIA GPU, at the paper's size: time, memory, floors.

    uv run python -m benchmarks.gpu             # a minute or two; says so where there is no GPU
    uv run python -m benchmarks.gpu --write     # run nothing, write the page

All sides run in turns in one process, on the same weights and audio, and the medians are compared:
the textbook form in PyTorch's eager float32 without TF32, and jukesep in each precision. Beside
them what the device can do at most, and whether songs are read as fast as a step trains on them.
Writes benchmarks/results/gpu.json, by device, and docs/gpu.md from it.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks import textbook
from benchmarks.machine import processor
from benchmarks.measurements import BATCH, SEGMENT
from jukesep import audio
from jukesep.base.files import write_text
from jukesep.base.params import CodebookParams, Losses, Recipe
from jukesep.kernels import devices
from jukesep.model.codebook import Codebook
from jukesep.model.vqvae import VQVAE, Architecture, Encoder
from jukesep.separation.chunked import apply_chunked
from jukesep.songs.manifest import Song
from jukesep.training import loop, losses
from jukesep.training.optimiser import Adam, as_one
from jukesep.training.segments import Segments
from jukesep.training.tasks import LatentMatching, Reconstruction

RESULTS = Path("benchmarks/results/gpu.json")
PAGE = Path("docs/gpu.md")
TEXTBOOK, PRECISIONS = "textbook", ("fp32", "tf32", "bf16")
BANDWIDTHS = losses.Bandwidths(l2=0.02, spec=30.0)
LINF_K = 2048
WEIGHTS = Losses(linf=0.02, linf_k=LINF_K, multispectral=1.0, commit=0.02)
RATE = 3e-4
SAMPLE_RATE = 44_100

WORKERS = 4  # conf/config.yaml

# Float operations a sample of audio takes; a backward pass takes twice the forward's.
ENCODER, DECODER, SEARCH = 244_992, 261_504, 32_768
FLOPS = {
    "stage1": 3 * (ENCODER + DECODER) + SEARCH,
    "stage2": 4 * ENCODER,
    "separation": ENCODER + DECODER + SEARCH,
}
# How often a block's tensors pass through memory at least: x in, y out, the inner activation
# out; back the gradient, the inner activation, x and the inner gradient in and out.
FORWARD, TRAINING = 2, 10
PASSES = {"stage1": 2 * TRAINING, "stage2": TRAINING + FORWARD, "separation": 2 * FORWARD}

WHAT = {
    "stage1": f"stage-1 step, {BATCH} x {SEGMENT:,}",
    "stage2": f"stage-2 step, {BATCH} x {SEGMENT:,}",
    "separation": f"separation, {BATCH} x {SEGMENT:,}",
    "codebook": f"quantise {BATCH * SEGMENT // 8:,} latents, 2048 codes, and update",
    "losses": f"losses of a stage-1 step, {BATCH} x {SEGMENT:,}, and gradient",
}
KERNELS = {
    "_forward": "residual blocks, forward",
    "_inner": "residual blocks, back through the pointwise convolution",
    "_dilated": "residual blocks, back through the dilated convolution",
    "_taps": "other convolutions, forward and back",
    "_tap_gradients": "other convolutions, weight gradients",
    "_nearest": "nearest codes",
    "_sums": "sums of the latents of each code",
}

Step = Callable[[], object]


def main() -> None:
    """Measure, keep, write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="runs of each side, in turns")
    parser.add_argument("--write", action="store_true", help="write the page alone")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    if not options.write:
        if not torch.cuda.is_available():
            print("benchmarks.gpu measures on an NVIDIA GPU, and there is none here.")
            return
        device = torch.device("cuda")
        results[torch.cuda.get_device_name()] = result = measure(device, options.rounds)
        write_text(RESULTS, json.dumps(results, indent=1) + "\n")
        print("\n".join(lines(result)))
    write_text(PAGE, page(results))
    print(PAGE)


def measure(device: torch.device, rounds: int) -> dict[str, Any]:
    """All rows, and what the device can do."""
    made = {
        "stage1": _stage1,
        "stage2": _stage2,
        "separation": _separation,
        "codebook": _codebook,
        "losses": _losses,
    }
    rows = {}
    for name, make in made.items():
        rows[name] = _compare(make(device), device, rounds)
        print(f"{WHAT[name]}: {rows[name]}", flush=True)
    return {
        "torch": torch.__version__,
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "rounds": rounds,
        "rows": rows,
        "profile": _profile(device),
        "ceilings": _ceilings(device),
        "segments": {str(parts): _segments_a_second(device, parts) for parts in (1, 2)},
    }


def _compare(sides: dict[str, Step], device: torch.device, rounds: int) -> dict[str, Any]:
    """Medians of the sides' seconds, run in turns, and the peak of memory in each."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    peaks = {}
    for turn in range(rounds + 2):
        for side, step in sides.items():
            devices.set_precision("fp32" if side == TEXTBOOK else side, device)  # type: ignore[arg-type]
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
            # The textbook's tensors are made on the device that is chosen; to choose one slows
            # each call.
            with device if side == TEXTBOOK else nullcontext():
                start = time.perf_counter()
                step()
                torch.cuda.synchronize()
            if turn > 1:  # the first compile and warm up
                seconds[side].append(time.perf_counter() - start)
                peaks[side] = torch.cuda.max_memory_allocated()
    # What all sides hold is no side's.
    held = torch.cuda.memory_allocated()
    return {
        "seconds": {side: statistics.median(values) for side, values in seconds.items()},
        "megabytes": {side: round((peak - held) / 1e6) for side, peak in peaks.items()},
    }


def _model(device: torch.device) -> tuple[VQVAE, torch.Tensor]:
    torch.manual_seed(0)
    vqvae = VQVAE(Architecture()).to(device)
    sound = 0.1 * torch.randn(BATCH, 1, SEGMENT, device=device)
    with torch.no_grad():
        k = torch.randn_like(vqvae.codebook.k)
        vqvae.codebook.restore(k * vqvae.encode(sound).std(), BATCH * SEGMENT / 8 / 2048)
    return vqvae, sound


def _learning(
    model: torch.nn.Module, loss: Callable[[], dict[str, torch.Tensor]], gradients: bool = True
) -> Step:
    """A step as the training takes it, around a loss or around a loss with its gradients."""
    adam = Adam(model.parameters())
    average = as_one(copy.deepcopy(model).parameters())

    def step() -> None:
        adam.zero_grad()
        terms = loss()
        if gradients:
            terms["loss"].backward()
        norm = adam.clip(1.0)
        torch.stack([*terms.values(), norm]).tolist()
        adam.step(RATE)
        average.lerp_(adam.values, 5e-4)

    return step


def _stage1(device: torch.device) -> dict[str, Step]:
    plain, sound = _model(device)

    def textbooks() -> dict[str, torch.Tensor]:
        return {"loss": textbook.stage1_step(plain, sound, BANDWIDTHS, LINF_K)}

    def ours(precision: Any) -> Step:
        vqvae = _model(device)[0]
        task = Reconstruction(vqvae, BANDWIDTHS, WEIGHTS, _codebook_params(), 0, {})

        def loss() -> dict[str, torch.Tensor]:
            with devices.autocast(precision, device)():
                total, terms = task.loss((sound, sound), 0)
            return {**terms, "loss": total}

        return _learning(vqvae, loss)

    return {
        TEXTBOOK: _learning(plain, textbooks, gradients=False),
        **{precision: ours(precision) for precision in PRECISIONS},
    }


def _stage2(device: torch.device) -> dict[str, Step]:
    vqvae, mixture = _model(device)
    stem = 0.5 * mixture
    plain = Encoder(vqvae.architecture).to(device)

    def textbooks() -> dict[str, torch.Tensor]:
        return {"loss": textbook.stage2_step(plain, vqvae, mixture, stem)}

    def ours(precision: Any) -> Step:
        encoder = Encoder(vqvae.architecture).to(device)
        task = LatentMatching(encoder, vqvae, "mse", WEIGHTS, {})

        def loss() -> dict[str, torch.Tensor]:
            with devices.autocast(precision, device)():
                prepared = task.prepare(torch.cat([mixture, stem], 1))
                total, _ = task.loss(prepared, 0)
            return {"loss": total}

        return _learning(encoder, loss)

    return {
        TEXTBOOK: _learning(plain, textbooks, gradients=False),
        **{precision: ours(precision) for precision in PRECISIONS},
    }


def _separation(device: torch.device) -> dict[str, Step]:
    vqvae, mixture = _model(device)

    def ours(precision: Any) -> Step:
        def step() -> None:
            with devices.autocast(precision, device)():
                apply_chunked(vqvae, mixture[:, 0], SEGMENT)

        return step

    return {
        TEXTBOOK: lambda: textbook.separate(vqvae, mixture, BANDWIDTHS, LINF_K),
        **{precision: ours(precision) for precision in PRECISIONS},
    }


def _codebook(device: torch.device) -> dict[str, Step]:
    torch.manual_seed(0)
    latents, codebook = torch.randn(BATCH, 64, SEGMENT // 8, device=device), Codebook(2048, 64)
    codebook.restore(torch.randn(2048, 64, device="cpu"), 96.0)
    codebook.to(device)
    plain = [t.clone() for t in (codebook.k, codebook.k_sum, codebook.k_elem)]

    def one() -> None:
        codes, _ = textbook.quantise(plain[0], latents)
        textbook.update(plain[0], plain[1], plain[2], latents, codes, codebook.decay)

    return {
        TEXTBOOK: one,
        "fp32": lambda: codebook.update(latents, codebook.quantise(latents)[0]),
    }


def _losses(device: torch.device) -> dict[str, Step]:
    torch.manual_seed(0)
    target = 0.1 * torch.randn(BATCH, 1, SEGMENT, device=device)
    decoded = (target + 0.01 * torch.randn_like(target)).requires_grad_()

    def ours() -> None:
        terms = losses.reconstruction_losses(target, decoded, BANDWIDTHS, LINF_K)
        (terms["l2"] + 0.02 * terms["linf"] + terms["multispectral"]).backward()

    return {
        TEXTBOOK: lambda: textbook.losses(target, decoded, BANDWIDTHS, LINF_K).backward(),
        "fp32": ours,
    }


def _codebook_params() -> CodebookParams:
    return CodebookParams(decay=0.99, revival_threshold=1.0)


def _profile(device: torch.device, steps: int = 5) -> dict[str, float]:
    """Milliseconds of a stage-1 step in bf16 on the device, by what takes them."""
    from torch.profiler import ProfilerActivity, profile

    devices.set_precision("bf16", device)
    step = _stage1(device)["bf16"]
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


def _ceilings(device: torch.device) -> dict[str, float]:
    """Bytes a second of a copy, read and written; operations a second of a matrix product."""
    found = {}
    pair = torch.randn(2, 2**30, device=device)
    found["bytes"] = pair.nbytes / _seconds(partial(pair[0].copy_, pair[1]))
    del pair
    size = 8192
    for precision in PRECISIONS:
        devices.set_precision(precision, device)  # type: ignore[arg-type]
        number = torch.bfloat16 if precision == "bf16" else torch.float32
        one, other = (torch.randn(size, size, device=device, dtype=number) for _ in range(2))
        found[precision] = 2 * size**3 / _seconds(partial(torch.matmul, one, other))
    return found


def _seconds(run: Step, rounds: int = 9) -> float:
    times = []
    for turn in range(rounds + 2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        if turn > 1:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def _segments_a_second(device: torch.device, parts: int, batches: int = 60) -> float:
    """How many segments of the paper's size the training is given a second, songs in the cache."""
    names = ("vocals", "mixture")[:parts]
    recipe = Recipe(
        steps=batches + 1, batch=BATCH, segment=SEGMENT, learning_rate=RATE, warmup=1,
        final_rate=1.0, clip=1.0, weight_ema=0.5, log_every=1, valid_every=1, valid_segments=1,
        workers=WORKERS,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        songs = []
        for number in range(4):
            root = Path(folder) / str(number)
            sound = 0.1 * rng.standard_normal((2, 3 * SEGMENT), dtype=np.float32)
            for name in names:
                audio.write(root / f"{name}.wav", sound, SAMPLE_RATE, "FLOAT")
            songs.append(Song(str(number), "train", "seen", root, 3 * SEGMENT))
        segments = Segments(songs, names, SEGMENT, 0, "benchmark")
        task: Any = SimpleNamespace(prepare=lambda batch: (batch, batch))
        run: Any = SimpleNamespace(device=device, about=SimpleNamespace(section="stage1"))
        with closing(loop._batches(task, segments, recipe, run, 0)) as given:
            next(given)  # the processes have started
            start = time.perf_counter()
            for _ in range(batches):
                next(given)
            torch.cuda.synchronize()
            return BATCH * batches / (time.perf_counter() - start)


def floor(row: str, precision: str, ceilings: dict[str, float]) -> tuple[float, float]:
    """Seconds that a row's arithmetic and its blocks' memory traffic take at the ceilings."""
    architecture = Architecture()
    samples = BATCH * SEGMENT
    halvings = sum(1 / 2 ** (stage + 1) for stage in range(sum(architecture.downs)))
    numbers = samples * halvings * architecture.depth * architecture.width
    size = 2 if precision == "bf16" else 4
    return (
        FLOPS[row] * samples / ceilings[precision],
        PASSES[row] * numbers * size / ceilings["bytes"],
    )


def lines(result: dict[str, Any]) -> Iterator[str]:
    """The rows in words."""
    for name, row in result["rows"].items():
        yield f"{WHAT[name]}:"
        base = row["seconds"][TEXTBOOK]
        for side, seconds in row["seconds"].items():
            yield (
                f"  {side}: {1e3 * seconds:.1f} ms, {base / seconds:.1f} x the textbook's speed, "
                f"{row['megabytes'][side]:,} MB"
            )


def page(results: dict[str, Any]) -> str:
    """docs/gpu.md."""
    parts = [INTRODUCTION]
    for device, result in sorted(results.items()):
        parts += [f"## {device}", *_section(result)]
    return "\n\n".join([*parts, READING, TRIED]) + "\n"


def _section(result: dict[str, Any]) -> Iterator[str]:
    heads = ["textbook fp32", *(f"jukesep {precision}" for precision in PRECISIONS)]
    table = [["what", *(f"{head}, ms" for head in heads)]]
    memory = [["what", *(f"{head}, MB" for head in heads)]]
    floors = [["what", "precision", "arithmetic, ms", "memory, ms", "measured, ms", "reached"]]
    ceilings = result["ceilings"]
    for name, row in result["rows"].items():
        seconds = row["seconds"]
        base, cells = seconds[TEXTBOOK], [WHAT[name], f"{1e3 * seconds[TEXTBOOK]:.1f}"]
        for side in PRECISIONS:
            one = seconds.get(side)
            cells.append(f"{1e3 * one:.1f} ({base / one:.1f} x)" if one else "")
        table.append(cells)
        sizes = [row["megabytes"].get(side) for side in (TEXTBOOK, *PRECISIONS)]
        memory.append([WHAT[name], *("" if size is None else f"{size:,}" for size in sizes)])
        for side in PRECISIONS if name in FLOPS else ():
            both = floor(name, side, ceilings)
            times = [f"{1e3 * time:.1f}" for time in (*both, seconds[side])]
            floors.append([WHAT[name], side, *times, f"{max(both) / seconds[side]:.0%}"])
    step = result["rows"]["stage1"]["seconds"]["bf16"]
    yield "Milliseconds, and in brackets how many times the textbook's speed:"
    yield _table(table)
    yield "Peak of memory above what was there before:"
    yield _table(memory)
    yield (
        f"The least that the arithmetic and the residual blocks' traffic would take at what the "
        f"device was measured to do: {ceilings['bytes'] / 1e12:.2f} TB/s in a copy, and in a "
        "product of two matrices "
        + ", ".join(f"{ceilings[p] / 1e12:.0f} TFLOP/s in {p}" for p in PRECISIONS)
        + ":"
    )
    yield _table(floors)
    profile = [[name, f"{spent:.2f}"] for name, spent in result["profile"].items()]
    idle = max(0.0, 1e3 * step - sum(result["profile"].values()))
    yield "Where a stage-1 step in bf16 spends its time:"
    yield _table(
        [["on the device", "ms"], *profile, ["nothing: it waits for the CPU", f"{idle:.2f}"]]
    )
    one, two = (result["segments"][str(parts)] for parts in (1, 2))
    steps = [BATCH / result["rows"][stage]["seconds"]["bf16"] for stage in ("stage1", "stage2")]
    yield (
        f"The data side, {WORKERS} processes (`stage1.workers`, `stage2.workers`) and songs in the "
        f"system's cache: {one:.0f} segments a second in stage 1, where steps in bf16 take "
        f"{steps[0]:.0f}; {two:.0f} pairs of segments a second in stage 2, where they take "
        f"{steps[1]:.0f}."
    )
    yield (
        f"Medians of {result['rounds']} rounds, PyTorch {result['torch']}, beside "
        f"{result['processor']}."
    )


def _table(rows: list[list[str]]) -> str:
    rows = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


INTRODUCTION = """# Speed on a GPU

Written by `uv run python -m benchmarks.gpu`, from `benchmarks/results/gpu.json`. Segments, batch
and model are the paper's.

The textbook form is `benchmarks/textbook.py` in PyTorch's eager float32, without TF32; it computes
what the published code does besides. A step holds what the training does: loss, gradients, their
norm, Adam, the average of the weights, the codebook's update. All sides run in turns."""

READING = """## How to read it

- **fp32, tf32, bf16** are the parameter `precision`. In all three codes are searched with float32's
  accuracy, and weights, averages and the optimiser are float32. Separation and scores compute in
  fp32 unless one asks otherwise by autocast.
- **fp32** products are made of six of bf16 parts, on the tensor cores: more accurate than cuDNN's
  float32 at this size of model, and faster than the float32 units. Six products where bf16 takes
  one, and twice the bytes: a training in it stays below 3 x the textbook's speed.
- **arithmetic** counts each float operation once, whatever the precision needs to make it.
- **memory** in the table of floors is the residual blocks' traffic alone, each tensor once a
  kernel: forward they read x and write y and, to train, the inner activation; back they read the
  gradient, the inner activation, x and the inner gradient and write two of them."""

TRIED = """## What computes there

`jukesep/kernels/gpu.py` takes the place of the layers on a CUDA device where triton is
installed (it comes with PyTorch on Linux) and widths are 16, 32 or 64; else the plain layers
compute. Activations are channels-last. A residual block is one kernel forward and two back; weight
gradients are summed in registers by a fixed number of programs and then in one order, so that a
layer gives the same bits each time. The codebook's search keeps a running minimum over tiles of
codes, never a matrix of distances; the latents are sorted by code and summed in one order.
`tests/test_triton_networks.py` holds values and gradients to the plain layers, in Triton's
interpreter on a CPU and on a GPU (`uv run pytest -k cuda`).

Tried and dropped, each measured on an H200 over one block of 4 x 196,608 steps, or a stage-1 step:

- One backward kernel that computes the inner gradient anew for each tap, 4 passes over memory
  instead of 7: 0.51 ms against 0.36 ms for the two. Its accumulators leave room for one program a
  multiprocessor, and each tile waits for its products.
- Three TF32 products for fp32: 2.98 ms a block forward and back, six of bf16 parts 2.56 ms. For the
  search three TF32 products are the faster, 0.81 ms against 0.92 ms, and found the nearest code of
  all 196,608 latents, by distances in float64; float32 units take 4.3 ms.
- Three products of bf16 parts for tf32: 1.49 ms, TF32's own 1.31 ms.
- cuDNN for the convolutions outside the blocks, channels-last: 0.6 to 1.1 ms each forward and back
  in bf16, the last 3.2 ms, most of it the CPU's. The kernels here take about 0.4 ms at 4 x 196,608
  steps, the last 0.5 ms.
- `index_put_(accumulate=True)` for the sums of the latents: 3 ms, 17 ms with few codes in use;
  `index_add_`, whose order changes from run to run, 0.1 to 0.9 ms; sorted 0.4 to 0.6 ms.

Not tried: rounding factors to TF32 before the product (the tensor cores cut them off, which leaves
errors of 1e-3 of the output's norm where cuDNN's TF32 leaves 2e-4); one CUDA graph for the step,
which would leave nothing to wait for."""


if __name__ == "__main__":
    main()
