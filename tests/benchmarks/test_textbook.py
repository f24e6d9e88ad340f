"""The yardstick of the benchmarks computes what jukesep computes."""

import copy

import pytest
import torch

from benchmarks import sides, textbook
from jukesep.model.codebook import straight_through
from jukesep.model.vqvae import Architecture, Encoder
from jukesep.separation.chunked import apply_chunked
from jukesep.training import losses

SMALL = Architecture(width=8, depth=2, downs=(2,), latent_dim=8, codes=16)


@pytest.fixture
def pair():
    return sides.model(SMALL, 2, 4096)


def test_a_step_of_stage_1(pair):
    vqvae, audio = pair
    plain = copy.deepcopy(vqvae)
    loss = textbook.stage1_step(plain, audio, sides.BANDWIDTHS, 256)
    latents = vqvae.encode(audio)
    codes, quantised = vqvae.quantise(latents)
    decoded = vqvae.decode(straight_through(latents, quantised))
    total, _ = losses.stage1_loss(audio, decoded, latents, quantised, sides.BANDWIDTHS, linf_k=256)
    vqvae.codebook.update(latents.detach(), codes)
    total.backward()
    torch.testing.assert_close(loss, total.detach())
    ours, theirs = (
        torch.cat([p.grad.flatten() for p in model.parameters()]) for model in (vqvae, plain)
    )
    assert (ours - theirs).norm() < 1e-4 * theirs.norm()
    for name, tensor in vqvae.codebook.state_dict().items():
        torch.testing.assert_close(tensor, plain.codebook.state_dict()[name])


def test_a_step_of_stage_2(pair):
    vqvae, audio = pair
    encoder = Encoder(SMALL)
    plain = copy.deepcopy(encoder)
    loss = textbook.stage2_step(plain, vqvae, audio, 0.5 * audio)
    with torch.no_grad():
        target = vqvae.encode(0.5 * audio)
    total, _ = losses.stage2_loss(target, encoder(audio))
    total.backward()
    torch.testing.assert_close(loss, total.detach())
    for ours, theirs in zip(encoder.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-6)


def test_separation(pair):
    vqvae, audio = pair
    stem = textbook.separate(vqvae, audio, sides.BANDWIDTHS, 256)
    torch.testing.assert_close(apply_chunked(vqvae, audio[:, 0], 4096), stem[:, 0])
