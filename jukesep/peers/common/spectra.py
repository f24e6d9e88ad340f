"""The spectra that peers work on: the STFT of torch, and its inverse."""

from __future__ import annotations

import torch
from torch import Tensor


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
