"""The one training loop: pretraining, stage 1 and stage 2.

The recipe is the paper's (section 3): Adam with warm-up from a rate of zero, the gradient's
norm clipped, an exponential average of the weights for the checkpoints, the codebook live.
What differs between the trainings is a task: what a batch is made of, and its loss.
"""

from __future__ import annotations

import copy
import csv
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, default_collate

from . import jukebox, losses
from .codebook import straight_through
from .errors import UserError
from .optimiser import Adam, as_one
from .params import CodebookParams, Losses, Recipe
from .progress import bar
from .seeds import torch_generator
from .segments import Segments
from .vqvae import VQVAE, Encoder

Terms = dict[str, torch.Tensor]
Prepared = tuple[torch.Tensor, torch.Tensor]  # input and target

# Seconds and steps a second go here and not into a training's folder, which DVC tracks: the
# same seed gives that folder again bit for bit.
TIMING = Path("timing")
TIMING_COLUMNS = ("step", "seconds", "steps_per_second")


class Task(Protocol):
    """What one training optimises."""

    @property
    def model(self) -> nn.Module:
        """Its parameters are trained and averaged."""
        ...

    @property
    def columns(self) -> Sequence[str]:
        """Columns of the log, beside those every training has."""
        ...

    def prepare(self, batch: torch.Tensor) -> Prepared:
        """Input and target of a batch (batch, parts, segment): what needs no training step.

        Runs ahead of the training step, on a CPU in another process: it must not touch what the
        step changes.
        """
        ...

    def loss(self, batch: Prepared, step: int) -> tuple[torch.Tensor, Terms]:
        """The loss of a prepared training batch, and its terms by name."""
        ...

    def state(self) -> Mapping[str, float]:
        """The columns that describe the model rather than the loss, after a step."""
        ...

    def validation_loss(self, averaged: nn.Module, batch: Prepared) -> float:
        """The loss of the averaged model, nothing changed."""
        ...

    def save(self, averaged: nn.Module, path: Path, step: int) -> None:
        """Write a checkpoint of the averaged model."""
        ...


class Reconstruction:
    """Pretraining and stage 1: y = D(Q(E(x))) against x, and the codebook that follows E."""

    columns = ("l2", "linf", "multispectral", "commit", "usage", "perplexity", "revived")

    def __init__(
        self,
        vqvae: VQVAE,
        bandwidths: losses.Bandwidths,
        weights: Losses,
        codebook: CodebookParams,
        seed: int,
        hps: dict[str, Any],
    ) -> None:
        self.model = vqvae
        self.bandwidths = bandwidths
        self.weights = weights.model_dump()
        self.seed = seed
        self.hps = hps
        vqvae.codebook.decay = codebook.decay
        vqvae.codebook.revival_threshold = codebook.revival_threshold
        self._stats: dict[str, float] = {}

    def prepare(self, batch: torch.Tensor) -> Prepared:
        return batch[:, :1], batch[:, :1]

    def loss(self, batch: Prepared, step: int) -> tuple[torch.Tensor, Terms]:
        _, target = batch
        codebook = self.model.codebook
        latents = self.model.encode(target)
        generator = torch_generator(self.seed, "codebook", step)
        if not codebook.initialised:
            codebook.initialise(latents.detach(), generator)
        codes, quantised = codebook.quantise(latents)
        total, terms = losses.stage1_loss(
            target,
            self.model.decode(straight_through(latents, quantised)),
            latents,
            quantised,
            self.bandwidths,
            **self.weights,
        )
        # The batch is quantised with the codebook as it was; only then does the codebook learn.
        stats = codebook.update(latents.detach(), codes, generator)
        self._stats = {
            "usage": float(stats.usage),
            "perplexity": float(stats.perplexity),
            "revived": float(stats.revived),
        }
        return total, terms

    def state(self) -> Mapping[str, float]:
        return self._stats

    def validation_loss(self, averaged: nn.Module, batch: Prepared) -> float:
        vqvae = self._with_codebook(averaged)
        _, target = batch
        latents = vqvae.encode(target)
        _, quantised = vqvae.quantise(latents)
        total, _ = losses.stage1_loss(
            target, vqvae.decode(quantised), latents, quantised, self.bandwidths, **self.weights
        )
        return float(total)

    def save(self, averaged: nn.Module, path: Path, step: int) -> None:
        jukebox.save_jukebox(self._with_codebook(averaged), path, step, self.hps)

    def _with_codebook(self, averaged: nn.Module) -> VQVAE:
        """The averaged weights beside the live codebook."""
        assert isinstance(averaged, VQVAE)
        averaged.codebook.load_state_dict(self.model.codebook.state_dict())
        return averaged


