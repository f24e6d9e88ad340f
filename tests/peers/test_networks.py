"""The peers' networks: what goes in, what comes out, and how a song is separated."""

import typing

import annotated_types
import numpy as np
import pytest
import torch
import yaml
from documents import ROOT

from jukesep.base import params
from jukesep.peers import control
from jukesep.peers.common import peer as common
from jukesep.peers.common import registry, spectra
from jukesep.songs.manifest import STEMS

NAMES = registry.NAMES
RATE = 8000


def sizes(name, scale="tiny"):
    composed = yaml.safe_load(params.compose([f"scale={scale}", f"peers={name}"], ROOT / "conf"))
    return composed["peers"][name]["network"]


def build(name):
    torch.manual_seed(0)
    return registry.build(name, sizes(name))


def songs(rows, samples, seed=0):
    return torch.randn(rows, samples, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NAMES)
def test_a_step_trains_every_parameter(name):
    peer = build(name)
    given, target = peer.prepare(songs(10, 8192).reshape(2, 5, 8192))
    loss = peer.loss(peer(given), target)
    loss.backward()
    silent = [n for n, p in peer.named_parameters() if p.grad is None or not p.grad.any()]
    # The first bias of a normalised layer changes nothing.
    assert loss.isfinite()
    assert all("norm" in name or name.endswith("bias") for name in silent), silent


@pytest.mark.parametrize("samples", [3001, 9000, 12_001])
@pytest.mark.parametrize("name", NAMES)
def test_songs_of_any_length_are_separated(name, samples, monkeypatch):
    """In chunks of 8,000 samples, of which one would begin with the last sample."""
    for module in (common, control):
        monkeypatch.setattr(module, "CHUNK_SECONDS", 1)
    peer = build(name).eval()
    mixture = songs(2, samples)
    with torch.no_grad():
        for options in peer.variants.values():
            stems = peer.separate(mixture, RATE, **options)
            assert stems.shape == (2, len(STEMS), samples)
            assert stems.isfinite().all()
            # The rows are separate songs.
            alone = peer.separate(mixture[1:], RATE, **options)
            torch.testing.assert_close(stems[1:], alone, rtol=1e-4, atol=1e-5)


def edges():
    """Each size of each network at the smallest that the parameters allow."""
    for name, field in params.Peers.model_fields.items():
        (recipe,) = (one for one in typing.get_args(field.annotation) if one is not type(None))
        for size, info in recipe.model_fields["network"].annotation.model_fields.items():
            (least,) = (one.ge for one in info.metadata if isinstance(one, annotated_types.Ge))
            yield name, size, least


@pytest.mark.parametrize(("name", "size", "least"), list(edges()))
def test_the_smallest_sizes_train_and_separate(name, size, least):
    torch.manual_seed(0)
    peer = registry.build(name, {**sizes(name), size: least})
    given, target = peer.prepare(songs(10, 4096).reshape(2, 5, 4096))
    loss = peer.loss(peer(given), target)
    loss.backward()
    assert loss.isfinite()
    with torch.no_grad():
        assert peer.eval().separate(songs(1, 4097), RATE).shape == (1, len(STEMS), 4097)


def test_the_masks_of_the_control_share_out_the_mixture():
    peer = build("control").eval()
    mixture = songs(1, 9000)
    with torch.no_grad():
        stems = peer.separate(mixture, RATE)
    torch.testing.assert_close(stems.sum(1), mixture, rtol=0, atol=1e-5)


def test_the_scale_of_the_input_is_that_of_all_mixtures_together():
    peer = build("open_unmix")
    mixtures = songs(3, 4000) * torch.tensor([[1.0], [0.1], [3.0]])
    peer.measure(mixture[None] for mixture in mixtures)
    magnitudes = [
        spectra.spectrum(mixture, peer.window, peer.hop).abs().numpy() for mixture in mixtures
    ]
    whole = np.concatenate(magnitudes, axis=1).astype(np.float64)
    for network in peer.targets.values():
        found = -network.input_mean.detach().numpy(), 1 / network.input_scale.detach().numpy()
        np.testing.assert_allclose(found[0], whole.mean(1), rtol=1e-5)
        np.testing.assert_allclose(found[1], whole.std(1), rtol=1e-4)


def test_a_spectrum_becomes_the_sound_again():
    audio = songs(6, 5001).reshape(2, 3, 5001)
    spectrum = spectra.spectrum(audio, 256, 64)
    assert spectrum.shape[:3] == (2, 3, 129)
    found = spectra.sound(spectrum, 256, 64, 5001)
    torch.testing.assert_close(found, audio, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "scale", "millions"), [("hdemucs", "paper", 83.6), ("open_unmix", "demo", 1.86)]
)
def test_the_sizes_are_those_published_or_measured(name, scale, millions):
    """HDemucs of two channels has 83.63 million parameters by torchaudio's documentation."""
    peer = registry.build(name, sizes(name, scale))
    count = sum(parameter.numel() for parameter in peer.parameters()) / 1e6
    assert count == pytest.approx(millions, abs=0.06)
