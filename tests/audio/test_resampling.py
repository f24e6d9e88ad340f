"""Resampling: what its definition says, to the length that it says, in blocks as in one piece."""

import itertools

import numpy as np
import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal

from jukesep import audio
from jukesep.base.errors import UserError

CROSSINGS = 32  # zero crossings of the filter on either side
RATES = (8000, 11025, 22050, 44100, 48000)
USUAL = [(44100, 11025), (11025, 44100), (48000, 44100), (44100, 8000)]
ODD = (44100, 11024)  # a period has 11,025 samples, the filter 40 million taps
PAIRS = pytest.mark.parametrize("rates", [*USUAL, ODD])


def _noise(samples, channels=1):
    return np.random.default_rng(samples).normal(size=(channels, samples)).astype(np.float32)


def _length(samples, source, target):
    return -(-samples * target // source)


def _filter(seconds, source, target):
    """The windowed sinc at these distances: below 0.99 of the lower of the two Nyquist rates."""
    cutoff = 0.99 * min(source, target)
    place = np.clip(seconds * cutoff, -CROSSINGS, CROSSINGS)
    return np.sinc(place) * np.cos(np.pi * place / CROSSINGS / 2) ** 2 * cutoff / source


def _streamed(whole, rates, lengths):
    """Resampled in blocks of these lengths, one after the other, and the rest in one."""
    resampler = audio.Resampler(*rates)
    cuts = np.cumsum(lengths)
    blocks = np.split(whole, cuts[cuts < whole.shape[1]], axis=1)
    parts = [resampler.feed(block) for block in blocks] + [resampler.end()]
    return parts, np.concatenate(parts, axis=1)


@settings(max_examples=25, deadline=None)
@given(samples=st.integers(1, 3000), rates=st.tuples(*[st.sampled_from(RATES)] * 2))
def test_the_length_is_that_of_the_ratio(samples, rates):
    found = audio.resample(np.ones((2, samples), np.float32), *rates)
    assert found.shape == (2, _length(samples, *rates))


@pytest.mark.parametrize(("source", "target"), [(3, 2), (3, 4)])
def test_beyond_2_to_24_samples_no_sample_is_lost(source, target):
    """float32 does not hold every length from there on. The last samples have a value, too."""
    samples = 2**24 + 1
    whole = np.zeros((1, samples), np.float32)
    whole[:, -200:] = _noise(200)
    found = audio.resample(whole, source, target)
    assert found.shape == (1, _length(samples, source, target))
    places = np.arange(found.shape[1] - 50, found.shape[1])
    distances = np.arange(samples - 200, samples) / source - places[:, None] / target
    expected = _filter(distances, source, target) @ whole[0, -200:].astype(np.float64)
    np.testing.assert_allclose(found[0, -50:], expected, atol=1e-4)
    assert np.abs(expected[-1]) > 1e-2
    if target == 2:
        _, streamed = _streamed(whole, (source, target), [2**20] * 16)
        np.testing.assert_array_equal(streamed, found)


@pytest.mark.parametrize("rates", USUAL)
def test_minutes_are_what_the_definition_gives(rates):
    """As scipy computes it in float64, with the taps from the definition, at every sample."""
    source, target = rates
    whole = _noise(300_001)
    step, new = (rate // np.gcd(*rates) for rate in rates)
    reach = int(CROSSINGS * step * new / min(step, new) / 0.99) + 1
    taps = _filter(np.arange(-reach, reach + 1) / (source * new), source, target)
    # scipy scales the taps by `new`; extrapolating with zeros is its default.
    expected = signal.resample_poly(whole[0].astype(np.float64), new, step, window=taps / new)
    found = audio.resample(whole, source, target)
    assert found.shape == (1, len(expected))
    np.testing.assert_allclose(found[0], expected, atol=5e-5)


def test_rates_whose_filter_would_fill_the_memory_are_refused():
    rates = (8000, 11_025, 22_050, 32_000, 44_100, 48_000, 88_200, 96_000, 176_400, 192_000)
    for source, target in itertools.product(rates, rates):
        audio.check_rates(source, target)
    for resampling in (lambda: audio.resample(_noise(9), 44_101, 11_025), _blocks_at_odd_rates):
        with pytest.raises(UserError, match="cannot resample from 44101 Hz to 11025 Hz"):
            resampling()


def _blocks_at_odd_rates():
    audio.Resampler(44_101, 11_025)


def test_it_keeps_a_tone_and_the_sum_of_parts():
    time = np.arange(44100) / 44100
    tone = np.sin(2 * np.pi * 1000 * time, dtype=np.float32)[None]
    found = audio.resample(tone, 44100, 11025)
    expected = np.sin(2 * np.pi * 1000 * np.arange(11025) / 11025)
    np.testing.assert_allclose(found[0, 200:-200], expected[200:-200], atol=2e-3)
    parts = np.random.default_rng(0).uniform(-0.2, 0.2, (4, 2, 4410)).astype(np.float32)
    whole = audio.resample(parts.sum(0), 44100, 11025)
    pieces = sum(audio.resample(part, 44100, 11025) for part in parts)
    np.testing.assert_allclose(whole, pieces, atol=1e-6)


@pytest.mark.parametrize("rates", USUAL)
def test_it_is_torchaudio_s_to_the_bit(rates):
    noise = _noise(30_000, channels=2)
    resample = torchaudio.transforms.Resample(
        *rates, lowpass_filter_width=CROSSINGS, dtype=torch.float32
    )
    expected = resample(torch.from_numpy(noise)).numpy()
    np.testing.assert_array_equal(audio.resample(noise, *rates), expected)


# --- block by block ---------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 60_000), min_size=1, max_size=6),
    channels=st.integers(1, 2),
    rates=st.tuples(*[st.sampled_from(RATES)] * 2),
)
def test_blocks_of_any_length_become_what_the_whole_becomes(lengths, channels, rates):
    whole = _noise(sum(lengths), channels)
    _, found = _streamed(whole, rates, lengths)
    np.testing.assert_array_equal(found, audio.resample(whole, *rates))


@PAIRS
@pytest.mark.parametrize("length", [256, 5000, 65_536])
def test_minutes_in_blocks_cost_what_the_whole_costs(monkeypatch, rates, length):
    """The same bits. Few samples are filtered twice, and no part keeps more than itself alive."""
    whole = _noise(300_001, channels=2)
    expected, filtered = audio.resample(whole, *rates), []
    resample = audio.resample

    def counting(block, *given):
        filtered.append(block.shape[1])
        return resample(block, *given)

    monkeypatch.setattr(audio.samples, "resample", counting)
    parts, found = _streamed(whole, rates, [length] * (300_001 // length))
    np.testing.assert_array_equal(found, expected)
    batch = audio.Resampler(*rates).latency
    assert sum(filtered) <= 4 / 3 * 300_001 + 2 * batch
    assert max(filtered) <= 2 * batch
    assert all(part.flags.owndata for part in parts)


def test_single_samples_become_what_the_whole_becomes():
    whole = _noise(70_000)
    _, found = _streamed(whole, (44100, 11025), [1] * 70_000)
    np.testing.assert_array_equal(found, audio.resample(whole, 44100, 11025))


@pytest.mark.parametrize("rates", [(44100, 11025), (8000, 8000)])
def test_a_block_may_be_overwritten_once_it_was_fed(rates):
    whole = _noise(100_000, channels=2)
    resampler, parts = audio.Resampler(*rates), []
    block = np.empty((2, 1000), np.float32)
    for start in range(0, 100_000, 1000):
        block[:] = whole[:, start : start + 1000]
        parts.append(resampler.feed(block))
    block[:] = 0
    found = np.concatenate([*parts, resampler.end()], axis=1)
    np.testing.assert_array_equal(found, audio.resample(whole, *rates))


@settings(max_examples=10, deadline=None)
@given(rates=st.tuples(*[st.sampled_from(RATES)] * 2), length=st.integers(1, 20_000))
def test_the_output_lags_by_the_latency_at_most(rates, length):
    source, target = rates
    resampler, came = audio.Resampler(source, target), 0
    block = np.zeros((1, length), np.float32)
    for fed in range(length, 120_000, length):
        came += resampler.feed(block).shape[1]
        assert fed - came * source / target <= resampler.latency


def test_other_channels_and_no_audio_are_refused():
    resampler = audio.Resampler(44100, 11025)
    with pytest.raises(ValueError, match="was given no audio"):
        resampler.end()
    resampler.feed(np.zeros((2, 10), np.float32))
    with pytest.raises(ValueError, match="1 channels after 2"):
        resampler.feed(np.zeros((1, 10), np.float32))
