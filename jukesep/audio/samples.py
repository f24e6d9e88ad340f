"""Samples in and out of files: the one place that opens audio.

Audio is a float32 array (channels, samples), full scale at +-1.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from ..base.errors import UserError
from ..base.files import atomic

Audio = npt.NDArray[np.float32]

# Containers that libsndfile does not read; a later reader may add them through ffmpeg.
READABLE = "wav, flac, mp3, ogg and opus files"
BLOCK = 1 << 15  # samples read at a time: they stay in the processor's cache
STEP = np.float32(2**-15)  # of 16 bit
STEADY = 1 << 15  # samples; of fewer than 20,480 PyTorch takes sums in another order
RIFF_LIMIT = 0xFFFFFFFF  # bytes that a wav file can say it has


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says: Hz, channels, samples (a channel), sample format."""

    sample_rate: int
    channels: int
    samples: int
    subtype: str


def info(path: str | Path) -> AudioInfo:
    """The header of an audio file. UserError if it is missing or no audio libsndfile knows."""
    try:
        found = soundfile.info(str(path))
    except (soundfile.LibsndfileError, OSError) as error:
        raise _unreadable(path, error) from error
    return AudioInfo(found.samplerate, found.channels, found.frames, found.subtype)


def read(path: str | Path, start: int = 0, samples: int | None = None) -> Audio:
    """Samples [start, start + samples) of a file, or all from `start`: (channels, samples).

    Seeks; never decodes what it does not return. UserError if the file is missing, damaged,
    ends early, or holds NaN or infinity.
    """
    header = info(path)
    wanted = max(header.samples - start, 0) if samples is None else samples
    audio = np.empty((header.channels, wanted), np.float32)
    done = 0
    for block in blocks(path, start, samples):
        audio[:, done : done + block.shape[1]] = block
        done += block.shape[1]
    return np.ascontiguousarray(audio[:, :done])


def blocks(path: str | Path, start: int = 0, samples: int | None = None) -> Iterator[Audio]:
    """What `read` returns, in blocks of at most BLOCK samples: little memory, and fast for it."""
    for frames in raw_blocks(path, start, samples):
        # numpy turns 16 bit into float faster than libsndfile, to the same numbers.
        block = frames.T.astype(np.float32, order="C")
        if frames.dtype == np.int16:
            block *= STEP
        yield block


def raw_blocks(
    path: str | Path, start: int = 0, samples: int | None = None
) -> Iterator[npt.NDArray[Any]]:
    """What `blocks` yields, as the file has it: (samples, channels).

    int16 of a 16-bit file, where 1 is STEP; else float32. Errors as those of `read`.
    """
    done, wanted = 0, samples
    try:
        with soundfile.SoundFile(str(path)) as file:
            if start:
                file.seek(start)
            wanted = file.frames if samples is None else samples
            kind = "int16" if file.subtype == "PCM_16" else "float32"
            while len(read := file.read(min(BLOCK, wanted - done), dtype=kind, always_2d=True)):
                done += len(read)
                if kind == "float32" and not np.isfinite(read).all():
                    raise UserError(
                        f"{path}: holds NaN or infinite samples. Export the file again."
                    )
                yield read
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise _unreadable(path, error) from error
    if samples is not None and done != samples:
        raise UserError(
            f"{path}: ends at sample {start + done}, sample {start + samples} was expected. "
            "The file is truncated; copy it again."
        )


def write(
    path: str | Path, audio: npt.ArrayLike, sample_rate: int, subtype: str | None = None
) -> None:
    """Write (channels, samples) to a file whose suffix names the format, atomically.

    `subtype` is libsndfile's sample format (PCM_16, PCM_24, FLOAT, ...); None takes the
    format's default. int16 arrays are written to PCM_16 bit for bit.
    """
    samples = np.asarray(audio)
    if subtype == "FLOAT" and Path(path).suffix == ".wav":
        with writing(path, sample_rate, *samples.shape) as put:
            put(samples)
        return
    with atomic(path) as temporary:
        soundfile.write(str(temporary), samples.T, sample_rate, subtype=subtype)


@contextmanager
def writing(
    path: str | Path, sample_rate: int, channels: int, samples: int
) -> Iterator[Callable[[npt.NDArray[Any]], None]]:
    """Write a 32-bit float wav file piece by piece, atomically; `write` with subtype FLOAT does so.

    Yields a function that takes the next samples, (channels, any number). `samples` is how many
    are expected, a channel: an RF64 file, of 64-bit lengths, is begun if RIFF's 4 GiB are too few.

    The same audio is the same file: libsndfile would stamp the time into it.
    """
    long = len(_wav_header(sample_rate, channels, 0, False)) + 4 * channels * samples > RIFF_LIMIT
    written = 0
    with atomic(path) as temporary, temporary.open("wb") as file:

        def put(block: npt.NDArray[Any]) -> None:
            nonlocal written
            if len(block) != channels:
                raise ValueError(f"{path}: {len(block)} channels given, {channels} were announced")
            file.write(np.ascontiguousarray(block.T, "<f4").data)
            written += block.shape[1]

        file.write(_wav_header(sample_rate, channels, 0, long))
        yield put
        file.seek(0)
        # A compressed song may hold a few samples more or fewer than its header says.
        file.write(_wav_header(sample_rate, channels, written, long))


