"""What a peer is: a network that separates, and how it is trained.

A peer works on one channel and returns all stems. It says what a step of its training is given
(`prepare`, which runs ahead of the step), and it separates whole songs (`separate`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ...songs.manifest import STEMS
from .overlap import overlapped

Prepared = tuple[Tensor, Tensor]
CHUNK_SECONDS = 15  # of a song that are separated at a time, if the peer needs chunks


class Peer(nn.Module):
    """A network that separates one channel into STEMS, and how it is trained."""

    variants: Mapping[str, Mapping[str, Any]] = {"": {}}
    """Suffix of a system's name -> options of `separate`: ways to use the same weights."""
    long_songs = f"chunks of {CHUNK_SECONDS} s, a quarter of overlap, triangular weights"
    """How `separate` runs over a song, in words."""

    def prepare(self, batch: Tensor) -> Prepared:
        """Input and target of a step, for a batch (batch, 1 + stems, samples): mixture, stems."""
        raise NotImplementedError

    def measure(self, mixtures: Iterable[Tensor]) -> None:
        """Take what the network needs from mixtures of the training songs, each (1, samples)."""

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss of what `forward` made of the input."""
        raise NotImplementedError

    def separate(self, mixture: Tensor, sample_rate: int) -> Tensor:
        """Separate songs: (rows, samples) to (rows, stems, samples)."""
        raise NotImplementedError


class Waveform(Peer):
    """A network from samples (rows, 1, n) to the stems' (rows, stems, [1,] n); absolute error."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def prepare(self, batch: Tensor) -> Prepared:
        return batch[:, :1], batch[:, 1:]

    def forward(self, mixture: Tensor) -> Tensor:
        stems: Tensor = self.network(mixture)
        return stems.reshape(len(mixture), len(STEMS), -1)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return F.l1_loss(output, target)

    def separate(self, mixture: Tensor, sample_rate: int) -> Tensor:
        return overlapped(lambda part: self(part[:, None]), mixture, CHUNK_SECONDS * sample_rate)
