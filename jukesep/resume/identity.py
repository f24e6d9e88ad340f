"""The identity of a training: everything that determines its result.

That is parameters, inputs, code and libraries. dvc.yaml lists the parameters and inputs of a stage,
so a save can be resumed as long as DVC considers the stage unchanged.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import reduce
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from ..base import paths
from ..base.errors import UserError
from ..base.progress import bar
from ..base.unchanged import Known, digest, file_digest, marks

# The libraries that compute a training's numbers.
LIBRARIES = ("llvmlite", "numba", "numpy", "scipy", "soundfile", "torch", "torchaudio")
_ROOTS = (Path(), Path(__file__).parents[2])  # the project, and the repository of this code


def identity(
    stage: str,
    item: Mapping[str, str],
    params: Mapping[str, Any],
    libraries: Iterable[str] = (),
    **more: str,
) -> dict[str, Any]:
    """Return everything that determines the result of a stage, as {kind: {name: value}}.

    `item` is the entry of the stage's matrix, such as {"stem": "vocals", "init": "scratch"}, or the
    key of its foreach, {"key": "hdemucs"}; `params` are all parameters; `libraries` are packages
    beside LIBRARIES; `more` are other values, such as the device. UserError if dvc.yaml or an input
    is missing.
    """
    file = _find(str(paths.PIPELINE))
    if file is None:
        raise UserError("dvc.yaml: no such file. Run this in the folder of the project.")
    described = yaml.safe_load(file.read_text(encoding="utf-8"))["stages"][stage]
    described = described.get("do", described)  # of a foreach
    values = {**params, "item": item, "key": item.get("key")}
    chosen: dict[str, Any] = {}
    for name in _filled(described["params"], values):
        chosen |= _flat(name, _value(values, name))
    return {
        "stage": {"name": stage, **item},
        "parameters": chosen,
        "inputs": _digests(_filled(described["deps"], values)),
        "libraries": {name: version(name) for name in (*LIBRARIES, *libraries)},
        "runs on": more,
    }


def key(what: Mapping[str, Any]) -> str:
    """Return a short digest of an identity, equal for equal identities."""
    text = json.dumps(what, sort_keys=True, ensure_ascii=False)
    return digest(text.encode())[:12]


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the names whose values differ between two identities."""
    found = []
    for kind in {**one, **other}:
        ours, theirs = one.get(kind, {}), other.get(kind, {})
        found += [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    return found


def _digests(names: Iterable[str]) -> dict[str, str]:
    """Return the digest of each file, or of all files in a folder, by name.

    Songs can have gigabytes: they are read once, and again only after a change.
    """
    files = {name: list(_files(_found(name))) for name in names}
    songs = [path for there in files.values() for path in there if path.suffix == ".wav"]
    known = Known(paths.trainings() / paths.DIGESTS)
    sums = {path: known.get(str(path.resolve()), [path.resolve()]) for path in songs}
    new = [path for path in songs if sums[path] is None]
    for path in bar(new, desc="songs: digests", unit="file", delay=5):
        before = marks([path.resolve()])
        sums[path] = file_digest(path)
        known.put(str(path.resolve()), [path.resolve()], sums[path], before=before)
    if new:
        known.save(all_asked=False)

    def lines(name: str) -> Iterator[bytes]:
        for path in files[name]:
            place = path.relative_to(_found(name)).as_posix()
            yield f"{place} {sums.get(path) or file_digest(path)}\n".encode()

    return {name: digest(lines(name)) for name in files}


def _files(path: Path) -> Iterator[Path]:
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file() and "__pycache__" not in file.parts:
            yield file


def _found(name: str) -> Path:
    path = _find(name)
    if path is None:
        raise UserError(f"{name}: no such file or folder. Run `dvc repro` to create it.")
    return path


def _filled(names: Iterable[str], values: Mapping[str, Any]) -> Iterator[str]:
    """Replace variables in names from dvc.yaml by their values, such as ${item.stem}."""
    for name in names:
        yield re.sub(r"\$\{(.+?)\}", lambda found: str(_value(values, found[1])), name)


def _value(values: Mapping[str, Any], name: str) -> Any:
    """Return the value of a parameter by its dotted name."""
    return reduce(lambda section, part: section[part], name.split("."), values)


def _find(name: str) -> Path | None:
    return next((root / name for root in _ROOTS if (root / name).exists()), None)


def _flat(name: str, value: Any) -> dict[str, Any]:
    """Flatten {"stage1": {"steps": 3}} to {"stage1.steps": 3}."""
    if not isinstance(value, dict):
        return {name: value}
    return {key: v for part in value for key, v in _flat(f"{name}.{part}", value[part]).items()}