def _wav_header(sample_rate: int, channels: int, samples: int, long: bool) -> bytes:
    """What precedes the samples of a 32-bit float wav file; of an RF64 file (EBU 3306) if long."""
    unknown, frame = 0xFFFFFFFF, 4 * channels
    form = (18, 3, channels, sample_rate, frame * sample_rate, frame, 32, 0)
    middle = struct.pack("<4sIHHIIHHH", b"fmt ", *form)
    middle += struct.pack("<4sII", b"fact", 4, unknown if long else samples)
    middle += struct.pack("<4sI", b"data", unknown if long else frame * samples)
    size = len(b"WAVE") + len(middle) + frame * samples
    if not long:
        return struct.pack("<4sI4s", b"RIFF", size, b"WAVE") + middle
    sizes = struct.pack("<4sIQQQI", b"ds64", 28, size + 36, frame * samples, samples, 0)
    return struct.pack("<4sI4s", b"RF64", unknown, b"WAVE") + sizes + middle


def resample(audio: Audio, source: int, target: int) -> Audio:
    """(channels, samples) at `source` Hz to `target` Hz: ceil(samples * target / source) samples.

    torchaudio's windowed sinc, 32 zero crossings on either side.
    """
    if source == target or not audio.size:
        return audio
    import torch

    return _sinc(source, target)(torch.from_numpy(audio)).numpy()


class Resampler:
    """`resample` of audio that comes block by block: the same samples to the bit, little memory."""

    def __init__(self, source: int, target: int) -> None:
        self.source, self.target = source, target
        common = math.gcd(source, target)
        # A period of `step` samples becomes one of `new`.
        self._step, self._new = source // common, target // common
        self._held: Audio | None = None
        self._done = 0  # periods of what is held that have been returned
        if source != target:
            # Periods that a sample depends on, on either side; those held are more.
            self._context = -(-_sinc(source, target).width // self._step)
            self._before = max(self._context, -(-STEADY // self._step))

    def feed(self, block: Audio) -> Audio:
        """The next samples (channels, any number) to those that are certain by now, or none."""
        if self.source == self.target:
            self._held = block[:, :0]
            return block
        held = block if self._held is None else np.concatenate([self._held, block], axis=1)
        ready = held.shape[1] // self._step - self._context
        if ready <= self._done or held.shape[1] < STEADY:
            self._held = held
            return held[:, :0]
        found = resample(held, self.source, self.target)
        found = found[:, self._done * self._new : ready * self._new]
        first = max(ready - self._before, 0)
        self._held, self._done = held[:, first * self._step :], ready - first
        return found

    def end(self) -> Audio:
        """The rest, after the last block. ValueError if there was none."""
        if self._held is None:
            raise ValueError("a resampler was given no audio")
        return resample(self._held, self.source, self.target)[:, self._done * self._new :]


@cache
def _sinc(source: int, target: int) -> Any:
    """The filter, made once: between some rates it has millions of taps."""
    import torch
    from torchaudio.transforms import Resample

    return Resample(source, target, lowpass_filter_width=32, dtype=torch.float32)


def to_mono(audio: npt.NDArray[np.floating], blend: float = 0.5) -> npt.NDArray[np.floating]:
    """(channels, samples) to (1, samples): blend * L + (1 - blend) * R for stereo, else the mean.

    blend = 0.5 is the mean of the channels, the mono of every evaluation; training draws it
    uniformly from [0, 1), as the paper's published code does.
    """
    if len(audio) == 2:
        return (blend * audio[:1] + (1 - blend) * audio[1:]).astype(audio.dtype, copy=False)
    return audio.mean(axis=0, keepdims=True)


def _unreadable(path: str | Path, error: Exception) -> UserError:
    path = Path(path)
    if not path.exists():
        return UserError(f"{path}: no such file.")
    if path.is_dir():
        return UserError(f"{path}: is a folder, an audio file was expected.")
    if path.stat().st_size == 0:
        return UserError(f"{path}: the file is empty.")
    reason = str(error).split(": ", 1)[-1].strip().rstrip(".")
    return UserError(f"{path}: not readable as audio ({reason}). {READABLE} are read.")
