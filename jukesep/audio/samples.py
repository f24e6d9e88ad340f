"""Read, write and resample audio.

Audio is a float32 array (channels, samples) with full scale at +-1.
"""

from __future__ import annotations

import io
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
from . import lengths

Audio = npt.NDArray[np.float32]

# The formats that libsndfile reads, for messages.
READABLE = "wav, flac, mp3, ogg and opus files"
BLOCK = 1 << 15  # samples read at a time, so that they stay in the processor's cache
STEP = np.float32(2**-15)  # one step of 16-bit audio
CHANNELS = 256  # most channels of a song; more are samples, in an array of another order
TAPS = 2**27  # most taps of a resampling filter: half a GB
STEADY = 1 << 15  # samples; for fewer than 20,480 PyTorch sums in another order
RIFF_LIMIT = 0xFFFFFFFF  # largest size in bytes that a wav file's header can hold
# Vorbis' and Opus' channels in wav's order, by their number (Vorbis I specification, 4.3.9). All
# other formats that libsndfile reads have wav's order. libsndfile keeps the order of the file.
XIPH = {
    3: [0, 2, 1],
    5: [0, 2, 1, 3, 4],
    6: [0, 2, 1, 5, 3, 4],
    7: [0, 2, 1, 6, 5, 3, 4],
    8: [0, 2, 1, 7, 5, 6, 3, 4],
}


@dataclass(frozen=True)
class AudioInfo:
    """A file's header: sample rate in Hz, channels, samples per channel, sample format."""

    sample_rate: int
    channels: int
    samples: int
    subtype: str


def info(path: str | Path) -> AudioInfo:
    """Read a file's sample rate, channels and number of samples.

    UserError if libsndfile cannot read the file, or reads fewer samples than the file has or
    promises.
    """
    try:
        with lengths.opened(path) as file:
            samples = lengths.count(path, file)
            return AudioInfo(file.samplerate, file.channels, samples, file.subtype)
    except (OSError, RuntimeError, TypeError) as error:
        raise _unreadable(path, error) from error


def read(path: str | Path, start: int = 0, samples: int | None = None) -> Audio:
    """Read samples [start, start + samples) of a file, or all from `start`: (channels, samples).

    Seeks to `start` and decodes no more than it returns. UserError if the file is missing or
    damaged, ends early, or holds NaN or infinity.
    """
    wanted = max(info(path).samples - start, 0) if samples is None else samples
    audio: Audio | None = None
    done = 0
    for block in blocks(path, start, samples):
        if audio is None:
            audio = np.empty((len(block), wanted), np.float32)
        audio[:, done : done + block.shape[1]] = block
        done += block.shape[1]
    if audio is None:
        return np.empty((info(path).channels, 0), np.float32)
    return np.ascontiguousarray(audio[:, :done])


def blocks(path: str | Path, start: int = 0, samples: int | None = None) -> Iterator[Audio]:
    """Like `read`, in blocks of at most BLOCK samples, which saves memory and time."""
    for frames in raw_blocks(path, start, samples):
        # numpy converts 16-bit samples to float faster than libsndfile, to the same numbers.
        block = frames.T.astype(np.float32, order="C")
        if frames.dtype == np.int16:
            block *= STEP
        yield block


def raw_blocks(
    path: str | Path, start: int = 0, samples: int | None = None
) -> Iterator[npt.NDArray[Any]]:
    """Like `blocks`, without conversion: arrays (samples, channels).

    int16 for 16-bit files, in units of STEP; else float32. Raises the same errors as `read`.
    """
    done, wanted, few, kind = 0, samples or 0, 0, ""
    try:
        with lengths.opened(path) as file:
            mpeg, order = lengths.is_mpeg(file), _order(path, file)
            if samples is None:
                wanted = max(lengths.count(path, file) - start, 0)
                few = lengths.TRIMMED if mpeg else 0  # what is removed at the ends is not known
            if start:
                file.seek(start)
            kind = "int16" if file.subtype == "PCM_16" else "float32"
            while done < wanted:
                with lengths.quiet(mpeg):
                    read = file.read(min(BLOCK, wanted - done), dtype=kind, always_2d=True)
                if not len(read):
                    break
                done += len(read)
                if kind == "float32" and not np.isfinite(read).all():
                    raise UserError(
                        f"{path}: holds NaN or infinite samples. Export the file again."
                    )
                yield read if order is None else read[:, order]
    except (OSError, RuntimeError, TypeError) as error:
        if not kind or isinstance(error, OSError):
            raise _unreadable(path, error) from error
    if done + few < wanted:
        raise lengths.incomplete(path, start + done, start + wanted)


