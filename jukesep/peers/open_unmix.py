"""Open-Unmix: one network of spectrograms for each stem (Stoeter et al. 2019), openunmix.model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..songs.manifest import STEMS
from .common.peer import Peer, Prepared
from .common.spectra import spectrum

LIBRARIES = ("openunmix",)


class OpenUnmix(Peer):
    """One network for each stem, from magnitudes to magnitudes; squared error.

    `separate` uses the phase of the mixture, or the package's Wiener filter with `iterations`.
    The networks scale their input by the statistics of the training songs: `measure`.
    """

    variants: Mapping[str, Mapping[str, Any]] = {
        "": {"iterations": 0},
        "_wiener": {"iterations": 1},
    }
    long_songs = "whole, the Wiener filter over windows of 300 frames"

    def __init__(self, hidden: int, layers: int, window: int) -> None:
        from openunmix import model

        super().__init__()
        self.window, self.hop = window, window // 4
        self.targets = nn.ModuleDict(
            {stem: model.OpenUnmix(window // 2 + 1, 1, hidden, layers) for stem in STEMS}
        )

    def prepare(self, batch: Tensor) -> Prepared:
        magnitudes = spectrum(batch, self.window, self.hop).abs()
        return magnitudes[:, :1], magnitudes[:, 1:]

    def forward(self, magnitudes: Tensor) -> Tensor:
        return torch.cat([network(magnitudes) for network in self.targets.values()], dim=1)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        # Each network has a loss of its own: the sum of the four means.
        return F.mse_loss(output, target) * len(STEMS)

    @torch.no_grad()
    def measure(self, mixtures: Iterable[Tensor]) -> None:
        """Scale the input by the mean and deviation of each frequency, as the package does."""
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for mixture in mixtures:
            magnitudes = spectrum(mixture, self.window, self.hop).abs()[0].double()
            count += magnitudes.shape[1]
            total = total + magnitudes.sum(1)
            squares = squares + magnitudes.square().sum(1)
        mean = total / count
        deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
        deviation = deviation.clamp(min=max(1e-4 * float(deviation.max()), 1e-12))
        for name, values in (("input_mean", -mean), ("input_scale", 1 / deviation)):
            for network in self.targets.values():
                network.get_parameter(name).copy_(values)

    def separate(self, mixture: Tensor, sample_rate: int, iterations: int = 0) -> Tensor:
        from openunmix import model

        separator = model.Separator(
            dict(self.targets),
            niter=iterations,
            sample_rate=sample_rate,
            n_fft=self.window,
            n_hop=self.hop,
            nb_channels=1,
        )
        stems: Tensor = separator.to(mixture.device)(mixture[:, None])
        return stems[:, :, 0]


def build(hidden: int, layers: int, window: int) -> Peer:
    """A network with random weights."""
    return OpenUnmix(hidden, layers, window)
