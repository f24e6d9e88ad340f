"""The yardstick of the benchmarks computes what jukesep computes."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import speed, textbook
from jukesep import losses
from jukesep.codebook import straight_through
from jukesep.separation import apply_chunked
from jukesep.vqvae import Architecture, Encoder

ROOT = Path(__file__).parents[1]
SMALL = Architecture(width=8, depth=2, downs=(2,), latent_dim=8, codes=16)


@pytest.fixture
def pair():
    return speed._model(SMALL, 2, 4096)


def test_a_step_of_stage_1(pair):
    vqvae, audio = pair
    plain = copy.deepcopy(vqvae)
    loss = textbook.stage1_step(plain, audio, speed.BANDWIDTHS, 256)
    latents = vqvae.encode(audio)
    codes, quantised = vqvae.quantise(latents)
    decoded = vqvae.decode(straight_through(latents, quantised))
    total, _ = losses.stage1_loss(audio, decoded, latents, quantised, speed.BANDWIDTHS, linf_k=256)
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
    stem = textbook.separate(vqvae, audio, speed.BANDWIDTHS, 256)
    torch.testing.assert_close(apply_chunked(vqvae, audio[:, 0], 4096), stem[:, 0])


@pytest.mark.parametrize("name", ["demo-stage2", "codebook"])
def test_a_row_is_measured_and_laid_out(name, monkeypatch):
    monkeypatch.setattr(
        speed, "_peak_of", lambda row, side: {"textbook": 30.0, "jukesep": 10.0}[side]
    )
    monkeypatch.setattr(speed.networks, "CORES", 1)
    threads = torch.get_num_threads()
    try:
        result = speed.measure(name, rounds=1)
    finally:
        torch.set_num_threads(threads)
    assert all(seconds > 0 for seconds in result["seconds"].values())
    result["seconds"] = {"textbook": 0.5, "jukesep": 0.25}
    page = speed.page({name: result})
    assert f"| {speed.ROWS[name].what} | 500.0 | 250.0 | 2.00 x | 30 | 10 | 0.33 x |" in page
    assert result["machine"] in page


def test_memory_is_that_of_the_process_alone():
    """Not of this one, which may once have had more."""
    before = np.ones(100_000_000)
    del before
    assert 20 < speed._peak_of("demo-stage2", "textbook") < 400


def test_the_committed_page_is_of_the_committed_measurements():
    results = json.loads((ROOT / speed.RESULTS).read_text(encoding="utf-8"))
    assert set(results) == set(speed.ROWS)
    assert (ROOT / speed.PAGE).read_text(encoding="utf-8") == speed.page(results)
