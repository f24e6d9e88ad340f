"""The losses' definitions and edges; their values against the reference are in test_golden.py."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jukesep.base.errors import UserError
from jukesep.kernels.cpu import spectra
from jukesep.training import losses
from jukesep.training.losses import Bandwidths

definition = partial(losses.spectral_distance, stfts=losses.MULTISPECTRAL_STFTS)
UNIT = Bandwidths(l2=1.0, spec=1.0)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stage1_arguments() -> tuple[torch.Tensor, ...]:
    return noise(2, 1, 3000), noise(2, 1, 3000, seed=1), noise(2, 3, 9), noise(2, 3, 9, seed=1)


def audio_terms(target, other, bandwidths=UNIT):
    """The terms of stage 1 that compare audio."""
    none = torch.empty(0)
    return losses.stage1_loss(target, other, none, none, bandwidths, commit=0)[1]


def test_linf_is_the_mean_of_the_largest_squares() -> None:
    target, other = noise(2, 1, 5000), noise(2, 1, 5000, seed=1)
    largest = np.sort((other - target).square().numpy().reshape(2, -1))[:, -100:].mean(1)
    np.testing.assert_allclose(losses.linf_loss(target, other, 100), largest, rtol=1e-6)


def test_linf_of_a_short_segment_takes_all_of_it() -> None:
    target, other = noise(1, 1, 1100), noise(1, 1, 1100, seed=1)
    terms = audio_terms(target, other)
    torch.testing.assert_close(terms["linf"], terms["l2"])


def test_the_shortest_segment_works_and_a_shorter_one_says_so() -> None:
    audio_terms(noise(1, 1, 1025), noise(1, 1, 1025, seed=1))
    with pytest.raises(UserError, match="1024 samples"):
        audio_terms(noise(1, 1, 1024), noise(1, 1, 1024, seed=1))


def test_a_perfect_reconstruction_costs_nothing_and_has_a_finite_gradient() -> None:
    target = noise(2, 1, 2000)
    reconstruction = target.clone().requires_grad_()
    total, _ = losses.stage1_loss(target, reconstruction, noise(2, 3, 9), noise(2, 3, 9), UNIT)
    total.backward()
    assert total == 0
    assert reconstruction.grad.isfinite().all()


def test_silence_has_a_finite_gradient() -> None:
    reconstruction = torch.zeros(1, 1, 2000, requires_grad=True)
    losses.multispectral_loss(noise(1, 1, 2000), reconstruction).sum().backward()
    assert reconstruction.grad.isfinite().all()


def test_bandwidths_divide() -> None:
    target, other = noise(2, 1, 3000), noise(2, 1, 3000, seed=1)
    plain = audio_terms(target, other)
    scaled = audio_terms(target, other, Bandwidths(l2=4.0, spec=5.0))
    for name, factor in {"l2": 4.0, "linf": 4.0, "multispectral": 5.0}.items():
        torch.testing.assert_close(plain[name], factor * scaled[name])


def test_stage_1_total_is_the_weighted_sum() -> None:
    total, terms = losses.stage1_loss(*stage1_arguments(), UNIT)
    expected = terms["l2"] + 0.02 * terms["linf"] + terms["multispectral"] + 0.02 * terms["commit"]
    torch.testing.assert_close(total, expected)


@pytest.mark.parametrize("term", ["l2", "linf", "multispectral", "commit"])
def test_a_term_of_weight_0_does_no_work(term: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("linf_loss", "multispectral_loss", "commit_loss"):
        if name.startswith(term):
            monkeypatch.delattr(losses, name)
    total, terms = losses.stage1_loss(*stage1_arguments(), UNIT, **{term: 0.0})
    assert term not in terms
    assert len(terms) == 3
    assert total.isfinite()


def test_no_term_at_all_says_so() -> None:
    weights = dict.fromkeys(("l2", "linf", "multispectral", "commit"), 0.0)
    with pytest.raises(UserError, match="every loss weight is 0"):
        losses.stage1_loss(*stage1_arguments(), UNIT, **weights)


def test_commitment_moves_the_latents_only() -> None:
    latents, quantised = (noise(2, 3, 9, seed=seed).requires_grad_() for seed in (0, 1))
    losses.commit_loss(latents, quantised).backward()
    expected = 2 * (latents - quantised).detach() / latents.numel()
    torch.testing.assert_close(latents.grad, expected)
    assert quantised.grad is None


def test_losses_are_float32_under_autocast() -> None:
    target, reconstruction, latents, quantised = stage1_arguments()
    expected, _ = losses.stage1_loss(target, reconstruction, latents, quantised, UNIT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _ = losses.stage1_loss(target, reconstruction, latents, quantised, UNIT)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, expected)


def test_stage_2_reaches_the_student_only() -> None:
    target, latents = (noise(2, 3, 9, seed=seed).requires_grad_() for seed in (0, 1))
    total, terms = losses.stage2_loss(target, latents)
    total.backward()
    assert target.grad is None
    assert list(terms) == ["l2"]
    torch.testing.assert_close(total, (latents - target).square().mean())


def test_stage_2_names_the_kinds() -> None:
    with pytest.raises(UserError, match=r"'l1'\. Choose mse or mse_linf"):
        losses.stage2_loss(noise(1, 3, 9), noise(1, 3, 9), kind="l1")


def test_bandwidths_of_known_audio() -> None:
    segments = [0.25 + 0.5 * noise(2, 4096, seed=seed).numpy() for seed in range(3)]
    found = losses.measure_bandwidths(segments, 4096)
    values = np.stack(segments)
    assert found.l2 == pytest.approx(values.var(), rel=1e-5)

    norms = []
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1536) / 1536)
    for segment in segments:
        padded = np.pad(segment.mean(0), 1024, mode="reflect")
        frames = [padded[i + 256 : i + 1792] for i in range(0, len(padded) - 2047, 256)]
        norms.append(np.linalg.norm(np.fft.rfft(np.array(frames) * hann, 2048)))
    assert found.spec == pytest.approx(np.mean(norms), rel=1e-5)


def test_bandwidths_stop_after_the_seconds_asked_for() -> None:
    taken = []

    def segments():
        for seed in range(10):
            taken.append(seed)
            yield noise(2, 4096, seed=seed).numpy()

    losses.measure_bandwidths(segments(), 4096, seconds=2.5)
    assert len(taken) == 4  # The fourth is looked at, not used.


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([], "no audio"),
        ([np.zeros((2, 4096))], "silent or broken"),
        ([np.full((2, 4096), np.nan)], "silent or broken"),
        ([np.ones((2, 100))], "100 samples"),
    ],
    ids=["none", "silence", "nan", "short"],
)
def test_audio_without_bandwidths_says_so(segments: list[np.ndarray], message: str) -> None:
    with pytest.raises(UserError, match=message):
        losses.measure_bandwidths(segments, 44100)


def both_ways(target: torch.Tensor, other: torch.Tensor, above: torch.Tensor) -> list[tuple]:
    """Value (B,) and gradient (B, T) of `multispectral_loss` and of its definition."""
    found = []
    for loss in (losses.multispectral_loss, definition):
        given = other.clone().requires_grad_()
        shape = (len(other), 1, -1) if loss is losses.multispectral_loss else other.shape
        value = loss(target.reshape(shape), given.reshape(shape))
        found.append((value.detach(), *torch.autograd.grad(value, given, above)))
    return found


@settings(deadline=None, max_examples=25)
@given(
    batch=st.integers(1, 3),
    samples=st.integers(1025, 9000),
    block=st.sampled_from([1, 2**13, 2**16]),
    seed=st.integers(0, 2**32 - 1),
)
def test_compiled_spectra_are_the_definition(batch, samples, block, seed) -> None:
    target = noise(batch, samples, seed=seed).double()
    other = target + 0.1 * noise(batch, samples, seed=seed + 1)
    above = noise(batch, seed=seed + 2).double()
    # The gradient of |X| has the phase of X, which float32 does not find in a bin close to zero.
    for stft in losses.MULTISPECTRAL_STFTS:
        magnitudes = losses.stft_magnitude(other, *stft)
        assume(magnitudes.min() > 5e-5 * magnitudes.mean())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spectra, "BLOCK", block)
        ours, exact = both_ways(target, other, above)
        single, _ = both_ways(target.float(), other.float(), above.float())
    for mine, defined, rough in zip(ours, exact, single, strict=True):
        torch.testing.assert_close(mine, defined, rtol=1e-10, atol=1e-12)
        assert rough.dtype == torch.float32
        assert (rough - defined).norm() < 1e-5 * defined.norm()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_sample_shows_in_the_loss_and_the_gradient(value: float) -> None:
    for side in range(2):
        signals = [noise(2, 3000, seed=seed) for seed in range(2)]
        signals[side][1, 1500] = value
        (loss, gradient), _ = both_ways(*signals, torch.ones(2))
        assert loss.isfinite().tolist() == [True, False]
        assert gradient.isfinite().all(1).tolist() == [True, False]


def test_spectra_of_equal_and_of_silent_signals_have_the_definitions_gradient() -> None:
    signals = noise(2, 3000), torch.zeros(2, 3000)
    for target in signals:
        for other in signals:
            for ours, exact in zip(*both_ways(target, other, torch.ones(2)), strict=True):
                torch.testing.assert_close(ours, exact)


def test_spectra_are_the_same_bits_for_any_number_of_threads() -> None:
    signals = noise(3, 20_000), noise(3, 20_000, seed=1)
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            found.append(both_ways(*signals, torch.ones(3))[0])
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


def test_spectra_have_second_derivatives() -> None:
    other = noise(1, 1, 1030, seed=1).double().requires_grad_()
    target, found = noise(1, 1, 1030).double(), []
    for value in (losses.multispectral_loss(target, other), definition(target[0], other[0])):
        (gradient,) = torch.autograd.grad(value.sum(), other, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), other)[0])
    assert found[0].norm() > 0
    torch.testing.assert_close(*found)


def test_other_numbers_than_the_compiled_take_the_definition(monkeypatch) -> None:
    monkeypatch.delattr(spectra, "distance")
    target, other = noise(1, 1, 2000), noise(1, 1, 2000, seed=1)
    losses.multispectral_loss(target.double(), other)
