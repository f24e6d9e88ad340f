"""The scores against their formulas, against museval itself, and under hypothesis."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import butter, sosfilt

from jukesep.base.errors import UserError
from jukesep.scoring import metrics

RATE = 4000
QUICK = settings(max_examples=40, deadline=None)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def song(seconds: float = 5.4, stems: int = 3, channels: int = 2, seed: int = 0) -> np.ndarray:
    """Coloured noises that fade in and out, (stems, channels, samples)."""
    samples = int(seconds * RATE)
    audio = noise(stems, channels, samples, seed=seed)
    for stem in range(stems):
        sos = butter(2, [0.05 + 0.2 * stem, 0.2 + 0.2 * stem], "bandpass", output="sos")
        audio[stem] = sosfilt(sos, audio[stem])
    envelope = 0.2 + 0.1 * np.sin(np.arange(samples) / RATE)
    return audio * envelope


def estimates_of(references: np.ndarray) -> np.ndarray:
    return 0.8 * references + 0.05 * references.sum(axis=0) + 0.01 * noise(*references.shape)


# --- the formulas ---------------------------------------------------------------------------


def test_sdr_by_hand() -> None:
    reference = np.array([[1.0, 2.0], [3.0, 0.0]])  # mono: 2, 1
    estimate = np.array([[1.0, 1.0], [1.0, 1.0]])  # mono: 1, 1
    assert metrics.sdr(reference, estimate) == pytest.approx(
        10 * np.log10((5 + 1e-7) / (1 + 1e-7)), abs=1e-12
    )
    assert metrics.sdr_mdx(reference, estimate) == pytest.approx(
        10 * np.log10((14 + 1e-7) / (0 + 1 + 4 + 1 + 1e-7)), abs=1e-12
    )


def test_silence_scores_zero_and_perfection_is_finite() -> None:
    reference = song()[0]
    silence = np.zeros_like(reference)
    for metric in (metrics.sdr, metrics.sdr_mdx):
        assert metric(reference, silence) == 0.0
        assert metric(silence, silence) == 0.0
        assert 60 < metric(reference, reference) < 200
        assert metric(silence, reference) < -60


def test_float32_audio_is_scored_in_float64() -> None:
    reference, estimate = song()[0].astype(np.float32), estimates_of(song())[0].astype(np.float32)
    for metric in (metrics.sdr, metrics.sdr_mdx):
        double = metric(reference.astype(np.float64), estimate.astype(np.float64))
        assert metric(reference, estimate) == double


def test_shapes_are_checked() -> None:
    stereo = np.ones((2, 10))
    for metric in (metrics.sdr, metrics.sdr_mdx):
        with pytest.raises(ValueError, match=r"one shape"):
            metric(stereo, np.ones((1, 10)))
        with pytest.raises(ValueError, match=r"one shape"):
            metric(np.ones(10), np.ones(10))
    with pytest.raises(ValueError, match="estimates"):
        metrics.framewise_sdr(np.ones((2, 2, 10)), np.ones((3, 2, 10)), 5)
    with pytest.raises(ValueError, match="others"):
        metrics.sdr_v4(stereo, stereo, 5, others=np.ones((3, 1, 10)))


seeds = st.integers(0, 2**32 - 1)
decibels = st.floats(-30, 30)


@QUICK
@given(seed=seeds, error=decibels, volume=st.floats(0.5, 200))
def test_scores_do_not_change_with_the_volume(seed: int, error: float, volume: float) -> None:
    reference = noise(2, 3 * 50, seed=seed)
    estimate = reference + 10 ** (-error / 20) * noise(2, 3 * 50, seed=seed + 1)
    for metric in (metrics.sdr, metrics.sdr_mdx, lambda s, e: metrics.sdr_v4(s, e, 50)):
        assert metric(volume * reference, volume * estimate) == pytest.approx(
            metric(reference, estimate), abs=1e-4
        )


@QUICK
@given(seed=seeds, order=st.permutations(range(4)))
def test_order_of_stems_channels_and_samples(seed: int, order: list[int]) -> None:
    references, estimates = noise(4, 2, 120, seed=seed), noise(4, 2, 120, seed=seed + 1)
    frames = metrics.framewise_sdr(references, estimates, 40)
    np.testing.assert_allclose(
        metrics.framewise_sdr(references[order], estimates[order], 40), frames[order]
    )
    mirrored = metrics.framewise_sdr(references[:, ::-1], estimates[:, ::-1], 40)
    np.testing.assert_allclose(mirrored, frames)
    for metric in (metrics.sdr, metrics.sdr_mdx):
        backwards = metric(references[0, :, ::-1], estimates[0, :, ::-1])
        assert backwards == pytest.approx(metric(references[0], estimates[0]), abs=1e-9)


@QUICK
@given(seed=seeds, gain=st.floats(0.05, 1.95))
def test_a_scaled_reference_scores_its_gain(seed: int, gain: float) -> None:
    reference = noise(2, 100, seed=seed)
    if abs(gain - 1) < 1e-2:
        gain = 0.5
    expected = -20 * np.log10(abs(1 - gain))
    assert metrics.sdr_mdx(reference, gain * reference) == pytest.approx(expected, abs=1e-3)
    assert metrics.sdr_v4(reference, gain * reference, 50) == pytest.approx(expected, abs=1e-6)


@QUICK
@given(seed=seeds)
def test_mono_and_mdx_agree_on_equal_channels(seed: int) -> None:
    reference, estimate = noise(1, 80, seed=seed), noise(1, 80, seed=seed + 1)
    twice = metrics.sdr_mdx(np.repeat(reference, 2, 0), np.repeat(estimate, 2, 0))
    assert metrics.sdr(np.repeat(reference, 2, 0), np.repeat(estimate, 2, 0)) == pytest.approx(
        twice, abs=1e-6
    )


# --- BSSEval v4 -----------------------------------------------------------------------------


@QUICK
@given(
    seed=seeds,
    silent=st.lists(
        st.tuples(st.booleans(), st.integers(0, 2), st.integers(0, 3)), min_size=0, max_size=4
    ),
)
def test_any_silence_makes_the_frame_nan_for_all_stems(
    seed: int, silent: list[tuple[bool, int, int]]
) -> None:
    length = 30
    references, estimates = noise(3, 2, 5 * length + 7, seed=seed), noise(3, 2, 5 * length + 7)
    for in_reference, stem, frame in silent:
        audio = references if in_reference else estimates
        # Opposite channels count as silent: museval looks at their sum.
        audio[stem, 1, frame * length : (frame + 1) * length] = -audio[
            stem, 0, frame * length : (frame + 1) * length
        ]
    frames = metrics.framewise_sdr(references, estimates, length)
    assert frames.shape == (3, 5)
    expected = np.zeros(5, dtype=bool)
    expected[[frame for _, _, frame in silent]] = True
    np.testing.assert_array_equal(np.isnan(frames), np.tile(expected, (3, 1)))


@pytest.mark.parametrize("channels", [1, 2])
def test_framewise_sdr_equals_museval(channels: int) -> None:
    references = song(channels=channels, stems=2)
    references[0, :, RATE : 2 * RATE] = 0
    estimates = estimates_of(references)
    estimates[1, :, 3 * RATE : 4 * RATE] = 0
    theirs, isr, sir, sar, _ = metrics.museval_metrics().bss_eval(
        np.moveaxis(references, 1, 2), np.moveaxis(estimates, 1, 2), window=RATE, hop=RATE
    )
    ours = metrics.framewise_sdr(references, estimates, RATE)
    assert ours.shape == theirs.shape == (2, 5)
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
    assert list(np.isnan(ours[1])) == [False, True, False, True, False]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)

    extras = metrics.museval_extras(references, estimates, RATE)
    for name, values in (("sir_v4", sir), ("sar_v4", sar), ("isr_v4", isr)):
        np.testing.assert_allclose(extras[name], values, atol=0.05)


def test_a_song_shorter_than_a_second_is_one_frame_as_in_museval() -> None:
    references = song(seconds=0.7, stems=2, channels=1)
    estimates = estimates_of(references)
    theirs = metrics.museval_metrics().bss_eval(
        np.moveaxis(references, 1, 2), np.moveaxis(estimates, 1, 2), window=RATE, hop=RATE
    )[0]
    ours = metrics.framewise_sdr(references, estimates, RATE)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)


def test_one_stem_and_the_silence_of_others() -> None:
    references = song(seconds=5)
    references[1, :, : 2 * RATE] = 0
    estimates = estimates_of(references)
    estimates[0, :, :RATE] *= 0.2  # frame 0 scores differently from the rest
    together = metrics.framewise_sdr(references, estimates, RATE)[0]
    assert np.isnan(together).sum() == 2
    alone = metrics.framewise_sdr(references[0], estimates[0], RATE)[0]
    assert np.isnan(alone).sum() == 0
    assert metrics.sdr_v4(references[0], estimates[0], RATE) == np.median(alone)
    with_others = metrics.sdr_v4(references[0], estimates[0], RATE, others=references[1:])
    assert with_others == np.nanmedian(together)


def test_no_countable_frame_is_nan_and_a_silent_reference_an_error() -> None:
    reference = song()[0]
    assert np.isnan(metrics.sdr_v4(reference, np.zeros_like(reference), RATE))
    with pytest.raises(ValueError, match="silent over the whole song"):
        metrics.sdr_v4(np.zeros_like(reference), reference, RATE)
    assert metrics.sdr_v4(reference, reference, RATE) == np.inf


# --- a song ---------------------------------------------------------------------------------


def test_samples_by_channels_are_no_audio() -> None:
    transposed = song()[0].T
    for score in (metrics.sdr, metrics.sdr_mdx, metrics.si_sdr):
        with pytest.raises(ValueError, match=r"\(channels, samples\)"):
            score(transposed, transposed)


def test_score_song() -> None:
    names = ("drums", "bass")
    audio = song(seconds=3, channels=1, stems=2)
    audio[0, :, :RATE] = 0
    references = dict(zip(names, audio, strict=True))
    estimates = estimates_of(audio)
    scored = metrics.score_song("a song", "bass", references, estimates[1], RATE)
    assert set(scored) == {*metrics.METRICS}
    assert scored["sdr"] == metrics.sdr(audio[1], estimates[1])
    assert scored["sdr_v4"] == np.nanmedian(metrics.framewise_sdr(audio, estimates, RATE)[1])


def test_a_silent_stem_has_no_score_and_costs_the_others_bsseval_alone() -> None:
    audio = song(seconds=2)
    left = audio[1].copy()
    left[1] = -left[0]
    for quiet in (np.zeros_like(left), left):  # nothing, and nothing in mono
        references = {"drums": audio[0], "vocals": quiet}
        drums, vocals = (
            metrics.score_song("quiet song", stem, references, audio[2], RATE)
            for stem in references
        )
        assert set(drums) == set(vocals) == {*metrics.METRICS}
        assert np.isnan(list(vocals.values())).all()
        assert drums.pop("sdr") == metrics.sdr(audio[0], audio[2])
        assert drums.pop("sdr_mdx") == metrics.sdr_mdx(audio[0], audio[2])
        assert np.isnan(list(drums.values())).all()
    # As museval, which does not take such a song.
    stacked = np.array([audio[0], quiet])
    with pytest.raises(ValueError, match="silent"):
        metrics.museval_extras(stacked, stacked, RATE)


def test_score_song_names_what_cannot_be_scored() -> None:
    audio = song(seconds=2)
    broken = np.full_like(audio[0], np.nan)
    with pytest.raises(UserError, match=r"'a song'.*estimate of drums.*NaN"):
        metrics.score_song("a song", "drums", {"drums": audio[0]}, broken, RATE)


# --- baselines ------------------------------------------------------------------------------


def test_mixture_baselines() -> None:
    references = song(stems=4)[:, :, :RATE]
    mixed = references.sum(axis=0)
    np.testing.assert_array_equal(metrics.mixture(mixed, references)[2], mixed)
    np.testing.assert_array_equal(metrics.scaled_mixture(mixed, references)[3], mixed / 4)
    assert metrics.mixture(mixed, references).shape == references.shape


@pytest.mark.parametrize("samples", [700, 2048, 9001])
def test_ideal_ratio_mask_sums_to_the_mixture_and_is_exact_for_one_stem(samples: int) -> None:
    references = song(stems=3)[:, :, :samples]
    mixed = references.sum(axis=0)
    estimates = metrics.ideal_ratio_mask(mixed, references)
    assert estimates.shape == references.shape
    np.testing.assert_allclose(estimates.sum(axis=0), mixed, atol=1e-5)
    alone = metrics.ideal_ratio_mask(references[0], references[:1])
    np.testing.assert_allclose(alone[0], references[0], atol=1e-5)


def test_ideal_ratio_mask_beats_the_mixture_baselines() -> None:
    references = song(stems=4)
    mixed = references.sum(axis=0)
    oracle = metrics.ideal_ratio_mask(mixed, references)
    scaled = metrics.scaled_mixture(mixed, references)
    for stem in range(4):
        assert metrics.sdr(references[stem], oracle[stem]) > 3 + metrics.sdr(
            references[stem], scaled[stem]
        )


def test_ideal_ratio_mask_leaves_silence_silent() -> None:
    references = song(stems=2, seconds=3)
    references[0] = 0
    estimates = metrics.ideal_ratio_mask(references.sum(axis=0), references)
    assert np.all(estimates[0] == 0)
    assert np.all(np.isfinite(estimates))


# --- the scale-invariant SDR --------------------------------------------------------------------


def test_si_sdr_is_the_sdr_after_the_best_gain():
    rng = np.random.default_rng(0)
    reference, noise = rng.standard_normal((2, 2, 200))
    estimate = 0.3 * reference + 0.1 * noise
    gains = np.linspace(0.2, 0.4, 20001)[:, None, None]
    target = gains * reference
    errors = np.sum((target - estimate) ** 2, axis=(1, 2))
    best = np.argmin(errors)
    expected = 10 * np.log10(np.sum(target[best] ** 2) / errors[best])
    assert metrics.si_sdr(reference, estimate) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("gain", [1e-4, 0.5, 30.0])
def test_si_sdr_does_not_depend_on_the_level(gain):
    rng = np.random.default_rng(1)
    reference, noise = rng.standard_normal((2, 1, 5000))
    estimate = reference + 0.2 * noise
    expected = metrics.si_sdr(reference, estimate)
    assert metrics.si_sdr(reference, gain * estimate) == pytest.approx(expected, abs=1e-6)
    assert metrics.si_sdr(gain * reference, estimate) == pytest.approx(expected, abs=1e-6)


def test_si_sdr_has_one_gain_for_all_channels():
    rng = np.random.default_rng(2)
    reference = rng.standard_normal((2, 5000))
    moved = reference * [[1.0], [0.5]]
    power = np.sum(reference**2, axis=1)
    gain = np.sum(power * [1.0, 0.5]) / np.sum(power)
    error = np.sum(power * [(gain - 1) ** 2, (gain - 0.5) ** 2])
    expected = 10 * np.log10(gain**2 * np.sum(power) / error)
    assert metrics.si_sdr(reference, moved) == pytest.approx(expected, abs=1e-6)


def test_si_sdr_is_limited_so_that_means_exist():
    reference = np.random.default_rng(3).standard_normal((2, 5000))
    assert metrics.si_sdr(reference, reference) == 100
    assert metrics.si_sdr(reference, np.zeros_like(reference)) == -100
    with pytest.raises(ValueError, match="one shape"):
        metrics.si_sdr(reference, reference[:, 1:])
