"""Samples in and out of files: the one place that opens audio.

Audio is a float32 array (channels, samples), full scale at +-1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from .errors import UserError
from .files import atomic

Audio = npt.NDArray[np.float32]

# Containers that libsndfile does not read; a later reader may add them through ffmpeg.
READABLE = "wav, flac, mp3, ogg and opus files"
BLOCK = 1 << 15  # samples read at a time: they stay in the processor's cache


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
    try:
        with soundfile.SoundFile(str(path)) as file:
            if start:
                file.seek(start)
            done, wanted = 0, file.frames if samples is None else samples
            # numpy turns 16 bit into float faster than libsndfile, to the same numbers.
            kind = "int16" if file.subtype == "PCM_16" else "float32"
            while len(read := file.read(min(BLOCK, wanted - done), dtype=kind, always_2d=True)):
                done += len(read)
                block = read.T.astype(np.float32, order="C")
                if kind == "int16":
                    block *= np.float32(2**-15)
                if not np.isfinite(block).all():
                    raise UserError(
                        f"{path}: holds NaN or infinite samples. Export the file again."
                    )
                yield block
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
    samples = np.asarray(audio).T
    with atomic(path) as temporary:
        if subtype == "FLOAT" and temporary.suffix == ".wav":
            # libsndfile stamps the time into these: the same audio would never be the same file.
            from scipy.io import wavfile

            wavfile.write(temporary, sample_rate, samples.astype(np.float32))
        else:
            soundfile.write(str(temporary), samples, sample_rate, subtype=subtype)


def resample(audio: Audio, source: int, target: int) -> Audio:
    """(channels, samples) at `source` Hz to `target` Hz: ceil(samples * target / source) samples.

    torchaudio's windowed sinc, 32 zero crossings on either side.
    """
    if source == target:
        return audio
    import torch
    from torchaudio.functional import resample as sinc

    return sinc(torch.from_numpy(audio), source, target, lowpass_filter_width=32).numpy()


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
