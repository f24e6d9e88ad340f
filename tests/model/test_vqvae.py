"""The VQ-VAE's shapes, sizes and receptive field."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jukesep.base.errors import UserError
from jukesep.model.vqvae import (
    VQVAE,
    Architecture,
    Encoder,
    decoder_receptive_field,
    encoder_receptive_field,
    receptive_field,
)

SMALL = Architecture(width=4, depth=2, downs=(2,), latent_dim=3, codes=16)
TWO_BLOCKS = Architecture(width=4, depth=2, downs=(2, 1), latent_dim=3, codes=16)
LEVELS_5B = {
    0: Architecture(),
    1: Architecture(width=32, depth=4, downs=(3, 2)),
    2: Architecture(width=32, depth=4, downs=(3, 2, 2)),
}


def random_vqvae(architecture: Architecture, seed: int = 0) -> VQVAE:
    torch.manual_seed(seed)
    vqvae = VQVAE(architecture)
    k = torch.randn(architecture.codes, architecture.latent_dim) * 0.3
    vqvae.codebook.restore(k, 10.0)
    return vqvae


def parameters(module: torch.nn.Module) -> tuple[int, int]:
    return sum(p.numel() for p in module.parameters()), len(list(module.parameters()))


def test_the_paper_s_sizes() -> None:
    vqvae = VQVAE()
    assert parameters(vqvae.encoder) == (441_856, 104)
    assert parameters(vqvae.decoder) == (458_177, 106)
    assert vqvae.codebook.k.numel() == 131_072
    assert not list(vqvae.codebook.parameters())
    assert vqvae.architecture.hop == 8


@pytest.mark.parametrize("level", LEVELS_5B)
def test_hops_of_the_three_levels(level: int) -> None:
    assert LEVELS_5B[level].hop == (8, 32, 128)[level]


@pytest.mark.parametrize("architecture", [SMALL, TWO_BLOCKS], ids=["one block", "two blocks"])
def test_shapes_there_and_back(architecture: Architecture) -> None:
    vqvae, audio = random_vqvae(architecture), torch.randn(2, 1, 5 * architecture.hop)
    latents = vqvae.encode(audio)
    assert latents.shape == (2, 3, 5)
    codes, quantised = vqvae.quantise(latents)
    assert codes.shape == (2, 5)
    assert codes.dtype == torch.int64
    assert quantised.shape == latents.shape
    assert vqvae.decode(quantised).shape == audio.shape
    assert torch.equal(vqvae(audio), vqvae.decode(quantised))


def test_decoder_stacks_begin_with_the_widest_dilation() -> None:
    vqvae = VQVAE(SMALL)
    stack = vqvae.decoder.blocks[0].stages[0].residuals
    assert [block.dilated.dilation[0] for block in stack] == [3, 1]
    stack = vqvae.encoder.blocks[0].stages[0].residuals
    assert [block.dilated.dilation[0] for block in stack] == [1, 3]


def test_the_paper_s_receptive_field() -> None:
    assert encoder_receptive_field(Architecture()) == (45_935, 45_942)
    left, right = decoder_receptive_field(Architecture())
    assert left + 1 + right == 11_485
    assert VQVAE().context() == 91_872
    # Every sample depends on 183,750; where it falls within its hop moves that window by up to 7.
    left, right = receptive_field(Architecture())
    assert left + 1 + right == 183_750 + 7


def influence(function: torch.nn.Module, x: torch.Tensor, outputs: slice) -> tuple[int, int]:
    """First and last position of x with a gradient from the outputs."""
    x = x.clone().requires_grad_()
    function(x)[..., outputs].sum().backward()
    positions = x.grad.abs().amax((0, 1)).nonzero().flatten()
    return int(positions[0]), int(positions[-1])


@pytest.mark.parametrize("architecture", [SMALL, TWO_BLOCKS], ids=["one block", "two blocks"])
def test_receptive_field_is_where_gradients_come_from(architecture: Architecture) -> None:
    torch.manual_seed(0)
    vqvae, hop = VQVAE(architecture).double(), architecture.hop
    for parameter in vqvae.parameters():  # Positive, so that no ReLU hides a path.
        parameter.data.abs_().add_(0.01)
    audio = torch.rand(1, 1, 80 * hop, dtype=torch.float64)
    latents = torch.rand(1, 3, 80, dtype=torch.float64)

    left, right = encoder_receptive_field(architecture)
    first, last = influence(vqvae.encoder, audio, slice(40, 41))
    assert (first, last) == (40 * hop - left, 40 * hop + right)

    left, right = decoder_receptive_field(architecture)
    first, last = influence(vqvae.decoder, latents, slice(40 * hop, 41 * hop))
    assert (first, last) == (40 - left, 40 + right)

    whole = torch.nn.Sequential(vqvae.encoder, vqvae.decoder)
    reached = []
    for t in range(40 * hop, 41 * hop):
        first, last = influence(whole, audio, slice(t, t + 1))
        reached.append((t - first, last - t))
    assert tuple(map(max, zip(*reached, strict=True))) == receptive_field(architecture)


@settings(deadline=None, max_examples=20)
@given(
    start=st.integers(0, 119),
    length=st.integers(1, 60),
    blocks=st.sampled_from([SMALL, TWO_BLOCKS]),
)
def test_context_makes_a_chunk_equal_to_the_whole(start, length, blocks) -> None:
    vqvae, hop = random_vqvae(blocks), blocks.hop
    torch.manual_seed(1)
    audio = torch.randn(1, 1, 120 * hop)
    begin, end = start * hop, min((start + length) * hop, audio.shape[2])
    left = max(0, begin - vqvae.context())
    right = end + vqvae.context()
    with torch.no_grad():
        whole = vqvae(audio)[..., begin:end]
        part = vqvae(audio[..., left:right])[..., begin - left :][..., : end - begin]
    torch.testing.assert_close(part, whole, rtol=1e-4, atol=1e-5)


def test_less_context_is_not_enough() -> None:
    torch.manual_seed(0)
    vqvae, hop = VQVAE(SMALL).double(), SMALL.hop
    for parameter in vqvae.parameters():
        parameter.data.abs_().add_(0.01)
    codec = torch.nn.Sequential(vqvae.encoder, vqvae.decoder)
    audio = torch.rand(1, 1, 120 * hop, dtype=torch.float64)
    short = vqvae.context() - hop
    with torch.no_grad():
        whole = codec(audio)[..., 50 * hop : 60 * hop]
        part = codec(audio[..., 50 * hop - short : 60 * hop + short])[..., short : short + 10 * hop]
    assert not torch.allclose(part, whole, rtol=1e-12)


@pytest.mark.parametrize("shape", [(1, 1, 30), (1, 2, 32), (1, 32), (1, 1, 0)])
def test_encoder_names_what_it_takes(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="multiple of 4"):
        Encoder(SMALL)(torch.zeros(shape))


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 0},
        {"depth": -1},
        {"downs": ()},
        {"downs": (3, 0)},
        {"codes": 2.5},
        {"latent_dim": True},
        {"dilation_growth": "3"},
        {"depth": 99},
    ],
    ids=str,
)
def test_architecture_names_what_is_wrong(wrong: dict) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        Architecture(**wrong)


def test_architecture_takes_a_list_of_downs() -> None:
    assert Architecture(downs=[3, 2]) == Architecture(downs=(3, 2))
