"""Faults of a training that a user can repair, in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ..base import distributed
from ..base.errors import Interrupted, UserError
from ..base.params import Recipe
from ..kernels import devices
from ..resume.folder import Training
from .segments import Segments

COLLAPSED = 0.01  # perplexity, as a share of the codes: below, the codebook is lost


@contextmanager
def explained(run: Training) -> Iterator[None]:
    """Raise a UserError for memory that ran out, and for a process that died reading songs."""
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
                f"{section}.batch or {section}.segment; more processes (JUKESEP_NPROC) share a "
                f"batch, each on a GPU of its own. {run.cost}"
            ) from error
        if "DataLoader worker (pid" in text:  # and not an error that was raised in one
            said = text.splitlines()[0].strip(" .")
            raise UserError(
                f"{title}: a process that reads songs has died at step {run.step} "
                f"({said}). If memory was short, lower {section}.workers or "
                f"{section}.segment. {run.cost}"
            ) from error
        if distributed.lost(error):
            raise Interrupted("", 1) from error  # the process that ended says why
        raise


def check_finite(
    run: Training,
    step: int,
    terms: Mapping[str, float],
    rate: float,
    segments: Segments,
    recipe: Recipe,
) -> None:
    """UserError if a number of a step is NaN or infinite; a file then lists its segments."""
    for name, found in terms.items():
        if math.isfinite(found):
            continue
        if not run.main:
            distributed.wait()  # for the first process, which says so, to end all
        section = run.about.section
        indices = range(step * recipe.batch, (step + 1) * recipe.batch)
        batch = [{"index": index, **segments.describe(index)} for index in indices]
        report = {"step": step, "term": name, "value": str(found), "learning_rate": rate}
        path = run.fault({**report, "batch": batch})
        raise UserError(
            f"{run.about.title}: '{name}' is {found} at step {step}. The training cannot continue. "
            f"{path} lists the segments of that step: look for damaged songs among them, or lower "
            f"{section}.learning_rate or {section}.clip, which starts from the beginning. "
            f"{run.kept}; unchanged, the same command would stop here again."
        )


def warn_of_collapse(run: Training, codes: int, row: Mapping[str, float | None]) -> bool:
    """Warn if few of the codes do all the work; returns whether it did.

    Usage would not tell: revival keeps it high.
    """
    perplexity = row["perplexity"] or 0.0
    if perplexity >= max(2.0, COLLAPSED * codes):
        return False
    run.warn(
        f"the codebook is being lost: at step {row['step']} the batch's codes have a perplexity of "
        f"{perplexity:.1f} of {codes} (usage {row['usage']:.0f}). More steps, a lower "
        "learning rate or other initial weights may help."
    )
    return True
