"""Our own small mask network: a control, not a published system."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..songs.manifest import STEMS
from .common.overlap import overlapped
from .common.peer import CHUNK_SECONDS, Peer, Prepared
from .common.spectra import sound, spectrum

LIBRARIES = ()


class Control(Peer):
    """A U-Net on the magnitude spectrogram with four softmax masks; the phase of the mixture."""

    def __init__(self, channels: int, depth: int, window: int) -> None:
        super().__init__()
        self.window, self.hop, self.depth = window, window // 4, depth
        widths = [1, *(channels * 2**level for level in range(depth))]
        self.down = nn.ModuleList(
            nn.Conv2d(a, b, 5, stride=2, padding=2) for a, b in pairwise(widths)
        )
        ups = [*reversed(widths[1:]), len(STEMS)]
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(a if level == 0 else 2 * a, b, 4, stride=2, padding=1)
            for level, (a, b) in enumerate(pairwise(ups))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in [*widths[1:], *ups[1:-1]])

    def prepare(self, batch: Tensor) -> Prepared:
        magnitudes = spectrum(batch, self.window, self.hop).abs()
        return magnitudes[:, :1], magnitudes[:, 1:]

    def masks(self, magnitudes: Tensor) -> Tensor:
        """(rows, 1, bins, frames) to four masks that sum to one."""
        bins, frames = magnitudes.shape[2:]
        step = 2**self.depth
        x = F.pad(torch.log1p(magnitudes), (0, -frames % step, 0, -bins % step))
        skips: list[Tensor] = []
        norms = iter(self.norms)
        for layer in self.down:
            x = F.leaky_relu(next(norms)(layer(x)), 0.2)
            skips.append(x)
        skips.pop()
        for layer in self.up[:-1]:
            x = torch.cat([F.relu(next(norms)(layer(x))), skips.pop()], dim=1)
        return self.up[-1](x)[..., :bins, :frames].softmax(dim=1)

    def forward(self, magnitudes: Tensor) -> Tensor:
        return self.masks(magnitudes) * magnitudes

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return F.l1_loss(output, target)

    def separate(self, mixture: Tensor, sample_rate: int) -> Tensor:
        def run(part: Tensor) -> Tensor:
            mixed = spectrum(part[:, None], self.window, self.hop)
            return sound(self.masks(mixed.abs()) * mixed, self.window, self.hop, part.shape[-1])

        return overlapped(run, mixture, CHUNK_SECONDS * sample_rate)


def build(channels: int, depth: int, window: int) -> Peer:
    """A network with random weights."""
    return Control(channels, depth, window)
