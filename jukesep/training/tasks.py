"""The tasks of the trainings: pretraining and stage 1 reconstruct, stage 2 matches latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import nn

from ..base.params import CodebookParams, Losses
from ..base.seeds import torch_generator
from ..model import distributed, jukebox
from ..model.codebook import straight_through
from ..model.vqvae import VQVAE
from . import losses
from .conditioning import Conditioned

Terms = dict[str, torch.Tensor]
Prepared = tuple[torch.Tensor, torch.Tensor]  # input and target


class Task(Protocol):
    """What a training optimises: its model, its loss and its checkpoints."""

    @property
    def model(self) -> nn.Module:
        """The model whose parameters are trained and averaged."""
        ...

    @property
    def columns(self) -> Sequence[str]:
        """The columns of the log that only this task has."""
        ...

    @property
    def codes(self) -> int:
        """The number of codes in the codebook; 0 without one."""
        ...

    def to(self, device: torch.device) -> None:
        """Move all models and tensors to a device."""
        ...

    def prepare(self, batch: torch.Tensor) -> Prepared:
        """Return input and target for a batch (batch, parts, segment).

        Runs ahead of the training step, on a CPU in another process, so it must not use anything
        that a step changes.
        """
        ...

    def loss(self, batch: Prepared, step: int) -> tuple[torch.Tensor, Terms]:
        """Return the loss of a prepared batch and its terms by name."""
        ...

    def state(self) -> Mapping[str, float]:
        """Return the columns that describe the model after a step, not the loss."""
        ...

    def validation_loss(self, averaged: nn.Module, batch: Prepared) -> float:
        """Return the loss of the averaged model. Changes nothing."""
        ...

    def save(self, averaged: nn.Module, path: Path, step: int) -> None:
        """Write a checkpoint of the averaged model."""
        ...

    def sample(self, averaged: nn.Module, excerpt: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return sounds, {name: (1, 1, samples)}, of an excerpt (1, parts, samples)."""
        ...


class Reconstruction:
    """Pretraining and stage 1: reconstruct x as D(Q(E(x))); the codebook follows E."""

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
        self.codes = vqvae.architecture.codes
        self.bandwidths = bandwidths
        self.weights = weights.model_dump()
        # A term of weight 0 is not computed.
        terms = (name for name in ("linf", "multispectral", "commit") if self.weights[name])
        self.columns = ("l2", *terms, "usage", "perplexity", "revived")
        self.seed = seed
        self.hps = hps
        vqvae.codebook.decay = codebook.decay
        vqvae.codebook.revival_threshold = codebook.revival_threshold
        self._stats: dict[str, float] = {}

    def to(self, device: torch.device) -> None:
        self.model.to(device)

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
        # The codebook is updated after it has quantised the batch.
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

    def sample(self, averaged: nn.Module, excerpt: torch.Tensor) -> dict[str, torch.Tensor]:
        target = excerpt[:, :1]
        return {"target": target, "reconstruction": self._with_codebook(averaged)(target)}

    def _with_codebook(self, averaged: nn.Module) -> VQVAE:
        """The averaged weights with the current codebook."""
        assert isinstance(averaged, VQVAE)
        averaged.codebook.load_state_dict(self.model.codebook.state_dict())
        return averaged


class LatentMatching:
    """Stage 2: match E2(mixture) to E1(stem) before quantisation. E1 is frozen."""

    def __init__(
        self,
        encoder: Conditioned,
        stage1: VQVAE,
        loss: Literal["mse", "mse_linf"],
        weights: Losses,
        hps: dict[str, Any],
    ) -> None:
        self.model = encoder
        self.stage1 = stage1.eval().requires_grad_(False)
        self.codes = stage1.architecture.codes
        self._loss = partial(
            losses.stage2_loss, kind=loss, linf=weights.linf, linf_k=weights.linf_k
        )
        # If the only term is the loss itself, it needs no column.
        self.terms = ("l2", "linf") if loss == "mse_linf" and weights.linf else ()
        self.columns = (*self.terms, "usage", "perplexity")
        self.hps = hps
        self._latents = torch.empty(0)

    def to(self, device: torch.device) -> None:
        self.model.to(device)
        self.stage1.to(device)

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
        counts = torch.bincount(codes.flatten(), minlength=self.codes)
        counts = distributed.sum_(counts)
        shares = counts[counts > 0] / counts.sum()
        perplexity = torch.exp(-(shares * shares.log()).sum())
        return {"usage": float((counts > 0).sum()), "perplexity": float(perplexity)}

    def validation_loss(self, averaged: nn.Module, batch: Prepared) -> float:
        mixture, target = batch
        total, _ = self._loss(target, averaged(mixture))
        return float(total)

    def save(self, averaged: nn.Module, path: Path, step: int) -> None:
        assert isinstance(averaged, Conditioned)
        jukebox.save_encoder(averaged.folded(), path, step, self.hps)

    def sample(self, averaged: nn.Module, excerpt: torch.Tensor) -> dict[str, torch.Tensor]:
        mixture, target = excerpt[:, :1], excerpt[:, 1:2]
        _, quantised = self.stage1.quantise(averaged(mixture))
        return {
            "mixture": mixture,
            "target": target,
            "separation": self.stage1.decode(quantised),
        }
