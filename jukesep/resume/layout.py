"""Read the folder of a training from another process. `folder` writes it and describes it.

This module does not import torch.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_SAVE = re.compile(r"state-([0-9]{8,})\.state")


def held(folder: Path) -> bool:
    """Whether a process is training in this folder. Needs no permission to write to it."""
    path = folder / "lock"
    if not path.exists():
        return False
    try:
        if fcntl is None:
            with FileLock(path, timeout=0):
                return False
        # FileLock opens the file for writing. A process that trains holds an exclusive lock.
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except (Timeout, BlockingIOError):
        return True


def saves(folder: Path) -> list[Path]:
    """Return the saves in a training's folder, the newest last."""
    return sorted((p for p in folder.glob("state-*") if _SAVE.fullmatch(p.name)), key=step_of)


def step_of(save: Path) -> int:
    """Return the step of a save, from its name."""
    return int(save.stem.removeprefix("state-"))


def read_progress(folder: Path) -> dict[str, Any]:
    """Return the content of progress.json in a training's folder; empty if it cannot be read."""
    try:
        content = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    sound = isinstance(content, dict) and isinstance(content.get("updated", 0), int | float)
    return content if sound else {}
