"""Does the result hold for other seeds? Repeats the committed experiment and writes docs/seeds.md.

    uv run python -m benchmarks.seeds            # seeds 1 and 2 beside the committed run
    uv run python -m benchmarks.seeds --jobs 2   # side by side, one core each

Each seed is a queued DVC experiment (`seed-1`, ...): the workspace stays as it is. A seed draws
the initial weights and the training segments, of pretraining too; the songs stay the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks import experiments
from jukesep.base import params
from jukesep.base.files import write_text
from jukesep.songs.manifest import STEMS

Metrics = dict[str, float]
Reader = Callable[[str], Metrics]
PAGE = Path("docs/seeds.md")


def main() -> None:
    """Run the seeds that have no experiment yet, then write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="experiments at a time")
    options = parser.parse_args()
    names = {seed: f"seed-{seed}" for seed in options.seeds}
    experiments.run({name: [f"seed={seed}"] for seed, name in names.items()}, options.jobs)
    committed = params.load()
    readers: dict[int, Reader] = {
        committed.seed: lambda path: json.loads(Path(path).read_text(encoding="utf-8"))
    }
    readers |= {seed: partial(experiments.read, name) for seed, name in names.items()}
    write_text(PAGE, page(readers, committed.scale, list(committed.stage2.checkpoints)))
    print(PAGE)


def page(readers: dict[int, Reader], scale: str, checkpoints: list[int]) -> str:
    """The page: SDR of each system, its mean over the seeds and the spread."""
    late = checkpoints[-1]
    systems = {"scaled mixture": "metrics/baselines/scaled_mixture.json"}
    for init in ("scratch", "pretrained"):
        for step, name in zip(checkpoints, ("early", "late"), strict=True):
            systems[f"{init}, step {step}"] = f"metrics/sdr/{init}_{name}.json"
    found = {
        name: {seed: read(path) for seed, read in readers.items()} for name, path in systems.items()
    }
    seeds = list(readers)
    lines = [
        "# The experiment under other seeds",
        "",
        "Written by `uv run python -m benchmarks.seeds`. A seed draws the initial weights and the",
        "training segments, of pretraining too; the songs are the same. The paper's SDR in dB,",
        f"at scale {scale}, mean over the test songs of instruments heard in training; songs of",
        f"held-out instruments are apart, below. Seed {seeds[0]} is the committed run.",
        "",
        "## Totals",
        "",
        _row(["system", *(f"seed {seed}" for seed in seeds), "mean", "spread (max - min)"]),
        _row(["---"] * (len(seeds) + 3)),
    ]
    for name, values in found.items():
        totals = [values[seed]["total"] for seed in seeds]
        lines.append(_row([name, *map(_db, totals), *_summary(totals)]))
    gains = {
        "pretrained over scaled mixture": "scaled mixture",
        "pretrained over scratch": f"scratch, step {late}",
        "pretrained over its early checkpoint": f"pretrained, step {checkpoints[0]}",
    }
    for name, other in gains.items():
        best = found[f"pretrained, step {late}"]
        differences = [best[seed]["total"] - found[other][seed]["total"] for seed in seeds]
        lines.append(_row([f"{name}, late", *map(_db, differences), *_summary(differences)]))
    held_out = {
        name: {
            seed: read(path.replace("/sdr/", "/").replace("metrics/", "metrics/held_out/"))
            for seed, read in readers.items()
        }
        for name, path in systems.items()
    }
    lines += ["", "## Totals of the songs of held-out instruments", ""]
    lines += [_row(["system", *(f"seed {seed}" for seed in seeds), "mean", "spread (max - min)"])]
    lines += [_row(["---"] * (len(seeds) + 3))]
    for name, values in held_out.items():
        totals = [values[seed]["total"] for seed in seeds]
        lines.append(_row([name, *map(_db, totals), *_summary(totals)]))
    lines += ["", "## Stems: mean over the seeds (spread)", ""]
    lines += [_row(["system", *STEMS]), _row(["---"] * 5)]
    for name, values in found.items():
        cells = []
        for stem in STEMS:
            mean, spread = _summary([values[seed][stem] for seed in seeds])
            cells.append(f"{mean} ({spread})")
        lines.append(_row([name, *cells]))
    return "\n".join([*lines, ""])


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _db(value: float) -> str:
    return f"{value:.2f}"


def _summary(values: list[float]) -> list[str]:
    return [_db(statistics.mean(values)), _db(max(values) - min(values))]


if __name__ == "__main__":
    main()
