"""Like Wave-U-Net (Stoller et al. 2018): demucs.demucs without GLU and LSTM."""

from __future__ import annotations

from ..songs.manifest import STEMS
from .common.peer import Peer, Waveform

LIBRARIES = ("demucs",)


def build(channels: int, depth: int) -> Peer:
    """A network with random weights."""
    from demucs.demucs import Demucs

    return Waveform(
        Demucs(
            list(STEMS), 1, channels, depth=depth, glu=False,
            dconv_mode=0, norm_starts=depth, gelu=False,
        )
    )  # fmt: skip
