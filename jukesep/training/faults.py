"""Explain faults of a training that a user can correct."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ..base.errors import Interrupted, UserError
from ..base.params import Recipe
from ..kernels import devices
from ..model import distributed
from ..resume.folder import READER, Training
from .segments import Segments

COLLAPSED = 0.01  # warn if the perplexity is below this share of the number of codes


@contextmanager
def explained(run: Training) -> Iterator[None]:
    """Raise a UserError if memory runs out, or if a process that reads songs dies."""
    title, section = run.about.title, run.about.section
    try:
        yield
    except (UserError, Interrupted):
        raise
    except (RuntimeError, MemoryError, OSError) as error:
        text = str(error)
        if devices.out_of_memory(error):
            raise UserError(
                f"{title}: out of memory on {run.device} at step {run.step}. Lower "
                f"{section}.batch or {section}.segment, or share the batch among several GPUs "
                f"(JUKESEP_NPROC). {run.cost}"
            ) from error
        if READER in text:  # not an error that was raised in a worker
            said = text.splitlines()[0].strip(" .")
            raise UserError(
                f"{title}: a process that reads songs died at step {run.step} "
                f"({said}). If memory ran out, lower {section}.workers or "
                f"{section}.segment. {run.cost}"
            ) from error
        if distributed.lost(error):
            raise Interrupted("", 1) from error  # the process that ended reports the reason
        raise


def check_finite(
    run: Training,
    step: int,
    terms: Mapping[str, float],
    rate: float,
    segments: Segments,
    recipe: Recipe,
) -> None:
    """Raise UserError if a value of a step is NaN or infinite, and write its segments to a file.

    `terms` are the values by name, `rate` is the learning rate of the step.
    """
    for name, found in terms.items():
        if math.isfinite(found):
            continue
        if not run.main:
            distributed.wait()  # the main process reports it and ends all processes
        section = run.about.section
        indices = range(step * recipe.batch, (step + 1) * recipe.batch)
        batch = [{"index": index, **segments.describe(index)} for index in indices]
        report = {"step": step, "term": name, "value": str(found), "learning_rate": rate}
        path = run.fault({**report, "batch": batch})
        raise UserError(
            f"{run.about.title}: '{name}' is {found} at step {step}. The training cannot continue. "
            f"{path} lists the segments of that step: look for damaged songs among them, or lower "
            f"{section}.learning_rate or {section}.clip, which starts from the beginning. "
            f"{run.kept}; without a change, the same command stops here again."
        )


def warn_of_collapse(run: Training, codes: int, row: Mapping[str, float | None]) -> bool:
    """Warn if the batch hardly uses more than a few codes; return whether it did.

    The perplexity shows that. The usage does not, because revival keeps it high.
    """
    perplexity = row["perplexity"] or 0.0
    if perplexity >= max(2.0, COLLAPSED * codes):
        return False
    run.warn(
        f"the codebook is collapsing: at step {row['step']} the batch's codes have a perplexity of "
        f"{perplexity:.1f} of {codes} (usage {row['usage']:.0f}). More steps, a lower "
        "learning rate or other initial weights may help."
    )
    return True
