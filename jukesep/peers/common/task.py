"""The task of a peer's training: separate mixtures into stems, by the loss of its network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...base.files import atomic
from ...base.seeds import torch_seed
from ...songs.manifest import STEMS
from ...training.tasks import Prepared, Terms
from .peer import Peer


class Separation:
    """Train a peer on (mixture, stems). Its dropout depends on the seed and the step only."""

    columns = ()
    codes = 0  # it has no codebook

    def __init__(self, peer: Peer, seed: int, about: Mapping[str, Any]) -> None:
        self.model = peer
        self.seed = seed
        self.about = dict(about)

    def to(self, device: torch.device) -> None:
        self.model.to(device)

    @torch.no_grad()
    def prepare(self, batch: Tensor) -> Prepared:
        return self.model.prepare(batch)

    def loss(self, batch: Prepared, step: int) -> tuple[Tensor, Terms]:
        given, target = batch
        torch.manual_seed(torch_seed(self.seed, "peer/dropout", step))
        return self.model.loss(self.model(given), target), {}

    def state(self) -> Mapping[str, float]:
        return {}

    def validation_loss(self, averaged: nn.Module, batch: Prepared) -> float:
        given, target = batch
        peer = self._with_statistics(averaged)
        return float(peer.loss(peer(given), target))

    def save(self, averaged: nn.Module, path: Path, step: int) -> None:
        weights = self._with_statistics(averaged).state_dict()
        content = {name: value.cpu() for name, value in weights.items()}
        with atomic(path) as temporary:
            torch.save({"peer": self.about, "step": step, "model": content}, temporary)

    def sample(self, averaged: nn.Module, excerpt: Tensor) -> dict[str, Tensor]:
        peer = self._with_statistics(averaged)
        stems = peer.separate(excerpt[:, 0], self.about["sample_rate"])
        return {"mixture": excerpt[:, :1]} | {
            stem: stems[:, place : place + 1] for place, stem in enumerate(STEMS)
        }

    def _with_statistics(self, averaged: nn.Module) -> Peer:
        """The averaged weights with the current statistics of the batch normalisation."""
        assert isinstance(averaged, Peer)
        current = dict(self.model.named_buffers())
        for name, buffer in averaged.named_buffers():
            buffer.copy_(current[name])
        averaged.eval()
        return averaged
