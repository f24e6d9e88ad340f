"""What the two trainings minimise.

Stage 1 (and the pretraining): l2 + 0.02 linf + 1.0 multispectral + 0.02 commit, after Jukebox.
Stage 2: the distance between the latents of the mixture and those of the stem. Audio is (B, 1, T),
latents are (B, D, N); every loss is a scalar in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import kernels
from ..base.errors import UserError

# (n_fft, hop, window) in samples, at 44.1 kHz in Jukebox.
MULTISPECTRAL_STFTS = ((2048, 240, 1200), (1024, 120, 600), (512, 50, 240))
BANDWIDTH_STFT = (2048, 256, 1536)


@dataclass(frozen=True)
class Bandwidths:
    """How strong the training audio is; the losses are divided by it. See `measure_bandwidths`."""

    l2: float
    """Variance of the samples."""
    spec: float
    """Mean over segments of the Frobenius norm of the magnitude spectrogram."""
    l1: float = 1.0
    """Mean absolute sample."""


def stft_magnitude(audio: Tensor, n_fft: int, hop: int, window: int) -> Tensor:
    """|STFT| of (B, T) -> (B, n_fft // 2 + 1, 1 + T // hop), one-sided, unnormalised.

    Periodic Hann of length `window` centred in n_fft, frames centred with reflect padding.
    """
    _check_length(audio, n_fft)
    hann = torch.hann_window(window, dtype=audio.dtype, device=audio.device)
    return torch.stft(audio, n_fft, hop, window, hann, return_complex=True).abs()


def _check_length(audio: Tensor, n_fft: int) -> None:
    if audio.shape[-1] <= n_fft // 2:
        raise UserError(
            f"segments of {audio.shape[-1]} samples are too short for an STFT of {n_fft}; "
            f"use segments of more than {n_fft // 2} samples."
        )


def multispectral_loss(target: Tensor, reconstruction: Tensor) -> Tensor:
    """Frobenius norm of the difference of spectrograms, the mean of three resolutions.

    (B, 1, T) twice -> (B,). Neither squared nor averaged over bins. No gradient reaches the target.
    `spectral_distance` defines it; `kernels` computes the same, up to rounding, faster on a CPU.
    UserError for signals of 1024 samples and fewer, which the longest STFT cannot reflect.
    """
    target, reconstruction = target.detach().squeeze(1), reconstruction.squeeze(1)
    _check_length(reconstruction, max(n_fft for n_fft, _, _ in MULTISPECTRAL_STFTS))
    return kernels.spectral_distance(
        target, reconstruction, MULTISPECTRAL_STFTS, plain=spectral_distance
    )


def spectral_distance(
    target: Tensor, other: Tensor, stfts: Sequence[tuple[int, int, int]]
) -> Tensor:
    """The mean over `stfts` of the distance of spectrograms: (B, T), (B, T) -> (B,)."""
    norms = []
    for stft in stfts:
        with torch.no_grad():
            wanted = stft_magnitude(target, *stft)
        difference = stft_magnitude(other, *stft) - wanted
        norms.append(torch.linalg.vector_norm(difference, dim=(1, 2)))
    return torch.stack(norms).mean(0)


def linf_loss(target: Tensor, other: Tensor, k: int = 2048) -> Tensor:
    """Mean of each item's k largest squared errors (of all, if fewer): (B, ...) twice -> (B,)."""
    errors = (other - target).square().flatten(1)
    return errors.topk(min(k, errors.shape[1]), dim=1, sorted=False).values.mean(1)


def reconstruction_losses(
    target: Tensor, reconstruction: Tensor, bandwidths: Bandwidths, linf_k: int = 2048
) -> dict[str, Tensor]:
    """l2, linf and multispectral of audio (B, 1, T) and its reconstruction, over the bandwidths.

    Raises UserError for segments of 1024 samples and fewer, which the longest STFT cannot reflect.
    """
    weights = {"l2": 1.0, "linf": 1.0, "multispectral": 1.0}
    return _audio_terms(target, reconstruction, bandwidths, linf_k, weights)


def _audio_terms(
    target: Tensor,
    reconstruction: Tensor,
    bandwidths: Bandwidths,
    linf_k: int,
    weights: dict[str, float],
) -> dict[str, Tensor]:
    """The terms with a weight other than 0, in float32 also under autocast."""
    target, reconstruction = target.detach().float(), reconstruction.float()
    terms = {}
    if weights["l2"]:
        terms["l2"] = F.mse_loss(reconstruction, target) / bandwidths.l2
    if weights["linf"]:
        terms["linf"] = linf_loss(target, reconstruction, linf_k).mean() / bandwidths.l2
    if weights["multispectral"]:
        terms["multispectral"] = multispectral_loss(target, reconstruction).mean() / bandwidths.spec
    return terms


def commit_loss(latents: Tensor, quantised: Tensor) -> Tensor:
    """Mean squared distance of the latents to their codes; moves the latents only."""
    return F.mse_loss(latents.float(), quantised.detach().float())


def stage1_loss(
    target: Tensor,
    reconstruction: Tensor,
    latents: Tensor,
    quantised: Tensor,
    bandwidths: Bandwidths,
    *,
    l2: float = 1.0,
    linf: float = 0.02,
    multispectral: float = 1.0,
    commit: float = 0.02,
    linf_k: int = 2048,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of l2, linf, multispectral and commit, and the terms without their weights.

    target, reconstruction (B, 1, T); latents, quantised (B, D, N); the keyword arguments are the
    weights. A term of weight 0 is neither computed nor listed. The listed terms are detached.
    """
    weights = {"l2": l2, "linf": linf, "multispectral": multispectral, "commit": commit}
    terms = _audio_terms(target, reconstruction, bandwidths, linf_k, weights)
    if commit:
        terms["commit"] = commit_loss(latents, quantised)
    if not terms:
        raise UserError("stage 1: every loss weight is 0; set at least one.")
    return _weighted(terms, weights), {name: term.detach() for name, term in terms.items()}


def stage2_loss(
    target_latents: Tensor,
    latents: Tensor,
    kind: str = "mse",
    linf: float = 0.02,
    linf_k: int = 2048,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The distance of the mixture's latents from the stem's, and its terms without their weights.

    Both (B, D, N), before quantising; no bandwidths. kind "mse" is the paper's text; "mse_linf",
    its published code, adds `linf` times the mean of each item's `linf_k` largest squared errors.
    """
    if kind not in ("mse", "mse_linf"):
        raise UserError(f"stage 2: loss is {kind!r}; choose mse or mse_linf.")
    target_latents, latents = target_latents.detach().float(), latents.float()
    terms = {"l2": F.mse_loss(latents, target_latents)}
    if kind == "mse_linf" and linf:
        terms["linf"] = linf_loss(target_latents, latents, linf_k).mean()
    total = _weighted(terms, {"l2": 1.0, "linf": linf})
    return total, {name: term.detach() for name, term in terms.items()}


def _weighted(terms: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()


def measure_bandwidths(
    audio: Iterable[np.ndarray], sample_rate: int, seconds: float = 600.0
) -> Bandwidths:
    """The bandwidths of training segments (channels, samples), of the first `seconds` of them.

    l2 = E[s^2] - E[s]^2 and l1 = E|s| over the samples of all channels; spec is the mean over
    segments of ||STFT(2048, 256, 1536) of the channels' mean||_F. A spectrogram's norm grows with
    its length: pass segments as long as those of the training.
    """
    samples = values = 0
    total = squares = absolutes = 0.0
    spectrogram_norms = []
    for segment in audio:
        if samples >= seconds * sample_rate:
            break
        signal = np.asarray(segment, dtype=np.float64)
        samples += signal.shape[1]
        values += signal.size
        total += float(signal.sum())
        squares += float(np.square(signal).sum())
        absolutes += float(np.abs(signal).sum())
        mono = torch.from_numpy(signal.mean(0, keepdims=True))
        spectrogram_norms.append(float(stft_magnitude(mono, *BANDWIDTH_STFT).norm()))
    if not values:
        raise UserError("no audio to measure the loss bandwidths on; is the training folder empty?")
    l2 = squares / values - (total / values) ** 2
    spec = float(np.mean(spectrogram_norms))
    if not (l2 > 0 and spec > 0 and np.isfinite(l2) and np.isfinite(spec)):
        raise UserError(
            f"the training audio has variance {l2} and spectral norm {spec}: silent or broken; "
            "check the stem's files."
        )
    return Bandwidths(l2=l2, spec=spec, l1=absolutes / values)
