"""What determines a training's result: parameters, inputs, code, libraries.

dvc.yaml names a stage's parameters and inputs; a training is another one for what is saved here
exactly when its stage is for DVC. An interrupted training goes on only as what it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from ..base import paths
from ..base.errors import UserError

# Whose numbers a training's numbers come from.
LIBRARIES = ("llvmlite", "numba", "numpy", "scipy", "soundfile", "torch", "torchaudio")
_ROOTS = (Path(), Path(__file__).parents[2])  # the project, and where this code lies


def identity(
    stage: str, item: Mapping[str, str], params: Mapping[str, Any], **more: str
) -> dict[str, Any]:
    """Everything that determines the result of a stage of dvc.yaml, as {kind: {name: value}}.

    `item` is what the stage's matrix chose, {"stem": "vocals", "init": "scratch"}; `params` all
    parameters; `more` what else there is, the device. UserError if there is no dvc.yaml.
    """
    file = _find(str(paths.PIPELINE))
    if file is None:
        raise UserError("dvc.yaml: no such file. Run this in the folder of the project.")
    described = yaml.safe_load(file.read_text(encoding="utf-8"))["stages"][stage]
    chosen: dict[str, Any] = {}
    for name in _named(described["params"], item):
        value: Any = params
        for part in name.split("."):
            value = value[part]
        chosen |= _flat(name, value)
    return {
        "stage": {"name": stage, **item},
        "parameters": chosen,
        "inputs": {name: digest(name) for name in _named(described["deps"], item)},
        "libraries": {name: version(name) for name in LIBRARIES},
        "runs on": more,
    }


def key(what: Mapping[str, Any]) -> str:
    """A name for an identity, the same for the same."""
    text = json.dumps(what, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The names under which two identities have other values."""
    found = []
    for kind in {**one, **other}:
        ours, theirs = one.get(kind, {}), other.get(kind, {})
        found += [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    return found


def digest(name: str) -> str:
    """Of a file's content, or of a folder's files.

    Audio counts with its size: checks.json, beside it, has the digests of all samples.
    """
    path = _find(name)
    if path is None:
        raise UserError(f"{name}: no such file or folder. Run `dvc repro` to make it.")
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    total = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts:
            content = str(file.stat().st_size) if file.suffix == ".wav" else digest(str(file))
            total.update(f"{file.relative_to(path).as_posix()} {content}\n".encode())
    return total.hexdigest()


def _named(names: Sequence[str], item: Mapping[str, str]) -> Iterator[str]:
    """The names, with what the matrix chose put in."""
    for name in names:
        for choice, value in item.items():
            name = name.replace(f"${{item.{choice}}}", value)
        yield name


def _find(name: str) -> Path | None:
    return next((root / name for root in _ROOTS if (root / name).exists()), None)


def _flat(name: str, value: Any) -> dict[str, Any]:
    """{"stage1": {"steps": 3}} as {"stage1.steps": 3}."""
    if not isinstance(value, dict):
        return {name: value}
    return {key: v for part in value for key, v in _flat(f"{name}.{part}", value[part]).items()}
