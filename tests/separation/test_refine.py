"""Refinements: the mixture shared out among its stems, the same however the song is cut."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jukesep.base.errors import UserError
from jukesep.model.vqvae import VQVAE, Architecture
from jukesep.separation import refine
from jukesep.separation.chunked import apply_chunked, windows
from jukesep.separation.refine import (
    REFINEMENTS,
    Consistency,
    Masks,
    Wiener,
    choose,
    delays,
    shifted,
)
from jukesep.songs.manifest import STEMS

RATE = 8000
N_FFT = 64
KINDS = pytest.mark.parametrize("kind", REFINEMENTS.values(), ids=REFINEMENTS)


def _song(samples, channels=2, seed=0):
    """Stems of noise, each panned, and estimates of them that other noise has spoilt."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(STEMS), 1, samples, generator=generator) * 0.2
    pan = torch.rand(len(STEMS), channels, 1, generator=generator)
    true = noise * pan
    spoilt = true + 0.1 * torch.randn(true.shape, generator=generator)
    return true.sum(0), dict(zip(STEMS, true, strict=True)), dict(zip(STEMS, spoilt, strict=True))


def _stack(stems):
    return torch.stack(list(stems.values()))


def _streamed(refinement, mixture, stems, lengths):
    """Refined in blocks of these lengths, one after the other."""
    parts, start = [], 0
    for length in [*lengths, mixture.shape[-1]]:
        cut = slice(start, start + length)
        parts.append(refinement.feed(mixture[:, cut], {s: x[:, cut] for s, x in stems.items()}))
        start = min(start + length, mixture.shape[-1])
        done = sum(part["drums"].shape[-1] for part in parts)
        assert start - done <= refinement.latency
    parts.append(refinement.end())
    return {stem: torch.cat([part[stem] for part in parts], dim=-1) for stem in stems}


@pytest.mark.parametrize("kind", REFINEMENTS.values(), ids=REFINEMENTS)
@settings(max_examples=25, deadline=None)
@given(
    samples=st.integers(0, 3000),
    channels=st.integers(1, 3),
    lengths=st.lists(st.integers(0, 1500), max_size=8),
    run=st.integers(1, 20),
)
def test_blocks_of_any_length_equal_the_whole_song(kind, samples, channels, lengths, run):
    mixture, _, stems = _song(samples, channels)
    whole, streamed = (kind(RATE, n_fft=N_FFT) for _ in range(2))
    whole.run = streamed.run = run
    expected = whole(mixture, stems)
    found = _streamed(streamed, mixture, stems, lengths)
    for stem in STEMS:
        assert found[stem].shape == mixture.shape
        torch.testing.assert_close(found[stem], expected[stem], atol=1e-6, rtol=0)


@KINDS
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_stems_sum_to_the_mixture(kind, channels):
    mixture, _, stems = _song(5000, channels)
    assert (_stack(stems).sum(0) - mixture).abs().max() > 0.1
    refined = kind(RATE, n_fft=N_FFT)(mixture, stems)
    torch.testing.assert_close(_stack(refined).sum(0), mixture, atol=1e-5, rtol=0)


@KINDS
def test_stems_come_closer_to_the_true_ones(kind):
    mixture, true, stems = _song(20_000)
    refined = kind(RATE, n_fft=N_FFT)(mixture, stems)
    before, after = ((_stack(s) - _stack(true)).square().mean() for s in (stems, refined))
    assert after < 0.9 * before


@pytest.mark.parametrize("kind", [Masks, Wiener])
def test_a_silent_mixture_has_silent_stems(kind):
    mixture, _, stems = _song(2000)
    refined = kind(RATE, n_fft=N_FFT)(torch.zeros_like(mixture), stems)
    assert not _stack(refined).any()