class LatentMatching:
    """Stage 2: E2(mixture) against E1(stem) before quantisation, E1 frozen."""

    def __init__(
        self,
        encoder: Encoder,
        stage1: VQVAE,
        loss: Literal["mse", "mse_linf"],
        weights: Losses,
        hps: dict[str, Any],
    ) -> None:
        self.model = encoder
        self.stage1 = stage1.eval().requires_grad_(False)
        self._loss = partial(
            losses.stage2_loss, kind=loss, linf=weights.linf, linf_k=weights.linf_k
        )
        # The plain error is the loss itself and needs no column.
        self.terms = ("l2", "linf") if loss == "mse_linf" else ()
        self.columns = (*self.terms, "usage", "perplexity")
        self.hps = hps
        self._latents = torch.empty(0)

    @torch.no_grad()
    def prepare(self, batch: torch.Tensor) -> Prepared:
        return batch[:, :1], self.stage1.encode(batch[:, 1:2])

    def loss(self, batch: Prepared, step: int) -> tuple[torch.Tensor, Terms]:
        mixture, target = batch
        latents = self.model(mixture)
        self._latents = latents.detach()
        total, terms = self._loss(target, latents)
        return total, {name: terms[name] for name in self.terms}

    def state(self) -> Mapping[str, float]:
        codes, _ = self.stage1.quantise(self._latents)
        counts = torch.bincount(codes.flatten(), minlength=self.stage1.architecture.codes)
        shares = counts[counts > 0] / codes.numel()
        perplexity = torch.exp(-(shares * shares.log()).sum())
        return {"usage": float((counts > 0).sum()), "perplexity": float(perplexity)}

    def validation_loss(self, averaged: nn.Module, batch: Prepared) -> float:
        mixture, target = batch
        total, _ = self._loss(target, averaged(mixture))
        return float(total)

    def save(self, averaged: nn.Module, path: Path, step: int) -> None:
        assert isinstance(averaged, Encoder)
        jukebox.save_encoder(averaged, path, step, self.hps)


@dataclass
class State:
    """Everything the loop owns: the averaged model, its weights as one vector, the optimiser."""

    averaged: nn.Module
    average: torch.Tensor
    optimiser: Adam
    step: int = 0


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
    folder: Path,
    checkpoints: Sequence[int],
    title: str,
    device: torch.device,
) -> None:
    """Run `recipe.steps` steps of a task; write checkpoints and log.csv to `folder`.

    A row of the log every `log_every` steps: the means of the loss, its terms and the gradient's
    norm over the block, the rest as it is at that step. What differs from run to run goes to
    TIMING instead. UserError if the loss or the gradient is no longer finite.
    """
    task.model.to(device).train()
    # The average starts from the initial weights.
    averaged = copy.deepcopy(task.model).requires_grad_(False)
    state = State(averaged, as_one(averaged.parameters()), Adam(task.model.parameters()))
    held_out = [task.prepare(batch) for batch in _validation_batches(validation, recipe, device)]
    block = _Block()
    with (
        _Log(folder, task.columns) as log,
        bar(total=recipe.steps, desc=title, unit="step") as line,
    ):
        for batch in _batches(task, segments, recipe, device):
            rate = learning_rate(recipe, state.step)
            total, terms = task.loss(batch, state.step)
            _check_finite(title, state.step, {**terms, "loss": total})
            state.optimiser.zero_grad()
            total.backward()
            norm = state.optimiser.clip(recipe.clip)
            _check_finite(title, state.step, {"gradient norm": norm})
            state.optimiser.step(rate)
            state.average.lerp_(state.optimiser.values, 1 - recipe.weight_ema)
            state.step += 1
            block.add({"loss": total, **terms, "grad_norm": norm})

            last = state.step == recipe.steps
            valid_loss = None
            if state.step % recipe.valid_every == 0 or last:
                valid_loss = _validate(task, state.averaged, held_out)
                line.set_postfix(loss=block.mean("loss"), valid=valid_loss, refresh=False)
            if state.step % recipe.log_every == 0 or valid_loss is not None:
                log.row(state.step, {**block.means(), **task.state()}, rate, valid_loss)
                block = _Block()
            if state.step in checkpoints:
                task.save(state.averaged, folder / f"checkpoints/{state.step}.pt", state.step)
            line.update()


