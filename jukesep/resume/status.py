"""List and delete trainings, with the progress of each.

This module does not import torch.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from ..base import paths
from ..base.errors import UserError
from ..base.files import remove
from ..base.params import load
from . import identity
from .layout import held, read_progress, saves

Condition = Literal["running", "interrupted", "failed", "trained", "finished"]


@dataclass(frozen=True)
class Status:
    """The current state of a training's folder."""

    folder: Path
    condition: Condition
    progress: dict[str, Any]
    """The content of progress.json; empty if it cannot be read."""
    size: int
    """The size of the folder in bytes."""

    @property
    def can_resume(self) -> bool:
        """Whether there is a save to resume from."""
        return bool(saves(self.folder))

    @cached_property
    def outdated(self) -> list[str]:
        """What has changed in the project since then, so that the training would not resume."""
        try:
            theirs = json.loads((self.folder / "identity.json").read_text(encoding="utf-8"))
            stage, *_ = theirs["stage"].values()
            item = {name: value for name, value in theirs["stage"].items() if name != "name"}
            own = theirs["libraries"].keys() - set(identity.LIBRARIES)  # of this training alone
            ours = identity.identity(stage, item, load().model_dump(mode="json"), sorted(own))
        except (ImportError, OSError, ValueError, TypeError, KeyError, AttributeError, UserError):
            return []
        return identity.differences({**theirs, "runs on": {}}, {**ours, "runs on": {}})

    def as_dict(self) -> dict[str, Any]:
        """Return the status as a dictionary for JSON."""
        own = {"folder": str(self.folder), "condition": self.condition, "bytes": self.size}
        return {**own, "can_resume": self.can_resume, "outdated": self.outdated, **self.progress}


def trainings(folder: Path | None = None) -> list[Status]:
    """Return the trainings in `folder` (default: the project's), the most recent last.

    Other folders that are there are no trainings, and not returned. UserError if it is a file.
    """
    folder = paths.trainings() if folder is None else folder
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is not a folder. Set {paths.VARIABLE} to one.")
    there = folder.iterdir() if folder.is_dir() else ()
    found = [_status(path) for path in there if (path / "identity.json").is_file()]
    return sorted(found, key=lambda one: (one.progress.get("updated", 0.0), one.folder.name))


def _status(folder: Path) -> Status:
    progress = read_progress(folder)
    condition: Condition = "interrupted"
    if held(folder):
        condition = "running"
    elif progress.get("state") in ("failed", "trained", "finished"):
        condition = progress["state"]
    return Status(folder, condition, progress, sum(_size(path) for path in folder.rglob("*")))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:  # a running training has just renamed or deleted it
        return 0


def clean(found: list[Status]) -> list[Status]:
    """Delete the folders of trainings that are not running; return the deleted ones.

    A link to a folder stays, with what it leads to.
    """
    deleted = []
    for one in found:
        if one.folder.is_symlink():
            continue
        lock = FileLock(one.folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:  # it has been resumed in the meantime
            continue
        remove(one.folder)  # under the lock; a training that starts now creates a new folder
        lock.release()
        deleted.append(one)
    return deleted


def table(found: list[Status]) -> str:
    """Return a table with one line for each training."""
    rows = [("training", "", "step", "steps/s", "left", "saved", "device", "last news")]
    for one in found:
        p = one.progress
        running = one.condition == "running"
        rate = p.get("steps_per_second") or 0.0
        processes = p.get("processes", 1)
        device = str(p.get("device", "?")) + (f" x {processes}" if processes > 1 else "")
        rows.append(
            (
                str(p.get("title", one.folder.name)),
                one.condition,
                f"{p.get('step', '?')}/{p.get('steps', '?')}",
                f"{rate:.3g}" if running and rate else "",
                duration(p.get("seconds_left")) if running else "",
                "" if p.get("saved_step") is None or not one.can_resume else str(p["saved_step"]),
                device,
                duration(time.time() - p["updated"]) + " ago" if "updated" in p else "",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    for one in found:
        if one.condition in ("interrupted", "failed") and one.can_resume and one.outdated:
            names, more = one.outdated[:5], len(one.outdated) - 5
            others = ", ".join(names) + (f" and {more} more" if more > 0 else "")
            lines.append(f"{one.folder}: stale, since these have changed: {others}.")
        if one.condition == "failed" and one.progress.get("message"):
            lines.append(f"{one.progress['title']}: {one.progress['message']}")
    return "\n".join(line.rstrip() for line in lines)


def duration(seconds: float | None) -> str:
    """Format a time: 43 s, 12 min, 3 h 05 min, 2 d 04 h."""
    if seconds is None:
        return "?"
    if seconds < 60:
        return f"{max(seconds, 0):.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 48 else f"{hours // 24} d {hours % 24:02} h"


def size(number: int) -> str:
    """Format a number of bytes: 1.5 MB."""
    return f"{number / 1e6:.1f} MB" if number < 1e9 else f"{number / 1e9:.1f} GB"
