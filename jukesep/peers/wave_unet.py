"""Like Wave-U-Net (Stoller et al. 2018): demucs.demucs without GLU and LSTM."""

from __future__ import annotations

from ..songs.manifest import STEMS
from .common.peer import Peer, Waveform

LIBRARIES = ("demucs",)


def build(channels: int, depth: int, norm_starts: int) -> Peer:
    """A network with random weights."""
    from demucs.demucs import Demucs

    # GELU, the package's smooth activation, stands for the leaky ReLU of Wave-U-Net, which works at
    # the songs' own rate.
    return Waveform(
        Demucs(
            list(STEMS), 1, channels, depth=depth, glu=False, lstm_layers=0,
            dconv_mode=0, norm_starts=norm_starts, resample=False,
        )
    )  # fmt: skip
