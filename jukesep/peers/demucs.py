"""Demucs in the form of version 2: waveform, GLU, LSTM (Defossez et al. 2019), demucs.demucs."""

from __future__ import annotations

from ..songs.manifest import STEMS
from .common.peer import Peer, Waveform

LIBRARIES = ("demucs",)


def build(channels: int, depth: int, norm_starts: int, lstm: int) -> Peer:
    """A network with random weights."""
    from demucs.demucs import Demucs

    # Without the residual branches and the GELU that later versions added.
    return Waveform(
        Demucs(
            list(STEMS), 1, channels, depth=depth, lstm_layers=lstm,
            dconv_mode=0, norm_starts=norm_starts, gelu=False,
        )
    )  # fmt: skip
