"""Models as files: a folder with a model for each stem, and one JSON that says what they are.

    models/separator/
      separator.json        what is in the folder: `Card`
      vocals.safetensors    D, the codebook and E2 of a stem, float32, and so on

Nothing in such a folder is trusted: reading it runs nothing, and what does not fit is named.
"""

from __future__ import annotations

import hashlib
import json
import os
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as tensors_as_bytes

from ..base.errors import UserError
from ..base.files import atomic, write_text
from ..model import jukebox
from ..model.checkpoints import latest
from ..model.vqvae import VQVAE, Architecture
from ..songs.manifest import STEMS

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
# Printed as it is: nothing in it may steer a terminal.
STEERING = r"\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069"
Text = Annotated[str, Field(pattern=rf"^[^{STEERING}]*$", max_length=1000)]
Plain = Text | bool | int | FiniteFloat | None
Setting = Plain | list[Plain]


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
    init: Text
    """What stage 1 started from."""
    step: int
    """Of stage 2."""
    scores: dict[Text, FiniteFloat] = {}
    """Mean SDR in dB on songs that were not trained on, by the group of the songs."""
    data: Text
    """The songs that it was trained on."""
    licence: Text
    """Of the weights: that of the weights and songs that they descend from."""
    commit: Text | None = None
    """The last one of the code that trained it."""
    parameters: dict[Text, Setting | dict[Text, Setting]] = {}
    """params.yaml of its trainings."""


class Card(_Strict):
    """What a folder of models says of itself."""

    format: Literal[1]
    sample_rate: Annotated[int, Field(ge=1, le=10_000_000)]
    architecture: Layers
    stems: Annotated[dict[Stem, Model], Field(min_length=1)]


def save(folder: str | Path, stem: str, vqvae: VQVAE, about: Mapping[str, Any]) -> Card:
    """Add a stem's model to a folder, or put it in place of the stem's; returns the folder's card.

    `about` has what `Card` and `Model` tell beside the tensors. UserError if the folder holds
    models of another architecture or sample rate, if a number of the model is not finite, or for
    what a card cannot say.
    """
    try:
        return _save(Path(folder), stem, vqvae, about)
    except ValidationError as error:
        raise UserError(
            f"the model of {stem}: {_fault(error)}; the card cannot hold it."
        ) from error


def _save(folder: Path, stem: str, vqvae: VQVAE, about: Mapping[str, Any]) -> Card:
    architecture = Layers(**{**vars(vqvae.architecture), "downs": list(vqvae.architecture.downs)})
    state = vqvae.state_dict()
    tensors = {name: state[name].detach().cpu().contiguous() for name in _names(vqvae)}
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise UserError(f"the model of {stem}: {name} holds NaN or infinity.")
    # What the shapes do not tell, the dilations, is part of what the digest is of.
    content = tensors_as_bytes(tensors, {"architecture": architecture.model_dump_json()})
    told = {key: about[key] for key in Model.model_fields if key in about}
    digest = hashlib.sha256(content).hexdigest()
    model = Model(file=f"{stem}.safetensors", sha256=digest, **told)
    sample_rate = about["sample_rate"]
    before = read_card(folder) if (folder / CARD).exists() else None
    stems = dict(before.stems) if before else {}
    if before:
        for name, found, wanted in (
            ("architecture", before.architecture, architecture),
            ("sample_rate", before.sample_rate, sample_rate),
        ):
            if found != wanted and set(stems) != {stem}:
                raise UserError(
                    f"{folder}: holds models whose {name} is {found}, the model of {stem} has "
                    f"{wanted}. Models of one folder are alike; choose another."
                )
    stems[stem] = model  # type: ignore[index]
    ordered = {name: one for name in STEMS for held, one in stems.items() if held == name}
    card = Card(format=FORMAT, sample_rate=sample_rate, architecture=architecture, stems=ordered)
    with atomic(folder / model.file) as temporary:
        temporary.write_bytes(content)
    write_text(folder / CARD, json.dumps(card.model_dump(), indent=1, ensure_ascii=False) + "\n")
    return card


