"""The one training loop: pretraining, stage 1 and stage 2.

The recipe is the paper's (section 3): Adam, a warm-up of the learning rate from zero, a clipped
gradient norm, an exponential moving average of the weights for the checkpoints, and a codebook that
is trained along with the model. The trainings differ in their task: what a batch consists of, and
its loss. Several processes can share a batch (`jukesep.resume.launch` shows how to start them); the
result is that of one process, up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from ..base.errors import UserError
from ..base.params import Recipe
from ..base.progress import bar
from ..kernels import devices
from ..model import distributed
from ..resume.folder import Training
from .batches import training_batches, validation_batches
from .faults import check_finite, explained, warn_of_collapse
from .segments import Segments
from .state import Block, State
from .tasks import Prepared, Task, Terms

Row = dict[str, float | None]

SAMPLE_SECONDS = 8


def train(
    task: Task,
    recipe: Recipe,
    segments: Segments,
    validation: Segments,
    checkpoints: Sequence[int],
    run: Training,
) -> None:
    """Train a task for `recipe.steps` steps; `run` writes the checkpoints and log.csv.

    Resumes from the last save of `run`, exact to the bit. `checkpoints` are the steps to write
    checkpoints at. Every `log_every` steps the log gets a row: the loss, its terms and the gradient
    norm as means since the last row, and the other columns as of that step.

    UserError if the loss is not finite, a song cannot be read or memory runs out. Interrupted after
    a signal that ends the process, once the step is saved.
    """
    device = run.device
    columns = ["step", "loss", *task.columns, "grad_norm", "lr", "valid_loss"]
    with run, explained(run):
        task.to(device)
        state = State.initial(task.model)
        forward = distributed.parallel(_Loss(task), device)
        _resume(run, state)
        run.columns(columns)
        held_out = validation_batches(task, validation, recipe, device)
        run.begin(state.step, recipe.steps, distributed.world_size())
        warned = False
        with (
            closing(training_batches(task, segments, recipe, run, state.step)) as batches,
            bar(
                total=recipe.steps,
                initial=state.step,
                desc=run.about.title,
                unit="step",
                disable=not run.main,
            ) as line,
        ):
            while state.step < recipe.steps:
                batch = _next(batches, run, state)
                _take_step(forward, batch, state, recipe, segments, run)

                last = state.step == recipe.steps
                valid_loss = None
                if state.step % recipe.valid_every == 0 or last:
                    valid_loss = _validate(task, state.averaged, held_out)
                if state.step % recipe.log_every == 0 or valid_loss is not None:
                    row: Row = {**state.block.means(), **task.state()}
                    row |= {"step": state.step, "valid_loss": valid_loss}
                    row["lr"] = learning_rate(recipe, state.step - 1)
                    run.row(state.step, [_number(row[name]) for name in columns])
                    _show(line, row, task)
                    state.block = Block()
                    if task.codes and not warned and state.step > recipe.warmup:
                        warned = warn_of_collapse(run, task.codes, row)
                if state.step in checkpoints:
                    write = partial(task.save, state.averaged, step=state.step)
                    run.checkpoint(state.step, write)
                if run.sample_due():
                    run.sample(state.step, _sample(task, state.averaged, validation, run))
                if last or run.save_due():
                    run.save(state.step, state.save())
                line.update()
                run.tick(state.step)
                if distributed.any_(run.stopping, device):
                    run.save(state.step, state.save())
                    distributed.wait()
                    raise run.interrupted()
        run.finish()


def learning_rate(recipe: Recipe, step: int) -> float:
    """The learning rate of a step (from 0): linear warm-up from zero, and a cosine decay.

    It ends at `final_rate` times `learning_rate`; final_rate = 1 is the paper's constant rate.
    """
    warm = min(1.0, step / recipe.warmup) if recipe.warmup else 1.0
    cosine = (1 + math.cos(math.pi * step / recipe.steps)) / 2
    share = recipe.final_rate + (1 - recipe.final_rate) * cosine
    return recipe.learning_rate * warm * share


class _Loss(nn.Module):
    """A task's loss as a module, which DistributedDataParallel can wrap."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self.task = task

    def forward(self, batch: Prepared, step: int) -> tuple[torch.Tensor, Terms]:
        return self.task.loss(batch, step)


def _resume(run: Training, state: State) -> None:
    """Load the newest save in all processes, if there is one."""
    saved: dict[str, Any] = {}

    def accept(found: Mapping[str, Any]) -> None:
        state.load(found)
        saved.update(found)

    if run.main:
        run.newest(accept)
    saved = distributed.same(saved)
    if saved and not run.main:
        state.load(saved)
        run.loaded(state.step)


def _next(batches: Iterator[Prepared], run: Training, state: State) -> Prepared:
    """Return the next batch. If it cannot be read, save the state first."""
    try:
        return next(batches)
    except UserError:
        if state.step and distributed.world_size() == 1:
            run.save(state.step, state.save())
        raise


def _take_step(
    forward: nn.Module,
    batch: Prepared,
    state: State,
    recipe: Recipe,
    segments: Segments,
    run: Training,
) -> None:
    """Train the model, its average and the codebook on one batch."""
    rate = learning_rate(recipe, state.step)
    with devices.autocast(run.precision, run.device)():
        loss, terms = forward(batch, state.step)
    shown = distributed.means({**terms, "loss": loss})
    state.optimiser.zero_grad()
    loss.backward()
    shown["gradient norm"] = state.optimiser.clip(recipe.clip)
    values = _numbers(shown)
    check_finite(run, state.step, values, rate, segments, recipe)
    state.optimiser.step(rate)
    state.average.lerp_(state.optimiser.values, 1 - recipe.weight_ema)
    state.step += 1
    values["grad_norm"] = values.pop("gradient norm")
    state.block.add(values)


@torch.no_grad()
def _validate(task: Task, averaged: nn.Module, batches: list[Prepared]) -> float:
    """Return the mean validation loss over the segments of all processes."""
    total = sum(task.validation_loss(averaged, batch) * len(batch[0]) for batch in batches)
    count = sum(len(batch[0]) for batch in batches)
    if distributed.world_size() == 1:
        return total / count
    device = next(averaged.parameters()).device
    both = torch.tensor([total, count], dtype=torch.float32, device=device)
    total, count = distributed.sum_(both).tolist()
    return total / count


@torch.no_grad()
def _sample(
    task: Task, averaged: nn.Module, validation: Segments, run: Training
) -> dict[str, np.ndarray]:
    """Return sounds of the averaged model to listen to, {name: (channels, samples)}."""
    try:
        excerpt = validation.excerpt(SAMPLE_SECONDS * run.about.sample_rate)
    except UserError as error:  # the training does not need it
        run.warn(f"no sample: {error}")
        return {}
    sounds = task.sample(averaged, excerpt[None].to(run.device))
    return {name: sound[0].float().cpu().numpy() for name, sound in sounds.items()}


def _show(line: Any, row: Row, task: Task) -> None:
    shown = {name: row[name] for name in ("loss", *task.columns, "valid_loss")}
    shown = {name: value for name, value in shown.items() if value is not None}
    line.set_postfix(shown, refresh=False)


def _numbers(values: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Copy the values in a single transfer, since each transfer waits for the device."""
    numbers = torch.stack([value.detach().float() for value in values.values()]).tolist()
    return dict(zip(values, numbers, strict=True))


def _number(value: float | int | None) -> str:
    return "" if value is None else f"{value:.7g}"
