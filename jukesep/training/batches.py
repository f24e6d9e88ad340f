"""The batches of a training: read from songs and prepared, in other processes where that helps."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ..base import distributed
from ..base.errors import UserError
from ..base.params import Recipe
from ..base.signals import begin_reading
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
    """Yield what each step from `start` on trains on, prepared: this process's share of it.

    UserError if a song cannot be read.
    """
    device = run.device
    on_cpu = device.type == "cpu"
    # On a CPU, another process prepares the next batch meanwhile. A model on a GPU must not go to
    # another process.
    ahead = on_cpu and recipe.workers > 0
    share = distributed.share(recipe.batch, run.about.section)
    loader = DataLoader(
        _Steps(segments, recipe.batch, share, task.prepare if ahead else None),
        batch_size=None,
        sampler=range(start, recipe.steps),
        # A loader draws a number when it starts: not from the state that is saved.
        generator=torch.Generator(),
        # On a CPU one process keeps ahead of the training; more would only take memory.
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
    """The batches that the model is validated on, prepared: this process's share of them."""
    items = torch.stack([validation[index] for index in range(recipe.valid_segments)])
    batches = items.split(recipe.batch)[distributed.rank() :: distributed.world_size()]
    return [task.prepare(batch.to(device)) for batch in batches]


class _Steps(Dataset[Any]):
    """Item `step` is what that step trains on: this process's share of its batch.

    The segments are 0, 1, 2, ... in order, whatever the number of processes. A song that cannot be
    read is an item too: its error, which would lose its type on the way from another process.
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
        # Arrays, since each tensor would need an open file on its way to the other process.
        given, target = self.prepare(items)
        return given.numpy(), target.numpy()


def _loaded(loader: DataLoader[Any]) -> Iterator[Any]:
    """The items of a loader, whose processes end also after an error in one of them."""
    items = iter(loader)
    while True:
        try:
            item = next(items, None)
        except Exception as error:
            if not loader.num_workers:
                raise
            # Its text has the traceback. The frames that it came by would hold the loader, whose
            # processes ignore signals, and this process would wait for them forever at its end.
            del items
            raise error.with_traceback(None)  # noqa: B904
        if item is None:
            return
        yield item


def _as_it_is(item: Any) -> Any:
    return item
