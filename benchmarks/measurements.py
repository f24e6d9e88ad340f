"""What `benchmarks.paper_scale` measures: kept in a file, and laid out in docs/paper_scale.md."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from jukesep.base.errors import UserError
from jukesep.base.files import write_text

RESULTS = Path("benchmarks/results/paper_scale.json")
PAGE = Path("docs/paper_scale.md")
STAGES = ("stage1", "stage2")

# The paper's: samples of a segment, segments and number of steps, weights of encoder and decoder.
SEGMENT, BATCH, STEPS = 393_216, 4, 80_000
ENCODER, DECODER = 441_856, 458_177
GB = 1e9

HOURS = f"hours for {STEPS:,} steps"
MEMORY = ("memory, GB", "above the import, GB")


@dataclass(frozen=True)
class Measurement:
    """One stage at one size on one device."""

    device: str
    """Name of the processor or GPU."""
    kind: str
    """cpu, cuda or mps."""
    cores: int
    threads: int
    torch: str
    stage: str
    segment: int
    batch: int
    steps: int
    seconds: float
    """Of a step, the median."""
    memory: int
    """Peak in bytes: what torch allocated on a CUDA GPU, else of the process and its worker."""
    imported: int
    """Of it, what the process had after importing torch and jukesep; 0 for a GPU."""
    encoder: int
    decoder: int
    """Weights in each, counted in the checkpoint that the stage wrote."""

    @property
    def key(self) -> tuple[str, int, str, int, int]:
        """A new measurement replaces the old one of the same key."""
        return self.device, self.threads, self.stage, self.segment, self.batch


def hours(seconds: float) -> float:
    """The paper's steps of one stage, in hours, from the seconds of a step."""
    return seconds * STEPS / 3600


def load(path: Path) -> list[Measurement]:
    try:
        return [Measurement(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: not this command's measurements ({error}). Move it.") from error


def save(path: Path, measurements: Iterable[Measurement]) -> None:
    """Write what `load` reads, in a fixed order."""
    entries = [asdict(one) for one in _ordered(measurements)]
    write_text(path, json.dumps(entries, indent=1) + "\n")


def line(one: Measurement) -> str:
    same = (one.encoder, one.decoder) == (ENCODER, DECODER)
    return (
        f"{one.stage} on {one.device}, {one.batch} x {one.segment:,} samples: {one.seconds:.3g} s "
        f"a step, {hours(one.seconds):,.1f} hours for {STEPS:,} steps; peak memory "
        f"{_gb(one.memory)} GB, {_gb(one.memory - one.imported)} GB above the import; "
        f"{one.encoder:,} + {one.decoder:,} weights, "
        + ("as in the paper" if same else f"the paper's are {ENCODER:,} + {DECODER:,}")
    )


def page(measurements: Iterable[Measurement]) -> str:
    """docs/paper_scale.md: the paper's size, what it comes to, other sizes, machines."""
    ordered = _ordered(measurements)
    paper = [one for one in ordered if (one.segment, one.batch) == (SEGMENT, BATCH)]
    others = [one for one in ordered if one not in paper]
    stems = []
    for (device, threads), group in itertools.groupby(paper, lambda one: one.key[:2]):
        stages = list(group)
        if len(stages) == len(STAGES):
            total = sum(hours(one.seconds) for one in stages)
            stems.append(
                f"- {device}, {threads} threads: {total:,.0f} hours, {total / 24:,.0f} days"
            )
    machines = {
        f"- {one.device} ({one.kind}): {one.cores} cores, {one.threads} threads an operation, "
        f"PyTorch {one.torch}"
        for one in ordered
    }
    return TEXT.format(
        paper=_table(paper, "seconds a step", HOURS, *MEMORY),
        stems="\n".join(stems) or "- not measured yet",
        gpu="" if any(one.kind == "cuda" for one in ordered) else NO_GPU,
        others=_table(others, "segment", "batch", "seconds a step", *MEMORY),
        machines="\n".join(sorted(machines)) or "- none yet",
    )


def _ordered(measurements: Iterable[Measurement]) -> list[Measurement]:
    return sorted(measurements, key=lambda one: one.key)


def _table(measurements: Iterable[Measurement], *columns: str) -> str:
    measurements = list(measurements)
    if not measurements:
        return "Not measured yet."
    names = ["device", "threads", "stage", *columns, "steps timed"]
    rows = [names, ["---"] * len(names)]
    for one in measurements:
        cells = {
            "device": one.device,
            "threads": str(one.threads),
            "stage": one.stage,
            "segment": f"{one.segment:,}",
            "batch": str(one.batch),
            "seconds a step": f"{one.seconds:.3g}",
            HOURS: f"{hours(one.seconds):,.1f}",
            MEMORY[0]: _gb(one.memory),
            MEMORY[1]: _gb(one.memory - one.imported),
            "steps timed": str(one.steps),
        }
        rows.append([cells[name] for name in names])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _gb(size: int) -> str:
    return f"{size / GB:.1f}"


NO_GPU = """
**On a GPU nothing has been measured yet**: no figure on this page says what a training takes there.
"""

TEXT = f"""# Speed and memory at the paper's size

Written by `uv run python -m benchmarks.paper_scale`, from `{RESULTS}`. The
command trains a few steps of both stages with the parameters of `scale=paper` and the pipeline's
own training, on songs that it renders: it needs neither MUSDB18-HQ nor Jukebox's weights.

## The paper's size

Segments of {SEGMENT:,} samples at 44.1 kHz, batches of {BATCH}, {ENCODER:,} weights in the encoder
and {DECODER:,} in the decoder.

{{paper}}

One stem is {STEPS:,} steps of each stage. At this speed:

{{stems}}

The paper states 16 hours for 20,000 steps of one model, 32 hours in all, on two GPUs of 16 GB; its
authors' logs show 2.91 seconds a step of stage 2.
{{gpu}}
This measures on a GPU, and adds its rows to the tables:

```sh
uv run python -m benchmarks.paper_scale --device cuda
```

## Other sizes

For a device with less memory. Fewer samples in a step is another recipe than the paper's: as many
steps of it make another model.

{{others}}

This adds rows to the table; `--device cuda` says what fits a small GPU.

```sh
uv run python -m benchmarks.paper_scale --segment 65536 131072 --batch 1 4
```

## How to read it

- **seconds a step**: wall clock, the median of the steps timed. It holds all that a step of the
  training does, from waiting for the songs to the row of the log. Other programs on the machine
  lengthen it.
- **hours**: seconds a step times {STEPS:,}. Validation and checkpoints are not in it.
- **memory**: the peak, in 10^9 bytes. On a CPU it is that of the training process and of the one
  that makes its batches, each with PyTorch: no less than what they take, for what they share is
  counted twice. On a GPU it is what PyTorch allocated there.
- Memory grows with segment times batch. On a CPU a small size takes more than its share: the C
  library returns large blocks to the system at once, and keeps small ones.

## Machines

{{machines}}
"""
