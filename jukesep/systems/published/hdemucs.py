"""Hybrid Demucs with published weights: `HDEMUCS_HIGH_MUSDB` of torchaudio.

Défossez, Hybrid Spectrogram and Waveform Source Separation, 2021. A song is separated as in
torchaudio's tutorial (Music Source Separation with Hybrid Demucs): chunks of 11 s that overlap by
0.1 s with linear fades, after the mean and the deviation of the mono mixture have been removed.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ...audio import Audio
from ..system import System
from .catalogue import about
from .weights import fill, only, read

SOURCES = ("drums", "bass", "other", "vocals")
"""The order of torchaudio's bundle."""
RATE = 44_100
CHUNK = 11 * RATE
FADE = RATE // 10


def load(weights: Path, device: str = "cpu") -> System:
    """Load a state dict of `torchaudio.models.hdemucs_high`. UserError if it is not one."""
    from torchaudio.models import hdemucs_high

    state = read(only(weights))
    model = hdemucs_high(list(SOURCES))
    fill(model, state)
    model.to(device).eval()

    def separate(mixture: Audio, sample_rate: int) -> dict[str, Audio]:
        with torch.inference_mode():
            stems = separated(model, torch.from_numpy(mixture).to(device)).cpu().numpy()
        return dict(zip(SOURCES, stems, strict=True))

    trained_on, licence = about("hdemucs", [state.sha256], [state.path.name])
    return System(
        name="HDEMUCS_HIGH_MUSDB",
        separate=separate,
        trained_on=trained_on,
        licence=licence,
        sample_rate=RATE,
        channels=2,
        long_songs="chunks of 11 s that overlap by 0.1 s with linear fades",
    )


def level(song: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of a song's mono mixture, which Demucs removes: (channels, samples)."""
    mono = song.mean(0)
    return mono.mean(), mono.std() + 1e-8


def separated(model: nn.Module, song: Tensor, chunk: int = CHUNK, fade: int = FADE) -> Tensor:
    """(stems, channels, samples) of a song (channels, samples), in chunks of `chunk` samples.

    The last `fade` samples of a chunk fade out while the next chunk fades in. The tutorial also
    fades out a song that fits into its first chunk; here its end is kept.
    """
    mean, deviation = level(song)
    given, length = (song - mean) / deviation, song.shape[-1]
    ramp = torch.linspace(0, 1, fade, device=song.device)
    stems: Tensor | None = None
    start, end = 0, chunk
    while stems is None or start < length - fade:
        part = model(given[None, :, start:end])[0]
        if start > 0:
            part[..., :fade] *= ramp
        if end < length:
            part[..., -fade:] *= ramp.flip(0)
        if stems is None:
            stems = part.new_zeros(*part.shape[:-1], length)
        stems[..., start:end] += part
        start, end = end - fade, end + chunk
    return stems * deviation + mean
