"""Rows of docs/paper_scale.md: a few steps of both stages at exactly the paper's size.

Runs scale=paper with the pipeline's own training, on songs of the band in a temporary folder. Each
stage runs in a process of its own, so that the peak of memory is the stage's.
"""

from __future__ import annotations

import csv
import itertools
import multiprocessing
import os
import resource
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import measuring
from benchmarks.markdown import fill, table
from benchmarks.measuring import ROOT
from benchmarks.row import Result, Row, Skipped
from jukesep.base import params as parameters
from jukesep.base import paths
from jukesep.base.files import write_text
from jukesep.base.params import Params
from jukesep.songs import prepare

STEM, INIT = "drums", "scratch"  # neither speed nor memory depends on them
STAGES = ("stage1", "stage2")
SEGMENT, BATCH, STEPS = 393_216, 4, 80_000  # the paper's: samples, segments, steps
# Steps that are run and not counted: the first warms up, the last has validation in its time.
UNCOUNTED = 2


def measure(*overrides: str, steps: int = 3) -> Result:
    """Seconds of a step and the peak of memory of each stage, and the weights of both halves."""
    import torch

    if "device=cpu" not in overrides and not torch.cuda.is_available():
        raise Skipped("it needs an NVIDIA GPU, and there is none here")
    with tempfile.TemporaryDirectory() as name:
        params = compose(Path(name), steps, *overrides)
        prepare.prepare(params, Path(name) / paths.PREPARED)
        stages = {one: measuring.fresh(0, _train, params, one, Path(name)) for one in STAGES}
    return Result(details={"stages": stages})


def compose(folder: Path, steps: int, *overrides: str) -> Params:
    """scale=paper with `steps` timed steps and few songs, in `folder`/params.yaml."""
    run = steps + UNCOUNTED
    seconds = 1.35 * SEGMENT / 44_100  # a song may be 10 % shorter than asked for
    recipe = {"steps": run, "log_every": 1, "valid_every": run, "valid_segments": 1}
    settings = [
        *("scale=paper", f"stem={STEM}", f"inits=[{INIT}]", f"band.seconds={seconds}"),
        *(f"band.{split}=1" for split in ("train", "valid", "test", "pretrain")),
        *(f"{stage}.{name}={recipe[name]}" for stage in STAGES for name in recipe),
        f"stage2.checkpoints=[{run}]",
    ]
    path = folder / paths.PARAMS
    write_text(path, parameters.compose([*settings, *overrides], ROOT / "conf"))
    return parameters.load(path)


def _train(params: Params, stage: str, folder: Path) -> dict[str, Any]:
    """Train a stage in `folder`, which holds prepared songs."""
    import torch

    from jukesep.kernels import devices
    from jukesep.model import jukebox
    from jukesep.model.checkpoints import load_model
    from jukesep.pipeline import train

    imported = _peak()
    # A spawned process would spawn its loader's workers; those of the pipeline start by default.
    multiprocessing.set_start_method(None, force=True)
    os.chdir(folder)
    on_gpu = devices.choose(params.device, params.threads).type == "cuda"
    steps = params.stage1.steps
    first, second = (paths.checkpoint(name, STEM, INIT, steps) for name in STAGES)
    train.weights(params, INIT)
    if stage == "stage2" and not first.exists():
        first.parent.mkdir(parents=True)
        shutil.copyfile(paths.weights_file(INIT), first)
    (train.stage1 if stage == "stage1" else train.stage2)(params, STEM, INIT)
    model = jukebox.load_jukebox(first) if stage == "stage1" else load_model(first, second)
    return {
        "device": torch.cuda.get_device_name() if on_gpu else measuring.processor(),
        "threads": torch.get_num_threads(),
        "steps": steps - UNCOUNTED,
        "seconds": step_seconds(next(paths.trainings().glob(f"{stage}-*/timing.csv"))),
        "memory": torch.cuda.max_memory_allocated() if on_gpu else _peak(),
        "imported": 0 if on_gpu else imported,
        "encoder": sum(weight.numel() for weight in model.encoder.parameters()),
        "decoder": sum(weight.numel() for weight in model.decoder.parameters()),
    }


def step_seconds(timing: Path) -> float:
    """Median seconds of the steps that count, from a timing.csv with a row for every step."""
    with timing.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    ends = [float(row["seconds"]) for row in rows]
    speeds = [float(row["steps_per_second"]) for row in rows]
    # Both are rounded, the one to 0.01 s, the other to 0.001 steps a second: take the finer.
    seconds = [
        1 / speed if speed > 1 else end - start
        for (start, end), speed in zip(itertools.pairwise(ends), speeds[1:], strict=True)
    ]
    return round(statistics.median(seconds[:-1]), 4)


def _peak() -> int:
    """Peak memory in bytes: of this process and, once it has ended, its largest worker.

    No less than what both take: what the two share is counted twice.
    """
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    peak = sum(resource.getrusage(each).ru_maxrss for each in who)
    return peak if sys.platform == "darwin" else peak * 1024


def page(results: Iterable[Result | None]) -> str:
    """docs/paper_scale.md."""
    head = ["device", "threads", "stage", "seconds a step", f"hours for {STEPS:,} steps"]
    head += ["memory, GB", "above the import, GB", "encoder", "decoder", "steps timed"]
    lines = [head]
    stems, machines = [], []
    for result in results:
        if result is None:
            continue
        total = 0.0
        for stage, one in result.details["stages"].items():
            hours = one["seconds"] * STEPS / 3600
            total += hours
            memory, above = one["memory"] / 1e9, (one["memory"] - one["imported"]) / 1e9
            line = [one["device"], str(one["threads"]), stage, f"{one['seconds']:.3g}"]
            line += [f"{hours:,.1f}", f"{memory:.1f}", f"{above:.1f}"]
            line += [f"{one['encoder']:,}", f"{one['decoder']:,}", str(one["steps"])]
            lines.append(line)
        days = f", {total / 24:,.0f} days" if total > 48 else ""
        stems.append(f"- {one['device']}: {total:,.0f} hours{days}")
        m, commit = result.machine, result.code["commit"] or "unknown"
        machines.append(
            f"- {one['device']}: with {m['processor']}, {m['cores']} cores, "
            f"PyTorch {m['torch']}; commit {commit}"
        )
    missing = "Not measured yet."
    return fill(
        "paper_scale",
        paper=table(lines) if machines else missing,
        stems="\n".join(stems) or missing,
        machines="\n".join(machines) or missing,
    )


def _row(what: str, device: str) -> Row:
    code = ("jukesep/audio", "jukesep/kernels", "jukesep/model", "jukesep/training")
    return Row(what, partial(measure, f"device={device}"), code, in_suite=False)


ROWS = {
    "paper-cpu": _row("the paper's size on a CPU: docs/paper_scale.md", "cpu"),
    "paper-gpu": _row("the paper's size on an NVIDIA GPU: docs/paper_scale.md", "cuda"),
}
