"""The losses of the trainings.

Pretraining and stage 1: l2 + 0.02 linf + 1.0 multispectral + 0.02 commit, as in Jukebox. Stage 2:
the distance between the latents of the mixture and of the stem. Audio is (B, 1, T), latents are
(B, D, N); every loss is a scalar in float32.
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

# (n_fft, hop, window) in samples; Jukebox uses them at 44.1 kHz.
MULTISPECTRAL_STFTS = ((2048, 240, 1200), (1024, 120, 600), (512, 50, 240))
BANDWIDTH_STFT = (2048, 256, 1536)


@dataclass(frozen=True)
class Bandwidths:
    """The strength of the training audio, which divides the losses. See `measure_bandwidths`."""

    l2: float
    """Variance of the samples."""
    spec: float
    """Mean over segments of the Frobenius norm of the magnitude spectrogram."""


def stft_magnitude(audio: Tensor, n_fft: int, hop: int, window: int) -> Tensor:
    """|STFT| of (B, T) -> (B, n_fft // 2 + 1, 1 + T // hop), one-sided, unnormalised.

    The window is a periodic Hann of length `window`, centred in n_fft. Frames are centred, with
    reflect padding. UserError if T is n_fft // 2 or less.
    """
    _check_length(audio, n_fft)
    hann = torch.hann_window(window, dtype=audio.dtype, device=audio.device)
    return torch.stft(audio, n_fft, hop, window, hann, return_complex=True).abs()


def _check_length(audio: Tensor, n_fft: int) -> None:
    if audio.shape[-1] <= n_fft // 2:
        raise UserError(
            f"segments of {audio.shape[-1]} samples are too short for an STFT of {n_fft}. "
            f"Use segments of more than {n_fft // 2} samples."
        )


def multispectral_loss(target: Tensor, reconstruction: Tensor) -> Tensor:
    """Frobenius norm of the difference of spectrograms, the mean over three resolutions.

    (B, 1, T), (B, 1, T) -> (B,). Neither squared nor averaged over bins. The target gets no
    gradient. `spectral_distance` defines it; `kernels` computes the same faster on a CPU, up to
    rounding. UserError for signals of 1024 samples or fewer, which the longest STFT cannot reflect.
    """
    target, reconstruction = target.detach().squeeze(1), reconstruction.squeeze(1)
    _check_length(reconstruction, max(n_fft for n_fft, _, _ in MULTISPECTRAL_STFTS))
    return kernels.spectral_distance(
        target, reconstruction, MULTISPECTRAL_STFTS, plain=spectral_distance
    )


def spectral_distance(
    target: Tensor, other: Tensor, stfts: Sequence[tuple[int, int, int]]
) -> Tensor:
    """Mean over `stfts` of the distance between spectrograms: (B, T), (B, T) -> (B,)."""
    norms = []
    for stft in stfts:
        with torch.no_grad():
            wanted = stft_magnitude(target, *stft)
        difference = stft_magnitude(other, *stft) - wanted
        norms.append(torch.linalg.vector_norm(difference, dim=(1, 2)))
    return torch.stack(norms).mean(0)


def linf_loss(target: Tensor, other: Tensor, k: int = 2048) -> Tensor:
    """Mean of the k largest squared errors of each item, or of all: (B, ...), (B, ...) -> (B,)."""
    errors = (other - target).square().flatten(1)
    return errors.topk(min(k, errors.shape[1]), dim=1, sorted=False).values.mean(1)


def commit_loss(latents: Tensor, quantised: Tensor) -> Tensor:
    """Mean squared distance of the latents to their codes. Only the latents get a gradient."""
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
    """Return the weighted sum of l2, linf, multispectral and commit, and the unweighted terms.

    target, reconstruction (B, 1, T); latents, quantised (B, D, N). `l2`, `linf`, `multispectral`
    and `commit` are weights: a term of weight 0 is neither computed nor returned. The returned
    terms are detached, and float32 even under autocast; those of audio are divided by the
    bandwidths. UserError if all weights are 0, or for segments of 1024 samples or fewer, which the
    longest STFT cannot reflect.
    """
    weights = {"l2": l2, "linf": linf, "multispectral": multispectral, "commit": commit}
    target, reconstruction = target.detach().float(), reconstruction.float()
    terms = {}
    if l2:
        terms["l2"] = F.mse_loss(reconstruction, target) / bandwidths.l2
    if linf:
        terms["linf"] = linf_loss(target, reconstruction, linf_k).mean() / bandwidths.l2
    if multispectral:
        terms["multispectral"] = multispectral_loss(target, reconstruction).mean() / bandwidths.spec
    if commit:
        terms["commit"] = commit_loss(latents, quantised)
    if not terms:
        raise UserError("stage 1: every loss weight is 0. Set at least one.")
    return _weighted(terms, weights), {name: term.detach() for name, term in terms.items()}


def stage2_loss(
    target_latents: Tensor,
    latents: Tensor,
    kind: str = "mse",
    linf: float = 0.02,
    linf_k: int = 2048,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the distance between the latents of mixture and stem, and the unweighted terms.

    Both latents are (B, D, N), before quantisation. No bandwidths are used. `kind` "mse" is the
    paper's text. "mse_linf" is its published code: it adds `linf` times the mean of each item's
    `linf_k` largest squared errors. UserError for another kind.
    """
    if kind not in ("mse", "mse_linf"):
        raise UserError(f"stage 2: loss is {kind!r}. Choose mse or mse_linf.")
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
    """Measure the bandwidths of training segments (channels, samples) over the first `seconds`.

    l2 = E[s^2] - E[s]^2 over the samples of all channels. spec is the mean over segments of
    ||STFT(2048, 256, 1536) of the channels' mean||_F. The norm of a spectrogram grows with its
    length, so pass segments as long as those of the training. UserError if there is no audio, or if
    it is silent or not finite.
    """
    samples = values = 0
    total = squares = 0.0
    spectrogram_norms = []
    for segment in audio:
        if samples >= seconds * sample_rate:
            break
        signal = np.asarray(segment, dtype=np.float64)
        samples += signal.shape[1]
        values += signal.size
        total += float(signal.sum())
        squares += float(np.square(signal).sum())
        mono = torch.from_numpy(signal.mean(0, keepdims=True))
        spectrogram_norms.append(float(stft_magnitude(mono, *BANDWIDTH_STFT).norm()))
    if not values:
        raise UserError("no audio to measure the loss bandwidths on. Is the training folder empty?")
    l2 = squares / values - (total / values) ** 2
    spec = float(np.mean(spectrogram_norms))
    if not (l2 > 0 and spec > 0 and np.isfinite(l2) and np.isfinite(spec)):
        raise UserError(
            f"the training audio has variance {l2} and spectral norm {spec}: silent or broken. "
            "Check the stem's files."
        )
    return Bandwidths(l2=l2, spec=spec)
