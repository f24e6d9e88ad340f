"""The model and its losses as a textbook writes them: the benchmarks' yardstick.

The same mathematics as jukesep's, from the same weights, in the plainest PyTorch, and with what the
published code computes besides: each layer a convolution; the distance matrix in full, its squares
included; a one-hot matrix for the codebook's sums; ten STFTs a step, four of them for terms of
weight zero, with a gradient for the target's too; losses also where a song is separated.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from jukesep.model.vqvae import VQVAE, Encoder
from jukesep.training.losses import BANDWIDTH_STFT, MULTISPECTRAL_STFTS, Bandwidths


def encode(encoder: Encoder, audio: Tensor) -> Tensor:
    """(B, 1, T) -> (B, D, N)."""
    return encoder.blocks(audio)


def decode(vqvae: VQVAE, quantised: Tensor) -> Tensor:
    """(B, D, N) -> (B, 1, T)."""
    return vqvae.decoder.out(vqvae.decoder.blocks(quantised))


def quantise(k: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (B, N) of latents (B, D, N) in the codebook k (codes, D), and its rows (B, D, N)."""
    batch, _, length = latents.shape
    rows = latents.detach().transpose(1, 2).flatten(0, 1)
    distances = (rows**2).sum(1, keepdim=True) - 2 * rows @ k.T + (k.T**2).sum(0, keepdim=True)
    codes = distances.min(1).indices
    return codes.view(batch, length), F.embedding(codes, k).view(batch, length, -1).transpose(1, 2)


def update(
    k: Tensor, k_sum: Tensor, k_elem: Tensor, latents: Tensor, codes: Tensor, decay: float
) -> None:
    """The codebook's moving averages after a step, in place; no code is revived here."""
    rows = latents.detach().transpose(1, 2).flatten(0, 1)
    one_hot = torch.zeros(len(k), len(rows))
    one_hot.scatter_(0, codes.view(1, -1), 1)
    k_sum.mul_(decay).add_(one_hot @ rows, alpha=1 - decay)
    k_elem.mul_(decay).add_(one_hot.sum(1), alpha=1 - decay)
    k.copy_(k_sum / k_elem[:, None])


def _spectrogram(audio: Tensor, n_fft: int, hop: int, window: int) -> Tensor:
    hann = torch.hann_window(window)
    return torch.stft(audio.squeeze(1), n_fft, hop, window, hann, return_complex=True).abs()


def losses(target: Tensor, reconstruction: Tensor, bandwidths: Bandwidths, linf_k: int) -> Tensor:
    """l2 + 0.02 linf + multispectral, and 0 times two terms that the published code computes."""
    errors = (reconstruction - target) ** 2
    l2 = errors.mean() / bandwidths.l2
    linf = errors.flatten(1).topk(linf_k, dim=1).values.mean() / bandwidths.l2
    spectra = []
    for stft in MULTISPECTRAL_STFTS:
        difference = _spectrogram(target, *stft) - _spectrogram(reconstruction, *stft)
        spectra.append(difference.flatten(1).norm(dim=1))
    multispectral = torch.stack(spectra).mean() / bandwidths.spec
    one, other = (_spectrogram(x, *BANDWIDTH_STFT) for x in (target, reconstruction))
    spectral = (one - other).flatten(1).norm(dim=1).mean() / bandwidths.spec
    one, other = (_spectrogram(x, *BANDWIDTH_STFT) for x in (target, reconstruction))
    convergence = ((one - other).flatten(1).norm(dim=1) / one.flatten(1).norm(dim=1)).mean()
    return l2 + 0.02 * linf + multispectral + 0 * spectral + 0 * convergence


def stage1_step(vqvae: VQVAE, audio: Tensor, bandwidths: Bandwidths, linf_k: int) -> Tensor:
    """The loss of a step of stage 1, with its gradients computed and the codebook moved on."""
    codebook = vqvae.codebook
    latents = encode(vqvae.encoder, audio)
    codes, quantised = quantise(codebook.k, latents)
    commit = F.mse_loss(latents, quantised.detach())
    decoded = decode(vqvae, latents + (quantised - latents).detach())
    loss = losses(audio, decoded, bandwidths, linf_k) + 0.02 * commit
    update(codebook.k, codebook.k_sum, codebook.k_elem, latents, codes, codebook.decay)
    loss.backward()
    return loss.detach()


def stage2_step(encoder: Encoder, vqvae: VQVAE, mixture: Tensor, stem: Tensor) -> Tensor:
    """The loss of a step of stage 2, with its gradients computed."""
    target = encode(vqvae.encoder, stem).detach()
    loss = F.mse_loss(encode(encoder, mixture), target)
    loss.backward()
    return loss.detach()


@torch.no_grad()
def separate(vqvae: VQVAE, mixture: Tensor, bandwidths: Bandwidths, linf_k: int) -> Tensor:
    """The stem (B, 1, T) in a mixture, and, as in the published code, what it would cost."""
    latents = encode(vqvae.encoder, mixture)
    _, quantised = quantise(vqvae.codebook.k, latents)
    decoded = decode(vqvae, quantised)
    losses(mixture, decoded, bandwidths, linf_k)
    return decoded
