"""Reading and writing audio files: all other folders do it through this one.

Callers write `audio.read(path)`. This module exports `samples`, which most callers need. `decode`
and `encode` are for users' own songs: formats beyond libsndfile's, and the formats of stems.
"""

from .samples import (
    BLOCK,
    READABLE,
    STEADY,
    STEP,
    Audio,
    AudioInfo,
    Resampler,
    blocks,
    in_memory,
    info,
    raw_blocks,
    read,
    resample,
    to_mono,
    write,
    writing,
)

__all__ = [
    "BLOCK",
    "READABLE",
    "STEADY",
    "STEP",
    "Audio",
    "AudioInfo",
    "Resampler",
    "blocks",
    "in_memory",
    "info",
    "raw_blocks",
    "read",
    "resample",
    "to_mono",
    "write",
    "writing",
]
