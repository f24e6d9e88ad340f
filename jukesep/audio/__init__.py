"""Audio in and out of files: the one place that opens it.

Callers write `audio.read(path)`. `samples` has what most of them need; `decode` and `encode` have
the formats that only the songs of a user come and go in.
"""

from .samples import (
    BLOCK,
    READABLE,
    RIFF_LIMIT,
    STEADY,
    STEP,
    Audio,
    AudioInfo,
    Resampler,
    blocks,
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
    "RIFF_LIMIT",
    "STEADY",
    "STEP",
    "Audio",
    "AudioInfo",
    "Resampler",
    "blocks",
    "info",
    "raw_blocks",
    "read",
    "resample",
    "to_mono",
    "write",
    "writing",
]
