"""Models as files: a folder with a model for each stem, and a JSON file that describes them.

    models/separator/
      separator.json        describes the folder: `Card`
      vocals.safetensors    D, the codebook and E2 of a stem in float32; one file per stem

The card is the only commit point: it is written last, and names the file of each model. A file is
never overwritten, so a process that is killed leaves the folder as it was before or after. A model
that replaces another is in a file such as vocals-0a1b2c3d4e5f.safetensors, named by its digest.

Nothing in such a folder is trusted: loading runs no code from it, and errors name the fault.
"""

from __future__ import annotations

import json
import os
import re
import reprlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as tensors_as_bytes

from ..base import params
from ..base.errors import UserError
from ..base.files import UNFINISHED, alone, atomic
from ..base.unchanged import digest, file_digest
from ..model import jukebox
from ..model.checkpoints import latest
from ..model.vqvae import VQVAE, Architecture
from ..songs.manifest import STEMS

CARD = "separator.json"
FORMAT: Literal[1] = 1
_FILE = re.compile(rf"({'|'.join(STEMS)})(-[0-9a-f]{{12}})?\.safetensors")  # as `save` names it
CODES = "codebook.k"
HEADER = 1 << 20  # most bytes of the header (names and shapes) of a safetensors file
LARGEST = 1 << 22  # most bytes of a card
USAGE = 1.0  # stands for the codebook's moving averages, which the files lack: nothing trains here

Stem = Literal["drums", "bass", "other", "vocals"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


# Text is printed as it is, so it may hold no control characters.
STEERING = r"\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069"
Text = Annotated[str, Field(pattern=rf"^[^{STEERING}]*$", max_length=1000)]
Plain = Text | bool | int | FiniteFloat | None
Setting = Plain | list[Plain]


class Layers(_Strict):
    """`Architecture` in the card."""

    width: params.Size
    depth: params.Depth
    downs: Annotated[list[params.Halvings], params.BLOCKS]
    latent_dim: params.Size
    codes: params.Codes
    dilation_growth: params.Growth


class Model(_Strict):
    """The entry of one stem's model in the card."""

    file: Annotated[str, Field(pattern=r"^[a-z0-9_-]+\.safetensors$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    init: Text
    """What stage 1 started from."""
    step: int
    """The training step of stage 2."""
    scores: dict[Text, FiniteFloat] = {}
    """Mean SDR in dB on songs outside training, by song group."""
    data: Text
    """The songs it was trained on."""
    licence: Text
    """The licence of the weights, which follows from their initial weights and songs."""
    commit: Text | None = None
    """The last commit of the training code."""
    parameters: dict[Text, Setting | dict[Text, Setting]] = {}
    """The parameters of its trainings, from params.yaml."""


SHARED = ("bottleneck", "temperature")
"""What the card says of all models at once, beside their form."""


class Card(_Strict):
    """The description of a folder of models: separator.json."""

    format: Literal[1]
    sample_rate: params.Rate
    architecture: Layers
    stems: Annotated[dict[Stem, Model], Field(min_length=1)]
    bottleneck: params.Bottleneck = "quantise"
    """What the decoders get: see `chunked.apply`."""
    temperature: params.Temperature = 20.0
    """Of a soft bottleneck."""


def save(folder: str | Path, stem: str, vqvae: VQVAE, about: Mapping[str, Any]) -> Card:
    """Add a stem's model to a folder, or replace it; returns the folder's new card.

    `about` holds `sample_rate` (Hz) and the fields of `Model` other than `file` and `sha256`. It
    may hold the fields of `SHARED`; without them, they stay as they are in the folder.
    UserError if the folder holds models of another architecture or sample rate, if a weight is
    not finite, or if a field does not fit into a card.
    """
    try:
        with alone(Path(folder).absolute()):  # another process may add its stem
            return _save(Path(folder), stem, vqvae, about)
    except ValidationError as error:
        raise UserError(
            f"the model of {stem}: {_fault(error)}. A card cannot hold this value."
        ) from error


def _save(folder: Path, stem: str, vqvae: VQVAE, about: Mapping[str, Any]) -> Card:
    architecture = Layers(**{**vars(vqvae.architecture), "downs": list(vqvae.architecture.downs)})
    state = vqvae.state_dict()
    tensors = {name: state[name].detach().cpu().contiguous() for name in _names(vqvae)}
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise UserError(f"the model of {stem}: {name} holds NaN or infinity.")
    # The dilations do not show in the shapes: the architecture becomes part of the digest.
    content = tensors_as_bytes(tensors, {"architecture": architecture.model_dump_json()})
    fields = {key: about[key] for key in Model.model_fields if key in about}
    sha256 = digest(content)
    model = Model(file=_file_name(folder, stem, sha256), sha256=sha256, **fields)
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
                    f"{folder}: holds models with {name} {found}, but the model of {stem} has "
                    f"{wanted}. Choose another folder: all models in a folder share it."
                )
    stems[stem] = model  # type: ignore[index]
    ordered = {name: one for name in STEMS for held, one in stems.items() if held == name}
    shared = {name: about.get(name, getattr(before, name, None)) for name in SHARED}
    card = Card(
        format=FORMAT,
        sample_rate=sample_rate,
        architecture=architecture,
        stems=ordered,
        **{name: value for name, value in shared.items() if value is not None},
    )
    text = json.dumps(card.model_dump(), indent=1, ensure_ascii=False) + "\n"
    with atomic(folder / CARD, durable=True) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
        # It appears before the card does.
        if not (folder / model.file).exists():
            with atomic(folder / model.file, durable=True) as unfinished_model:
                unfinished_model.write_bytes(content)
    _delete_replaced(folder, stem, before, card)
    return card


def _delete_replaced(folder: Path, stem: str, before: Card | None, card: Card) -> None:
    """Delete the file of a stem's earlier model, and those that killed processes wrote for it."""
    named = {model.file for model in before.stems.values()} if before else set()
    named |= {path.name for path in folder.glob(f"{stem}-*") if _FILE.fullmatch(path.name)}
    for name in named - {model.file for model in card.stems.values()}:
        with suppress(OSError):  # the folder is complete
            (folder / name).unlink()


def _file_name(folder: Path, stem: str, sha256: str) -> str:
    """The name for a model's file: the plain one, unless a file with other content has it."""
    plain = folder / f"{stem}.safetensors"
    if not plain.exists() or file_digest(plain) == sha256:
        return plain.name
    return f"{stem}-{sha256[:12]}.safetensors"


def started(folder: Path) -> bool:
    """Whether a folder without a card is empty, or a killed process began to write models to it."""
    names = (path.name for path in folder.iterdir())
    return all(name.startswith(UNFINISHED) or _FILE.fullmatch(name) for name in names)


def read_card(folder: str | Path) -> Card:
    """Read the card of a folder of models. UserError if it is missing, damaged or too new."""
    path = Path(folder) / CARD
    try:
        path.lstat()
        if not _inside(path, folder):
            raise UserError(f"{path}: not a file in this folder. Fetch the folder again.")
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path}: {path.stat().st_size:,} bytes, too large for a card.")
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: no such file. Run `dvc repro` for models/separator, or `jukesep import` to "
            "make a folder of models from checkpoints."
        ) from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}). Fetch the folder again.") from error
    if isinstance(found, dict) and repr(found.get("format", FORMAT)) != repr(FORMAT):
        raise UserError(
            f"{path}: has format {reprlib.repr(found['format'])}, this jukesep reads {FORMAT}. "
            "Update jukesep, or pack the models again."
        )
    try:
        return Card.model_validate(found)
    except ValidationError as error:
        raise UserError(f"{path}: {_fault(error)}. Fetch the folder again.") from error


