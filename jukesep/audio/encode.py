"""Write stems to files in common formats, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile

from .. import audio
from ..base.errors import UserError
from ..base.files import atomic, final, temporary
from . import Audio

Clip = Literal["rescale", "clamp", "none"]


@dataclass(frozen=True)
class Format:
    """An output format: the file suffix, and libsndfile's format and subtype."""

    suffix: str
    container: str
    subtype: str

    @property
    def limited(self) -> bool:
        """Whether the format cannot hold samples above full scale."""
        return self.subtype != "FLOAT"


OGG_LIMIT = 200_000  # Hz; above it libsndfile crashes if given a million samples at once
BYTES = {"PCM_16": 2, "PCM_24": 3}  # per sample
FORMATS = {
    "wav": Format("wav", "WAV", "FLOAT"),
    "wav24": Format("wav", "WAV", "PCM_24"),
    "wav16": Format("wav", "WAV", "PCM_16"),
    "flac": Format("flac", "FLAC", "PCM_24"),
    "flac16": Format("flac", "FLAC", "PCM_16"),
    "ogg": Format("ogg", "OGG", "VORBIS"),
    "mp3": Format("mp3", "MP3", "MPEG_LAYER_III"),
}


@contextmanager
def writing(
    targets: dict[str, Path],
    form: Format,
    clip: Clip,
    sample_rate: int,
    channels: int,
    samples: int,
) -> Iterator[Callable[[dict[str, Audio]], None]]:
    """Write stems piece by piece, one file each; `base.files.appear` lets them appear together.

    Yields a function that takes the next samples of each stem, (channels, any number). `samples`
    is the expected length. `clip` applies to samples above full scale: "clamp" cuts them off,
    "none" leaves them to the format, "rescale" scales all stems down until the loudest peak fits
    (in limited formats only, in a second pass). UserError if the format cannot hold such audio.
    """
    with ExitStack() as stack:
        put: dict[str, Callable[[Audio], None]] = {}
        peak = 0.0
        loose: dict[str, Path] = {}  # temporary float files, to be rescaled
        parts = ExitStack()
        stack.push(parts)
        _check(form, sample_rate, channels)
        if clip == "rescale" and form.limited:
            for name, path in targets.items():
                loose[name] = stack.enter_context(temporary(path.with_suffix(".wav")))
                put[name] = parts.enter_context(
                    audio.writing(loose[name], sample_rate, channels, samples)
                )
        else:
            for name, path in targets.items():
                put[name] = stack.enter_context(_one(path, form, sample_rate, channels, samples))

        def take(blocks: dict[str, Audio]) -> None:
            nonlocal peak
            for name, block in blocks.items():
                if clip == "clamp":
                    block = np.clip(block, -1, 1)
                elif loose and block.size:
                    peak = max(peak, float(np.abs(block).max()))
                put[name](block)

        yield take
        parts.close()
        gain = np.float32(min(1.0, (1 - 2**-15) / peak) if peak else 1.0)
        for name, path in loose.items():
            to = stack.enter_context(_one(targets[name], form, sample_rate, channels, samples))
            for block in audio.blocks(path):
                to(gain * block)


@contextmanager
def _one(
    path: Path, form: Format, sample_rate: int, channels: int, samples: int
) -> Iterator[Callable[[Audio], None]]:
    """Write one file of any format, atomically."""
    if not form.limited:
        with audio.writing(path, sample_rate, channels, samples) as put:
            yield put
        return
    container = form.container
    size = BYTES.get(form.subtype, 0) * channels * samples + 1024  # bytes, with the header
    if container == "WAV" and size > audio.samples.RIFF_LIMIT:
        container = "RF64"  # has 64-bit lengths
    with atomic(path) as unfinished:
        try:
            with soundfile.SoundFile(
                str(unfinished), "w", sample_rate, channels, form.subtype, format=container
            ) as file:
                order = audio.samples.XIPH.get(channels) if container == "OGG" else None

                def put(block: Audio) -> None:
                    if order:
                        block = block[np.argsort(order)]
                    for start in range(0, block.shape[1], audio.BLOCK):
                        file.write(block[:, start : start + audio.BLOCK].T)

                yield put
        except soundfile.LibsndfileError as error:
            reason = str(error).rstrip(".")
            raise UserError(
                f"{final(path)}: cannot be written ({reason}). Is the disk full?"
            ) from error


def _check(form: Format, sample_rate: int, channels: int) -> None:
    if form.container == "MP3" and channels > 2:
        raise UserError(f"mp3 holds two channels, the song has {channels}. Choose --format flac.")
    if form.container == "MP3" and sample_rate not in audio.MP3_RATES:
        raise UserError(f"mp3 has no sample rate of {sample_rate} Hz. Choose --format flac.")
    if form.container == "OGG" and sample_rate > OGG_LIMIT:
        raise UserError(f"ogg has no sample rate of {sample_rate} Hz. Choose --format flac.")
    if form.container == "WAV" and 4 * channels * sample_rate >= 2**32:
        raise UserError(f"wav cannot hold {channels} channels of {sample_rate} Hz. Resample first.")
    if form.container == "FLAC" and (channels > 8 or sample_rate > 655_350):
        raise UserError(
            f"flac holds 8 channels of 655,350 Hz, the song has {channels} of {sample_rate} Hz. "
            "Choose --format wav."
        )
