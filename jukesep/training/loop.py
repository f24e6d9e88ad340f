"""The one training loop: pretraining, stage 1 and stage 2.

The recipe is the paper's (section 3): Adam with warm-up from a rate of zero, the gradient's
norm clipped, an exponential average of the weights for the checkpoints, the codebook live.
What differs between the trainings is a task: what a batch is made of, and its loss. Several
processes (`launch` has the lines that start them) share a batch and compute what one does.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ..base import distributed
from ..base.errors import Interrupted, UserError
from ..base.params import Recipe
from ..base.progress import bar
from ..base.signals import begin_reading
from ..kernels import devices
from ..resume.folder import Training
from .optimiser import Adam, as_one
from .segments import Segments
from .tasks import Prepared, Task, Terms

Row = dict[str, float | None]

COLLAPSED = 0.01  # perplexity, as a share of the codes: below, the codebook is lost
SAMPLE_SECONDS = 8


class Block:
    """Means over the steps between two rows of the log."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.count = 0

    def add(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1

    def means(self) -> dict[str, float]:
        return {name: total / self.count for name, total in self.sums.items()}


@dataclass
class State:
    """All that the next step depends on: the model, its average as one vector, the optimiser."""

    model: nn.Module
    averaged: nn.Module
    average: torch.Tensor
    optimiser: Adam
    block: Block
    step: int = 0

    def tensors(self) -> dict[str, torch.Tensor]:
        """Those that a step changes, the codebook's sums and counts among the model's."""
        return {
            **{f"model.{name}": value for name, value in self.model.state_dict().items()},
            "average": self.average,
            "means": self.optimiser.means,
            "squares": self.optimiser.squares,
        }

    def save(self) -> dict[str, Any]:
        """As `load` takes it, on the CPU."""
        return {
            "step": self.step,
            "tensors": {name: value.cpu() for name, value in self.tensors().items()},
            "optimiser_steps": self.optimiser.steps,
            "block": {"sums": self.block.sums, "count": self.block.count},
            # Nothing draws from it: every draw is of (seed, purpose, index).
            "random": torch.get_rng_state(),
        }

    def load(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `save` returned. UserError, and nothing changed, if it does not fit."""
        ours, theirs = self.tensors(), saved["tensors"]
        forms = [
            {name: (value.shape, value.dtype) for name, value in tensors.items()}
            for tensors in (ours, theirs)
        ]
        if forms[0] != forms[1]:
            raise UserError("it is of another model")
        step, steps, block = saved["step"], saved["optimiser_steps"], saved["block"]
        torch.set_rng_state(saved["random"])
        self.block.sums, self.block.count = dict(block["sums"]), block["count"]
        self.step, self.optimiser.steps = step, steps
        with torch.no_grad():
            for name, value in ours.items():
                value.copy_(theirs[name])


def learning_rate(recipe: Recipe, step: int) -> float:
    """The rate of a step (from 0): linear warm-up from zero, then a cosine to `final_rate`.

    final_rate = 1 is the paper's constant rate.
    """
    warm = min(1.0, step / recipe.warmup) if recipe.warmup else 1.0
    cosine = (1 + math.cos(math.pi * step / recipe.steps)) / 2
    share = recipe.final_rate + (1 - recipe.final_rate) * cosine
    return recipe.learning_rate * warm * share


def train(
    task: Task,
    recipe: Recipe,
    segments: Segments,
    validation: Segments,
    checkpoints: Sequence[int],
    run: Training,
) -> None:
    """Run `recipe.steps` steps of a task; checkpoints and log.csv go to where `run` puts them.

    Goes on from the last save of `run`, to the bit. A row of the log every `log_every` steps: the
    means of the loss, its terms and the gradient's norm over the block, the rest as it is at that
    step. UserError for whatever a user can mend: a loss that is no longer finite, a song that
    cannot be read, too little memory; Interrupted after SIGINT and SIGTERM, the step saved.
    """
    device = run.device
    autocast = devices.autocast(run.precision, device)
    columns = ["step", "loss", *task.columns, "grad_norm", "lr", "valid_loss"]
    with run, _faults(run):
        task.to(device)
        # The average starts from the initial weights.
        averaged = copy.deepcopy(task.model).requires_grad_(False)
        average, optimiser = as_one(averaged.parameters()), Adam(task.model.parameters())
        state = State(task.model, averaged, average, optimiser, Block())
        forward = distributed.parallel(_Forward(task), device)
        _resume(run, state)
        run.columns(columns)
        held_out = [task.prepare(batch) for batch in _held_out(validation, recipe, device)]
        run.begin(state.step, recipe.steps, distributed.world_size())
        warned = False
        with (
            closing(_batches(task, segments, recipe, run, state.step)) as batches,
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
                rate = learning_rate(recipe, state.step)
                with autocast():
                    total, terms = forward(batch, state.step)
                shown = distributed.means({**terms, "loss": total})
                state.optimiser.zero_grad()
                total.backward()
                shown["gradient norm"] = state.optimiser.clip(recipe.clip)
                values = _numbers(shown)
                _check_finite(run, state.step, values, rate, segments, recipe)
                state.optimiser.step(rate)
                state.average.lerp_(state.optimiser.values, 1 - recipe.weight_ema)
                state.step += 1
                values["grad_norm"] = values.pop("gradient norm")
                state.block.add(values)

                last = state.step == recipe.steps
                valid_loss = None
                if state.step % recipe.valid_every == 0 or last:
                    valid_loss = _validate(task, state.averaged, held_out)
                if state.step % recipe.log_every == 0 or valid_loss is not None:
                    row: Row = {**state.block.means(), **task.state()}
                    row |= {"step": state.step, "lr": rate, "valid_loss": valid_loss}
                    run.row(state.step, [_number(row[name]) for name in columns])
                    _show(line, row, task)
                    state.block = Block()
                    if not warned and state.step > recipe.warmup:
                        warned = _warn_of_collapse(run, task, row)
                if state.step in checkpoints:
                    step = state.step
                    run.checkpoint(step, lambda path: task.save(averaged, path, step))  # noqa: B023
                if run.sample_due():
                    run.sample(state.step, _sample(task, averaged, validation, run))
                if last or run.save_due():
                    run.save(state.step, state.save())
                line.update()
                run.tick(state.step)
                if distributed.any_(run.stopping, device):
                    run.save(state.step, state.save())
                    distributed.wait()
                    raise run.interrupted()
        run.finish()


class _Forward(nn.Module):
    """A task's loss as a module's output: what can be spread over processes."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self.task = task

    def forward(self, batch: Prepared, step: int) -> tuple[torch.Tensor, Terms]:
        return self.task.loss(batch, step)


class _Steps(Dataset[Any]):
    """Item `step` is what that step trains on: this process's share of its batch.

    The segments 0, 1, 2, ... in order, whatever the number of processes. A song that cannot be
    read is an item too: its error, which would lose its kind on the way from a worker.
    """

    def __init__(
        self,
        segments: Segments,
        batch: int,
        share: int,
        prepare: Callable[[torch.Tensor], Prepared] | None,
    ) -> None:
        self.segments = segments
        self.batch, self.share, self.first = batch, share, share * distributed.rank()
        self.prepare = prepare

    def __getitem__(self, step: int) -> Any:
        start = step * self.batch + self.first
        try:
            items = torch.stack([self.segments[start + i] for i in range(self.share)])
        except UserError as error:
            return error
        if self.prepare is None:
            return items
        # Arrays and not tensors, whose way to another process is one of open files, each a
        # connection.
        given, target = self.prepare(items)
        return given.numpy(), target.numpy()


def _batches(
    task: Task,
    segments: Segments,
    recipe: Recipe,
    run: Training,
    start: int,
) -> Generator[Prepared]:
    """What each step from `start` on trains on, prepared."""
    device = run.device
    on_cpu = device.type == "cpu"
    # On a CPU another core prepares meanwhile.
    ahead = on_cpu and recipe.workers > 0
    share = distributed.share(recipe.batch, run.about.section)
    loader = DataLoader(
        # A model on a GPU must not go to another process.
        _Steps(segments, recipe.batch, share, task.prepare if ahead else None),
        batch_size=None,
        sampler=range(start, recipe.steps),
        # A loader draws a number when it starts: not from the state that is saved.
        generator=torch.Generator(),
        # On a CPU one is enough to keep ahead, and the memory of more would be for nothing.
        num_workers=min(recipe.workers, 1) if on_cpu else recipe.workers,
        collate_fn=_as_it_is,
        worker_init_fn=begin_reading,
        pin_memory=device.type == "cuda",
    )
    for batch in _loaded(loader):
        if isinstance(batch, UserError):
            raise batch
        if ahead:
            given, target = batch
            yield torch.from_numpy(given), torch.from_numpy(target)
        else:
            yield task.prepare(batch.to(device, non_blocking=True))


def _loaded(loader: DataLoader[Any]) -> Iterator[Any]:
    """The items of a loader, whose processes end with it also after an error of one."""
    items = iter(loader)
    while True:
        try:
            item = next(items, None)
        except Exception as error:
            if not loader.num_workers:
                raise
            # Its text has the traceback. The frames that it came by would hold the loader, whose
            # processes heed no signal, and this process would wait for them in vain when it ends.
            del items
            raise error.with_traceback(None)  # noqa: B904
        if item is None:
            return
        yield item


def _as_it_is(item: Any) -> Any:
    return item


def _next(batches: Iterator[Prepared], run: Training, state: State) -> Prepared:
    """The next batch. If it cannot be had, what is trained so far is saved first."""
    try:
        return next(batches)
    except UserError:
        if state.step and distributed.world_size() == 1:
            run.save(state.step, state.save())
        raise


def _held_out(validation: Segments, recipe: Recipe, device: torch.device) -> list[torch.Tensor]:
    """This process's share of the batches that the model is validated on."""
    items = torch.stack([validation[index] for index in range(recipe.valid_segments)])
    batches = items.split(recipe.batch)[distributed.rank() :: distributed.world_size()]
    return [batch.to(device) for batch in batches]


@torch.no_grad()
def _validate(task: Task, averaged: nn.Module, batches: list[Prepared]) -> float:
    """The mean over the segments that all processes hold."""
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
    try:
        excerpt = validation.excerpt(SAMPLE_SECONDS * run.about.sample_rate)
    except UserError as error:  # no reason to end a training that does not hear it
        run.warn(f"no sample: {error}")
        return {}
    sounds = task.sample(averaged, excerpt[None].to(run.device))
    return {name: sound[0].float().cpu().numpy() for name, sound in sounds.items()}


def _resume(run: Training, state: State) -> None:
    """Load the newest save, in every process."""
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


def _show(line: Any, row: Row, task: Task) -> None:
    shown = {name: row[name] for name in ("loss", *task.columns, "valid_loss")}
    shown = {name: value for name, value in shown.items() if value is not None}
    line.set_postfix(shown, refresh=False)


def _warn_of_collapse(run: Training, task: Task, row: Row) -> bool:
    """Usage would not tell: revival keeps it high where a few codes do all the work."""
    perplexity = row["perplexity"] or 0.0
    if perplexity >= max(2.0, COLLAPSED * task.codes):
        return False
    run.warn(
        f"the codebook is being lost: at step {row['step']} the batch's codes have a perplexity of "
        f"{perplexity:.1f} of {task.codes} (usage {row['usage']:.0f}). More steps, a lower "
        "learning rate or other initial weights may help."
    )
    return True


def _numbers(values: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """In one transfer from the device, which each waits for all that is under way there."""
    numbers = torch.stack([value.detach().float() for value in values.values()]).tolist()
    return dict(zip(values, numbers, strict=True))


def _check_finite(
    run: Training,
    step: int,
    terms: Mapping[str, float],
    rate: float,
    segments: Segments,
    recipe: Recipe,
) -> None:
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
            f"{run.about.title}: '{name}' is {found} at step {step}. The training cannot go on. "
            f"{path} lists the segments of that step: look for damaged songs among them, else "
            f"lower {section}.learning_rate or {section}.clip, which starts anew. {run.kept}; as "
            "it is, the same command would stop here again."
        )


@contextmanager
def _faults(run: Training) -> Iterator[None]:
    """What a user can mend, in words."""
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
        if "DataLoader worker (pid" in text:  # and not what is raised in one
            said = text.splitlines()[0].strip(" .")
            raise UserError(
                f"{title}: a process that reads songs has died at step {run.step} "
                f"({said}). If memory was short, lower {section}.workers or "
                f"{section}.segment. {run.cost}"
            ) from error
        if distributed.lost(error):
            raise Interrupted("", 1) from error  # the one that has ended says why
        raise


def _number(value: float | int | None) -> str:
    return "" if value is None else f"{value:.7g}"
