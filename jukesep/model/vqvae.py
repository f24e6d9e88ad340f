"""Jukebox's VQ-VAE: an encoder, a codebook and a decoder over mono waveforms.

    audio (B, 1, T) -Encoder> latents (B, D, N) -Codebook> quantised (B, D, N) -Decoder> (B, 1, T)

with N = T / hop. The paper fine-tunes the bottom level of Jukebox "5b" (`Architecture()`). The two
levels above it stack more of the same layers: `downs=(3, 2)` and `downs=(3, 2, 2)`. Audio is float
in [-1, 1]; the model has no normalisation layers and no tanh.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import kernels
from ..base.errors import UserError
from .codebook import Codebook


@dataclass(frozen=True)
class Architecture:
    """The sizes of all layers; by default the paper's: the bottom level of Jukebox "5b"."""

    width: int = 64
    """Channels inside the residual stacks."""
    depth: int = 8
    """Residual blocks in each stack."""
    downs: tuple[int, ...] = (3,)
    """Halvings of the time axis in each block; Jukebox's level L has L + 1 blocks."""
    latent_dim: int = 64
    codes: int = 2048
    dilation_growth: int = 3
    """Block j of a stack has dilation `dilation_growth ** j`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "downs", tuple(self.downs))
        if not self.downs:
            raise UserError("model: downs is empty; name at least one block, for example [3].")
        sizes = [(field.name, getattr(self, field.name)) for field in fields(self)]
        for name, value in sizes:
            for number in value if name == "downs" else (value,):
                if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                    raise UserError(f"model: {name} is {value!r}; it takes integers of at least 1.")
        if self.dilation_growth ** (self.depth - 1) >= 2**31:
            raise UserError(
                f"model: dilation_growth {self.dilation_growth} at depth {self.depth} gives "
                "dilations of 2^31 and more; lower one of the two."
            )

    @property
    def hop(self) -> int:
        """Samples per latent."""
        return 2 ** sum(self.downs)


class ResidualBlock(nn.Module):
    """x + pointwise(relu(dilated(relu(x)))), of the same shape as x."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.dilated = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
        self.pointwise = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        # Only the second ReLU may overwrite its input: the skip connection still needs x.
        return x + self.pointwise(F.relu(self.dilated(F.relu(x)), inplace=True))


def residual_stack(architecture: Architecture) -> nn.Sequential:
    """The residual blocks of one stage, smallest dilation first."""
    growth = architecture.dilation_growth
    return nn.Sequential(
        *(ResidualBlock(architecture.width, growth**j) for j in range(architecture.depth))
    )


class EncoderStage(nn.Module):
    """Halve the time axis, then apply a residual stack: (B, channels, T) -> (B, width, T / 2)."""

    def __init__(self, channels: int, architecture: Architecture) -> None:
        super().__init__()
        self.down = nn.Conv1d(channels, architecture.width, 4, stride=2, padding=1)
        self.residuals = residual_stack(architecture)

    def forward(self, x: Tensor) -> Tensor:
        return self.residuals(self.down(x))


class EncoderBlock(nn.Module):
    """Stages, then a projection to latents: (B, channels, T) -> (B, latent_dim, T / 2^downs)."""

    def __init__(self, channels: int, downs: int, architecture: Architecture) -> None:
        super().__init__()
        width = architecture.width
        self.stages = nn.Sequential(
            *(EncoderStage(width if i else channels, architecture) for i in range(downs))
        )
        self.end = nn.Conv1d(width, architecture.latent_dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.stages(x))


class Encoder(nn.Module):
    """Audio (B, 1, T) to latents (B, latent_dim, T / hop); T is a multiple of the hop.

    `layers` defines the computation; `kernels` computes the same, up to rounding, faster. UserError
    for audio of another shape.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.blocks = nn.Sequential(
            *(
                EncoderBlock(architecture.latent_dim if b else 1, downs, architecture)
                for b, downs in enumerate(architecture.downs)
            )
        )
        self._network = kernels.Network(self, ResidualBlock)

    def forward(self, audio: Tensor) -> Tensor:
        hop = self.architecture.hop
        if audio.ndim != 3 or audio.shape[1] != 1 or audio.shape[2] < hop or audio.shape[2] % hop:
            raise UserError(
                f"encoder: audio has shape {tuple(audio.shape)}; it must be (batch, 1, samples) "
                f"with samples a multiple of {hop}: pad the end with zeros."
            )
        return kernels.run(self._network, audio, plain=self.layers)

    def layers(self, audio: Tensor) -> Tensor:
        """The definition: PyTorch's layers, one after the other."""
        return self.blocks(audio)


class DecoderStage(nn.Module):
    """Apply a residual stack, then double the time axis: (B, width, N) -> (B, channels, 2 N)."""

    def __init__(self, channels: int, architecture: Architecture) -> None:
        super().__init__()
        # The mirror image of an encoder stage: largest dilation first.
        self.residuals = nn.Sequential(*reversed(residual_stack(architecture)))
        self.up = nn.ConvTranspose1d(architecture.width, channels, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.residuals(x))


