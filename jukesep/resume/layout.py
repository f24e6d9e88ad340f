"""Read the folder of a training from another process. `folder` writes it and describes it.

This module does not import torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout


def held(folder: Path) -> bool:
    """Whether a process is training in this folder."""
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def read_progress(folder: Path) -> dict[str, Any]:
    """Return the content of progress.json in a training's folder; empty if it cannot be read."""
    try:
        content = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