def load(folder: str | Path, stem: str, card: Card) -> VQVAE:
    """Load a stem's model from a folder. UserError if its file is missing, damaged or another's."""
    model = card.stems[stem]  # type: ignore[index]
    path = Path(folder) / model.file
    try:
        architecture = Architecture(**card.architecture.model_dump())
    except UserError as error:
        raise UserError(f"{Path(folder) / CARD}: {error}") from error
    with torch.device("meta"):
        expected = _shapes(VQVAE(architecture))
    content = _read(path, sum(shape.numel() for shape in expected.values()) * 4, folder)
    found = digest(content)
    if found != model.sha256:
        raise UserError(
            f"{path}: sha256 is {found}, but {CARD} has {model.sha256}. The file was changed or "
            "damaged; fetch the folder again."
        )
    try:
        tensors = read_tensors(content)
        # The file begins with the header's length in eight bytes, then the header.
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        within = Layers.model_validate_json(header["__metadata__"]["architecture"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a safetensors file with a model ({error}).") from error
    if within != card.architecture:
        raise UserError(
            f"{path}: holds a model of {within}, but {CARD} has {card.architecture}. Fetch the "
            "folder again."
        )
    for name in sorted(expected.keys() ^ tensors.keys()):
        which = "lacks the" if name in expected else "has an unknown"
        raise UserError(f"{path}: {which} tensor {name}. {CARD} belongs to another model.")
    for name, value in tensors.items():
        if value.shape != expected[name] or value.dtype != torch.float32:
            raise UserError(
                f"{path}: {name} is {value.dtype} of shape {tuple(value.shape)}, {CARD} needs "
                f"torch.float32 of shape {tuple(expected[name])}. Fetch the folder again."
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
    """Add a stem's model to a folder, from checkpoints in Jukebox's form: the authors' or ours.

    `sample_rate` (Hz) is for files that do not hold theirs; its default is 44,100. UserError as
    for `save`, and for files that `jukesep evaluate` refuses: of another stem or of two rates.
    """
    from ..model.checkpoints import load_pair

    pair = load_pair(Path(stage1), Path(stage2), stem, torch.device("cpu"))
    says = not {"sample_rate", "sr"}.isdisjoint(jukebox.read_hps(stage1))
    if sample_rate is not None and says and sample_rate != pair.sample_rate:
        raise UserError(
            f"{stage1}: its sample rate is {pair.sample_rate} Hz, not {sample_rate} Hz."
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


def stems_of_trainings(folder: str | Path, init: str) -> tuple[str, ...]:
    """The stems that have checkpoints of stage 2 in a folder of trainings; may be none."""
    return tuple(s for s in STEMS if os.path.isdir(_checkpoints(folder, "stage2", s, init)))


def last_checkpoints(folder: str | Path, stem: str, init: str) -> tuple[Path, Path]:
    """A stem's last checkpoints of stages 1 and 2 in a folder of trainings. UserError if none."""
    first, second = (_checkpoints(folder, stage, stem, init) for stage in ("stage1", "stage2"))
    return latest(first), latest(second)


def _checkpoints(folder: str | Path, stage: str, stem: str, init: str) -> Path:
    return Path(folder) / stage / f"{stem}_{init}/checkpoints"


def describe(card: Card, folder: str | Path) -> str:
    """Describe a folder of models as text for a terminal."""
    layers = ", ".join(f"{name} {value}" for name, value in card.architecture.model_dump().items())
    lines = [
        f"{folder}: {len(card.stems)} models at {card.sample_rate:,} Hz",
        f"  architecture  {layers}",
    ]
    if card.bottleneck != "quantise":
        degree = f", temperature {card.temperature:g}" if card.bottleneck == "soft" else ""
        lines.append(f"  bottleneck    {card.bottleneck}{degree}")
    # Often all stems share these; they are then printed once.
    for name in ("data", "licence", "commit"):
        values = {stem: getattr(model, name) or "unknown" for stem, model in card.stems.items()}
        for text in dict.fromkeys(values.values()):
            stems = [stem for stem in values if values[stem] == text]
            which = "" if len(stems) == len(values) else f" ({', '.join(stems)})"
            lines.append(f"  {name:<12}  {text}{which}")
    for stem, model in card.stems.items():
        scores = "".join(f", SDR {value:.2f} dB ({name})" for name, value in model.scores.items())
        lines.append(f"  {stem:<12}  init {model.init}, step {model.step:,}{scores}")
    return "\n".join(lines)


def _fault(error: ValidationError) -> str:
    """The place of the first invalid value, and why it is invalid."""
    first = error.errors()[0]
    # Unknown names come from the file and may hold control characters, too.
    where = ".".join(reprlib.repr(part).strip("'") for part in first["loc"])
    return f"{where or 'content'}: {first['msg']}"


def _inside(path: Path, folder: str | Path) -> bool:
    """Whether `path`, with links resolved, is a plain file in the folder."""
    try:
        return path.resolve().is_relative_to(Path(folder).resolve()) and path.is_file()
    except RuntimeError:  # a loop of links, before Python 3.13
        return False


def _names(vqvae: VQVAE) -> list[str]:
    """Names of the tensors that separation needs: the encoder (E2), D and the codes."""
    return [*(n for n in vqvae.state_dict() if n.startswith(("encoder.", "decoder."))), CODES]


def _shapes(vqvae: VQVAE) -> dict[str, torch.Size]:
    state = vqvae.state_dict()
    return {name: state[name].shape for name in _names(vqvae)}


def _read(path: Path, size: int, folder: str | Path) -> bytes:
    """Read a safetensors file whose tensors have `size` bytes in total."""
    try:
        if not _inside(path, folder):
            raise UserError(f"{path}: not a file in this folder. Fetch the folder again.")
        there = path.stat().st_size
        if not size <= there <= size + HEADER:
            raise UserError(
                f"{path}: {there:,} bytes, a model of this architecture has about {size:,}. The "
                f"file is truncated, or {CARD} belongs to another model."
            )
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}.") from error
