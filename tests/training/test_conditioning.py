"""A conditioned encoder, and the plain one that it is saved as."""

import pytest
import torch
from tiny import ARCHITECTURE

from jukesep.model.vqvae import Architecture, Encoder
from jukesep.training.conditioning import Conditioned, statistics

AUDIO = 0.1 * torch.randn(2, 1, 256, generator=torch.Generator().manual_seed(1))
MEAN = torch.linspace(-3, 3, 8)
DEVIATION = torch.linspace(0.5, 40, 8)


def encoder(architecture: Architecture = ARCHITECTURE) -> Encoder:
    torch.manual_seed(0)
    return Encoder(architecture)


@pytest.mark.parametrize("downs", [(2,), (2, 1)])
def test_it_computes_in_units_of_the_latents(downs):
    plain = encoder(Architecture(width=4, depth=2, downs=downs, latent_dim=8, codes=16))
    conditioned = Conditioned(plain, 8.0, MEAN, DEVIATION)
    expected = MEAN[:, None] + DEVIATION[:, None] * plain(8 * AUDIO)
    torch.testing.assert_close(conditioned(AUDIO), expected)
    # It is saved as an encoder of Jukebox's form that computes the same.
    folded = conditioned.folded()
    assert folded.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(folded(AUDIO), expected, rtol=1e-5, atol=1e-4)
    # Folding leaves the encoder that is trained as it is.
    torch.testing.assert_close(conditioned(AUDIO), expected)


def test_trained_weights_keep_their_output():
    plain = encoder()
    before = plain(AUDIO).detach()
    conditioned = Conditioned(plain, 8.0, MEAN, DEVIATION, keep=True)
    torch.testing.assert_close(conditioned(AUDIO), before, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(conditioned.folded()(AUDIO), before, rtol=1e-5, atol=1e-5)


def test_unconditioned_it_changes_no_bit():
    plain = encoder()
    conditioned = Conditioned(plain)
    assert torch.equal(conditioned(AUDIO), plain(AUDIO))
    for name, value in conditioned.folded().state_dict().items():
        assert torch.equal(value, plain.state_dict()[name])


def test_statistics_are_those_of_all_latents_together():
    latents = 5 + 3 * torch.randn(4, 60, generator=torch.Generator().manual_seed(2))
    latents[2] = 7.0
    mean, deviation = statistics(latents.split(13, dim=1))
    torch.testing.assert_close(mean, latents.double().mean(1))
    expected = latents.double().std(1, correction=0)
    expected[2] = 1.0  # it never moves: it is left as it is
    torch.testing.assert_close(deviation, expected)
