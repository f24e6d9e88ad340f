"""The results of a training, and how they get to where DVC expects them.

    trainings/stage1-vocals_pretrained-<key>/
      log.csv checkpoints/  the results
      results.json          their digests, once the training is complete and left them here

This module does not import torch, which takes seconds: a stage whose training ran beside another
one has nothing to compute.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..base.files import atomic, write_json
from ..base.unchanged import file_digest
from .layout import saves

LOG, CHECKPOINTS, RECORD = "log.csv", "checkpoints", "results.json"


def record(folder: Path, files: Iterable[Path]) -> None:
    """Write the digests of a complete training's results, files in its folder."""
    found = {file.relative_to(folder).as_posix(): file_digest(file) for file in files}
    write_json(folder / RECORD, found)


def recorded(folder: Path) -> list[Path]:
    """The results that `record` knows; empty if there are none, or if one is not as it was."""
    try:
        known = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        files = {folder / name: sha256 for name, sha256 in known.items()}
        whole = all(file_digest(file) == sha256 for file, sha256 in files.items())
    except (OSError, ValueError, AttributeError):
        return []
    return list(files) if whole else []


def deliver(
    files: Iterable[Path], folder: Path, out: Path, names: Mapping[str, str] | None = None
) -> None:
    """Copy results from a training's folder to `out`, some under another name, {here: there}."""
    for file in files:
        name = file.relative_to(folder).as_posix()
        target = out / (names or {}).get(name, name)
        try:
            with atomic(target, durable=True) as unfinished:
                shutil.copyfile(file, unfinished)
        except OSError as error:
            error.filename = os.fspath(target)  # for the message
            raise


def clear(folder: Path) -> None:
    """Delete what a finished training no longer needs: its saves, the newest last, and results."""
    for path in (*folder.glob("state-*.damaged"), *saves(folder)):
        path.unlink()
    for name in (LOG, RECORD, "fault.json"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def note(folder: Path, message: str) -> None:
    """Add a line with the time to training.log. It is for information: errors are ignored."""
    stamp = time.strftime("%Y-%m-%d %H:%M:%S")
    try:
        with (folder / "training.log").open("a", encoding="utf-8") as file:
            file.write(f"{stamp} {message}\n")
    except OSError:
        return  # everything important is also printed