def _batches(
    task: Task, segments: Segments, recipe: Recipe, device: torch.device
) -> Iterator[Prepared]:
    """Batch after batch, prepared: indices 0, 1, 2, ... of the segments."""
    on_cpu = device.type == "cpu"
    collate = _Prepare(task) if on_cpu and recipe.workers else default_collate
    loader = DataLoader(
        Subset(segments, range(recipe.steps * recipe.batch)),
        batch_size=recipe.batch,
        # On a CPU one is enough to keep ahead, and the memory of more would be for nothing.
        num_workers=min(recipe.workers, 1) if on_cpu else recipe.workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
    )
    for batch in loader:
        if collate is default_collate:
            yield task.prepare(batch.to(device, non_blocking=True))
        else:
            given, target = batch
            yield torch.from_numpy(given), torch.from_numpy(target)


class _Prepare:
    """Collates and prepares in the process that reads: on a CPU another core does it meanwhile.

    Arrays and not tensors, whose way to another process is one of open files, each a connection.
    """

    def __init__(self, task: Task) -> None:
        self.task = task

    def __call__(self, items: list[torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
        given, target = self.task.prepare(default_collate(items))
        return given.numpy(), target.numpy()


def _validation_batches(
    validation: Segments, recipe: Recipe, device: torch.device
) -> list[torch.Tensor]:
    items = torch.stack([validation[index] for index in range(recipe.valid_segments)])
    return [batch.to(device) for batch in items.split(recipe.batch)]


@torch.no_grad()
def _validate(task: Task, averaged: nn.Module, batches: list[Prepared]) -> float:
    weighted = [task.validation_loss(averaged, batch) * len(batch[0]) for batch in batches]
    return sum(weighted) / sum(len(batch[0]) for batch in batches)


def _check_finite(title: str, step: int, terms: Mapping[str, torch.Tensor]) -> None:
    for name, value in terms.items():
        if not torch.isfinite(value):
            raise UserError(
                f"{title}: '{name}' is {float(value.detach())} at step {step}. The training cannot "
                "go on; lower the learning rate or look for damaged songs."
            )


class _Block:
    """Means over the steps between two rows of the log."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.count = 0

    def add(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.detach())
        self.count += 1

    def mean(self, name: str) -> float:
        return self.sums[name] / self.count

    def means(self) -> dict[str, float]:
        return {name: self.mean(name) for name in self.sums}


class _Log:
    """log.csv and TIMING of a training, a row at a time, so that they can be watched."""

    def __init__(self, folder: Path, columns: Sequence[str]) -> None:
        self.columns = ["step", "loss", *columns, "grad_norm", "lr", "valid_loss"]
        self.folder = folder
        self.files: list[TextIO] = []

    def __enter__(self) -> _Log:
        self._write = self._open(self.folder / "log.csv", self.columns)
        self._time = self._open(TIMING / self.folder / "timing.csv", TIMING_COLUMNS)
        self._last = (0, time.perf_counter())
        self._start = self._last[1]
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.files:
            file.close()

    def _open(self, path: Path, columns: Sequence[str]) -> Callable[[Sequence[object]], None]:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w", newline="", encoding="utf-8")
        self.files.append(file)
        writer = csv.writer(file, lineterminator="\n")

        def write(row: Sequence[object]) -> None:
            writer.writerow(row)
            file.flush()

        write(columns)
        return write

    def row(
        self, step: int, values: Mapping[str, float], rate: float, valid_loss: float | None
    ) -> None:
        now = time.perf_counter()
        entries: dict[str, float | int | None] = {
            **values, "step": step, "lr": rate, "valid_loss": valid_loss
        }  # fmt: skip
        self._write([_number(entries[name]) for name in self.columns])
        speed = (step - self._last[0]) / (now - self._last[1])
        self._time([step, f"{now - self._start:.2f}", f"{speed:.3f}"])
        self._last = (step, now)


def _number(value: float | int | None) -> str:
    return "" if value is None else f"{value:.7g}"
