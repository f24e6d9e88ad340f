"""Read batches from songs and prepare them, in other processes where that is faster."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ..base.errors import UserError
from ..base.params import Recipe
from ..base.signals import begin_reading
from ..model import distributed
from ..resume.folder import Training
from .segments import Segments
from .tasks import Prepared, Task


def training_batches(
    task: Task,
    segments: Segments,
    recipe: Recipe,
    run: Training,
    start: int,
) -> Generator[Prepared]:
    """Yield the prepared batch of each step from `start` on: this process's share of it.

    UserError if a song cannot be read.
    """
    device = run.device
    on_cpu = device.type == "cpu"
    # On a CPU, another process prepares the next batch during a step. A model on a GPU cannot be
    # used by another process.
    ahead = on_cpu and recipe.workers > 0
    share = distributed.share(recipe.batch, run.about.section)
    loader = DataLoader(
        _Steps(segments, recipe.batch, share, task.prepare if ahead else None),
        batch_size=None,
        sampler=range(start, recipe.steps),
        # A loader draws a number when it starts; this keeps it off the state that is saved.
        generator=torch.Generator(),
        # On a CPU one process is fast enough; more would only take memory.
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


def validation_batches(
    task: Task, validation: Segments, recipe: Recipe, device: torch.device
) -> list[Prepared]:
    """Return the prepared batches for validation: this process's share of them."""
    items = torch.stack([validation[index] for index in range(recipe.valid_segments)])
    batches = items.split(recipe.batch)[distributed.rank() :: distributed.world_size()]
    return [task.prepare(batch.to(device)) for batch in batches]


class _Steps(Dataset[Any]):
    """Item `step` is this process's share of the batch of that step.

    The steps use the segments 0, 1, 2, ... in order, for any number of processes. If a song cannot
    be read, the item is the error: raised in another process, it would lose its type.
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
        # Arrays, since each tensor sent to another process would need an open file.
        given, target = self.prepare(items)
        return given.numpy(), target.numpy()


def _loaded(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield the items of a loader, and end its processes also after an error in one of them."""
    items = iter(loader)
    while True:
        try:
            item = next(items, None)
        except Exception as error:
            if not loader.num_workers:
                raise
            # The text of the error has its traceback. Its frames would keep the loader alive, whose
            # processes ignore signals: this process would then wait for them forever at its end.
            del items
            raise error.with_traceback(None)  # noqa: B904
        if item is None:
            return
        yield item


def _as_it_is(item: Any) -> Any:
    return item