@KINDS
def test_silence_is_no_division_by_zero(kind):
    """Silent estimates, digital silence all over, and one silent channel."""
    mixture, _, stems = _song(2000)
    silent = {stem: torch.zeros_like(x) for stem, x in stems.items()}
    assert not _stack(kind(RATE)(torch.zeros_like(mixture), silent)).any()
    shared = _stack(kind(RATE)(mixture, silent))
    torch.testing.assert_close(shared, (mixture / 4).expand_as(shared), atol=1e-5, rtol=0)
    for x in (mixture, *stems.values()):
        x[1] = 0
    refined = _stack(kind(RATE)(mixture, stems))
    assert refined.isfinite().all()
    assert refined[:, 1].abs().max() < 1e-6


@KINDS
def test_equal_channels_have_equal_stems(kind):
    """Their covariance has no inverse."""
    mixture, _, stems = _song(4000, channels=1)
    alone = _stack(kind(RATE, n_fft=N_FFT)(mixture, stems))
    twice = {stem: x.repeat(2, 1) for stem, x in stems.items()}
    refined = _stack(kind(RATE, n_fft=N_FFT)(mixture.repeat(2, 1), twice))
    torch.testing.assert_close(refined, alone.repeat(1, 2, 1), atol=1e-4, rtol=1e-3)


@KINDS
def test_loudness_does_not_matter(kind):
    mixture, _, stems = _song(3000)
    loud = _stack(kind(RATE)(mixture, stems))
    quiet = _stack(kind(RATE)(mixture * 1e-6, {s: x * 1e-6 for s, x in stems.items()}))
    torch.testing.assert_close(quiet * 1e6, loud, atol=1e-4, rtol=1e-3)