def write(
    path: str | Path, audio: npt.ArrayLike, sample_rate: int, subtype: str | None = None
) -> None:
    """Write (channels, samples) to a file atomically; the file's suffix selects the format.

    `subtype` is libsndfile's sample format (PCM_16, PCM_24, FLOAT, ...); None takes the
    format's default. int16 arrays are written to PCM_16 unchanged. UserError if the disk is full.
    """
    samples = np.asarray(audio)
    if subtype == "FLOAT" and Path(path).suffix == ".wav":
        with writing(path, sample_rate, *samples.shape) as put:
            put(samples)
        return
    if Path(path).suffix == ".ogg" and len(samples) in XIPH:
        samples = samples[np.argsort(XIPH[len(samples)])]
    with atomic(path) as temporary:
        try:
            soundfile.write(str(temporary), samples.T, sample_rate, subtype=subtype)
        except soundfile.LibsndfileError as error:  # it does not say that a disk is full
            reason = str(error).rsplit(": ", 1)[-1].rstrip(".")
            raise UserError(f"{path}: cannot be written ({reason}). Is the disk full?") from error


def in_memory(samples: Audio, sample_rate: int) -> bytes:
    """The content of an mp3 file with these samples (channels, samples)."""
    content = io.BytesIO()
    soundfile.write(content, samples.T, sample_rate, format="MP3")
    return content.getvalue()


@contextmanager
def writing(
    path: str | Path, sample_rate: int, channels: int, samples: int
) -> Iterator[Callable[[npt.NDArray[Any]], None]]:
    """Write a 32-bit float wav file piece by piece, atomically; `write` uses it for FLOAT.

    Yields a function that takes the next samples, (channels, any number). `samples` is the
    expected length per channel: if it exceeds RIFF's 4 GiB, the file is RF64 (64-bit lengths).

    The same audio gives the same bytes; libsndfile would write the time into the file.
    """
    long = len(_wav_header(sample_rate, channels, 0, False)) + 4 * channels * samples > RIFF_LIMIT
    written = 0
    with atomic(path) as temporary, temporary.open("wb") as file:

        def put(block: npt.NDArray[Any]) -> None:
            nonlocal written
            if len(block) != channels:
                raise ValueError(f"{path}: {len(block)} channels given, expected {channels}")
            file.write(np.ascontiguousarray(block.T, "<f4").data)
            written += block.shape[1]

        file.write(_wav_header(sample_rate, channels, 0, long))
        yield put
        file.seek(0)
        # A compressed song can have a few samples more or fewer than its header says.
        file.write(_wav_header(sample_rate, channels, written, long))


