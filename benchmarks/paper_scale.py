"""Does the paper's training fit here, and how long would it take? Both stages at exactly its size.

    uv run python -m benchmarks.paper_scale                  # on the GPU, if there is one
    uv run python -m benchmarks.paper_scale --device cpu     # minutes; memory: docs/paper_scale.md
    uv run python -m benchmarks.paper_scale --segment 65536 131072 --batch 1 4    # other sizes

Trains a few steps of scale=paper with the pipeline's own training, on songs of the band in a
temporary folder. Each stage has a process of its own, so that the peak of memory is the stage's.
What was measured before, on other devices and at other sizes, stays in the file;
docs/paper_scale.md is written from all of it.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import multiprocessing
import os
import resource
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from jukesep.base import params as parameters
from jukesep.base import paths
from jukesep.base.errors import UserError, reported
from jukesep.base.files import write_text
from jukesep.base.params import Params
from jukesep.songs import prepare

from .machine import processor
from .measurements import (
    BATCH,
    PAGE,
    RESULTS,
    SEGMENT,
    STAGES,
    Measurement,
    line,
    load,
    page,
    save,
)

ROOT = Path(__file__).parents[1]
STEM, INIT = "drums", "scratch"  # any will do: neither speed nor memory depends on them

# Steps run but not counted: the first warms up, the last has validation in its time.
UNCOUNTED = 2


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure; print and keep each result; write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    parser.add_argument("--threads", type=int, default=0, help="of a CPU operation; 0: torch's")
    parser.add_argument("--stage", nargs="+", default=STAGES, choices=STAGES)
    parser.add_argument("--segment", type=int, nargs="+", default=[SEGMENT], help="samples")
    parser.add_argument("--batch", type=int, nargs="+", default=[BATCH], help="segments in a step")
    parser.add_argument("--steps", type=int, default=3, help=f"timed; {UNCOUNTED} more are run")
    parser.add_argument("--json", type=Path, default=RESULTS, help="all measurements")
    parser.add_argument("--page", type=Path, default=PAGE, help="written from them")
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error("--steps: at least one step is timed")
    found = {one.key: one for one in load(options.json)}
    machine = [f"device={options.device}", f"threads={options.threads}"]
    for segment, batch in itertools.product(options.segment, options.batch):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            params = compose(folder, options.steps, segment, batch, *machine)
            prepare.prepare(params, folder / "data/prepared")
            for stage in options.stage:
                one = measure(params, stage, folder)
                print(line(one), flush=True)
                # Kept one by one: the next may want more memory than there is.
                found[one.key] = one
                save(options.json, found.values())
                write_text(options.page, page(found.values()))
    print(f"{options.json}\n{options.page}")


def compose(folder: Path, steps: int, segment: int, batch: int, *overrides: str) -> Params:
    """scale=paper with fewer steps, songs and validation segments, in `folder`/params.yaml.

    The steps timed are `steps`. UserError for sizes that do not fit.
    """
    run = steps + UNCOUNTED
    seconds = max(3.0, 1.35 * segment / 44_100)  # a song may be 10 % shorter than asked for
    recipe = {"steps": run, "segment": segment, "batch": batch, "log_every": 1}
    recipe |= {"valid_every": run, "valid_segments": 1}
    settings = [
        *("scale=paper", f"stem={STEM}", f"inits=[{INIT}]", f"band.seconds={seconds}"),
        *(f"band.{split}=1" for split in ("train", "valid", "test", "pretrain")),
        *(f"{stage}.{name}={recipe[name]}" for stage in STAGES for name in recipe),
        f"stage2.checkpoints=[{run}]",
    ]
    path = folder / "params.yaml"
    write_text(path, parameters.compose([*settings, *overrides], ROOT / "conf"))
    return parameters.load(path)


def measure(params: Params, stage: str, folder: Path) -> Measurement:
    """Train a stage in `folder`, whose songs `prepare` has made, in a process of its own.

    UserError if memory does not suffice.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        try:
            return process.submit(_train, params, stage, folder).result()
        except BrokenProcessPool:
            raise UserError(
                f"{stage}: the training was killed, most likely for want of memory. Smaller sizes "
                "take less: --batch 1, or --segment 131072."
            ) from None


def _train(params: Params, stage: str, folder: Path) -> Measurement:
    import torch

    from jukesep.kernels import devices
    from jukesep.model import jukebox
    from jukesep.model.checkpoints import load_model
    from jukesep.pipeline import train

    imported = _peak()
    # A spawned process would spawn its loader's workers; those of the pipeline start by default.
    multiprocessing.set_start_method(None, force=True)
    os.chdir(folder)
    device = devices.choose(params.device, params.threads)
    recipe = params.stage1 if stage == "stage1" else params.stage2
    first, second = (paths.checkpoint(name, STEM, INIT, recipe.steps) for name in STAGES)
    train.weights(params, INIT)
    if stage == "stage2" and not first.exists():
        first.parent.mkdir(parents=True)
        shutil.copyfile(paths.RUNS / "weights" / INIT / paths.WEIGHTS, first)
    try:
        (train.stage1 if stage == "stage1" else train.stage2)(params, STEM, INIT)
    except UserError as error:
        raise UserError(f"{error} Here: --batch or --segment.") from None
    model = jukebox.load_jukebox(first) if stage == "stage1" else load_model(first, second)
    encoder, decoder = (
        sum(weight.numel() for weight in half.parameters())
        for half in (model.encoder, model.decoder)
    )
    on_gpu = device.type == "cuda"
    return Measurement(
        device=torch.cuda.get_device_name() if on_gpu else processor(),
        kind=device.type,
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        torch=str(torch.__version__),
        stage=stage,
        segment=recipe.segment,
        batch=recipe.batch,
        steps=recipe.steps - UNCOUNTED,
        seconds=step_seconds(next(paths.trainings().glob(f"{stage}-*/timing.csv"))),
        memory=torch.cuda.max_memory_allocated() if on_gpu else _peak(),
        imported=0 if on_gpu else imported,
        encoder=encoder,
        decoder=decoder,
    )


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


if __name__ == "__main__":
    with reported():
        main()
