"""Conv-TasNet: masks on learned filters (Luo and Mesgarani 2019), torchaudio.models.ConvTasNet."""

from __future__ import annotations

from ..songs.manifest import STEMS
from .common.peer import Peer, Waveform

LIBRARIES = ()


def build(filters: int, features: int, hidden: int, layers: int, stacks: int) -> Peer:
    """A network with random weights."""
    from torchaudio.models import ConvTasNet

    return Waveform(
        ConvTasNet(
            len(STEMS),
            enc_num_feats=filters,
            msk_num_feats=features,
            msk_num_hidden_feats=hidden,
            msk_num_layers=layers,
            msk_num_stacks=stacks,
        )
    )