class DecoderBlock(nn.Module):
    """A projection from latents, then stages: (B, latent_dim, N) -> (B, latent_dim, N 2^downs)."""

    def __init__(self, downs: int, architecture: Architecture) -> None:
        super().__init__()
        width, latent_dim = architecture.width, architecture.latent_dim
        self.start = nn.Conv1d(latent_dim, width, 3, padding=1)
        self.stages = nn.Sequential(
            *(
                DecoderStage(latent_dim if i == downs - 1 else width, architecture)
                for i in range(downs)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(self.start(x))


class Decoder(nn.Module):
    """Quantised latents (B, latent_dim, N) to audio (B, 1, N hop); computed as an `Encoder` is."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.blocks = nn.Sequential(
            *(DecoderBlock(downs, architecture) for downs in reversed(architecture.downs))
        )
        self.out = nn.Conv1d(architecture.latent_dim, 1, 3, padding=1)
        self._network = kernels.Network(self, ResidualBlock)

    def forward(self, latents: Tensor) -> Tensor:
        return kernels.run(self._network, latents, plain=self.layers)

    def layers(self, latents: Tensor) -> Tensor:
        """The definition: PyTorch's layers, one after the other."""
        return self.out(self.blocks(latents))


class VQVAE(nn.Module):
    """One level of Jukebox: encoder, codebook, decoder.

    Weights start random (PyTorch's defaults) and the codebook starts empty (see `Codebook`).
    """

    def __init__(self, architecture: Architecture | None = None) -> None:
        super().__init__()
        self.architecture = architecture or Architecture()
        self.encoder = Encoder(self.architecture)
        self.decoder = Decoder(self.architecture)
        self.codebook = Codebook(self.architecture.codes, self.architecture.latent_dim)

    def encode(self, audio: Tensor) -> Tensor:
        """Audio (B, 1, T) -> latents (B, latent_dim, T / hop), before quantising."""
        return self.encoder(audio)

    def quantise(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (B, latent_dim, N) -> codes (B, N) int64, quantised (B, latent_dim, N)."""
        return self.codebook.quantise(latents)

    def decode(self, quantised: Tensor) -> Tensor:
        """Quantised latents (B, latent_dim, N) -> audio (B, 1, N hop)."""
        return self.decoder(quantised)

    def forward(self, audio: Tensor) -> Tensor:
        """The codec: audio (B, 1, T) -> its reconstruction D(Q(E(audio))), (B, 1, T)."""
        return self.decode(self.quantise(self.encode(audio))[1])

    def context(self) -> int:
        """Samples of context that a chunk needs on either side, a multiple of the hop.

        If the codec runs over a chunk widened by this much, or up to the song's own ends, its
        output for the chunk equals that part of the whole song's output.
        """
        return _context(self.architecture)


@cache  # building the layers takes a third of a short separation
def _context(architecture: Architecture) -> int:
    """See `VQVAE.context`."""
    hop = architecture.hop
    encoder_left, encoder_right = encoder_receptive_field(architecture)
    decoder_left, decoder_right = decoder_receptive_field(architecture)
    # The chunk depends on latents from decoder_left before its first to decoder_right after its
    # last one, which begins one hop before the chunk's end.
    left = decoder_left * hop + encoder_left
    right = (decoder_right - 1) * hop + encoder_right + 1
    return math.ceil(max(left, right) / hop) * hop


def _reach(module: nn.Module, first: int, last: int) -> tuple[int, int]:
    """The first and last input positions that the output positions first..last depend on.

    Requires that modules are registered in the order they run in.
    """
    layers = [
        layer for layer in module.modules() if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d)
    ]
    for layer in reversed(layers):
        stride, padding = layer.stride[0], int(layer.padding[0])
        span = layer.dilation[0] * (layer.kernel_size[0] - 1)
        if isinstance(layer, nn.ConvTranspose1d):
            # Output i takes input j for i = stride * j - padding + m, 0 <= m <= span.
            first, last = -((span - first - padding) // stride), (last + padding) // stride
        else:
            first, last = first * stride - padding, last * stride - padding + span
    return first, last


def encoder_receptive_field(architecture: Architecture) -> tuple[int, int]:
    """(left, right): latent t depends on samples hop*t - left to hop*t + right."""
    with torch.device("meta"):
        first, last = _reach(Encoder(architecture), 0, 0)
    return -first, last


def decoder_receptive_field(architecture: Architecture) -> tuple[int, int]:
    """(left, right): the hop samples of latent n depend on latents n - left to n + right."""
    with torch.device("meta"):
        first, last = _reach(Decoder(architecture), 0, architecture.hop - 1)
    return -first, last


def receptive_field(architecture: Architecture) -> tuple[int, int]:
    """(left, right): sample t of the reconstruction depends on samples t - left to t + right.

    The window depends on t's position in its hop; these are the maxima over all positions.
    """
    with torch.device("meta"):
        encoder, decoder = Encoder(architecture), Decoder(architecture)
    windows = []
    for phase in range(architecture.hop):
        first, last = _reach(encoder, *_reach(decoder, phase, phase))
        windows.append((phase - first, last - phase))
    return max(left for left, _ in windows), max(right for _, right in windows)
