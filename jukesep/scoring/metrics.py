"""The metrics: three kinds of SDR, and the baselines and the oracle to compare systems with.

The three kinds answer different questions and never share a column:

- ``sdr``      the paper's: the whole song at once, in mono; then the mean over songs.
- ``sdr_mdx``  the Music Demixing Challenge 2021: the whole song at once, on every channel.
- ``sdr_v4``   museval's BSSEval v4: one value per second, median over a song, then over songs.

``si_sdr`` is a fourth, which the pipeline does not compute.

Computes in float64 with numpy and scipy; does not import torch. Audio is (channels, samples).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..audio import CHANNELS
from ..base.errors import UserError
from ..base.packages import package_folder

Array = NDArray[np.float64]

METRICS = ("sdr", "sdr_mdx", "sdr_v4")
SI_SDR = "si_sdr"  # computed on request, like the EXTRAS
EXTRAS = ("sir_v4", "sar_v4", "isr_v4")

# Keeps a perfect or a silent estimate finite; the paper's code and MDX 2021 use the same value.
ENERGY_FLOOR = 1e-7
SI_LIMIT = 100.0  # dB, of `si_sdr`


def sdr(reference: ArrayLike, estimate: ArrayLike) -> float:
    """The paper's SDR in dB: ``10 log10((sum s^2 + 1e-7) / (sum (s - e)^2 + 1e-7))`` in mono.

    Both arrays are (channels, samples); their channels are averaged first. A silent estimate
    scores exactly 0 dB. Raises ValueError if the shapes differ.
    """
    reference, estimate = _pair(reference, estimate)
    return _energy_ratio(reference.mean(axis=0), estimate.mean(axis=0))


def sdr_mdx(reference: ArrayLike, estimate: ArrayLike) -> float:
    """The SDR of the Music Demixing Challenge 2021 in dB: :func:`sdr`'s formula on all channels.

    Both arrays are (channels, samples). Raises ValueError if the shapes differ.
    """
    return _energy_ratio(*_pair(reference, estimate))


def si_sdr(reference: ArrayLike, estimate: ArrayLike) -> float:
    """The scale-invariant SDR in dB of a whole song: the SDR after the best gain.

    ``10 log10(|a s|^2 / |a s - e|^2)`` with ``a = <s, e> / |s|^2`` (Le Roux, Wisdom, Erdogan and
    Hershey, "SDR - half-baked or well done?", 2019). Both arrays are (channels, samples); all
    channels are one signal with one gain, as in :func:`sdr_mdx`. Limited to +-100 dB, so that means
    exist: a silent estimate has -100 dB. Raises ValueError if the shapes differ.
    """
    reference, estimate = _pair(reference, estimate)
    power = np.sum(reference**2)
    gain = np.sum(reference * estimate) / power if power else 0.0
    signal = gain**2 * power
    error = np.sum((gain * reference - estimate) ** 2)
    if not signal:
        return -SI_LIMIT
    with np.errstate(divide="ignore"):
        return float(np.clip(10.0 * np.log10(signal / error), -SI_LIMIT, SI_LIMIT))


def sdr_v4(
    reference: ArrayLike,
    estimate: ArrayLike,
    sample_rate: int,
    others: ArrayLike | None = None,
) -> float:
    """One stem's BSSEval v4 SDR in dB: the median over the song's one-second frames.

    ``reference`` and ``estimate`` are (channels, samples). Returns NaN if no frame counts.

    museval scores all stems of a song together and skips a frame for *every* stem if *any*
    reference or estimate is silent in it. Without ``others`` only the frames where this stem is
    silent are skipped: more frames count than in museval, and the median can be higher or lower.
    ``others`` holds the song's other references, (stems, channels, samples), whose silent frames
    are then skipped too. The result equals museval's, unless the *estimate* of another stem is
    exactly silent in some frame. Raises ValueError if the shapes differ.
    """
    return median(_frames_v4(reference, estimate, sample_rate, others))


def _frames_v4(
    reference: ArrayLike, estimate: ArrayLike, sample_rate: int, others: ArrayLike | None
) -> Array:
    """The values whose median is :func:`sdr_v4`, one a second."""
    reference, estimate = _pair(reference, estimate)
    frames: Array = framewise_sdr(reference[None], estimate[None], sample_rate)[0]
    if others is not None:
        stacked = _stack(others)
        if stacked.shape[1:] != reference.shape:
            raise ValueError(
                f"others must be (stems, {reference.shape[0]}, {reference.shape[1]}), "
                f"not {stacked.shape}"
            )
        frames[_silent_frames(stacked, sample_rate).any(axis=0)] = np.nan
    return frames


def framewise_sdr(references: ArrayLike, estimates: ArrayLike, sample_rate: int) -> Array:
    """museval's BSSEval v4 SDR in dB: (stems, channels, samples) twice -> (stems, frames).

    Frames last one second and do not overlap; the tail is dropped, and a song shorter than a
    second is one frame. A frame is NaN for all stems if any reference or estimate is silent in it
    (its channels sum to zero at every sample). BSSEval's distortion filters cancel out of the SDR,
    so this equals museval up to rounding at a fraction of the cost. The one exception is a
    perfect estimate: inf here, about 300 dB of rounding noise in museval.

    Raises ValueError if the shapes differ or a reference is silent over the whole song. museval
    raises then too, and also for a silent estimate, which is NaN in every frame here.
    """
    reference, estimate = _stack(references), _stack(estimates)
    if reference.shape != estimate.shape:
        raise ValueError(f"references are {reference.shape} but estimates {estimate.shape}")
    if np.any(_silent(reference)):
        raise ValueError("a reference is silent over the whole song: its SDR is undefined")
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = _frames(reference**2, sample_rate).sum(axis=(1, 3)) / _frames(
            (reference - estimate) ** 2, sample_rate
        ).sum(axis=(1, 3))
        decibels: Array = 10.0 * np.log10(ratio)
    silent = _silent_frames(reference, sample_rate) | _silent_frames(estimate, sample_rate)
    decibels[:, silent.any(axis=0)] = np.nan
    return decibels


def silent(reference: ArrayLike) -> bool:
    """Whether a stem (channels, samples) has no SDR: its channels sum to zero at every sample.

    This is museval's rule. It leaves such a song out of BSSEval v4 for every stem.
    """
    return bool(_silent(_stack(reference)).all())


def score_song(
    song: str,
    stem: str,
    references: Mapping[str, ArrayLike],
    estimate: ArrayLike,
    sample_rate: int,
    *,
    frames: dict[str, Array] | None = None,
) -> dict[str, float]:
    """Score one stem of one song with every metric: metric name -> dB.

    ``references`` holds every stem of the song by name and ``estimate`` the estimate of ``stem``,
    each (channels, samples). ``frames`` is filled with the values of every second of the metric of
    BSSEval v4. A metric is NaN where the song does not count: every metric if the reference of
    ``stem`` is silent, that of BSSEval v4 if any reference is. Raises UserError, naming the song,
    for an estimate with NaN or infinity: no song is skipped silently.
    """
    estimate = np.asarray(estimate, dtype=np.float64)
    if not np.all(np.isfinite(estimate)):
        raise UserError(
            f"song {song!r}: the estimate of {stem} holds NaN or infinite samples. "
            "The training diverged: check its losses."
        )
    target = references[stem]
    rest = [reference for name, reference in references.items() if name != stem]
    scores = dict.fromkeys(METRICS, float("nan"))
    if silent(target):
        return scores
    scores |= {"sdr": sdr(target, estimate), "sdr_mdx": sdr_mdx(target, estimate)}
    if any(map(silent, rest)):
        return scores
    others = np.array(rest) if rest else None
    seconds = _frames_v4(target, estimate, sample_rate, others)
    if frames is not None:
        frames["sdr_v4"] = seconds
    return scores | {"sdr_v4": median(seconds)}


def mixture(mixture: ArrayLike, references: ArrayLike) -> Array:
    """The baseline that does nothing: the mixture as the estimate of every stem.

    (channels, samples) and (stems, channels, samples) -> (stems, channels, samples).
    """
    stacked = _stack(references)
    return np.broadcast_to(np.asarray(mixture, dtype=np.float64), stacked.shape)


def scaled_mixture(mixture: ArrayLike, references: ArrayLike) -> Array:
    """The paper's baseline: the mixture divided by the number of stems (mix / 4 for four).

    (channels, samples) and (stems, channels, samples) -> (stems, channels, samples).
    """
    stacked = _stack(references)
    scaled = np.asarray(mixture, dtype=np.float64) / len(stacked)
    return np.broadcast_to(scaled, stacked.shape)


def ideal_ratio_mask(mixture: ArrayLike, references: ArrayLike) -> NDArray[np.float32]:
    """The oracle: the mixture's spectrogram times ``|S_k| / sum_j |S_j|``, resynthesised.

    (channels, samples) and (stems, channels, samples) -> (stems, channels, samples).

    It knows the true stems: no system, and no upper bound, since other oracle masks score more. It
    uses magnitudes (not powers), separate channels, and an STFT of 2048 samples with a periodic
    Hann window and hop 512: the "IRM1" oracle of Stöter, Liutkus and Ito, "The 2018 Signal
    Separation Evaluation Campaign", with twice the overlap. Computed in float32, channel by
    channel: four minutes of four stereo stems take 3 GB.
    """
    from scipy.signal import istft, stft

    stacked = np.asarray(references, dtype=np.float32)
    mixed = np.asarray(mixture, dtype=np.float32)
    shape: dict[str, Any] = {"window": "hann", "nperseg": 2048, "noverlap": 2048 - 512}
    samples = mixed.shape[-1]
    # Pad songs shorter than a window to its length: scipy would shrink the window instead.
    padding = max(0, 2048 - samples)
    estimates = np.zeros_like(stacked)
    for channel in range(len(mixed)):
        padded = np.pad(stacked[:, channel], ((0, 0), (0, padding)))
        magnitudes = [np.abs(stft(stem, **shape)[2]) for stem in padded]
        total = np.full_like(magnitudes[0], np.finfo(np.float32).tiny)
        for magnitude in magnitudes:
            total += magnitude
        spectrum = stft(np.pad(mixed[channel], (0, padding)), **shape)[2] / total
        for stem, magnitude in enumerate(magnitudes):
            estimates[stem, channel] = istft(spectrum * magnitude, **shape)[1][:samples]
    return estimates


def museval_extras(
    references: ArrayLike, estimates: ArrayLike, sample_rate: int
) -> dict[str, Array]:
    """museval's own SIR, SAR and ISR: {"sir_v4", "sar_v4", "isr_v4"} -> (stems, frames) in dB.

    Both arrays are (stems, channels, samples). Slow because of 512-tap filters: about one CPU
    second per second of a four-stem song, and 7 GB of memory for four minutes. Values vary by
    0.01 dB with the number of threads.
    """
    # museval takes (stems, samples, channels).
    reference = np.moveaxis(_stack(references), 1, 2)
    estimate = np.moveaxis(_stack(estimates), 1, 2)
    _, isr, sir, sar, _ = museval_metrics().bss_eval(
        reference, estimate, window=sample_rate, hop=sample_rate
    )
    return dict(zip(EXTRAS, (sir, sar, isr), strict=True))


@cache
def museval_metrics() -> ModuleType:
    """museval's ``metrics`` module alone: importing the whole package requires ffmpeg.

    Raises UserError if museval, from the extra `pipeline`, is not installed.
    """
    path = package_folder("museval") / "metrics.py"
    spec = spec_from_file_location("jukesep_museval_metrics", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _pair(reference: ArrayLike, estimate: ArrayLike) -> tuple[Array, Array]:
    reference = np.asarray(reference, dtype=np.float64)
    estimate = np.asarray(estimate, dtype=np.float64)
    same = reference.ndim == 2 and reference.shape == estimate.shape
    if not same or len(reference) > max(CHANNELS, reference.shape[1]):
        raise ValueError(
            "reference and estimate must both be (channels, samples) of one shape, "
            f"not {reference.shape} and {estimate.shape}"
        )
    return reference, estimate


def _stack(stems: ArrayLike) -> Array:
    """Stems as float64 (stems, channels, samples); one (channels, samples) becomes one stem."""
    stacked = np.asarray(stems, dtype=np.float64)
    if stacked.ndim == 2:
        stacked = stacked[None]
    if stacked.ndim != 3:
        raise ValueError(f"stems must be (stems, channels, samples), not {stacked.shape}")
    return stacked


def _energy_ratio(reference: Array, estimate: Array) -> float:
    signal = np.sum(reference**2) + ENERGY_FLOOR
    error = np.sum((reference - estimate) ** 2) + ENERGY_FLOOR
    return float(10.0 * np.log10(signal / error))


def _frames(stems: Array, sample_rate: int) -> NDArray[Any]:
    """(..., samples) -> (..., frames, one second); a shorter song is one frame."""
    samples = stems.shape[-1]
    length = min(sample_rate, samples)
    count = samples // length if length else 0
    return stems[..., : count * length].reshape(*stems.shape[:-1], count, length)


def _silent_frames(stems: Array, sample_rate: int) -> NDArray[np.bool_]:
    """Which frames are silent by museval's rule: (stems, channels, samples) -> (stems, frames)."""
    silence: NDArray[np.bool_] = np.all(_frames(stems.sum(axis=1), sample_rate) == 0, axis=2)
    return silence


def _silent(stems: Array) -> NDArray[np.bool_]:
    """Which stems are silent throughout, by that rule: (stems, channels, samples) -> (stems,)."""
    silence: NDArray[np.bool_] = np.all(stems.sum(axis=1) == 0, axis=1)
    return silence


def median(frames: ArrayLike) -> float:
    """The median of the values that are not NaN; NaN if there are none."""
    frames = np.asarray(frames, dtype=np.float64)
    counted = frames[~np.isnan(frames)]
    return float(np.median(counted)) if counted.size else float("nan")
