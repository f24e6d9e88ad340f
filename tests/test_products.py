"""The layers as matrix products are the layers as they are defined."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from jukesep import products
from jukesep.vqvae import Conv1d, ConvTranspose1d, ResidualBlock


def _block(width, dilation, seed=0):
    torch.manual_seed(seed)
    return ResidualBlock(width, dilation).double()


def _gradients(function, block, x, slope):
    x = x.clone().requires_grad_(True)
    block.zero_grad()
    y = function(x)
    y.backward(slope)
    return [y.detach(), x.grad, *(p.grad.clone() for p in block.parameters())]


@settings(max_examples=80, deadline=None)
@given(
    batch=st.integers(1, 3),
    width=st.integers(1, 9),
    length=st.integers(1, 60),
    dilation=st.integers(1, 70),
    tile=st.integers(1, 300),
)
def test_values_and_gradients_at_every_size(batch, width, length, dilation, tile):
    """Batches, tiles of any size, dilations longer than the song: in float64, to its rounding."""
    block = _block(width, dilation)
    generator = torch.Generator().manual_seed(length)
    x, slope = torch.randn(2, batch, width, length, generator=generator, dtype=torch.float64)
    before, products.TILE = products.TILE, tile
    try:
        fast = _gradients(block, block, x, slope)
        with torch.no_grad():
            untrained = block(x)
    finally:
        products.TILE = before
    for ours, defined in zip(fast, _gradients(block.definition, block, x, slope), strict=True):
        torch.testing.assert_close(ours, defined, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(untrained, fast[0], rtol=1e-12, atol=1e-12)


LAYERS = {
    "convolution": lambda c, d: Conv1d(c, d, 3, padding=1),
    "dilated": lambda c, d: Conv1d(c, d, 3, padding=5, dilation=5),
    "halving": lambda c, d: Conv1d(c, d, 4, stride=2, padding=1),
    "doubling": lambda c, d: ConvTranspose1d(c, d, 4, stride=2, padding=1),
}


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(sorted(LAYERS)),
    batch=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    length=st.integers(1, 40),
    tile=st.integers(1, 200),
)
def test_every_layer_at_every_size(kind, batch, channels, length, tile):
    torch.manual_seed(length)
    layer = LAYERS[kind](*channels).double()
    definition = nn.ConvTranspose1d if kind == "doubling" else nn.Conv1d
    samples = 2 * length if kind == "halving" else length
    x = torch.randn(batch, channels[0], samples, dtype=torch.float64)
    wanted = definition.forward(layer, x)
    slope = torch.randn_like(wanted)
    before, products.TILE = products.TILE, tile
    try:
        fast = _gradients(layer, layer, x, slope)
        with torch.no_grad():
            untrained = layer(x)
    finally:
        products.TILE = before
    defined = _gradients(lambda x: definition.forward(layer, x), layer, x, slope)
    for ours, theirs in zip(fast, defined, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(untrained, wanted, rtol=1e-12, atol=1e-12)


def test_the_products_are_what_runs(monkeypatch):
    """A layer that fell back to PyTorch's kernels would pass every other test."""
    monkeypatch.setattr(nn.Conv1d, "forward", None)
    monkeypatch.setattr(nn.ConvTranspose1d, "forward", None)
    x = torch.randn(1, 4, 8)
    for make in LAYERS.values():
        make(4, 4)(x)
    ResidualBlock(4, 2)(x)


def test_float32_is_as_near_to_the_exact_values_as_the_definition():
    block = _block(32, 16)
    x, slope = torch.randn(2, 1, 32, 5000, dtype=torch.float64)
    exact = _gradients(block.definition, block, x, slope)
    block.float()
    fast = _gradients(block, block, x.float(), slope.float())
    defined = _gradients(block.definition, block, x.float(), slope.float())
    for e, f, d in zip(exact, fast, defined, strict=True):
        # Where rounding turns a ReLU over, a whole gradient changes: the mean, not the worst.
        error, allowed = (f - e).abs().mean(), (d - e).abs().mean()
        assert error < 2 * allowed + 1e-7 * e.abs().mean()


def test_channels_last_memory_in_and_out():
    block = _block(8, 2).float()
    x = torch.randn(2, 8, 30)
    y = block(x)
    assert y.transpose(1, 2).is_contiguous()
    torch.testing.assert_close(block(x.transpose(1, 2).contiguous().transpose(1, 2)), y)


@pytest.mark.parametrize("grad", [True, False])
def test_the_input_is_left_as_it_was(grad):
    block = _block(8, 3).float()
    x = torch.randn(1, 8, 40)
    kept = x.clone()
    with torch.set_grad_enabled(grad):
        block(x)
    assert torch.equal(x, kept)
