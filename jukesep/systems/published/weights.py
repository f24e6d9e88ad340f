"""Files of weights, read without running code from them, and put into a network.

Nothing in such a file is trusted: the sha256 is compared before it is opened, and names, shapes and
numbers are checked before the network takes them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ...base.errors import UserError
from .catalogue import checked, refuse

ENDINGS = (".safetensors", ".pt", ".pth", ".th")


@dataclass(frozen=True)
class Weights:
    """The content of a file."""

    path: Path
    sha256: str
    """That of the file it was converted from, if it says so."""
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    """Of a safetensors file; empty for others."""


def find(weights: Path) -> list[Path]:
    """The file, or the files of weights in a folder, by name. UserError if there are none."""
    if not weights.is_dir():
        return [weights]
    refuse(weights.name)
    found = sorted(path for path in weights.iterdir() if path.suffix in ENDINGS)
    if not found:
        raise UserError(f"{weights}: no file of weights ({', '.join(ENDINGS)}).")
    return found


def only(weights: Path) -> Path:
    """The file, or the only file of weights in a folder. UserError if there are others."""
    found = find(weights)
    if len(found) > 1:
        raise UserError(
            f"{weights}: holds {len(found)} files of weights: "
            f"{', '.join(path.name for path in found[:5])}. Give one of them."
        )
    return found[0]


def read(path: Path) -> Weights:
    """Read a safetensors file, or a file of torch.save that holds nothing but tensors by name.

    UserError for a file that `catalogue.checked` refuses, for another kind of file, or if a number
    is not finite.
    """
    sha256 = checked(path)
    metadata: dict[str, str] = {}
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{path}: not a safetensors file ({error}).") from error
    else:
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # A damaged or hostile file can fail anywhere in the unpickler.
            raise UserError(
                f"{path}: cannot be read without running code from it, or is damaged. Weights are "
                "a safetensors file, or a file of torch.save with tensors alone. A .th file of "
                "demucs can be converted: python -m jukesep.systems.published.convert --help"
            ) from error
    if not isinstance(tensors, dict) or not tensors:
        raise UserError(f"{path}: holds {type(tensors).__name__}, where tensors by name belong.")
    for name, tensor in tensors.items():
        if (
            not isinstance(name, str)
            or not isinstance(tensor, Tensor)
            or tensor.layout != torch.strided
            or tensor.is_complex()
            or not tensor.isfinite().all()
        ):
            raise UserError(f"{path}: {name!r} is not a tensor of finite numbers.")
    origin = metadata.get("converted_from", sha256)
    refuse(path.name, origin)
    return Weights(path, origin, tensors, metadata)


def fill(module: nn.Module, weights: Weights, unused: Collection[str] = ()) -> None:
    """Put all tensors of a file into a network, except `unused`; float16 becomes float32.

    The network may be on the device "meta", so that sizes that a file implies are compared before
    they take memory. UserError, before the network takes anything, if a tensor is missing or
    unknown, or has another shape.
    """
    expected = module.state_dict()
    given = {name: value for name, value in weights.tensors.items() if name not in unused}
    for kind, names in (
        ("lacks", expected.keys() - given.keys()),
        ("has the unknown", given.keys() - expected.keys()),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(
                f"{weights.path}: {kind} tensors {', '.join(sorted(names)[:3])}{more}. These are "
                f"not weights of {type(module).__name__} in this form."
            )
    for name, value in given.items():
        if value.shape != expected[name].shape:
            raise UserError(
                f"{weights.path}: {name} has the shape {tuple(value.shape)}, but "
                f"{type(module).__name__} needs {tuple(expected[name].shape)}."
            )
    ready = {name: value.to(expected[name].dtype) for name, value in given.items()}
    module.load_state_dict(ready, assign=True)
