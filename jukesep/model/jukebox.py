"""Convert between Jukebox's checkpoint files and `VQVAE`.

OpenAI's file, the files published with the paper and those written here have one form,

    {"model": {name: tensor}, "step": int, "hps": {name: number or text}, "opt": state or None}

with Jukebox's names of tensors (`encoders.0.level_blocks.0.model.0.0.weight`), optionally prefixed
with `module.`. OpenAI's file holds three levels. The paper's files hold level 0, in stage 2 only
its encoder. Loading a file never runs code from it.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base.errors import UserError
from ..base.files import atomic
from ..kernels.devices import out_of_memory
from .vqvae import VQVAE, Architecture, Encoder

SEGMENT = 393_216
"""Samples of a training segment in Jukebox and in the paper."""
DILATION_GROWTH = 3
"""Jukebox's value, for files whose hps do not name it."""


def load_jukebox(path: str | Path, level: int | None = None, segment: int = SEGMENT) -> VQVAE:
    """Load one level of a Jukebox file (by default its lowest), to use or to train further.

    The files lack the codebook's moving averages. They are restored from `restored_usage`, which
    takes the samples of a training segment.

    Raises UserError for a file that is not such a checkpoint, that would run code, or whose
    tensors are not exactly those of the level.
    """
    model, hps = _read(path)
    architecture = _architecture(path, model, hps, level, with_codes=True)
    tensors = _pick(path, model, jukebox_names(architecture), architecture)
    vqvae = VQVAE(architecture)
    codes = tensors.pop("codebook.k")
    vqvae.load_state_dict(tensors, strict=False)
    vqvae.codebook.restore(codes, restored_usage(architecture, segment))
    return vqvae


def restored_usage(architecture: Architecture, segment: int) -> float:
    """Latents per step that Jukebox assumes for each code of a file: 24 in the paper.

    (segment / hop) / codes. As in Jukebox, the batch size does not count.
    """
    return segment / architecture.hop / architecture.codes


def load_encoder(
    path: str | Path, architecture: Architecture | None = None, level: int | None = None
) -> Encoder:
    """Load the encoder of one level, from a whole Jukebox file or one with only encoders.

    Raises UserError as `load_jukebox` does, and for an encoder of another architecture.
    """
    model, hps = _read(path)
    found = _architecture(path, model, hps, level, with_codes=False)
    if architecture is not None:
        found = replace(found, codes=architecture.codes)
        if found != architecture:
            raise UserError(
                f"{path}: its encoder has {found}, but stage 1's model has {architecture}. "
                "Pass two files of the same architecture."
            )
    tensors = _pick(path, model, encoder_names(found), found, others=("decoders", "bottleneck"))
    encoder = Encoder(found)
    encoder.load_state_dict(tensors)
    return encoder


def read_hps(path: str | Path) -> dict[str, Any]:
    """Read a file's `hps`, the metadata of its training; may be empty. Raises UserError."""
    return _read(path)[1]


def read_step(path: str | Path) -> int:
    """Read a file's training step; 0, as in Jukebox, if it has none. Raises UserError."""
    step = _load(path).get("step")
    return step if isinstance(step, int) else 0


def save_jukebox(
    vqvae: VQVAE, path: str | Path, step: int, hps: Mapping[str, Any] | None = None
) -> None:
    """Write a model in Jukebox's form, atomically. `hps` adds numbers and texts as metadata.

    The form has no moving averages of the codebook. A model with one block is written as level 0,
    with three blocks as level 2.
    """
    _save(to_jukebox_keys(vqvae), vqvae.architecture, path, step, hps)


def save_encoder(
    encoder: Encoder, path: str | Path, step: int, hps: Mapping[str, Any] | None = None
) -> None:
    """Write only an encoder, as `save_jukebox` does: the form of the paper's stage-2 files."""
    names = encoder_names(encoder.architecture)
    _save(_rename(encoder.state_dict(), names), encoder.architecture, path, step, hps)


def _save(
    model: dict[str, Tensor],
    architecture: Architecture,
    path: str | Path,
    step: int,
    hps: Mapping[str, Any] | None,
) -> None:
    hps = jukebox_hps(architecture) | dict(hps or {})
    # Given a path, torch would write its name, here a random one, into the file.
    with atomic(path) as temporary, temporary.open("wb") as file:
        torch.save({"model": model, "step": step, "hps": hps, "opt": None}, file)


