"""Load checkpoints as one system: stage 1's model with stage 2's encoder, D(Q(E2(.))).

`jukebox` reads and writes the files.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..base.errors import UserError
from ..songs.manifest import STEMS
from . import jukebox
from .vqvae import VQVAE

SAMPLE_RATE = 44_100
"""Hz; the sample rate of Jukebox and the paper, and of files that do not name theirs."""


@dataclass(frozen=True)
class Pair:
    """A stage-1 and a stage-2 checkpoint as one system, with the files' own metadata."""

    stage1: VQVAE
    separator: VQVAE
    """D(Q(E2(.))): stage 1 with stage 2's encoder."""
    sample_rate: int
    init: str
    """What stage 1 started from; empty if unknown."""
    steps: tuple[int, int]
    """Training steps of stages 1 and 2; 0, as in Jukebox, if unknown."""


def load_model(stage1: str | Path, stage2: str | Path) -> VQVAE:
    """Load D(Q(E2(.))): stage 1's checkpoint with its encoder replaced by stage 2's."""
    vqvae = jukebox.load_jukebox(stage1)
    vqvae.encoder = jukebox.load_encoder(stage2, vqvae.architecture)
    return vqvae.eval()


def latest(checkpoints: Path) -> Path:
    """The checkpoint with the highest step in a training's folder, `<step>.pt`; no other file.

    UserError without any.
    """
    found = (path for path in checkpoints.glob("*.pt") if path.stem.isdecimal())
    last = max(found, key=lambda path: int(path.stem), default=None)
    if last is None:
        raise UserError(f"{checkpoints}: no checkpoints found. Run `dvc repro` first.")
    return last


def load_pair(stage1: Path, stage2: Path, stem: str, device: torch.device) -> Pair:
    """Load two checkpoint files as one system, on a device.

    UserError for files that are not checkpoints, do not fit together, or were trained for a stem
    other than `stem` according to their metadata.
    """
    try:
        first = jukebox.load_jukebox(stage1)
    except UserError as error:
        try:
            jukebox.load_encoder(stage1)
        except UserError:
            raise error from None
        raise UserError(
            f"{stage1}: holds only an encoder, like a file of stage 2. A file of stage 1 holds the "
            f"whole VQ-VAE. Are the two files swapped? ({error})"
        ) from error
    separator = copy.deepcopy(first)
    separator.encoder = jukebox.load_encoder(stage2, first.architecture)
    hps = [jukebox.read_hps(path) for path in (stage1, stage2)]
    for path, said in zip((stage1, stage2), hps, strict=True):
        if (part := said.get("part")) in STEMS and part != stem:
            raise UserError(
                f"{path}: was trained for {part}, not for {stem}. Choose a file of {stem}, or the "
                f"stem {part}."
            )
    rates = [_sample_rate(path, said) for path, said in zip((stage1, stage2), hps, strict=True)]
    if rates[0] != rates[1]:
        raise UserError(f"{stage2}: was trained at {rates[1]} Hz, but {stage1} at {rates[0]} Hz.")
    init = hps[0].get("init")
    return Pair(
        first.to(device).eval(),
        separator.to(device).eval(),
        rates[0],
        init if init in ("pretrained", "scratch") else "",
        (jukebox.read_step(stage1), jukebox.read_step(stage2)),
    )


def _sample_rate(path: Path, hps: Mapping[str, Any]) -> int:
    """The sample rate in a file's hps: `sample_rate` in jukesep's files, `sr` in Jukebox's."""
    rate = hps.get("sample_rate", hps.get("sr", SAMPLE_RATE))
    if not isinstance(rate, int) or not 0 < rate < 2**31:
        raise UserError(f"{path}: its sample rate is {rate!r}, not a positive number of Hz.")
    return rate
