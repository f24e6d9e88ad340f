"""HDemucs: waveform and spectrogram (Defossez 2021), torchaudio.models.HDemucs."""

from __future__ import annotations

from ..songs.manifest import STEMS
from .common.peer import Peer, Waveform

LIBRARIES = ()


def build(channels: int, depth: int, window: int) -> Peer:
    """A network with random weights."""
    from torchaudio.models import HDemucs

    return Waveform(HDemucs(list(STEMS), 1, channels, nfft=window, depth=depth))
