"""Mixture to stems: exact in chunks, with memory that does not grow with the song."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import chain
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
    hop, context = vqvae.architecture.hop, vqvae.context() if chunking == "exact" else 0
    output, done = torch.empty_like(rows), 0
    for window, kept in windows([rows], max(chunk // hop, 1) * hop, context):
        result = _apply(vqvae, window, bottleneck)[:, kept]
        output[:, done : done + result.shape[-1]] = result
        done += result.shape[-1]
        if progress:
            progress(result.shape[-1])
    return output


def windows(
    blocks: Iterable[torch.Tensor], chunk: int, context: int
) -> Iterator[tuple[torch.Tensor, slice]]:
    """Cut audio that comes in blocks (rows, any number of samples) into chunks with their context.

    Yields each chunk of `chunk` samples (the last may be shorter) with up to `context` of its
    neighbours' on either side, and where in that window the chunk lies. Holds one window at a time.
    """
    held: list[torch.Tensor] = []  # from `before` samples ahead of the chunk on
    before = count = 0
    for block in chain(blocks, [None]):
        if block is not None:
            held.append(block)
            count += block.shape[-1]
        while count >= before + chunk + context or (block is None and count > before):
            # A song that came whole is not copied.
            whole = held[0] if len(held) == 1 else torch.cat(held, dim=-1)
            yield whole[..., : before + chunk + context], slice(before, min(before + chunk, count))
            first = max(before + chunk - context, 0)
            held, before = [whole[..., first:]], before + chunk - first
            count = held[0].shape[-1]


def _apply(vqvae: VQVAE, rows: torch.Tensor, bottleneck: Bottleneck = "quantise") -> torch.Tensor:
    """decode(quantise(encode(rows))), (rows, samples) to the same."""
    padded = F.pad(rows, (0, -rows.shape[-1] % vqvae.architecture.hop)).unsqueeze(1)
    latents = vqvae.encode(padded)
    if bottleneck == "quantise":
        _, latents = vqvae.quantise(latents)
    return vqvae.decode(latents)[:, 0, : rows.shape[-1]]


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

    @torch.inference_mode()
    def separate_file(
        self,
        song: str | Path,
        targets: Mapping[str, Path],
        chunk: int = CHUNK,
        progress: Callable[[float], object] | None = None,
    ) -> None:
        """Separate a file into a 32-bit float wav file for each stem of `targets`, all or none.

        The stems have the song's rate, channels and length. They hold what a call with the whole
        song returns, but song and stems are never in memory whole: it is read, separated and
        written chunk by chunk. `progress` is called with the seconds of the song that are
        finished, chunk by chunk. UserError if the file cannot be read.
        """
        models = {stem: self.models[stem] for stem in targets}
        hop = math.lcm(*(model.architecture.hop for model in models.values()))
        context = math.ceil(max(model.context() for model in models.values()) / hop) * hop
        header, read, written = audio.info(song), 0, 0
        there = audio.Resampler(header.sample_rate, self.sample_rate)
        back = {stem: audio.Resampler(self.sample_rate, header.sample_rate) for stem in models}

        def rows() -> Iterator[torch.Tensor]:
            nonlocal read
            for block in audio.blocks(song):
                read += block.shape[1]
                yield torch.from_numpy(there.feed(block))
            yield torch.from_numpy(there.end())

        with ExitStack() as files:
            form = header.sample_rate, header.channels, header.samples
            put = {s: files.enter_context(audio.writing(targets[s], *form)) for s in models}
            for window, kept in windows(rows(), max(chunk // hop, 1) * hop, context):
                for stem, model in models.items():
                    device = next(model.parameters()).device
                    output = _apply(model, window.to(device))[:, kept].cpu().numpy()
                    block = back[stem].feed(output)
                    put[stem](block)
                written += block.shape[1]
                if progress:
                    progress((kept.stop - kept.start) / self.sample_rate)
            for stem in models:
                # There and back again can be a sample or two longer.
                put[stem](back[stem].end()[:, : read - written])


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