def _spectra(audio, n_fft):
    """Spectra of (..., samples) by torch's own transform, all frames that a sample lies in."""
    rows = torch.nn.functional.pad(audio.reshape(-1, audio.shape[-1]), (n_fft, n_fft))
    window = torch.hann_window(n_fft)
    found = torch.stft(rows, n_fft, n_fft // 4, window=window, center=False, return_complex=True)
    return found.reshape(*audio.shape[:-1], *found.shape[1:])


def _resynthesised(spectra, n_fft, samples):
    rows = spectra.reshape(-1, *spectra.shape[-2:])
    # center=True takes the first frame to begin half a frame before the first sample.
    window = torch.hann_window(n_fft)
    audio = torch.istft(rows, n_fft, n_fft // 4, window=window, center=True)
    first = n_fft - n_fft // 2
    return audio[:, first : first + samples].reshape(*spectra.shape[:-2], samples)


def test_masks_are_their_definition():
    mixture, _, stems = _song(4096)
    powers = _spectra(_stack(stems), N_FFT).abs() ** 1.5
    spectra = _spectra(mixture, N_FFT) * powers / (powers.sum(0) + 1e-12)
    refined = Masks(RATE, power=1.5, n_fft=N_FFT)(mixture, stems)
    expected = _resynthesised(spectra, N_FFT, 4096)
    torch.testing.assert_close(_stack(refined), expected, atol=1e-5, rtol=1e-4)


def test_consistency_of_power_0_shares_the_difference_equally():
    mixture, _, stems = _song(3000)
    refined = _stack(Consistency(RATE, power=0.0, n_fft=N_FFT)(mixture, stems))
    estimates = _stack(stems)
    expected = estimates + (mixture - estimates.sum(0)) / len(STEMS)
    torch.testing.assert_close(refined, expected, atol=1e-5, rtol=0)


def test_wiener_filters_of_one_channel_are_masks():
    mixture, _, stems = _song(4000, channels=1)
    masks = _stack(Masks(RATE, n_fft=N_FFT)(mixture, stems))
    wiener = _stack(Wiener(RATE, n_fft=N_FFT)(mixture, stems))
    torch.testing.assert_close(wiener, masks, atol=1e-4, rtol=1e-3)


def test_wiener_filters_tell_stems_by_where_they_are():
    """Estimates that cannot tell two stems apart, one of them on the left, one on the right."""
    left, right = torch.randn(2, 1, 20_000, generator=torch.Generator().manual_seed(0))
    true = torch.stack([left * torch.tensor([[1.0], [0.2]]), right * torch.tensor([[0.2], [1.0]])])
    mixture = true.sum(0)
    stems = {"drums": true[0] + 0.5 * true[1], "vocals": true[1] + 0.5 * true[0]}
    errors = [
        (_stack(kind(RATE, n_fft=N_FFT)(mixture, stems)) - true).square().mean()
        for kind in (Masks, Wiener)
    ]
    assert errors[1] < 0.7 * errors[0]


def test_wiener_filters_of_power_2_are_norberts():
    """All frames in one run, and one iteration, as the package's `wiener` makes it."""
    norbert = pytest.importorskip("norbert", reason="norbert is not installed; `uv sync` does so")
    mixture, _, stems = _song(6000)
    refinement = Wiener(RATE, power=2.0, n_fft=N_FFT)
    refinement.run = 10_000
    v = _spectra(_stack(stems), N_FFT).abs().permute(3, 2, 1, 0).double().numpy()
    x = _spectra(mixture, N_FFT).permute(2, 1, 0).to(torch.complex128).numpy()
    y = torch.from_numpy(norbert.wiener(v, x, iterations=1)).permute(3, 2, 1, 0)
    expected = _resynthesised(y.to(torch.complex64), N_FFT, 6000)
    found = _stack(refinement(mixture, stems))
    assert (found - expected).square().mean() < 1e-4 * expected.square().mean()


def test_memory_does_not_grow_with_the_song():
    """What an object keeps between two blocks: less than one of them, and no part of it."""
    for kind in REFINEMENTS.values():
        refinement, kept = kind(RATE, n_fft=N_FFT), []
        for _ in range(12):
            mixture, _, stems = _song(4000)
            refinement.feed(mixture, stems)
            tensors = [x for x in vars(refinement).values() if isinstance(x, torch.Tensor)]
            kept.append(sum(x.untyped_storage().nbytes() for x in tensors))
        most = (len(STEMS) + 1) * 2 * 4 * (refinement.latency + N_FFT) + 8 * 4 * 33 * 5
        assert max(kept) <= most


@KINDS
def test_small_blocks_are_not_joined_one_by_one(kind, monkeypatch):
    """The samples that are copied do not depend on how long the blocks are."""
    joined, cat = [], torch.cat

    def counting(parts, dim=0):
        joined.append(sum(part.numel() for part in parts))
        return cat(parts, dim=dim)

    mixture, _, stems = _song(20_000)
    monkeypatch.setattr(torch, "cat", counting)
    copied = []
    for length in (10, 4000):
        refinement = kind(RATE, n_fft=N_FFT)
        for start in range(0, 20_000, length):
            cut = slice(start, start + length)
            refinement.feed(mixture[:, cut], {s: x[:, cut] for s, x in stems.items()})
        copied.append(sum(joined))
        joined.clear()
    assert copied[0] <= 1.5 * copied[1]


def test_windows_of_a_frame_suit_the_sample_rate():
    lengths = {rate: Masks(rate).n_fft for rate in (8000, 11025, 22050, 44100, 48000)}
    assert lengths == {8000: 2048, 11025: 2048, 22050: 4096, 44100: 8192, 48000: 8192}


def test_mistakes_in_use_are_named():
    mixture, _, stems = _song(100)
    with pytest.raises(ValueError, match="no audio"):
        Masks(RATE).end()
    with pytest.raises(ValueError, match=r"mixture of shape \(2, 99\)"):
        Masks(RATE).feed(mixture[:, 1:], stems)
    masks = Masks(RATE)
    masks.feed(mixture, stems)
    with pytest.raises(ValueError, match=r"stems \('drums',\) after"):
        masks.feed(mixture, {"drums": stems["drums"]})


def test_choosing_by_name():
    assert type(choose(None, STEMS, RATE)) is REFINEMENTS[refine.DEFAULT]
    for name, kind in REFINEMENTS.items():
        assert type(choose(name, STEMS, RATE)) is kind
    assert choose("none", STEMS, RATE) is None
    assert choose(None, ["vocals"], RATE) is None
    assert choose("none", ["vocals"], RATE) is None
    with pytest.raises(UserError, match=r"missing: drums, bass, other\. Choose none"):
        choose("masks", ["vocals"], RATE)
    for stems in (STEMS, ["vocals"]):
        with pytest.raises(UserError, match=r"'mask': unknown\. Choose wiener, masks"):
            choose("mask", stems, RATE)


# --- shifts -----------------------------------------------------------------------------------


def _model():
    torch.manual_seed(0)
    model = VQVAE(Architecture(width=4, depth=2, downs=(2,), latent_dim=4, codes=16)).eval()
    # Louder weights, so that a wrong border shows.
    for parameter in model.parameters():
        parameter.data *= 2
    model.codebook.restore(torch.randn(16, 4), 1.0)
    return model


MODEL = _model()
HOP = MODEL.architecture.hop


def _apply(rows):
    return apply_chunked(MODEL, rows)


def test_shifts_are_the_mean_over_delays():
    rows = torch.rand(2, 403, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.testing.assert_close(shifted(_apply, rows, 1, HOP), _apply(rows))
    late = _apply(torch.cat([torch.zeros(2, 3), rows], dim=1))[:, 3:]  # the hop is 4
    two = shifted(_apply, rows, 2, HOP)
    torch.testing.assert_close(two, (_apply(rows) + late) / 2)
    assert (two - _apply(rows)).abs().max() > 1e-3


@pytest.mark.parametrize("hop", [1, 2, 4, 8, 32, 128])
def test_delays_are_different_and_cancel_images_layer_by_layer(hop):
    found = delays(hop, hop)
    assert found[0] == 0
    assert sorted(found) == list(range(hop))
    shifts = 1
    while shifts <= hop:
        assert delays(shifts, hop) == found[:shifts]
        assert sorted(delay % shifts for delay in found[:shifts]) == list(range(shifts))
        shifts *= 2


def test_two_shifts_cancel_the_image_that_a_layer_of_stride_two_leaves():
    """Every second sample repeated: a tone at f, and its image at half the sample rate less f."""

    def held(rows):
        return rows[:, ::2].repeat_interleave(2, dim=1)[:, : rows.shape[-1]]

    time = torch.arange(4096.0)
    tone = torch.cos(2 * math.pi * time * 512 / 4096)[None]

    def image(rows):
        return torch.fft.rfft(rows)[0, 2048 - 512].abs().item()

    assert image(held(tone)) > 100
    for shifts in (2, 4, 8):
        assert image(shifted(held, tone, shifts, 8)) < 8


@settings(max_examples=30, deadline=None)
@given(
    samples=st.integers(1, 700),
    chunk=st.integers(1, 100),
    shifts=st.integers(1, HOP),
    block=st.integers(1, 300),
)
def test_shifted_chunks_equal_the_shifted_whole(samples, chunk, shifts, block):
    rows = torch.from_numpy(np.random.default_rng(samples).uniform(-1, 1, (1, samples))).float()
    cut = windows(rows.split(block, dim=1), chunk * HOP, MODEL.context() + HOP)
    parts = [shifted(_apply, window, shifts, HOP)[:, kept] for window, kept in cut]
    whole = shifted(_apply, rows, shifts, HOP)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@KINDS
def test_refined_on_cuda_as_on_the_cpu(kind):
    mixture, _, stems = _song(9000)
    expected = _stack(kind(RATE)(mixture, stems))
    found = kind(RATE)(mixture.cuda(), {stem: x.cuda() for stem, x in stems.items()})
    torch.testing.assert_close(_stack(found).cpu(), expected, atol=1e-4, rtol=1e-3)