def read_card(folder: str | Path) -> Card:
    """What a folder of models says of itself. UserError for what is no card of this format."""
    path = Path(folder) / CARD
    try:
        path.lstat()
        if not _inside(path, folder):
            raise UserError(f"{path}: is no file of this folder. Fetch the folder again.")
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path}: {path.stat().st_size:,} bytes, which no card has.")
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: no such file. `dvc repro` or `dvc pull` makes models/separator, `jukesep "
            "import` makes other folders of models, from checkpoints."
        ) from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is no JSON ({error}). Fetch the folder again.") from error
    if isinstance(found, dict) and repr(found.get("format", FORMAT)) != repr(FORMAT):
        raise UserError(
            f"{path}: is of format {reprlib.repr(found['format'])}, this jukesep reads {FORMAT}. "
            "Update it, or pack the models anew."
        )
    try:
        return Card.model_validate(found)
    except ValidationError as error:
        raise UserError(f"{path}: {_fault(error)}. Fetch the folder again.") from error


def load(folder: str | Path, stem: str, card: Card) -> VQVAE:
    """A stem's model from a folder. UserError if the file is missing, damaged, or does not fit."""
    model = card.stems[stem]  # type: ignore[index]
    path = Path(folder) / model.file
    try:
        architecture = Architecture(**card.architecture.model_dump())
    except UserError as error:
        raise UserError(f"{Path(folder) / CARD}: {error}") from error
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
        # Behind the header's length in eight bytes.
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        within = Layers.model_validate_json(header["__metadata__"]["architecture"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no file of safetensors with a model ({error}).") from error
    if within != card.architecture:
        raise UserError(
            f"{path}: holds a model of {within}, {CARD} says {card.architecture}. Fetch the folder "
            "again."
        )
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
    for `save`, and for files that `jukesep evaluate` refuses: of another stem, of two rates.
    """
    from ..model.checkpoints import load_pair

    pair = load_pair(Path(stage1), Path(stage2), stem, torch.device("cpu"))
    says = not {"sample_rate", "sr"}.isdisjoint(jukebox.read_hps(stage1))
    if sample_rate is not None and says and sample_rate != pair.sample_rate:
        raise UserError(
            f"{stage1}: says that its sample rate is {pair.sample_rate}, not {sample_rate} Hz."
        )
    return save(
        folder,
        stem,
        pair.separator,
        {
            "sample_rate": sample_rate or pair.sample_rate,
            "init": pair.init or "unknown",
            "step": pair.steps[1],
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
        if os.path.isdir(Path(folder) / "stage2" / run):
            stages = (Path(folder) / stage / run for stage in ("stage1", "stage2"))
            found[stem] = tuple(latest(path) for path in stages)
    return found  # type: ignore[return-value]


def describe(card: Card, folder: str | Path) -> str:
    """A folder of models in words, for a terminal."""
    layers = ", ".join(f"{name} {value}" for name, value in card.architecture.model_dump().items())
    lines = [
        f"{folder}: {len(card.stems)} models at {card.sample_rate:,} Hz",
        f"  architecture  {layers}",
    ]
    # Stems of one training are alike in what they descend from; it is told once.
    for name in ("data", "licence", "commit"):
        told = {stem: getattr(model, name) or "unknown" for stem, model in card.stems.items()}
        for text in dict.fromkeys(told.values()):
            of = [stem for stem in told if told[stem] == text]
            which = "" if len(of) == len(told) else f" ({', '.join(of)})"
            lines.append(f"  {name:<12}  {text}{which}")
    for stem, model in card.stems.items():
        scores = "".join(f", SDR {value:.2f} dB ({name})" for name, value in model.scores.items())
        lines.append(f"  {stem:<12}  init {model.init}, step {model.step:,}{scores}")
    return "\n".join(lines)


def _fault(error: ValidationError) -> str:
    """Where the first value that does not fit stands, and why."""
    first = error.errors()[0]
    # A name that is not known is whoever's who wrote it: it must not steer a terminal either.
    where = ".".join(reprlib.repr(part).strip("'") for part in first["loc"])
    return f"{where or 'the whole'}: {first['msg']}"


def _inside(path: Path, folder: str | Path) -> bool:
    """Whether this is a plain file that lies in the folder, also where links lead."""
    try:
        return path.resolve().is_relative_to(Path(folder).resolve()) and path.is_file()
    except RuntimeError:  # a loop of links, before Python 3.13
        return False


def _names(vqvae: VQVAE) -> list[str]:
    """Of what separates: E2 as the encoder, D, and the codes."""
    return [*(n for n in vqvae.state_dict() if n.startswith(("encoder.", "decoder."))), CODES]


def _shapes(vqvae: VQVAE) -> dict[str, torch.Size]:
    state = vqvae.state_dict()
    return {name: state[name].shape for name in _names(vqvae)}


def _read(path: Path, size: int, folder: str | Path) -> bytes:
    """A file of tensors of `size` bytes in all."""
    try:
        if not _inside(path, folder):
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
