"""Mixture to stems: exact in chunks, with memory that does not grow with the song."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F

from . import audio, jukebox
from .errors import UserError
from .songs import STEMS
from .vqvae import VQVAE

CHUNK = 393_216  # samples, the reference's
Chunking = Literal["exact", "hard"]
Bottleneck = Literal["quantise", "bypass"]


@torch.inference_mode()
def apply_chunked(
    vqvae: VQVAE,
    rows: torch.Tensor,
    chunk: int = CHUNK,
    progress: Callable[[int], object] | None = None,
    *,
    chunking: Chunking = "exact",
    bottleneck: Bottleneck = "quantise",
) -> torch.Tensor:
    """decode(quantise(encode(rows))) in chunks that equal the whole: (rows, samples) to the same.

    Each chunk carries the model's full receptive field as context on either side, so that its
    kept part sees what it would see in the whole song; at the song's own ends the model pads as
    it would there. With chunking "hard" it carries none, as in the reference, and the result
    depends on `chunk`. With bottleneck "bypass" the latents are decoded as they are, not quantised.
    `progress` is called with the samples finished by each chunk.
    """
    hop = vqvae.architecture.hop
    context = vqvae.context() if chunking == "exact" else 0
    samples = rows.shape[-1]
    padded = F.pad(rows, (0, -samples % hop)).unsqueeze(1)
    end = padded.shape[-1]
    chunk = max(chunk // hop, 1) * hop
    output = torch.empty_like(rows)
    for start in range(0, samples, chunk):
        left, right = max(start - context, 0), min(start + chunk + context, end)
        stop = min(start + chunk, samples)
        latents = vqvae.encode(padded[..., left:right])
        if bottleneck == "quantise":
            _, latents = vqvae.quantise(latents)
        result = vqvae.decode(latents)[:, 0]
        output[:, start:stop] = result[:, start - left : stop - left]
        if progress:
            progress(stop - start)
    return output


class Separator:
    """One model per stem: mixture in, stems out."""

    def __init__(self, models: Mapping[str, VQVAE], sample_rate: int) -> None:
        self.models = {stem: model.eval() for stem, model in models.items()}
        self.sample_rate = sample_rate

    def to(self, device: torch.device | str) -> Separator:
        """Move the models; returns self."""
        for model in self.models.values():
            model.to(device)
        return self

    @property
    def stems(self) -> tuple[str, ...]:
        """The stems there is a model for."""
        return tuple(self.models)

    def __call__(
        self,
        mixture: np.ndarray | torch.Tensor,
        sample_rate: int,
        chunk: int = CHUNK,
        progress: Callable[[str, int], object] | None = None,
    ) -> dict[str, np.ndarray]:
        """(channels, samples) at `sample_rate` Hz to {stem: (channels, samples)} at the same.

        Channels go through the mono model side by side; a mixture at another rate than the
        models' is resampled on the way in and out.
        """
        mixture = np.asarray(mixture, dtype=np.float32)
        if mixture.ndim != 2:
            raise ValueError(f"a mixture is (channels, samples), found shape {mixture.shape}")
        samples = mixture.shape[1]
        rows = torch.from_numpy(audio.resample(mixture, sample_rate, self.sample_rate).copy())
        stems = {}
        for stem, model in self.models.items():
            device = next(model.parameters()).device
            tell = (lambda n, stem=stem: progress(stem, n)) if progress else None
            output = apply_chunked(model, rows.to(device), chunk, tell).cpu().numpy()
            output = audio.resample(output, self.sample_rate, sample_rate)
            stems[stem] = output[:, :samples]
        return stems


def load_model(stage1: str | Path, stage2: str | Path) -> VQVAE:
    """D(Q(E2(.))): stage 1's checkpoint with stage 2's encoder in place of its own."""
    vqvae = jukebox.load_jukebox(stage1)
    vqvae.encoder = jukebox.load_encoder(stage2, vqvae.architecture)
    return vqvae.eval()


def latest(checkpoints: Path) -> Path:
    """The checkpoint of the highest step in a training's folder."""
    found = sorted(checkpoints.glob("*.pt"), key=lambda path: int(path.stem))
    if not found:
        raise UserError(f"{checkpoints}: no checkpoints. Run `dvc repro` first.")
    return found[-1]


def load_separator(folder: str | Path = "runs", init: str = "pretrained") -> Separator:
    """The separator of the stems that `dvc repro` has trained, from its folder of runs.

    UserError if there is none, or if the models differ in sample rate.
    """
    folder = Path(folder)
    models, rates = {}, {}
    for stem in STEMS:
        run = f"{stem}_{init}/checkpoints"
        if (folder / "stage2" / run).is_dir():
            stage1 = latest(folder / "stage1" / run)
            models[stem] = load_model(stage1, latest(folder / "stage2" / run))
            rates[stem] = jukebox.read_hps(stage1).get("sample_rate", 44100)
    if not models:
        raise UserError(
            f"{folder}: no models with init '{init}'. Run `dvc repro` (or `dvc pull`) first."
        )
    if len(set(rates.values())) > 1:
        raise UserError(f"{folder}: the models differ in sample rate: {rates}.")
    return Separator(models, next(iter(rates.values())))
