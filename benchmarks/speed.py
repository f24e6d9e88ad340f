"""jukesep against the textbook form of the same mathematics: time and memory, on one core of a CPU.

    uv run python -m benchmarks.speed                    # every row; a few minutes
    uv run python -m benchmarks.speed demo-stage1        # one
    uv run python -m benchmarks.speed --write            # run nothing, write the page

Both sides run in turns in one process with one thread, on the same weights and audio, and the
medians are compared: other programs on the machine slow both. Memory is the peak of a process that
runs one side alone, above what it had after the imports. Writes benchmarks/results/speed.json, and
docs/speed.md from it. `tests/test_textbook.py` holds that both sides compute the same.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import textbook
from benchmarks.measurements import processor
from jukesep import losses, networks
from jukesep.codebook import Codebook, straight_through
from jukesep.files import write_text
from jukesep.progress import bar
from jukesep.separation import apply_chunked
from jukesep.vqvae import VQVAE, Architecture, Encoder

RESULTS = Path("benchmarks/results/speed.json")
PAGE = Path("docs/speed.md")
SIDES = ("textbook", "jukesep")
BANDWIDTHS = losses.Bandwidths(l2=0.02, spec=30.0)
LINF_K = 2048

Step = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """What is measured: both sides of it, made anew by each call of `make`."""

    what: str
    make: Callable[[], dict[str, Step]]


def _model(architecture: Architecture, batch: int, samples: int) -> tuple[VQVAE, torch.Tensor]:
    torch.manual_seed(0)
    vqvae, audio = VQVAE(architecture), 0.1 * torch.randn(batch, 1, samples)
    with torch.no_grad():
        k = torch.randn(architecture.codes, architecture.latent_dim)
        vqvae.codebook.restore(k * vqvae.encode(audio).std(), 24.0)
    vqvae.codebook.revival_threshold = 0.0
    return vqvae, audio


def _stage1(architecture: Architecture, batch: int, samples: int) -> dict[str, Step]:
    plain, audio = _model(architecture, batch, samples)
    ours = copy.deepcopy(plain)

    def step() -> None:
        latents = ours.encode(audio)
        codes, quantised = ours.quantise(latents)
        decoded = ours.decode(straight_through(latents, quantised))
        total, _ = losses.stage1_loss(audio, decoded, latents, quantised, BANDWIDTHS, linf_k=LINF_K)
        ours.codebook.update(latents.detach(), codes)
        total.backward()

    return {
        "textbook": lambda: textbook.stage1_step(plain, audio, BANDWIDTHS, LINF_K),
        "jukesep": step,
    }


def _stage2(architecture: Architecture, batch: int, samples: int) -> dict[str, Step]:
    vqvae, mixture = _model(architecture, batch, samples)
    stem = 0.5 * mixture
    plain = Encoder(architecture)
    ours = copy.deepcopy(plain)

    def step() -> None:
        with torch.no_grad():
            target = vqvae.encode(stem)
        losses.stage2_loss(target, ours(mixture))[0].backward()

    return {"textbook": lambda: textbook.stage2_step(plain, vqvae, mixture, stem), "jukesep": step}


def _separation(architecture: Architecture, batch: int, samples: int) -> dict[str, Step]:
    vqvae, mixture = _model(architecture, batch, samples)
    return {
        "textbook": lambda: textbook.separate(vqvae, mixture, BANDWIDTHS, LINF_K),
        "jukesep": lambda: apply_chunked(vqvae, mixture[:, 0], samples),
    }


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


PAPER, DEMO = Architecture(), Architecture(width=32, depth=4, dilation_growth=4, codes=512)
ROWS = {
    "stage1": Row("stage-1 step, paper model, 1 x 65,536", lambda: _stage1(PAPER, 1, 65_536)),
    "stage2": Row("stage-2 step, paper model, 1 x 65,536", lambda: _stage2(PAPER, 1, 65_536)),
    "separation": Row("separation, paper model, 1 x 65,536", lambda: _separation(PAPER, 1, 65_536)),
    "demo-stage1": Row("stage-1 step, demo model, 2 x 8,192", lambda: _stage1(DEMO, 2, 8192)),
    "demo-stage2": Row("stage-2 step, demo model, 2 x 8,192", lambda: _stage2(DEMO, 2, 8192)),
    "demo-separation": Row("separation, demo model, 2 x 8,192", lambda: _separation(DEMO, 2, 8192)),
    "codebook": Row("quantise 16,384 latents, 2048 codes, and update", _codebook),
    "losses": Row("losses of a stage-1 step, 1 x 65,536, and gradient", _losses),
}


def main() -> None:
    """Measure, keep, write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("rows", nargs="*", default=[], help=", ".join(ROWS))
    parser.add_argument("--rounds", type=int, default=9, help="runs of each side, in turns")
    parser.add_argument("--write", action="store_true", help="write the page alone")
    parser.add_argument("--peak", nargs=2, metavar=("ROW", "SIDE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(_peak(*options.peak))
        return
    if unknown := set(options.rows) - set(ROWS):
        parser.error(f"no such row: {min(unknown)}. There are: {', '.join(ROWS)}")
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    chosen = [] if options.write else options.rows or list(ROWS)
    for name in bar(chosen, desc="speed", unit="row"):
        results[name] = measure(name, options.rounds)
        print(line(name, results[name]))
        write_text(RESULTS, json.dumps(results, indent=1) + "\n")
    write_text(PAGE, page(results))
    print(PAGE)


def measure(name: str, rounds: int) -> dict[str, object]:
    """Medians of both sides run in turns, peaks of memory, and where."""
    torch.set_num_threads(1)
    networks.CORES = 1
    steps = ROWS[name].make()
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for turn in range(rounds + 1):
        for side in SIDES:
            start = time.perf_counter()
            steps[side]()
            if turn:  # the first warms up
                seconds[side].append(time.perf_counter() - start)
    memory = {side: _peak_of(name, side) for side in SIDES}
    return {
        "seconds": {side: statistics.median(values) for side, values in seconds.items()},
        "megabytes": memory,
        "rounds": rounds,
        "machine": f"{processor()}, {os.cpu_count()} cores, PyTorch {torch.__version__}",
    }


def _peak_of(name: str, side: str) -> float:
    command = [sys.executable, "-m", "benchmarks.speed", "--peak", name, side]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


def _peak(name: str, side: str) -> float:
    """MB at the peak of two steps above what the process had after the imports."""
    torch.set_num_threads(1)
    networks.CORES = 1
    # Compiled code is loaded first; it belongs to neither side.
    Encoder(Architecture(width=8, depth=1))(torch.zeros(1, 1, 64)).sum().backward()
    before = _highest()
    step = ROWS[name].make()[side]
    step()
    step()
    return (_highest() - before) / 1e6


def _highest() -> int:
    """The most memory that this process ever had, in bytes.

    From Linux itself where it is there: getrusage counts what the parent had, too.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="utf-8").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def ratio(values: dict[str, float]) -> float:
    """How many times the textbook's figure is jukesep's."""
    return values["textbook"] / values["jukesep"]


def line(name: str, result: dict) -> str:
    """A row in words."""
    seconds, memory = result["seconds"], result["megabytes"]
    return (
        f"{ROWS[name].what}: {1e3 * seconds['textbook']:.1f} ms textbook, "
        f"{1e3 * seconds['jukesep']:.1f} ms jukesep, {ratio(seconds):.2f} x the speed; "
        f"{memory['textbook']:.0f} and {memory['jukesep']:.0f} MB, "
        f"{1 / ratio(memory):.2f} x the memory"
    )


def page(results: dict) -> str:
    """docs/speed.md."""
    rows: list[Sequence[str]] = [
        ("what", "textbook, ms", "jukesep, ms", "speed", "textbook, MB", "jukesep, MB", "memory"),
        ("---",) * 7,
    ]
    for name in ROWS:
        if name not in results:
            continue
        seconds, memory = results[name]["seconds"], results[name]["megabytes"]
        cells = [ROWS[name].what, *(f"{1e3 * seconds[side]:.1f}" for side in SIDES)]
        cells.append(f"{ratio(seconds):.2f} x")
        cells += [*(f"{memory[side]:.0f}" for side in SIDES), f"{1 / ratio(memory):.2f} x"]
        rows.append(cells)
    machines = sorted({result["machine"] for result in results.values()})
    return "\n".join(
        [
            "# Speed against the textbook form",
            "",
            "Written by `uv run python -m benchmarks.speed`, from `benchmarks/results/speed.json`.",
            "",
            "The same mathematics on the same weights and audio, in float32, on one core of a CPU:",
            "`benchmarks/textbook.py` has it as a textbook writes it, with what the published code",
            "computes besides. Both sides run in turns, and the medians are compared. Memory is",
            "the peak above what the process had after the imports.",
            "",
            *("| " + " | ".join(row) + " |" for row in rows),
            "",
            "Measured on:",
            "",
            *(f"- {machine}" for machine in machines),
            "",
        ]
    )


if __name__ == "__main__":
    main()
