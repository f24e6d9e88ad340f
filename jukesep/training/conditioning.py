"""Train an encoder on well-scaled numbers, and save it in its usual form.

Audio is soft (a root mean square near 0.1) and latents are not: with PyTorch's initial weights, an
encoder first has to learn the scales. A conditioned encoder computes

    mean + deviation * encoder(scale * audio)

with a fixed scale, and the mean and deviation of the latents that it learns, dimension by
dimension. All three fold into the first and last convolution, so that a checkpoint is an encoder as
in Jukebox. The optimiser sees the other numbers: with Adam, whose steps do not depend on the scale
of a gradient, the first and last layers learn faster.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..model.vqvae import Encoder


class Conditioned(nn.Module):
    """`mean + deviation * encoder(scale * audio)`: (B, 1, T) to (B, latent_dim, T / hop).

    `mean` and `deviation` have a number for each dimension of the latents. The given encoder's
    output is kept if `keep` is true, as it must be for trained weights; otherwise its weights are
    taken as they are, which suits random ones.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        encoder: Encoder,
        scale: float = 1.0,
        mean: Tensor | None = None,
        deviation: Tensor | None = None,
        *,
        keep: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.scale = scale
        mean = torch.zeros(1) if mean is None else mean
        deviation = torch.ones(1) if deviation is None else deviation
        self.register_buffer("mean", mean.float().reshape(-1, 1))
        self.register_buffer("deviation", deviation.float().reshape(-1, 1))
        if keep:
            _rescale(encoder, 1 / scale, -self.mean / self.deviation, 1 / self.deviation)

    def forward(self, audio: Tensor) -> Tensor:
        latents: Tensor = self.encoder(self.scale * audio)
        return self.mean + self.deviation * latents

    def folded(self) -> Encoder:
        """An encoder of Jukebox's form that computes the same, up to rounding."""
        encoder = copy.deepcopy(self.encoder)
        _rescale(encoder, self.scale, self.mean, self.deviation)
        return encoder


@torch.no_grad()
def _rescale(encoder: Encoder, scale: float, mean: Tensor, deviation: Tensor) -> None:
    """Make an encoder compute `mean + deviation * encoder(scale * audio)`, in place."""
    convolutions = [layer for layer in encoder.modules() if isinstance(layer, nn.Conv1d)]
    first, last = convolutions[0], convolutions[-1]
    assert last.bias is not None
    first.weight.mul_(scale)
    last.weight.mul_(deviation[:, :, None])
    last.bias.mul_(deviation[:, 0]).add_(mean[:, 0])


@torch.no_grad()
def statistics(latents: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of latents (dim, N) by dimension: two tensors (dim,), float64."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for item in latents:
        wide = item.double()
        count += wide.shape[1]
        total = total + wide.sum(1)
        squares = squares + wide.square().sum(1)
    mean = total / count
    # A dimension that never moves is left as it is.
    variance = (squares / count - mean.square()).clamp_min(0)
    deviation = variance.sqrt()
    return mean, torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation))
