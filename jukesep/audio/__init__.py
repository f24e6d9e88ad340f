"""Reading and writing audio files: all other folders do it through this one.

Callers write `audio.read(path)`. This module exports `samples`, which most callers need. `decode`
and `encode` are for users' own songs: formats beyond libsndfile's, and the formats of stems.
"""

from .samples import (
    BLOCK,
    CHANNELS,
    READABLE,
    STEP,
    Audio,
    AudioInfo,
    Resampler,
    blocks,
    check_rates,
    in_memory,
    info,
    raw_blocks,
    read,
    resample,
    to_mono,
    write,
    writing,
)

MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
"""Sample rates in Hz that an mp3 file can have."""

__all__ = [
    "BLOCK",
    "CHANNELS",
    "MP3_RATES",
    "READABLE",
    "STEP",
    "Audio",
    "AudioInfo",
    "Resampler",
    "blocks",
    "check_rates",
    "in_memory",
    "info",
    "raw_blocks",
    "read",
    "resample",
    "to_mono",
    "write",
    "writing",
]
