"""The networks of the peers: libraries' own, at the sizes that the parameters give.

A peer works on one channel and returns all stems. It says what a step of its training is given
(`prepare`, which runs ahead of the step), and it separates whole songs (`separate`).

    open_unmix   openunmix.model: one network of spectrograms for each stem (Stoeter et al. 2019)
    hdemucs      torchaudio.models.HDemucs: waveform and spectrogram (Defossez 2021)
    conv_tasnet  torchaudio.models.ConvTasNet: masks on learnt filters (Luo and Mesgarani 2019)
    demucs       demucs.demucs in the form of version 2: waveform, GLU, LSTM (Defossez et al. 2019)
    wave_unet    the same class without GLU and LSTM: like Wave-U-Net (Stoller et al. 2018)
    control      our own small mask network: a control, not a published system
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..songs.manifest import STEMS
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


def spectrum(audio: Tensor, window: int, hop: int) -> Tensor:
    """The STFT with a periodic Hann window: (..., samples) to complex (..., bins, frames)."""
    flat = audio.reshape(-1, audio.shape[-1])
    hann = torch.hann_window(window, device=audio.device)
    found = torch.stft(flat, window, hop, window=hann, return_complex=True)
    return found.reshape(*audio.shape[:-1], *found.shape[-2:])


def sound(spectra: Tensor, window: int, hop: int, samples: int) -> Tensor:
    """The inverse of `spectrum`: (..., bins, frames) to (..., samples)."""
    flat = spectra.reshape(-1, *spectra.shape[-2:])
    hann = torch.hann_window(window, device=spectra.device)
    found = torch.istft(flat, window, hop, window=hann, length=samples)
    return found.reshape(*spectra.shape[:-2], samples)


def _hdemucs(channels: int, depth: int, window: int) -> Peer:
    from torchaudio.models import HDemucs

    return Waveform(HDemucs(list(STEMS), 1, channels, nfft=window, depth=depth))


def _conv_tasnet(filters: int, features: int, hidden: int, layers: int, stacks: int) -> Peer:
    from torchaudio.models import ConvTasNet

    return Waveform(
        ConvTasNet(
            len(STEMS),
            enc_num_feats=filters,
            msk_num_feats=features,
            msk_num_hidden_feats=hidden,
            msk_num_layers=layers,
            msk_num_stacks=stacks,
        )
    )


def _demucs_form(channels: int, depth: int, **form: Any) -> Peer:
    from demucs.demucs import Demucs

    # Without what later versions added: residual branches, normalisation inside, GELU.
    form |= {"dconv_mode": 0, "norm_starts": depth, "gelu": False}
    return Waveform(Demucs(list(STEMS), 1, channels, depth=depth, **form))


def _demucs(channels: int, depth: int, lstm: int) -> Peer:
    return _demucs_form(channels, depth, lstm_layers=lstm)


def _wave_unet(channels: int, depth: int) -> Peer:
    return _demucs_form(channels, depth, glu=False)


BUILDERS: Mapping[str, Callable[..., Peer]] = {
    "open_unmix": OpenUnmix,
    "hdemucs": _hdemucs,
    "conv_tasnet": _conv_tasnet,
    "demucs": _demucs,
    "wave_unet": _wave_unet,
    "control": Control,
}
# The packages beside torch and torchaudio that a network comes from.
PACKAGES = {"open_unmix": ("openunmix",), "demucs": ("demucs",), "wave_unet": ("demucs",)}


def build(name: str, sizes: Mapping[str, int]) -> Peer:
    """A peer with random weights of the given sizes, the names of its recipe's `network`."""
    return BUILDERS[name](**sizes)