def jukebox_hps(architecture: Architecture) -> dict[str, Any]:
    """The architecture as Jukebox's hyperparameters."""
    levels = len(architecture.downs)
    return {
        "levels": levels,
        "downs_t": architecture.downs,
        "strides_t": (2,) * levels,
        "hvqvae_multipliers": (1,) * levels,
        "width": architecture.width,
        "depth": architecture.depth,
        "emb_width": architecture.latent_dim,
        "l_bins": architecture.codes,
        "dilation_growth_rate": architecture.dilation_growth,
    }


def to_jukebox_keys(vqvae: VQVAE) -> dict[str, Tensor]:
    """Weights and codes by Jukebox's names, copied to the CPU."""
    return _rename(vqvae.state_dict(), jukebox_names(vqvae.architecture))


def _rename(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    return {theirs: state[ours].detach().cpu().clone() for ours, theirs in names.items()}


def jukebox_names(architecture: Architecture) -> dict[str, str]:
    """`VQVAE`'s name -> Jukebox's, for each weight and the codes; the level is blocks - 1."""
    level = len(architecture.downs) - 1
    modules = {"decoder.out": f"decoders.{level}.out"}

    def add_stack(ours: str, theirs: str) -> None:
        for j in range(architecture.depth):
            modules[f"{ours}.residuals.{j}.dilated"] = f"{theirs}.model.{j}.model.1"
            modules[f"{ours}.residuals.{j}.pointwise"] = f"{theirs}.model.{j}.model.3"

    for block, downs in enumerate(architecture.downs):
        ours, theirs = f"encoder.blocks.{block}", f"encoders.{level}.level_blocks.{block}.model"
        modules[f"{ours}.end"] = f"{theirs}.{downs}"
        for i in range(downs):
            modules[f"{ours}.stages.{i}.down"] = f"{theirs}.{i}.0"
            add_stack(f"{ours}.stages.{i}", f"{theirs}.{i}.1")
        # Our decoder's blocks are in the order they run in, Jukebox's in the encoder's order.
        ours = f"decoder.blocks.{level - block}"
        theirs = f"decoders.{level}.level_blocks.{block}.model"
        modules[f"{ours}.start"] = f"{theirs}.0"
        for i in range(downs):
            add_stack(f"{ours}.stages.{i}", f"{theirs}.{i + 1}.0")
            modules[f"{ours}.stages.{i}.up"] = f"{theirs}.{i + 1}.1"

    names = {
        f"{ours}.{kind}": f"{theirs}.{kind}"
        for ours, theirs in modules.items()
        for kind in ("weight", "bias")
    }
    return names | {"codebook.k": _codes_name(level)}


def encoder_names(architecture: Architecture) -> dict[str, str]:
    """Like `jukebox_names`, for an `Encoder` alone."""
    return {
        ours.removeprefix("encoder."): theirs
        for ours, theirs in jukebox_names(architecture).items()
        if ours.startswith("encoder.")
    }


def _codes_name(level: int) -> str:
    return f"bottleneck.level_blocks.{level}.k"


class _NumpyType:
    """Replaces numpy.dtype when a file is read: keeps its name, and runs no code of numpy."""

    def __init__(self, name: str, *_: object) -> None:
        self.name = name

    def __setstate__(self, _: object) -> None:
        pass


def _numpy_number(kind: _NumpyType, data: bytes) -> float | int | bool | None:
    """Replaces numpy's scalar constructor: returns the number, or None for other types."""
    form = {"f8": "<d", "f4": "<f", "i8": "<q", "i4": "<i", "b1": "?"}.get(kind.name)
    return struct.unpack(form, data)[0] if form else None


# Jukebox computes some hyperparameters with numpy (the bandwidths), so files can hold numpy
# numbers. Numpy's own constructors would process any data in a file; these run no such code.
_NUMPY: list[Any] = [
    (_NumpyType, "numpy.dtype"),
    (_numpy_number, "numpy.core.multiarray.scalar"),
    (_numpy_number, "numpy._core.multiarray.scalar"),
]


def _load(path: str | Path) -> dict[str, Any]:
    """Read a file's content: a dict with a dict in "model". Runs no code from the file."""
    try:
        data = io.BytesIO(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}.") from error
    try:
        with torch.serialization.safe_globals(_NUMPY):
            content = torch.load(data, map_location="cpu", weights_only=True)
    except Exception as error:  # A damaged or hostile file can fail anywhere in the unpickler.
        if out_of_memory(error):
            raise UserError(f"{path}: too little memory to read it. Free some memory.") from error
        raise UserError(
            f"{path}: not a checkpoint that can be read safely: damaged, another kind of file, "
            "in a form that this PyTorch does not read, or with more than tensors, numbers and "
            "text. Compare its checksum with the publisher's, or make it again with `dvc repro`."
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise UserError(
            f"{path}: not a Jukebox checkpoint, which is a dict with tensors in 'model'."
        )
    return content


def _read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors by Jukebox's names, without `module.`, and the hps (maybe empty)."""
    content = _load(path)
    model = content["model"]
    for name, tensor in model.items():
        if (
            not isinstance(name, str)
            or not isinstance(tensor, Tensor)
            or tensor.layout != torch.strided
            or tensor.device.type != "cpu"
            or not tensor.is_floating_point()
            or not tensor.float().isfinite().all()
        ):
            raise UserError(f"{path}: {name!r} is not a tensor of finite floats.")
    if all(name.startswith("module.") for name in model):
        model = {name.removeprefix("module."): tensor for name, tensor in model.items()}
    hps = content.get("hps")
    return model, hps if isinstance(hps, dict) else {}


def _architecture(
    path: str | Path,
    model: dict[str, Tensor],
    hps: dict[str, Any],
    level: int | None,
    with_codes: bool,
) -> Architecture:
    """Derive the architecture from the names and shapes of a level's encoder and codes."""

    def indices(pattern: str) -> set[int]:
        matches = (re.match(pattern, name) for name in model)
        return {int(match[1]) for match in matches if match}

    def size(name: str) -> int:
        if name not in model:
            raise _mismatch(path, level, "missing", {name})
        return model[name].shape[0] if model[name].ndim else 0

    levels = sorted(indices(r"encoders\.(\d{1,2})\."))
    if level is None and levels:
        level = levels[0]
    if level not in levels:
        raise UserError(f"{path}: no encoder of level {level}. Levels found: {levels or 'none'}.")
    encoder = [f"encoders.{level}.level_blocks.{block}.model" for block in range(level + 1)]
    # Gaps in the numbering show later, as missing names.
    downs = tuple(
        1 + max(indices(rf"{re.escape(block)}\.(\d{{1,2}})\.0\.(?:weight|bias)$"), default=0)
        for block in encoder
    )
    blocks = indices(rf"{re.escape(encoder[0])}\.0\.1\.model\.(\d{{1,2}})\.")
    architecture = Architecture(
        width=size(f"{encoder[0]}.0.0.weight"),
        depth=1 + max(blocks, default=0),
        downs=downs,
        latent_dim=size(f"{encoder[0]}.{downs[0]}.weight"),
        dilation_growth=hps.get("dilation_growth_rate", DILATION_GROWTH),
    )
    return replace(architecture, codes=size(_codes_name(level))) if with_codes else architecture


def _pick(
    path: str | Path,
    model: dict[str, Tensor],
    names: dict[str, str],
    architecture: Architecture,
    others: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    """The tensors of `names`, by our names.

    The file may also hold other levels, and the families `others` of this level.
    """
    level = len(architecture.downs) - 1
    if missing := set(names.values()) - model.keys():
        raise _mismatch(path, level, "missing", missing)
    elsewhere = re.compile(r"(encoders|decoders|bottleneck)(?:\.level_blocks)?\.(\d{1,2})\.")
    unknown = set()
    for name in model.keys() - set(names.values()):
        match = elsewhere.match(name)
        if not match or (int(match[2]) == level and match[1] not in others):
            unknown.add(name)
    if unknown:
        raise _mismatch(path, level, "unknown", unknown)
    shapes = _shapes(architecture)
    for theirs in names.values():
        if model[theirs].shape != shapes[theirs]:
            raise UserError(
                f"{path}: {theirs} has shape {tuple(model[theirs].shape)}, "
                f"but the other tensors need {tuple(shapes[theirs])}. Download the file again."
            )
    return {ours: model[theirs].float() for ours, theirs in names.items()}


@cache  # building the layers takes longer than reading the file, and each stem has a file
def _shapes(architecture: Architecture) -> dict[str, torch.Size]:
    """Shapes by Jukebox's names. Allocates no weights: a damaged file can imply huge ones."""
    with torch.device("meta"):
        state = VQVAE(architecture).state_dict()
    return {theirs: state[ours].shape for ours, theirs in jukebox_names(architecture).items()}


def _mismatch(path: str | Path, level: int | None, kind: str, names: set[str]) -> UserError:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return UserError(
        f"{path}: not a Jukebox VQ-VAE of level {level}; {kind} tensors: "
        f"{', '.join(sorted(names)[:3])}{more}. Download it again, or choose another level."
    )
