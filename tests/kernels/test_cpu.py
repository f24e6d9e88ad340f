"""The compiled networks are the layers as they are defined."""

import copy
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from jukesep.kernels.cpu import networks, threads, tiles
from jukesep.model.vqvae import Architecture, Decoder, Encoder


def _gradients(module, network, x, slope):
    x = x.clone().requires_grad_(True)
    network.zero_grad()
    y = module(x)
    y.backward(slope)
    return [y.detach(), x.grad, *(p.grad.clone() for p in network.parameters())]


def _network(kind, architecture, seed=0):
    torch.manual_seed(seed)
    return {"encoder": Encoder, "decoder": Decoder}[kind](architecture).double()


def _input(kind, architecture, batch, latents):
    generator = torch.Generator().manual_seed(latents)
    shape = (
        (batch, 1, latents * architecture.hop)
        if kind == "encoder"
        else (batch, architecture.latent_dim, latents)
    )
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["encoder", "decoder"]),
    batch=st.integers(1, 3),
    width=st.integers(1, 9),
    latent_dim=st.integers(1, 9),
    depth=st.integers(1, 3),
    downs=st.lists(st.integers(1, 2), min_size=1, max_size=2),
    growth=st.integers(1, 7),
    latents=st.integers(1, 20),
    tile=st.integers(1, 40),
    workers=st.integers(1, 2),
)
def test_values_and_gradients_at_every_size(
    kind, batch, width, latent_dim, depth, downs, growth, latents, tile, workers
):
    """Tiles of any size, dilations longer than the song: in float64, to its rounding."""
    architecture = Architecture(width, depth, tuple(downs), latent_dim, 4, growth)
    network = _network(kind, architecture)
    x = _input(kind, architecture, batch, latents)
    slope = torch.randn_like(network.layers(x))
    before, networks.TILE = networks.TILE, tile
    torch.set_num_threads(workers)
    try:
        compiled = _gradients(network, network, x, slope)
        with torch.no_grad():
            untrained = network(x)
    finally:
        networks.TILE = before
    defined = _gradients(network.layers, network, x, slope)
    for ours, theirs in zip(compiled, defined, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(untrained, defined[0], rtol=1e-10, atol=1e-10)


def test_the_compiled_networks_are_what_runs(monkeypatch):
    """A network that fell back to PyTorch's layers would pass every other test."""
    monkeypatch.setattr(nn.Conv1d, "forward", None)
    monkeypatch.setattr(nn.ConvTranspose1d, "forward", None)
    architecture = Architecture(4, 1, (2,), 4, 4)
    latents = Encoder(architecture)(torch.randn(1, 1, 16))
    assert Decoder(architecture)(latents).shape == (1, 1, 16)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_float32_is_as_near_to_the_exact_values_as_the_definition(kind):
    architecture = Architecture(width=32, depth=3)
    network = _network(kind, architecture)
    x = _input(kind, architecture, 1, 400)
    slope = torch.randn_like(network.layers(x))
    exact = _gradients(network.layers, network, x, slope)
    network.float()
    compiled = _gradients(network, network, x.float(), slope.float())
    defined = _gradients(network.layers, network, x.float(), slope.float())
    for e, c, d in zip(exact, compiled, defined, strict=True):
        # Where rounding turns a ReLU over, a whole gradient changes: the mean, not the worst.
        error, allowed = (c - e).abs().mean(), (d - e).abs().mean()
        assert error < 2 * allowed + 1e-7 * e.abs().mean()


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_the_number_of_threads_changes_no_bit(kind, batch):
    """Of a length that several threads share."""
    architecture = Architecture(width=8, depth=2)
    network = _network(kind, architecture).float()
    x = _input(kind, architecture, batch, 700).float()
    slope = torch.randn_like(network(x))
    results = []
    for number in (1, 2, 5):
        torch.set_num_threads(number)
        results.append(_gradients(network, network, x, slope))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_layers_that_threads_share_are_the_definition(kind):
    torch.set_num_threads(3)
    architecture = Architecture(width=6, depth=4, dilation_growth=5)
    network = _network(kind, architecture)
    x = _input(kind, architecture, 2, 700)
    slope = torch.randn_like(network(x))
    defined = _gradients(network.layers, network, x, slope)
    for ours, theirs in zip(_gradients(network, network, x, slope), defined, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("number", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_each_number_is_worked_on_and_shared_where_there_are_more_threads(number, count):
    torch.set_num_threads(number)
    alone, shared = [], []
    threads.each(count, alone.append)
    threads.each(count, shared.append, shared=True)
    assert sorted(alone) == list(range(count))
    assert set(shared) == set(range(count))
    assert len(shared) == max(count, number)


def test_an_error_of_one_is_raised():
    torch.set_num_threads(2)
    with pytest.raises(ZeroDivisionError):
        threads.each(4, lambda index: 1 // (index - 3))


def test_two_forwards_before_their_backwards():
    """The second must not take the memory that the first still needs."""
    network = _network("encoder", Architecture(width=4, depth=1))
    first, second = torch.randn(2, 1, 1, 80, dtype=torch.float64).requires_grad_(True)
    wanted = torch.autograd.grad(network.layers(first).square().sum(), first)
    one, _ = network(first).square().sum(), network(second).square().sum()
    torch.testing.assert_close(torch.autograd.grad(one, first), wanted)


def test_a_second_backward_is_refused():
    network = Encoder(Architecture(width=4, depth=1))
    loss = network(torch.randn(1, 1, 80)).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="a second backward"):
        loss.backward()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_none_is_not_lost(bad):
    """The training's check for finite losses sees it."""
    architecture = Architecture(width=8, depth=2)
    x = torch.zeros(1, 1, 800)
    x[0, 0, 400] = bad
    assert not _network("encoder", architecture).float()(x).isfinite().all()


def test_an_input_in_another_order_of_memory():
    architecture = Architecture(width=8, depth=1)
    network = _network("decoder", architecture).float()
    x = torch.randn(2, 30, 64)
    torch.testing.assert_close(network(x.transpose(1, 2)), network(x.transpose(1, 2).contiguous()))


def test_a_copy_has_weights_of_its_own():
    """The averaged model and its original compute with their own."""
    network = Encoder(Architecture(width=4, depth=1))
    other = copy.deepcopy(network)
    x = torch.randn(1, 1, 80)
    with torch.no_grad():
        before = other(x)
        for parameter in network.parameters():
            parameter.zero_()
        assert torch.equal(other(x), before)
        assert not network(x).any()


@pytest.mark.parametrize("grad", [True, False])
def test_the_input_is_left_as_it_was(grad):
    network = Encoder(Architecture(width=4, depth=1))
    x = torch.randn(1, 1, 80)
    kept = x.clone()
    with torch.set_grad_enabled(grad):
        network(x)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("loss", [torch.Tensor.sum, torch.Tensor.norm])
def test_a_second_derivative_is_refused(loss):
    """It would lack what the network adds to it."""
    network = Encoder(Architecture(width=4, depth=1))
    x = torch.randn(1, 1, 80, requires_grad=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(loss(network(x)), x, create_graph=True)


def test_half_precision_takes_pytorchs_layers():
    network = Encoder(Architecture(width=4, depth=1)).bfloat16()
    assert network(torch.randn(1, 1, 80).bfloat16()).dtype == torch.bfloat16


def test_blocks_are_found_whatever_they_hold():
    """Every convolution of a network is in its program once."""
    network = Decoder(Architecture(width=4, depth=2, downs=(2, 1)))
    found = network._network.convolutions
    assert set(map(id, found)) == {
        id(m) for m in network.modules() if isinstance(m, nn.Conv1d | nn.ConvTranspose1d)
    }
    assert len(found) == len(set(map(id, found)))


def test_a_forked_process_computes_too():
    """As the process that prepares batches does, after its parent has computed."""
    torch.set_num_threads(2)
    network = Encoder(Architecture(width=4, depth=1)).requires_grad_(False)
    x = torch.randn(2, 1, 80)
    expected = network(x)
    if not hasattr(os, "fork"):
        pytest.skip("this system does not fork")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        assert torch.equal(pool.submit(network, x).result(timeout=60), expected)


class _Rounded(torch.autograd.Function):
    """A convolution's product, whose factors are bfloat16's, forward and back, summed exactly.

    One of three taps to a single channel is exact, and so is its weight's gradient.
    """

    @staticmethod
    def forward(ctx, x, weight, layer):
        ctx.layer, ctx.exact = layer, (x, weight)
        ctx.rounded = _bfloat16(x), _bfloat16(weight)
        return _convolved(layer, *(ctx.exact if _narrows(layer) else ctx.rounded))

    @staticmethod
    def backward(ctx, slope):
        def gradients(given, slope):
            with torch.enable_grad():
                factors = [factor.detach().requires_grad_(True) for factor in given]
                return torch.autograd.grad(_convolved(ctx.layer, *factors), factors, slope)

        x, weight = gradients(ctx.rounded, _bfloat16(slope))
        if _narrows(ctx.layer):
            weight = gradients(ctx.exact, slope)[1]
        return x, weight, None


def _narrows(layer):
    return layer.kernel_size == (3,) and layer.out_channels == 1


def _bfloat16(x):
    return x.float().bfloat16().to(x.dtype)


def _convolved(layer, x, weight):
    kind = nn.functional.conv_transpose1d
    if isinstance(layer, nn.Conv1d):
        kind = nn.functional.conv1d
    return kind(x, weight, None, layer.stride, layer.padding, dilation=layer.dilation)


def _rounded_definition(network):
    """The network with each convolution's product as `_Rounded`."""
    network = copy.deepcopy(network)
    for layer in network.modules():
        if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d):
            layer.forward = lambda x, layer=layer: (
                _Rounded.apply(x, layer.weight, layer) + layer.bias[:, None]
            )
    return network


@pytest.mark.skipif(not tiles.ROUNDS, reason="this processor does not multiply bfloat16")
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@pytest.mark.parametrize(
    ("width", "latent_dim", "latents"), [(32, 64, 300), (64, 64, 40), (7, 5, 33), (18, 1, 260)]
)
def test_bf16_rounds_the_factors_and_nothing_else(kind, width, latent_dim, latents):
    """Sums, activations and gradients are float32: what is far nearer to that than float32 is."""
    architecture = Architecture(width, 1, (2,), latent_dim, 4)
    network = _network(kind, architecture)
    x = _input(kind, architecture, 2, latents)
    slope = torch.randn_like(network(x))
    definition = _rounded_definition(network)
    rounded = _gradients(definition.layers, definition, x, slope)
    network.float()
    exact = _gradients(network, network, x.float(), slope.float())
    with torch.autocast("cpu", torch.bfloat16):
        found = _gradients(network, network, x.float(), slope.float())
        with torch.no_grad():
            untrained = network(x.float())
    assert torch.equal(untrained, found[0])
    assert all(one.dtype == torch.float32 for one in found)
    apart = 0
    for one, two, three in zip(found, rounded, exact, strict=True):
        distance, rounding = (one - two).norm(), (three - two).norm()
        # A sum that falls on the other side of a half is rounded the other way.
        assert distance <= 0.3 * rounding + 1e-6 * two.norm()
        apart += bool(rounding > 1e-4 * two.norm())
    assert apart > len(found) / 2


def test_bf16_is_float32_where_the_processor_has_no_products_of_it(monkeypatch):
    monkeypatch.setattr(tiles, "ROUNDS", False)
    architecture = Architecture(4, 1, (2,), 4, 4)
    network = _network("encoder", architecture).float()
    x = _input("encoder", architecture, 1, 9).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = network(x)
    assert torch.equal(found, network(x))