def _wav_header(sample_rate: int, channels: int, samples: int, long: bool) -> bytes:
    """The header of a 32-bit float wav file, or of an RF64 file (EBU Tech 3306) if `long`."""
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
    """Resample (channels, samples) at `source` Hz to `target` Hz: ceil(samples * target / source).

    Uses torchaudio's windowed sinc with 32 zero crossings on either side. UserError as in
    `check_rates`.
    """
    if source == target or not audio.size:
        return audio
    import torch
    from torch.nn import functional as F

    sinc, (step, new) = _sinc(source, target), _periods(source, target)
    padded = F.pad(torch.from_numpy(audio), (sinc.width, sinc.width + step))
    found = F.conv1d(padded[:, None], sinc.kernel, stride=step)  # (channels, new, periods)
    # torchaudio's own `forward` rounds the length in float32: wrong beyond 2^24 samples.
    wanted = -(-audio.shape[1] * new // step)
    return found.transpose(1, 2).flatten(1)[:, :wanted].numpy()


class Resampler:
    """`resample` for audio that comes in blocks: the same samples to the bit, in little memory.

    Filters a batch of samples at a time, so that its time does not depend on how long the blocks
    are. Keeps no reference to a block, and what it returns does not share memory with it.
    """

    def __init__(self, source: int, target: int) -> None:
        self.source, self.target = source, target
        self._step, self._new = _periods(source, target)
        self._held: Audio | None = None  # the last batch, then what has come since
        self._count = 0  # samples in it
        self._done = 0  # of these, samples whose results have been returned
        # Samples that a result depends on, on either side; samples filtered at a time. These two
        # and `_done` are whole periods.
        self._context = self._batch = 0
        if source != target:
            self._context = -(-_sinc(source, target).width // self._step) * self._step
            self._batch = -(-max(STEADY, 8 * self._context) // self._step) * self._step

    @property
    def latency(self) -> int:
        """Most samples at `source` Hz by which the output lags behind the input, until `end`."""
        return self._batch

    def feed(self, block: Audio) -> Audio:
        """Take the next samples (channels, any number); return those that are final, or none.

        ValueError if the number of channels is another than before.
        """
        if self._held is None:
            self._held = np.empty((len(block), 2 * self._batch), np.float32)
        if len(block) != len(self._held):
            raise ValueError(f"{len(block)} channels after {len(self._held)}")
        if self.source == self.target:
            return block.copy()
        found, taken = [block[:, :0]], 0
        while taken < block.shape[1]:
            first = max(self._done - self._context, 0)
            piece = block[:, taken : taken + first + self._batch - self._count]
            self._held[:, self._count : self._count + piece.shape[1]] = piece
            self._count += piece.shape[1]
            taken += piece.shape[1]
            if self._count == first + self._batch:
                result = resample(self._held[:, first : self._count], self.source, self.target)
                final = self._after(self._batch - self._context)
                found.append(result[:, self._after(self._done - first) : final])
                # A whole batch is kept, for `end` to filter as many samples at least.
                self._held[:, : self._batch] = self._held[:, first : self._count]
                self._count, self._done = self._batch, self._batch - self._context
        return np.concatenate(found, axis=1)

    def end(self) -> Audio:
        """Return the remaining samples, after the last block. ValueError without any block."""
        if self._held is None:
            raise ValueError("a resampler was given no audio")
        found = resample(self._held[:, : self._count], self.source, self.target)
        return found[:, self._after(self._done) :].copy()

    def _after(self, samples: int) -> int:
        """What becomes of a number of samples, which is whole periods."""
        return samples // self._step * self._new


def check_rates(source: int, target: int) -> None:
    """UserError for rates without a large common divisor: the filter would fill the memory."""
    step, new = _periods(source, target)
    if step * new > TAPS:
        raise UserError(
            f"cannot resample from {source} Hz to {target} Hz: the filter would be too long. "
            "Resample the song to a usual rate first, such as 44100 Hz."
        )


def _periods(source: int, target: int) -> tuple[int, int]:
    """The smallest (a, b) of which a samples at `source` Hz last as long as b at `target` Hz."""
    common = math.gcd(source, target)
    return source // common, target // common


@cache
def _sinc(source: int, target: int) -> Any:
    """The filter, built once: between some sample rates it has millions of taps."""
    import torch
    from torchaudio.transforms import Resample

    check_rates(source, target)
    return Resample(source, target, lowpass_filter_width=32, dtype=torch.float32)


def to_mono(audio: npt.NDArray[np.floating], blend: float = 0.5) -> npt.NDArray[np.floating]:
    """Mix to mono, (channels, samples) to (1, samples): blend * L + (1 - blend) * R, else the mean.

    blend = 0.5 is the mean of the channels, used in every evaluation. Training draws it uniformly
    from [0, 1), as the authors' code does. Audio that is not stereo gives the mean.
    """
    if len(audio) == 2:
        return (blend * audio[:1] + (1 - blend) * audio[1:]).astype(audio.dtype, copy=False)
    return audio.mean(axis=0, keepdims=True)


def _order(path: str | Path, file: soundfile.SoundFile) -> list[int] | None:
    """The file's channels in wav's order, or None if they have it."""
    if file.format != "OGG":
        return None
    with Path(path).open("rb") as raw:
        _, opus, head = raw.read(200).partition(b"OpusHead")
    # Opus has other families of layouts, without an order (RFC 7845, 5.1.1).
    return XIPH.get(file.channels) if not opus or head[10:11] == b"\1" else None


def _unreadable(path: str | Path, error: Exception) -> UserError:
    path = Path(path)
    if not path.exists():
        return UserError(f"{path}: no such file.")
    if path.is_dir():
        return UserError(f"{path}: is a folder, not an audio file. Give a file.")
    reason = str(error).split(": ", 1)[-1].strip().rstrip(".")
    return UserError(f"{path}: not readable as audio ({reason}). Supported: {READABLE}.")
