"""Models as files: a folder with a model for each stem, and one JSON that says what they are.

    models/separator/
      separator.json        what is in the folder: `Card`
      vocals.safetensors    D, the codebook and E2 of a stem, float32, and so on

Nothing in such a folder is trusted: reading it runs nothing, and what does not fit is named.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as tensors_as_bytes

from . import jukebox
from .errors import UserError
from .files import atomic, write_text
from .separation import latest, load_model
from .songs import STEMS
from .vqvae import VQVAE, Architecture

CARD = "separator.json"
FORMAT: Literal[1] = 1
CODES = "codebook.k"
HEADER = 1 << 20  # bytes that the names and shapes in a file of tensors may take
LARGEST = 1 << 22  # bytes of a card
USAGE = 1.0  # the codebook's moving averages are no part of the files, and nothing here trains

Stem = Literal["drums", "bass", "other", "vocals"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Size = Annotated[int, Field(ge=1, le=1 << 16)]


class Layers(_Strict):
    """`Architecture`, as the card has it."""

    width: Size
    depth: Annotated[int, Field(ge=1, le=64)]
    downs: Annotated[list[Annotated[int, Field(ge=1, le=16)]], Field(min_length=1, max_length=8)]
    latent_dim: Size
    codes: Annotated[int, Field(ge=1, le=1 << 24)]
    dilation_growth: Annotated[int, Field(ge=1, le=64)]


class Model(_Strict):
    """A stem's model."""

    file: Annotated[str, Field(pattern=r"^[a-z0-9_-]+\.safetensors$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    init: str
    """What stage 1 started from."""
    step: int
    """Of stage 2."""
    scores: dict[str, float] = {}
    """Mean SDR in dB on songs that were not trained on, by the group of the songs."""


class Card(_Strict):
    """What a folder of models says of itself."""

    format: Literal[1]
    sample_rate: Annotated[int, Field(ge=1, le=10_000_000)]
    architecture: Layers
    stems: dict[Stem, Model]
    data: str
    """The songs that they were trained on."""
    licence: str
    """Of the weights, which is that of those they descend from."""
    commit: str | None = None
    """Of jukesep's code that trained them."""
    parameters: dict[str, Any] = {}
    """params.yaml of their trainings."""


def save(folder: str | Path, stem: str, vqvae: VQVAE, about: Mapping[str, Any]) -> Card:
    """Add a stem's model to a folder, or put it in place of the stem's; returns the folder's card.

    `about` has what `Card` and `Model` tell beside the tensors. UserError if the folder holds
    models of another architecture or sample rate, or if a number of the model is not finite.
    """
    folder = Path(folder)
    architecture = Layers(**{**vars(vqvae.architecture), "downs": list(vqvae.architecture.downs)})
    state = vqvae.state_dict()
    tensors = {name: state[name].detach().cpu().contiguous() for name in _names(vqvae)}
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise UserError(f"the model of {stem}: {name} holds NaN or infinity.")
    content = tensors_as_bytes(tensors)
    model = {
        "file": f"{stem}.safetensors",
        "sha256": hashlib.sha256(content).hexdigest(),
        **{key: about[key] for key in ("init", "step", "scores") if key in about},
    }
    shared = {key: about[key] for key in Card.model_fields if key in about}
    before = read_card(folder) if (folder / CARD).exists() else None
    stems = dict(before.stems) if before else {}
    if before:
        for name, found, wanted in (
            ("architecture", before.architecture, architecture),
            ("sample_rate", before.sample_rate, shared["sample_rate"]),
        ):
            if found != wanted and set(stems) != {stem}:
                raise UserError(
                    f"{folder}: holds models whose {name} is {found}, the model of {stem} has "
                    f"{wanted}. Models of one folder are alike; choose another."
                )
    stems[stem] = Model(**model)  # type: ignore[index]
    ordered = {name: one for name in STEMS for held, one in stems.items() if held == name}
    card = Card(format=FORMAT, architecture=architecture, stems=ordered, **shared)
    with atomic(folder / model["file"]) as temporary:
        temporary.write_bytes(content)
    write_text(folder / CARD, json.dumps(card.model_dump(), indent=1, ensure_ascii=False) + "\n")
    return card


def read_card(folder: str | Path) -> Card:
    """What a folder of models says of itself. UserError for what is no card of this format."""
    path = Path(folder) / CARD
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path}: {path.stat().st_size:,} bytes, which no card has.")
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is no JSON ({error}). Fetch the folder again.") from error
    if isinstance(found, dict) and found.get("format", FORMAT) != FORMAT:
        raise UserError(
            f"{path}: is of format {found['format']!r}, this jukesep reads {FORMAT}. Update it, or "
            "pack the models anew."
        )
    try:
        return Card.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise UserError(f"{path}: {place}: {first['msg']}. Fetch the folder again.") from error


def load(folder: str | Path, stem: str, card: Card) -> VQVAE:
    """A stem's model from a folder. UserError if the file is missing, damaged, or does not fit."""
    model = card.stems[stem]  # type: ignore[index]
    path = Path(folder) / model.file
    architecture = Architecture(**card.architecture.model_dump())
    with torch.device("meta"):
        expected = _shapes(VQVAE(architecture))
    content = _read(path, sum(shape.numel() for shape in expected.values()) * 4, folder)
    found = hashlib.sha256(content).hexdigest()
    if found != model.sha256:
        raise UserError(
            f"{path}: its sha256 is {found}, {CARD} says {model.sha256}. The file was changed or "
            "damaged; fetch the folder again."
        )
    try:
        tensors = read_tensors(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{path}: no file of safetensors ({error}).") from error
    for name in sorted(expected.keys() ^ tensors.keys()):
        which = "lacks" if name in expected else "has, beyond the architecture,"
        raise UserError(f"{path}: {which} the tensor {name}. {CARD} is of another model.")
    for name, value in tensors.items():
        if value.shape != expected[name] or value.dtype != torch.float32:
            raise UserError(
                f"{path}: {name} is {value.dtype} of shape {tuple(value.shape)}, {CARD} wants "
                f"torch.float32 of {tuple(expected[name])}. They are of different models."
            )
        if not value.isfinite().all():
            raise UserError(f"{path}: {name} holds NaN or infinity.")
    vqvae = VQVAE(architecture)
    codes = tensors.pop(CODES)
    vqvae.load_state_dict(tensors, strict=False)
    vqvae.codebook.restore(codes, USAGE)
    return vqvae.eval()


def import_checkpoints(
    folder: str | Path,
    stem: str,
    stage1: str | Path,
    stage2: str | Path,
    sample_rate: int | None = None,
    licence: str | None = None,
) -> Card:
    """Add a stem's model to a folder, from checkpoints in Jukebox's form: the authors', or ours.

    `sample_rate` is for files that do not say theirs; they are taken for 44,100 Hz. UserError as
    for `save` and the files.
    """
    vqvae = load_model(stage1, stage2)
    hps = jukebox.read_hps(stage2) | jukebox.read_hps(stage1)
    said = hps.get("sample_rate")
    if sample_rate is not None and said is not None and sample_rate != said:
        raise UserError(f"{stage1}: says that its sample rate is {said}, not {sample_rate} Hz.")
    return save(
        folder,
        stem,
        vqvae,
        {
            "sample_rate": sample_rate or (said if isinstance(said, int) else 44100),
            "init": str(hps.get("init", "unknown")),
            "step": jukebox.read_step(stage2),
            "data": "unknown: imported checkpoints",
            "licence": licence
            or "unknown: ask whom the checkpoints are from. Jukebox's weights, and what is made "
            "with them, are for non-commercial use only.",
        },
    )


def stems_of_trainings(folder: str | Path, init: str) -> dict[str, tuple[Path, Path]]:
    """Stem -> its last checkpoints of stage 1 and 2, in a folder of trainings; may be empty."""
    found = {}
    for stem in STEMS:
        run = f"{stem}_{init}/checkpoints"
        if (Path(folder) / "stage2" / run).is_dir():
            stages = (Path(folder) / stage / run for stage in ("stage1", "stage2"))
            found[stem] = tuple(latest(path) for path in stages)
    return found  # type: ignore[return-value]


def describe(card: Card, folder: str | Path) -> str:
    """A folder of models in words, for a terminal."""
    layers = ", ".join(f"{name} {value}" for name, value in card.architecture.model_dump().items())
    lines = [
        f"{folder}: {len(card.stems)} models at {card.sample_rate:,} Hz",
        f"  architecture  {layers}",
        f"  data          {card.data}",
        f"  licence       {card.licence}",
    ]
    if card.commit:
        lines.append(f"  commit        {card.commit}")
    for stem, model in card.stems.items():
        scores = "".join(f", SDR {value:.2f} dB ({name})" for name, value in model.scores.items())
        lines.append(f"  {stem:<8}      init {model.init}, step {model.step:,}{scores}")
    return "\n".join(lines)


def _names(vqvae: VQVAE) -> list[str]:
    """Of what separates: E2 as the encoder, D, and the codes."""
    return [*(n for n in vqvae.state_dict() if n.startswith(("encoder.", "decoder."))), CODES]


def _shapes(vqvae: VQVAE) -> dict[str, torch.Size]:
    state = vqvae.state_dict()
    return {name: state[name].shape for name in _names(vqvae)}


def _read(path: Path, size: int, folder: str | Path) -> bytes:
    """A file of tensors of `size` bytes in all."""
    try:
        if not path.resolve().is_relative_to(Path(folder).resolve()) or not path.is_file():
            raise UserError(f"{path}: is no file of this folder. Fetch the folder again.")
        there = path.stat().st_size
        if not size <= there <= size + HEADER:
            raise UserError(
                f"{path}: {there:,} bytes, a model of this architecture has about {size:,}. The "
                f"file is cut off, or {CARD} is of another model."
            )
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}.") from error
